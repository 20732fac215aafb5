"""Headers of GGUF files, and files that are refused."""

import json
import struct
import time

import pytest
from gguf_files import F32, TENSORS, VALUES, text, write
from module_utils.checkpoint import files


@pytest.fixture
def directory(tmp_path):
    write_config(tmp_path)
    return tmp_path


def write_config(directory, **differs):
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
    config = dict({"model_type": "llama", "rope_scaling": scaling}, **differs)
    (directory / "config.json").write_text(json.dumps(config))


def fault(directory):
    (error,) = files.read_model(str(directory))["faults"]
    return error["found"]


def test_tensors_have_the_names_of_the_model(directory):
    write(directory / "any.gguf")
    model = files.read_model(str(directory))
    assert model["faults"] == []
    assert model["tensors"] == [
        {"name": "model.embed_tokens.weight", "dtype": "Q6_K", "shape": [96, 256], "count": 1},
        {"name": "model.layers.*.input_layernorm.weight", "dtype": "F32", "shape": [256], "count": 1},
        {"name": "model.layers.*.mlp.down_proj.weight", "dtype": "Q6_K", "shape": [256, 512], "count": 1},
        {"name": "model.layers.*.self_attn.q_proj.weight", "dtype": "Q4_K", "shape": [256, 256], "count": 2},
        {"name": "model.norm.weight", "dtype": "F32", "shape": [256], "count": 1},
    ]


def test_truncated_file_is_corrupt(directory):
    path = write(directory / "any.gguf", TENSORS[:2])
    whole = path.read_bytes()
    for length in [*range(0, 500, 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        assert fault(directory) == "%d bytes" % length


@pytest.mark.parametrize(
    ("changed", "found", "expected"),
    [
        ({"tensors": [("blk.0.ffn_up.weight", (256, 256), 20)]}, "weights of the type IQ4_NL (blk.0.ffn_up.weight)",
         "Q4_K"),
        ({"tensors": [("blk.0.ffn_up.weight", (256, 256), 99)]}, "weights of the type number 99 (blk.0.ffn_up.weight)",
         "Q4_K"),
        ({"tensors": [("blk.0.ffn_up_exps.weight", (2, 8, 256), 2)]}, "a tensor blk.0.ffn_up_exps.weight", "llama"),
        ({"values": [("general.architecture", 8, "rwkv7")]}, "the architecture rwkv7", "qwen3moe"),
        ({"values": []}, "the architecture None", "gemma3"),
    ],
)
def test_unsupported_file_is_named(directory, changed, found, expected):
    write(directory / "any.gguf", **changed)
    (error,) = files.read_model(str(directory))["faults"]
    assert error["found"] == found and expected in error["expected"]


@pytest.mark.parametrize(
    ("version", "found"),
    [(1, "a GGUF file of version 1"), (4, "a GGUF file of version 4"), (3 << 24, "a big-endian GGUF file")],
)
def test_other_versions_are_named(directory, version, found):
    write(directory / "any.gguf", version=version)
    assert fault(directory) == found


@pytest.mark.parametrize("name", ["any.gguf", "model.safetensors"])
def test_git_lfs_pointer_is_named(directory, name):
    (directory / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1000000\n")
    (error,) = files.read_model(str(directory))["faults"]
    assert error["found"] == "a pointer of git-lfs" and "git lfs pull" in error["expected"]


@pytest.mark.parametrize(
    ("config", "found"),
    [
        ({"model_type": "gemma"}, "the architecture llama beside a config.json of a gemma"),
        ({"model_type": None}, "the architecture llama beside a config.json of a None"),
        ({"rope_scaling": None}, "scaled rotary frequencies (rope_freqs.weight) and no rope_scaling in config.json"),
    ],
)
def test_config_of_another_model_is_refused(directory, config, found):
    write(directory / "any.gguf")
    write_config(directory, **config)
    assert fault(directory) == found


def test_config_of_mistral_fits_file_of_llama(directory):
    write(directory / "any.gguf")
    scaled = {"rope_type": "linear", "factor": 2.0}
    write_config(directory, model_type="mistral", rope_scaling=None, rope_parameters=scaled)
    assert files.read_model(str(directory))["faults"] == []


def test_several_files_are_refused(directory):
    for name in ("b.gguf", "a.gguf", "mmproj-a.gguf"):
        write(directory / name)
    assert fault(directory) == "a.gguf, b.gguf"
    (directory / "config.json").unlink()
    assert fault(directory) == "a.gguf, b.gguf"


def test_projector_of_images_is_passed_over(directory):
    for name in ("a.gguf", "mmproj-a.gguf"):
        write(directory / name)
    assert files.read_model(str(directory))["faults"] == []


def test_suffix_may_be_in_capitals(directory):
    write(directory / "ANY.GGUF")
    assert files.read_model(str(directory))["faults"] == []


@pytest.mark.parametrize("value", [
    ("general.alignment", 8, "x"), ("general.alignment", 4, 0), ("split.count", 8, "2"), ("split.no", 6, 0.5),
])
def test_value_of_another_kind_is_corrupt(directory, value):
    path = write(directory / "any.gguf", values=[VALUES[0], value])
    assert fault(directory) == "%d bytes" % path.stat().st_size


def test_safetensors_are_preferred(directory):
    write(directory / "any.gguf")
    (directory / "model.safetensors").write_bytes(b"")
    assert "begin with no header" in fault(directory)


@pytest.mark.parametrize(("place", "count"), [(8, 1 << 40), (16, 1 << 40), (8, (1 << 64) - 1), (16, (1 << 64) - 1)])
def test_damaged_count_takes_neither_time_nor_memory(directory, place, count):
    """A download that was laid out as zeros: each of them reads as a value or a tensor."""
    path = write(directory / "m.gguf")
    content = bytearray(path.read_bytes())
    struct.pack_into("<Q", content, place, count)
    path.write_bytes(content)
    with path.open("r+b") as stream:
        stream.truncate(1 << 36)
    begun = time.monotonic()
    assert "bytes" in fault(directory)
    assert time.monotonic() - begun < 2


def test_array_of_all_a_file_has_is_corrupt(directory):
    path = write(directory / "m.gguf", values=[])
    start = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + text("a") + struct.pack("<IIQ", 9, 0, 1 << 34)
    path.write_bytes(start)
    with path.open("r+b") as stream:
        stream.truncate(1 << 36)
    assert "bytes" in fault(directory)


@pytest.mark.parametrize("shape", [(), (0,), (0, 256), (256, 0), (1 << 40, 0)])
def test_tensor_without_elements_is_corrupt(directory, shape):
    write(directory / "m.gguf", tensors=[("blk.0.attn_norm.weight", shape, F32)])
    assert "bytes" in fault(directory)


def test_tensor_that_is_there_twice_is_corrupt(directory):
    write(directory / "m.gguf", tensors=[TENSORS[3]] * 2)
    assert "bytes" in fault(directory)
