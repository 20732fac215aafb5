"""Quantized checkpoints: GPTQ, AWQ and compressed-tensors, and what is refused."""

import math
import re
import runpy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from conftest import generate
from quantized_models import Kind, quantized_model, rewrite_config, rewrite_tensors, write
from serve_once import serve
from tiny_models import TinyModel, assert_same
from vllm_kepler.checkpoint.errors import UnsupportedQuantizationError
from vllm_kepler.checkpoint.quantization import Scheme
from vllm_kepler.quantization.config import KeplerConfig
from vllm_kepler.quantization.packed import LAYOUTS, PackedLinearMethod, check_order, groups_of_rank

KINDS = {
    "gptq-32": Kind("gptq", group=32),
    "gptq-64-v2": Kind("gptq", group=64, version="gptq_v2"),
    "gptq-128-symmetric": Kind("gptq", group=128, symmetric=True),
    "gptq-row": Kind("gptq", group=-1),
    "gptq-8bit": Kind("gptq", bits=8, group=128),
    "gptq-act-32": Kind("gptq", group=32, act_order=True),
    "gptq-act-128-8bit-v2": Kind("gptq", bits=8, group=128, act_order=True, version="gptq_v2"),
    "gptq-act-row": Kind("gptq", group=-1, act_order=True),
    "gptq-some": Kind("gptq", group=64, kept=("o_proj", "layers.1.mlp")),
    "awq-32": Kind("awq", group=32),
    "awq-128": Kind("awq", group=128),
    "awq-some": Kind("awq", group=64, kept=("down_proj", "layers.0.self_attn")),
    "ct-4": Kind("compressed-tensors", group=32, symmetric=True),
    "ct-4-asymmetric": Kind("compressed-tensors", group=128),
    "ct-8-row": Kind("compressed-tensors", bits=8, group=-1, symmetric=True),
    "ct-8-asymmetric": Kind("compressed-tensors", bits=8, group=64),
    "ct-some": Kind("compressed-tensors", group=64, symmetric=True, kept=("down_proj", "layers.0.self_attn")),
}


@pytest.fixture(scope="module")
def quantized(tmp_path_factory, seed):
    """Function from a family and a name of KINDS to a model, made once."""
    made = {}

    def get(family, name):
        if (family, name) not in made:
            directory = tmp_path_factory.mktemp(f"{family}-{name}")
            made[family, name] = quantized_model(family, directory, seed, KINDS[name])
        return made[family, name]

    return get


def modules_of(llm):
    return dict(llm.llm_engine.model_executor.driver_worker.worker.model_runner.model.named_modules())


@pytest.mark.parametrize("name", KINDS)
def test_answers_are_those_of_the_dequantized_model(quantized, engine, name):
    """Token for token; fused layers (qkv, gate and up) and layers of their own."""
    model = quantized("llama", name)
    llm = engine(model)
    assert_same(model, generate(llm, model.prompts))
    kind, packed = KINDS[name], 0
    for path, module in modules_of(llm).items():
        if not path.endswith("_proj"):
            continue
        kept = any(part in path.replace("qkv_proj", "self_attn") for part in kind.kept)
        assert hasattr(module, "packed") is not kept, path
        if not kept:
            # Nothing of the checkpoint's own tensors stays beside what the kernels read.
            assert not dict(module.named_parameters())
            assert module.packed.bits == kind.bits
            packed += 1
    assert packed


@pytest.mark.parametrize("name", ["gptq-32", "awq-32", "ct-4-asymmetric"])
def test_bias(quantized, engine, name):
    model = quantized("qwen2", name)
    assert_same(model, generate(engine(model), model.prompts))


@pytest.mark.parametrize(
    ("family", "name", "ranks"),
    [("llama", "gptq-64-v2", 2), ("qwen2", "gptq-32", 2), ("llama", "gptq-row", 2), ("qwen2", "awq-32", 2),
     ("llama", "awq-some", 2), ("llama", "ct-8-row", 2), ("llama", "ct-8-asymmetric", 2),
     # Ranks share groups: of o's 128 columns, and with four of down's 256.
     ("llama", "awq-128", 2), ("llama", "gptq-8bit", 4), ("llama", "ct-4-asymmetric", 4)],
)
def test_ranks(quantized, family, name, ranks):
    """Shards of columns (qkv, gate and up) and of rows (o, down)."""
    model = quantized(family, name)
    done = serve(model, tensor_parallel_size=ranks)
    assert done.status == 0, done.printed
    assert_same(model, done.ids)


