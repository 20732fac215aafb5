"""Plan and preflight answer a quantization_config as the one reader does, which fetch and start ask directly."""

import runpy
from pathlib import Path

import pytest
from ansible_collections.kepler.vllm.plugins.filter.kepler_capacity import capacity_plan, model_findings
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint.engine import refusals
from known_models import LLAMA_7B
from rendered import PROFILE

CASES = runpy.run_path(str(Path(__file__).parents[1] / "checkpoint" / "quantization_cases.py"))["CASES"]


@pytest.mark.parametrize(("values", "scheme", "found"), CASES)
def test_plan_and_preflight_answer_as_the_reader(values, scheme, found):
    facts = {"config": {**LLAMA_7B, "quantization_config": values}, "tensors": [], "faults": []}
    reasons = refusals(facts["config"])
    assert [found in what for what, _ in reasons] == ([] if scheme else [True])
    plan = capacity_plan(facts, PROFILE)
    assert plan["refused"] == [what for what, _ in reasons]
    instance = {"name": "main", "model": "/m", "tensor_parallel_size": 1, "dtype": "float32"}
    findings = model_findings({"/m": facts}, [instance], PROFILE["gpu"], "cpu")
    assert [(finding["found"], finding["expected"]) for finding in findings] == reasons
    served = {row["storage"] for row in plan["layouts"] if row["served"]}
    assert served == ({f"int{scheme[0]}"} if scheme else set())
