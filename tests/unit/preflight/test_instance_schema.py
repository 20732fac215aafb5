"""The schema of an instance in the argument specs of the role vllm_service, and what must agree with it."""

import datetime
import json
import re
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.kepler.vllm.plugins.filter.kepler_instances import (
    DEFAULTS,
    KEYS,
    RULES,
    accepts,
    instances_with_defaults,
    inventory_findings,
)
from ansible_collections.kepler.vllm.plugins.plugin_utils import capacity
from hypothesis import given, settings
from hypothesis import strategies as st
from test_instances import SERVE, VALID, WHERE, demo

ROLE = Path(__file__).resolve().parents[3] / "roles" / "vllm_service"


def test_each_key_has_a_rule_and_each_default_keeps_to_it():
    assert set(RULES) == set(KEYS)
    assert [key for key, value in DEFAULTS.items() if not accepts(key, value)] == []


def test_the_types_of_weights_are_those_that_the_planner_knows():
    assert KEYS["dtype"]["choices"] == list(capacity.DTYPES)
    schema = json.loads((ROLE.parents[1] / "profiles" / "schema" / "profile.json").read_text())
    assert schema["properties"]["serve"]["properties"]["dtypes"]["items"]["enum"] == list(capacity.DTYPES)


def documented():
    """Default and meaning of each key in the README's table, without its links and quotes."""
    text = (ROLE / "README.md").read_text().partition("| key of an instance |")[2]
    rows = [row.strip("|").split("|") for row in text.partition("\n\n")[0].splitlines()[2:]]
    return {
        key.strip(" `"): (default.strip(), re.sub(r" \(\[.*?\]\(.*?\)\)", "", meaning).strip().replace("`", ""))
        for key, default, meaning in rows
    }


def test_the_readme_has_the_schemas_keys_in_its_order_and_words():
    described = {key: re.sub(r"C\((.*?)\)", r"\1", option["description"]) for key, option in KEYS.items()}
    assert list(documented()) == list(KEYS)
    assert {key: meaning for key, (_, meaning) in documented().items()} == described


def test_the_readme_has_the_schemas_defaults():
    written = {
        key: yaml.safe_load(default.strip("`")) for key, (default, _) in documented().items() if default[0] == "`"
    }
    # vLLM's own default of the utilization is named, and not passed on.
    assert written.pop("gpu_memory_utilization") == capacity.UTILIZATION
    assert written == DEFAULTS
    required = [key for key, (default, _) in documented().items() if default == "required"]
    assert required == [key for key, option in KEYS.items() if option.get("required")]


def ansible_says(instance):
    return ArgumentSpecValidator(KEYS).validate(instance).error_messages


@pytest.mark.parametrize("instance", VALID)
def test_ansible_understands_the_schema(instance):
    assert ansible_says(instance) == []


@pytest.mark.parametrize(
    ("change", "found"),
    [({"bogus": 1}, "bogus. Supported parameters include"), ({"dtype": "bfloat16"}, "must be one of: float32, half"),
     ({"name": None}, "missing required arguments: name"), ({"port": "http"}, "unable to convert to int")],
)
def test_ansible_refuses_by_the_schema_what_preflight_refuses(change, found):
    instance = demo(**change)
    assert any(found in message for message in ansible_says(instance))
    assert inventory_findings(instances_with_defaults([instance], {}, SERVE), SERVE)


# What YAML and templates can give: dates too, as values and as keys.
SCALARS = (
    st.none() | st.booleans() | st.integers(-(1 << 70), 1 << 70) | st.floats() | st.text(max_size=6) | st.dates()
    | st.sampled_from(["8000", "0.9", "true", "[0]", "/srv/m", "--x", "a\nb", 8000, [0, 1], 10**400, b"x", ""])
)
JUNK = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4) | st.dates() | st.integers(), inner,
                                                                max_size=3),
    max_leaves=6,
)
OPTIONS = st.sampled_from([
    "seed", "rope-theta", "hf-overrides", "rope-scaling", "speculative-config", "no-enable-lora", "x", "--x",
])
INSTANCES = st.builds(
    lambda changes, options: {**demo(), **changes, **options},
    st.dictionaries(st.sampled_from(sorted(KEYS)) | st.text(max_size=4) | st.integers() | st.dates(), JUNK, max_size=4),
    st.just({}) | st.dictionaries(OPTIONS, JUNK, max_size=2).map(lambda options: {"extra_args": options}),
)
RANDOM = settings(max_examples=100, deadline=None, database=None, derandomize=True)


def assert_well_formed(findings):
    for item in findings:
        assert set(item) == {"severity", "variable", "found", "expected", "next_step"}
        assert all(isinstance(text, str) and text for text in item.values())
    json.dumps(findings)


@RANDOM
@given(INSTANCES)
def test_any_value_of_a_key_gives_one_finding_or_none(instance):
    found = inventory_findings(instances_with_defaults([instance], {}, SERVE), SERVE)
    assert_well_formed(found)
    named = [item["variable"] for item in found]
    for key, value in instance.items():
        refused = key not in KEYS or not accepts(key, value)
        assert not refused or named.count(f"{WHERE}.{key}") == 1


@RANDOM
@given(st.lists(INSTANCES | JUNK, max_size=3) | JUNK, st.dictionaries(st.sampled_from(sorted(KEYS)), JUNK) | JUNK)
def test_any_instances_and_defaults_give_findings(instances, defaults):
    assert_well_formed(inventory_findings(instances_with_defaults(instances, defaults, SERVE), SERVE))


@pytest.mark.parametrize(
    ("value", "found"),
    [(datetime.date(2026, 1, 1), '"2026-01-01"'), ({datetime.date(2026, 1, 1): 1}, "2026, 1, 1"),
     ([[["a"]]], '[[["a"]]]'), (b"a", "b'a'")],
)
@pytest.mark.parametrize("key", ["model", "port"])
def test_a_value_that_json_has_not_is_shown(key, value, found):
    (finding,) = inventory_findings(instances_with_defaults([demo(**{key: value})], {}, SERVE), SERVE)
    assert found in finding["found"]