@pytest.mark.parametrize("name", ["gptq-act-32", "awq-some", "ct-8-row"])
def test_half_stores_the_rest(tmp_path, seed, engine, name):
    """With dtype half what is not quantized, and the cache, are float16."""
    model = quantized_model("qwen2", tmp_path, seed, KINDS[name], half=True)
    llm = engine(model, dtype="half")
    worker = llm.llm_engine.model_executor.driver_worker.worker
    assert {tensor.dtype for cache in worker.cpu_cache for tensor in cache} == {torch.float16}
    for path, parameter in worker.model_runner.model.named_parameters():
        assert parameter.dtype is (torch.float16 if parameter.dim() == 2 else torch.float32), path
    assert_same(model, generate(llm, model.prompts))


LICENSE = Path(__file__).parents[1] / "models" / "licence-llama"
# Tokens of one prompt; the fixture's engine has a context of 512.
WINDOW = 500


def perplexity(llm, tokens):
    """exp of the mean negative log-likelihood of each token after the first of its window."""
    from vllm import SamplingParams, TokensPrompt

    windows = [tokens[start : start + WINDOW] for start in range(0, len(tokens), WINDOW)]
    sampling = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=0, detokenize=False)
    done = llm.generate([TokensPrompt(prompt_token_ids=window) for window in windows], sampling, use_tqdm=False)
    likelihoods = [
        at[token].logprob
        for output, window in zip(done, windows, strict=True)
        for at, token in zip(output.prompt_logprobs[1:], window[1:], strict=True)
    ]
    assert len(likelihoods) == len(tokens) - len(windows)
    return math.exp(-sum(likelihoods) / len(likelihoods))


def test_perplexity(engine, tmp_path):
    """Of a trained model on its own text: float16 within 1 %, 4 bits within 5 % of float32."""
    text = " ".join((Path(__file__).parents[2] / "LICENSE").read_text(encoding="utf-8").split())
    tokens = transformers.AutoTokenizer.from_pretrained(LICENSE)(text, verbose=False)["input_ids"]
    whole = TinyModel(LICENSE, [], [], [], 0.0, WINDOW)
    exact = perplexity(engine(whole), tokens)
    assert perplexity(engine(whole, dtype="half"), tokens) == pytest.approx(exact, rel=0.01)
    for kind in (KINDS["gptq-32"], KINDS["awq-32"], KINDS["ct-4"], Kind("gptq", group=64)):
        directory = tmp_path / f"{kind.method}-{kind.group}"
        write(transformers.AutoModelForCausalLM.from_pretrained(LICENSE), directory, kind)
        found = perplexity(engine(replace(whole, directory=directory)), tokens)
        print(f"perplexity {exact:.5f}, {kind.method} in groups of {kind.group}: {found:.5f}")
        assert found == pytest.approx(exact, rel=0.05)


GPTQ = KINDS["gptq-32"].config()
REFUSED = {
    "fp8": {"quant_method": "fp8"},
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "gptq marlin": {**GPTQ, "checkpoint_format": "marlin"},
    "w8a8": {**KINDS["ct-4"].config(), "format": "int-quantized"},
}


def test_config_has_schemes_of_the_reader():
    rules = {"-:.*down_proj": {}, r".*experts\.\d+\.up_proj": {"bits": 8}}
    config = KeplerConfig.from_config({**GPTQ, "dynamic": rules})
    config.packed_modules_mapping = {"qkv_proj": ["q_proj", "k_proj", "v_proj"]}
    assert config.scheme_of("model.layers.0.self_attn.qkv_proj") == Scheme(4, 32, zero_offset=1)
    assert config.scheme_of("model.layers.0.mlp.down_proj") is None
    with pytest.raises(UnsupportedQuantizationError, match=r"different quantization of .*gate_proj and .*up_proj"):
        config.scheme_of_experts("model.layers.0.mlp.experts", 2)
    assert KeplerConfig().scheme_of("model.layers.0.mlp.down_proj") is None


CASES = Path(__file__).parents[1] / "unit" / "checkpoint" / "quantization_cases.py"


