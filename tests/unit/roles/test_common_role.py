"""The role common: what is wrong with the instances ends every playbook with findings, whichever role reads them."""

import json
import re

import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.filter.kepler_preflight import findings_report
from rendered import ROOT, evaluate

GOOD = {"name": "a", "model": "/m"}
FAULTS = {
    "text": ("a", 'vllm_service_instances: found "a"; expected a list of instances'),
    "nothing": (None, 'vllm_service_instances: found ""; expected a list of instances'),
    "number": ([7], "vllm_service_instances[0]: found 7; expected a mapping with name and model"),
    "no name": ([{"model": "/m"}], "vllm_service_instances[0].name: found nothing; expected"),
    "port": ([GOOD, {**GOOD, "port": "x"}], 'vllm_service_instances[1].port: found "x"; expected an integer of 1024'),
    "gpus": ([{**GOOD, "gpus": "0"}], 'vllm_service_instances[0].gpus: found "0"; expected a list of different'),
    "open": ([GOOD, {**GOOD, "host": "::", "port": 8001}], "vllm_service_instances[1].host: found"),
    "hosts": ([{**GOOD, "hosts": 3}], "vllm_service_instances[0].hosts: found 3; expected two or more different hosts"),
    "template": ([{**GOOD, "model": "{{ nothing }}"}], "vllm_service_instances: found a template that cannot be"),
    "option": ([{**GOOD, "extra_args": {"seed": "x"}}], 'vllm_service_instances[0].extra_args.seed: found "x"'),
    "clash": ([GOOD, {**GOOD, "name": "b"}], "vllm_service_instances[1].port: found 8000; expected another port"),
}


def findings(instances, defaults=None):
    variables = {"vllm_service_instances": instances, "vllm_service_instance_defaults": defaults or {}}
    return evaluate("common", "{{ __common_findings }}", hostvars={"k80-1": variables}, **variables)


@pytest.mark.parametrize("fault", FAULTS)
def test_malformed_instances_are_findings(fault):
    instances, message = FAULTS[fault]
    assert f"error: {message}" in "\n".join(findings_report(findings(instances)))


def test_valid_instances_have_no_findings():
    assert findings([GOOD]) == []


def test_defaults_that_are_no_mapping_are_one_finding():
    (found,) = findings([GOOD], 3)
    assert (found["variable"], found["found"]) == ("vllm_service_instance_defaults", "3")


@pytest.mark.parametrize("role", ["common", "vllm_service", "qualification", "store"])
def test_play_stops_before_a_role_that_depends_on_it(play, role):
    settings = {"vllm_service_instances": [7]}
    status, output = play(
        [{"name": "Role", "ansible.builtin.include_role": {"name": f"kepler.vllm.{role}"}}], "-e", json.dumps(settings),
        gather_facts=False,
    )
    assert status != 0
    assert "1 error(s) in the instances of box; nothing was changed.\n" in output
    assert re.search(r"error: vllm_service_instances.0.: found 7; expected a mapping", output)
    assert output.count("fatal") == 1


def test_hosts_without_instances_name_those_of_the_servers(play):
    task = {"name": "common", "tasks_from": "servers"}
    settings = {"vllm_service_instances": [{**GOOD, "port": "x"}]}
    status, output = play([{"name": "Role", "ansible.builtin.include_role": {**task, "name": "kepler.vllm.common"}}],
                          variables=settings, gather_facts=False)
    assert status != 0
    assert 'error: vllm_service_instances[0].port of box: found "x"; expected an integer of 1024' in output


def test_only_preflight_and_removal_take_any_instances():
    taking = [path for path in (*ROOT.glob("roles/*/*/*.yml"), *ROOT.glob("playbooks/*.yml"))
              if "__common_stops: false" in path.read_text()]
    assert sorted(str(path.relative_to(ROOT)) for path in taking) == [
        "playbooks/uninstall.yml", "roles/preflight/meta/main.yml"]
    tasks = [task for play in yaml.safe_load((ROOT / "playbooks/uninstall.yml").read_text()) for task in play["tasks"]]
    removals = {task["ansible.builtin.include_role"]["name"].rpartition(".")[2] for task in tasks if "vars" in task}
    assert removals == {"vllm_service", "monitoring", "store", "offline"}
