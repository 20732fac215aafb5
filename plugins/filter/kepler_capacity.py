"""Filters for what models need of a profile's GPUs, and whether the instances of an inventory fit."""

from __future__ import annotations

import contextlib
import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ansible.errors import AnsibleFilterError
from ansible_collections.kepler.vllm.plugins.filter.kepler_host import RANK_GIB, swap_gib
from ansible_collections.kepler.vllm.plugins.filter.kepler_instances import INSTANCES, engines_of, setting
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint import adapters as rules
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint import speculation
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint.config import overridden
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint.engine import Engine, judge
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint.errors import CheckpointError, reasons_of
from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint.files import numbered
from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.plugin_utils import capacity, engine_options, throughput
from ansible_collections.kepler.vllm.plugins.plugin_utils.capacity import Options, Storage, gib, need, storage_of
from ansible_collections.kepler.vllm.plugins.plugin_utils.findings import shown
from ansible_collections.kepler.vllm.plugins.plugin_utils.model_families import (
    DEFAULT_POSITIONS,
    FAMILIES,
    NO_WINDOW,
    CapacityError,
    Model,
    Tensor,
    UnknownModelError,
    read,
    tensors_of,
    text_config,
    uncounted,
)
from ansible_collections.kepler.vllm.plugins.plugin_utils.several_hosts import stages_of

# A layer's number in the name of a module.
NUMBER = re.compile(r"\.layers\.(\d+)\.")
# The answer of the module model_facts for a directory without weights.
NO_WEIGHTS = "no weights"
COMPLETE = "Complete the model's files."
OTHER_ADAPTER = "Choose another adapter, or merge it into its model."
# Nothing is known of adapters. A GPU whose memory is not asked for.
NOTHING: dict[str, dict[str, Any]] = {}
NO_GPU = {"memory_mib": 0, "bandwidth": 0}
# The engine of instances that name none.
PORT = "port"
# GiB of host memory for what a server has once: the API, the guides that it compiles, requests and answers.
SERVER_GIB = 4


def plan_options(profile: dict[str, Any], **asked: Any) -> dict[str, Any]:
    """Parse the options of a plan, what is parsed already too. Raises AnsibleFilterError by the variable's name.

    Args:
        profile: the hardware profile of the GPUs.
        asked: context, max_num_seqs, utilization, engine and hosts; None for a default.
    """
    name = asked.get("engine") or profile["serve"]["engine"]
    if name not in engines_of(profile["serve"]):
        raise AnsibleFilterError(
            f"plan_engine: found {shown(name)}; expected {' or '.join(engines_of(profile['serve']))}, which the "
            f"profile {profile['name']} has. Correct it, or leave it out."
        )
    return {
        "engine": name,
        "context": number_of("plan_context", asked.get("context"), 1, 1 << 24),
        "max_num_seqs": number_of("plan_max_num_seqs", asked.get("max_num_seqs"), 1, 1 << 16),
        "utilization": number_of("plan_utilization", asked.get("utilization"), 0.1, 0.95),
        "hosts": number_of("plan_hosts", asked.get("hosts"), 1, capacity.MOST_HOSTS) or 1,
    }


