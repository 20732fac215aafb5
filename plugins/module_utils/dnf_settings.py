"""Read what dnf's settings say, and what dnf prints. Nothing here writes, nothing starts dnf."""

import re

DNF_CONF = "/etc/dnf/dnf.conf"
TRUE = ("1", "yes", "true", "on")
HEADER = re.compile(r"^\[(.+)\]\s*$")
EXCLUDING = ("exclude", "excludepkgs", "includepkgs")
# Our own blocks in the versionlock list, which the role repos writes.
OURS = re.compile(r"^# (BEGIN|END) vllm-kepler: ")
# Format of `repoquery` for each package.
FIELDS = ("name", "epoch", "version", "release", "arch", "repo")
QUERY_FORMAT = "%{name}|%{epoch}|%{version}|%{release}|%{arch}|%{repoid}"
FAILED = re.compile(r"^(?:Error: )?Failed to download metadata for repo '([^']+)':\s*(.*)$", re.MULTILINE)
REASON = re.compile(r"^Errors during downloading metadata for repository '([^']+)':\n\s+- (.*)$", re.MULTILINE)
IGNORED = re.compile(r"^Ignoring repositories: (.+)$", re.MULTILINE)
FILTERED = re.compile(r"^All matches were filtered out by (\w+) filtering for argument: (.+)$", re.MULTILINE)
UNMATCHED = re.compile(r"^No match for argument: (.+)$", re.MULTILINE)
NO_STREAM = re.compile(r"^missing groups or modules: (.+)$", re.MULTILINE)
# Of a transaction's table: the titles of its parts, and the rows, whose continuations are indented further.
PART = re.compile(r"^([A-Z][a-z ]+):$")
ROW = re.compile(r"^ (\S+)")
ABORTED = "Operation aborted."


def options(text):
    """Options of dnf's settings: [{section, option, line, words}]; words: [(word, line)]. A list may span lines."""
    found, section, current = [], None, None
    for number, line in enumerate((text or "").splitlines(), 1):
        header = HEADER.match(line)
        if not line.strip() or line.startswith(("#", ";")):
            continue
        if header:
            section, current = header.group(1), None
            continue
        if line[0].isspace():
            value = line
        else:
            name, equals, value = line.partition("=")
            current = {"section": section, "option": name.strip(), "line": number, "words": []} if equals else None
            if current:
                found.append(current)
        if current:
            current["words"] += [(word, number) for word in re.split(r"[\s,]+", value) if word]
    return found


def value_of(option):
    """The value of an option that is no list."""
    return " ".join(word for word, _ in option["words"])


def exclusions(path, text):
    """Patterns of packages that the settings in the file `path` hide: [{file, line, section, option, pattern}]."""
    return [
        {"file": path, "line": line, "section": option["section"], "option": option["option"], "pattern": word}
        for option in options(text) if option["option"] in EXCLUDING
        for word, line in option["words"]
    ]


def truth_of(text, section, name, default=False):
    """Return whether an option is on; `default` if the section does not say."""
    found = [option for option in options(text) if (option["section"], option["option"]) == (section, name)]
    return value_of(found[-1]).lower() in TRUE if found else default


def repositories(path, text, skips=False):
    """Repositories that the file `path` defines: [{id, file, line, enabled, skip}].

    skip: whether dnf goes on if the repository does not answer; `skips` if its section does not say.
    """
    headers = [(number, HEADER.match(line)) for number, line in enumerate(text.splitlines(), 1)]
    return [
        {
            "id": header.group(1), "file": path, "line": number,
            "enabled": truth_of(text, header.group(1), "enabled", True),
            "skip": truth_of(text, header.group(1), "skip_if_unavailable", skips),
        }
        for number, header in headers if header and header.group(1) != "main"
    ]


def overlaid(text, left_out, overlay):
    """Settings of repositories without the sections `left_out`, and with the options `overlay` in every other."""
    lines, section, skipping = [], None, False
    for line in text.splitlines():
        header = HEADER.match(line)
        if header:
            section, skipping = header.group(1), False
            if section not in left_out:
                lines += [line] + ["%s=%s" % item for item in sorted(overlay.items())]
            continue
        if not line[:1].isspace():
            skipping = line.partition("=")[0].strip() in overlay
        if section not in left_out and not skipping:
            lines.append(line)
    return "\n".join(lines) + "\n"


def version_locks(path, text):
    """Lines of the versionlock list that others wrote: [{file, line, pattern}]; a pattern with `!` excludes."""
    found, ours = [], False
    for number, line in enumerate((text or "").splitlines(), 1):
        mark = OURS.match(line)
        if mark:
            ours = mark.group(1) == "BEGIN"
        pattern = line.split("#")[0].strip()
        if pattern and not ours:
            found.append({"file": path, "line": number, "pattern": pattern})
    return found


def module_states(texts):
    """{module: {state, stream}} of dnf's own records; texts: of the `.module` files."""
    found = {}
    for text in texts:
        for option in options(text):
            if option["option"] in ("state", "stream"):
                found.setdefault(option["section"], {"state": "", "stream": ""})[option["option"]] = value_of(option)
    return found


def packages(text):
    """Packages that `repoquery` or `rpm` printed in QUERY_FORMAT; another line is passed over."""
    found = []
    for line in text.splitlines():
        fields = line.split("|")
        if len(fields) == len(FIELDS) and fields[1].isdigit():
            package = {name: fields[index] for index, name in enumerate(FIELDS)}
            found.append(dict(package, epoch=int(fields[1])))
    return found


def failures(text):
    """{repository: reason} of those that dnf could not read."""
    found = dict(FAILED.findall(text))
    for names in IGNORED.findall(text):
        for name in names.split(", "):
            found.setdefault(name.strip(), "dnf ignores it")
    for name, reason in REASON.findall(text):
        if name in found:
            found[name] = reason
    return found


def error(text):
    """The text of dnf's error, or an empty one."""
    errors = text.partition("Error: ")[2]
    return "\n".join(line.rstrip() for line in errors.splitlines() if line.strip() and line.strip() != ABORTED).strip()


def transaction(text):
    """dnf's transaction as {part: names of packages}; the parts are dnf's own titles."""
    found, part = {}, None
    table = text.partition("Dependencies resolved.")[2].partition("Transaction Summary")[0]
    for line in table.splitlines():
        title, row = PART.match(line), ROW.match(line)
        if title:
            part = found.setdefault(title.group(1), [])
        elif row and part is not None:
            part.append(row.group(1))
    return found


def refusals(text):
    """{argument: reason} of what dnf would not take."""
    found = {argument.strip(): "no match" for argument in UNMATCHED.findall(text)}
    found.update((argument.strip(), "%s filtering" % kind) for kind, argument in FILTERED.findall(text))
    return found


def missing_streams(text):
    """Module streams that no repository offers."""
    return [name for names in NO_STREAM.findall(text) for name in names.split(", ")]
