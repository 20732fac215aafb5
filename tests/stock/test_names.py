"""What the reader of checkpoints knows of the released vLLM is what is installed."""

import os
import runpy
from pathlib import Path

import pytest
from checkpoint import engine_models_stock, stock
from option_values import differences
from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config

ROOT = Path(__file__).resolve().parents[2]
# Of compressed-tensors the schemes have capabilities of their own.
SCHEMES = {"compressed-tensors"}


def test_known_names_equal_installed_packages():
    os.environ["HF_HUB_OFFLINE"] = "1"
    made = runpy.run_path(str(ROOT / "vllm_src" / "engine_models.py"))["module"]()
    # The build for the CPU names its own release.
    release = made.split("\n")[0]
    written = Path(engine_models_stock.__file__).read_text()
    assert made.replace(release, written.split("\n")[0]) == written


def test_values_are_read_as_the_engine_reads_them():
    assert list(differences("stock")) == []


@pytest.mark.parametrize("method", sorted(set(stock.METHODS) - SCHEMES))
def test_kernels_need_the_capability_that_is_written(method):
    installed = {name.replace("_", "-"): name for name in QUANTIZATION_METHODS}
    least = get_quantization_config(installed[method]).get_min_capability()
    assert stock.METHODS[method][0] == divmod(least, 10)
