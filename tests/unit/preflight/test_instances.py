"""What the inventory says about servers."""

import json

import pytest
from ansible_collections.kepler.vllm.plugins.filter.kepler_capacity import model_keys
from ansible_collections.kepler.vllm.plugins.filter.kepler_host import paths_to_read
from ansible_collections.kepler.vllm.plugins.filter.kepler_hosts import (
    batch_of,
    engines_needed,
    hosts_findings,
    instances_here,
)
from ansible_collections.kepler.vllm.plugins.filter.kepler_instances import (
    DEFAULTS,
    KEYS,
    instances_with_defaults,
    inventory_findings,
)
from ansible_collections.kepler.vllm.plugins.filter.kepler_models import hub_models
from ansible_collections.kepler.vllm.plugins.filter.kepler_preflight import (
    findings_errors,
    findings_report,
    worst_first,
)
from ansible_collections.kepler.vllm.plugins.plugin_utils import engine_options
from ansible_collections.kepler.vllm.plugins.plugin_utils.engine_options import (
    KNOWN,
    NEUTRAL,
    OWN,
    REFUSED,
    RENAMED,
    positive_name,
    refused_by,
)
from ansible_collections.kepler.vllm.plugins.plugin_utils.findings import shown
from rendered import PROFILE

WHERE = "vllm_service_instances[0]"
OPTIONS = KNOWN["port"].all
SERVE = PROFILE["serve"]
NULL = object()


def demo(**keys):
    """A valid instance, with `keys` changed; a key of None is left out, one of NULL is None."""
    instance = {"name": "demo", "model": "/srv/models/demo", **keys}
    return {key: None if value is NULL else value for key, value in instance.items() if value is not None}


def judge(*instances, engine="port"):
    serve = {**SERVE, "engine": engine, "engines": [engine]}
    return inventory_findings(instances_with_defaults(list(instances), {}, serve), serve)


def variables(findings):
    return [item["variable"] for item in findings]


VALID = [
    demo(),
    demo(model="Qwen/Qwen2-0.5B"),
    demo(host="::1", port=1024),
    demo(host="localhost", port=65535),
    demo(host="127.1.2.3"),
    demo(host="0.0.0.0", api_key_file="/etc/kepler/key"),
    demo(gpus=[3], tensor_parallel_size=1),
    demo(gpus=[0, 1, 2, 3], tensor_parallel_size=2),
    demo(max_model_len=2048, served_model_name="demo", extra_args={"swap-space": 2, "seed": 0}),
    demo(dtype="float32"),
    demo(dtype="half"),
    demo(cuda_graphs=True),
    demo(cuda_graphs=False),
    demo(cuda_graphs="auto"),
    demo(gpu_memory_utilization=0.95),
    demo(gpu_memory_utilization=0.1),
    demo(model="Qwen/Qwen2-0.5B", revision="0123456789abcdef0123456789abcdef01234567"),
    demo(memory_max="48G", cpu_quota="800%", nice=-20),
    demo(memory_max="75%", nice=19),
    demo(memory_max=str(1 << 30)),
    demo(model="owner/name/quants/m.GGUF"),
    demo(model="gpt2"),
    demo(model="/srv/möwe"),
]


@pytest.mark.parametrize("instance", VALID)
def test_a_valid_instance_has_no_findings(instance):
    assert judge(instance) == []


def test_the_inventory_may_change_the_defaults():
    first, second, other = instances_with_defaults([demo(), demo(port=8001), "nonsense"], {"gpus": [0], "port": 9000})
    assert first == {**DEFAULTS, "cuda_graphs": False, **demo(gpus=[0], port=9000)}
    assert second == {**DEFAULTS, "cuda_graphs": False, **demo(gpus=[0], port=8001)}
    assert other == "nonsense"
    assert instances_with_defaults("nonsense", {"gpus": [0]}) == "nonsense"


@pytest.mark.parametrize("defaults", [None, "port=9000", ["port"], 9000])
def test_defaults_without_mapping_are_left_to_variable_check(defaults):
    assert instances_with_defaults([demo()], defaults) == [{**DEFAULTS, "cuda_graphs": False, **demo()}]


@pytest.mark.parametrize("value", [None, 0, True, 1.5, "main", {"name": "main"}])
def test_instances_that_are_no_list_are_one_finding(value):
    instances = instances_with_defaults(value, {}, SERVE)
    (found,) = inventory_findings(instances, SERVE) + hosts_findings(
        instances, "h", {"h": {"vllm_service_instances": value}}, ["h"],
    )  # fmt: skip
    assert found["variable"] == "vllm_service_instances"
    assert found["found"] == json.dumps(value)


