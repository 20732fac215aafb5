"""The offline bundle: one tar with everything that a host needs and no network gives it.

    artifacts/      the sources and wheels of the lock, by file name
    rpms/           a package repository: the locked packages and all that they need
    keys/           the public keys that signed these packages
    controller/     the wheels of the controller's own tools
    bundle.json     what the bundle is made from, and every file's size and sha256; the last member

Only plain files below these directories stand in it.
"""

from __future__ import annotations

import hashlib
import io
import json
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, cast

import createrepo_c

from ..module_utils.errors import KeplerError

NAME = "kepler-bundle"
STATEMENT = f"{NAME}/bundle.json"
SCHEMA = 1
BLOCK = 1 << 22
Report = Callable[[str], None]


class BundleError(KeplerError):
    """A bundle that cannot be made or taken; the message says what was found, what is expected and the next step."""


def read_statement(path: Path) -> dict[str, Any]:
    """Read the bundle's statement. Raises BundleError if the bundle is not whole."""
    again = "Make it with `make bundle` on a controller that has a network, and copy the whole file."
    try:
        with tarfile.open(path) as tar:
            member = tar.extractfile(STATEMENT)
            if member is None:
                raise KeyError(STATEMENT)
            statement = json.load(member)
    except FileNotFoundError:
        raise BundleError(f"offline_bundle: found nothing at {path}; expected a bundle. {again}") from None
    except (OSError, EOFError, KeyError, ValueError, tarfile.TarError) as error:
        raise BundleError(
            f"offline_bundle: found {path}, which is no whole bundle ({error}); expected one that ends with "
            f"{STATEMENT}. {again}"
        ) from error
    if statement.get("schema") != SCHEMA:
        raise BundleError(
            f"offline_bundle: found {path} of schema {statement.get('schema')}; expected {SCHEMA}. {again}"
        )
    statement["id"] = hashlib.sha256(json.dumps(statement, sort_keys=True).encode()).hexdigest()[:12]
    return statement


def check_wanted(statement: dict[str, Any], path: Path, wanted: dict[str, Any]) -> None:
    """Raise BundleError for a bundle that was made for something else than `wanted`: profile, lock_hash, providers."""
    profile = statement.get("profile", wanted["profile"])
    if profile != wanted["profile"]:
        raise BundleError(
            f"offline_bundle: found {path}, made for hosts of the profile {profile}; expected one for "
            f"{wanted['profile']}. Name that profile's bundle, or make it: `ansible-playbook playbooks/bundle.yml "
            f"-e bundle_profile={wanted['profile']}`. Of several profiles, set "
            "offline_bundle for each group, or limit the run to one."
        )
    if statement["lock_hash"] != wanted["lock_hash"]:
        raise BundleError(
            f"offline_bundle: found {path}, made from another lock ({statement['lock_hash'][:12]}); expected the lock "
            f"of this checkout ({wanted['lock_hash'][:12]}). Make the bundle again, or take the checkout that made it."
        )
    for variable, value in wanted["providers"].items():
        if statement["providers"].get(variable) != value:
            raise BundleError(
                f"offline_bundle: found {path}, made for {variable}: {statement['providers'].get(variable)}; expected "
                f"{value}, as the inventory says. Make the bundle again, or change {variable}."
            )


def check_content(path: Path, report: Report) -> None:
    """Raise BundleError where a file of the bundle is not the one that was put in, or leads anywhere else."""
    files = dict(read_statement(path)["files"])
    total, done = sum(entry["size"] for entry in files.values()), 0

    def refuse(found: str, expected: str) -> None:
        raise BundleError(
            f"offline_bundle: {path}: found {found}; expected {expected}. Nothing was unpacked. Copy the bundle again, "
            "or make it again."
        )

    with tarfile.open(path) as tar:
        for member in tar:
            name = member.name.removeprefix(f"{NAME}/")
            if member.name == STATEMENT:
                continue
            if name not in files or not member.isreg():
                kind = "file" if member.isreg() else "entry that is no plain file"
                refuse(f"the {kind} {member.name}", "the files that its bundle.json lists")
            entry, digest = files.pop(name), hashlib.sha256()
            stream = cast(IO[bytes], tar.extractfile(member))
            while block := stream.read(BLOCK):
                digest.update(block)
                done += len(block)
                report(f"checking {done / 1e6:.0f} of {total / 1e6:.0f} MB")
            if digest.hexdigest() != entry["sha256"]:
                refuse(f"{name} with the sha256 {digest.hexdigest()}", entry["sha256"])
    if files:
        refuse(f"no {', '.join(sorted(files)[:3])}", f"{len(files)} more files, which its bundle.json lists")


