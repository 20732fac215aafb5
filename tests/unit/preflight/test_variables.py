"""Names that no role knows, and values of another type than the role asks for."""

import re
from pathlib import Path

import pytest
import rendered
import yaml
from ansible.utils.context_objects import CLIArgs
from ansible_collections.kepler.vllm.plugins.filter import kepler_variables
from ansible_collections.kepler.vllm.plugins.filter.kepler_instances import instances_with_defaults
from ansible_collections.kepler.vllm.plugins.filter.kepler_variables import variable_findings
from ansible_collections.kepler.vllm.plugins.plugin_utils.numbers import RANGES
from ansible_collections.kepler.vllm.plugins.plugin_utils.variables import exported, known, options

ROOT = Path(__file__).resolve().parents[3]


def judge(**values):
    return variable_findings(values, ["vllm_service_instances"])


def only(**values):
    (found,) = judge(**values)
    assert all(found.values())
    return found


@pytest.fixture
def command_line(monkeypatch):
    def give(*texts):
        monkeypatch.setattr(kepler_variables.context, "CLIARGS", CLIArgs({"extra_vars": texts}))

    return give


def test_what_the_roles_know_is_no_finding():
    assert judge(
        vllm_service_instances="judged elsewhere", nvidia_driver_reboot=False, pytorch_jobs=8, store_root="/opt/kepler",
        store_artifacts=[], pytorch_provider="wheel", qualification="skip", store_activate=True,
        ansible_host="k80-1", _private=1, __internal=2, site_contact="me", proxy="http://proxy",
    ) == []


def test_the_inventories_of_the_project_are_sound():
    for path in ROOT.glob("inventory/**/group_vars/*.yml"):
        assert judge(**yaml.safe_load(path.read_text())) == [], path


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("vllm_service_instnces", "vllm_service_instances"),
        ("vlm_service_instances", "vllm_service_instances"),
        ("nvidia_driver_reboots", "nvidia_driver_reboot"),
        ("pytorch_providers", "pytorch_provider"),
        ("store_rooot", "store_root"),
    ],
)
def test_a_misspelled_name(name, meant):
    found = only(**{name: 1})
    assert (found["severity"], found["variable"], found["expected"]) == ("error", name, meant)
    assert f"Did you mean {meant}?" in found["next_step"]


def test_old_names_that_go_on_working_are_known():
    assert judge(python310_provider="prebuilt", python310_interpreter="/usr/bin/python3", python310_optimise=True) == []


def test_name_of_a_role_without_variables_is_anybodys_prefix():
    assert judge(common_packages=["vim"]) == []


def test_a_name_like_a_roles_and_unlike_all_of_its_variables():
    found = only(store_color="red")
    assert found["severity"] == "warning"
    assert "roles/store/README.md" in found["expected"]


@pytest.mark.parametrize(
    ("name", "value", "expected", "quotes"),
    [
        ("nvidia_driver_reboot", "yes", "true or false, without quotes", True),
        ("nvidia_driver_reboot", "true", "true or false, without quotes", True),
        ("nvidia_driver_reboot", 1, "true or false, without quotes", False),
        ("pytorch_jobs", "8", "an integer, without quotes", True),
        ("pytorch_jobs", 2.5, "an integer, without quotes", False),
        ("pytorch_jobs", True, "an integer, without quotes", False),
        ("store_artifacts", "/srv/a", "a list", False),
        ("preflight_disk_gib", [], "a mapping", False),
        ("store_root", 7, "a path", False),
        ("vllm_service_user", ["vllm"], "a text", False),
        ("nvidia_driver_reboot", None, "true or false, without quotes", False),
    ],
)
def test_a_value_of_another_type(name, value, expected, quotes):
    found = only(**{name: value})
    assert (found["severity"], found["variable"], found["expected"]) == ("error", name, expected)
    assert ("quotes" in found["next_step"]) == quotes