@pytest.mark.parametrize("key", sorted(KEYS))
def test_odd_values_never_end_in_a_traceback(key):
    odd = [None, "", -1, 1.5, float("nan"), True, [], {}, [None], [[]], [{}], {"a": 1}, {1: 2}, "é", "x" * 5000, 10**30]
    two = {"hosts": ["h", "i"], "link": "eth0", "link_key_file": "/k"}
    for value in odd:
        for changed, kept in ((demo(**two, **{key: value}) if key not in two else {**demo(**two), key: value}, demo()),
                              ({**demo(), key: value}, demo(**two))):
            hostvars = {"h": {"vllm_service_instances": [changed, kept]}, "i": {"vllm_service_instances": [changed]}}
            instances = instances_here(instances_with_defaults([changed, kept], {}, SERVE), "h")
            found = inventory_findings(instances, SERVE) + hosts_findings(instances, "h", hostvars, ["h", "i"])
            assert all(isinstance(part, str) for item in found for part in item.values())
            engines_needed(instances, SERVE, hostvars, ["h", "i"])
            batch_of("h", hostvars)


def test_no_instance_is_no_fault():
    assert judge() == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("name", None),
        ("name", "Demo"),
        ("name", "a b"),
        ("name", "-a"),
        ("name", ""),
        ("name", "a/../b"),
        ("name", "demo\n"),
        ("name", "a" * 43),
        ("name", 7),
        ("model", None),
        ("model", ""),
        ("model", "./models/demo"),
        ("model", "../demo"),
        ("model", "owner/name/model.safetensors"),
        ("model", ["a"]),
        ("host", ""),
        ("host", 0),
        ("host", "not an address"),
        ("host", "0.0.0.0 "),
        ("host", "0.0.0.0:8000"),
        ("host", "300.1.2.3"),
        ("host", "127.1"),
        ("host", "0x7f.0.0.0x1"),
        ("host", "0"),
        ("host", "[::1]"),
        ("host", "fe80::1%eth0"),
        ("host", "*"),
        ("host", "-a.example.org"),
        ("host", "a..b"),
        ("host", "http://a"),
        ("host", "0.0.0.0\nport: 1"),
        ("model", "--host=0.0.0.0"),
        ("model", "a\nb"),
        ("model", "a b"),
        ("model", "/"),
        ("model", "//"),
        ("model", "https://hub.example/owner/name"),
        ("model", "https://hub.example/m.gguf"),
        ("model", "llama3.2:1b"),
        ("model", "owner//m.gguf"),
        ("model", "möwe"),
        ("hosts", -1),
        ("hosts", True),
        ("hosts", "k80-1,k80-2"),
        ("hosts", {"k80-1": None}),
        ("hosts", [None]),
        ("hosts", [["k80-1"], ["k80-2"]]),
        ("hosts", ["k80-1", 2]),
        ("port", "8000"),
        ("port", 80),
        ("port", 65536),
        ("port", 8000.0),
        ("port", True),
        ("port", [8000]),
        ("gpus", "0,1,2,3"),
        ("gpus", 4),
        ("gpus", []),
        ("gpus", ["0", "1", "2", "3"]),
        ("gpus", [0, 0, 1, 2]),
        ("gpus", [-1, 0, 1, 2]),
        ("gpus", [True, 2, 3, 4]),
        ("tensor_parallel_size", "4"),
        ("tensor_parallel_size", 0),
        ("tensor_parallel_size", True),
        ("tensor_parallel_size", 5),
        ("dtype", "bfloat16"),
        ("dtype", "auto"),
        ("dtype", "float16"),
        ("dtype", "Half"),
        ("dtype", ["half"]),
        ("dtype", 32),
        ("cuda_graphs", "true"),
        ("cuda_graphs", 1),
        ("cuda_graphs", "Auto"),
        ("cuda_graphs", NULL),
        ("max_model_len", "2048"),
        ("max_model_len", NULL),
        ("gpus", NULL),
        ("api_key_file", NULL),
        ("max_model_len", 0),
        ("max_model_len", 10**30),
        ("max_model_len", 2048.5),
        ("served_model_name", ""),
        ("served_model_name", []),
        ("served_model_name", ["a", "b"]),
        ("served_model_name", "--host=0.0.0.0"),
        ("served_model_name", "-O3"),
        ("served_model_name", "a\nb"),
        ("served_model_name", "a\x7fb"),
        ("served_model_name", {"a": "b"}),
        ("gpu_memory_utilization", 0.05),
        ("gpu_memory_utilization", 0.96),
        ("gpu_memory_utilization", "0.9"),
        ("gpu_memory_utilization", True),
        ("gpu_memory_utilization", float("nan")),
        ("gpu_memory_utilization", NULL),
        ("memory_max", "48GB"),
        ("memory_max", "0"),
        ("memory_max", "48"),
        ("memory_max", "900M"),
        ("api_key_file", "/etc/../k"),
        ("memory_max", "101%"),
        ("memory_max", 48),
        ("memory_max", "infinity\nExecStart=/bin/true"),
        ("cpu_quota", "8"),
        ("cpu_quota", "0%"),
        ("cpu_quota", 800),
        ("nice", 20),
        ("nice", "5"),
        ("nice", True),
        ("api_key_file", "key"),
        ("api_key_file", ""),
        ("api_key_file", "/etc/k\nUser=root"),
        ("api_key_file", "/etc/k\n"),
        ("api_key_file", "/etc/%i.env"),
        ("api_key_file", "/etc/*.env"),
        ("api_key_file", "/etc/k?y"),
        ("api_key_file", "/etc/[k].env"),
        ("api_key_file", "/etc/a key"),
        ("api_key_file", '/etc/"key"'),
        ("api_key_file", "/etc/k\\x"),
        ("api_key_file", "/etc/$HOME"),
        ("api_key_file", "-/etc/key"),
        ("extra_args", "--seed 0"),
        ("extra_args", ["--seed"]),
        ("extra_args", {"--seed": 0}),
        ("extra_args", {"max_model_len": 1}),
        ("extra_args", {1: 2}),
        ("extra_args", {"seed": None}),
        ("extra_args", {"swap-space": float("nan")}),
        ("extra_args", {"swap-space": float("inf")}),
        ("extra_args", {"lora-modules": ["a", "b"]}),
        ("extra_args", {"hf-overrides": {"a": 1}}),
    ],
)
def test_a_wrong_value_is_named(key, value):
    found = judge(demo(**{key: value}))
    assert variables(found) == [f"{WHERE}.{key}"]
    assert found[0]["severity"] == "error"
    assert all(found[0].values())


