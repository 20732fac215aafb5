"""The backfill: every record holds on this torch, does nothing where torch has the name, and behaves as it says."""

import datetime
import inspect
import math
import pickle
import subprocess
import sys
import threading

import pytest
import torch
import vllm_kepler.torch_backfill as backfill
from vllm_kepler.torch_backfill import dtypes, library, record

RECORDS = {entry.name: entry for entry in backfill.RECORDS}


def backfilled(name):
    """A mark of tests of what a newer torch does in its own way."""
    return pytest.mark.skipif(name not in backfill.APPLIED, reason=f"this torch has its own {name}")


def test_names_are_unique():
    assert len(RECORDS) == len(backfill.RECORDS)


@pytest.mark.parametrize("entry", backfill.RECORDS, ids=lambda entry: entry.name)
def test_a_record_says_what_and_why(entry):
    assert entry.name.startswith("torch.")
    assert entry.why
    assert entry.since.count(".") == 1
    assert (entry.how == "replace") == (entry.lacking is not None)


@pytest.mark.parametrize("name", RECORDS)
def test_the_name_is_there(name):
    assert record.is_there(name)


@pytest.mark.parametrize("name", RECORDS)
def test_a_second_time_changes_nothing(name):
    """What is there is never replaced: the record finds the name, or a value that lacks nothing."""
    before = record.find(name)
    assert record.apply(RECORDS[name]) is False
    assert record.find(name) is before


def test_what_was_applied_was_missing():
    """2.0.1 needs nearly all of it; a torch that has a name is left alone."""
    assert set(backfill.APPLIED) <= set(RECORDS)
    if torch.__version__.startswith("2.0."):
        assert len(backfill.APPLIED) > 0.9 * len(RECORDS)


class TestDtypes:
    @pytest.mark.parametrize("name", [*dtypes.FLOATS, *dtypes.UNSIGNED])
    def test_an_absent_dtype_equals_itself_alone(self, name):
        absent = getattr(torch, name)
        real = [value for value in vars(torch).values() if isinstance(value, torch.dtype) and value is not absent]
        assert absent in (absent,)
        assert all(absent != other for other in real)
        assert repr(absent) == f"torch.{name}"
        assert pickle.loads(pickle.dumps(absent)) is absent

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.int8, torch.bool, torch.complex64])
    def test_itemsize_is_what_a_tensor_says(self, dtype):
        assert dtype.itemsize == torch.empty(1, dtype=dtype).element_size()

    def test_finfo_of_the_8_bit_formats(self):
        """Largest values of the OCP specification: (2 - 2⁻²)·2⁸ and (2 - 2⁻¹ + 2⁻²)·2¹⁵ with their mantissas."""
        assert torch.finfo(torch.float8_e4m3fn).max == (1 + 0.5 + 0.25) * 2**8
        assert torch.finfo(torch.float8_e5m2).max == (1 + 0.5 + 0.25) * 2**15
        assert torch.finfo(torch.float8_e4m3fn).bits == 8

    def test_finfo_of_real_dtypes_is_torchs_own(self):
        assert torch.finfo(torch.float32).eps == 2.0**-23
        assert torch.finfo().bits == 32
        assert torch.iinfo(torch.int16).max == 32767
        assert isinstance(torch.finfo(torch.float32), torch.finfo)


