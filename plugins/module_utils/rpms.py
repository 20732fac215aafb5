"""RPM versions, kernels, and whether a package is one that an entry of the lock accepts."""

import functools
import re

SEGMENT = re.compile(r"[0-9]+|[A-Za-z]+|~|\^")
ARCHES = ("x86_64", "noarch")


def compare_segments(first, second):
    """Order of two segments of a version; None stands for the end. Both are equal, or one decides."""
    if "~" in (first, second):  # older than anything, the end included
        return -1 if first == "~" else 1
    if first is None or second is None:
        return -1 if first is None else 1
    if "^" in (first, second):  # newer than the end, older than anything else
        return -1 if first == "^" else 1
    if first.isdigit() != second.isdigit():
        return 1 if first.isdigit() else -1
    if first.isdigit():
        first, second = int(first), int(second)
    return (first > second) - (first < second)


def compare(first, second):
    """Order of two versions or two releases by RPM's rules: negative, 0 or positive."""
    segments, others = SEGMENT.findall(first), SEGMENT.findall(second)
    for index in range(max(len(segments), len(others))):
        one = segments[index] if index < len(segments) else None
        other = others[index] if index < len(others) else None
        order = 0 if one == other else compare_segments(one, other)
        if order:
            return order
    return 0


def parse_evr(text):
    """(epoch, version, release) of `[epoch:]version[-release]`; the release is None if the text has none."""
    epoch, colon, rest = text.partition(":")
    version, dash, release = (rest if colon else text).partition("-")
    return int(epoch) if colon else 0, version, release if dash else None


def compare_evr(first, second):
    """Order of two (epoch, version, release). An unknown epoch or release, None, equals any."""
    if None not in (first[0], second[0]) and first[0] != second[0]:
        return first[0] - second[0]
    order = compare(first[1], second[1])
    if order or None in (first[2], second[2]):
        return order
    return compare(first[2], second[2])


def evr_of(package):
    """(epoch, version, release) of a package."""
    return package["epoch"], package["version"], package["release"]


def evr_text(package):
    """`epoch:version-release` of a package."""
    return "%s:%s-%s" % (package["epoch"] or 0, package["version"], package["release"])


def in_range(pattern, release):
    """Return whether a kernel's VERSION-RELEASE is in a range.

    `*` after a digit stands for further numbers such as .89.1, elsewhere for numbers such as 570.17.1.
    """
    further = re.sub(r"([0-9])\\\*", r"\1(\.[0-9]+)*", re.escape(pattern))
    return re.match(further.replace(r"\*", r"[0-9]+(\.[0-9]+)*") + "$", release) is not None


def is_of_range(pattern, kernel):
    """Return whether a kernel, as `uname -r` prints it, belongs to a range; a debug or real-time kernel does not."""
    release, _, arch = kernel.rpartition(".")
    return arch == "x86_64" and in_range(pattern, release)


def newest_kernel(pattern, kernels):
    """The newest of `kernels`, as `uname -r` prints them, that belongs to a range; empty if none does."""
    fitting = [kernel for kernel in kernels if is_of_range(pattern, kernel)]
    return max(fitting, key=functools.cmp_to_key(compare)) if fitting else ""


def kernel_of(package):
    """The kernel that a package of its unit belongs to, as `uname -r` prints it."""
    return "{version}-{release}.{arch}".format(**package)


def whole_kernels(entries, packages):
    """The kernels, as `uname -r` prints them, of which `packages` have all the names of `entries`."""
    names, parts = {entry["name"] for entry in entries}, {}
    for package in packages:
        if package["name"] in names:
            parts.setdefault(kernel_of(package), set()).add(package["name"])
    return [kernel for kernel, found in parts.items() if found == names]


def of_kernel(entry, pattern, kernel=""):
    """The entry of the lock in the version of `kernel` (as `uname -r` prints it), or of any kernel of the range.

    Entries of other units stay as they are.
    """
    if entry.get("unit") != "kernel":
        return entry
    entry = dict(entry, range=pattern)
    if kernel:
        version, _, release = kernel.rpartition(".")[0].partition("-")
        entry.update(epoch=0, version=version, release=release)
    return entry


def is_exact(entry):
    """Return whether an entry names one version. Else it has a `minimum` or a `range`, or takes any version."""
    return "version" in entry


def accepts(entry, package):
    """Return whether `package` is what an entry of the lock asks for."""
    arches = (entry["arch"],) if "arch" in entry else ARCHES
    if package["name"] != entry["name"] or package["arch"] not in arches:
        return False
    if is_exact(entry):
        # An offline bundle names its packages by their files, which do not tell the epoch.
        return package["epoch"] in (None, entry["epoch"]) and evr_of(package)[1:] == evr_of(entry)[1:]
    if "range" in entry:
        return in_range(entry["range"], "%s-%s" % evr_of(package)[1:])
    return "minimum" not in entry or compare_evr(evr_of(package), parse_evr(entry["minimum"])) >= 0


def is_wanted(entry, installed):
    """Return whether a host with the packages `installed` needs an entry: an optional one if it has a version of it."""
    return not entry.get("optional") or any(package["name"] == entry["name"] for package in installed)


def spec(entry):
    """An entry of the lock as dnf takes it on its command line."""
    if is_exact(entry):
        return "%s-%s.%s" % (entry["name"], evr_text(entry), entry["arch"])
    if "range" in entry:
        return "%s-%s.%s" % (entry["name"], entry["range"], entry["arch"])
    return "%s >= %s" % (entry["name"], entry["minimum"]) if "minimum" in entry else entry["name"]


def newest(packages):
    """The newest of `packages`, which are not empty."""
    return max(packages, key=functools.cmp_to_key(lambda one, other: compare_evr(evr_of(one), evr_of(other))))