def test_dtype_is_one_of_the_profile_whose_first_is_the_default():
    (found,) = judge(demo(dtype="bfloat16"))
    assert found["expected"].startswith("float32 or half, ")
    serve = {**SERVE, "dtypes": ["half"]}
    (instance,) = instances_with_defaults([demo()], {}, serve)
    assert instance["dtype"] == "half"
    assert inventory_findings([instance], serve) == []
    (found,) = inventory_findings([{**instance, "dtype": "float32"}], serve)
    assert (found["variable"], found["expected"][:6]) == (f"{WHERE}.dtype", "half, ")


def test_engine_is_the_profiles_unless_an_instance_names_one():
    for own, other in (("port", "stock"), ("stock", "port")):
        serve = {**SERVE, "engine": own, "engines": [own]}
        for said, meant in (({}, own), ({"engine": own}, own), ({"engine": other}, other)):
            (instance,) = instances_with_defaults([demo(**said)], {}, serve)
            assert instance["engine"] == meant
        (changed,) = instances_with_defaults([demo()], {"engine": other}, serve)
        assert changed["engine"] == other


@pytest.mark.parametrize(("own", "other"), [("port", "stock"), ("stock", "port"), ("port", "vllm")])
def test_engine_that_hosts_have_not_is_refused_by_name(own, other):
    assert judge(demo(engine=own), engine=own) == []
    (found,) = judge(demo(engine=other), engine=own)
    assert found["variable"] == f"{WHERE}.engine"
    assert (found["found"], found["expected"]) == (f'"{other}"', f"{own}, which the hosts of this profile have")


@pytest.mark.parametrize("revision", ["main", "0123456", "0" * 41, "G" * 40, 7, NULL, "0" * 40 + "\n"])
def test_a_revision_that_could_move(revision):
    found = judge(demo(model="Qwen/Qwen2-0.5B", revision=revision))
    assert variables(found) == [f"{WHERE}.revision"]


def test_a_directory_has_no_revision():
    (found,) = judge(demo(revision="0" * 40))
    assert found["variable"] == f"{WHERE}.revision"
    assert "directory" in found["expected"]


@pytest.mark.parametrize(
    ("key", "text", "quotes"),
    [("tensor_parallel_size", "4", True), ("port", "8000", True), ("nice", "-5", True), ("cuda_graphs", "yes", True),
     ("gpu_memory_utilization", "0.9", True), ("port", "http", False), ("dtype", "fp16", False),
     ("gpus", "[0, 1]", False)],
)
def test_a_value_in_quotes_is_told_from_another_text(key, text, quotes):
    (found,) = judge(demo(**{key: text}))
    assert found["found"] == f'"{text}"'
    assert ("quotes" in found["next_step"]) == quotes


@pytest.mark.parametrize("key", ["tensor_parallel", "gpu", "die", "Name", "max-model-len", 4])
def test_an_unknown_key_is_named_with_the_known_ones(key):
    found = judge({**demo(), key: 1})
    assert variables(found) == [f"{WHERE}.{key}"]
    assert "tensor_parallel_size" in found[0]["expected"]


@pytest.mark.parametrize(("gpus", "size"), [([0], None), ([0, 1], None), ([0, 1], 4), ([0, 1, 2], 4)])
def test_tensor_parallelism_over_more_gpus_than_listed(gpus, size):
    (found,) = judge(demo(gpus=gpus, tensor_parallel_size=size))
    assert found["variable"] == f"{WHERE}.tensor_parallel_size"
    assert str(len(gpus)) in found["expected"]


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "gpu1.example.org"])
def test_an_open_address_needs_a_key(host):
    (found,) = judge(demo(host=host))
    assert found["variable"] == f"{WHERE}.host"
    assert "api_key_file" in found["next_step"]


