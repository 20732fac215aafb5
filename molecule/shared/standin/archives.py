"""What Ansible sends to a host as a module: made once for all runs that share a directory.

Ansible parses what a module imports anew in each run, and the host compiles it anew in each task: together as much as
a short task takes.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ansible.executor import module_common


def state_of(directories: Iterable[str]) -> bytes:
    """Digest of the names, sizes and times of all files below these directories."""
    files = sorted(path for directory in directories for path in Path(directory).rglob("*.py"))
    told = [(str(path), status.st_size, status.st_mtime_ns) for path in files for status in [path.stat()]]
    return hashlib.sha256(repr(told).encode()).digest()


def add_bytecode(archive: zipfile.ZipFile) -> None:
    """Add the bytecode of this Python; another one compiles the source, as ever."""
    for member in list(archive.infolist()):
        source = archive.read(member)
        code = compile(source, member.filename, "exec", dont_inherit=True)
        # Not checked against its source: the time zone of the host may be another one.
        data = importlib._bootstrap_external._code_to_hash_pyc(  # type: ignore[attr-defined]
            code, importlib.util.source_hash(source), checked=False
        )
        archive.writestr(zipfile.ZipInfo(member.filename + "c", member.date_time), data, archive.compression)


def keep(directory: Path, utilities: Iterable[str], bytecode: bool = True) -> None:
    """Let Ansible's recursive_finder, which fills a module's archive, keep its archives in `directory`.

    utilities: directories of what modules import beside Ansible's own. bytecode: whether the archives have it.
    """
    find: Callable[..., Any] = module_common.recursive_finder
    state = state_of(utilities)
    directory.mkdir(parents=True, exist_ok=True)

    def find_kept(name: str, full_name: str, text: bytes, archive: zipfile.ZipFile, date_time: Any = None) -> None:
        kept = directory / hashlib.sha256(state + full_name.encode() + b"\0" + text).hexdigest()
        if not kept.exists():
            part = kept.with_suffix(f".{os.getpid()}")
            with zipfile.ZipFile(part, "w") as own:
                find(name, full_name, text, own, date_time)
                if bytecode:
                    add_bytecode(own)
            part.rename(kept)
        with zipfile.ZipFile(kept) as own:
            for member in own.infolist():
                archive.writestr(member, own.read(member), archive.compression)

    module_common.recursive_finder = find_kept