def capacity_plan(
    facts: dict[str, Any], profile: dict[str, Any], adapters: dict[str, dict[str, Any]] = NOTHING, **asked: Any
) -> dict[str, Any]:
    """Every layout of a model: see capacity.plan.

    Args:
        facts: config, tensors and faults, as the module model_facts gives them.
        profile: the hardware profile of the GPUs.
        adapters: facts of each by its name.
        asked: see plan_options.
    """
    options = plan_options(profile, **asked)
    name, hosts = options["engine"], options["hosts"]
    limits = {"max_num_seqs": options["max_num_seqs"], "gpu_memory_utilization": options["utilization"]}
    for fault in facts["faults"]:
        # A model is planned before it is downloaded, too.
        if fault["found"] == NO_WEIGHTS:
            continue
        raise AnsibleFilterError(
            "plan_model: found {found} in {file}; expected {expected}. Complete the model's files.".format(**fault)
        )
    engine, *others = engines_in_order(profile["serve"]["engines"], name, profile["gpu"]["compute_capability"])
    # The figures are those of the port's kernels.
    step = profile["gpu"].get("step") if name == PORT else None
    own = {**capacity.figures_of(profile["gpu"]), **(capacity.V1 if name == "stock" else {})}
    try:
        check_adapters(adapters, facts)
        ranks = [rank for rank in (rules.rank_of(adapter["config"]) for adapter in adapters.values()) if rank]
        made = capacity.plan(
            facts["config"], facts["tensors"], options["context"],
            Options(
                **own, adapters=len(adapters), adapter_rank=rules.room_for(ranks) if adapters else 0,
                **{key: value for key, value in limits.items() if value is not None},
            ),
            profile["serve"]["sizes"], facts.get("tokenizer"), engine,
            functools.partial(throughput.predicted, step) if step else None, hosts,
        )
    except CapacityError as error:
        raise AnsibleFilterError(f"plan_model: {error}. Plan another model, or complete its files.") from error
    if made["refused"] and (other := not_refused_by(facts, {}, others)):
        made["conclusion"].append(f"The engine {other} does not refuse it: plan with -e plan_engine={other}.")
    return {**made, "processor": step["processor"]["name"] if step else None}


def check_adapters(adapters: dict[str, dict[str, Any]], facts: dict[str, Any]) -> None:
    """Raise AnsibleFilterError for an adapter that the model cannot have, and CapacityError as read does."""
    if not adapters:
        return
    model = read(facts["config"], facts["tensors"])
    if refused := without_adapters(model):
        found, expected = refused
        raise AnsibleFilterError(f"plan_adapters: found {found}; expected {expected}. Merge it into its model.")
    tensors = tensors_of(model, facts["tensors"])
    for name, adapter in adapters.items():
        for found, expected in adapter_faults(adapter, model, tensors):
            raise AnsibleFilterError(f"plan_adapters: {name}: found {found}; expected {expected}. {OTHER_ADAPTER}")


def engines_in_order(names: Sequence[str], first: str, capability: str | None) -> list[Engine]:
    """The engines of a profile, `first` and then the others."""
    return [Engine(name, capability) for name in [first, *(name for name in names if name != first)]]


def not_refused_by(facts: dict[str, Any], options: dict[str, Any], others: Sequence[Engine]) -> str | None:
    """Name of the first of other engines that does not refuse a model with these options; None if there is none."""
    asked = facts["config"], facts["tensors"], facts.get("tokenizer"), options
    return next((other.name for other in others if not judge(*asked, other)), None)


def number_of(variable: str, value: Any, least: float, most: float) -> Any:
    """A number of the command line, where every value is a text; None if it is not set."""
    if value in (None, ""):
        return None
    try:
        # As text: 2.5 is no integer, and neither is True.
        number = type(least)(str(value))
    except ValueError:
        number = None
    if number is None or not least <= number <= most:
        kind = "an integer" if isinstance(least, int) else "a number"
        raise AnsibleFilterError(
            f"{variable}: found {shown(value)}; expected {kind} of {least} to {most}. Correct the value."
        )
    return number


def capacity_table(plan: dict[str, Any]) -> list[str]:
    """A plan for people, line by line."""
    return capacity.table(plan) + throughput.lines(plan)


def split_findings(
    model: Model, tensors: list[Tensor], storage: Storage, gpus: int, listed: int, where: str
) -> list[dict[str, str]]:
    """Findings about a model's sizes over the GPUs of an instance."""
    found = []
    faults = capacity.size_faults(model, gpus, tensors, storage)
    if faults:
        sizes = capacity.sizes_that_divide(model, max(listed, gpus), tensors, storage)
        found.append(finding(
            "error", f"{where}.tensor_parallel_size", f"{gpus}, over which {' and '.join(faults)} cannot be split",
            f"one of {', '.join(map(str, sizes))}", "Change tensor_parallel_size.",
        ))
    return found + [
        finding("error", f"{where}.model", what, expected, "Serve another model.")
        for what, expected in capacity.model_faults(model, gpus, storage)
    ]


