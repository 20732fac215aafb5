"""Experts of mixtures in float16 and in codes of 4 and 8 bits, and what of them is refused."""

from types import SimpleNamespace

import pytest
import torch
from conftest import generate
from quantized_models import Kind, half_model, quantized_model, rewrite_config, rewrite_tensors, round_to_nearest
from serve_once import serve
from tiny_models import assert_same
from vllm.model_executor.layers.fused_moe import FusedMoE
from vllm_kepler.checkpoint.quantization import Scheme
from vllm_kepler.ops import linear, moe
from vllm_kepler.quantization.experts import PackedExpertsMethod
from vllm_kepler.quantization.packed import LAYOUTS

# Routing and experts are slow in transformers: a few tokens, and a prompt that gives each expert several rows.
ASKED = {"lengths": (1, 33), "tokens": 8}
# Checkpoints leave routers as they are.
ROUTERS = ("moe.gate", "mlp.gate", "shared_expert_gate")
# name -> (family, kind); Mixtral's matrices have 128 and 256 columns, the experts of Qwen 128 and 64.
QUANTIZED = {
    "gptq-32": ("mixtral", Kind("gptq", group=32, kept=ROUTERS)),
    "gptq-128-8bit-v2": ("mixtral", Kind("gptq", bits=8, group=128, version="gptq_v2", kept=ROUTERS)),
    "gptq-64-symmetric": ("qwen2-moe", Kind("gptq", group=64, symmetric=True, kept=ROUTERS)),
    "gptq-act-row": ("qwen3-moe", Kind("gptq", group=-1, act_order=True, kept=ROUTERS)),
    "gptq-some": ("qwen2-moe", Kind("gptq", group=32, kept=(*ROUTERS, "layers.1.mlp.experts"))),
    "awq-32": ("qwen2-moe", Kind("awq", group=32, kept=ROUTERS)),
    "awq-128": ("mixtral", Kind("awq", group=128, kept=ROUTERS)),
    "ct-4": ("qwen3-moe", Kind("compressed-tensors", group=32, symmetric=True, kept=ROUTERS)),
    "ct-8-row": ("qwen2-moe", Kind("compressed-tensors", bits=8, group=-1, symmetric=True, kept=ROUTERS)),
    "ct-4-asymmetric": ("mixtral", Kind("compressed-tensors", group=64, kept=ROUTERS)),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory, seed):
    """Function from a family, for float16, or a name of QUANTIZED to a model, made once."""
    models = {}

    def get(name):
        if name not in models:
            directory = tmp_path_factory.mktemp(name)
            models[name] = (
                quantized_model(QUANTIZED[name][0], directory, seed, QUANTIZED[name][1], ASKED) if name in QUANTIZED
                else half_model(name, directory, seed, asked=ASKED)
            )
        return models[name]

    return get


def answers(llm, model):
    return generate(llm, model.prompts, ASKED["tokens"])


UNIT = 2.0**-24


