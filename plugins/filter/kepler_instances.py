"""Filters that validate the instances of the inventory, without a host."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from ansible_collections.kepler.vllm.plugins.module_utils.checkpoint import adapters as rules
from ansible_collections.kepler.vllm.plugins.module_utils.findings import finding
from ansible_collections.kepler.vllm.plugins.module_utils.server.addresses import is_loopback
from ansible_collections.kepler.vllm.plugins.plugin_utils import engine_options, several_hosts
from ansible_collections.kepler.vllm.plugins.plugin_utils.addresses import is_listening_address
from ansible_collections.kepler.vllm.plugins.plugin_utils.argument_specs import correction, entry_points, has_type
from ansible_collections.kepler.vllm.plugins.plugin_utils.capacity import UTILIZATION
from ansible_collections.kepler.vllm.plugins.plugin_utils.findings import PLAIN_PATH_FORM, is_plain_path, shown
from ansible_collections.kepler.vllm.plugins.plugin_utils.several_hosts import INSTANCES

# The `serve` of no profile: nothing has a default by it.
NO_PROFILE: dict[str, Any] = {}


# A part of a model's name on the hub.
HUB_NAME = re.compile("[A-Za-z0-9_][A-Za-z0-9._-]{0,95}")
# The longest prompt and answer that anybody asks for, and bytes of memory without which no server starts.
MOST_TOKENS, LEAST_BYTES = 1 << 24, 1 << 30
UNITS = {"": 0, "K": 10, "M": 20, "G": 30, "T": 40}


def is_text(value: str) -> bool:
    # vLLM takes a value that begins with a hyphen for an option.
    return bool(value.strip()) and value.isprintable() and not value.startswith("-")


def is_path_or_hub_name(value: str) -> bool:
    # Ollama and URLs have colons; the hub has letters, digits and ._- alone.
    parts = value.split("/")
    return (value.startswith("/") and bool(value.strip("/."))) or (
        (len(parts) < 3 or value.lower().endswith(".gguf")) and all(map(HUB_NAME.fullmatch, parts[:2]))
    )


def is_adapters(value: dict) -> bool:
    return all(
        isinstance(name, str) and re.fullmatch("[A-Za-z0-9][A-Za-z0-9._/-]*", name) and is_plain_path(path)
        for name, path in value.items()
    )


def is_arguments(value: dict) -> bool:
    # vLLM's file of options has no lists and no mappings: it would take their Python form for a text.
    return all(
        isinstance(key, str) and re.fullmatch("[a-z][a-z0-9-]*", key) and isinstance(option, (str, int, float))
        and str(option) not in ("nan", "inf", "-inf") for key, option in value.items()
    )


def is_memory(value: str) -> bool:
    if re.fullmatch("(100|[1-9][0-9]?)%", value):
        return True
    found = re.fullmatch("([1-9][0-9]*)([KMGT]?)", value)
    return found is not None and int(found[1]) << UNITS[found[2]] >= LEAST_BYTES


# The schema of an instance: key -> type, default, choices, description.
KEYS = entry_points("vllm_service")["instance"]
# Names of keys that inventories of before have.
ALIASES = {"dies": "gpus"}
DEFAULTS = {key: option["default"] for key, option in KEYS.items() if "default" in option}
# Further conditions of a value of the right type: a test, and the text that messages expect.
RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    # vLLM's sockets lie in a directory of this name, and the path of a socket is short.
    "name": (
        lambda value: bool(re.fullmatch("[a-z0-9][a-z0-9-]{0,41}", value)),
        "lower-case letters, digits and hyphens, 42 at most",
    ),
    "model": (
        lambda value: is_text(value) and not value.startswith(".") and is_path_or_hub_name(value),
        "the name of a Hugging Face model, OWNER/NAME/FILE.gguf for one GGUF file of it, or the absolute path of its "
        "directory or GGUF file on the host",
    ),
    "host": (is_listening_address, "an address to listen on, such as 127.0.0.1, 0.0.0.0 or ::, or a host name"),
    "port": (lambda value: 1024 <= value <= 65535, "an integer of 1024 to 65535"),
    "gpus": (
        lambda value: bool(value) and min(value) >= 0 and len(set(value)) == len(value),
        "a list of different integers from 0",
    ),
    "tensor_parallel_size": (lambda value: value >= 1, "an integer from 1"),
    "engine": (lambda value: True, "which the hosts of this profile have"),
    "hosts": (
        lambda value: len(value) > 1 and len(set(value)) == len(value),
        "two or more different hosts, the one that serves the API first",
    ),
    "link": (
        several_hosts.is_link,
        "the name of an interface that all its hosts have, or a mapping of each host to its IPv4 address",
    ),
    "link_port": (
        lambda value: 1024 <= value <= 65536 - several_hosts.PORTS,
        f"an integer of 1024 to {65536 - several_hosts.PORTS}, the first of {several_hosts.PORTS} ports",
    ),
    "link_key_file": (is_plain_path, f"a file on each host: {PLAIN_PATH_FORM}, which the units can read"),
    "dtype": (lambda value: True, "which weights and cache may have on these GPUs"),
    "cuda_graphs": (
        lambda value: isinstance(value, bool) or value == "auto",
        "true for CUDA graphs of decoding steps, or false, without quotes, or auto: as the qualification has proved",
    ),
    "max_model_len": (lambda value: 1 <= value <= MOST_TOKENS, f"an integer of 1 to {MOST_TOKENS}"),
    "gpu_memory_utilization": (lambda value: 0.1 <= value <= 0.95, "a number of 0.1 to 0.95"),
    "revision": (
        lambda value: bool(re.fullmatch("[0-9a-f]{40}", value)),
        "the 40 hexadecimal digits of a commit on the hub, which no one can move",
    ),
    "served_model_name": (is_text, "a text that is not empty, on one line and without a hyphen in front"),
    "api_key_file": (is_plain_path, f"a file on the host: {PLAIN_PATH_FORM}, which its unit can read"),
    "adapters": (
        is_adapters,
        f"a mapping of names, of letters, digits and ._/-, to directories on the host: {PLAIN_PATH_FORM}",
    ),
    "parsers": (lambda value: True, "true, or false for answers as the model writes them, without quotes"),
    "memory_max": (
        is_memory, "a text as systemd writes it, such as 48G or 75%, of 1G at least: a number alone is bytes",
    ),
    "cpu_quota": (
        lambda value: bool(re.fullmatch("[1-9][0-9]*%", value)), "a text of percent of one core, such as 800%",
    ),
    "nice": (lambda value: -20 <= value <= 19, "an integer of -20 to 19"),
    "extra_args": (
        is_arguments,
        "a mapping of vLLM options, such as swap-space, in lower-case words and hyphens; to numbers, true, false or "
        "texts, JSON among them",
    ),
}


def by_own_names(instance: dict) -> dict:
    """An instance without aliases of keys; one that has a key twice keeps both, which instance_findings refuses."""
    return {key if ALIASES.get(key) in instance else ALIASES.get(key, key): value for key, value in instance.items()}


def engines_of(serve: dict[str, Any]) -> list[str]:
    """Engines that a profile's hosts can have, the default first."""
    return list(serve["engines"])


