"""Directories of models that are whole, corrupt or half copied."""

import json
import os
import struct
import time

import pytest
from checkpoints import entries, packed, write, write_index
from module_utils.checkpoint import files, heads
from module_utils.checkpoint.files import read_cached_model, read_model
from module_utils.hub import HubError, Repository

LAYER = {"model.layers.0.mlp.up_proj.weight": (3, 2), "model.layers.1.mlp.up_proj.weight": (3, 2), "norm.weight": (2,)}


def read(path):
    return read_model(str(path))


@pytest.fixture
def directory(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    return tmp_path


def faults(directory):
    facts = read(directory)
    assert facts["tensors"] == []
    assert all(all(fault.values()) for fault in facts["faults"])
    return [(fault["file"].rpartition("/")[2], fault["found"]) for fault in facts["faults"]]


def test_equal_tensors_of_layers_are_counted_together(directory):
    write(directory, LAYER)
    assert read(directory) == {
        "config": {"model_type": "llama"},
        "tokenizer": None,
        "generation": None,
        "faults": [],
        "tensors": [
            {"name": "model.layers.*.mlp.up_proj.weight", "dtype": "F16", "shape": [3, 2], "count": 2},
            {"name": "norm.weight", "dtype": "F16", "shape": [2], "count": 1},
        ],
    }


def test_numbers_that_belong_to_a_name_stay(directory):
    write(directory, {"h.0.experts.17.w1.weight": (1,), "0.a": (1,), "a.0": (1,), "up2.weight": (1,)})
    assert [tensor["name"] for tensor in read(directory)["tensors"]] == [
        "*.a", "a.0", "h.*.experts.*.w1.weight", "up2.weight"
    ]


def test_parts_are_read_by_their_index(directory):
    write_index(directory, {"a.safetensors": {"x.weight": (2, 2)}, "b.safetensors": {"y.weight": (2,)}})
    write(directory, {"stray": (9,)}, "other.safetensors")
    assert [tensor["name"] for tensor in read(directory)["tensors"]] == ["x.weight", "y.weight"]


def test_absent_path_is_none(tmp_path):
    assert read(tmp_path / "absent") is None


def test_a_config_alone(directory):
    assert read(directory / "config.json") == {
        "config": {"model_type": "llama"}, "tokenizer": None, "generation": None, "tensors": [], "faults": [],
    }


def test_the_class_of_the_tokenizer_is_read(directory):
    (directory / "tokenizer_config.json").write_text('{"tokenizer_class": "TokenizersBackend"}')
    assert read(directory)["tokenizer"] == {"tokenizer_class": "TokenizersBackend"}
    (directory / "tokenizer_config.json").write_text("half of")
    assert read(directory)["tokenizer"] is None


@pytest.mark.parametrize("name", ["pytorch_model.bin", "consolidated.pt"])
def test_pickled_weights_are_there_but_not_read(directory, name):
    (directory / name).write_bytes(b"PK")
    assert read(directory)["faults"] == []
    (directory / name).write_bytes(b"")
    assert faults(directory) == [(name, "an empty file")]


def test_a_part_of_pickled_weights_that_is_missing(directory):
    index = {"weight_map": {"x": "a.bin", "y": "b.bin"}}
    (directory / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (directory / "a.bin").write_bytes(b"PK")
    assert faults(directory) == [("b.bin", "no such file")]


def test_safetensors_go_before_pickled_weights(directory):
    (directory / "pytorch_model.bin").write_bytes(b"")
    (directory / "pytorch_model.bin.index.json").write_text("{}")
    write(directory, LAYER)
    assert len(read(directory)["tensors"]) == 2


@pytest.mark.parametrize("content", ["", "{", "[1]", '"x"', "\xff", "[" * 100000])
def test_a_config_that_is_no_mapping(directory, content):
    (directory / "config.json").write_text(content, encoding="latin-1")
    write(directory, LAYER)
    ((name, found),) = faults(directory)
    assert name == "config.json"
    assert "JSON" in found
    assert read(directory)["config"] is None


def test_a_directory_without_a_config(tmp_path):
    write(tmp_path, LAYER)
    assert faults(tmp_path) == [("config.json", "No such file or directory")]


def test_a_directory_without_weights(directory):
    assert faults(directory) == [(directory.name, "no weights")]


def test_a_part_that_is_missing(directory):
    write_index(directory, {"a.safetensors": {"x": (2,)}, "b.safetensors": {"y": (2,)}, "c.safetensors": {"z": (2,)}})
    (directory / "b.safetensors").unlink()
    (directory / "c.safetensors").unlink()
    assert faults(directory) == [("b.safetensors", "no such file"), ("c.safetensors", "no such file")]


def test_a_link_to_a_blob_that_is_gone(directory):
    """So a cache of the hub looks after a download that was broken off."""
    write_index(directory, {"a.safetensors": {"x": (2,)}})
    (directory / "a.safetensors").unlink()
    (directory / "a.safetensors").symlink_to(directory / "blobs" / "gone")
    assert faults(directory) == [("a.safetensors", "no such file")]


def test_a_part_without_a_tensor_of_the_index(directory):
    write_index(directory, {"a.safetensors": {"x": (2,), "y": (2,)}})
    write(directory, {"x": (2,)}, "a.safetensors")
    assert faults(directory) == [("a.safetensors", "no tensor y")]


@pytest.mark.parametrize("lost", [1, 5, 11])
def test_truncated_file_is_corrupt(directory, lost):
    path = write(directory, LAYER)
    whole = path.read_bytes()
    path.write_bytes(whole[:-lost])
    assert faults(directory) == [("model.safetensors", "%d bytes" % (len(whole) - lost))]
    assert str(len(whole)) in read(directory)["faults"][0]["expected"]


def test_every_length_of_a_file_but_the_whole_is_a_fault(directory):
    path = write(directory, LAYER)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert len(faults(directory)) == 1
    path.write_bytes(whole + b"\0")
    assert len(faults(directory)) == 1


@pytest.mark.parametrize(
    "entry",
    [
        None, [], {}, {"dtype": "F16", "shape": [2]}, {"dtype": "F17", "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [-2], "data_offsets": [0, 4]}, {"dtype": "F16", "shape": 2, "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [2], "data_offsets": [0]}, {"dtype": ["F16"], "shape": [2], "data_offsets": [0, 4]},
        {"dtype": "F16", "shape": [3], "data_offsets": [0, 4]}, {"dtype": "F16", "shape": [2], "data_offsets": [4, 0]},
    ],
)
def test_a_header_that_contradicts_itself(directory, entry):
    (directory / "model.safetensors").write_bytes(packed({"x": entry}, 4))
    ((name, found),) = faults(directory)
    assert name == "model.safetensors"
    assert "x" in found


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 7, b"\0" * 64, struct.pack("<Q", 1 << 62) + b"{}", struct.pack("<Q", 4) + b"{{{{",
                struct.pack("<Q", 2) + b"[]", b"version https://git-lfs.github.com/spec/v1\n"],
)
def test_a_file_that_is_no_safetensors(directory, content):
    (directory / "model.safetensors").write_bytes(content)
    ((name, _),) = faults(directory)
    assert name == "model.safetensors"


