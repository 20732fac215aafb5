"""The errors of host code and of the plugins above it, one tree. Each is one message for the operator.

KeplerError
    StoreError          module_utils/store: a recipe, a source, an output, the disk
    KeyFileError        module_utils/server: a file that gives a server no key, or that others can read
    CheckFailed         module_utils/server: a server that does not answer as it must
    BundleError         plugin_utils/bundle: a file that is no bundle for these hosts
    CapacityError       plugin_utils/model_families: a model that the planner cannot read
        UnknownModelError

The reader of checkpoints has a tree of its own, checkpoint/errors.py: vLLM's processes have the same files.
"""

import http.client
import urllib.error


class KeplerError(Exception):
    """A failure as one message: what was found, what is expected, what to do next.

    found, expected: parts of the message, for those who build a finding of it; without `expected`, the whole of it.
    """

    def __init__(self, found, expected=None):
        super(KeplerError, self).__init__("found %s; expected %s" % (found, expected) if expected else found)
        self.found, self.expected = found, expected


def reason_of(error):
    """Text of an error for people: without Python's brackets and numbers, of an HTTPException with its name."""
    if isinstance(error, http.client.HTTPException):
        return repr(error)
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        error = error.reason
    return getattr(error, "strerror", None) or str(error)
