"""LoRA adapters as the peft library writes them: what of them the engine computes, and what it would get wrong."""

import math
import re

from .errors import reasons_of

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
# Ranks that the engine makes room for.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
# Keys of a config with which an adapter is more than two matrices beside a linear layer, by what they must be.
PLAIN = (
    ("use_dora", "DoRA"), ("modules_to_save", "whole modules of its own"), ("rank_pattern", "several ranks"),
    ("alpha_pattern", "several alphas"), ("layer_replication", "layers that are repeated"),
    ("trainable_token_indices", "tokens of its own"), ("target_parameters", "parameters of no linear layer"),
    ("lora_bias", "biases"), ("use_qalora", "pooled inputs"), ("alora_invocation_tokens", "tokens that switch it on"),
    ("context_length", "a longer context than its model's"),
)
# Starts of training that change the model's own weights, unless the adapter was converted when it was saved.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
TENSOR = re.compile(r"^(?:base_model\.model\.)?(.+)\.lora_([AB])\.weight$")
# Ends of names that say how the same model is stored.
STORED = re.compile(r"[-_.](gptq|awq|gguf|bnb|unsloth|int[48]|[48]bit|w[48]a16|fp8|bf16|fp16|hf|i?q\d).*")
WORKS = "a LoRA adapter of linear layers alone, as peft saves it"


def _is_integer(value):
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value):
    # A number of hundreds of digits is no float.
    return (_is_integer(value) and abs(value) < 1 << 64) or (isinstance(value, float) and math.isfinite(value))


def rank_of(config):
    """Rank that an adapter's config names; None where it names none."""
    rank = config.get("r")
    return rank if _is_integer(rank) and rank > 0 else None


def room_for(ranks):
    """The smallest rank of RANKS that holds all `ranks`; the largest of RANKS where none does."""
    return next((room for room in RANKS if all(rank <= room for rank in ranks)), RANKS[-1])


def option_faults(options, count):
    """Options of vLLM with which it would not start with `count` adapters: [(option, found, expected)]."""
    found = []
    rank = options.get("max-lora-rank", RANKS[0])
    if not _is_integer(rank) or rank not in RANKS:
        found.append(("max-lora-rank", repr(rank), "one of %s" % ", ".join(map(str, RANKS))))
    at_once = options.get("max-loras", count)
    if not _is_integer(at_once) or at_once < 1:
        found.append(("max-loras", repr(at_once), "an integer from 1"))
        return found
    kept = options.get("max-cpu-loras", at_once)
    if not _is_integer(kept) or kept < at_once:
        found.append(("max-cpu-loras", repr(kept), "an integer from %d, the adapters of one batch" % at_once))
    return found


def faults(facts, room=RANKS[-1], layers=None):
    """What keeps the engine from serving an adapter: [(found, expected)].

    Args:
        facts: what read_adapter gave. room: as unserved has it.
        layers: as misfits has them; None where nobody knows them.
    """
    found = reasons_of(facts["faults"]) or unserved(facts["config"], room)
    if found or layers is None:
        return found
    return misfits(facts["tensors"], rank_of(facts["config"]), layers)


def other_base(config, model):
    """The model that an adapter was trained on, if it is another one by its name; else None.

    model: name on the hub, or a path; of a directory the last part counts.
    """
    base = config.get("base_model_name_or_path")
    # A directory of the machine that trained it says nothing.
    if not isinstance(base, str) or not re.match(r"[\w-][\w.-]*/[\w-][\w.-]*\Z", base):
        return None
    own = model if model.startswith("/") else "/".join(model.split("/")[:2])
    first, second = (STORED.sub("", name.rstrip("/").split("/")[-1].lower()) for name in (base, own))
    # An adapter of a model is used with its chat variant as well.
    return None if first.startswith(second) or second.startswith(first) else base


def modules_of(tensors):
    """Names of the layers that the tensors of an adapter change."""
    return {match.group(1) for match in map(TENSOR.match, tensors) if match}


def unserved(config, room=RANKS[-1]):
    """Parts of an adapter's config that the engine does not compute: [(found, expected)].

    room: the largest rank that the engine makes room for.
    """
    found = []
    if config.get("peft_type", "LORA") != "LORA":
        found.append(("peft_type %s" % config["peft_type"], WORKS))
    if rank_of(config) is None or not _is_number(config.get("lora_alpha")):
        found.append(("r %r and lora_alpha %r" % (config.get("r"), config.get("lora_alpha")), "a rank and a number"))
    elif rank_of(config) > room:
        found.append(("rank %d" % rank_of(config), "at most %d (max-lora-rank)" % room))
    found += [("%s (%s)" % (key, what), WORKS) for key, what in PLAIN if config.get(key)]
    if config.get("bias", "none") != "none":
        found.append(("bias %s" % config["bias"], "bias none"))
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        found.append(("init_lora_weights %s, which changes the model's own weights" % start,
                      "an adapter that was converted to plain LoRA when it was saved"))
    return found


def misfits(shapes, rank, layers):
    """Tensors of an adapter that its base has no place for: [(found, expected)], the first one.

    Args:
        shapes: name of each tensor of the adapter to its shape.
        rank: the adapter's.
        layers: name of each linear layer of the base to (rows, columns) of its matrix.
    """
    halves = {}
    for name, shape in sorted(shapes.items()):
        match = TENSOR.match(name)
        if not match:
            return [("the tensor %s" % name, "lora_A.weight and lora_B.weight of linear layers alone")]
        halves.setdefault(match.group(1), {})[match.group(2)] = list(shape)
    if not halves:
        return [("no tensors", "lora_A.weight and lora_B.weight of linear layers")]
    for module, given in sorted(halves.items()):
        if module not in layers:
            return [("an adapter of %s" % module, "linear layers of its model, outside of experts")]
        rows, columns = layers[module]
        if given != {"A": [rank, columns], "B": [rows, rank]}:
            shown = " and ".join("%s (lora_%s)" % (given[half], half) for half in sorted(given))
            return [("%s of shapes %s" % (module, shown),
                     "%s and %s, as rank %d of its model has them: an adapter of another model does not fit"
                     % ([rank, columns], [rows, rank], rank))]
    return []