def length_findings(model: Model, instance: dict[str, Any], where: str) -> list[dict[str, str]]:
    """A finding where an instance asks for more positions than the model has."""
    asked = instance.get("max_model_len")
    if asked is None or model.positions is None or asked <= model.positions:
        return []
    return [finding(
        "error", f"{where}.max_model_len", shown(asked), f"at most {model.positions}, the model's positions",
        "Lower max_model_len, or leave it out.",
    )]


def length_of(model: Model, instance: dict[str, Any]) -> int:
    """Return the longest sequence that an instance serves, in tokens."""
    return instance.get("max_model_len") or model.positions or DEFAULT_POSITIONS


def ranks_of(adapters: dict[str, dict[str, Any]], instance: dict[str, Any]) -> list[int]:
    """Return the ranks of an instance's adapters, as far as their configs have them."""
    configs = [adapters[path]["config"] or {} for path in setting(instance, "adapters").values() if path in adapters]
    return [rank for rank in map(rules.rank_of, configs) if rank]


def without_adapters(model: Model) -> tuple[str, str] | None:
    """Why the engine has no adapters of a model: (found, expected); None if it has."""
    family = FAMILIES.get(model.model_type)
    if not family or family.adapters:
        return None
    known = ", ".join(name for name, family in FAMILIES.items() if family.adapters)
    return f"adapters of the model type {model.model_type}", f"one of {known}"


def adapter_findings(
    adapters: dict[str, dict[str, Any]], model: Model, tensors: list[Tensor], instance: dict[str, Any], where: str
) -> list[dict[str, str]]:
    """Findings about the LoRA adapters of an instance, as far as their directories are there."""
    named = setting(instance, "adapters")
    if named and (refused := without_adapters(model)):
        return [finding("error", f"{where}.adapters", *refused, "Merge the adapter into its model.")]
    room = capacity.options_of(instance, NO_GPU, [rules.RANKS[-1]]).adapter_rank
    return [
        finding("warning", f"{where}.adapters.{name}", f"{path}: an adapter of {base}", f"one of {instance['model']}",
                "Its answers make no sense with another model: see that this one is the same.")
        for name, path in named.items()
        if path in adapters and (base := rules.other_base(adapters[path]["config"] or {}, instance["model"]))
    ] + [
        finding("error", f"{where}.adapters.{name}", f"{path}: {what}", expected, OTHER_ADAPTER)
        for name, path in named.items() if path in adapters
        for what, expected in adapter_faults(adapters[path], model, tensors, room)
    ]


def adapter_faults(
    facts: dict[str, Any], model: Model, tensors: list[Tensor], room: int = rules.RANKS[-1]
) -> list[tuple[str, str]]:
    """What keeps a model with these tensors from serving an adapter: (found, expected)."""
    layers = capacity.adapter_layers(tensors)
    # Layers are counted by the config; the tensors of all have one name.
    its_own = {
        module: layers[numbered(module)] for module in rules.modules_of(facts["tensors"])
        if numbered(module) in layers and all(int(number) < model.layers for number in NUMBER.findall(module))
    }
    return rules.faults(facts, room, its_own if layers else None)


def draft_findings(model: Model, facts: dict[str, Any], where: str, engine: Engine) -> list[dict[str, str]]:
    """Findings about the model that proposes tokens to another, of which `facts` are known."""
    faults = [(*reason, COMPLETE) for reason in reasons_of(facts["faults"])]
    config = facts["config"] or {}
    vocabulary = text_config(config).get("vocab_size")
    refused = speculation.draft_faults(config.get("model_type"), vocabulary, model.vocabulary)
    if config and not refused:
        refused = judge(config, facts["tensors"], engine=engine)
    refused += [speculation.ALONE] if facts.get("alone") else []
    faults += [(*fault, "Name another draft model.") for fault in refused]
    return [finding("error", f"{where}.extra_args.{engine_options.SPECULATION}.model", *fault) for fault in faults]


