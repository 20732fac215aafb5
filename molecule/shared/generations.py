"""Further generations of a host, and the one that it runs: copies of the port in which one line of a norm differs."""

from __future__ import annotations

import shutil
from pathlib import Path

PROJECT = Path(__file__).resolve().parents[2]
LINE = "    out.copy_(scaled.to(input.dtype) * weight)\n"
# It starts, passes /health, and answers garbage.
NAN = "    out.fill_(float('nan'))\n"


def changed_port(directory: Path, line: str) -> Path:
    """Copy of the port below `directory` whose norm ends with `line`."""
    port = directory / "vllm_src"
    shutil.copytree(PROJECT / "vllm_src", port, ignore=shutil.ignore_patterns("upstream", "__pycache__"))
    norm = port / "vllm_kepler" / "ops" / "norm.py"
    assert LINE in norm.read_text()
    norm.write_text(norm.read_text().replace(LINE, line))
    return port


def active(host) -> int:
    """Number of the generation that a host of testinfra runs."""
    return int(host.check_output("basename $(readlink /opt/kepler/current)"))