@pytest.mark.parametrize(("option", "key"), sorted(OWN.items()))
def test_option_with_a_key_of_its_own_is_refused(option, key):
    (found,) = judge(demo(extra_args={option: 1}))
    assert found["variable"] == f"{WHERE}.extra_args.{option}"
    assert key in KEYS
    assert f"key {key} " in found["next_step"]


def prefixes(option):
    """Abbreviations that argparse completes to `option`, and to no other."""
    for length in range(2, len(option)):
        if [name for name in OPTIONS if name.startswith(option[:length])] == [option]:
            yield option[:length]


@pytest.mark.parametrize("option", sorted({*OWN, *REFUSED}))
def test_abbreviation_of_a_refused_option_is_refused(option):
    for short in {*list(prefixes(option))[:1], option[:-1]} - OPTIONS:
        (found,) = judge(demo(extra_args={short: 1}))
        assert found["variable"] == f"{WHERE}.extra_args.{short}"
        assert "whole name" in found["expected"]


@pytest.mark.parametrize(
    ("option", "meant"),
    [("hos", "host"), ("api-ke", "api-key"), ("tensor-parallel-siz", "tensor-parallel-size"), ("swap", "swap-space"),
     ("max-num-seq", "max-num-seqs"), ("enable-loar", "enable-lora"), ("uds", None), ("tp", None), ("xyzzy", None)],
)
def test_unknown_option_is_refused_with_the_name_it_may_mean(option, meant):
    (found,) = judge(demo(extra_args={option: 1}))
    assert "does not have" in found["found"]
    if meant:
        assert meant in found["next_step"]


@pytest.mark.parametrize(
    ("engine", "option"), [(engine, option) for engine in KNOWN for option in sorted(refused_by(engine))]
)
def test_refused_option_exists_and_is_refused_with_a_reason(engine, option):
    known, expected = KNOWN[engine], refused_by(engine)[option][0]
    if engine == "stock" and option in REFUSED and option not in known.all:
        expected = "one of its options"
    else:
        assert option in known.all
    value = option not in ("disable-log-requests", "disable-custom-all-reduce") if option in known.booleans else "x"
    (found,) = judge(demo(extra_args={option: value}), engine=engine)
    assert found["variable"] == f"{WHERE}.extra_args.{option}"
    assert found["expected"] == expected


@pytest.mark.parametrize(
    "option", ["config", "middleware", "root-path", "headless", "data-parallel-size", "api-server-count",
               "allowed-local-media-path", "ssl-ca-certs", "hf-token", "kv-events-config", "worker-cls"],
)
def test_option_that_opens_a_door_or_breaks_the_unit_is_refused(option):
    assert option in REFUSED


@pytest.mark.parametrize(
    ("engine", "option", "value"),
    [(engine, name, value) for engine, known in KNOWN.items() for name in NEUTRAL if name in known.all
     for value in NEUTRAL[name]],
)
def test_value_of_a_refused_option_that_changes_nothing_is_taken(engine, option, value):
    assert judge(demo(extra_args={option: value}), engine=engine) == []
    if value is False and option in KNOWN[engine].switches:
        assert judge(demo(extra_args={f"no-{option}": True}), engine=engine) == []


@pytest.mark.parametrize(("option", "value", "expected"), [
    ("max-num-partial-prefills", "8k", "an integer"), ("seed", 0.5, "an integer"), ("swap-space", "4 GiB", "a number"),
    ("max-lora-rank", "x", ""), ("limit-mm-per-prompt", "image=1", "a text that holds JSON"),
    ("scheduling-policy", "fifo", "one of fcfs, priority"), ("compilation-config", "{", "a text that holds JSON"),
])
@pytest.mark.parametrize("engine", KNOWN)
def test_value_that_the_parser_refuses_is_a_finding(engine, option, value, expected):
    (found,) = judge(demo(extra_args={option: value}), engine=engine)
    assert (found["variable"], found["found"]) == (f"{WHERE}.extra_args.{option}", shown(value))
    assert found["expected"].startswith(expected)


@pytest.mark.parametrize(("engine", "option", "value"), [
    ("stock", "max-cudagraph-capture-size", "None"), ("port", "seed", "None"), ("port", "seed", -1),
    ("stock", "swap-space", "1e1"), ("port", "max-lora-rank", 16), ("stock", "limit-mm-per-prompt", '{"image": 1}'),
])
def test_value_that_the_parser_takes_is_taken(engine, option, value):
    assert judge(demo(extra_args={option: value}), engine=engine) == []


def test_successors_of_options_are_options():
    for old, new in RENAMED.items():
        assert old in OPTIONS and old not in KNOWN["stock"].all and new in KNOWN["stock"].all


