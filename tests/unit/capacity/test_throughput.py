"""Throughput that a plan predicts from a profile's figures of a step."""

import math
import sys
from pathlib import Path

import pytest
from ansible_collections.kepler.vllm.plugins.filter.kepler_capacity import capacity_plan, capacity_table
from ansible_collections.kepler.vllm.plugins.plugin_utils import throughput
from ansible_collections.kepler.vllm.plugins.plugin_utils.capacity import STORAGES
from ansible_collections.kepler.vllm.plugins.plugin_utils.model_families import read, tensors_of
from known_models import LLAMA_8B, MIXTRAL
from rendered import PROFILE

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "gpu"))
import k80_model

STEP = PROFILE["gpu"]["step"]
MODEL = read(LLAMA_8B)
TENSORS = tensors_of(MODEL)


def planned(config, profile=PROFILE, **asked):
    return capacity_plan({"config": config, "tensors": [], "faults": []}, profile, **asked)


def test_the_profile_has_the_figures_of_the_machine_code():
    """k80_model counts them; tests/kernels compares it with what the compiler wrote."""
    bits = {"float16": "16", "int8": "8", "int4": "4"}
    counted = {which: kernel.clocks()[0] for which, kernel in k80_model.KERNELS.items()}
    for (weights, rows), clocks in counted.items():
        assert STEP["clocks"][bits[weights]][str(rows)] == pytest.approx(clocks, rel=5e-3), (weights, rows)
    assert (STEP["multiprocessors"], STEP["bandwidth"]) == (k80_model.SMS, k80_model.BANDWIDTH)
    assert STEP["clock"] in k80_model.CLOCKS.values()
    assert (STEP["launch"], STEP["launches"], STEP["sum"]) == (
        k80_model.LAUNCH, k80_model.LAUNCHES, k80_model.ALL_REDUCE)


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, 0.02), (1.5, 0.025), (5, 0.065), (8, 0.1), (12, 0.125), (16, 0.15), (17, 0.3)])
def test_products_take_time_row_by_row(rows, expected):
    known = {"1": 0.02, "2": 0.03, "8": 0.1, "16": 0.15}
    assert throughput.clocks(known, rows) == pytest.approx(expected)
    assert throughput.clocks({"1": 0.01}, rows) == pytest.approx(math.ceil(rows) * 0.01)


@pytest.mark.parametrize("storage", ["fp32", "fp16", "int8", "int4"])
@pytest.mark.parametrize("gpus", [1, 4])
def test_more_sequences_never_decode_fewer_tokens(storage, gpus):
    """All of a K80 host's predictions, eager and with graphs."""
    found = throughput.predicted(STEP, MODEL, TENSORS, gpus, STORAGES[storage], 256, 64)
    for way in ("eager", "graphs"):
        rates = [one[way] for one in found]
        assert rates == sorted(rates), (way, rates)


@pytest.mark.parametrize(("sequences", "bound"), [(1, "memory"), (16, "arithmetic")])
def test_a_product_takes_memory_or_arithmetic(sequences, bound):
    """The gate and up matrices of Llama 3 8B in 4 bits: 58,720,256 weights, and a scale for each 128."""
    up = next(tensor for tensor in TENSORS if "up_proj" in tensor.name)
    weights = 14336 * 4096
    expected = {
        "memory": weights * (0.5 + 4 / 128) / 130e9, "arithmetic": weights * 0.187 / (13 * 562e6),
    }[bound] * up.count
    found = throughput.product_seconds(STEP, up, MODEL, 1, STORAGES["int4"], sequences)
    assert found == pytest.approx(expected, rel=0.05)


def test_few_sequences_read_few_experts():
    model = read(MIXTRAL)
    tensors = [tensor for tensor in tensors_of(model) if ".experts." in tensor.name]

    def seconds(count):
        return sum(throughput.product_seconds(STEP, tensor, model, 4, STORAGES["fp16"], count) for tensor in tensors)

    assert seconds(2) == pytest.approx(seconds(1) * 1.75, rel=1e-6)
    assert seconds(16) < 4.1 * seconds(1)


def test_a_processor_bounds_eager_steps():
    slow = {**STEP, "processor": {**STEP["processor"], "layer": 1.0}}
    one = throughput.predicted(slow, MODEL, TENSORS, 1, STORAGES["int4"], 256, 1)[0]
    assert one["eager"] == pytest.approx(1 / 32, rel=0.01)
    assert one["graphs"] == throughput.predicted(STEP, MODEL, TENSORS, 1, STORAGES["int4"], 256, 1)[0]["graphs"]


def test_longer_contexts_and_sums_take_time():
    def seconds(gpus, context):
        return throughput.gpu_seconds(STEP, MODEL, TENSORS, gpus, STORAGES["fp16"], context, 8)

    assert seconds(2, 2048) - seconds(2, 1024) == pytest.approx(8 * 1024 * 65536 / 130e9)
    assert seconds(2, 1) > seconds(1, 1) / 2 + 2 * 32 * 50e-6


def test_a_plan_predicts_up_to_the_sequences_that_fit():
    made = planned(LLAMA_8B, context=1024, max_num_seqs=64)
    for row in made["layouts"]:
        fitting = [count for count in throughput.SEQUENCES if count <= row.get("sequences", 0)]
        assert [one["sequences"] for one in row.get("predicted", [])] == fitting
    lines = capacity_table(made)
    header = next(index for index, line in enumerate(lines) if line.startswith("Predicted, not measured: "))
    assert len(lines) - header - 2 == sum(bool(row["predicted"]) for row in made["layouts"])
    assert STEP["processor"]["name"] in lines[header]


def test_columns_of_fast_models_stay_apart():
    one = {"sequences": 1, "eager": 14360.4, "graphs": 999.7}
    made = {"layouts": [{"dies": 4, "storage": "fp32", "predicted": [one, one]}], "context": 8, "processor": "one"}
    assert throughput.lines(made)[-1].split() == ["4", "fp32", *["14360", "/", "1000"] * 2]


@pytest.mark.parametrize("without", ["figures", "port"])
def test_nothing_is_predicted_without_figures_or_port(without):
    gpu = {key: value for key, value in PROFILE["gpu"].items() if key != "step"}
    profile = {**PROFILE, "gpu": gpu} if without == "figures" else {
        **PROFILE, "serve": {**PROFILE["serve"], "engine": "stock", "engines": ["port", "stock"]}}
    made = planned(LLAMA_8B, profile)
    assert not any(row.get("predicted") for row in made["layouts"])
    assert not any("Predicted" in line for line in capacity_table(made))