def with_speculation(
    options: Options, model: Model, instance: dict[str, Any], draft: dict[str, Any] | None
) -> Options:
    """The options and what speculating takes of the first GPU; a draft model counts as far as its facts are known."""
    settings = engine_options.speculative(instance.get("extra_args") or {})
    if settings is None:
        return options
    weights = token = 0
    if draft and draft["config"] is not None:
        with contextlib.suppress(CapacityError):
            drafting = read(draft["config"], draft["tensors"])
            storage = storage_of(setting(instance, "dtype"), drafting.quantization)
            weights = capacity.weight_bytes(drafting, tensors_of(drafting, draft["tensors"]), 1, storage)
            token = capacity.token_bytes(drafting, 1, storage)
    checked = capacity.checked_bytes(model, settings, options)
    return replace(options, beside=weights + checked, beside_token=token)


def batch_findings(model: Model, instance: dict[str, Any], where: str, options: Options) -> list[dict[str, str]]:
    """A finding where a batch takes fewer tokens than vLLM wants: a prompt where prefill is whole, one a sequence."""
    length = length_of(model, instance)
    tokens, least = options.batched_tokens(model, length), options.max_num_seqs
    if not options.is_chunked(model, length):
        least = max(least, length)
    if tokens >= least:
        return []
    name = "max-num-seqs" if least == options.max_num_seqs else "max_model_len"
    return [finding(
        "error", f"{where}.extra_args.max-num-batched-tokens", f"{tokens} tokens", f"at least {least}, the {name}",
        f"Raise max-num-batched-tokens, or lower {name}.",
    )]


def room_findings(
    model: Model, tensors: list[Tensor], instance: dict[str, Any], where: str, options: Options
) -> list[dict[str, str]]:
    """A finding where weights and one sequence of the longest context do not fit a GPU."""
    gpus = setting(instance, "tensor_parallel_size")
    storage = storage_of(setting(instance, "dtype"), model.quantization)
    length = length_of(model, instance)
    at = need(model, tensors, gpus, length, options, storage)
    if at.fits:
        return []
    available = int(options.memory * options.gpu_memory_utilization)
    longest = capacity.longest_context(model, tensors, gpus, options, storage)
    more = capacity.gpus_needed(model, tensors, length, options, storage)
    source = "" if instance.get("max_model_len") else ", the model's own length"
    steps = []
    half = storage_of("half", model.quantization)
    if need(model, tensors, gpus, length, options, half).fits:
        steps.append("Set dtype to half")
    if longest:
        steps.append(f"{'set' if steps else 'Set'} max_model_len to {longest} at most")
    if more and more > gpus:
        steps.append(f"{'spread' if steps else 'Spread'} it over {more} GPUs")
    if options.max_num_seqs > 16:
        steps.append(f"{'lower' if steps else 'Lower'} max-num-seqs (it is {options.max_num_seqs}) in extra_args")
    return [finding(
        "error", f"{where}.max_model_len" if longest else f"{where}.model",
        f"{length} tokens{source}: {gib(at.needed)} a GPU on {gpus} (weights {gib(at.weights)}, activations "
        f"{gib(at.activations)}, other {gib(at.outside)}, one sequence {gib(at.sequence)})",
        f"at most {gib(available)}, {options.gpu_memory_utilization:.0%} of a GPU"
        + (f", which holds {longest} tokens" if longest else ", which the weights and activations fill already"),
        f"{', or '.join(steps) or 'Serve a smaller model'}.",
    )]