@pytest.mark.parametrize("option", sorted(OPTIONS - KNOWN["stock"].all))
def test_option_that_the_released_vllm_lost_is_named(option):
    (found,) = judge(demo(extra_args={option: True}), engine="stock")
    assert found["variable"] == f"{WHERE}.extra_args.{option}"
    assert found["found"] == "an option that the vLLM of engine: stock has no more"
    assert RENAMED.get(positive_name(option), "port") in found["next_step"]


def test_blocks_of_the_cache_are_those_of_the_engine():
    for engine, taken, refused in (("port", 8, 64), ("stock", 64, 8)):
        assert judge(demo(extra_args={"block-size": taken}), engine=engine) == []
        (found,) = judge(demo(extra_args={"block-size": refused}), engine=engine)
        assert found["variable"] == f"{WHERE}.extra_args.block-size"


def test_stock_has_graphs_by_default_and_beside_adapters():
    serve = {**SERVE, "engine": "stock", "engines": ["stock"]}
    for said, graphs in (({}, True), ({"cuda_graphs": False}, False), ({"engine": "port"}, False)):
        (instance,) = instances_with_defaults([demo(**said)], {}, serve)
        assert instance["cuda_graphs"] is graphs
    assert judge(demo(adapters={"a": "/a"}), engine="stock") == []


def test_stock_drafts_by_lookup_alone():
    lookup = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4, "prompt_lookup_min": 2}
    assert judge(demo(extra_args={"speculative-config": json.dumps(lookup)}), engine="stock") == []
    drafting = {"model": "owner/draft", "num_speculative_tokens": 3}
    (found,) = judge(demo(extra_args={"speculative-config": json.dumps(drafting)}), engine="stock")
    assert found["variable"].endswith("speculative-config.model")
    assert "ngram" in found["next_step"]


def test_negated_flag_is_refused_like_the_flag():
    assert positive_name("no-enforce-eager") == "enforce-eager"
    assert variables(judge(demo(extra_args={"no-enforce-eager": True}))) == [f"{WHERE}.extra_args.no-enforce-eager"]


@pytest.mark.parametrize(
    ("option", "value"),
    [("seed", True), ("swap-space", False), ("disable-fastapi-docs", "yes"), ("trust-remote-code", 1),
     ("seed", "--host=0.0.0.0"), ("chat-template", "-x"), ("rope-theta", -0.5), ("rope-theta", 10**400),
     ("tool-call-parser", "-O3")],
)
def test_value_that_vllm_reads_differently_is_refused(option, value):
    assert variables(judge(demo(extra_args={option: value}))) == [f"{WHERE}.extra_args.{option}"]


def test_other_options_are_taken():
    assert judge(demo(extra_args={
        "seed": -1, "swap-space": 0.5, "trust-remote-code": True, "enable-prefix-caching": True,
        "no-enable-chunked-prefill": True, "hf-overrides": '{"a": 1}', "tool-call-parser": "hermes",
        "enable-auto-tool-choice": True, "chat-template": "{{ a }}\n", "disable-sliding-window": False,
    })) == []


@pytest.mark.parametrize(
    ("option", "value", "named"),
    [("ssl-certfile", "/c", "HTTP"), ("ssl-keyfile", "/k", "HTTP"), ("quantization", "awq", "config.json"),
     ("kv-cache-dtype", "fp8", "the key dtype"),
     ("enable-expert-parallel", True, "split"), ("enforce-eager", True, "the key cuda_graphs"),
     ("load-format", "safetensors", "found by itself"), ("num-scheduler-steps", 8, "every step"),
     ("enable-lora", True, "the key adapters"), ("lora-dtype", "half", "in float32"), ("task", "embed", "generates")],
)
def test_an_option_that_the_port_does_not_serve(option, value, named):
    (found,) = judge(demo(extra_args={option: value}))
    assert found["variable"] == f"{WHERE}.extra_args.{option}"
    assert named in found["expected"]


@pytest.mark.parametrize("instance", ["demo", None, 7, ["demo"]])
def test_an_instance_that_is_no_mapping(instance):
    (found,) = judge(instance)
    assert found["variable"] == WHERE


@pytest.mark.parametrize("instances", [None, "demo", {"name": "demo"}, 1])
def test_instances_that_are_no_list(instances):
    (found,) = inventory_findings(instances, SERVE)
    assert found["variable"] == "vllm_service_instances"


def pair(**second):
    first = demo(gpus=[0, 1], tensor_parallel_size=2)
    return first, demo(**{"name": "two", "port": 8001, "gpus": [2, 3], "tensor_parallel_size": 2, **second})


def test_two_instances_side_by_side():
    assert judge(*pair()) == []


@pytest.mark.parametrize(
    ("key", "value"), [("name", "demo"), ("port", 8000), ("port", None), ("gpus", [1, 2]), ("gpus", None)]
)
def test_what_two_instances_claim(key, value):
    (found,) = judge(*pair(**{key: value}))
    assert found["variable"] == f"vllm_service_instances[1].{key}"
    assert "vllm_service_instances[0]" in found["expected"]


