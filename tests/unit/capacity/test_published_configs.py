"""Plan and preflight answer the config.json of a published model as the one reader does, which fetch and start ask."""

import runpy
from pathlib import Path

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.kepler.vllm.plugins.filter.kepler_capacity import capacity_plan, model_findings
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint.engine import refusals
from ansible_collections.kepler.vllm.plugins.plugin_utils.model_families import FAMILIES, text_config
from rendered import PROFILE

TABLE = Path(__file__).parents[1] / "checkpoint" / "published_configs.py"
PUBLISHED = runpy.run_path(str(TABLE))["PUBLISHED"]
# Of a family that the planner does not know it counts the files alone.
TENSOR = {"name": "model.layers.*.weight", "dtype": "BF16", "shape": [4096, 4096], "count": 32}


def planned(facts):
    """What the plan refuses, and whether it serves the model in any layout."""
    try:
        plan = capacity_plan(facts, PROFILE)
    except AnsibleFilterError as error:  # a model whose sizes nobody can read
        return [str(error)], False
    return plan["refused"], any(row["served"] for row in plan["layouts"])


@pytest.mark.parametrize(("config", "named"), [row[1:] for row in PUBLISHED], ids=[row[0] for row in PUBLISHED])
def test_plan_and_preflight_answer_as_the_reader(config, named):
    reasons = refusals(config)
    assert [named in found for found, _ in reasons] == ([True] if named else [])
    counted = named or text_config(config)["model_type"] in FAMILIES
    facts = {"config": config, "tensors": [] if counted else [TENSOR], "faults": []}
    instance = {"name": "main", "model": "/m", "tensor_parallel_size": 1, "dtype": "float32"}
    findings = model_findings({"/m": facts}, [instance], PROFILE["gpu"], "cpu")
    assert [(item["found"], item["expected"]) for item in findings if item["severity"] == "error"] == reasons
    refused, served = planned(facts)
    assert served == (not named)
    assert [named in found for found in refused] == ([True] if named else [])
