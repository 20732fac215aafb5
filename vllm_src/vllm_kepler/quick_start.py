"""Quick replacements of functions that are slow at each start, with the same results.

`register` replaces them from the entry point group `vllm.general_plugins`, which every process loads before it needs
them.
"""

from __future__ import annotations

import ast
import functools
import inspect
import itertools
import sys
import textwrap
from pathlib import Path
from typing import Any

from vllm.model_executor.models import registry

# Where models are that import nothing else: upstream's and the port's.
MODELS = ("vllm.model_executor.models.", "vllm_kepler.")


def inspect_model_cls(upstream: Any) -> Any:
    """Inspect a model's class in this process.

    Upstream starts a process that imports all of vLLM, since importing a model could initialize CUDA; none of its own
    does (tests/port/test_quick_start.py). Later releases cache the result on disk: this can go with them.
    """

    @functools.wraps(upstream)
    def inspect_model_cls(self: Any) -> Any:
        if not self.module_name.startswith(MODELS):
            return upstream(self)
        return registry._ModelInfo.from_model_cls(self.load_model_cls())

    return inspect_model_cls


@functools.cache
def classes(path: str) -> dict[str, ast.ClassDef]:
    """Return the classes of a source file, by name."""
    # Dedented, as upstream does with each class: lines of spaces become empty.
    parsed = ast.parse(textwrap.dedent(Path(path).read_text()))
    return {node.name: node for node in parsed.body if isinstance(node, ast.ClassDef)}


def get_attr_docs(cls: type) -> dict[str, str]:
    """Return the text after each attribute of a class, by the attribute's name: help of the command line.

    Upstream has `inspect` parse the same 4,000 lines for each of 13 classes. Python 3.13 finds a class without
    parsing: with it this can go.
    """
    found = {}
    for assignment, text in itertools.pairwise(classes(inspect.getfile(cls))[cls.__name__].body):
        if not isinstance(assignment, (ast.Assign, ast.AnnAssign)) or not isinstance(text, ast.Expr):
            continue
        if isinstance(text.value, ast.Constant) and isinstance(text.value.value, str):
            targets = assignment.targets if isinstance(assignment, ast.Assign) else [assignment.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    found[target.id] = inspect.cleandoc(text.value.value)
    return found


def register() -> None:
    """Replace upstream's functions; a second call changes nothing."""
    model = registry._LazyRegisteredModel
    if not hasattr(model.inspect_model_cls, "__wrapped__"):
        model.inspect_model_cls = inspect_model_cls(model.inspect_model_cls)
    # Loaded only by a process that parses a command line.
    arguments: Any = sys.modules.get("vllm.engine.arg_utils")
    if arguments:
        arguments.get_attr_docs = get_attr_docs
