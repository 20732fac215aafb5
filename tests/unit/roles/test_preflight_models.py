"""The role preflight and the models that stand on a host."""

import json

import pytest
from ports import free_port

HOST = [{"name": "Judge", "ansible.builtin.import_role": {"name": "kepler.vllm.preflight", "tasks_from": "host"}}]
LLAMA_13B = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 5120, "intermediate_size": 13824,
    "num_hidden_layers": 40, "num_attention_heads": 40, "num_key_value_heads": 40, "vocab_size": 32000,
    "max_position_embeddings": 4096, "tie_word_embeddings": False,
}


@pytest.fixture
def judged(play, tmp_path):
    """Function that judges one instance of a model; gives what is found about it."""

    def run(config, weights=b"PK", reader="root", **variables):
        model = tmp_path / "model"
        model.mkdir()
        (model / "config.json").write_text(json.dumps(config))
        (model / "pytorch_model.bin").write_bytes(weights)
        status, output = play(HOST, variables={
            "vllm_service_instances": [{"name": "demo", "model": str(model), "port": free_port()}],
            "vllm_service_instance_defaults": {"gpus": [0, 1, 2, 3], "tensor_parallel_size": 4, "dtype": "float32"},
            "preflight_pci_root": str(tmp_path / "pci"),
            "vllm_service_user": reader,
            "preflight_json": str(tmp_path / "reports"),
            **variables,
        })
        report = tmp_path / "reports" / "box.json"
        assert status != 0, output  # this machine has no K80
        assert report.exists(), output
        return [
            item for item in json.loads(report.read_text())["findings"]
            if item["variable"].startswith("vllm_service_instances[0].") and "K80" not in item["expected"]
            and not item["variable"].endswith(".gpus")
        ]

    return run


def test_a_model_that_does_not_fit_is_found_with_the_numbers(judged):
    (found,) = judged(LLAMA_13B)
    assert found["severity"] == "error"
    assert "weights 12.13 GiB" in found["found"]
    assert "10.06 GiB" in found["expected"]
    assert "8 GPUs" in found["next_step"]


def test_on_another_device_its_files_alone_are_judged(judged, tmp_path):
    """And that the service can read them: pytest's own directories are closed to all but one user."""
    reader = "no-such-user-of-any-host"
    access, files = judged(LLAMA_13B, b"", reader, vllm_service_device="cpu")
    assert "an empty file" in files["found"]
    assert str(tmp_path).startswith(access["found"].partition(" (")[0])
    assert f"which the user {reader} cannot read" in access["found"]
