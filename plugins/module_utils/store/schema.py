"""Kinds of JSON values, and reading a file whose fields must be of their kinds.

A kind is a type; a function that takes a value and returns whether it fits; a list of one kind; a mapping of the names
of fields to their kinds, beside which other fields may stand; or {str: kind}, a mapping of any names.
"""

import json
import os
import stat

SHOWN = 60  # characters of a value in a message


def is_number(value):
    """Return whether a value is a number that can be a time: finite, at most the end of the year 9999."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value < 253402300800


def is_natural(value):
    """Return whether a value is a whole number, zero or more. In Python True equals 1."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_natural_or_none(value):
    return value is None or is_natural(value)


def found(field, value):
    text = json.dumps(value, default=repr)
    return "%s is %s" % (field or "it", text if len(text) <= SHOWN else text[:SHOWN] + "...")


def misfit(value, kind, field=""):
    """Name the first field that is missing or not of its kind; None if `value` fits."""
    if isinstance(kind, list):
        if not isinstance(value, list):
            return found(field, value)
        parts = ((one, kind[0], str(number)) for number, one in enumerate(value))
    elif isinstance(kind, dict):
        if not isinstance(value, dict):
            return found(field, value)
        missing = sorted(name for name in kind if name is not str and name not in value)
        if missing:
            return "%s%s is missing" % (field and field + ".", missing[0])
        parts = ((one, kind[str], name) for name, one in sorted(value.items()))
        if str not in kind:
            parts = ((value[name], kind[name], name) for name in sorted(kind))
    else:
        fits = isinstance(value, kind) if isinstance(kind, type) else kind(value)
        return None if fits else found(field, value)
    for one, of, name in parts:
        wrong = misfit(one, of, "%s.%s" % (field, name) if field else name)
        if wrong:
            return wrong
    return None


def read_json(path, kind):
    """The mapping that a JSON file holds. Raises OSError, or ValueError for content that is not of `kind`."""
    # Opening a pipe in its place must not block.
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    with os.fdopen(handle, encoding="utf-8") as stream:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise ValueError("it is no regular file")
        try:
            value = json.load(stream)
        except RecursionError:
            raise ValueError("it is nested too deep")
    wrong = misfit(value, kind)
    if wrong:
        raise ValueError(wrong)
    return value