@pytest.mark.parametrize("shares", [(0.5, 0.5), (0.2, 0.4, 0.3, 0.1), (0.1,) * 10, (0.9, 0.1)])
def test_instances_may_share_a_die_whose_memory_is_enough(shares):
    instances = [
        demo(name=f"n{index}", port=8000 + index, gpu_memory_utilization=share) for index, share in enumerate(shares)
    ]
    assert judge(*instances) == []


@pytest.mark.parametrize(("shares", "total"), [((0.6, 0.5), "1.1"), ((None, 0.2), "1.1"), ((0.95, 0.95), "1.9")])
def test_a_die_whose_memory_is_too_small_for_both(shares, total):
    first, second = shares
    (found,) = judge(
        demo(gpus=[0, 1], tensor_parallel_size=2, gpu_memory_utilization=first),
        demo(name="two", port=8001, gpus=[1, 2], tensor_parallel_size=2, gpu_memory_utilization=second),
    )
    assert found["variable"] == "vllm_service_instances[1].gpus"
    assert found["found"].startswith("[1], which vllm_service_instances[0] lists too")
    assert total in found["found"]


def test_only_what_shares_a_die_counts_together():
    """Three instances, two on each die: none has too much, and the one that does is named."""
    def three(share):
        return [
            demo(name=f"n{index}", port=8000 + index, gpus=gpus, tensor_parallel_size=2, gpu_memory_utilization=share)
            for index, gpus in enumerate(([0, 1], [1, 2], [2, 0]))
        ]

    assert judge(*three(0.5)) == []
    found = judge(*three(0.6))
    assert variables(found) == ["vllm_service_instances[1].gpus", "vllm_service_instances[2].gpus"]
    assert "vllm_service_instances[0] and vllm_service_instances[1]" in found[1]["expected"]


def test_all_findings_come_at_once():
    found = judge(demo(port="8000", bogus=1, tensor_parallel_size=9), "nonsense")
    assert len(found) == 4


def test_the_report_has_the_worst_first():
    warning = {"severity": "warning", "variable": "a", "found": "b", "expected": "c", "next_step": "d."}
    error = {**warning, "severity": "error", "variable": "e"}
    assert findings_report([warning, error]) == [
        "error: e: found b; expected c. d.",
        "warning: a: found b; expected c. d.",
    ]
    assert worst_first([warning, error]) == [error, warning]
    assert findings_errors([warning, error]) == 1
    assert findings_report([]) == []


@pytest.mark.parametrize("extra", [
    {"enable-chunked-prefill": False}, {"enable-chunked-prefill": True}, {"no-enable-chunked-prefill": True},
    {"disable-fastapi-docs": False}, {"rope-theta": 1000000, "rope-scaling": '{"rope_type": "linear", "factor": 2.0}'},
    {"hf-overrides": '{"rope_theta": 1.0}'}, {"rope-theta": "1e6"}, {"max-seq-len-to-capture": 4096},
    {"max-num-seqs": "16", "max-num-batched-tokens": 4096, "block-size": 32}, {"config-format": "hf"},
])
def test_options_that_hold(extra):
    assert judge(demo(extra_args=extra)) == []


@pytest.mark.parametrize("extra", [
    {"no-enable-chunked-prefill": False}, {"no-enable-prefix-caching": "true"}, {"enable-prefix-caching": "false"},
    {"disable-log-stats": 0}, {"swap-space": False}, {"max-num-seqs": False}, {"rope-scaling": "yarn"},
    {"hf-overrides": "[1]"}, {"hf-overrides": '{"rope_parameters": {"rope_theta": 1.0}}'}, {"rope-theta": "much"},
    {"max-num-seqs": 0}, {"max-num-batched-tokens": "8k"}, {"block-size": 64},
    {"hf-config-path": "/srv/other"}, {"config-format": "mistral"},
    {"cpu-offload-gb": 4}, {"num-gpu-blocks-override": 100}, {"pipeline-parallel-size": 2}, {"data-parallel-size": 2},
])
def test_options_that_would_not_hold_or_are_not_planned(extra):
    assert variables(judge(demo(extra_args=extra))) == [f"{WHERE}.extra_args.{next(iter(extra))}"]


NGRAM = {"method": "ngram", "num_speculative_tokens": 4}
DRAFT = {"model": "owner/draft", "num_speculative_tokens": 4}


def speculating(**said):
    return demo(extra_args={"speculative-config": json.dumps(said)})


@pytest.mark.parametrize("said", [
    {**NGRAM, "prompt_lookup_max": 4, "prompt_lookup_min": 2, "disable_by_batch_size": 8}, DRAFT,
    {**DRAFT, "method": "draft_model", "revision": "a" * 40, "draft_tensor_parallel_size": 1},
    {**DRAFT, "model": "/srv/models/draft"},
])
def test_speculation_that_the_port_has(said):
    assert judge(speculating(**said)) == []


