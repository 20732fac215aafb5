"""A file that holds a key of a server or of a link, as systemd reads it (EnvironmentFile= in systemd.exec(5)).

No message shows what a file holds.
"""

import os
import re
import stat

from ..errors import KeplerError

NAME = "VLLM_API_KEY"
# Far more than a key needs.
MAX_BYTES = 16 * 1024
EXPECTED = "a file of root, mode 0600, with a line %s=KEY; KEY is visible ASCII characters without a space"
# HTTP headers carry these without quoting.
KEY = re.compile(r"[!-~]+\Z")
# One comment or assignment. An assignment may begin with quoted parts, which may span lines.
ENTRY = re.compile(
    r"""
    [#;] (?P<comment> [^\n\r]*)
    | (?P<name> [^ \t\n\r] [^=\n\r]*)
      (?: = (?P<quoted> (?: [ \t]* (?: '[^']*(?:'|\Z) | "[^"]*(?:"|\Z) ) )* )
            [ \t]* (?P<plain> (?: \\(?:.|\Z) | [^\\\n\r] )*?) [ \t]* (?= [\n\r] | \Z ) )?
    """,
    re.VERBOSE | re.DOTALL,
)
QUOTED = re.compile(r"""'([^']*)'?|"([^"]*)"?""")
ESCAPE = re.compile(r"\\(.|\Z)", re.DOTALL)
AMBIGUOUS = "a backslash in quotes or at the end of a comment, which systemd's versions read differently"


class KeyFileError(KeplerError):
    """A file from which a server gets no key, or that others can read."""

    def __init__(self, found):
        super(KeyFileError, self).__init__(found, EXPECTED % NAME)


def assignments(text):
    """Yield name and value of each assignment, in the order of the file. Raises KeyFileError."""
    for entry in ENTRY.finditer(text):
        quoted = entry.group("quoted") or ""
        if "\\" in quoted or (entry.group("comment") or "").endswith("\\"):
            raise KeyFileError(AMBIGUOUS)
        if entry.group("plain") is not None:
            value = "".join(single or double for single, double in QUOTED.findall(quoted))
            # A backslash keeps the character after it, or joins two lines.
            value += ESCAPE.sub(lambda found: found.group(1).strip("\n\r"), entry.group("plain"))
            yield entry.group("name").rstrip(" \t"), value


def key_of(text, variable=NAME):
    """The key in the text of a file, the value of `variable`. Raises KeyFileError."""
    if "\0" in text:
        raise KeyFileError("a NUL character")
    values = [value for name, value in assignments(text) if name == variable]
    if not values:
        raise KeyFileError(without_key(text, variable))
    # The last assignment counts.
    if not values[-1]:
        raise KeyFileError("an empty %s" % variable)
    if not KEY.match(values[-1]):
        raise KeyFileError("a %s with a space or with characters that an HTTP header cannot carry" % variable)
    return values[-1]


def without_key(text, variable):
    """Describe a text without an assignment of the key."""
    if not text.strip():
        return "an empty file"
    if text.startswith("\ufeff"):
        return "a byte order mark in front of the first line, which systemd takes for a part of its name"
    if re.search(r"(?m)^[ \t]*export[ \t]+%s[ \t]*=" % variable, text):
        return "export in front of %s, which systemd takes for a part of its name" % variable
    return "no line %s=" % variable


def read_key(path, variable=NAME):
    """The key in the file `path`, the value of `variable`. Raises KeyFileError."""
    try:
        # Opening a pipe would block until it has a writer.
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise KeyFileError("no regular file")
        with open(path, "rb") as stream:
            content = stream.read(MAX_BYTES + 1)
    except OSError as error:
        raise KeyFileError("a file that cannot be read (%s)" % error.strerror)
    if len(content) > MAX_BYTES:
        raise KeyFileError("more than %d bytes" % MAX_BYTES)
    try:
        return key_of(content.decode("utf-8"), variable)
    except UnicodeDecodeError:
        raise KeyFileError("bytes that are no UTF-8")


def check_key_file(path, variable=NAME):
    """Raise KeyFileError if others than root can read or change the file `path`, or if it holds no key."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise KeyFileError(error.strerror)
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != 0 or mode & 0o077:
        raise KeyFileError("owner %d (root is 0), mode %04o" % (status.st_uid, mode))
    read_key(path, variable)