@pytest.mark.parametrize(("values", "scheme", "found"), runpy.run_path(str(CASES))["CASES"])
def test_config_answers_as_the_reader(values, scheme, found):
    if scheme:
        assert KeplerConfig.override_quantization_method(values, None) == "kepler"
        assert KeplerConfig.from_config(values).checkpoint.main == scheme
        return
    for ask in (KeplerConfig.from_config, lambda config: KeplerConfig.override_quantization_method(config, None)):
        with pytest.raises(UnsupportedQuantizationError, match=re.escape(found)):
            ask(values)


@pytest.mark.parametrize("name", ["fp8", "bitsandbytes", "gptq marlin", "w8a8"])
def test_refused_before_weights_are_read(tmp_path, engine, tiny, name):
    config = REFUSED[name]
    model = rewrite_config(tiny("llama"), tmp_path / "model", lambda whole: whole.update(quantization_config=config))
    (model.directory / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"config\.json: found .*; expected weights in float32, float16"):
        engine(model)


@pytest.mark.parametrize("method", ["fp8", "bitsandbytes", "gptq"])
def test_methods_by_name_need_a_checkpoint(tiny, engine, method):
    with pytest.raises(ValueError, match=f"quantization: found {method}, and no quantization_config"):
        engine(tiny("llama"), quantization=method)


def test_a_method_by_name_beside_its_checkpoint(quantized, engine):
    model = quantized("llama", "gptq-32")
    assert_same(model, generate(engine(model, quantization="gptq"), model.prompts))


def test_one_line_for_the_user(quantized, tmp_path):
    """The server's process ends with the message, and reads no weights."""
    config = {"quant_method": "fp8"}
    model = rewrite_config(quantized("llama", "gptq-32"), tmp_path / "model",
                           lambda whole: whole.update(quantization_config=config))
    done = serve(model)
    assert done.status != 0
    assert "config.json: found weights quantized with fp8 (quantization_config); expected weights in" in done.printed
    assert "Loading safetensors" not in done.printed


def test_act_order_over_ranks_is_refused(quantized, engine):
    with pytest.raises(ValueError, match=r"tensor_parallel_size: found 2 and gptq with act-order .*; expected 1"):
        engine(quantized("llama", "gptq-act-32"), tensor_parallel_size=2)


SHARDS = {
    "groups": (Scheme(4, 128), 96, 192, 256, "found 192 columns a rank (192 over 1) in groups of 128; expected whole"),
    "columns": (Scheme(4, -1), 48, 96, 256, "found 48 columns a rank; expected a multiple of 32"),
    "act-order": (Scheme(4, 32, act_order=True), 64, 128, 256, "found act-order (desc_act) and 2 ranks; expected one"),
    "rows": (Scheme(4, 32), 64, 64, 28, "found 28 rows a rank; expected a multiple of 8"),
}


@pytest.mark.parametrize("name", SHARDS)
def test_shards_that_cannot_be_cut_are_refused(name):
    """By the layer, while the model is built: no process is needed to see it."""
    scheme, columns, all_columns, rows, found = SHARDS[name]
    method = PackedLinearMethod("model.layers.0.o_proj", scheme, LAYOUTS["gptq"])
    with pytest.raises(ValueError, match=r"^model\.layers\.0\.o_proj: ") as refusal:
        method.create_weights(torch.nn.Module(), columns, [rows], all_columns, rows, torch.float32, weight_loader=None)
    assert found in str(refusal.value)


