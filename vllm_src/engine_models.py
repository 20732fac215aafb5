"""List the models that the installed vLLM and transformers know, as the module that the reader of checkpoints has.

Run by the Python that serves, with VLLM_KEPLER_DEVICE=cpu where it has the port:
`python vllm_src/engine_models.py plugins/module_utils/checkpoint/engine_models.py`;
for vLLM as it is released by one with its CPU build: `python -P ... plugins/module_utils/checkpoint/
engine_models_stock.py`, which keeps the port beside this program out.
"""

from __future__ import annotations

import argparse
import importlib.util
import inspect
import json
import sys
import textwrap
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
from vllm.entrypoints.cli.serve import ServeSubcommand
from vllm.model_executor.models import registry
from vllm.transformers_utils.config import _CONFIG_REGISTRY

# Upstream moved it.
try:
    from vllm.utils.argparse_utils import FlexibleArgumentParser
except ImportError:
    from vllm.utils import FlexibleArgumentParser

# Keys of a config that the planner reads.
SIZES = (
    "hidden_size", "n_embd", "d_model", "num_attention_heads", "n_head", "head_dim", "n_head_kv", "num_kv_heads",
    "num_key_value_heads", "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "num_hidden_layers", "n_layer",
    "num_layers", "vocab_size", "max_position_embeddings", "n_positions", "sliding_window", "use_sliding_window",
    "num_local_experts", "num_experts", "n_routed_experts", "num_experts_per_tok", "moe_intermediate_size",
    "shared_expert_intermediate_size", "decoder_sparse_step", "multi_query", "new_decoder_architecture", "rotary_dim",
)

# Tables of upstream's registry with models that generate text; releases differ.
KINDS = ("_TEXT_GENERATION_MODELS", "_MULTIMODAL_MODELS", "_TRANSFORMERS_MODELS", "_TRANSFORMERS_SUPPORTED_MODELS",
         "_TRANSFORMERS_BACKEND_MODELS")

