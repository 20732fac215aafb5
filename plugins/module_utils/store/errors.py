"""The one exception of the store."""


class StoreError(Exception):
    """A failure as one message for the operator: what was found, what was expected, what to do next."""