@pytest.mark.parametrize(
    ("name", "value"),
    [("pytorch_provider", "conda"), ("python_provider", "wheel"), ("python310_provider", "wheel"),
     ("nvidia_driver_provider", "rpm"), ("vllm_service_device", "gpu")],
)
def test_a_value_that_is_no_choice(name, value):
    assert only(**{name: value})["expected"].startswith("one of ")


@pytest.mark.parametrize(("value", "reason"), [
    ([{"name": "a", "model": "{{ nowhere }}"}], "'nowhere' is undefined"),
    ("{{ [1] + nowhere }}", "'nowhere' is undefined"),
    ([{"name": "a", "model": "{{ site.models.dir }}"}], "has no attribute 'models'"),
    ([{"name": "a", "model": "{{ site. }}"}], "expected name or number"),
    ([{"name": "a", "model": "{{ 1 + 'a' }}"}], "unsupported operand"),
    ([{"name": "a", "model": "{{ 'a' | nofilter }}"}], "nofilter"),
])
def test_template_that_cannot_be_rendered_is_one_finding(value, reason):
    findings = "{{ __preflight_rendered | kepler.vllm.template_findings }}"
    (found,) = rendered.evaluate("preflight", findings, vllm_service_instances=value, site={})
    assert found["variable"] == "vllm_service_instances"
    assert reason in found["found"] and len(found["found"]) < 300
    assert all(found.values())


def test_templates_that_can_be_rendered_are_no_finding():
    names = "{{ ['vllm_service_instances', 'pytorch_provider', 'nothing_of_it'] | kepler.vllm.template_findings }}"
    known = {"vllm_service_instances": [{"model": "{{ site.dir }}/m"}], "site": {"dir": "/srv"}}
    assert rendered.evaluate("preflight", names, **known, pytorch_provider="wheel", nothing_of_it="") == []


def test_a_template_is_left_to_the_role():
    assert judge(nvidia_driver_reboot="{{ reboots | bool }}") == []
    assert judge(preflight_disk_gib={"/usr": "{{ room }}"}, acceptance_sizes=["{{ size }}"]) == []
    assert judge(bench_lengths=[["{{ length }}", 8]]) == []


def test_a_text_of_the_command_line_counts_as_what_it_reads_as(command_line):
    assert judge(nvidia_driver_reboot="true") != []
    command_line("nvidia_driver_reboot=true pytorch_jobs=8", "@file.yml", '{"a": 1}')
    assert judge(nvidia_driver_reboot="true", pytorch_jobs="8") == []
    assert only(nvidia_driver_reboot="maybe")
    command_line("nvidia_driver_reboot=perhaps")
    assert only(nvidia_driver_reboot="perhaps")
    assert only(nvidia_driver_reboot=["true"])


def integers():
    """Variables of the roles that are integers, or lists of them."""
    return {
        name: option for name, option in options().items()
        if "int" in (option["type"], option.get("elements")) or name == "bench_lengths"
    }


def test_every_integer_of_the_roles_has_a_range():
    assert set(RANGES) == set(integers())


@pytest.mark.parametrize("name", sorted(RANGES))
def test_number_out_of_its_range_is_refused(name, command_line):
    lowest, highest = RANGES[name]
    for value in (lowest - 1, highest + 1):
        option = integers()[name]
        listed = [[value]] if option.get("elements") == "list" else [value]
        found = only(**{name: listed if option["type"] == "list" else value})
        assert (found["severity"], found["variable"]) == ("error", name)
        assert f"{lowest} to {highest}" in found["expected"]
    if integers()[name]["type"] == "int":
        command_line(f"{name}={lowest - 1} {name}={highest}")
        assert only(**{name: str(lowest - 1)})["variable"] == name
        assert judge(**{name: str(highest)}) == []


def test_zero_is_taken_where_it_means_something():
    zero = {name for name in RANGES if integers()[name]["type"] == "int" and judge(**{name: 0}) == []}
    assert zero == {"pytorch_jobs", "vllm_service_drain", "vllm_service_watchdog"}


@pytest.mark.parametrize("value", [[[0, 128]], [[128, 128], [1024, -1]], [["128", 1]], [[True, 1]]])
def test_lengths_are_positive_integers(value):
    assert only(bench_lengths=value)["variable"] == "bench_lengths"


