"""Exceptions of the serving package."""


class ServingError(Exception):
    """Base of the package's exceptions."""


class ConfigError(ServingError):
    """Options or an environment that no server can start with: what was found, what is expected, the next step."""


class Rejected(ServingError):
    """A request that is not passed to vLLM: what is wrong, and the status and headers of the answer."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