@pytest.mark.parametrize(("said", "key", "expected"), [
    ({}, "method", "ngram for prompt lookup, or draft_model with the key model"),
    ({"method": "eagle", "model": "a/b"}, "method", "ngram for prompt lookup"),
    ({"method": ["ngram"]}, "method", "ngram"),
    ({"method": "ngram"}, "num_speculative_tokens", "an integer of 1 to 15"),
    ({**NGRAM, "num_speculative_tokens": True}, "num_speculative_tokens", "an integer of 1 to 15"),
    ({**NGRAM, "num_speculative_tokens": 16}, "num_speculative_tokens", "an integer of 1 to 15"),
    ({**NGRAM, "prompt_lookup_max": 2, "prompt_lookup_min": 3}, "prompt_lookup_min", "at most prompt_lookup_max, 2"),
    ({**NGRAM, "prompt_lookup_min": 0}, "prompt_lookup_min", "an integer from 1"),
    ({**NGRAM, "disable_by_batch_size": 1}, "disable_by_batch_size", "an integer from 2"),
    ({**NGRAM, "acceptance_method": "typical_acceptance_sampler"}, "acceptance_method", "one of the keys method"),
    ({**NGRAM, "model": "a/b"}, "model", "none beside method ngram"),
    ({**DRAFT, "prompt_lookup_max": 3}, "prompt_lookup_max", "none beside method draft_model"),
    ({**DRAFT, "model": "ngram"}, "model", "the name of a Hugging Face model"),
    ({**DRAFT, "draft_tensor_parallel_size": 4}, "draft_tensor_parallel_size", "1: a draft model runs on"),
    ({**DRAFT, "revision": "main"}, "revision", "the 40 hexadecimal digits"),
    ({**DRAFT, "revision": "a" * 40 + "\n"}, "revision", "the 40 hexadecimal digits"),
    ({**DRAFT, "revision": int("1" * 40)}, "revision", "the 40 hexadecimal digits"),
    ({**DRAFT, "model": " owner/draft"}, "model", "the name of a Hugging Face model"),
    ({**DRAFT, "model": "/srv/a\nb"}, "model", "the name of a Hugging Face model"),
    ({**DRAFT, "model": "/srv/m", "revision": "a" * 40}, "revision", "none, since the draft model is a directory"),
])  # fmt: skip
def test_speculation_that_the_port_does_not_have(said, key, expected):
    (found,) = (item for item in judge(speculating(**said)) if item["variable"].endswith(f"speculative-config.{key}"))
    assert found["expected"].startswith(expected)


def test_a_draft_model_is_read_and_fetched_like_its_model():
    """On one GPU: vLLM would judge it as split over all."""
    hub, directory = speculating(**DRAFT), speculating(**{**DRAFT, "model": "/srv/draft"})
    (use,) = hub_models([hub])[-1]["uses"]
    assert use == {"engine": "port", "options": {}} and hub_models([hub])[-1]["name"] == "owner/draft"
    assert model_keys([hub, directory])[-1] == "/srv/draft"
    assert "/srv/draft" in paths_to_read([directory])
    (written,) = engine_options.written(hub["extra_args"]).values()
    assert json.loads(written) == {**DRAFT, "draft_tensor_parallel_size": 1}
    assert engine_options.written(speculating(**NGRAM)["extra_args"]) == speculating(**NGRAM)["extra_args"]
    assert model_keys([speculating(**{**DRAFT, "method": "eagle"})]) == model_keys([demo()])


@pytest.mark.parametrize(("given", "fault"), [
    (None, False), ('{"backend": "guidance", "disable_any_whitespace": true}', False),
    ('{"disable_any_whitespace": true}', False), ('{"backend": "xgrammar"}', True), ('{"backend": "auto"}', True),
    ("xgrammar", True),
])  # fmt: skip
def test_released_engine_compiles_guides_with_guidance_alone(given, fault):
    extra = {} if given is None else {"structured-outputs-config": given}
    found = judge(demo(extra_args=extra), engine="stock")
    assert variables(found) == [f"{WHERE}.extra_args.structured-outputs-config"] * fault
    if not fault:
        written = json.loads(engine_options.written(extra, "stock")["structured-outputs-config"])
        assert written == {**json.loads(given or "{}"), "backend": "guidance"}
    assert "structured-outputs-config" not in engine_options.written({}, "port")


def test_an_option_said_twice():
    extra = {"enable-prefix-caching": True, "no-enable-prefix-caching": True}
    assert variables(judge(demo(extra_args=extra))) == [f"{WHERE}.extra_args.no-enable-prefix-caching"]


def test_what_is_off_is_written_so_that_it_holds():
    given = {"enable-chunked-prefill": False, "disable-log-requests": False, "enable-prefix-caching": True, "seed": 0}
    assert engine_options.written(given) == {
        "no-enable-chunked-prefill": True, "enable-prefix-caching": True, "seed": 0,
    }


