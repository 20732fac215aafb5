"""The CUDA platform as a machine with two K80 boards would start it: a driver's answers, no GPU.

What needs a GPU is tested by tests/gpu.
"""

import functools
import os
from pathlib import Path

import pytest
import torch
from forked import Forks
from vllm_kepler import envs
from vllm_kepler.absent_modules import apply_token_bitmask
from vllm_kepler.ops import library as kernels

# Answers of the driver's management library, before vLLM asks for the platform.
PREAMBLE = """
import vllm.third_party.pynvml as nvml
capability = {capability}
nvml.nvmlInit = nvml.nvmlShutdown = lambda: None
nvml.nvmlDeviceGetCount = lambda: 4
nvml.nvmlDeviceGetHandleByIndex = lambda index: index
nvml.nvmlDeviceGetCudaComputeCapability = lambda handle: capability
nvml.nvmlDeviceGetName = lambda handle: "Tesla K80"
nvml.nvmlDeviceGetMemoryInfo = lambda handle: type("Memory", (), {{"total": 11441 << 20}})
"""


@functools.cache
def forks():
    return Forks(Path(__file__).with_name("program_forks.py"), os.environ)


def run(program, capability=(3, 7), **environment):
    """(exit status, output) of a program in a process where vLLM sees four such GPUs."""
    done = forks().run(
        {**os.environ, "VLLM_KEPLER_DEVICE": "", **environment}, merged=True,
        program=PREAMBLE.format(capability=capability) + program,
    )  # fmt: skip
    return done.returncode, done.stdout


WHICH = "from vllm.platforms import current_platform; print(type(current_platform).__name__)"


@pytest.mark.parametrize(
    ("capability", "environment"), [((3, 7), {}), ((7, 0), {}), ((9, 0), {"VLLM_KEPLER_VERIFY": "1"})]
)
def test_gpus_that_the_port_serves_on(capability, environment):
    status, printed = run(WHICH, capability, **environment)
    assert status == 0, printed
    assert printed.splitlines()[-1] == "KeplerCudaPlatform"


@pytest.mark.parametrize("capability", [(3, 5), (7, 5), (9, 0)])
def test_other_gpus_are_refused(capability):
    """A K40 (sm_35) is not a K80, and this vLLM has no kernels for a newer GPU."""
    status, printed = run(WHICH, capability)
    assert status != 0
    found = ", ".join([f"{capability[0]}.{capability[1]}"] * 4)
    last = printed.splitlines()[-1]
    assert last.startswith(f"GPU: found compute capability {found}; expected 3.7 (Tesla K80) or 7.0 (Tesla V100, ")
    assert "Traceback" not in printed


@pytest.mark.parametrize("visible", ["GPU-8932f937-d72c-4106-c12f-20bd9faed9f6", "0,MIG-1"])
def test_dies_by_name_are_refused(visible):
    """vLLM takes numbers alone; without a word the port would step aside."""
    status, printed = run(WHICH, (3, 7), CUDA_VISIBLE_DEVICES=visible)
    assert status != 0
    assert f"CUDA_VISIBLE_DEVICES: found {visible}; expected numbers of GPUs" in printed
    assert "Traceback" not in printed


START = """
from vllm.config import VllmConfig
from vllm.platforms import current_platform
import vllm.engine.arg_utils
VllmConfig()
print("started")
"""


def test_forks_can_use_cuda_after_the_imports():
    """Torch says of each fork whether it was asked for a GPU before."""
    status, printed = run("""
import importlib, torch
from vllm_kepler import forks
for module in forks.IMPORTED: importlib.import_module(module)
before = forks.has_touched_cuda()
torch.cuda.is_available()
print(before, forks.has_touched_cuda())
""")
    assert status == 0, printed
    assert printed.splitlines()[-1] == "False True"


def test_several_steps_at_a_time_are_refused():
    """Upstream's own engine takes them back on the CPU."""
    status, printed = run(
        "from vllm.config import SchedulerConfig, VllmConfig\nimport vllm.engine.arg_utils\n"
        "VllmConfig(scheduler_config=SchedulerConfig(num_scheduler_steps=8))"
    )
    assert status != 0
    assert "num_scheduler_steps: found 8; expected 1" in printed


def test_what_the_start_says():
    status, printed = run(START)
    assert status == 0, printed
    assert "Kepler GPU detected (sm < 70): forcing eager mode and disabling CUDA graphs." in printed
    assert "Tesla K80, compute capability 3.7; kernel library 0.2.0 (sm_37, compute_37) from" in printed
    assert printed.splitlines()[-1] == "started"


def test_the_log_of_a_volta_names_it(tmp_path):
    built = envs.VLLM_KEPLER_LIBRARY.read_bytes()
    (tmp_path / "v.so").write_bytes(built.replace(b"sm_37 compute_37\0", b"sm_70 compute_70\0"))
    backend = START + (
        "import torch\n"
        "print(current_platform.get_attn_backend_cls(None, 64, torch.float32, None, 16, False, False))\n"
    )
    status, printed = run(backend, (7, 0), VLLM_KEPLER_LIBRARY=str(tmp_path / "v.so"))
    assert status == 0, printed
    assert "Volta GPU detected (sm_70): forcing eager mode and disabling CUDA graphs." in printed
    assert "Using Torch SDPA attention backend for Volta GPU (sm_70)." in printed
    assert "compute capability 7.0; kernel library 0.2.0 (sm_70, compute_70) from" in printed


