"""The options of extra_args: which an instance may set, what vLLM makes of them, and how they are written for it.

argparse completes abbreviations, so only whole names are taken.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from ..module_utils.checkpoint import speculation
from ..module_utils.checkpoint.config import overrides_of
from ..module_utils.checkpoint.engine import Engine
from ..module_utils.checkpoint.limits import BLOCK_SIZES
from ..module_utils.checkpoint.speculation import mapping
from ..module_utils.findings import finding
from .findings import shown

NO = "no-"


def parse_size(text: str) -> None:
    """Read a count as vLLM does, such as 8k or 8K: parts of thousands have small letters. Raises ValueError."""
    if not re.fullmatch(r"\d+(\.\d+)?[kmg]|\d+[KMG]", text.strip()):
        int(text)


# How values are read by vLLM, by the table that names the options: a reader that raises ValueError, what is expected.
PARSED: dict[str, tuple[Callable[[str], Any], str]] = {
    "INTEGERS": (int, "an integer"),
    "SIZES": (parse_size, "an integer, or one with k, m or g behind it"),
    "NUMBERS": (float, "a number"),
    "JSON": (json.loads, "a text that holds JSON"),
}


class Options:
    """The options of an engine's `vllm serve`.

    Attributes:
        switches: those that no-NAME turns off.
        booleans: those that are on or off.
        all: every name.
        choices: names of options that take certain values alone, to these.
        kinds: names of options to what their values are parsed as: INTEGERS, SIZES, NUMBERS or JSON.
        optional: those of them that take None too.
    """

    def __init__(self, engine: str) -> None:
        names = Engine(engine).names
        self.switches = names.SWITCHES
        self.booleans = names.FLAGS | names.SWITCHES
        self.choices = {name: values.split() for name, values in names.CHOICES.items()}
        self.kinds = {name: kind for kind in PARSED for name in getattr(names, kind)}
        self.optional = names.OPTIONAL
        self.all = names.VALUES | self.booleans | {NO + name for name in names.SWITCHES}


KNOWN = {name: Options(name) for name in ("port", "stock")}
# The option that parsers: false turns off.
AUTO_TOOLS = "enable-auto-tool-choice"
SPECULATION = speculation.OPTION
# Options that hold a mapping, as JSON.
MAPPINGS = ("rope-scaling", "hf-overrides", SPECULATION, "structured-outputs-config")
# Numbers that the planner counts with: how one is written, and what is expected.
COUNTS = dict.fromkeys(("max-num-seqs", "max-num-batched-tokens"), ("0*[1-9][0-9]*", "an integer from 1"))
# Tokens of a block of the cache that the engine's attention takes.
BLOCKS = {"port": BLOCK_SIZES, "stock": (16, 32, 64, 128)}

LEAVE_OUT = "Leave it out."
# Options that the role sets itself, and the key of the instance that decides them.
OWN = {
    "model": "model", "host": "host", "port": "port", "tensor-parallel-size": "tensor_parallel_size", "dtype": "dtype",
    "max-model-len": "max_model_len", "gpu-memory-utilization": "gpu_memory_utilization", "revision": "revision",
    "served-model-name": "served_model_name", "api-key": "api_key_file", "lora-modules": "adapters",
    "pipeline-parallel-size": "hosts",
}
# Kinds of options that no instance can have: what is expected, the next step, and the options.
_KINDS: list[tuple[str, str, str]] = [
    ("plain HTTP, by which its unit looks at the server", "Let the load balancer speak TLS.",
     "ssl-keyfile ssl-certfile ssl-ca-certs ssl-cert-reqs enable-ssl-refresh"),
    ("1: an instance is one server", "Write another instance, and balance them.",
     "data-parallel-size data-parallel-size-local data-parallel-start-rank data-parallel-rank data-parallel-address "
     "data-parallel-rpc-port data-parallel-backend"),
    ("one server of one host: it would be reached past its key, or never become ready", LEAVE_OUT,
     "headless api-server-count distributed-executor-backend"),
    ("all weights on the GPUs, as planned", "Leave it out; spread the model over more GPUs.", "cpu-offload-gb"),
    ("as many blocks as the memory holds", LEAVE_OUT, "num-gpu-blocks-override"),
    ("no socket that others reach without the key", LEAVE_OUT, "kv-transfer-config kv-events-config"),
    ("the options of this instance alone", "Write them into extra_args.", "config"),
    ("the paths and the checks that the unit's own middleware knows", LEAVE_OUT, "middleware root-path"),
    ("the port's own classes", LEAVE_OUT, "worker-cls worker-extension-cls scheduler-cls"),
    ("no path: requests could read the files of the host", LEAVE_OUT, "allowed-local-media-path"),
    ("no secret in a file that others can read", "Give the role models a models_token_file.", "hf-token"),
    ("true: prompts stand in no log", LEAVE_OUT, "disable-log-requests"),
    ("vLLM's own log and metrics, by which the unit looks at the server", LEAVE_OUT,
     "log-config-file disable-log-stats"),
    ("no traces: the serving environment has no OpenTelemetry", LEAVE_OUT,
     "otlp-traces-endpoint collect-detailed-traces"),
    ("a server that takes texts: the unit asks it for tokens", LEAVE_OUT, "skip-tokenizer-init"),
    ("the config.json beside the weights, as planned", "Leave it out; change single keys with hf-overrides.",
     "hf-config-path config-format"),
    ("the cache in vllm_service_home, which the role models fills", LEAVE_OUT, "download-dir"),
    ("what vllm_service_device says", LEAVE_OUT, "device"),
    ("what the checkpoint's own config.json says", "Leave it out; serve a quantized checkpoint.", "quantization"),
    ("a cache in the type that the key dtype names", "Leave it out; set dtype to half or float32.", "kv-cache-dtype"),
    ("what the key cuda_graphs says", "Leave it out; without cuda_graphs: true a server is eager.", "enforce-eager"),
    ("a model that generates: the unit asks each server for tokens", LEAVE_OUT, "task"),
    ("the format that the files have, which is found by itself", LEAVE_OUT, "load-format"),
    ("1: the port schedules every step", LEAVE_OUT, "num-scheduler-steps"),
    ("what the key adapters says", "Leave it out; name adapters in the key adapters.", "enable-lora"),
    ("LoRA adapters of linear layers in float32, whole on each GPU", "Leave it out; see the key adapters.",
     "enable-prompt-adapter prompt-adapters qlora-adapter-name-or-path enable-lora-bias fully-sharded-loras lora-dtype "
     "lora-extra-vocab-size long-lora-scaling-factors"),
    ("every expert split over the GPUs", LEAVE_OUT, "enable-expert-parallel enable-eplb"),
]
# The same of vLLM as it is released, beside those above.
_STOCK_KINDS: list[tuple[str, str, str]] = [
    ("one server of one host: it would be reached past its key, or never become ready", LEAVE_OUT,
     "uds nnodes node-rank master-addr master-port data-parallel-external-lb data-parallel-hybrid-lb tokens-only"),
    ("1: an instance is split by tensor_parallel_size", LEAVE_OUT,
     "prefill-context-parallel-size decode-context-parallel-size"),
    ("as many blocks as gpu_memory_utilization leaves", "Leave it out; change gpu_memory_utilization.",
     "kv-cache-memory-bytes"),
    ("all of the cache on the GPUs, as planned", LEAVE_OUT, "kv-offloading-backend kv-offloading-size"),
    ("no socket that others reach without the key", LEAVE_OUT, "ec-transfer-config tool-server"),
    ("false: prompts and answers stand in no log", LEAVE_OUT, "enable-log-requests enable-log-outputs"),
    ("a model that generates: the unit asks each server for tokens", LEAVE_OUT, "runner convert pooler-config"),
    ("true: vLLM's own all-reduce has hung these GPUs, up to a reboot", "Leave it out: NCCL adds.",
     "disable-custom-all-reduce"),
]
REFUSED = {name: (expected, step) for expected, step, names in _KINDS for name in names.split()}
STOCK_REFUSED = {
    name: (expected, step) for expected, step, names in _KINDS + _STOCK_KINDS for name in names.split()
}
# Options of the port's vLLM that the released one has under another name, or says in another option.
RENAMED = {
    "max-seq-len-to-capture": "max-cudagraph-capture-size", "override-pooler-config": "pooler-config",
    "expand-tools-even-if-tool-choice-none": "exclude-tools-when-tool-choice-none",
    "enable-reasoning": "reasoning-parser", "rope-scaling": "hf-overrides", "rope-theta": "hf-overrides",
    **dict.fromkeys(
        ("guided-decoding-backend", "guided-decoding-disable-fallback", "guided-decoding-disable-any-whitespace",
         "guided-decoding-disable-additional-properties"), "structured-outputs-config",
    ),
    **dict.fromkeys(
        ("num-redundant-experts", "eplb-window-size", "eplb-step-interval", "eplb-log-balancedness"), "eplb-config",
    ),
}
# Values of these options that change nothing, and are taken.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    **{name: (False,) for name in STOCK_REFUSED if any(name in known.booleans for known in KNOWN.values())},
    "disable-log-requests": (True,), "disable-custom-all-reduce": (True,), "nnodes": (1,), "node-rank": (0,),
    "prefill-context-parallel-size": (1,), "decode-context-parallel-size": (1,), "runner": ("auto", "generate"),
    "convert": ("auto", "none"), "enforce-eager": (), "data-parallel-size": (1,), "api-server-count": (1,),
    "distributed-executor-backend": ("mp",), "cpu-offload-gb": (0, 0.0),
    "device": ("auto",), "kv-cache-dtype": ("auto",), "task": ("auto", "generate"), "load-format": ("auto",),
    "num-scheduler-steps": (1,), "config-format": ("auto", "hf"),
}


def known_by(engine: str | None) -> Options:
    """Options of an engine; of the port if there is none such."""
    return KNOWN.get(str(engine), KNOWN["port"])


def positive_name(option: str, engine: str | None = None) -> str:
    """The option that `option` switches on, or off as no-NAME."""
    base = option.removeprefix(NO)
    return base if base in known_by(engine).switches else option


def meant(extra: dict[str, Any], engine: str | None = None) -> dict[str, Any]:
    """Options by the names that vLLM has inside, with no-NAME: true as NAME: false."""
    found = {}
    for option, value in extra.items():
        name = positive_name(option, engine)
        found[name.replace("-", "_")] = value if name == option else value is not True
    return found


# Options of vLLM as it is released. Its own all-reduce has hung GPUs of this kind, up to a reboot; NCCL adds instead.
STOCK = {"disable-custom-all-reduce": True}
# Its settings of guides. Another backend ends the engine at a guide that it cannot compile.
GUIDES, BACKEND = "structured-outputs-config", {"backend": "guidance"}


# Engines whose vLLM spans hosts by Ray; others start their ranks on each host by themselves.
RAY = ("port",)


def by_ray(engines: Iterable[Any]) -> list[str]:
    """The engines among these that span hosts by Ray."""
    return [engine for engine in engines if engine in RAY]


def of_instance(item: dict[str, Any]) -> dict[str, Any]:
    """Options of `vllm serve` of an instance with its defaults, as its file of options has them."""
    own = {"model": item["model"], "host": item["host"], "port": item["port"],
           "tensor-parallel-size": item["tensor_parallel_size"], "dtype": item["dtype"], "disable-log-requests": True}
    if item["engine"] == "stock":
        own |= STOCK if item["cuda_graphs"] else {**STOCK, "enforce-eager": True}
    for key in ("max_model_len", "revision", "gpu_memory_utilization", "served_model_name"):
        if key in item:
            own[key.replace("_", "-")] = item[key]
    stages = {}
    if item.get("hosts"):
        backend = "ray" if by_ray([item["engine"]]) else "mp"
        stages = {"pipeline-parallel-size": len(item["hosts"]), "distributed-executor-backend": backend}
    return written({**own, **item["extra_args"], **stages}, item["engine"])


def written(extra: dict[str, Any], engine: str | None = None) -> dict[str, Any]:
    """Options as vLLM's file of options takes them: there it drops each false without a word."""
    found: dict[str, Any] = {GUIDES: json.dumps(BACKEND)} if engine == "stock" else {}
    for name, value in extra.items():
        if name == SPECULATION and draft_of(extra):
            # vLLM would ask whether the draft model can be split as the model is.
            found[name] = json.dumps({**(mapping(value) or {}), "draft_tensor_parallel_size": 1})
        elif name == GUIDES:
            found[name] = json.dumps({**(mapping(value) or {}), **BACKEND})
        elif value is not False:
            found[name] = value
        elif name in known_by(engine).switches:
            found[NO + name] = True
    return found


