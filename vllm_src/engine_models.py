"""What the pinned vLLM and transformers know by name, as the module that the hosts' judge reads.

Run by the Python that serves, with VLLM_KEPLER_DEVICE=cpu:
`python vllm_src/engine_models.py plugins/module_utils/host/engine_models.py`.
"""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.model_executor.models import registry
from vllm.transformers_utils.config import _CONFIG_REGISTRY
from vllm.utils import FlexibleArgumentParser

HEADER = '''"""Names that vLLM {vllm} and transformers {transformers} know.

Written by vllm_src/engine_models.py: do not edit.
"""

from __future__ import absolute_import, division, print_function

__metaclass__ = type

'''


def through_transformers() -> Iterable[str]:
    """Generators that vLLM has no code of its own for, and serves with the code of transformers."""
    for name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values():
        if name in registry.ModelRegistry.models:
            continue
        try:
            compatible = getattr(transformers, name).is_backend_compatible()
        except RuntimeError:  # its module cannot be imported with this PyTorch
            continue
        if compatible:
            yield name


def tokenizers() -> Iterable[str]:
    """Every class by which tokenizer_config.json may name a tokenizer."""
    return (name for name in dir(transformers) if "Tokenizer" in name and not name.startswith("Auto"))


def options(kind: type[argparse.Action] | None = None) -> Iterable[str]:
    """Options of `vllm serve` of one kind, or those that take a value; without those that only say no."""
    for action in ServeSubcommand().subparser_init(FlexibleArgumentParser().add_subparsers())._actions:
        if isinstance(action, kind) if kind else action.nargs != 0:
            yield from (name[2:] for name in action.option_strings if name.startswith("--") and name[:5] != "--no-")


def module() -> str:
    """The text of the module."""
    made = [HEADER.format(vllm=version("vllm").partition("+")[0], transformers=transformers.__version__)]
    generators = {*registry._TEXT_GENERATION_MODELS, *registry._MULTIMODAL_MODELS, *registry._TRANSFORMERS_MODELS}
    parts: dict[str, tuple[str, Iterable[str]]] = {
        "GENERATORS": ("Architectures that generate text.", {*generators, *through_transformers()}),
        "OTHERS": ("Architectures that vLLM has for something else.", {*registry._VLLM_MODELS} - generators),
        "MODEL_TYPES": ("model_type of a config.", {*CONFIG_MAPPING_NAMES, *_CONFIG_REGISTRY}),
        "TOKENIZERS": ("tokenizer_class of a tokenizer_config.", tokenizers()),
        "SWITCHES": ("Options that no-NAME turns off.", options(argparse.BooleanOptionalAction)),
        "VALUES": ("Options that take a value.", options()),
        "FLAGS": ("Options that are off where they are left out.", options(argparse._StoreTrueAction)),
    }
    for name, (about, names) in parts.items():
        text = textwrap.wrap(" ".join(sorted(set(names))), 108, break_on_hyphens=False)
        lines = "\n".join(f'    "{line}{"" if line is text[-1] else " "}"' for line in text)
        made.append(f"# {about}\n{name} = frozenset((\n{lines}\n).split())\n")
    return "".join(made)


if __name__ == "__main__":
    # vLLM's log has the standard output.
    Path(sys.argv[1]).write_text(module())
