"""Alert rules and dashboard: promtool's own judgment, and that every metric in them exists."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.module_utils.server.versions import TABLES
from rendered import PROFILE, render

HERE = Path(__file__).resolve().parent
FILES = HERE.parents[2] / "roles" / "monitoring" / "files"
RULES, DASHBOARD = FILES / "kepler.rules.yml", FILES / "kepler-dashboard.json"
sys.path.insert(0, str(FILES))
import host_metrics  # noqa: E402

# Of Debian's package prometheus; the variable names another place.
PROMTOOL = os.environ.get("PROMTOOL") or shutil.which("promtool")
needs_promtool = pytest.mark.skipif(not PROMTOOL, reason="no promtool (PROMTOOL, PATH)")
WORDS = {"and", "or", "unless", "bool", "offset", "by", "on", "without", "ignoring", "group_left", "group_right"}
# What nvidia_gpu_exporter makes of a unit in a column's head: its suffix.
UNITS = {"W": "_watts", "MHz": "_clock_hz", "MiB": "_bytes", "%": "_ratio"}


def lines_of(name):
    return [line for line in (HERE / name).read_text().splitlines() if not line.startswith("#")]


def exporter_name(column):
    field, _, unit = column.partition(" [")
    return "nvidia_smi_" + re.sub(r"[^a-z0-9]+", "_", field.lower()) + UNITS.get(unit.rstrip("]"), "")


# Metric -> its labels, by version; and those of all versions.
CAPTURES = {
    version: {line.split()[0]: set(line.split()[2].split(",")) for line in lines_of(f"vllm-{version}-metrics.txt")}
    for version in TABLES
}
VLLM = {name: labels for capture in CAPTURES.values() for name, labels in capture.items()}
EXPORTER = {exporter_name(column) for column in lines_of("nvidia-smi-470-fields.txt")}
LIMITS = render("monitoring", "kepler-limits.prom.j2")
WRITTEN = set(host_metrics.METRICS) | set(re.findall(r"^\w+", LIMITS, re.MULTILINE))
KNOWN = {"up", "nvidia_smi_command_exit_code"} | set(VLLM) | EXPORTER | WRITTEN


def metrics(expression):
    """Names of the metrics in an expression of PromQL."""
    text = re.sub(r'"[^"]*"', "", expression)
    text = re.sub(r"\{[^}]*\}|\[[^\]]*\]", "", text)
    text = re.sub(r"\b(by|on|without|ignoring|group_left|group_right)\s*\([^)]*\)", "", text)
    return set(re.findall(r"(?<![\w.])[a-zA-Z_:][\w:]*(?!\s*\(|[\w:])", text)) - WORDS


def rules():
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def panels():
    return [panel for panel in json.loads(DASHBOARD.read_text())["panels"] if panel["type"] != "row"]


def queries():
    return [target["expr"] for panel in panels() for target in panel["targets"]]


def test_the_walk_finds_metrics_and_nothing_else():
    expression = 'sum by (le, a) (rate(x:y_bucket{z="u"}[5m])) > 1e3 and on (b) up{c="d"} or max(f_g) == 1'
    assert metrics(expression) == {"x:y_bucket", "up", "f_g"}


@pytest.mark.parametrize("expression", [rule["expr"] for rule in rules()] + queries())
def test_every_metric_exists(expression):
    assert metrics(expression) and metrics(expression) - KNOWN == set()


@pytest.mark.parametrize("version", TABLES)
def test_a_server_has_the_metrics_of_its_table(version):
    assert set(TABLES[version].METRICS.values()) - set(CAPTURES[version]) == set()


def test_metrics_of_servers_are_those_of_the_tables():
    """The supervisor, the rules and the dashboard read no other, and all of them."""
    read = {name for expression in [rule["expr"] for rule in rules()] + queries() for name in metrics(expression)}
    assert {name for name in read if name.startswith("vllm:")} == {
        name for table in TABLES.values() for name in table.METRICS.values()
    }


@pytest.mark.parametrize("expression", [rule["expr"] for rule in rules()] + queries())
def test_every_version_has_a_metric_of_a_query(expression):
    """Where versions name a metric differently, the query asks for both."""
    read = {name for name in metrics(expression) if name.startswith("vllm:")}
    asked = {key for table in TABLES.values() for key, name in table.METRICS.items() if name in read}
    for version, table in TABLES.items():
        assert {table.METRICS[key] for key in asked} <= read, version


@pytest.mark.parametrize("expression", [rule["expr"] for rule in rules()] + queries())
def test_every_label_of_a_server_exists(expression):
    """Beside what the targets give."""
    given = {"instance", "host", "pool", "job"}
    for name, matchers in re.findall(r"(vllm:\w+)\{([^}]*)\}", expression):
        assert set(re.findall(r"(\w+)=", matchers)) <= VLLM[name] | given
    for labels in re.findall(r"\bby \(([^)]*)\)", expression):
        used = metrics(expression)
        assert all(set(labels.split(", ")) <= VLLM[name] | given for name in used if name.startswith("vllm:"))


def test_what_the_exporter_makes_of_a_column():
    assert exporter_name("clocks.current.sm [MHz]") == "nvidia_smi_clocks_current_sm_clock_hz"
    assert exporter_name("temperature.gpu") == "nvidia_smi_temperature_gpu"


def test_limits_are_those_of_the_profile():
    values = dict(re.findall(r'^kepler_gpu_limit_celsius\{limit="(\w+)"\} (\d+)$', LIMITS, re.MULTILINE))
    assert values == {"hot": str(PROFILE["limits"]["temperature"]), "slowdown": str(PROFILE["limits"]["slowdown"])}
    named = {limit for rule in rules() for limit in re.findall(r'limit="(\w+)"', rule["expr"])}
    assert named == set(values)


def test_the_kinds_of_trouble_that_must_be_known():
    named = {rule["alert"] for rule in rules()}
    assert named >= {
        "KeplerServerDown", "KeplerQueueGrowing", "KeplerCacheFull", "KeplerXid", "KeplerHot", "KeplerThrottling",
        "KeplerRestartLoop", "KeplerDriverMismatch", "KeplerNoTokens",
    }  # fmt: skip
    assert all({"summary", "action"} == set(rule["annotations"]) for rule in rules())


def test_every_alert_has_firing_and_silent_case():
    cases = {}
    for test in yaml.safe_load((HERE / "alert_rules.yml").read_text())["tests"]:
        for case in test["alert_rule_test"]:
            cases.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert cases == {rule["alert"]: {True, False} for rule in rules()}


@needs_promtool
def test_the_rules_do_what_they_say(tmp_path):
    path = tmp_path / "tests.yml"
    path.write_text((HERE / "alert_rules.yml").read_text().replace("[RULES]", f"[{RULES}]"))
    done = subprocess.run([PROMTOOL, "test", "rules", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@needs_promtool
def test_promtool_takes_rules_and_queries(tmp_path):
    """The dashboard's queries as rules, with its variables filled in."""
    path = tmp_path / "queries.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": [
        {"record": f"query_{index}", "expr": re.sub(r"\$\w+", "x", text)} for index, text in enumerate(queries())
    ]}]}))  # fmt: skip
    for checked in (RULES, path):
        done = subprocess.run([PROMTOOL, "check", "rules", str(checked)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


def test_the_dashboard_asks_only_for_variables_that_it_has():
    document = json.loads(DASHBOARD.read_text())
    known = {variable["name"] for variable in document["templating"]["list"]}
    assert {name for text in queries() for name in re.findall(r"\$(\w+)", text)} <= known
    assert all(panel["datasource"]["uid"] == "${datasource}" for panel in panels())
    assert len({panel["id"] for panel in document["panels"]}) == len(document["panels"])
