"""Models that the port brings in place of vLLM's, by their names in config.json."""

from __future__ import annotations

from vllm.model_executor.models import ModelRegistry

# The class stays unread until a server asks for it.
MODELS = {"PhiMoEForCausalLM": "vllm_kepler.phimoe:KeplerPhiMoE"}


def register() -> None:
    """Let vLLM make these models; a second call changes nothing."""
    for name, place in MODELS.items():
        # It warns of a name that it has already.
        ModelRegistry.models.pop(name, None)
        ModelRegistry.register_model(name, place)
