"""One model over two hosts with vLLM as it is released: its own ranks on each, with gloo in place of NCCL."""

import contextlib
import json
import os
import secrets
import signal
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from quantized_models import expected, fresh_model
from test_answers import CHUNK, MIXTURES, NATIVE
from tiny_models import assert_same
from two_hosts import HEAD, STAGE, environment_of, free_port, ids_of

SUPERVISOR = Path(__file__).resolve().parents[2] / "vllm_src"


def test_stages_on_two_hosts_answer_as_transformers(tmp_path, seed, monkeypatch):
    """Addresses of loopback stand for the hosts, and the units' own programs join them."""
    # Without it vLLM would share memory between the hosts.
    assert "standin" in metadata.entry_points(group="vllm.platform_plugins").names
    monkeypatch.setenv("PYTHONPATH", f"{os.environ['PYTHONPATH']}:{SUPERVISOR}")
    weights = fresh_model("llama", seed)
    weights.save_pretrained(tmp_path / "model")
    model = expected(weights, tmp_path / "model", **MIXTURES)
    port, token = free_port(), secrets.token_hex(16)
    options = {
        "max_model_len": model.context, "pipeline_parallel_size": 2, "distributed_executor_backend": "mp",
        "dtype": "float32", "enforce_eager": True, "max_num_batched_tokens": CHUNK, "max_num_seqs": 16,
    }  # fmt: skip
    request = {"model": str(model.directory), "prompts": model.prompts, "tokens": len(model.answers[0]),
               "options": {**options, "compilation_config": NATIVE}}  # fmt: skip
    written = {name.replace("_", "-"): value for name, value in options.items()}
    (tmp_path / "stage.yaml").write_text(json.dumps(
        {**written, "model": request["model"], "skip-tokenizer-init": True, "compilation-config": json.dumps(NATIVE)}
    ))  # fmt: skip
    with (tmp_path / "stage.log").open("wb") as log:
        stage = subprocess.Popen(
            [sys.executable, "-m", "vllm_serving.stage", "big", str(tmp_path / "stage.yaml")], stdout=log, stderr=log,
            env=environment_of(STAGE, port, 1, token), start_new_session=True,
        )  # fmt: skip
    try:
        ids = ids_of(request, environment_of(HEAD, port, 1, token), "-m", "vllm_serving.head", sys.executable)
        for part in (ids[:len(model.prompts)], ids[len(model.prompts):]):
            assert_same(model, part)
        assert stage.wait(20) == 1
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(stage.pid, signal.SIGKILL)
    said = (tmp_path / "stage.log").read_text()
    assert "lends 1 GPUs to" in said
    assert "the server is lost: it has closed the connection" in said
    assert token not in said
