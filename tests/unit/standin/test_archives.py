"""The archives of modules that stand-ins share: made once, anew for a changed text, with bytecode."""

import sys
import zipfile
import zipimport
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "molecule" / "shared"))

from standin import archives


@pytest.fixture
def make(tmp_path, monkeypatch):
    """Function that lets a run fill the archive of a module; the names that were filled, and the archive's path.

    utilities: directories that the module may import from. text: of the module.
    """
    found = []

    def find(name, full_name, text, archive, date_time=None):
        found.append(full_name)
        archive.writestr(f"{name}.py", text)

    def run(*utilities, text=b"value = 41 + 1\n"):
        monkeypatch.setattr(archives.module_common, "recursive_finder", find)
        archives.keep(tmp_path / "kept", map(str, utilities))
        path = tmp_path / "sent.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archives.module_common.recursive_finder("module", "ansible.modules.module", text, archive)
        return found, path

    return run


def test_an_archive_is_made_once_for_all_runs(make):
    first = make()[1].read_bytes()
    found, second = make()
    assert second.read_bytes() == first
    assert len(found) == 1


def test_changed_texts_make_new_archives(make, tmp_path):
    utilities = tmp_path / "utilities"
    utilities.mkdir()
    (utilities / "one.py").write_text("")
    make(utilities)
    assert len(make(utilities, text=b"value = 43\n")[0]) == 2
    (utilities / "one.py").write_text("changed = True\n")
    assert len(make(utilities)[0]) == 3
    (utilities / "two.py").write_text("")
    assert len(make(utilities)[0]) == 4
    assert len(make(utilities)[0]) == 4


def test_an_archive_has_source_and_bytecode(make):
    _, path = make()
    importer = zipimport.zipimporter(str(path))
    assert importer.get_filename("module") == f"{path}/module.pyc"
    assert importer.get_source("module") == "value = 41 + 1\n"
    namespace = {}
    exec(importer.get_code("module"), namespace)
    assert namespace["value"] == 42