def instances_with_defaults(instances: Any, defaults: Any, serve: dict[str, Any] = NO_PROFILE) -> Any:
    """The instances as the servers get them; what is no mapping is left for the validation.

    serve: the profile's, whose engine and first dtype are defaults.
    """
    if not isinstance(instances, list):
        return instances
    # variable_findings reports defaults that are no mapping.
    own = by_own_names(defaults) if isinstance(defaults, dict) else {}
    known = {**DEFAULTS, **({"engine": serve["engine"], "dtype": serve["dtypes"][0]} if serve else {}), **own}

    def filled(item: dict) -> dict:
        instance = {**known, **by_own_names(item)}
        # A released vLLM captures graphs for every batch, beside adapters too.
        return {"cuda_graphs": instance.get("engine") == "stock", **instance}

    return [filled(item) if isinstance(item, dict) else item for item in instances]


def setting(instance: dict, key: str) -> Any:
    """Value of `key` in an instance, or the default."""
    return instance.get(key, DEFAULTS.get(key))


def accepts(key: str, value: Any) -> bool:
    """Return whether `value` is one that the key of an instance may have."""
    option = KEYS[key]
    return has_type(value, option) and value in option.get("choices", [value]) and RULES[key][0](value)


def instance_findings(instance: Any, where: str, serve: dict[str, Any]) -> list[dict[str, str]]:
    """Findings about one instance by itself; `where` is how messages name it, `serve` is the profile's."""
    if not isinstance(instance, dict):
        return [finding("error", where, shown(instance), "a mapping with name and model", "Write it as a mapping.")]
    found = []
    for key in instance:
        if key in ALIASES:
            found.append(finding(
                "error", f"{where}.{key}", f"{key} beside {ALIASES[key]}", f"one of them: {key} means {ALIASES[key]}",
                f"Leave {key} out, here and in vllm_service_instance_defaults.",
            ))
        elif key not in KEYS:
            found.append(finding(
                "error", f"{where}.{key}", f"the unknown key {key!r}", f"one of {', '.join(KEYS)}",
                "Correct the key, or move an option of vLLM itself into extra_args.",
            ))
    valid = {}
    # What the profile narrows down, and why a checkpoint or a habit may say otherwise.
    narrowed = {"engine": (engines_of(serve), ""), "dtype": (serve["dtypes"], ", whatever type the checkpoint has")}
    for key, option in KEYS.items():
        value, expected = setting(instance, key), RULES[key][1]
        allowed, remark = narrowed.get(key, ([value], ""))
        if key in narrowed:
            expected = f"{' or '.join(allowed)}, {expected}{remark}"
        if key not in instance and option.get("required"):
            found.append(finding("error", f"{where}.{key}", "nothing", expected, f"Add {key} to the instance."))
        elif key in instance and not (accepts(key, value) and value in allowed):
            found.append(finding(
                "error", f"{where}.{key}", shown(value), expected,
                correction(value, "bool" if key == "cuda_graphs" else option["type"]),
            ))
        else:
            valid[key] = value
    if {"gpus", "tensor_parallel_size"} <= set(valid) and valid["tensor_parallel_size"] > len(valid["gpus"]):
        found.append(finding(
            "error", f"{where}.tensor_parallel_size", shown(valid["tensor_parallel_size"]),
            f"at most {len(valid['gpus'])}, the number of gpus that the instance lists ({valid['gpus']})",
            f"List more gpus, or lower tensor_parallel_size (it is {DEFAULTS['tensor_parallel_size']} by default).",
        ))
    if "host" in valid and not is_loopback(valid["host"]) and valid.get("api_key_file", "") is None:
        found.append(finding(
            "error", f"{where}.host", shown(valid["host"]),
            "a loopback address, since the instance has no api_key_file",
            "Add api_key_file, or listen on 127.0.0.1 behind a proxy.",
        ))
    if valid.get("revision") is not None and str(valid.get("model", "")).startswith("/"):
        found.append(finding(
            "error", f"{where}.revision", shown(valid["revision"]), "no revision, since the model is a directory",
            "Leave revision out, or name the model as the hub does.",
        ))
    found += adapter_findings(valid, where)
    found += hosts_findings(valid, where)
    reported = {item["variable"] for item in found}
    return found + [
        item for item in engine_options.option_findings(
            valid.get("extra_args") or {}, f"{where}.extra_args", valid.get("engine")
        ) if item["variable"] not in reported
    ]


