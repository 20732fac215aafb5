"""The one exception of the store."""

from ..errors import KeplerError


class StoreError(KeplerError):
    """A failure of the store: what was found, what was expected, what to do next."""