@pytest.mark.parametrize(
    ("defaults", "instance", "gpus"),
    [
        ({}, {"dies": [2, 3]}, [2, 3]),
        ({"dies": [2, 3]}, {}, [2, 3]),
        ({"dies": [2, 3]}, {"gpus": [0, 1]}, [0, 1]),
        ({"gpus": [2, 3]}, {"dies": [0, 1]}, [0, 1]),
        ({"dies": [2, 3]}, {"dies": [0, 1]}, [0, 1]),
    ],
)
def test_dies_is_another_name_of_gpus(defaults, instance, gpus):
    both = [
        instances_with_defaults([demo(**spelled, tensor_parallel_size=1)], default)
        for spelled, default in ((instance, defaults), ({"gpus": gpus}, {}))
    ]
    assert both[0] == both[1]
    assert inventory_findings(both[0], SERVE) == []


@pytest.mark.parametrize("value", ["0,1", [], [0, 0], [True], [[0]], NULL, 4, [0.0]])
def test_a_wrong_value_is_named_by_the_key_that_means_it(value):
    (found,) = judge(demo(dies=value))
    assert (found["variable"], found["expected"]) == (f"{WHERE}.gpus", "a list of different integers from 0")


@pytest.mark.parametrize(("dies", "gpus"), [([0, 1, 2, 3], [0, 1, 2, 3]), ([0], [1]), ("0", 7)])
def test_an_instance_has_dies_or_gpus(dies, gpus):
    found = judge(demo(dies=dies, gpus=gpus, tensor_parallel_size=1))
    assert [item for item in found if item["variable"] == f"{WHERE}.dies"] == [{
        "severity": "error", "variable": f"{WHERE}.dies", "found": "dies beside gpus",
        "expected": "one of them: dies means gpus",
        "next_step": "Leave dies out, here and in vllm_service_instance_defaults.",
    }]


def test_defaults_have_dies_or_gpus():
    instances = instances_with_defaults([demo(tensor_parallel_size=1)], {"dies": [0], "gpus": [0]}, SERVE)
    found = inventory_findings(instances, SERVE)
    assert variables(found) == [f"{WHERE}.dies"]


@pytest.mark.parametrize(("keys", "variable"), [
    ({"adapters": {"a": "relative"}}, "adapters"), ({"adapters": {"a b": "/a"}}, "adapters"),
    ({"adapters": {"a": ["/a"]}}, "adapters"), ({"adapters": {"/srv/demo": "/a"}}, "adapters"),
    ({"adapters": {"mine": "/a"}, "served_model_name": "mine"}, "adapters"),
    ({"adapters": {"a": "/a"}, "cuda_graphs": True}, "cuda_graphs"),
    ({"adapters": {"a": "/a"}, "cuda_graphs": "auto"}, "cuda_graphs"),
    ({"extra_args": {"lora-modules": "a=/a"}}, "extra_args.lora-modules"),
])
def test_adapters_are_names_and_directories(keys, variable):
    (found,) = judge(demo(**keys))
    assert found["variable"] == f"{WHERE}.{variable}"
    assert judge(demo(adapters={"a": "/a", "team/b.1": "/srv/b"}, extra_args={"max-loras": 1})) == []


@pytest.mark.parametrize("extra", [
    *({"max-lora-rank": rank} for rank in (24, 1024, 0, "64")), *({"max-loras": most} for most in (0, -1, 1.5, "2")),
    {"max-cpu-loras": 1}, {"max-loras": 3, "max-cpu-loras": 2}, {"max-loras": 1, "max-cpu-loras": "1"},
])
def test_options_with_which_adapters_do_not_start(extra):
    """vLLM would end with a traceback, or with the usage of its command."""
    (found,) = judge(demo(adapters={"a": "/a", "b": "/b"}, extra_args=extra))
    assert found["variable"] == f"{WHERE}.extra_args.{list(extra)[-1]}"
    # vLLM reads no part of a number there, with adapters or without.
    assert judge(demo(extra_args=extra)) == [] or extra == {"max-loras": 1.5}


def test_a_parser_is_named_beside_automatic_tools():
    """vLLM does not start with one of the two."""
    (found,) = judge(demo(extra_args={"enable-auto-tool-choice": True}))
    assert found["expected"] == "tool-call-parser beside it"


def test_automatic_tools_are_turned_off_by_the_key():
    """vLLM would not see the false, and the server would name a parser."""
    (found,) = judge(demo(extra_args={"enable-auto-tool-choice": False}))
    assert "parsers" in found["next_step"]
    assert judge(demo(extra_args={"enable-auto-tool-choice": True, "tool-call-parser": "hermes"}, parsers=False)) == []


def test_speculation_beside_adapters_is_refused():
    (found,) = judge({**speculating(**NGRAM), "adapters": {"legal": "/srv/adapters/legal"}})
    assert found["variable"] == f"{WHERE}.extra_args.speculative-config"
    assert found["found"] == "it beside adapters"