@pytest.mark.parametrize("size", [0, -1, "6", True, float("nan"), float("inf"), None])
def test_sizes_of_disks_are_numbers_above_zero(size):
    assert only(preflight_disk_gib={"/usr": 6, "/boot": size})["variable"] == "preflight_disk_gib"
    assert judge(preflight_disk_gib={"/usr": 6, "/boot": 0.3}) == []


@pytest.mark.parametrize("name", sorted(kepler_variables.IN_UNITS))
@pytest.mark.parametrize("value", ["/a b", "/a\nUser=root", "/%h", "/a*", '/a"', "relative", "/a$B", "/a\\x"])
def test_path_that_a_unit_would_read_otherwise_is_refused(name, value):
    found = only(**{name: value})
    assert (found["variable"], found["severity"]) == (name, "error")


@pytest.mark.parametrize("value", ["root\nUser=x", "a b", "%i", "svc.vllm", "-x", "7up", "a" * 32, ""])
def test_user_that_a_unit_would_read_otherwise_is_refused(value):
    assert only(vllm_service_user=value)["variable"] == "vllm_service_user"


@pytest.mark.parametrize("value", ["vllm", "Vllm", "_svc-vllm2", "a" * 31])
def test_user_that_systemd_takes_is_taken(value):
    assert judge(vllm_service_user=value) == []


def test_paths_in_units_are_all_known():
    """Every variable of the type path that a template of a unit, or of its environment, names."""
    kinds = {name: option["type"] for name, option in options().items()}
    named = {
        name
        for path in (ROOT / "roles").glob("*/templates/*")
        if re.search(r"[.](service|timer|target|env|conf)[.]j2$", path.name) and path.parts[-3] != "load_balancer"
        for name in re.findall(r"\w+", " ".join(re.findall(r"{{(.*?)}}", path.read_text(), re.DOTALL)))
        if kinds.get(name) == "path"
    }
    assert named - set(kepler_variables.IN_UNITS) == set()
    assert "store_root" in named


def test_templates_take_texts_for_numbers():
    """As -e name=value gives them."""
    pool = {"m": [{"name": "box/a", "address": "127.0.0.1", "port": 8000}]}
    (item,) = instances_with_defaults([{"name": "a", "model": "/m"}], {}, rendered.PROFILE["serve"])
    for role, template, more in (
        ("load_balancer", "nginx.conf.j2", {"load_balancer_pools": pool, "load_balancer_tls": False}),
        ("vllm_service", "vllm@.service.j2", {"store_root": "/opt/kepler"}),
        ("vllm_service", "instance.env.j2", {"item": item}),
        ("monitoring", "kepler.yml.j2", {"monitoring_balancer_tls": False, "monitoring_directory": "/p"}),
    ):
        for number in (20, 8):
            texts = [
                rendered.render(role, template, **more, **{
                    name: kind(number) for name in RANGES
                    if name.startswith(f"{role}_") and integers()[name]["type"] == "int"
                })
                for kind in (int, str)
            ]
            assert texts[0] == texts[1]


def test_no_template_computes_with_a_number_that_may_be_a_text():
    names = "|".join(name for name, option in integers().items() if option["type"] == "int")
    bare = rf"\b({names})\b(?! *\| *(int|float))"
    computes = re.compile(rf"{bare} *([-+*/%<>]|[=!]=|or )|([-+*/%<>]|[=!]=) *{bare}|\[{bare}[^\]]*\] *\| *(min|max)")
    for path in [*ROOT.glob("roles/*/*/*"), *ROOT.glob("playbooks/*.yml")]:
        if path.suffix in (".yml", ".j2") and path.parent.name not in ("meta", "defaults"):
            assert computes.search(path.read_text()) is None, path
    assert computes.search("{{ vllm_service_drain + 60 }}") and computes.search("[monitoring_interval, 10] | min")
    assert computes.search("{{ vllm_service_watchdog or 86400 }}")