@pytest.mark.parametrize("weight_map", [None, {}, [], {"x": 1}, {"x": "../a"}, {"x": "/etc/passwd"}, {"x": ""}])
def test_an_index_that_names_no_files(directory, weight_map):
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    ((name, _),) = faults(directory)
    assert name == "model.safetensors.index.json"


def test_four_bit_elements_share_a_byte(directory):
    header = {"x": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}
    (directory / "model.safetensors").write_bytes(packed(header, 2))
    assert read(directory)["faults"] == []


def test_the_weights_themselves_are_not_read(directory):
    """A sparse file of a terabyte takes no time."""
    size = 1 << 40
    header, _ = entries({})
    header["x"] = {"dtype": "I8", "shape": [size], "data_offsets": [0, size]}
    with (directory / "model.safetensors").open("wb") as stream:
        stream.write(packed(header, 0))
        stream.truncate(stream.tell() + size)
    assert read(directory)["tensors"][0]["shape"] == [size]


COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path):
    """A cache that holds owner/name, of which one part was not fetched yet."""
    directory = tmp_path / "models--owner--name"
    snapshot = directory / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (directory / "refs").mkdir()
    (directory / "refs" / "main").write_text(COMMIT)
    (snapshot / "config.json").write_text('{"model_type": "llama"}')
    write_index(snapshot, {"a.safetensors": {"x": (2,)}, "b.safetensors": {"y": (2,)}})
    return tmp_path


@pytest.mark.parametrize("revision", ["main", COMMIT])
def test_a_model_of_the_hub_is_read_from_its_cache(hub, revision):
    facts = read_cached_model(str(hub), "owner/name@" + revision)
    assert facts["config"] == {"model_type": "llama"}
    assert [tensor["name"] for tensor in facts["tensors"]] == ["x", "y"]


def test_missing_file_of_cache_is_no_fault(hub):
    (hub / "models--owner--name" / "snapshots" / COMMIT / "b.safetensors").unlink()
    facts = read_cached_model(str(hub), "owner/name@main")
    assert (facts["tensors"], facts["faults"]) == ([], [])
    assert facts["config"] == {"model_type": "llama"}


def test_revision_that_leads_out_of_the_cache_is_not_read(hub):
    (hub / "elsewhere").mkdir()
    (hub / "elsewhere" / "config.json").write_text("{}")
    assert read_cached_model(str(hub), "owner/name@../../elsewhere") is None


@pytest.mark.parametrize("model", ["owner/name@other", "owner/name", "owner/other@main", "../..@main", "x@../../main"])
def test_absent_model_of_cache_is_none(hub, model):
    assert read_cached_model(str(hub), model) is None
    assert read_cached_model(None, model) is None


@pytest.mark.parametrize(
    "second", [[2, 6], [0, 4], [8, 12]],
)
def test_tensors_that_overlap_or_leave_bytes_are_corrupt(directory, second):
    """The format's own library would end the start of the server."""
    header = {"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]},
              "b": {"dtype": "F16", "shape": [2], "data_offsets": second}}
    (directory / "model.safetensors").write_bytes(packed(header, second[1]))
    ((name, found),) = faults(directory)
    assert name == "model.safetensors" and f"begins at byte {second[0]}" in found


def test_number_without_end_is_refused_at_once(directory):
    digits = "9" * 3_000_000
    (directory / "config.json").write_text('{"hidden_size": %s}' % digits)
    begun = time.monotonic()
    assert "a number of 3000000 digits" in dict(faults(directory))["config.json"]
    assert time.monotonic() - begun < 2
    header = b'{"x": {"dtype": "F16", "shape": [%s], "data_offsets": [0, 4]}}' % digits.encode()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    assert faults(directory) == [("model.safetensors", "a header that is no JSON mapping")]


def test_config_beyond_the_limit_is_not_read_whole(directory, monkeypatch):
    monkeypatch.setattr(files, "MAX_HEADER", 1000)
    (directory / "config.json").write_text("{%s}" % (" " * 1000))
    assert dict(faults(directory))["config.json"].startswith("more than")


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer_config.json"])
def test_pipe_in_place_of_a_file_blocks_nobody(directory, name):
    write(directory, {"x": [2]})
    if (directory / name).exists():
        (directory / name).unlink()
    os.mkfifo(directory / name)
    found = read_model(str(directory))
    assert name == "tokenizer_config.json" or [fault["found"] for fault in found["faults"]] == ["what is no plain file"]


def test_names_in_messages_are_short_and_printable(directory):
    header = {"x\n\x1b[31m" + "y" * 100000: None}
    (directory / "model.safetensors").write_bytes(packed(header, 0))
    ((_, found),) = faults(directory)
    assert len(found) < 500 and found.isprintable()


def test_two_sets_of_weights_are_named(directory):
    """The engine reads every file there is: the last one of a name counts."""
    for name in ("model.safetensors", "model.fp16.safetensors"):
        write(directory, {"x": [2], "y": [2]}, name)
    ((name, found),) = faults(directory)
    assert (name, found) == ("model.safetensors", "a tensor x, which model.fp16.safetensors has too")


def test_weights_of_an_adapter_beside_a_models_are_named(directory):
    write(directory, {"x": [2]})
    write(directory, {"lora": [2]}, "adapter_model.safetensors")
    ((name, found),) = faults(directory)
    assert (name, found) == ("adapter_model.safetensors", "the weights of an adapter beside a model's")
    (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "model.safetensors"}}))
    assert read(directory)["faults"] == []


@pytest.mark.parametrize(("names", "kept"), [
    (["model.safetensors", "model.fp16.safetensors", "adapter_model.safetensors"], ["model.safetensors"]),
    (["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "model.fp16-00001-of-00002.safetensors",
      "model-00001-of-00002.bf16.safetensors", "consolidated.safetensors"],
     ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]),
    (["model.fp16.safetensors"], ["model.fp16.safetensors"]), (["mtp.safetensors", "model.safetensors"],
                                                              ["model.safetensors", "mtp.safetensors"]),
])  # fmt: skip
def test_one_set_of_weights_is_fetched(names, kept):
    assert heads.choose(["config.json", *names]) == ["config.json", *kept]


@pytest.mark.parametrize("endpoint", ["hub.example", "http://", "http://127.0.0.1:1", "http://127.0.0.1:x", "ftp://["])
def test_address_of_a_hub_that_is_none_is_told(endpoint):
    with pytest.raises(HubError):
        Repository(endpoint, "owner/na me\n")
