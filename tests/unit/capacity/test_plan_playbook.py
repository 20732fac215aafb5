"""playbooks/plan.yml as it is run: directories, configs and a hub."""

import json

import gguf_files
import pytest
from ansible_run import ROOT, ansible_playbook
from checkpoints import entries, packed
from known_models import LLAMA_7B, LLAMA_13B
from small_hub import NAME, OLD_NAME, SHA, Hub


def plan(directory, *options, **environment):
    """(exit status, what was printed, with every run of white space as one space) of one run."""
    variables = [part for option in ("plan_profile=k80", *options) for part in ("-e", option)]
    environment = {"HF_TOKEN": "", "no_proxy": "127.0.0.1", **environment}
    done = ansible_playbook(directory, "-i", "localhost,", ROOT / "playbooks" / "plan.yml", *variables, **environment)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def hub():
    """A hub of one repository, which has a config alone."""
    made = Hub({"config.json": json.dumps(LLAMA_7B).encode(), "pytorch_model.bin": b"weights"})
    yield made
    made.stop()


def test_a_config_is_planned_and_written_as_json(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    status, printed = plan(tmp_path, "plan_model=config.json", "plan_json=plan.json", "plan_context=2048")
    assert status == 0, printed
    assert "Served in fp32 on 4 GPU(s), fp16 on 2 or 4 GPU(s)" in printed
    written = json.loads((tmp_path / "plan.json").read_text())
    assert (written["parameters"], written["context"]) == (6738415616, 2048)


def test_a_directory_without_weights_is_planned(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({**LLAMA_13B, "num_hidden_layers": 60}))
    status, printed = plan(tmp_path, f"plan_model={tmp_path}", "plan_max_num_seqs=8")
    assert status == 0, printed
    assert "It fits no layout of 1, 2, 4 GPUs" in printed


def test_a_model_of_the_hub_is_planned(hub, tmp_path):
    hub.key = "hf_secret"
    status, printed = plan(
        tmp_path, f"plan_model={NAME}", f"plan_revision={SHA}", HF_ENDPOINT=hub.endpoint + "/", HF_TOKEN="hf_secret"
    )
    assert status == 0, printed
    assert hub.asked == [("GET", "config.json")] and hub.keys == ["Bearer hf_secret"]
    assert "6,738,415,616" in printed or "6.74" in printed or "6,738" in printed
    assert "hf_secret" not in printed


FFN = {"gate": (96, 64), "up": (96, 64), "down": (64, 96)}


def test_gguf_file_of_the_hub_is_planned_by_its_header(hub, tmp_path):
    """Under the repository's old name: two redirects, of which the second goes to another host without the key."""
    tensors = gguf_files.layer(*[(f"blk.0.ffn_{name}.weight", shape, gguf_files.Q4_0) for name, shape in FFN.items()])
    made = gguf_files.write(tmp_path / "m.gguf", tensors, gguf_files.header_values("llama"))
    hub.files["m.gguf"] = made.read_bytes() + bytes(3 << 20)
    status, printed = plan(tmp_path, f"plan_model={OLD_NAME}/m.gguf", HF_ENDPOINT=hub.endpoint, HF_TOKEN="hf_secret")
    assert status == 0, printed
    assert "a GGUF file" in printed
    assert hub.sent["m.gguf"] < len(hub.files["m.gguf"]) and set(hub.sent) == {"m.gguf"}
    status, printed = plan(tmp_path, f"plan_model={NAME}/n.gguf", HF_ENDPOINT=hub.endpoint)
    assert status != 0 and "n.gguf: found no such file; expected a GGUF file of the repository: m.gguf" in printed


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"key": "hf_other"}, "found a gated repository (status 401); expected one that may be read"),
        ({"files": {"config.json": b"<html>", "pytorch_model.bin": b"w"}}, "what is no JSON"),
        ({"files": {"config.json": b"{}", "model.onnx": b"w"}}, "found weights as .onnx; expected *.safetensors"),
        ({"busy": 1}, ""),
    ],
)
def test_hub_that_gives_no_model_is_named(hub, tmp_path, change, found):
    """A hub that is busy is asked again when it says."""
    vars(hub).update(change)
    status, printed = plan(tmp_path, f"plan_model={NAME}", HF_ENDPOINT=hub.endpoint)
    assert (status != 0) == bool(found), printed
    assert found in printed and "Traceback" not in printed


