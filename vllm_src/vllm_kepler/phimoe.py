"""PhiMoE whose answers have the bias of its output layer: vLLM 0.9.2 loads it, and leaves it out."""

from __future__ import annotations

from typing import Any

import torch
from vllm.model_executor.models.phimoe import PhiMoEForCausalLM


class KeplerPhiMoE(PhiMoEForCausalLM):
    def compute_logits(self, hidden_states: torch.Tensor, sampling_metadata: Any) -> torch.Tensor:
        """Logits [tokens, vocabulary] of hidden states [tokens, hidden size]."""
        return self.logits_processor(self.lm_head, hidden_states, sampling_metadata, self.lm_head.bias)