def test_no_condition_takes_the_text_false_for_true():
    """As -e name=false gives it."""
    names = "|".join(name for name, option in options().items() if option["type"] == "bool")
    bare = re.compile(rf"\b(if|and|or|not|when:|that:) +({names})\b(?! *\|)(?! is )")
    for path in [*ROOT.glob("roles/*/*/*"), *ROOT.glob("playbooks/*.yml")]:
        if path.suffix in (".yml", ".j2"):
            assert bare.search(path.read_text()) is None, path
    assert bare.search("when: vllm_service_firewalld") and bare.search("{{ 1 if load_balancer_tls else 2 }}")


@pytest.mark.parametrize(("role", "template", "more", "name", "line"), [
    ("vllm_service", "instance.env.j2", {}, "vllm_service_hub_offline", "HF_HUB_OFFLINE=1"),
    ("load_balancer", "nginx.conf.j2",
     {"load_balancer_pools": {"m": [{"name": "box/a", "address": "127.0.0.1", "port": 8000}]}}, "load_balancer_tls",
     " ssl;"),
    ("monitoring", "kepler.yml.j2", {"monitoring_directory": "/p", "monitoring_balancer": "b:8080"},
     "monitoring_balancer_tls", "scheme: https"),
])
def test_text_false_of_the_command_line_is_false(role, template, more, name, line):
    (item,) = instances_with_defaults([{"name": "a", "model": "/m"}], {}, rendered.PROFILE["serve"])
    for text, there in (("false", False), ("true", True)):
        assert (line in rendered.render(role, template, item=item, **{**more, name: text})) is there


@pytest.mark.parametrize(("name", "value", "found"), [
    ("store_artifacts", ["/a", None], "null"), ("store_substituters", [["http://a"]], '["http://a"]'),
    ("acceptance_checks", [{"answers": True}], '{"answers": true}'), ("acceptance_sizes", [1, [2]], "[2]"),
    ("acceptance_sizes", ["2"], '"2"'), ("bench_lengths", [1], "1"), ("repos_packages", ["dkms"], '"dkms"'),
    ("preflight_disk_gib", {"usr": 6}, '{"usr": 6}'), ("preflight_disk_gib", {1: 6}, '{"1": 6}'),
    ("vllm_service_smoke_expect", {"main": 4}, '{"main": 4}'), ("vllm_service_smoke_prompt", " ", '" "'),
    ("models_environment", {"A": 1}, '{"A": 1}'),
    ("load_balancer_access_log", "off;\nuser root", '"off;\\nuser root"'),
    ("preflight_disk_gib", {"usr": "{{ x }}"}, '{"usr": "{ { x }}"}'),
    ("store_artifacts", [["{% if %}"]], '["{ % if %}"]'),
    ("store_root", "//", '"//"'), ("store_root", "/opt/..", '"/opt/.."'), ("store_root", "/.", '"/."'),
    ("vllm_service_home", "/var//lib", '"/var//lib"'),
])
def test_what_a_value_holds_is_checked_too(name, value, found):
    assert only(**{name: value})["found"] == found


@pytest.mark.parametrize(("name", "value"), [
    ("store_artifacts", ["/a", "{{ more }}"]), ("acceptance_checks", ["answers"]), ("store_root", "/opt/.kepler/"),
    ("store_root", "/srv/a..b"), ("preflight_disk_gib", {"/srv": 0.5}), ("load_balancer_access_log", "/var/log/a b=1"),
    ("vllm_service_smoke_expect", {"main": "fox"}), ("load_balancer_drained", ["a/b"]),
])
def test_well_formed_contents_are_taken(name, value):
    assert judge(**{name: value}) == []


def test_facts_that_roles_export_are_known():
    assert {"preflight_dies", "repos_missing", "store_share"} <= exported()
    assert judge(preflight_dies=4, repos_missing=[], store_share={}) == []


@pytest.mark.parametrize("name", ["plan_context", "lock_host", "bundle_dest", "store_activate", "upgrade_serial"])
def test_variable_of_a_playbook_is_known(name):
    assert name in known()[0] and judge(**{name: "x"}) == []
    assert only(**{name + "s": "x"})["expected"] == name