def test_repository_that_is_not_there_is_named(hub, tmp_path):
    status, printed = plan(tmp_path, "plan_model=owner/name", HF_ENDPOINT=hub.endpoint)
    assert status != 0 and "found no such repository" in printed
    status, printed = plan(tmp_path, f"plan_model={NAME}", "plan_revision=v3", HF_ENDPOINT=hub.endpoint)
    assert status != 0 and f"found no such revision of {NAME}" in printed


def adapter_of(rank, columns):
    """The files of an adapter of a query projection of 4,096 rows."""
    base = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    weights = packed(*entries({f"{base}A.weight": (rank, columns), f"{base}B.weight": (4096, rank)}))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": 16, "base_model_name_or_path": NAME}
    return {"adapter_config.json": json.dumps(config).encode(), "adapter_model.safetensors": weights}


def test_adapters_of_hub_and_disk_are_planned(hub, tmp_path):
    """Their room is counted, and one of another base is refused before it is fetched."""
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_7B))
    hub.files = adapter_of(16, 4096)
    (tmp_path / "mine").mkdir()
    for name, content in hub.files.items():
        (tmp_path / "mine" / name).write_bytes(content)
    options = [f"plan_model={tmp_path / 'config.json'}", "plan_context=512"]
    weights = []
    for more in ([], [f"plan_adapters={NAME},{tmp_path / 'mine'}"]):
        status, printed = plan(tmp_path, *options, *more, "plan_json=plan.json", HF_ENDPOINT=hub.endpoint)
        assert status == 0, printed
        weights.append(json.loads((tmp_path / "plan.json").read_text())["layouts"][0]["weights"])
    assert weights[1] > weights[0]
    hub.files = adapter_of(16, 2048)
    status, printed = plan(tmp_path, *options, f"plan_adapters={NAME}", HF_ENDPOINT=hub.endpoint)
    assert status != 0
    assert f"plan_adapters: {NAME}: found model.layers.0.self_attn.q_proj of shapes" in printed


def test_a_hub_that_cannot_be_reached(tmp_path):
    status, printed = plan(tmp_path, "plan_model=owner/name", HF_ENDPOINT="http://127.0.0.1:1", HF_TOKEN="hf_secret")
    assert status != 0
    assert "found no answer of http://127.0.0.1:1" in printed and "set HF_ENDPOINT to a mirror" in printed
    assert "hf_secret" not in printed


@pytest.mark.parametrize("name", ["", "./absent", "a/b/c", "owner/na me"])
def test_what_is_no_model(tmp_path, name):
    status, printed = plan(tmp_path, json.dumps({"plan_model": name}), HF_ENDPOINT="http://127.0.0.1:1")
    assert status != 0
    assert f'plan_model: found "{name}"' in printed
    assert "Traceback" not in printed


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("plan_context=long", 'plan_context: found "long"; expected an integer'),
        ("plan_engine=fast", 'plan_engine: found "fast"; expected port'),
        ("plan_profile=p100", "plan_profile: found p100; expected one of"),
        ("plan_adapters=/absent,owner/adapter", "plan_adapters: found /absent, owner/adapter, of which one is no path"),
        ("plan_json=absent/plan.json", "plan_json: found"),
        ("plan_json=.", "plan_json: found"),
    ],
)
def test_option_that_makes_no_sense_asks_no_hub(hub, tmp_path, option, message):
    status, printed = plan(tmp_path, f"plan_model={NAME}", option, HF_ENDPOINT=hub.endpoint)
    assert status != 0
    assert message in printed and "conditional check" not in printed
    assert hub.asked == []
