"""A file that holds a key of a server or of a link. No message shows what a file holds."""

import os
import stat

from ..errors import KeplerError
from .key_text import NAME, KeyTextError, key_of

# Far more than a key needs.
MAX_BYTES = 16 * 1024
EXPECTED = "a file of root, mode 0600, with a line %s=KEY; KEY is visible ASCII characters without a space"


class KeyFileError(KeplerError):
    """A file from which a server gets no key, or that others can read."""

    def __init__(self, found, variable):
        super(KeyFileError, self).__init__(found, EXPECTED % variable)


def read_key(path, variable=NAME):
    """The key in the file `path`, the value of `variable`. Raises KeyFileError."""
    try:
        # Opening a pipe would block until it has a writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise KeyFileError("no regular file", variable)
        with open(path, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise KeyFileError("a file that cannot be read (%s)" % error.strerror, variable)
    if len(content) > MAX_BYTES:
        raise KeyFileError("more than %d bytes" % MAX_BYTES, variable)
    try:
        return key_of(content.decode("utf-8"), variable)
    except UnicodeDecodeError:
        raise KeyFileError("bytes that are no UTF-8", variable)
    except KeyTextError as error:
        raise KeyFileError(str(error), variable)


def check_key_file(path, variable=NAME):
    """Raise KeyFileError if others than root can read or change the file `path`, or if it holds no key."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise KeyFileError(error.strerror, variable)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != 0 or mode & 0o077:
        raise KeyFileError("owner %d (root is 0), mode %04o" % (status.st_uid, mode), variable)
    read_key(path, variable)
