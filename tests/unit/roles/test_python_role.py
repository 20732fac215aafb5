"""The recipe of CPython on a tree of its shape: a configure that notes its arguments, a make that installs."""

import json
import subprocess
import tarfile
from pathlib import Path

import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.module_utils.store import address, build
from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError
from recipes import needs_namespaces, recipe, source
from rendered import evaluate, render

ROLE = Path(__file__).resolve().parents[3] / "roles" / "python"
CONFIGURE = """\
#!/bin/sh
for word in "$@"; do printf '%s\\n' "$word"; done > arguments
prefix=$(sed -n 's/^--prefix=//p' arguments)
printf 'all:\\ninstall:\\n\\tmkdir -p %s/bin\\n\\tcp arguments %s\\n\\tcp python %s/bin/python3.10\\n' \
    "$prefix" "$prefix" "$prefix" > Makefile
"""
PYTHON = """\
#!/bin/sh
case "$2" in *{missing}*) echo "No module named '{missing}'" >&2; exit 1;; esac
"""

pytestmark = needs_namespaces


@pytest.fixture
def build_it(tmp_path):
    """Function that builds with a value of OPTIMISE: (configure's arguments, store path)."""
    root = tmp_path / "kepler"

    def run(optimize, missing="nothing"):
        tree = tmp_path / f"Python-3.10.16-{optimize}-{missing}"
        tree.mkdir()
        for name, text in (("configure", CONFIGURE), ("python", PYTHON.format(missing=missing))):
            (tree / name).write_text(text)
            (tree / name).chmod(0o755)
        archive = tmp_path / f"{tree.name}.tar.xz"
        with tarfile.open(archive, "w:xz") as tar:
            tar.add(tree, "Python-3.10.16")
        made = recipe(
            name="python310", sources=[source(archive)], builder=render("python", "build-source.sh"),
            environment={"OPTIMISE": optimize},
        )
        build.realise(str(root), made, [], [])
        path = address.output_path(str(root), made)
        return Path(path, "arguments").read_text().splitlines(), path

    yield run
    subprocess.run(["chmod", "-R", "u+w", root], check=True)


def test_the_same_bytes_everywhere_by_default(build_it):
    arguments, path = build_it("no")
    assert arguments == [
        f"--prefix={path}", "--enable-shared", "--with-ensurepip=install", f"LDFLAGS=-Wl,-rpath,{path}/lib"
    ]


def test_optimized(build_it):
    arguments, _path = build_it("yes")
    assert arguments[-3:-1] == ["--enable-optimizations", "--with-lto"]


def test_a_module_that_was_not_built_fails_the_build(build_it):
    with pytest.raises(StoreError, match="No module named 'ctypes'"):
        build_it("no", missing="ctypes")


def test_the_recipe():
    (task,) = [
        task["kepler.vllm.store_output"]
        for task in yaml.safe_load((ROLE / "tasks" / "install_source.yml").read_text())
        if "kepler.vllm.store_output" in task
    ]
    assert evaluate("python", task["environment"]) == {
        "PATH": "/opt/rh/gcc-toolset-10/root/usr/bin:/usr/bin:/bin",
        "OPTIMISE": "no",
    }
    assert "compiler" in json.dumps(task["toolchain"])
    assert evaluate("python", task["environment"]["OPTIMISE"], python310_optimise=True) == "yes"


def test_variables_with_the_old_name_of_the_role_go_on_working():
    asked = "{{ [python_provider, python_interpreter] }}"
    assert evaluate("python", asked) == ["source", ""]
    old = {"python310_provider": "prebuilt", "python310_interpreter": "/usr/bin/python3"}
    assert evaluate("python", asked, **old) == ["prebuilt", "/usr/bin/python3"]
    assert evaluate("python", asked, **old, python_provider="source") == ["source", "/usr/bin/python3"]
