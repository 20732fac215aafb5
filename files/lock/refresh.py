"""Regenerate the machine-made locks: `make lock`.

`requirements/NAME.txt` and `lock/python/NAME.yml` of each profile are made from the `.in` file
beside them. Resolution is uv's, the download is pip's; both use the index that the user has configured.
Every wheel is downloaded for the Python and the release of Enterprise Linux of the profile and
hashed here, so what the lock says was read from the file itself. A line `# omit PACKAGE: REASON` of
a profile's `.in` file leaves out what a dependency names and nobody wants there.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import sys
from pathlib import Path

import yaml
from packaging.utils import parse_wheel_filename

PROJECT = Path(__file__).resolve().parents[2]
# Levels of manylinux_2, and the newest that the glibc of each release of Enterprise Linux satisfies.
LEVELS, NEWEST = (34, 31, 28, 27, 24, 17, 12, 5), {8: 28, 9: 34}
LEGACY = ("manylinux2014", "manylinux2010", "manylinux1")
OMIT = re.compile(r"^# omit ([a-z0-9-]+): ", re.MULTILINE)
HEADER = "# Made by `make lock` from {name}.in: do not edit.\n"


class Indented(yaml.SafeDumper):
    """Indents the items of a list below its key, as yamllint asks."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def compile_lock(source: Path, *options: str) -> str:
    """Resolve `source` with uv; return the requirements text with every file's sha256."""
    command = ["uv", "pip", "compile", "--quiet", "--generate-hashes", "--no-emit-index-url",
               "--custom-compile-command", "make lock", *options, str(source)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def download(requirements: Path, destination: Path, python: str, newest: int) -> None:
    """Download the wheels of `requirements` into `destination`, for a Python and a newest level of manylinux."""
    platforms = [f"manylinux_2_{level}" for level in LEVELS if level <= newest] + list(LEGACY)
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
               "--only-binary=:all:", "--python-version", python, "--implementation", "cp"]
    for abi in (f"cp{python.replace('.', '')}", "abi3", "none"):
        command += ["--abi", abi]
    for platform in platforms:
        command += ["--platform", f"{platform}_x86_64"]
    subprocess.run([*command, "--dest", str(destination), "--requirement", str(requirements)], check=True)


def entry(wheel: Path) -> dict[str, str]:
    """Lock entry of one wheel file."""
    project, version, _, _ = parse_wheel_filename(wheel.name)
    with wheel.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
    return {"project": str(project), "version": str(version), "file": wheel.name, "sha256": digest.hexdigest()}


def refresh_python(source: Path, downloads: Path) -> None:
    """Rewrite the lock beside `source`, a profile's lock/python/NAME.in; wheels end up below `downloads`."""
    name, directory = source.stem, source.parents[2]
    profile = yaml.safe_load((directory / "profile.yml").read_text())
    python, newest = profile["python"]["version"], NEWEST[profile["platform"]["major"]]
    destination = downloads / directory.name / name
    destination.mkdir(parents=True, exist_ok=True)
    options = ["--python-version", python, "--python-platform", f"x86_64-manylinux_2_{newest}", "--only-binary",
               ":all:", "--no-annotate"]
    for package in OMIT.findall(source.read_text()):
        options += ["--no-emit-package", package]
    requirements = destination / "requirements.txt"
    requirements.write_text(compile_lock(source, *options))
    for stale in destination.glob("*.whl"):
        stale.unlink()
    download(requirements, destination, python, newest)
    packages = sorted((entry(wheel) for wheel in destination.glob("*.whl")), key=lambda e: e["project"])
    text = HEADER.format(name=name) + "---\n" + yaml.dump({"packages": packages}, Dumper=Indented, sort_keys=False)
    source.with_suffix(".yml").write_text(text)
    print(f"{source.with_suffix('.yml').relative_to(PROJECT)}: {len(packages)} packages", flush=True)


def refresh_requirements(name: str, *options: str) -> None:
    """Rewrite `requirements/NAME.txt`, which pip reads."""
    source = PROJECT / "requirements" / f"{name}.in"
    source.with_suffix(".txt").write_text(compile_lock(source, "--no-annotate", *options))
    print(f"requirements/{name}.txt")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--downloads", type=Path, required=True, help="directory that keeps the wheels")
    arguments = parser.parse_args()
    refresh_requirements("controller", "--universal", "--python-version", "3.11")
    refresh_requirements("host-tests", "--python-version", "3.6")
    refresh_requirements("port-tests", "--python-version", "3.10")
    refresh_requirements("stock-tests", "--python-version", "3.12")
    for source in sorted((PROJECT / "profiles").glob("*/lock/python/*.in")):
        refresh_python(source, arguments.downloads)


if __name__ == "__main__":
    main()
