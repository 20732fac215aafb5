"""What the port does more quickly than upstream at each start, with the same result."""

import inspect
import json
import subprocess
import sys
import types

import pytest
from vllm import config
from vllm.engine import arg_utils
from vllm.model_executor.models import registry
from vllm.plugins import load_general_plugins
from vllm_kepler import quick_start

# Looks at the classes of all models, and then uses CUDA by two ways. Prints the models that could be imported, and how
# often CUDA was to be initialized up to then and in all.
LOOK = """
import json, torch
calls = []
def refuse():
    calls.append(1)
    raise RuntimeError("CUDA was to be initialized")
torch.cuda._lazy_init = refuse
from vllm.model_executor.models import registry
from vllm.plugins import load_general_plugins
load_general_plugins()
seen = []
for name, model in registry.ModelRegistry.models.items():
    try:
        model.inspect_model_cls()
    except (ImportError, RuntimeError):
        continue
    seen.append(name)
before = len(calls)
for use in (torch.cuda.current_device, lambda: torch.zeros(1, device="cuda")):
    try:
        use()
    except (RuntimeError, AssertionError):
        pass
print(json.dumps([seen, before, len(calls)]))
"""


def test_no_model_initializes_cuda_while_imported():
    """In a process of its own, where no model was imported before: 8 s of processor time."""
    done = subprocess.run([sys.executable, "-c", LOOK], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    seen, calls, with_uses = json.loads(done.stdout.splitlines()[-1])
    assert calls == 0
    assert with_uses == 2
    # Without those whose packages are not there: torchvision, a later transformers.
    assert len(seen) > len(registry.ModelRegistry.models) * 0.8
    assert {"LlamaForCausalLM", "Qwen3ForCausalLM", "MixtralForCausalLM", "Gemma2ForCausalLM"} <= set(seen)


@pytest.fixture
def alone(monkeypatch):
    """No process may be started to look at a model."""

    def refuse(look):
        raise AssertionError("a process of its own")

    load_general_plugins()
    monkeypatch.setattr(registry, "_run_in_subprocess", refuse)


@pytest.mark.parametrize("name", ["LlamaForCausalLM", "Qwen3MoeForCausalLM", "BertModel"])
def test_a_model_is_looked_at_as_upstream_does(alone, name):
    model = registry.ModelRegistry.models[name]
    assert model.inspect_model_cls() == registry._ModelInfo.from_model_cls(model.load_model_cls())


def test_a_model_of_another_package_keeps_its_process(alone):
    with pytest.raises(AssertionError, match="a process of its own"):
        registry._LazyRegisteredModel("another.package", "Model").inspect_model_cls()


def test_registering_twice_changes_nothing():
    quick_start.register()
    first = registry._LazyRegisteredModel.inspect_model_cls
    quick_start.register()
    assert registry._LazyRegisteredModel.inspect_model_cls is first


def test_help_is_upstreams():
    load_general_plugins()
    assert arg_utils.get_attr_docs is quick_start.get_attr_docs
    found = {}
    for name, cls in inspect.getmembers(config, inspect.isclass):
        if cls.__module__ == config.__name__:
            found[name] = quick_start.get_attr_docs(cls)
            assert found[name] == config.get_attr_docs(cls), name
    assert sum(map(len, found.values())) > 100


def test_help_of_unusual_attributes(tmp_path, monkeypatch):
    """Two names at once, a text without an attribute, an attribute of another object."""
    path = tmp_path / "unusual.py"
    path.write_text(
        'class Unusual:\n    """Not of an attribute."""\n    a = b = 1\n    """Of both,\n    on two lines."""\n'
        '    c: int = 2\n    d = 3\n    """Of d."""\n    """Of none."""\n    a.real: int\n    """Of none."""\n'
        '    e = 4\n    5\n'
    )  # fmt: skip
    unusual = types.ModuleType("unusual")
    unusual.__file__ = str(path)
    exec(compile(path.read_text(), path, "exec"), vars(unusual))
    monkeypatch.setitem(sys.modules, "unusual", unusual)
    expected = {"a": "Of both,\non two lines.", "b": "Of both,\non two lines.", "d": "Of d."}
    assert quick_start.get_attr_docs(unusual.Unusual) == config.get_attr_docs(unusual.Unusual) == expected
