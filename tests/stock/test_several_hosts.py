"""One model over two hosts with vLLM as it is released: its own Ray executor, with gloo in place of NCCL."""

import os
from importlib import metadata
from pathlib import Path

from quantized_models import expected, fresh_model
from test_answers import CHUNK, MIXTURES, NATIVE
from tiny_models import assert_same
from two_hosts import free_port, two_hosts

SUPERVISOR = Path(__file__).resolve().parents[2] / "vllm_src"


def test_stages_on_two_hosts_answer_as_transformers(tmp_path, seed, monkeypatch):
    """Addresses of loopback stand for the hosts; hidden states pass through vLLM's own communicator of the stages."""
    # Without it vLLM would take processes of one host for ranks.
    assert "standin" in metadata.entry_points(group="vllm.platform_plugins").names
    monkeypatch.setenv("PYTHONPATH", ":".join([os.environ["PYTHONPATH"], os.environ["STOCK_RAY"], str(SUPERVISOR)]))
    weights = fresh_model("llama", seed)
    weights.save_pretrained(tmp_path / "model")
    # Few tokens: engine and ranks poll for each, and a machine of two cores has fewer than they are.
    model = expected(weights, tmp_path / "model", **MIXTURES)
    with two_hosts(free_port(), 1, tmp_path / "nodes.log") as hosts:
        ids = hosts.serve(model, dtype="float32", enforce_eager=True, max_num_batched_tokens=CHUNK,
                          compilation_config=NATIVE)  # fmt: skip
    for part in (ids[:len(model.prompts)], ids[len(model.prompts):]):
        assert_same(model, part)
