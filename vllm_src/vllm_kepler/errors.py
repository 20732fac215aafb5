"""Exceptions of the port; arguments that only its own code can get wrong raise Python's own.

vLLM reports a ValueError of a plugin or a model as a message to the operator; the supervisor finds names that end in
Error in the log.

The reader of checkpoints, which hosts have too, has a tree of its own: checkpoint/errors.py.
"""


class KeplerError(Exception):
    """Base of the port's exceptions: what was found, what is expected, the next step."""


class SettingError(KeplerError, ValueError):
    """An environment variable or an option of vLLM that the port cannot serve."""


class ModelError(KeplerError, ValueError):
    """A model, or a file of it, that the port cannot serve."""


class StartError(KeplerError, RuntimeError):
    """An installed vLLM, or a GPU, with which the engine cannot start."""


class LibraryError(KeplerError, RuntimeError):
    """A kernel library that cannot be used, or arguments that a launcher refused."""


def reject_if(condition: bool, feature: str) -> None:
    """Raise ModelError if a model asks for a feature that the port does not have."""
    if condition:
        raise ModelError(f"The model asks for {feature}: the Kepler port does not have it. Serve another model.")
