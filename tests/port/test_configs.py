"""A config.json as transformers 5 writes it gives the answers of the one that transformers 4 wrote."""

import json
import re
import runpy
from pathlib import Path

import pytest
import tiny_models
import yaml
from ansible_collections.kepler.vllm.plugins.plugin_utils import engine_options
from ansible_collections.kepler.vllm.plugins.plugin_utils.capacity import Options
from ansible_collections.kepler.vllm.plugins.plugin_utils.model_families import DEFAULT_POSITIONS, read
from conftest import generate
from option_values import differences
from tiny_models import CONTEXT, WINDOW, assert_same
from vllm.engine.arg_utils import EngineArgs
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.platforms import current_platform
from vllm.utils import FlexibleArgumentParser
from vllm_serving.models import refusal

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = runpy.run_path(str(ROOT / "tests" / "unit" / "checkpoint" / "published_configs.py"))["PUBLISHED"]
HALF_HEAD = 16
SCALED = {
    "qwen3": ("qwen3", {"head_dim": 32, "rope_theta": 1000000.0}),
    "llama3": ("llama", {"rope_theta": 500000.0, "rope_scaling": {
        "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64}}),
    "linear": ("mistral", {"sliding_window": None, "rope_theta": 70000.0,
                           "rope_scaling": {"rope_type": "linear", "factor": 4.0}}),
    # transformers 4.51 takes the quotient of the positions for the factor: the same one here.
    "yarn": ("qwen2", {"rope_theta": 1000000.0, "rope_scaling": {
        "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": CONTEXT // 4}}),
    # The embedding, which is the head too, must not drown attention: each token would only repeat itself.
    "gemma3": ("gemma3_text", {
        "initializer_range": 0.05, "head_dim": 32, "query_pre_attn_scalar": 1, "sliding_window": WINDOW,
        "sliding_window_pattern": 2, "rope_theta": 300000.0, "rope_local_base_freq": 500.0,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0}}),
    # Prompts and answers are shorter than the original positions: which factors count does not depend on the batch.
    "longrope": ("phi3", {
        "rope_theta": 30000.0, "original_max_position_embeddings": 256, "rope_scaling": {
            "type": "longrope", "short_factor": [1.0 + n / 4 for n in range(HALF_HEAD)],
            "long_factor": [2.0 + n for n in range(HALF_HEAD)]}}),
}


def as_transformers_5_writes(said):
    """The same config with the keys of transformers 5, and none of those that it has given up."""
    said = dict(said)
    rope = {"rope_type": "default", **(said.pop("rope_scaling", None) or {}), "rope_theta": said.pop("rope_theta")}
    rope["rope_type"] = rope.pop("type", rope["rope_type"])
    if "original_max_position_embeddings" in said:
        rope["original_max_position_embeddings"] = said["original_max_position_embeddings"]
    every = said.pop("sliding_window_pattern", None)
    if every is not None:
        local = {"rope_type": "default", "rope_theta": said.pop("rope_local_base_freq")}
        rope = {"full_attention": rope, "sliding_attention": local}
        said["layer_types"] = [
            "sliding_attention" if (layer + 1) % every else "full_attention"
            for layer in range(said["num_hidden_layers"])
        ]
    said["dtype"] = said.pop("torch_dtype")
    return {**said, "rope_parameters": rope, "transformers_version": "5.0.0"}


@pytest.mark.parametrize("name", SCALED)
def test_the_rotary_embedding_is_the_models(engine, tmp_path, seed, monkeypatch, name):
    monkeypatch.setitem(tiny_models.FAMILIES, name, SCALED[name])
    model = tiny_models.make(name, tmp_path, seed)
    path = tmp_path / "config.json"
    said = as_transformers_5_writes(json.loads(path.read_text()))
    assert not {"rope_theta", "rope_scaling", "torch_dtype", "sliding_window_pattern"} & set(said)
    path.write_text(json.dumps(said))
    assert_same(model, generate(engine(model), model.prompts))


def test_what_the_engine_cannot_be_told_is_refused_by_name(engine, tmp_path, seed):
    model = tiny_models.make("llama", tmp_path, seed, lengths=(1,), tokens=1)
    path = tmp_path / "config.json"
    said = json.loads(path.read_text())
    said["rope_parameters"] = {"rope_type": "proportional", "rope_theta": said.pop("rope_theta")}
    path.write_text(json.dumps(said))
    with pytest.raises(ValueError, match="rope_type proportional"):
        engine(model)


def test_known_names_equal_installed_packages():
    written = runpy.run_path(str(ROOT / "vllm_src" / "engine_models.py"))
    assert (ROOT / "plugins/module_utils/checkpoint/engine_models.py").read_text() == written["module"]()


def test_values_are_read_as_the_engine_reads_them():
    assert list(differences("port")) == []


@pytest.fixture
def fetch(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "plugins" / "module_utils"))
    return runpy.run_path(str(ROOT / "roles" / "models" / "files" / "fetch.py"))


@pytest.mark.parametrize(("config", "named"), [row[1:] for row in PUBLISHED], ids=[row[0] for row in PUBLISHED])
def test_fetch_start_and_engine_answer_as_the_table(tmp_path, monkeypatch, fetch, config, named):
    # With a dtype vLLM does not look for the weights' own.
    (tmp_path / "config.json").write_text(json.dumps({"torch_dtype": "bfloat16", **config}))
    facts = {"config": config, "tensors": [], "tokenizer": None, "faults": []}
    judged = (facts, "config.json", [{"engine": "port", "options": {}}], None)
    if named:
        assert named in refusal({"model": str(tmp_path)}, {})
        with pytest.raises(fetch["FetchError"], match=re.escape(named)):
            fetch["check_facts"](*judged)
        return
    assert refusal({"model": str(tmp_path)}, {}) is None
    fetch["check_facts"](*judged)
    # As on a GPU, where long prompts are chunked.
    monkeypatch.setattr(type(current_platform), "is_cuda", lambda platform: True)
    made = EngineArgs(str(tmp_path), skip_tokenizer_init=True, dtype="float32").create_engine_config()
    assert made.model_config.architectures == config["architectures"]
    assert made.model_config.runner_type == "generate"
    planned, batch = read(config), made.scheduler_config
    length = planned.positions or DEFAULT_POSITIONS
    assert made.model_config.max_model_len == length
    assert batch.max_num_batched_tokens == Options(0, 0, batch.max_num_seqs).batched_tokens(planned, length)


def test_what_is_off_in_a_file_of_options_is_off_for_vllm(tmp_path):
    given = dict.fromkeys(("enable-chunked-prefill", "enable-prefix-caching", "use-tqdm-on-load"), False)
    path = tmp_path / "options.yaml"
    path.write_text(yaml.safe_dump(engine_options.written(given)))
    parser = FlexibleArgumentParser()
    ServeSubcommand().subparser_init(parser.add_subparsers())
    said = vars(parser.parse_args(["serve", "model", "--config", str(path)]))
    assert {said[name.replace("-", "_")] for name in given} == {False}