@pytest.mark.parametrize("storage", ["float16", 8, 4])
def test_operator(seed, storage):
    """Against each token by hand in float64, with an expert that nobody chooses.

    Bound: a sum of k products is off by (k + 2) u of their magnitudes; silu is Lipschitz with 1.1 and no larger than
    its argument, so that the product of gate and up is off by (2.1 (k + 2) + 8) u of theirs.
    """
    torch.manual_seed(seed)
    tokens, count, hidden, size = 19, 4, 64, 96
    x, weights = torch.randn(tokens, hidden), torch.rand(tokens, 2)
    experts = torch.stack([torch.randperm(3)[:2] for _ in range(tokens)]).int()
    stored, values = [], []
    for n, k in ((2 * size, hidden), (hidden, size)):
        if storage == "float16":
            stored.append((torch.randn(count, n, k) / k**0.5).half())
            values.append(stored[-1].double())
            continue
        codes = torch.randint(0, 1 << storage, (count * n, k), dtype=torch.uint8)
        scales = (torch.rand(count * n, k // 32) * 2.0**-storage).half()
        zeros = torch.randint(0, 1 << storage, scales.shape)
        stored.append(linear.pack(codes, scales, zeros, storage))
        wide = [tensor.double().repeat_interleave(32, 1) for tensor in (scales, zeros)]
        values.append((wide[0] * (codes - wide[1])).view(count, n, k))
    expected, bound = torch.zeros(2, tokens, hidden, dtype=torch.float64)
    for row in range(tokens):
        for weight, expert in zip(weights[row].double(), experts[row].tolist(), strict=True):
            both, down = (matrices[expert] for matrices in values)
            gate, up = (both @ x[row].double()).chunk(2)
            expected[row] += weight * (down @ (torch.nn.functional.silu(gate) * up))
            gate, up = (both.abs() @ x[row].double().abs()).chunk(2)
            bound[row] += weight * (down.abs() @ (gate * up))
    out = moe.experts_forward(x, *stored, weights, experts, "silu")
    assert out.dtype is torch.float32
    assert ((out - expected).abs() <= (2.1 * (hidden + 2) + 8 + size + 2 + 4) * UNIT * bound).all()


def layers_of(llm):
    """The engine's layers of experts."""
    model = llm.llm_engine.model_executor.driver_worker.worker.model_runner.model
    found = {path: module for path, module in model.named_modules() if path.endswith("experts")}
    assert found
    return found


@pytest.mark.parametrize("family", ["mixtral", "qwen2-moe", "qwen3-moe"])
def test_float16(made, engine, family):
    """Token for token what transformers answers with the weights, and the keys and values, rounded to float16."""
    model = made(family)
    llm = engine(model, dtype="half")
    assert_same(model, answers(llm, model))
    for layer in layers_of(llm).values():
        assert {parameter.dtype for parameter in layer.parameters()} == {torch.float16}


@pytest.mark.parametrize("name", QUANTIZED)
def test_codes(made, engine, name):
    """Token for token what transformers answers with the weights that the checkpoint stands for."""
    model = made(name)
    llm = engine(model)
    assert_same(model, answers(llm, model))
    kind = QUANTIZED[name][1]
    for path, layer in layers_of(llm).items():
        if any(part in path for part in kind.kept):
            assert {parameter.dtype for parameter in layer.parameters()} == {torch.float32}
            continue
        # Nothing of the checkpoint's own tensors stays beside what the kernels read.
        assert not dict(layer.named_parameters())
        assert (layer.w13_packed.bits, layer.w2_packed.bits) == (kind.bits, kind.bits)


def test_half_stores_the_rest(made, engine):
    """With dtype half the experts that a checkpoint leaves as they were are float16."""
    model = made("gptq-some")
    for path, layer in layers_of(engine(model, dtype="half")).items():
        assert hasattr(layer, "w13_packed") is ("layers.0" in path)
        assert {parameter.dtype for parameter in layer.parameters()} <= {torch.float16}


def test_gate_is_the_router_and_not_a_gate_proj(made, engine, tmp_path):
    """AWQ lists parts of names that are not quantized."""
    model = rewrite_config(made("awq-32"), tmp_path / "model",
                           lambda whole: whole["quantization_config"].update(modules_to_not_convert=["gate"]))
    assert_same(model, answers(engine(model), model))


@pytest.mark.parametrize(("name", "options"), [("qwen2-moe", {"dtype": "half"}), ("gptq-32", {})])
def test_two_ranks(made, name, options):
    model = made(name)
    done = serve(model, tensor_parallel_size=2, **options)
    assert done.status == 0, done.printed
    assert_same(model, done.ids)


def loaded_layer(scheme, layout, tensors, ranks, rank):
    """The layer of experts of one rank, filled by vLLM's own loader with a checkpoint's tensors.

    Args:
        tensors: for each expert, w1, w2 and w3 by name, each with its tensors by name.
    """
    layer = FusedMoE.__new__(FusedMoE)
    torch.nn.Module.__init__(layer)
    layer.moe_parallel_config = SimpleNamespace(tp_size=ranks, tp_rank=rank)
    layer.expert_map, layer.activation, layer.apply_router_weight_on_input = None, "silu", False
    layer.moe_config = None
    layer.quant_method = PackedExpertsMethod(layer, "e", scheme, layout)
    layer.quant_method.create_weights(
        layer, len(tensors), HIDDEN, INTERMEDIATE // ranks, torch.float32, weight_loader=layer.weight_loader
    )
    for expert, matrices in enumerate(tensors):
        for shard, parts in matrices.items():
            for name, tensor in parts.items():
                whole = f"{'w2' if shard == 'w2' else 'w13'}_{name}"
                parameter = getattr(layer, whole)
                parameter.weight_loader(parameter, tensor, whole, shard_id=shard, expert_id=expert)
    assert not any(getattr(parameter, "pending", ()) for parameter in layer.parameters())
    layer.quant_method.process_weights_after_loading(layer)
    return layer


# Four ranks have 96 columns of down each: one and a half groups of 64, three quarters of one of 128.
HIDDEN, INTERMEDIATE = 128, 384
SCHEMES = {
    "gptq": (Kind("gptq", group=64), Scheme(4, 64, zero_offset=1), LAYOUTS["gptq"]),
    "gptq-128": (Kind("gptq", group=128), Scheme(4, 128, zero_offset=1), LAYOUTS["gptq"]),
    "gptq-8-row": (Kind("gptq", bits=8, group=-1, version="gptq_v2"), Scheme(8, -1), LAYOUTS["gptq"]),
    "awq": (Kind("awq", group=32), Scheme(4, 32), LAYOUTS["awq"]),
    "awq-128": (Kind("awq", group=128), Scheme(4, 128), LAYOUTS["awq"]),
    "ct": (Kind("compressed-tensors", group=32), Scheme(4, 32), LAYOUTS["compressed-tensors"]),
    "ct-8-row": (Kind("compressed-tensors", bits=8, group=-1), Scheme(8, -1), LAYOUTS["compressed-tensors"]),
    "ct-8-128": (Kind("compressed-tensors", bits=8, group=128), Scheme(8, 128), LAYOUTS["compressed-tensors"]),
    "ct-symmetric": (Kind("compressed-tensors", group=64, symmetric=True), Scheme(4, 64, has_zeros=False),
                     LAYOUTS["compressed-tensors"]),
}


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_shards(seed, name, ranks):
    """Each rank has its rows of gate and up and its columns of down, bit for bit."""
    torch.manual_seed(seed)
    kind, scheme, layout = SCHEMES[name]
    shapes = {"w1": (INTERMEDIATE, HIDDEN), "w2": (HIDDEN, INTERMEDIATE), "w3": (INTERMEDIATE, HIDDEN)}
    rounded = [
        {shard: round_to_nearest(torch.randn(shape), kind.bits, kind.group, kind.symmetric, False)
         for shard, shape in shapes.items()}
        for _ in range(2)
    ]
    tensors = [{shard: kind.tensors(matrix) for shard, matrix in expert.items()} for expert in rounded]
    own = INTERMEDIATE // ranks
    for rank in range(ranks):
        layer, part = loaded_layer(scheme, layout, tensors, ranks, rank), slice(rank * own, (rank + 1) * own)
        both = torch.cat([expert[shard].values[part] for expert in rounded for shard in ("w1", "w3")])
        assert torch.equal(linear.unpack(layer.w13_packed), both)
        assert torch.equal(linear.unpack(layer.w2_packed), torch.cat([e["w2"].values[:, part] for e in rounded]))


def test_what_float16_cannot_hold_is_refused(made, engine, tmp_path):
    tensor = "model.layers.1.block_sparse_moe.experts.3.w2.weight"
    model = rewrite_tensors(made("mixtral"), tmp_path / "model", lambda tensors: tensors[tensor][5, 7].fill_(70000))
    with pytest.raises(ValueError, match=rf"tensor {tensor} \(.*of magnitude 70000; expected at most 65504"):
        engine(model, dtype="half")


@pytest.mark.parametrize(
    ("name", "tensor", "found"),
    [("mixtral", "model.layers.1.block_sparse_moe.experts.2.w3.weight", r"w13_weight of expert 2 \(w3\)"),
     ("gptq-32", "model.layers.0.block_sparse_moe.experts.3.w2.qzeros", r"w2_qzeros of expert 3 \(w2\)")],
)
def test_a_missing_expert_is_refused(made, engine, tmp_path, name, tensor, found):
    """One tensor of the other experts' file does not stand for it, in float32 neither."""
    model = rewrite_tensors(made(name), tmp_path / "model", lambda tensors: tensors.pop(tensor))
    with pytest.raises(ValueError, match=rf"found no weights for model\.layers.*experts\.{found} \(1 in all\)"):
        engine(model)


def test_different_schemes_in_a_layer_are_refused(made, engine, tmp_path):
    rule = r"-:.*layers\.1\..*experts\.3\.w2"
    model = rewrite_config(made("gptq-32"), tmp_path / "model",
                           lambda whole: whole["quantization_config"]["dynamic"].update({rule: {}}))
    with pytest.raises(ValueError, match=r"different quantization of .*\.3\.w2; expected .* in .*layers\.1\..*experts"):
        engine(model)


def test_scattered_columns_are_refused(made, engine, tmp_path):
    """By the config, before weights are read, and where the config does not say so by the tensor."""
    scattered = rewrite_tensors(
        made("gptq-32"), tmp_path / "scattered",
        lambda tensors: tensors["model.layers.0.block_sparse_moe.experts.1.w1.g_idx"].copy_(torch.arange(128) % 4),
    )
    with pytest.raises(ValueError, match=r"tensor .*experts\.1\.w1\.g_idx .*found experts with act-order"):
        engine(scattered)
    said = rewrite_config(made("gptq-32"), tmp_path / "said",
                          lambda whole: whole["quantization_config"].update(desc_act=True))
    (said.directory / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"^model\.layers\.0\..*experts: found experts with act-order"):
        engine(said)


SHARDS = {
    "groups": (Scheme(4, 128), 256, 96, "e.w2: found 192 columns a rank (192 over 1) in groups of 128; expected whole"),
    "columns": (Scheme(4, -1), 128, 48, "e.w2: found 48 columns a rank; expected a multiple of 32"),
    "hidden": (Scheme(8, 64), 160, 64, "e.w13: found 160 columns a rank (160 over 1) in groups of 64; expected whole"),
}


@pytest.mark.parametrize("name", SHARDS)
@pytest.mark.parametrize("layout", [LAYOUTS["gptq"], LAYOUTS["awq"]])
def test_shards_that_cannot_be_cut_are_refused(name, layout):
    scheme, hidden, intermediate, found = SHARDS[name]
    method = PackedExpertsMethod(SimpleNamespace(moe_config=None), "e", scheme, layout)
    with pytest.raises(ValueError, match=r"^e\.w") as refusal:
        method.create_parameters(SimpleNamespace(tp_size=2), 4, hidden, intermediate, torch.float32, weight_loader=None)
    assert found in str(refusal.value)