class TestLibrary:
    def test_schemas(self):
        def plain(x: torch.Tensor, n: int, scale: float = 1.5, name: str = "a") -> torch.Tensor: ...

        def optional(x: torch.Tensor | None, sizes: list[int], *, flag: bool = False) -> None: ...

        def several(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
            return x, x

        infer = torch.library.infer_schema
        assert infer(plain, mutates_args=()) == (
            '(Tensor x, SymInt n, float scale=1.5, str name="a") -> Tensor'
        )
        assert infer(optional, mutates_args=["x"]) == "(Tensor(a0!)? x, SymInt[] sizes, *, bool flag=False) -> ()"
        assert infer(several, mutates_args=()) == "(Tensor x, ScalarType dtype) -> (Tensor, Tensor)"

    @backfilled("torch.library.infer_schema")
    def test_an_annotation_without_a_schema_type_is_refused(self):
        def bad(x: dict) -> None: ...

        with pytest.raises(ValueError, match="dict"):
            torch.library.infer_schema(bad, mutates_args=())

    def test_a_fragment_adds_to_a_namespace(self):
        one = torch.library.Library("kepler_test", "FRAGMENT")
        other = torch.library.Library("kepler_test", "FRAGMENT")
        one.define("double_it(Tensor x) -> Tensor", tags=())
        one.impl("double_it", lambda x: 2 * x, "CompositeExplicitAutograd")
        other.define("fill_it(Tensor! x, float value) -> ()")

        def fill_it(x, value):
            x.fill_(value)

        other.impl("fill_it", fill_it, "CompositeExplicitAutograd")
        x = torch.rand(3)
        assert torch.equal(torch.ops.kepler_test.double_it(x), 2 * x)
        torch.ops.kepler_test.fill_it(x, 7.0)
        assert torch.equal(x, torch.full((3,), 7.0))

    def test_custom_op(self):
        @torch.library.custom_op("kepler_test::add_to", mutates_args=["x"])
        def add_to(x: torch.Tensor, value: float) -> None:
            x.add_(value)

        @add_to.register_fake
        def _(x, value):
            return None

        x = torch.zeros(2)
        torch.ops.kepler_test.add_to(x, 3.0)
        assert torch.equal(x, torch.full((2,), 3.0))

    def test_infer_schema_is_what_the_file_has(self):
        if "torch.library.infer_schema" in backfill.APPLIED:
            assert torch.library.infer_schema is library.infer_schema


def reference_attention(query, key, value, scale):
    """softmax(scale · q kᵀ) v in float64."""
    query, key, value = query.double(), key.double(), value.double()
    return torch.softmax(scale * query @ key.transpose(-1, -2), -1) @ value


@pytest.mark.parametrize("group", [1, 4])
@pytest.mark.parametrize("scale", [None, 0.05, 1.0])
def test_attention_with_scale_and_groups(group, scale):
    query, key, value = (torch.randn(2, heads, 9, 32) for heads in (2 * group, 2, 2))
    out = torch.nn.functional.scaled_dot_product_attention(query, key, value, scale=scale, enable_gqa=group > 1)
    wide = [states.repeat_interleave(group, 1) for states in (key, value)]
    expected = reference_attention(query, *wide, 1 / math.sqrt(32) if scale is None else scale)
    # Two products of 32 and of 9 terms, and a softmax: below 64 units in the last place.
    assert (out - expected).abs().max() < 64 * 2.0**-24 * value.abs().max()


def test_load_state_dict_can_assign():
    module = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    state = {name: torch.rand_like(tensor) if tensor.is_floating_point() else tensor.clone()
             for name, tensor in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    assert module[0].weight.data_ptr() == state["0.weight"].data_ptr()
    assert module[1].running_mean.data_ptr() == state["1.running_mean"].data_ptr()
    assert isinstance(module[0].weight, torch.nn.Parameter)
    with pytest.raises(RuntimeError, match="Missing key"):
        module.load_state_dict({}, assign=True)


def test_compile_is_identity_on_2_0():
    if not torch.__version__.startswith("2.0."):
        pytest.skip("this torch compiles")

    def function(x):
        return x + 1

    assert torch.compile(function) is function
    assert torch.compile(dynamic=True)(function) is function


@backfilled("torch.distributed.rendezvous.TCPStore")
def test_a_store_does_not_stop_other_threads():
    """The constructor returns while the other rank is missing: on 2.0.1 it would hold the interpreter's lock."""
    ran = threading.Event()
    timer = threading.Timer(0.1, ran.set)
    timer.start()
    make_store = sys.modules["torch.distributed.rendezvous"].TCPStore
    store = make_store("127.0.0.1", 0, 2, True, timeout=datetime.timedelta(seconds=20))
    assert ran.wait(5)
    store.set("key", "value")
    assert store.get("key") == b"value"


HOOK = """
import sys
assert "torch" not in sys.modules, "the hook imported torch"
import transformers
assert "vllm_kepler.torch_backfill" in sys.modules
import torch
assert torch.library.infer_schema
print("ok")
"""


def test_the_hook_waits_for_the_first_import_that_needs_it():
    done = subprocess.run([sys.executable, "-c", HOOK], capture_output=True, text=True)
    assert done.stdout.strip() == "ok", done.stderr


SERVER = """
import sys
import vllm.entrypoints.openai.api_server, vllm.worker.worker, vllm.model_executor.models.llama
print(sorted(name for name in sys.modules if name in ("torch._inductor.lowering", "triton")))
"""


@pytest.mark.skipif(not torch.__version__.startswith("2.0."), reason="a newer torch loads what it likes")
def test_a_server_does_not_load_the_compiler():
    done = subprocess.run([sys.executable, "-c", SERVER], capture_output=True, text=True)
    assert done.stdout.strip().endswith("[]"), done.stdout + done.stderr


def test_record_signatures_are_documented():
    assert all(inspect.getdoc(function) for function in (record.find, record.put, record.apply))