def speculative(extra: dict[str, Any]) -> dict[str, Any] | None:
    """Settings of an instance's speculative decoding; None without it, or if they are malformed."""
    settings = mapping(extra.get(SPECULATION))
    return None if settings is None or speculation.faults(settings) else settings


def draft_of(extra: dict[str, Any]) -> dict[str, Any] | None:
    """The model that proposes tokens, as {model, revision}; None where there is none, or nobody could read it."""
    settings = speculative(extra) or {}
    return {"model": settings["model"], "revision": settings.get("revision")} if "model" in settings else None


def models_of(instance: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The models that a server reads, as {model, revision}, by the key of the instance that names each."""
    found = {"model": {"model": instance.get("model"), "revision": instance.get("revision")}}
    if draft := draft_of(instance.get("extra_args") or {}):
        found[f"extra_args.{SPECULATION}.model"] = draft
    return found


def refused_by(engine: str | None) -> dict[str, tuple[str, str]]:
    """Options that no instance of an engine can have: what is expected, and the next step."""
    return STOCK_REFUSED if engine == "stock" else REFUSED


def is_refused(option: str, value: Any, engine: str | None = None) -> bool:
    """Return whether no instance can have the option, but with a value that changes nothing."""
    name = positive_name(option, engine)
    (value,) = meant({option: value}, engine).values()
    return name in refused_by(engine) and str(value) not in map(str, NEUTRAL.get(name, ()))


def unknown_finding(option: str, where: str, engine: str | None = None) -> dict[str, str]:
    """Finding about an option that vLLM does not have; argparse may complete it to another one."""
    options = known_by(engine).all
    if engine == "stock" and option in KNOWN["port"].all:
        successor = RENAMED.get(positive_name(option))
        return finding(
            "error", where, "an option that the vLLM of engine: stock has no more",
            f"{successor} in its place" if successor else "one of its options",
            f"Write it as {successor}, or set engine to port." if successor else "Leave it out, or set engine to port.",
        )
    longer = sorted(name for name in options if name.startswith(option))
    near = longer or difflib.get_close_matches(option, options, n=1)
    return finding(
        "error", where, "an option that the locked vLLM does not have", "the whole name of one of its options",
        f"Did you mean {near[0]}? Write it in full." if near else "Correct the name, or take it out.",
    )


def switch_faults(name: str, options: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Expectation and next step for the value of an option that is on or off."""
    if not isinstance(options[name], bool):
        yield "true or false, without quotes", "Correct the value."
    elif name == AUTO_TOOLS and not options[name]:
        yield "true, or no value: the parser follows from the model", "Set the instance's key parsers to false."
    elif name == AUTO_TOOLS and "tool-call-parser" not in options:
        yield "tool-call-parser beside it", "Name the parser, or leave it out: the parser follows from the model."


def unparsable(name: str, text: str, known: Options) -> str | None:
    """Return what is expected where vLLM's parser would refuse the value of an option, or None."""
    if name in known.choices:
        return None if text in known.choices[name] else f"one of {', '.join(known.choices[name])}"
    if name not in known.kinds or (name in known.optional and text in ("", "None")):
        return None
    reader, expected = PARSED[known.kinds[name]]
    try:
        reader(text)
    except ValueError:
        return expected
    return None


def value_faults(option: str, options: dict[str, Any], engine: str | None = None) -> Iterator[tuple[str, str]]:
    """Expectation and next step for an option's value that vLLM would read differently than meant."""
    value, name = options[option], positive_name(option, engine)
    correct, sizes = "Correct the value.", BLOCKS.get(str(engine), BLOCK_SIZES)
    counts = {**COUNTS, "block-size": ("|".join(map(str, sizes)), f"one of {', '.join(map(str, sizes))}")}
    if name != option:
        if value is not True:
            yield "true", f"Write {name}: true or {name}: false."
        elif name in options:
            yield f"{name} or {option}, not both", "Leave one of them out."
    elif name in known_by(engine).booleans:
        yield from switch_faults(name, options)
    elif isinstance(value, bool):
        yield "a number or a text", correct
    elif re.match("-(?![0-9]+$)", str(value)):
        yield "a value that does not begin with a hyphen: vLLM takes that for an option", correct
    elif name in counts and not re.fullmatch(counts[name][0], str(value)):
        yield counts[name][1], correct
    elif name == "rope-theta" and "rope_theta" not in overrides_of({name: value}):
        yield "a number", correct
    elif name in MAPPINGS and mapping(value) is None:
        yield "a text that holds a JSON mapping", "Correct the text."
    elif name == GUIDES and (mapping(value) or {}).get("backend", *BACKEND.values()) not in BACKEND.values():
        yield "the backend guidance: a guide that another one cannot compile ends the engine", "Leave the backend out."
    elif name == "hf-overrides" and "rope_parameters" in (mapping(value) or {}):
        yield "rope_theta and rope_scaling: the engine does not know rope_parameters", "Write them so."
    elif expected := unparsable(name, str(value), known_by(engine)):
        yield expected, correct


def option_findings(options: dict[str, Any], where: str, engine: str | None = None) -> list[dict[str, str]]:
    """Findings about the well-formed extra_args of an instance; `where` is how messages name them."""
    found = []
    for option, value in sorted(options.items()):
        here, name = f"{where}.{option}", positive_name(option, engine)
        if option not in known_by(engine).all:
            found.append(unknown_finding(option, here, engine))
        elif name in OWN:
            found.append(finding(
                "error", here, "an option that the instance sets itself", "options that have no key of their own",
                f"Use the instance's key {OWN[name]} instead.",
            ))
        elif is_refused(option, value, engine):
            found.append(finding("error", here, shown(value), *refused_by(engine)[name]))
        else:
            found += [finding("error", here, shown(value), *fault) for fault in value_faults(option, options, engine)]
    if (settings := mapping(options.get(SPECULATION))) is not None:
        here = f"{where}.{SPECULATION}"
        found += [
            finding("error", f"{here}.{key}", what, expected, f"Correct it, or leave {SPECULATION} out.")
            for key, what, expected in speculation.faults(settings)
        ]
        if engine == "stock" and "model" in settings:
            found.append(finding(
                "error", f"{here}.model", shown(settings["model"]), "none: engine stock has no draft models",
                "Use method ngram, or set engine to port.",
            ))
    return found
