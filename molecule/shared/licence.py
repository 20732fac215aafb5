"""What the stand-in's model has learnt by heart: the project's licence."""

from __future__ import annotations

from pathlib import Path

LICENCE = " ".join((Path(__file__).resolve().parents[2] / "LICENSE").read_text().split())
# Passages that the licence has once; a server must go on word for word.
PROMPTS = [
    "You may reproduce and distribute copies of the Work or Derivative Works",
    "Unless You explicitly state otherwise, any Contribution intentionally submitted",
    "This License does not grant permission to use the trade names,",
    "If You institute patent litigation against any entity",
    "While redistributing the Work or Derivative Works thereof,",
]


def follows(prompt: str, text: str) -> bool:
    """Whether `text` is how the licence goes on after `prompt`; its last character may be cut."""
    return LICENCE.partition(prompt)[2].startswith(text.rstrip("\N{REPLACEMENT CHARACTER}")) and len(text.split()) > 5
