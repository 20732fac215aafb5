"""GGUF files without a config.json: config, tokenizer, special tokens and chat template of the header, and parts."""

import json
import math
import struct

import pytest
from gguf_files import (
    ARRAY,
    BOOL,
    BYTES,
    F32,
    FLOAT,
    HIDDEN,
    Q4_0,
    Q8_0,
    SENTENCEPIECE,
    TEXT,
    UINT,
    VOCABULARY,
    WORDS,
    header_values,
    layer,
    write,
)
from module_utils.checkpoint import files, gguf, gguf_families, gguf_model, gguf_tokenizer


@pytest.fixture
def made(tmp_path):
    """Function that writes a file and returns its path."""

    def make(architecture="llama", tensors=None, name="m.gguf", tokenizer=SENTENCEPIECE, data=b"", **differs):
        values = header_values(architecture, tokenizer, **differs)
        return write(tmp_path / name, layer() if tensors is None else tensors, values, data=data)

    return make


def config_of(path):
    return gguf_families.config_of(gguf.read_header(str(path)))


def fault_of(path):
    (fault,) = files.read_model(str(path))["faults"]
    return fault["found"]


def test_directory_and_file_are_one_model(made):
    path = made()
    found = files.read_model(str(path))
    assert found == files.read_model(str(path.parent)) and found["faults"] == []
    assert found["config"]["architectures"] == ["LlamaForCausalLM"]
    assert found["tokenizer"]["chat_template"] == "{{ messages }}"
    assert {"name": "model.layers.*.self_attn.o_proj.weight", "dtype": "Q4_0", "shape": [64, 64], "count": 1} in (
        found["tensors"])


def test_file_without_suffix_is_taken(made):
    """As Ollama names them."""
    path = made(name="sha256-0f")
    assert files.read_model(str(path))["faults"] == []
    gguf_model.write_model(str(path), str(path.parent / "out"))
    assert (path.parent / "out" / "sha256-0f.gguf").resolve() == path


def test_config_has_what_the_header_says(made):
    found = config_of(made())
    expected = {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 512,
        "vocab_size": 12, "rope_theta": 10000.0, "tie_word_embeddings": True, "attention_bias": False,
        "bos_token_id": 1, "eos_token_id": 2,
    }
    assert {key: found[key] for key in expected} == expected
    assert math.isclose(found["rms_norm_eps"], 1e-5, rel_tol=1e-6) and "pad_token_id" not in found


