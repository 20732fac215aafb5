"""Keys of outputs: what changes one of those that take hours makes every host build it again."""

import json
from functools import cache
from pathlib import Path

import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.module_utils.store.address import key
from rendered import ROOT, evaluate

RECORDED = json.loads(Path(__file__).with_name("recipe-keys.json").read_text())
# Role, task file and name of the output, with what is chosen; the outputs before them stand for themselves.
RECIPES = {
    "python310": ("python", "install_source", "python310"),
    "pytorch": ("pytorch", "install_source", "pytorch"),
    "pytorch from the wheel": ("pytorch", "install_wheel", "pytorch"),
    "vllm": ("vllm", "upstream_sdist", "vllm"),
    "vllm_dependencies": ("vllm", "install", "vllm_dependencies"),
    "vllm_kepler": ("vllm", "port", "vllm_kepler"),
    "vllm_serving": ("vllm", "supervisor", "vllm_serving"),
    "vllm_kernels": ("vllm", "kernels", "vllm_kernels"),
    "serving": ("vllm", "install", "serving"),
}
# Our own sources and the compilers, whatever they are today.
FIXED = {
    **{f"__vllm_{name}_archive": {"sha256": name, "file": f"/{name}"} for name in ("port", "supervisor", "kernels")},
    "__vllm_port_version": "1", "vllm_kernels_toolchain": ["gcc"],
}
SYSTEM = "x86_64-linux"


def arguments_of(role, file, output):
    """Arguments of the task that builds `output`, rendered."""
    tasks = yaml.safe_load((ROOT / "roles" / role / "tasks" / f"{file}.yml").read_text())
    found = [
        (value, task.get("vars", {})) for task in tasks for module, value in task.items()
        if module.endswith("store_output") and evaluate(role, value["name"]) == output
    ]
    assert len(found) == 1, f"{role}/tasks/{file}.yml: no task builds {output}"
    # What does not count in a key may need a host.
    ((arguments, variables),) = found
    counted = {name: arguments[name] for name in
               ("name", "version", "sources", "inputs", "builder", "environment", "toolchain") if name in arguments}
    before = list(RECIPES)[:list(RECIPES).index(output)]
    outputs = {name: f"/store/{key_of(name)}-{name}" for name in before if " " not in name}
    return evaluate(
        role, counted, store_outputs=outputs, ansible_search_path=[str(ROOT / "roles" / role)], **FIXED, **variables,
    )


@cache
def key_of(name):
    arguments = arguments_of(*RECIPES[name])
    environment = {variable: str(value) for variable, value in arguments.get("environment", {}).items()}
    return key({
        "inputs": {}, "sources": [], "toolchain": [], **arguments, "environment": environment, "system": SYSTEM,
    })


@pytest.mark.parametrize("name", RECIPES)
def test_the_key_is_the_recorded_one(name):
    assert key_of(name) == RECORDED[name], (
        f"the recipe of {name} changed: every host builds it again. If that is meant, record the new key in "
        "recipe-keys.json and say why in the commit."
    )
