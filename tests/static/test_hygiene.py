"""No file names a package registry's host or a path of somebody's machine."""

import os
import re

import pytest
from repository import files, name_of, text_of

# Put together here, so that this file does not hold what it looks for.
HOSTS = [
    ".".join(parts)
    for parts in (
        ("pypi", "org"), ("pythonhosted", "org"), ("npmjs", "(?:org|com)"), ("deb", "debian", "org"),
        ("security", "debian", "org"), ("archive", "ubuntu", "com"), ("proxy", "golang", "org"), ("crates", "io"),
    )
]  # fmt: skip
# `/opt/rh/gcc-toolset-10/root/usr` is a path of hosts: what counts is the first directory.
PATHS = [rf"(?<![\w.$\}}-])/{name}/" for name in ("wo" + "rk", "ro" + "ot", "ho" + r"me/\w+")]
FORBIDDEN = re.compile("|".join([host.replace(".", r"\.") for host in HOSTS] + PATHS))


@pytest.mark.parametrize("path", files(), ids=name_of)
def test_a_file_names_no_registry_and_no_machine(path):
    assert FORBIDDEN.findall(text_of(path) or "") == []


def test_quotation_marks_are_plain():
    """A terminal and a search find "this" everywhere; the model's vocabulary is data."""
    texts = {name_of(path): text_of(path) or "" for path in files() if path.name != "tokenizer.json"}
    assert [name for name, text in texts.items() if re.search("[\u00ab\u00bb]", text)] == []


def test_names_of_tests_are_short():
    """A failed name is read in a table."""
    sources = [path.read_text() for path in files("tests", "molecule") if path.suffix == ".py"]
    names = [name for text in sources for name in re.findall(r"^ *def (test_\w+)", text, re.MULTILINE)]
    assert len(names) > 1000
    assert [name for name in names if len(name) > 60] == []


@pytest.mark.parametrize(
    "text",
    ["https://" + HOSTS[0] + "/simple", "files." + HOSTS[1], "/ro" + "ot/x", "cd /wo" + "rk/main", "'/ho" + "me/me/x'"],
)
def test_the_pattern_finds_what_it_is_for(text):
    assert FORBIDDEN.search(text)


@pytest.mark.parametrize("text", ["/opt/rh/gcc-toolset-10/root/usr/bin", "$HOME/work/x", "a/work/b", "homework/x"])
def test_the_pattern_leaves_the_rest_alone(text):
    assert not FORBIDDEN.search(text)


@pytest.mark.parametrize("path", [path for path in files() if path.suffix == ".sh"], ids=name_of)
def test_scripts_can_be_started_unless_they_are_sourced(path):
    assert os.access(path, os.X_OK) == path.read_text().startswith("#!")
