"""The one exception of the store."""


class StoreError(Exception):
    """What went wrong, in one message for the operator: what was found, what was expected, what to do next."""