def one_model_findings(
    facts: dict[str, Any], instance: dict[str, Any], where: str, gpu: dict[str, Any] | None,
    adapters: dict[str, dict[str, Any]], engine: Engine, draft: dict[str, Any] | None = None,
    others: Sequence[Engine] = (),
) -> list[dict[str, str]]:
    """Findings about the model of one instance; whether it fits is not checked without a `gpu`.

    draft: facts of the model that proposes tokens to it. others: engines that the host can have in place of `engine`.
    """
    faults = [
        finding("error", f"{where}.model", what, expected, COMPLETE) for what, expected in reasons_of(facts["faults"])
    ]
    if facts["config"] is None:
        return faults
    extra = instance.get("extra_args") or {}
    try:
        if refused := judge(facts["config"], facts["tensors"], facts.get("tokenizer"), extra, engine):
            other = not_refused_by(facts, extra, others)
            return faults + [
                finding("error", f"{where}.model", what, expected,
                        f"Set engine to {other}, which does not refuse it, or serve another model." if other else
                        "Serve another model, or another checkpoint of it.")
                for what, expected in refused
            ]
        config = configured(facts, instance)
        model = read(config, facts["tensors"])
        storage = storage_of(setting(instance, "dtype"), model.quantization)
        tensors = tensors_of(model, facts["tensors"]) if model.quantization or setting(instance, "adapters") else []
        gpus = setting(instance, "tensor_parallel_size")
        found = split_findings(model, tensors, storage, gpus, len(setting(instance, "gpus")), where)
        stages = stages_of(instance)
        if stages > model.layers:
            found.append(finding(
                "error", f"{where}.hosts", f"{stages} hosts and a model of {model.layers} layers",
                f"at most {model.layers} hosts", "Name fewer hosts.",
            ))
        found += length_findings(model, instance, where)
        found += adapter_findings(adapters, model, tensors, instance, where)
        if draft:
            found += draft_findings(model, draft, where, engine)
        options = capacity.options_of(instance, gpu or NO_GPU, ranks_of(adapters, instance))
        options = with_speculation(options, model, instance, draft)
        found += batch_findings(model, instance, where, options)
        if gpu and not found and not faults:
            whole = tensors or tensors_of(model, facts["tensors"])
            found += room_findings(*capacity.stage_of(model, whole, stages), instance, where,
                                   replace(options, stages=stages))
        found += [
            finding("warning", f"{where}.model", f"a {part} and no safetensors", "weights as safetensors",
                    "The weights of that part were not counted: leave room for them.")
            for part in uncounted(config, facts["tensors"])
        ]
    except UnknownModelError as error:
        return [*faults, finding(
            "warning", f"{where}.model", error.found, error.expected,
            "Whether it fits was not checked: try it, or serve a model of these.",
        )]
    except CapacityError as error:
        return [*faults, finding("error", f"{where}.model", error.found, error.expected, "Correct config.json.")]
    return faults + found


def configured(facts: dict[str, Any], instance: dict[str, Any]) -> dict[str, Any]:
    """Return the config of a model as the options of an instance change it. Raises CapacityError."""
    extra = instance.get("extra_args") or {}
    try:
        config = overridden(facts["config"], extra)
    except CheckpointError as error:
        raise CapacityError(f"{error.found} in config.json", error.expected) from None
    return {**config, NO_WINDOW: True} if extra.get("disable-sliding-window") is True else config


