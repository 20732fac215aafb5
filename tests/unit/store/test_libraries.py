"""Which libraries of the host an image needs: those of real programs in small outputs."""

import os
import shutil
import sys

import pytest
from module_utils.store import address, build, libraries
from module_utils.store.errors import StoreError
from recipes import needs_namespaces, recipe

pytestmark = needs_namespaces
# Has libraries beside the C library's on every distribution.
PROGRAM = shutil.which("ls")


@pytest.fixture
def output(root):
    """Store path of an output with a program, a text that looks like a library, and a link."""
    made = recipe(name="programs", builder=(
        'mkdir "$out/bin"; cp %s "$out/bin/program"; echo text > "$out/bin/lib.so.1"; ln -s program "$out/bin/again"'
        % PROGRAM))
    build.realise(root, made, [], [])
    return address.output_path(root, made)


def test_programs_of_an_output_are_its_elf_files(output):
    assert list(libraries.programs_of(output)) == [os.path.join(output, "bin", "program")]


def test_libraries_are_named_with_their_files_and_digests(root, output):
    found = libraries.needed(root, [output])
    assert found, "a program with libraries"
    for library in found:
        assert os.path.realpath(library["path"]) == library["path"]
        assert libraries.sha256_of(library["path"]) == library["sha256"]
        assert ".so" in library["name"]
    assert [library["name"] for library in found] == sorted(library["name"] for library in found)


def test_c_library_and_driver_are_left_to_base_and_host(root, output, monkeypatch):
    monkeypatch.setattr(libraries, "resolve", lambda programs: {
        "libc.so.6": sys.executable, "ld-linux-x86-64.so.2": sys.executable, "libcuda.so.1": sys.executable,
        "libnvidia-ml.so.1": sys.executable, "libm.so.6": sys.executable, "libcudart.so.11.0": sys.executable,
        "libmagic.so.1": sys.executable,
    })
    assert [library["name"] for library in libraries.needed(root, [output])] == ["libcudart.so.11.0", "libmagic.so.1"]


def test_libraries_of_the_store_and_of_named_places_stay_there(root, output, monkeypatch, tmp_path):
    (tmp_path / "lib.so").write_text("")
    inside = os.path.join(output, "bin", "lib.so.1")
    monkeypatch.setattr(libraries, "resolve", lambda programs: {"a.so": inside, "b.so": str(tmp_path / "lib.so")})
    assert [library["name"] for library in libraries.needed(root, [output])] == ["b.so"]
    assert libraries.needed(root, [output], [str(tmp_path)]) == []


def test_host_without_a_loader_is_named(root, output, monkeypatch):
    def missing(*_arguments, **_options):
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(libraries.subprocess, "Popen", missing)
    with pytest.raises(StoreError, match="ldd: No such file or directory; .* glibc-common"):
        libraries.needed(root, [output])
