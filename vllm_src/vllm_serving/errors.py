"""Exceptions of the serving package."""


class ServingError(Exception):
    """Base of the package's exceptions."""


class ConfigError(ServingError):
    """Options or an environment that nobody can serve with: what was found, what is expected, the next step."""


class Rejected(ServingError):
    """A request that vLLM does not get: the status and headers of the answer, and what is wrong."""

    def __init__(self, status: int, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers
