"""Fetching models with the hub's real client, from a small hub on loopback."""

import hashlib
import json
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint.heads import BEGIN
from gguf import GGMLQuantizationType, GGUFWriter, quantize
from small_hub import NAME, OLD_NAME, SHA, Hub

FETCH = Path(__file__).resolve().parents[2] / "roles" / "models" / "files" / "fetch.py"
# The role installs the reader of checkpoints beside the program.
READER = FETCH.parents[3] / "plugins" / "module_utils"
CONFIG = b'{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}'


def weights(size=300_000, name="model.norm.weight"):
    """A safetensors file of one tensor of random bytes."""
    header = json.dumps({name: {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}}).encode()
    return struct.pack("<Q", len(header)) + header + os.urandom(size)


@pytest.fixture
def hub():
    made = Hub({
        "config.json": CONFIG, "tokenizer.json": b"{}", "README.md": b"# Tiny",
        "model.safetensors": weights(), "original/consolidated.00.pth": b"x" * 10,
    })
    yield made
    made.stop()


@pytest.fixture
def fetch(hub, tmp_path):
    """Function that fetches as the unit does: (exit status, record or None, message or None)."""
    kept = tmp_path / "kept"
    kept.mkdir()

    def run(name=NAME, revision=SHA, expected=None, before="", options=None, **environment):
        for path in kept.iterdir():
            path.unlink()
        asked = json.dumps({"name": name, "revision": revision, "directory": str(kept), "expected": expected or {},
                            "uses": [{"engine": "port", "options": options or {}}], "capability": None})
        done = subprocess.run(
            [sys.executable, "-c", f"import runpy, shutil, sys\n{before}\nsys.argv = sys.argv[1:]\n"
             "runpy.run_path(sys.argv[0], run_name='__main__')", str(FETCH), asked],
            env={
                **os.environ, "HF_HOME": str(tmp_path / "cache"), "HF_ENDPOINT": hub.endpoint, "NO_PROXY": "127.0.0.1",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(READER), **environment,
            },
            capture_output=True, text=True, timeout=300,
        )
        assert "Traceback" not in done.stderr, done.stderr[-3000:]
        record, fault = kept / "record.json", kept / "fault.json"
        return (
            done.returncode, json.loads(record.read_text()) if record.exists() else None,
            json.loads(fault.read_text())["msg"] if fault.exists() else None,
        )

    return run


def assert_not_fetched(hub):
    """Of the weights the header was read, and no more."""
    assert hub.sent.get("model.safetensors", 0) <= BEGIN < len(hub.files["model.safetensors"])


def test_a_model_is_fetched_and_verified(hub, fetch):
    status, record, fault = fetch()
    assert (status, fault) == (0, None)
    assert set(record["files"]) == {"config.json", "tokenizer.json", "model.safetensors"}
    for name, file in record["files"].items():
        content = (Path(record["path"]) / name).read_bytes()
        assert content == hub.files[name]
        assert file == {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    sent = dict(hub.sent)
    assert fetch()[0] == 0
    assert hub.sent == sent


def test_a_branch_becomes_a_commit(fetch):
    _, record, _ = fetch(revision="main")
    assert (record["asked"], record["revision"]) == ("main", SHA)


def test_what_broke_off_goes_on_from_there(hub, fetch):
    """The client keeps whole parts of ten MiB."""
    hub.files["model.safetensors"] = weights(24 << 20)
    hub.cut = 15 << 20
    status, record, fault = fetch()
    assert status == 1
    assert record is None
    assert "Run again: what was fetched is kept" in fault
    hub.cut, hub.sent = None, {}
    assert fetch()[0] == 0
    assert hub.sent["model.safetensors"] == len(hub.files["model.safetensors"]) - (10 << 20) + BEGIN


def test_a_file_that_is_not_what_the_hub_says_is_removed(hub, fetch):
    right = hub.files["model.safetensors"]
    hub.shown["model.safetensors"] = right
    hub.files["model.safetensors"] = right[:-1] + bytes([right[-1] ^ 1])
    status, _, fault = fetch()
    assert status == 1
    assert "model.safetensors: found sha256" in fault
    assert "which the hub says" in fault
    hub.files["model.safetensors"] = right
    assert fetch()[0] == 0


def test_a_file_that_is_not_what_was_recorded(hub, fetch):
    _, record, _ = fetch()
    recorded = {name: file["sha256"] for name, file in record["files"].items()}
    assert fetch(expected=recorded)[0] == 0
    status, _, fault = fetch(expected={**recorded, "tokenizer.json": "0" * 64})
    assert status == 1
    assert "tokenizer.json" in fault
    assert "expected the recorded " + "0" * 64 in fault
    status, _, fault = fetch(expected={**recorded, "more.json": "0" * 64})
    assert "found no more.json" in fault


def test_quantized_weights_are_not_even_fetched(hub, fetch):
    said = {"quantization_config": {"quant_method": "fp8"}}
    hub.files["config.json"] = json.dumps({**json.loads(CONFIG), **said}).encode()
    status, _, fault = fetch()
    assert status == 1
    assert "quantized with fp8" in fault
    assert "GPTQ of 4 or 8 bits" in fault
    assert_not_fetched(hub)


def test_quantized_weights_that_are_served_are_fetched(hub, fetch):
    said = {"quantization_config": {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False}}
    hub.files["config.json"] = json.dumps({**json.loads(CONFIG), **said}).encode()
    hub.files["model.safetensors"] = weights(name="model.layers.0.mlp.down_proj.qweight")
    status, found, fault = fetch()
    assert (status, fault) == (0, None)
    assert "model.safetensors" in found["files"]


@pytest.mark.parametrize(
    ("change", "tokenizer", "named"),
    [
        ({"model_type": "smollm3", "architectures": ["SmolLM3ForCausalLM"]}, {}, "smollm3"),
        ({"architectures": ["LlamaForSequenceClassification"]}, {}, "generates no text"),
        ({"model_type": "novelty", "auto_map": {"AutoConfig": "c.C"}}, {}, "auto_map"),
        ({"rope_parameters": {"rope_type": "proportional"}}, {}, "rope_parameters.rope_type"),
        ({}, {"tokenizer_class": "SentencePieceBackend"}, "SentencePieceBackend"),
    ],
)
def test_what_the_engine_does_not_know_is_not_fetched(hub, fetch, change, tokenizer, named):
    hub.files["config.json"] = json.dumps({**json.loads(CONFIG), **change}).encode()
    hub.files["tokenizer_config.json"] = json.dumps(tokenizer).encode()
    status, _, fault = fetch()
    assert status == 1
    assert named in fault
    assert_not_fetched(hub)


def test_other_formats(hub, fetch):
    hub.files = {"config.json": CONFIG, "model.gguf": b"GGUF"}
    assert "the repository: found weights as .gguf; expected *.safetensors" in fetch()[2]
    hub.files = {"config.json": CONFIG}
    assert "found no weights" in fetch()[2]
    hub.files = {"config.json": CONFIG, "pytorch_model.bin": b"weights", "training_args.bin": b"no"}
    assert set(fetch()[1]["files"]) == {"config.json", "pytorch_model.bin"}


def gguf_file(directory, kind=GGMLQuantizationType.Q8_0, tokenizer="llama", split=0):
    """Contents of a GGUF file, or of its parts, by their names: a layer of a Llama, with a header of 2 MB."""
    writer = GGUFWriter(directory / "m.gguf", "llama", split_max_tensors=split)
    writer.add_context_length(512)
    writer.add_embedding_length(256)
    writer.add_block_count(1)
    writer.add_feed_forward_length(512)
    writer.add_head_count(4)
    writer.add_layer_norm_rms_eps(1e-5)
    tokens = [f"token {number} {'x' * 20}" for number in range(60_000)]
    writer.add_tokenizer_model(tokenizer)
    writer.add_token_list(tokens)
    writer.add_token_scores([0.0] * len(tokens))
    writer.add_tensor("token_embd.weight", numpy.zeros((60_000, 256), numpy.float16))
    for name in ("q", "k", "v", "output"):
        data = quantize(numpy.zeros((256, 256), numpy.float32), kind)
        writer.add_tensor(f"blk.0.attn_{name}.weight", data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return {path.name: path.read_bytes() for path in sorted(directory.glob("*.gguf"))}


@pytest.mark.parametrize("split", [0, 2])
def test_gguf_file_of_a_repository_is_fetched(hub, fetch, tmp_path, split):
    """Alone: with all of its parts, and without the other files."""
    (tmp_path / "made").mkdir()
    made = gguf_file(tmp_path / "made", split=split)
    hub.files.update(made)
    status, record, fault = fetch(name=f"{NAME}/{min(made)}")
    assert (status, fault) == (0, None)
    assert set(record["files"]) == set(made) and len(made) == (3 if split else 1)
    assert (Path(record["path"]) / min(made)).read_bytes() == made[min(made)]
    assert record["name"] == f"{NAME}/{min(made)}"


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"tokenizer": "bert"}, "m.gguf: found a tokenizer of the kind bert; expected"),
        ({"kind": GGMLQuantizationType.TQ1_0}, "found weights of the type TQ1_0 (blk.0.attn_q.weight)"),
    ],
)
def test_gguf_file_that_is_not_served_is_not_fetched(hub, fetch, tmp_path, options, named):
    """Nothing of it is in the cache; of a file that only its tokenizer rules out the header is read."""
    (tmp_path / "made").mkdir()
    hub.files.update(gguf_file(tmp_path / "made", **options))
    status, _, fault = fetch(name=f"{NAME}/m.gguf")
    assert status == 1 and named in fault
    assert not list((tmp_path / "cache").rglob("blobs/*"))
    assert "tokenizer" not in options or hub.sent["m.gguf"] < len(hub.files["m.gguf"])


def test_gguf_file_that_is_not_there_is_named(hub, fetch):
    hub.files["q4/a-00001-of-00002.gguf"] = hub.files["b.gguf"] = b"GGUF"
    fault = fetch(name=f"{NAME}/c.gguf")[2]
    assert "c.gguf: found no such file; expected a GGUF file of the repository: b.gguf, q4/a-00001" in fault
    assert "q4/a-00002-of-00002.gguf: found no such file" in fetch(name=f"{NAME}/q4/a-00001-of-00002.gguf")[2]


def test_a_disk_that_is_too_small(hub, fetch):
    status, _, fault = fetch(before="shutil.disk_usage = lambda path: type('U', (), {'free': 1000})")
    assert status == 1
    assert "0.0 GiB free" in fault
    assert_not_fetched(hub)


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"name": "owner/other"}, "found no such repository"),
        ({"revision": "f" * 40}, "found no such revision"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "expected an answer of http://127.0.0.1:9"),
    ],
)
def test_what_is_not_there(fetch, asked, said):
    status, _, fault = fetch(**asked)
    assert status == 1
    assert said in fault


def test_options_of_the_server_count_before_the_fetch(hub, fetch):
    """As preflight judges: keys that it overrides, and a tokenizer of its own."""
    hub.files["config.json"] = json.dumps({**json.loads(CONFIG), "model_type": "smollm3"}).encode()
    hub.files["tokenizer_config.json"] = b'{"tokenizer_class": "SentencePieceBackend"}'
    overrides = json.dumps({"model_type": "llama"})
    assert "smollm3" in fetch()[2]
    assert "SentencePieceBackend" in fetch(options={"hf-overrides": overrides})[2]
    status, _, fault = fetch(options={"hf-overrides": overrides, "tokenizer": "/srv/tokenizer"})
    assert (status, fault) == (0, None)
    assert "state-space" in fetch(options={"hf-overrides": json.dumps({"model_type": "mamba"})})[2]


def test_headers_are_judged_before_the_fetch(hub, fetch):
    """A quantized router, and a file that is no safetensors file."""
    hub.files["model.safetensors"] = weights(name="model.layers.0.mlp.gate.qweight")
    assert "a quantized router (model.layers.*.mlp.gate.qweight)" in fetch()[2]
    assert_not_fetched(hub)
    hub.files["model.safetensors"], hub.sent = os.urandom(300_000), {}
    assert "model.safetensors: found 300000 bytes that begin with no header" in fetch()[2]
    assert_not_fetched(hub)


def test_hub_that_moves_hides_or_delays_is_followed(hub, fetch):
    """An old name, a key that the host of the files does not get, and a hub that has too much to do."""
    assert fetch(name=OLD_NAME)[0] == 0
    hub.key = "hf_secret"
    status, _, fault = fetch(revision="main")
    hub.files["more.json"] = b"{}"
    status, _, fault = fetch()
    assert status == 1 and "found a gated repository" in fault and "models_token_file" in fault
    hub.busy = 1
    assert fetch(HF_TOKEN="hf_secret")[0] == 0
    assert hub.keys[-1] == "Bearer hf_secret" and not hub.busy
