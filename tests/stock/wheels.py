"""What is in the libraries of wheels: GPUs that they have machine code for, versions of symbols that they need."""

from __future__ import annotations

import mmap
import struct
from collections import Counter
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

# Sections of a library that hold containers of GPU code, each with code for several GPUs.
SECTIONS = (".nv_fatbin", "__nv_relfatbin")
CONTAINER = 0xBA55ED50
# Kind of an entry that is machine code; others are PTX.
MACHINE_CODE = 2
# Containers begin at multiples of it.
ALIGNMENT = 8


def machine_code(library: Path) -> Counter[int]:
    """Return for how many pieces of machine code a library has for each GPU: {70: 397}. A container is not unpacked."""
    found: Counter[int] = Counter()
    with library.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content:
        for section in filter(None, map(ELFFile(stream).get_section_by_name, SECTIONS)):
            at, end = section["sh_offset"], section["sh_offset"] + section["sh_size"]
            while at < end:
                magic, _, header, size = struct.unpack_from("<IHHQ", content, at)
                if magic != CONTAINER:
                    at += ALIGNMENT
                    continue
                entry, at = at + header, at + header + size
                while entry < at:
                    kind, _, header, size = struct.unpack_from("<HHIQ", content, entry)
                    if kind == MACHINE_CODE:
                        found[struct.unpack_from("<I", content, entry + 28)[0]] += 1
                    entry += header + size
    return found


def needed(library: Path) -> dict[str, tuple[int, ...]]:
    """Return the newest version of each family of symbols that a library asks of others: {"GLIBC": (2, 28)}."""
    found: dict[str, tuple[int, ...]] = {}
    with library.open("rb") as stream:
        # Linker scripts and texts have such names too.
        if stream.read(4) != b"\x7fELF":
            return found
        section = ELFFile(stream).get_section_by_name(".gnu.version_r")
        for _, versions in section.iter_versions() if isinstance(section, GNUVerNeedSection) else ():
            for version in versions:
                family, _, number = version.name.partition("_")
                if number.replace(".", "").isdigit():
                    found[family] = max(found.get(family, ()), tuple(map(int, number.split("."))))
    return found


def libraries(directory: Path) -> list[Path]:
    """Return the shared libraries below a directory, links left out."""
    return sorted(path for path in directory.rglob("*.so*") if path.is_file() and not path.is_symlink())
