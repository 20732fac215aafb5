"""The key in the text of a file, as systemd reads it (EnvironmentFile= in systemd.exec(5)).

Self-contained: the serving environment has a copy. No message shows what a file holds.
"""

import re

NAME = "VLLM_API_KEY"
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


class KeyTextError(ValueError):
    """A text without a key that a server can have; the message says what was found."""


def assignments(text):
    """Yield name and value of each assignment, in the order of the file. Raises KeyTextError."""
    for entry in ENTRY.finditer(text):
        quoted = entry.group("quoted") or ""
        if "\\" in quoted or (entry.group("comment") or "").endswith("\\"):
            raise KeyTextError(AMBIGUOUS)
        if entry.group("plain") is not None:
            value = "".join(single or double for single, double in QUOTED.findall(quoted))
            # A backslash keeps the character after it, or joins two lines.
            value += ESCAPE.sub(lambda found: found.group(1).strip("\n\r"), entry.group("plain"))
            yield entry.group("name").rstrip(" \t"), value


def key_of(text, variable=NAME):
    """The key in the text of a file, the value of `variable`. Raises KeyTextError."""
    if "\0" in text:
        raise KeyTextError("a NUL character")
    values = [value for name, value in assignments(text) if name == variable]
    if not values:
        raise KeyTextError(without_key(text, variable))
    # The last assignment counts.
    if not values[-1]:
        raise KeyTextError("an empty %s" % variable)
    if not KEY.match(values[-1]):
        raise KeyTextError("a %s with a space or with characters that an HTTP header cannot carry" % variable)
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
