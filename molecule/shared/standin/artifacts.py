"""Files that the stand-ins install from: downloaded once, verified, kept in the cache of this machine."""

from __future__ import annotations

import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml

from .settings import ARTIFACTS, CACHE, PROJECT, Step, fail

PYTHON = "3.10"
# What a stand-in needs of a Python, and where it stands.
IDENTIFY = "import ensurepip, pip, sys, venv; print('%d.%d' % sys.version_info[:2], sys.base_prefix)"
PROGRESS_SECONDS = 10


def plugin(name: str, *path: str) -> ModuleType:
    """A plugin of this project as a module; its package names are those that Ansible gives them."""
    spec = importlib.util.spec_from_file_location(name, PROJECT.joinpath("plugins", *path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def wanted() -> list[dict[str, Any]]:
    """vLLM's sdist and the serving environment, as the lock names them."""
    filters = plugin("lock_sources", "filter", "lock_sources.py")
    lock = PROJECT / "profiles" / "k80" / "lock"
    sources = yaml.safe_load((lock / "sources.yml").read_text())["sources"]
    packages = yaml.safe_load((lock / "python" / "serving.yml").read_text())["packages"]
    return [filters.locked_source(sources, "vllm"), *filters.locked_wheels(packages)]


def ensure() -> Path:
    """Directory of the files; those that are there are taken by their names, the store verifies them again.

    Directories in KEPLER_ARTIFACTS, separated by colons, are searched before the network.
    """
    missing = [source for source in wanted() if not (ARTIFACTS / source["file"]).exists()]
    if not missing:
        return ARTIFACTS
    sys.path.insert(0, str(PROJECT / "collections"))
    from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError
    from ansible_collections.kepler.vllm.plugins.module_utils.store.fetch import fetch_sources
    from ansible_collections.kepler.vllm.plugins.plugin_utils.pip_index import pip_indexes

    directories = [path for path in os.environ.get("KEPLER_ARTIFACTS", "").split(":") if path]
    with Step(f"Downloading {len(missing)} files, 2.4 GB if none is there"):
        try:
            fetch_sources(missing, str(ARTIFACTS), directories, pip_indexes(), show, name="file")
        except StoreError as error:
            fail(str(error))
    return ARTIFACTS


class Pace:
    """Time of the last line."""

    last = 0.0


def show(text: str) -> None:
    """Print a line of progress, every ten seconds at most."""
    if time.monotonic() - Pace.last >= PROGRESS_SECONDS:
        Pace.last = time.monotonic()
        print(f"   {text}", flush=True)


def nvcc() -> Path:
    """A private nvcc 11.2 with its g++ 10, made of Debian's packages."""
    tree = CACHE / "nvcc-11.2"
    if not (tree / "packages.json").exists():
        pins = PROJECT / "files" / "lock" / "nvcc-11.2-packages.json"
        with Step("Making a private nvcc 11.2 of Debian's packages, about a gigabyte to download"):
            done = subprocess.run(
                [sys.executable, PROJECT / "vllm_src" / "csrc" / "nvcc_tree.py", tree, "--pins", pins],
                capture_output=True, text=True,
            )
        if done.returncode:
            fail(done.stderr.strip()[-2000:])
    return tree


@functools.cache
def prefix_of(python: str) -> Path | None:
    """Prefix of a CPython 3.10 with pip and venv; None where `python` is none."""
    asked = subprocess.run([python, "-c", IDENTIFY], capture_output=True, text=True)
    version, _, prefix = asked.stdout.strip().partition(" ")
    return Path(prefix) if version == PYTHON else None


def python310() -> Path:
    """A CPython 3.10 of this machine, resolved to its own prefix.

    DEMO_PYTHON310 names one; else python3.10 on PATH, else pyenv's newest, else one that uv downloads into the cache.
    """
    named = os.environ.get("DEMO_PYTHON310")
    candidates = [named] if named else [shutil.which("python3.10")]
    if not named:
        pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
        candidates += sorted(map(str, pyenv.glob("versions/3.10.*/bin/python3.10")), reverse=True)
        candidates += sorted(map(str, (CACHE / "python").glob("cpython-3.10*/bin/python3.10")), reverse=True)
    for candidate in filter(None, candidates):
        if prefix := prefix_of(candidate):
            return prefix / "bin" / "python3.10"
    if named:
        fail(f"DEMO_PYTHON310: found {named}, which is no CPython 3.10 with pip and venv. Correct it, or leave it out.")
    with Step("Downloading a Python 3.10"):
        environment = {**os.environ, "UV_PYTHON_INSTALL_DIR": str(CACHE / "python")}
        command = ["uv", "python", "install", "--quiet", PYTHON]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        fail(
            f"Python 3.10: found none on PATH or under pyenv, and none could be downloaded: {reason}. Expected a "
            "CPython 3.10 with pip and venv. Install one, and name it in DEMO_PYTHON310."
        )
    return python310()