@pytest.mark.parametrize(
    ("architecture", "differs", "expected"),
    [
        ("llama", {"expert_count": (UINT, 4), "expert_used_count": (UINT, 2)},
         {"model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": None}),
        ("llama", {"attention__key_length": (UINT, 32)}, {"head_dim": 32}),
        ("gemma2", {"attn_logit_softcapping": (FLOAT, 50.0), "final_logit_softcapping": (FLOAT, 30.0),
                    "attention__key_length": (UINT, 32), "attention__sliding_window": (UINT, 16)},
         {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 32,
          "sliding_window": 16, "hidden_activation": "gelu_pytorch_tanh"}),
        ("gemma3", {"attention__sliding_window": (UINT, 16)},
         {"model_type": "gemma3_text", "sliding_window_pattern": 6, "rope_local_base_freq": 10000.0}),
        ("gemma3", {"rope__scaling__type": (TEXT, "linear"), "rope__scaling__factor": (FLOAT, 8.0)},
         {"rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
        # The largest ones divide by another root.
        ("gemma3", {"block_count": (UINT, 62), "attention__key_length": (UINT, 32)}, {"query_pre_attn_scalar": 16}),
        ("qwen2", {"rope__scaling__type": (TEXT, "yarn"), "rope__scaling__factor": (FLOAT, 4.0),
                   "rope__scaling__original_context_length": (UINT, 128)},
         {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}),
        ("granite", {"attention__scale": (FLOAT, 0.5), "embedding_scale": (FLOAT, 12.0),
                     "residual_scale": (FLOAT, 0.25), "logit_scale": (FLOAT, 8.0)},
         {"attention_multiplier": 0.5, "embedding_multiplier": 12.0, "residual_multiplier": 0.25,
          "logits_scaling": 8.0}),
        ("glm4", {"rope__dimension_count": (UINT, 8)}, {"partial_rotary_factor": 0.5}),
        ("phi3", {"attention__sliding_window": (UINT, 512)}, {"sliding_window": None}),
    ],
)
def test_config_of_a_family(made, architecture, differs, expected):
    found = config_of(made(architecture, **differs))
    assert {key: found.get(key, "nothing") for key in expected} == expected


def test_head_and_biases_follow_from_tensors(made):
    found = config_of(made(tensors=layer(("output.weight", (VOCABULARY, HIDDEN), Q4_0),
                                         ("blk.0.attn_q.bias", (HIDDEN,), F32))))
    assert (found["tie_word_embeddings"], found["attention_bias"]) == (False, True)


def llama3_factors(factor=8.0, original=8192):
    """By the model's own rule, of heads of 16."""
    for index in range(8):
        wavelength = 2 * math.pi * 10000 ** (index / 8)
        if wavelength < original / 4:
            yield 1.0
        elif wavelength > original:
            yield factor
        else:
            smooth = (original / wavelength - 1) / 3
            yield 1 / ((1 - smooth) / factor + smooth)


def with_factors(made, factors):
    tensors = [("rope_freqs.weight", (len(factors),), F32), *layer()]
    return made(tensors=tensors, data=struct.pack(f"<{len(factors)}f", *factors))


def test_scaled_frequencies_become_rope_scaling(made):
    assert config_of(with_factors(made, list(llama3_factors(32.0))))["rope_scaling"] == {
        "rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    }
    assert "that are not Llama 3's" in fault_of(with_factors(made, list(llama3_factors(8.0, 4096))))


@pytest.mark.parametrize(
    ("differs", "found"),
    [
        ({"block_count": None}, "llama.block_count missing"),
        ({"attention__head_count": (UINT, 0)}, "llama.attention.head_count 0"),
        ({"attention__head_count_kv": (ARRAY, (UINT, [2, 1]))},
         "llama.attention.head_count_kv that differs from layer to layer"),
        ({"rope__dimension_count": (UINT, 8)}, "8 rotated columns in heads of 16"),
        ({"rope__scaling__type": (TEXT, "longrope")}, "rotary embeddings scaled by longrope"),
        ({"tokenizer": [("tokenizer.ggml.model", TEXT, "rwkv")]}, "a tokenizer of the kind rwkv"),
        ({"tokenizer": []}, "a tokenizer of the kind None"),
        ({"tokenizer": [BYTES[0], ("tokenizer.ggml.pre", TEXT, "klingon"), *BYTES[2:]]},
         "a tokenizer whose words are cut as klingon says (tokenizer.ggml.pre)"),
        ({"tokenizer": [BYTES[0], *BYTES[2:]]},
         "a tokenizer whose words are cut as nothing says (tokenizer.ggml.pre)"),
        ({"tokenizer": BYTES[:4]}, "a tokenizer without merges"),
        ({"rope__freq_base": (TEXT, "x")}, "llama.rope.freq_base x"),
        ({"rope__freq_base": (FLOAT, math.nan)}, "llama.rope.freq_base nan"),
        ({"attention__layer_norm_rms_epsilon": (FLOAT, -1.0)}, "llama.attention.layer_norm_rms_epsilon -1.0"),
        ({"tokenizer": [("tokenizer.ggml.model", ARRAY, (TEXT, [])), *SENTENCEPIECE[1:]]},
         "tokenizer.ggml.model that is no text"),
        ({"tokenizer": [BYTES[0], ("tokenizer.ggml.pre", ARRAY, (TEXT, ["a"])), *BYTES[2:]]},
         "tokenizer.ggml.pre that is no text"),
        ({"tokenizer": [*SENTENCEPIECE[:3], ("tokenizer.ggml.token_type", UINT, 1), *SENTENCEPIECE[4:]]},
         "tokenizer.ggml.token_type that is no array of numbers"),
        ({"tokenizer": [BYTES[0], BYTES[1], ("tokenizer.ggml.tokens", ARRAY, (TEXT, ["a" * 5000])), *BYTES[3:]]},
         "a token of 5000 characters"),
        ({"tokenizer": SENTENCEPIECE[:2]}, "a tokenizer without a score for each token"),
    ],
)
def test_header_that_is_no_model_is_refused(made, differs, found):
    assert fault_of(made(**differs)) == found


@pytest.mark.parametrize("value", [0.0, math.nan, -1.0])
def test_factors_that_are_none_are_refused(made, value):
    assert "of 0 or less, or no number" in fault_of(with_factors(made, [value] * 8))


ODD = [(TEXT, ""), (TEXT, "x"), (UINT, 0), (UINT, 2**32 - 1), (5, -1), (10, 2**64 - 1), (FLOAT, math.nan),
       (FLOAT, math.inf), (BOOL, True), (ARRAY, (TEXT, ["a"])), (ARRAY, (TEXT, [])), (ARRAY, (UINT, [1, 2]))]


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "phi3"])
def test_odd_values_of_a_header_are_faults_at_worst(tmp_path, made, architecture):
    values = header_values(architecture, **{
        "rope__scaling__type": (TEXT, "linear"), "rope__scaling__factor": (FLOAT, 2.0),
        "attention__sliding_window": (UINT, 128), "rope__dimension_count": (UINT, 16),
    })
    for place, (name, _, _) in enumerate(values):
        for kind, value in ODD:
            changed = [*values[:place], (name, kind, value), *values[place + 1:]]
            path = write(tmp_path / "odd.gguf", layer(), changed)
            found = files.read_model(str(path))
            if not found["faults"]:
                gguf_model.write_model(str(path), str(tmp_path / "written"))


def test_weights_without_a_layer_are_refused(made):
    assert fault_of(made(tensors=[("token_embd.weight", (VOCABULARY, HIDDEN), Q4_0)])) == (
        "no token_embd.weight or no layer")


def test_gate_and_its_neighbor_count_in_one_form(made):
    """As they are kept: one matrix, in the form that holds the numbers of both."""

    def counted(gate, up):
        shape = (2, 32, HIDDEN)
        tensors = layer(("blk.0.ffn_gate_exps.weight", shape, gate), ("blk.0.ffn_up_exps.weight", shape, up))
        found = files.read_model(str(made(tensors=tensors, expert_count=(UINT, 2), expert_used_count=(UINT, 1))))
        return [item["dtype"] for item in found["tensors"] if "experts" in item["name"]]

    assert counted(Q4_0, Q4_0) == ["Q4_0", "Q4_0"]
    assert counted(Q4_0, Q8_0) == ["Q8_0", "Q8_0"]
    assert counted(F32, Q8_0) == ["F32", "F32"]


def test_shared_experts_of_another_form_are_refused(made):
    def shared(up):
        shape = (32, HIDDEN)
        return layer(("blk.0.ffn_gate_shexp.weight", shape, Q4_0), ("blk.0.ffn_up_shexp.weight", shape, up))

    granite = {"expert_count": (UINT, 2), "expert_used_count": (UINT, 1),
               "expert_shared_feed_forward_length": (UINT, 32)}
    found = files.read_model(str(made("granitemoe", tensors=shared(Q4_0), **granite)))
    assert found["config"]["architectures"] == ["GraniteMoeSharedForCausalLM"]
    assert [64, HIDDEN] in [item["shape"] for item in found["tensors"] if "shared_mlp.input_linear" in item["name"]]
    assert fault_of(made("granitemoe", tensors=shared(Q8_0), **granite)) == (
        "blk.0.ffn_gate_shexp.weight of the type Q4_0 beside Q8_0")


def test_stack_that_is_none_is_refused(made):
    tensors = layer(("blk.0.ffn_gate_exps.weight", (32, HIDDEN), Q4_0))
    assert fault_of(made(tensors=tensors, expert_count=(UINT, 2))) == "blk.0.ffn_gate_exps.weight of shape [32, 64]"


def test_sentencepiece_tokenizer(made):
    made_of = gguf_tokenizer.tokenizer_of(gguf.read_header(str(made())))
    # The token with the highest score is merged first; tokens that a text may hold as they are take no part.
    assert made_of["model"]["merges"] == [["a", "b"], ["\u2581", "a"], ["\u2581", "ab"], ["\u2581a", "b"]]
    assert made_of["model"]["byte_fallback"] and made_of["model"]["unk_token"] == "<unk>"
    added = {token["content"]: (token["id"], token["special"]) for token in made_of["added_tokens"]}
    assert added == {"<unk>": (0, True), "<s>": (1, True), "</s>": (2, True), "  ": (3, False),
                     "<end_of_turn>": (4, True)}
    assert made_of["post_processor"]["single"][0] == {"SpecialToken": {"id": "<s>", "type_id": 0}}
    assert [step["type"] for step in made_of["normalizer"]["normalizers"]] == ["Prepend", "Replace"]


def test_sentencepiece_tokenizer_without_prefix_and_begin(made):
    tokenizer = [*SENTENCEPIECE, ("tokenizer.ggml.add_space_prefix", BOOL, False),
                 ("tokenizer.ggml.add_bos_token", BOOL, False), ("tokenizer.ggml.add_eos_token", BOOL, True)]
    made_of = gguf_tokenizer.tokenizer_of(gguf.read_header(str(made(tokenizer=tokenizer))))
    assert [step["type"] for step in made_of["normalizer"]["normalizers"]] == ["Replace"]
    assert [next(iter(part.values()))["id"] for part in made_of["post_processor"]["single"]] == ["A", "</s>"]


def test_byte_level_tokenizer(made):
    made_of = gguf_tokenizer.tokenizer_of(gguf.read_header(str(made("qwen2", tokenizer=BYTES))))
    assert made_of["model"]["vocab"] == {word: number for number, word in enumerate(WORDS)}
    assert made_of["model"]["merges"] == [["a", "b"]] and made_of["post_processor"] is None
    split, in_bytes = made_of["pre_tokenizer"]["pretokenizers"]
    assert split["pattern"] == {"Regex": gguf_tokenizer.QWEN2} and not in_bytes["use_regex"]
    begins = [BYTES[0], ("tokenizer.ggml.pre", TEXT, "llama-bpe"), *BYTES[2:], ("tokenizer.ggml.bos_token_id", UINT, 3)]
    made_of = gguf_tokenizer.tokenizer_of(gguf.read_header(str(made("qwen2", tokenizer=begins))))
    assert made_of["model"]["ignore_merges"] and made_of["post_processor"]["special_tokens"]["\u0120"]["ids"] == [3]


def test_every_token_that_ends_an_answer_is_named(made):
    header = gguf.read_header(str(made()))
    assert gguf_tokenizer.generation_config_of(header) == {"eos_token_id": [2, 4]}


def test_directory_for_the_engine_is_written_anew(made, tmp_path):
    path, out = made(), tmp_path / "out"
    out.mkdir()
    (out / "left.txt").touch()
    gguf_model.write_model(str(path), str(out))
    assert sorted(file.name for file in out.iterdir()) == [
        "config.json", "generation_config.json", "m.gguf", "tokenizer.json", "tokenizer_config.json"]
    assert out.stat().st_mode & 0o777 == 0o700 and (out / "m.gguf").resolve() == path
    found = files.read_model(str(out))
    assert {**found, "alone": True} == files.read_model(str(path))
    assert json.loads((out / "tokenizer_config.json").read_text())["eos_token"] == "</s>"


def parts(path, count=3, change=lambda number, tensors, values: None, number_in_name=None):
    """Write a model in parts as gguf-split does: values in the first, and a share of the tensors in each."""
    whole = layer()
    for number in range(count):
        values = [("split.no", 2, number), ("split.count", 2, count), ("split.tensors.count", 5, len(whole))]
        tensors = whole[number::count]
        values += header_values("llama") if number == 0 else [("general.alignment", UINT, 64)]
        change(number, tensors, values)
        write(path / f"m-{number + 1:05d}-of-{count:05d}.gguf", tensors, values)
    return path


def test_parts_are_one_model(tmp_path, made):
    whole = files.read_model(str(made(name="whole.gguf")))
    (tmp_path / "parts").mkdir()
    directory = parts(tmp_path / "parts")
    assert files.read_model(str(directory)) == whole
    assert files.read_model(str(directory / "m-00001-of-00003.gguf")) == whole
    gguf_model.write_model(files.find_gguf_alone(str(directory)), str(tmp_path / "out"))
    assert len(list((tmp_path / "out").glob("*.gguf"))) == 3
    assert {**files.read_model(str(tmp_path / "out")), "alone": True} == whole


def test_part_that_is_missing_is_named(tmp_path):
    (parts(tmp_path) / "m-00002-of-00003.gguf").unlink()
    (fault,) = files.read_model(str(tmp_path))["faults"]
    assert fault["file"].endswith("m-00002-of-00003.gguf") and fault["found"] == "No such file or directory"


def test_first_part_that_is_missing_is_named(tmp_path):
    (parts(tmp_path) / "m-00001-of-00003.gguf").unlink()
    (fault,) = files.read_model(str(tmp_path))["faults"]
    assert fault["file"].endswith("m-00001-of-00003.gguf") and fault["found"] == "No such file or directory"


def test_part_that_is_cut_short_is_named(tmp_path):
    path = parts(tmp_path) / "m-00003-of-00003.gguf"
    path.write_bytes(path.read_bytes()[:-1])
    (fault,) = files.read_model(str(tmp_path))["faults"]
    assert fault["file"] == str(path) and fault["found"] == f"{path.stat().st_size} bytes"


def test_part_of_another_file_is_named(tmp_path):
    path = parts(tmp_path)
    # Files that carry each other's names, and one that was split elsewhere.
    (path / "m-00002-of-00003.gguf").rename(path / "x")
    (path / "m-00003-of-00003.gguf").rename(path / "m-00002-of-00003.gguf")
    (path / "x").rename(path / "m-00003-of-00003.gguf")
    assert fault_of(tmp_path) == "part 3 of 3"

    def twice(number, tensors, values):
        if number == 1:
            tensors[:] = layer()[::3]

    assert "which m-00001-of-00003.gguf has too" in fault_of(parts(tmp_path, change=twice))

    def fewer(number, tensors, values):
        if number == 1:
            del tensors[1:]

    assert fault_of(parts(tmp_path, change=fewer)) == "5 tensors in its 3 parts"


def test_part_is_no_model_by_itself(tmp_path):
    path = parts(tmp_path)
    assert fault_of(path / "m-00002-of-00003.gguf") == "part 2 of a split file"
    (path / "m-00001-of-00003.gguf").rename(path / "only.gguf")
    assert fault_of(path / "only.gguf") == "part 1 of 3 of a split file"


def test_two_models_in_parts_are_refused(tmp_path):
    parts(tmp_path)
    write(tmp_path / "n-00001-of-00002.gguf")
    assert "m-00001-of-00003.gguf, m-00002-of-00003.gguf" in fault_of(tmp_path)


def test_file_of_the_hub_is_read_in_its_cache(tmp_path):
    """Once all of its parts are there."""
    snapshot = tmp_path / "models--owner--name" / "snapshots" / "abc" / "q4"
    snapshot.mkdir(parents=True)
    model = "owner/name/q4/m-00001-of-00003.gguf"
    assert files.read_cached_model(str(tmp_path), f"{model}@abc") is None
    parts(snapshot)
    assert files.read_cached_model(str(tmp_path), f"{model}@abc") == files.read_model(str(snapshot))
    assert files.snapshot_of(str(tmp_path), model, "abc") == str(snapshot / "m-00001-of-00003.gguf")
    (snapshot / "m-00002-of-00003.gguf").unlink()
    assert files.read_cached_model(str(tmp_path), f"{model}@abc") is None


def test_pointer_of_git_lfs_is_named(tmp_path):
    (tmp_path / "m.gguf").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000000\n")
    assert fault_of(tmp_path) == "a pointer of git-lfs"