def memory_limit(
    models: dict[str, dict[str, Any]], instance: dict[str, Any], adapters: dict[str, dict[str, Any]]
) -> str | None:
    """Return the most host memory that an instance's unit can need, as systemd writes it, or None if nobody knows.

    Weights pass through it on their way to the GPUs. Pickled files are read whole by each rank, and each rank keeps
    every adapter whole.
    """
    ranks, weights = setting(instance, "tensor_parallel_size"), 0
    for key, named in engine_options.models_of(instance).items():
        facts = models.get(model_key(named))
        if facts is None or facts["config"] is None:
            return None
        try:
            model = read(configured(facts, instance) if key == "model" else facts["config"], facts["tensors"])
            tensors = tensors_of(model, facts["tensors"])
        except CapacityError:
            return None
        if uncounted(model.config, facts["tensors"]):
            return None
        storage = storage_of(setting(instance, "dtype"), model.quantization)
        stage, own = capacity.stage_of(model, tensors, stages_of(instance))
        weights += capacity.weight_bytes(stage, own, 1, storage) * (1 if facts["tensors"] else ranks)
        if key == "model":
            weights += ranks * capacity.adapter_bytes(
                model, tensors, 1, len(setting(instance, "adapters")), max(ranks_of(adapters, instance), default=0)
            )
    return f"{math.ceil(SERVER_GIB + weights / capacity.GIB + ranks * (RANK_GIB + swap_gib(instance)))}G"


def with_memory_limits(
    instances: list[dict[str, Any]], models: dict[str, dict[str, Any]], device: str,
    adapters: dict[str, dict[str, Any]] = NOTHING,
) -> list[dict[str, Any]]:
    """Return instances with a `memory_max` each, as far as their models are known.

    Args:
        instances: well-formed ones, with their defaults.
        models: what the module model_facts returned, by model_key.
        device: vllm_service_device; on `cpu` weights and cache stay in the host's memory, and nothing is derived.
        adapters: what the module returned of LoRA adapters, by their directories.
    """
    def limited(instance: dict[str, Any]) -> dict[str, Any]:
        known = device != "cpu" and "memory_max" not in instance
        limit = memory_limit(models, instance, adapters) if known else None
        return {**instance, "memory_max": limit} if limit else instance

    return [limited(instance) for instance in instances]


def model_key(named: dict[str, Any]) -> str:
    """Parameters of the module model_facts for a model, named as an instance does."""
    model = named["model"]
    return model if model.startswith("/") else f"{model}@{named.get('revision') or 'main'}"


def draft_facts(models: dict[str, dict[str, Any]], instance: dict[str, Any]) -> dict[str, Any] | None:
    """Facts about the model that proposes tokens to an instance's own."""
    draft = engine_options.draft_of(instance.get("extra_args") or {})
    return models.get(model_key(draft)) if draft else None


def adapter_paths(instances: list[dict[str, Any]]) -> list[str]:
    """Directories of the adapters of instances, each once."""
    return list(dict.fromkeys(path for instance in instances for path in setting(instance, "adapters").values()))


def model_keys(instances: list[dict[str, Any]]) -> list[str]:
    """The models of instances and those that draft for them, each once."""
    return list(dict.fromkeys(
        model_key(named) for instance in instances for named in engine_options.models_of(instance).values()
    ))


def model_findings(
    models: dict[str, dict[str, Any]], instances: list[dict[str, Any]], gpu: dict[str, Any], device: str = "kepler",
    adapters: dict[str, dict[str, Any]] = NOTHING, engines: Sequence[str] = (),
) -> list[dict[str, str]]:
    """Findings about the models of instances that are there to be read.

    Args:
        models: what the module model_facts returned, by model_key.
        instances: well-formed ones, with their defaults.
        gpu: the profile's.
        device: vllm_service_device; memory is checked on `kepler` alone.
        adapters: what the module returned of LoRA adapters, by their directories.
        engines: those of the profile.
    """
    found = []
    for index, instance in enumerate(instances):
        if model_key(instance) not in models:
            continue
        name = setting(instance, "engine") or PORT
        engine, *others = engines_in_order(engines, name, gpu.get("compute_capability"))
        found += one_model_findings(
            models[model_key(instance)], instance, f"{INSTANCES}[{index}]", gpu if device == "kepler" else None,
            adapters, engine, draft_facts(models, instance), others,
        )
    return found


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "adapter_paths": adapter_paths,
            "capacity_plan": capacity_plan,
            "capacity_table": capacity_table,
            "model_findings": model_findings,
            "model_keys": model_keys,
            "plan_options": plan_options,
            "with_memory_limits": with_memory_limits,
        }
