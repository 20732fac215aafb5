"""Experts of mixtures that are stored in fewer bits than float32: float16, and the codes of quantized checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NoReturn

import torch
from vllm.model_executor.layers.fused_moe import FusedMoE
from vllm.model_executor.layers.fused_moe.layer import FusedMoeWeightScaleSupported
from vllm.model_executor.models.registry import ModelRegistry
from vllm.model_executor.utils import set_weight_attrs

from ..checkpoint.limits import WHOLE_ROW
from ..checkpoint.quantization import Scheme
from ..errors import ModelError
from ..moe import KeplerMoEMethod
from ..ops import linear, moe
from .half import HalfWeights
from .packed import Layout, check_shard, cuts_groups, empty_tensors, groups_of_rank, read_tensors

# Names in a layer's weight loader of the gate's and the other matrix in one, and of the last.
BOTH, DOWN = "w13", "w2"


class HalfExpertsMethod(HalfWeights, KeplerMoEMethod):  # type: ignore[misc]  # passes all on
    """Experts whose weights are float16."""

    def __init__(self, layer: FusedMoE, name: str) -> None:
        super().__init__(layer.moe_config)
        self.name = name


class PackedExpertsMethod(KeplerMoEMethod):
    """Experts of codes of 4 or 8 bits."""

    def __init__(self, layer: FusedMoE, name: str, scheme: Scheme, layout: Layout) -> None:
        super().__init__(layer.moe_config)
        self.name = name
        self.scheme = scheme
        self.layout = layout
        # A rank's first column of the last matrix, if the ranks' borders lie within groups.
        self.first: int | None = None
        if scheme.act_order:
            refuse_act_order(name)

    def create_parameters(
        self,
        layer: torch.nn.Module,
        num_experts: int,
        hidden_size: int,
        intermediate_size: int,
        params_dtype: torch.dtype,
        weight_loader: Callable[..., Any],
        **named: Any,
    ) -> None:
        """The checkpoint's tensors of all experts, one above the other.

        Raises ModelError for a shard that cannot be cut out of the checkpoint.
        """
        scheme, layout, ranks = self.scheme, self.layout, layer.tp_size
        check_shard(f"{self.name}.{BOTH}", scheme, hidden_size, [intermediate_size] * 2, hidden_size)
        check_shard(f"{self.name}.{DOWN}", scheme, intermediate_size, [hidden_size], intermediate_size * ranks)
        if cuts_groups(scheme, intermediate_size, intermediate_size * ranks):
            self.first = layer.tp_rank * intermediate_size
        strategy = FusedMoeWeightScaleSupported.CHANNEL if scheme.group == WHOLE_ROW else (
            FusedMoeWeightScaleSupported.GROUP
        )
        # Without is_transposed the loader takes the dimension before the last for the one along the rows.
        attributes = {
            "weight_loader": weight_loader, "is_transposed": layout.input_dim == 0, "quant_method": strategy.value,
            **named,
        }
        for part, n, k in ((BOTH, 2 * intermediate_size, hidden_size), (DOWN, hidden_size, intermediate_size)):
            # Of groups that are cut a rank picks its own later.
            cut = part == DOWN and self.first is not None
            scaled = k * ranks if cut else k
            tensors = empty_tensors(scheme, layout, n, k, scaled // scheme.columns(scaled), num_experts)
            loaders = dict.fromkeys(tensors, weight_loader)
            if layout.group_of_column:
                loaders[layout.group_of_column] = in_order(self.name, scheme)
            if layout.shape:
                loaders[layout.shape] = ignore_weight
            for name, loader in loaders.items():
                optional = name not in tensors
                parameter = torch.nn.Parameter(
                    torch.empty(0, dtype=torch.int32) if optional else tensors[name], requires_grad=False
                )
                set_weight_attrs(parameter, {
                    **attributes, "weight_loader": loader, "optional": optional,
                    "load_full_w2": cut and name in (layout.scales, layout.zeros),
                })
                layer.register_parameter(f"{part}_{name}", parameter)

    def process_weights_after_loading(self, layer: torch.nn.Module) -> None:
        """Put `layer.w13_packed` and `layer.w2_packed`, what the kernels read, in the place of the parameters."""
        for part in (BOTH, DOWN):
            parameters = {
                name.removeprefix(f"{part}_"): parameter.data
                for name, parameter in layer.named_parameters(recurse=False) if name.startswith(f"{part}_")
            }
            for name in parameters:
                delattr(layer, f"{part}_{name}")
            setattr(layer, f"{part}_packed", self._pack(parameters, self.first if part == DOWN else None))

    def _pack(self, tensors: dict[str, torch.Tensor], first: int | None) -> linear.Packed:
        """The matrices [n, k] of all experts as one of num_experts · n rows; `first`: see groups_of_rank."""
        wanted = [name for name in (self.layout.codes, self.layout.scales, self.layout.zeros) if name in tensors]
        whole: list[Any] = []
        num_experts = len(tensors[self.layout.codes])
        for expert in range(num_experts):
            parts = read_tensors(self.scheme, self.layout, {name: tensors[name][expert] for name in wanted})
            if first is not None:
                k = parts[0].shape[1]
                parts = (parts[0], *(groups_of_rank(part, self.scheme.group, first, k) for part in parts[1:]))
            if not whole:
                whole = [None if part is None else part.new_empty(num_experts, *part.shape) for part in parts]
            for to, part in zip(whole, parts, strict=True):
                if part is not None:
                    to[expert] = part
        tensors.clear()
        codes, scales, zeros = (None if part is None else part.flatten(0, 1) for part in whole)
        try:
            return linear.pack(codes, scales, zeros, self.scheme.bits)
        except ValueError as error:
            raise ModelError(f"{self.name}: found {error}. Choose another checkpoint of the model.") from None

    def matrices(self, layer: torch.nn.Module) -> tuple[moe.Experts, moe.Experts]:
        return layer.w13_packed, layer.w2_packed


def refuse_act_order(name: str) -> NoReturn:
    """Raise ModelError for experts whose columns lie in the order of their activations."""
    raise ModelError(
        f"{name}: found experts with act-order (desc_act, g_idx); expected columns in the order of their groups: each "
        "expert would take its input in an order of its own. Choose a checkpoint without act-order."
    )


def in_order(name: str, scheme: Scheme) -> Callable[..., Any]:
    """Make a weight loader that checks the groups of an expert's columns; in order, they need no memory."""

    def load_order(parameter: torch.nn.Parameter, loaded: torch.Tensor, *shard: Any, **named: Any) -> bool:
        columns = len(loaded)
        if not torch.equal(loaded.long().cpu(), torch.arange(columns) // scheme.columns(columns)):
            refuse_act_order(name)
        return True

    return load_order


def ignore_weight(parameter: torch.nn.Parameter, loaded: torch.Tensor, *shard: Any, **named: Any) -> bool:
    """Ignore a weight that the port does not use."""
    return True


def parts_of(prefix: str) -> tuple[str, ...]:
    """Return a checkpoint's names of an expert's matrices."""
    # As Mixtral has them, and those after it that took its name for the block.
    return ("w1", "w2", "w3") if "block_sparse_moe" in prefix else ("gate_proj", "up_proj", "down_proj")


def register() -> None:
    """Serve a quantized Mixtral by the class of the unquantized one.

    Upstream's class for it runs each expert on all tokens: its method for such experts was not there yet.
    """
    ModelRegistry.models["QuantMixtralForCausalLM"] = ModelRegistry.models["MixtralForCausalLM"]