@pytest.mark.parametrize(("group", "columns", "ranks"), [(128, 11008, 4), (128, 384, 4), (64, 192, 2), (32, 64, 2)])
def test_a_group_on_two_ranks_has_its_scale_on_both(group, columns, ranks):
    scales = torch.randn(3, columns // group)
    of_columns, k = scales.repeat_interleave(group, 1), columns // ranks
    for rank in range(ranks):
        own = groups_of_rank(scales, group, rank * k, k)
        assert own.shape == (3, k // math.gcd(group, k))
        assert torch.equal(own.repeat_interleave(k // own.shape[1], 1), of_columns[:, rank * k : (rank + 1) * k])


def test_undeclared_act_order_is_refused_on_ranks():
    scattered = torch.arange(64, dtype=torch.int32) % 2
    check_order((64 + torch.arange(64)) // 128, 128, 64, "o_proj")
    with pytest.raises(ValueError, match=r"^o_proj: found act-order \(g_idx\) and several ranks; expected one"):
        check_order(scattered, 128, 64, "o_proj")


def test_different_schemes_in_a_fused_layer_are_refused(quantized, engine, tmp_path):
    model = rewrite_config(quantized("llama", "gptq-32"), tmp_path / "model",
                           lambda whole: whole["quantization_config"]["dynamic"].update({r"-:.*\.k_proj": {}}))
    with pytest.raises(ValueError, match=r"different quantization of .*k_proj; expected one .* in .*qkv_proj"):
        engine(model)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def cut_in_header(path):
    path.write_bytes(path.read_bytes()[:100])


def scribble(path):
    whole = bytearray(path.read_bytes())
    whole[8:40] = b"x" * 32
    path.write_bytes(bytes(whole))


@pytest.mark.parametrize(
    ("damage", "found"),
    [(cut, r"found \d+ bytes; expected \d+ bytes, as its header says"),
     (cut_in_header, "found 100 bytes that begin with no header"),
     (scribble, "found a header that is no JSON mapping")],
)
def test_damaged_files_are_refused(tiny, engine, tmp_path, damage, found):
    model = rewrite_config(tiny("llama"), tmp_path / "model", lambda whole: None)
    damage(model.directory / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model\.safetensors: {found}.*Fetch the model again"):
        engine(model)


@pytest.mark.parametrize(
    ("tensor", "shape"),
    [("model.layers.1.mlp.down_proj.qweight", (31, 128)), ("model.layers.0.self_attn.k_proj.scales", (4, 32)),
     ("model.norm.weight", (64,))],
)
def test_a_tensor_of_another_shape_is_refused(quantized, engine, tmp_path, tensor, shape):
    def change(tensors):
        tensors[tensor] = torch.zeros(shape, dtype=tensors[tensor].dtype)

    model = rewrite_tensors(quantized("llama", "gptq-32"), tmp_path / "model", change)
    with pytest.raises(ValueError, match=rf"tensor {tensor} \(\w+ \[{', '.join(map(str, shape))}\]\): "):
        engine(model)


def doubled(model, directory, tensor, dimension):
    """A copy of the checkpoint in which one tensor is twice as large."""

    def change(tensors):
        tensors[tensor] = torch.cat([tensors[tensor]] * 2, dimension)

    return rewrite_tensors(model, directory, change)


@pytest.mark.parametrize("kind", [None, "gptq-32"])
@pytest.mark.parametrize(
    ("larger", "split", "named"), [("self_attn.k_proj", 0, "self_attn"), ("mlp.down_proj", 1, "mlp.down_proj")]
)
def test_a_larger_tensor_is_refused(tiny, quantized, engine, tmp_path, kind, larger, split, named):
    """Upstream takes of it what fits. Of a fused layer, the part that came last is named."""
    # GPTQ's is transposed. split: the dimension in which ranks share the weight.
    leaf, dimension = ("qweight", 1 - split) if kind else ("weight", split)
    made = quantized("llama", kind) if kind else tiny("llama")
    model = doubled(made, tmp_path / "model", f"model.layers.1.{larger}.{leaf}", dimension)
    with pytest.raises(ValueError, match=rf"tensor model\.layers\.1\.{named}\S*\.{leaf} .*: found \d+ elements in"):
        engine(model)


def test_what_ranks_refuse_ends_them(quantized, tmp_path):
    """And a tensor that is larger than the shares of both is too large."""
    tensor = "model.layers.1.mlp.down_proj.qweight"
    model = doubled(quantized("llama", "gptq-32"), tmp_path / "model", tensor, 0)
    done = serve(model, tensor_parallel_size=2)
    assert done.status == 1, done.printed
    assert re.search(rf"ModelError: .*tensor {tensor} .*: found \d+ elements in", done.printed), done.printed


def test_a_missing_tensor_is_refused(quantized, engine, tmp_path):
    model = rewrite_tensors(quantized("llama", "awq-32"), tmp_path / "model",
                    lambda tensors: tensors.pop("model.layers.1.mlp.down_proj.qzeros"))
    with pytest.raises(ValueError, match=r"found no weights for model\.layers\.1\.mlp\.down_proj\.qzeros \(1 in all\)"):
        engine(model)


def test_different_orders_in_a_fused_layer_are_refused(quantized, engine, tmp_path):
    def change(tensors):
        order = tensors["model.layers.0.self_attn.v_proj.g_idx"]
        order.copy_(order.flip(0))

    model = rewrite_tensors(quantized("llama", "gptq-act-32"), tmp_path / "model", change)
    with pytest.raises(ValueError, match=r"qkv_proj: found different orders of columns \(g_idx\)"):
        engine(model)