def make_repository(downloaded: Path, directory: Path) -> dict[str, str]:
    """Make a package repository below `directory` of what rpm_download wrote; the keys by fingerprint."""
    with tarfile.open(downloaded) as tar:
        tar.extractall(directory, filter="data")
    keys: dict[str, str] = json.loads((directory / "keys.json").read_text())
    # A format that the oldest dnf of a host reads.
    run("createrepo_c", "--quiet", "--no-database", "--general-compress-type=gz", directory)
    metadata = directory / "modules.yaml"
    for packed in sorted((directory / "modules").glob("*")):
        plain = packed.with_name("plain")
        createrepo_c.decompress_file(str(packed), str(plain), createrepo_c.AUTO_DETECT_COMPRESSION)
        with metadata.open("a") as stream:
            stream.write(plain.read_text().rstrip("\n") + "\n")
        plain.unlink()
    if metadata.exists():
        run("modifyrepo_c", "--mdtype=modules", "--compress-type=gz", metadata, directory / "repodata")
        metadata.unlink()
    shutil.rmtree(directory / "modules", ignore_errors=True)
    for name in ("keys.json", "identity.json"):
        (directory / name).unlink()
    return keys


def run(*command: str | Path) -> None:
    """Run a program of this environment; raises BundleError with its message."""
    program = Path(sys.executable).parent / str(command[0])
    done = subprocess.run([program, *command[1:]], capture_output=True, text=True)
    if done.returncode:
        raise BundleError(f"{command[0]}: ended with status {done.returncode}: {(done.stderr or done.stdout).strip()}")


def is_made(path: Path, identity: dict[str, Any]) -> bool:
    """Return whether the bundle was made from this very identity."""
    try:
        statement = read_statement(path)
    except BundleError:
        return False
    return all(statement.get(field) == value for field, value in identity.items())


def identity_of(downloaded: Path, wanted: dict[str, Any], requirements: Path) -> dict[str, Any]:
    """The parts of a bundle."""
    with tarfile.open(downloaded) as tar:
        member = cast(IO[bytes], tar.extractfile("identity.json"))
        rpms = hashlib.sha256(member.read()).hexdigest()
    tools = hashlib.sha256(requirements.read_bytes()).hexdigest()
    return {"schema": SCHEMA, **wanted, "rpms": rpms, "controller": tools}


def make(
    path: Path, identity: dict[str, Any], downloaded: Path, artifacts: list[Path], requirements: Path, report: Report
) -> None:
    """Write the bundle. downloaded: what rpm_download wrote. artifacts: the files. Raises BundleError."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".bundle-", dir=path.parent) as temporary:
        work = Path(temporary)
        report("making the package repository")
        for part in ("rpms", "keys", "controller"):
            (work / part).mkdir()
        for fingerprint, text in make_repository(downloaded, work / "rpms").items():
            (work / "keys" / f"{fingerprint}.asc").write_text(text)
        report("downloading the controller's tools")
        run("python", "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
            "--require-hashes", "--dest", work / "controller", "--requirement", requirements)
        files = {f"artifacts/{artifact.name}": artifact for artifact in artifacts}
        files |= {str(found.relative_to(work)): found for found in sorted(work.rglob("*")) if found.is_file()}
        total, done = sum(found.stat().st_size for found in files.values()), 0
        statement: dict[str, Any] = {**identity, "files": {}}
        with tarfile.open(work / "new.tar", "w", format=tarfile.PAX_FORMAT) as tar:
            for name, found in files.items():
                member = tarfile.TarInfo(f"{NAME}/{name}")
                member.size, member.mode = found.stat().st_size, 0o644
                with found.open("rb") as stream:
                    digest = hashlib.file_digest(stream, "sha256").hexdigest()
                    statement["files"][name] = {"size": member.size, "sha256": digest}
                    stream.seek(0)
                    tar.addfile(member, stream)
                done += member.size
                report(f"packing {done / 1e6:.0f} of {total / 1e6:.0f} MB")
            last = json.dumps(statement, indent=1, sort_keys=True).encode()
            member = tarfile.TarInfo(STATEMENT)
            member.size, member.mode = len(last), 0o644
            tar.addfile(member, io.BytesIO(last))
        (work / "new.tar").rename(path)
