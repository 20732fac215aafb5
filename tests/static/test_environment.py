"""Environment variables of the port and of the serving package: one module each, and one table for those who read."""

import ast
import re

import pytest
from repository import ROOT, files, name_of

NAME = re.compile(r"VLLM_(KEPLER|SERVING)_[A-Z_]+")
MODULES = {part: ROOT / "vllm_src" / f"vllm_{part.lower()}" / "envs.py" for part in ("KEPLER", "SERVING")}
TABLE = re.compile(r"^\| `(VLLM_[A-Z_]+)` \| [^|]+ \| ([^|]+) \|", re.MULTILINE)


def names_in(path):
    """Variables that a module names by themselves, as who reads or sets one must; but for what it asks envs for."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    asks = [node for node in nodes if isinstance(node, (ast.Call, ast.Subscript))
            and ast.unparse(node).startswith("envs.")]  # fmt: skip
    asked = {id(part) for node in asks for part in ast.walk(node)}
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and id(node) not in asked]
    return {text for text in texts if isinstance(text, str) and NAME.fullmatch(text)}


# The port's, which says in a container that there is no GPU: the one variable of it that the serving package reads.
BOTH = "VLLM_KEPLER_DEVICE"
# Read in a container alone.
CONTAINER = {"VLLM_SERVING_WATCHDOG", "VLLM_SERVING_PUBLISHED"}
# Writes them for containers, as instance.env.j2 does for units; and what qualifies a host, for engines of its own.
WRITER = ROOT / "plugins" / "filter" / "kepler_compose.py"
QUALIFIER = ROOT / "roles" / "qualification" / "files" / "graphs.py"
DEFINED = {name for module in MODULES.values() for name in names_in(module)}


@pytest.mark.parametrize("part", MODULES)
def test_module_defines_variables_of_its_package(part):
    assert {NAME.fullmatch(name)[1] for name in names_in(MODULES[part]) - {BOTH}} | {part} == {part}


def test_no_other_module_reads_variables():
    others = [path for path in files("vllm_src", "plugins", "roles") if path.suffix == ".py"]
    readers = {name_of(path) for path in others if names_in(path)}
    assert readers - {name_of(WRITER), name_of(QUALIFIER)} == {name_of(path) for path in MODULES.values()}


def test_document_has_each_variable_with_its_default():
    table = dict(TABLE.findall((ROOT / "docs" / "serving.md").read_text()))
    assert table.keys() == DEFINED
    for name, default in re.findall(r'"(VLLM_SERVING_\w+)": (\d+),', MODULES["SERVING"].read_text()):
        assert table[name] == default


def test_containers_get_known_variables():
    assert names_in(WRITER)
    assert names_in(WRITER) < DEFINED


def test_instance_file_sets_known_variables():
    text = (ROOT / "roles" / "vllm_service" / "templates" / "instance.env.j2").read_text()
    set_here = re.findall(r"^(?:\{\{ prefix }}|VLLM_SERVING)_(\w+)=", text, re.MULTILINE)
    settings = {f"VLLM_SERVING_{name}" for name in set_here}
    switches = set(re.findall(r"^(VLLM_KEPLER_\w+)=", text, re.MULTILINE))
    assert settings == {name for name in DEFINED if name.startswith("VLLM_SERVING_")} - CONTAINER
    assert switches
    assert switches < DEFINED
