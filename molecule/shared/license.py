"""What the stand-in's model has learned by heart: the project's license."""

from __future__ import annotations

from pathlib import Path

LICENSE = " ".join((Path(__file__).resolve().parents[2] / "LICENSE").read_text().split())
# Passages that the license has once; a server must go on word for word.
PROMPTS = [
    "You may reproduce and distribute copies of the Work or Derivative Works",
    "Unless You explicitly state otherwise, any Contribution intentionally submitted",
    "This License does not grant permission to use the trade names,",
    "If You institute patent litigation against any entity",
    "While redistributing the Work or Derivative Works thereof,",
]


def follows(prompt: str, text: str) -> bool:
    """Whether `text` is how the license goes on after `prompt`; its last character may be cut."""
    return LICENSE.partition(prompt)[2].startswith(text.rstrip("\N{REPLACEMENT CHARACTER}")) and len(text.split()) > 5
