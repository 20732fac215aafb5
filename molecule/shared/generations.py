"""Further generations of a host, and the one that it runs: one line of a norm differs, in the port or in vLLM."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from standin import artifacts

PROJECT = Path(__file__).resolve().parents[2]
GENERATIONS = "/opt/kepler/generations"
LINE = "    out.copy_(scaled.to(input.dtype) * weight)\n"
# It starts, passes /health, and answers garbage.
NAN = "    out.fill_(float('nan'))\n"
# The same of the released vLLM, whose file has a second norm.
VLLM_NORM = "vllm/model_executor/layers/layernorm.py"
VLLM_LINE = "        if weight is not None:\n            x = x * weight\n        if residual is None:\n"
VLLM_NAN = VLLM_LINE.replace("x * weight", "x * float('nan')")


def changed_port(directory: Path, line: str) -> Path:
    """Copy of the port below `directory` whose norm ends with `line`."""
    port = directory / "vllm_src"
    shutil.copytree(PROJECT / "vllm_src", port, ignore=shutil.ignore_patterns("upstream", "__pycache__"))
    norm = port / "vllm_kepler" / "ops" / "norm.py"
    assert LINE in norm.read_text()
    norm.write_text(norm.read_text().replace(LINE, line))
    return port


def changed_vllm(name: str, text: str) -> Path:
    """Profiles of that name, whose lock has another build of the released vLLM: its norm ends with `text`."""
    return artifacts.profiles(name, {VLLM_NORM: (VLLM_LINE, text)})


def active(host: Any) -> int:
    """Number of the generation that a host of testinfra runs."""
    return int(host.check_output("basename $(readlink /opt/kepler/current)"))


def outputs(host: Any, number: int) -> dict[str, str]:
    """Paths of a generation's outputs, by their names."""
    found: dict[str, str] = json.loads(host.check_output(f"cat {GENERATIONS}/{number}/generation.json"))["outputs"]
    return found