def adapter_findings(valid: dict, where: str) -> list[dict[str, str]]:
    """Findings about what an instance with adapters cannot have besides."""
    adapters = valid.get("adapters") or {}
    found = [
        finding("error", f"{where}.adapters", shown(name), "another name than the model's own", "Rename the adapter.")
        for name in adapters if name == (valid.get("served_model_name") or valid.get("model"))
    ]
    if adapters:
        found += [
            finding("error", f"{where}.extra_args.{option}", what, expected, "Correct it, or leave it out.")
            for option, what, expected in rules.option_faults(valid.get("extra_args") or {}, len(adapters))
        ]
    if adapters and valid.get("cuda_graphs") and valid.get("engine") != "stock":
        found.append(finding(
            "error", f"{where}.cuda_graphs", f"{shown(valid['cuda_graphs'])} and adapters",
            "one of the two: steps with adapters are eager",
            "Leave cuda_graphs out.",
        ))
    if adapters and engine_options.SPECULATION in (valid.get("extra_args") or {}):
        found.append(finding(
            "error", f"{where}.extra_args.{engine_options.SPECULATION}", "it beside adapters", "one of the two",
            "Leave one of them out.",
        ))
    return found


def hosts_findings(valid: dict, where: str) -> list[dict[str, str]]:
    """Findings about an instance over several hosts, and about keys that it alone has."""
    if not valid.get("hosts"):
        return [
            finding("error", f"{where}.{key}", f"{key} without hosts", "hosts, or an instance of one host",
                    f"Name the hosts, or leave {key} out.")
            for key in ("link", "link_key_file") if "hosts" in valid and valid.get(key) is not None
        ]
    found = [
        finding("error", f"{where}.{key}", "nothing", RULES[key][1], f"Add {key} to the instance.")
        for key in ("link", "link_key_file") if key in valid and valid[key] is None
    ]
    link = valid.get("link")
    if isinstance(link, dict) and (set(link) != set(valid["hosts"]) or len(set(link.values())) < len(link)):
        found.append(finding(
            "error", f"{where}.link", shown(link), f"an address of its own for each of {', '.join(valid['hosts'])}",
            "Correct the mapping.",
        ))
    # Nobody has run these over several hosts.
    unproven = {
        "cuda_graphs": valid.get("cuda_graphs") if valid.get("engine") != "stock" else None,
        "adapters": valid.get("adapters"),
        **{f"extra_args.{option}": (valid.get("extra_args") or {}).get(option) for option in
           (engine_options.SPECULATION, "distributed-executor-backend", "enable-lora", "async-scheduling")},
    }
    found += [
        finding("error", f"{where}.{key}", f"{key.rpartition('.')[2]} and hosts", "one of the two",
                f"Leave {key.rpartition('.')[2]} out, or serve the model on one host.")
        for key, value in unproven.items() if value
    ]
    if {"link_port", "port"} <= set(valid) and 0 <= valid["port"] - valid["link_port"] < several_hosts.PORTS:
        found.append(finding(
            "error", f"{where}.link_port", shown(valid["link_port"]),
            f"ports without {valid['port']}, which the API has; {several_hosts.PORTS} are taken from link_port on",
            "Choose another link_port.",
        ))
    return found