def test_models_import_without_triton():
    """Mixtures of experts, and upstream's adapters, name Triton's kernels while they are imported."""
    status, printed = run("""
from vllm.platforms import current_platform
from vllm.model_executor.models import mixtral, qwen3_moe, deepseek, granitemoe, gemma2, llama
from vllm.model_executor.layers.fused_moe.layer import UnquantizedFusedMoEMethod
from vllm.plugins import load_general_plugins
load_general_plugins()
from vllm.utils import resolve_obj_by_qualname
print(UnquantizedFusedMoEMethod.op_registry_oot["UnquantizedFusedMoEMethod"].__name__,
      resolve_obj_by_qualname(current_platform.get_punica_wrapper()).__name__)
""")
    assert status == 0, printed
    assert printed.splitlines()[-1] == "KeplerMoEMethod KeplerPunica"


def test_a_missing_library_is_refused(tmp_path):
    status, printed = run(START, VLLM_KEPLER_LIBRARY=str(tmp_path / "none.so"))
    assert status != 0
    assert f"{tmp_path}/none.so: no kernel library there. Build it" in printed.splitlines()[-1]


def test_another_file_is_refused(tmp_path):
    (tmp_path / "other.so").write_text("not a library")
    status, printed = run(START, VLLM_KEPLER_LIBRARY=str(tmp_path / "other.so"))
    assert status != 0
    assert "other.so: not a kernel library of this port" in printed.splitlines()[-1]


def test_a_library_for_another_architecture_is_refused(tmp_path):
    """The real library, which says that it was built for sm_70."""
    built = envs.VLLM_KEPLER_LIBRARY.read_bytes()
    assert built.count(b"sm_37 compute_37\0") == 1
    (tmp_path / "other.so").write_bytes(built.replace(b"sm_37 compute_37\0", b"sm_70 compute_70\0"))
    status, printed = run(START, VLLM_KEPLER_LIBRARY=str(tmp_path / "other.so"))
    assert status != 0
    assert "found code for sm_70, compute_70; expected code for the GPU's compute capability 3.7" in printed


@pytest.mark.parametrize(
    ("architectures", "capability", "runs"),
    [
        (("sm_37", "compute_37"), (3, 7), True),
        (("sm_37", "compute_37"), (9, 0), True),
        (("sm_37",), (9, 0), False),
        (("compute_37",), (3, 7), False),
        (("sm_35",), (3, 7), True),
        (("sm_70", "compute_70"), (3, 7), False),
        (("sm_70", "compute_70"), (7, 0), True),
        (("sm_70", "compute_70"), (9, 0), True),
    ],
)
def test_which_code_runs_where(architectures, capability, runs):
    """A Kepler driver takes PTX up to 7.4 only: a K80 needs machine code."""
    library = kernels.KernelLibrary(envs.VLLM_KEPLER_LIBRARY)
    library.architectures = architectures
    if runs:
        library.check_runs_on(capability)
    else:
        with pytest.raises(kernels.LibraryError, match="expected code for the GPU's"):
            library.check_runs_on(capability)


def test_another_version_is_refused(monkeypatch):
    monkeypatch.setattr(kernels, "__version__", "9.9.9")
    with pytest.raises(kernels.LibraryError, match=r"expected the port's 9\.9\.9"):
        kernels.KernelLibrary(envs.VLLM_KEPLER_LIBRARY)


def test_a_launcher_refuses_what_it_does_not_take():
    """Needs no GPU: sizes are looked at first."""
    with pytest.raises(kernels.LibraryError, match=r"kepler_rms_norm: .*error 1"):
        kernels.library().rms_norm(0, 0, 0, 1e-6, 1, 0, 0, 0, 1, 0, 0)


def test_matrix_refuses_what_kernels_cannot_read():
    assert kernels.matrix(torch.zeros(2, 3, 4)).shape == (6, 4)
    with pytest.raises(kernels.LibraryError, match=r"torch\.float16"):
        kernels.matrix(torch.zeros(2, 4, dtype=torch.float16))
    with pytest.raises(kernels.LibraryError, match="dense rows"):
        kernels.matrix(torch.zeros(4, 2).T)


@pytest.mark.parametrize(("batch", "indices"), [(3, None), (3, [2, 0]), (None, None)])
def test_token_bitmask(batch, indices):
    """What xgrammar asks of its GPU kernel, a lone row of logits included; the vocabulary is no multiple of 32."""
    rows = batch or 1
    logits, allowed = torch.randn(rows, 70), torch.rand(rows, 96) < 0.5
    powers = torch.tensor([1 << bit for bit in range(32)])
    words = (allowed.view(rows, 3, 32) * powers).sum(-1)
    bitmask = torch.where(words >= 1 << 31, words - (1 << 32), words).int()
    expected = logits.clone()
    for row in range(rows) if indices is None else indices:
        expected[row][~allowed[row, :70]] = -torch.inf
    apply_token_bitmask(logits if batch else logits[0], bitmask, None, indices)
    assert torch.equal(logits, expected)
