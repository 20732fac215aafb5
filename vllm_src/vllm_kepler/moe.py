"""The port's method for mixtures of experts. It replaces upstream's, which needs Triton or IPEX.

vLLM lets a plug-in replace a layer by name (`register_oot`); `register` does so from the entry point group
`vllm.general_plugins`, which every process of the engine loads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch

# The import below warns that Triton is missing, which the port does not use.
logging.getLogger("vllm.triton_utils.importing").setLevel(logging.WARNING)

from vllm.model_executor.layers.fused_moe.layer import UnquantizedFusedMoEMethod  # noqa: E402

from .checkpoint.limits import EXPERT_ALIGNMENT  # noqa: E402
from .errors import reject_if  # noqa: E402
from .ops import moe  # noqa: E402


class KeplerMoEMethod(UnquantizedFusedMoEMethod):
    """Float32 experts over vllm_kepler.ops.moe, tensor-parallel.

    Raises ModelError, before any weight is read, for a model that the port cannot serve.
    """

    def create_weights(
        self,
        layer: torch.nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        weight_loader: Callable[..., Any],
        **named: Any,
    ) -> None:
        reject_if(layer.activation not in ("silu", "gelu"), f"experts with the activation {layer.activation}")
        reject_if(layer.apply_router_weight_on_input, "router weights on the experts' input")
        reject_if(layer.expert_map is not None, "experts spread over the ranks (enable_expert_parallel)")
        for name, size in (("hidden", hidden_size), ("intermediate", intermediate_size_per_partition)):
            wanted = f"a multiple of {EXPERT_ALIGNMENT}"
            reject_if(size % EXPERT_ALIGNMENT != 0, f"experts of {name} size {size} ({wanted} is expected)")
        self.create_parameters(
            layer, num_experts, hidden_size, intermediate_size_per_partition, params_dtype,
            weight_loader=track_loaded(weight_loader), **named,
        )
        for name, parameter in layer.named_parameters(recurse=False):
            # A router's bias is the layer's too.
            if getattr(parameter, "optional", False) or not name.startswith(("w13_", "w2_")):
                continue
            shards = ("w1", "w3") if name.startswith("w13_") else ("w2",)
            parameter.pending = {(expert, shard) for expert in range(num_experts) for shard in shards}

    def create_parameters(self, *sizes: Any, **named: Any) -> None:
        """Create the parameters that the layer's weight loader fills."""
        super().create_weights(*sizes, **named)

    def matrices(self, layer: torch.nn.Module) -> tuple[moe.Experts, moe.Experts]:
        """Return the experts' matrices, gate and up in one and down, as vllm_kepler.ops.moe takes them."""
        return layer.w13_weight, layer.w2_weight

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Keep the weights as they were loaded; upstream packs them for another library here."""

    def forward(
        self,
        layer: torch.nn.Module,
        x: torch.Tensor,
        router_logits: torch.Tensor,
        top_k: int,
        renormalize: bool,
        use_grouped_topk: bool = False,
        topk_group: int | None = None,
        num_expert_group: int | None = None,
        custom_routing_function: Callable[..., tuple[torch.Tensor, torch.Tensor]] | None = None,
        scoring_func: str = "softmax",
        e_score_correction_bias: torch.Tensor | None = None,
        activation: str = "silu",
        **rest: Any,
    ) -> torch.Tensor:
        """Return [num_tokens, hidden_size] for x of that shape and router_logits [num_tokens, num_experts]."""
        if use_grouped_topk:
            assert num_expert_group is not None and topk_group is not None
            weights, experts = moe.grouped_topk(
                router_logits, top_k, renormalize, num_expert_group, topk_group, scoring_func, e_score_correction_bias
            )
        elif custom_routing_function is not None:
            weights, experts = custom_routing_function(
                hidden_states=x, gating_output=router_logits, topk=top_k, renormalize=renormalize
            )
        else:
            weights, experts = moe.topk_softmax(router_logits, top_k, renormalize)
        return moe.experts_forward(x, *self.matrices(layer), weights.float(), experts.int(), activation)


def track_loaded(load: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a weight loader so that it removes each loaded (expert, shard) from `pending`."""

    def load_tracked(parameter: torch.nn.Parameter, loaded: torch.Tensor, *shard: Any, **named: Any) -> Any:
        if "expert_id" in named and loaded.dim() < 3:
            parameter.pending.discard((named["expert_id"], named.get("shard_id")))
        else:
            # Some checkpoints have all experts in one tensor.
            parameter.pending.clear()
        return load(parameter, loaded, *shard, **named)

    return load_tracked


def register() -> None:
    """Let vLLM make this method instead of its own; a second call changes nothing."""
    UnquantizedFusedMoEMethod.op_registry_oot[UnquantizedFusedMoEMethod.__name__] = KeplerMoEMethod