def link_ports_of(instance: dict) -> range:
    """Ports that an instance over several hosts takes on each of them; none for another one."""
    first = setting(instance, "link_port")
    return range(first, first + several_hosts.PORTS) if several_hosts.spans(instance) else range(0)


def clashes(instances: list[dict]) -> list[dict[str, str]]:
    """Findings about names, ports and GPUs that several of the well-formed `instances` claim."""
    found = []
    for key, next_step in (
        ("name", "Give each instance its own name."),
        ("port", f"Give each instance its own port (it is {DEFAULTS['port']} by default)."),
    ):
        owner: dict[Any, int] = {}
        for index, instance in enumerate(instances):
            value = setting(instance, key)
            if value in owner:
                found.append(finding(
                    "error", f"{INSTANCES}[{index}].{key}", shown(value),
                    f"another {key} than {INSTANCES}[{owner[value]}]", next_step,
                ))
            owner.setdefault(value, index)
    spans = {index: link_ports_of(item) for index, item in enumerate(instances)}
    for index, instance in enumerate(instances):
        # instance_findings compares the ports of one instance.
        if taken := [other for other, ports in spans.items() if other != index and setting(instance, "port") in ports]:
            found.append(finding(
                "error", f"{INSTANCES}[{index}].port", shown(setting(instance, "port")),
                f"a port outside of the {several_hosts.PORTS} from {INSTANCES}[{taken[0]}].link_port on",
                "Choose another port, or another link_port there.",
            ))
    linked = [(index, setting(item, "link_port")) for index, item in enumerate(instances) if several_hosts.spans(item)]
    for place, (index, port) in enumerate(linked):
        for other, taken in linked[:place]:
            if abs(port - taken) < several_hosts.PORTS:
                found.append(finding(
                    "error", f"{INSTANCES}[{index}].link_port", shown(port),
                    f"{several_hosts.PORTS} ports or more away from that of {INSTANCES}[{other}]",
                    "Give each instance over several hosts its own link_port.",
                ))
    return found + memory_findings(instances)