HEADER = '''"""Names that vLLM {vllm} and transformers {transformers} know.

Written by vllm_src/engine_models.py: do not edit.
"""

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


def unloadable() -> set[str]:
    """Architectures whose code cannot be imported beside the pinned packages: a package is missing, or too old."""
    found = set()
    for name, model in registry.ModelRegistry.models.items():
        try:
            model.load_model_cls()
        except ImportError:
            found.add(name)
    return found


def tokenizers() -> Iterable[str]:
    """Every class by which tokenizer_config.json may name a tokenizer."""
    # Not what the port adds in this process.
    return (name for name in transformers.__all__ if "Tokenizer" in name and not name.startswith("Auto"))


def actions() -> list[argparse.Action]:
    """The options of `vllm serve`."""
    return ServeSubcommand().subparser_init(FlexibleArgumentParser().add_subparsers())._actions


def names_of(action: argparse.Action) -> list[str]:
    """Names of an option, without those that only say no."""
    return [name[2:] for name in action.option_strings if name.startswith("--") and name[:5] != "--no-"]


def options(kind: type[argparse.Action] | None = None) -> Iterable[str]:
    """Options of one kind, or those that take a value."""
    for action in actions():
        if isinstance(action, kind) if kind else action.nargs != 0:
            yield from names_of(action)


def takes(action: argparse.Action, text: str) -> bool:
    """Return whether the parser of an option's values takes a text."""
    parse: Any = action.type
    try:
        parse(text)
    except (ValueError, TypeError, argparse.ArgumentTypeError):
        return False
    return True


def typed(accepted: str, refused: str) -> Iterable[str]:
    """Options whose values are parsed, by texts that they take and texts that they refuse, with spaces between them."""
    for action in actions():
        if callable(action.type) and all(
            takes(action, text) == is_taken
            for texts, is_taken in ((accepted, True), (refused, False)) for text in texts.split()
        ):
            yield from names_of(action)


def choices() -> dict[str, str]:
    """The values of options that take no others, with spaces between them."""
    return {name: " ".join(map(str, action.choices)) for action in actions() if action.choices
            for name in names_of(action)}


def defaults(generators: set[str]) -> dict[str, dict[str, Any]]:
    """Sizes that a config of a type need not have, since its class has them."""
    found = {}
    for mapping in (MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES):
        for kind in (kind for kind, name in mapping.items() if name in generators):
            parameters = inspect.signature(CONFIG_MAPPING[kind].__init__).parameters
            sizes = {name: parameters[name].default for name in SIZES if name in parameters}
            if "vocab_size" in sizes:
                found[kind] = {name: size for name, size in sizes.items() if type(size) in (int, bool)}
    return found


def parts(kinds: Iterable[str]) -> dict[str, str]:
    """Types of configs with one for the language model in them, and its type where that does not say."""
    found = {}
    for kind in CONFIG_MAPPING_NAMES:
        try:
            whole = CONFIG_MAPPING[kind]()
            inner = whole.get_text_config()
        except (ValueError, AssertionError, OSError):  # no language model, several, or one that the hub has
            continue
        if inner is not whole and inner.model_type in kinds:
            found[kind] = inner.model_type
    return found


def mapping(values: dict[str, Any]) -> str:
    """A mapping as Python, in lines that fit."""
    # No line breaks between a name and its value.
    items = [f"{json.dumps(name)}:\0" + (json.dumps(value) if isinstance(value, str) else repr(value))
             for name, value in values.items()]
    lines = textwrap.wrap(", ".join(items), 96)
    return "{" + "\n    ".join(lines).replace("\0", " ") + "}"


def choice(option: tuple[str, str]) -> str:
    """An option and its values, in lines that fit."""
    name, values = option
    lines = textwrap.wrap(values, 104 - len(name), break_on_hyphens=False)
    if len(lines) == 1:
        return f'"{name}": "{values}",\n'
    return f'"{name}": (\n' + "".join(f'    "{line}{"" if line is lines[-1] else " "}"\n' for line in lines) + "),\n"


def module() -> str:
    """The text of the module."""
    made = [HEADER.format(vllm=version("vllm").partition("+")[0], transformers=transformers.__version__)]
    has_port = importlib.util.find_spec("vllm_kepler") is not None
    if has_port:  # its own configs are among vLLM's
        importlib.import_module("vllm_kepler.configs").register()
    generators = {
        name for kind in KINDS for name in getattr(registry, kind, {})
        if not name.endswith(("Classification", "EmbeddingModel"))
    }
    missing = unloadable()
    served = {*generators, *through_transformers()} - missing
    named: dict[str, tuple[str, Iterable[str]]] = {
        "GENERATORS": ("Architectures that generate text.", served),
        "UNLOADABLE": ("Architectures whose code needs what the serving environment lacks.", missing),
        "OTHERS": ("Architectures that vLLM has for something else.", {*registry._VLLM_MODELS} - generators),
        "MODEL_TYPES": ("model_type of a config.", {*CONFIG_MAPPING_NAMES, *_CONFIG_REGISTRY}),
        "TOKENIZERS": ("tokenizer_class of a tokenizer_config.", tokenizers()),
        "SWITCHES": ("Options that no-NAME turns off.", options(argparse.BooleanOptionalAction)),
        "VALUES": ("Options that take a value.", options()),
        "INTEGERS": ("Options that take an integer.", typed("8", "8k 0.5 text {}")),
        "SIZES": ("Options that take an integer, with k, M and the like for thousands.", typed("8 8k", "0.5 text {}")),
        "NUMBERS": ("Options that take a number.", typed("8 0.5", "text {}")),
        "JSON": ("Options that take JSON.", typed("{}", "text")),
        "OPTIONAL": ("Those of the four that take None too.", typed("None", "text")),
        "FLAGS": ("Options that are off where they are left out.", options(argparse._StoreTrueAction)),
    }
    for name, (about, names) in named.items():
        text = textwrap.wrap(" ".join(sorted(set(names))), 108, break_on_hyphens=False)
        lines = "\n".join(f'    "{line}{"" if line is text[-1] else " "}"' for line in text)
        made.append(f"# {about}\n{name} = frozenset((\n{lines}\n).split())\n")
    made.append("# Values of options that take no others.\nCHOICES = {\n")
    made += [textwrap.indent(line, "    ") for line in map(choice, sorted(choices().items()))]
    made.append("}\n")
    # The planner reads every config as the port does.
    if not has_port:
        return "".join(made)
    sizes = defaults(served)
    made.append("# Defaults of a config, by its model_type.\nDEFAULTS = {\n")
    for kind, values in sorted(sizes.items()):
        made.append(textwrap.indent(f'"{kind}": {mapping(values)},\n', "    "))
    made.append("}\n# Types of configs with one for the language model in them, and its default type.\n")
    made.append(f"LANGUAGE_PARTS = {mapping(dict(sorted(parts(sizes).items())))}\n")
    return "".join(made)


if __name__ == "__main__":
    # vLLM's log has the standard output.
    Path(sys.argv[1]).write_text(module())