def utilization(instance: dict) -> float:
    """Share of a GPU's memory that an instance takes."""
    value = setting(instance, "gpu_memory_utilization")
    return UTILIZATION if value is None else float(value)


def memory_findings(instances: list[dict]) -> list[dict[str, str]]:
    """Findings about GPUs that several instances list and whose memory is too small for all of them."""
    found = []
    owners: dict[int, list[int]] = {}
    for index, instance in enumerate(instances):
        over: dict[int, float] = {}
        for gpu in setting(instance, "gpus"):
            owners.setdefault(gpu, []).append(index)
            # Rounded: 0.2 + 0.4 + 0.3 + 0.1 is a little more than 1 in binary.
            total = round(sum(utilization(instances[owner]) for owner in owners[gpu]), 6)
            if total > 1:
                over[gpu] = total
        if over:
            others = sorted({owner for gpu in over for owner in owners[gpu]} - {index})
            names = " and ".join(f"{INSTANCES}[{other}]" for other in others)
            found.append(finding(
                "error", f"{INSTANCES}[{index}].gpus",
                f"{shown(list(over))}, which {names} list{'s' if len(others) == 1 else ''} too: gpu_memory_utilization "
                f"adds up to {max(over.values()):g}",
                f"gpus that {names} {'does' if len(others) == 1 else 'do'} not list, or at most 1 on each GPU",
                f"Give each GPU to one instance (one without gpus takes {DEFAULTS['gpus']}), or lower "
                f"gpu_memory_utilization (it is {UTILIZATION:g} by default).",
            ))
    return found


def inventory_findings(instances: Any, serve: dict[str, Any]) -> list[dict[str, str]]:
    """Findings about vllm_service_instances in the inventory, without a host; `serve` is the profile's."""
    if not isinstance(instances, list):
        return [finding(
            "error", INSTANCES, shown(instances), "a list of instances",
            # A template that holds a date is a text to Ansible.
            "Write it as a list, [] for none, and dates in quotes.",
        )]
    faults = [instance_findings(item, f"{INSTANCES}[{index}]", serve) for index, item in enumerate(instances)]
    found = [item for fault in faults for item in fault]
    # Clashes are checked if the instances can be read at all.
    return found or clashes(instances)


class FilterModule:
    def filters(self) -> dict[str, Callable]:
        return {
            "instances_with_defaults": instances_with_defaults,
            "inventory_findings": inventory_findings,
            "vllm_options": engine_options.of_instance,
        }
