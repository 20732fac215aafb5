"""Which servers are asked, and started on how many dies, where a host is qualified for less than the inventory asks."""

from pathlib import Path

import pytest
import yaml
from ports import free_ports

SMOKE = Path(__file__).resolve().parents[3] / "playbooks" / "smoke.yml"
INSTANCES = [
    {"name": "main", "model": "/m/x", "gpus": [0, 1, 2, 3], "tensor_parallel_size": 4,
     "gpu_memory_utilization": 0.4},
    {"name": "late", "model": "/m/x", "dies": [3], "tensor_parallel_size": 1,
     "gpu_memory_utilization": 0.4},
]
# The servers as they would be started.
SERVE = [{"name": "Serve", "ansible.builtin.debug": {"msg": (
    "serves {{ vllm_service_instances | kepler.vllm.instances_with_defaults({}) "
    "| kepler.vllm.qualified_instances(qualification_dies) | map(attribute='gpus') | to_json }}, "
    "p2p {{ qualification_p2p }}"
)}}]


def replace(overlay, role, part, tasks):
    """Make a role that plays take in place of the collection's."""
    path = overlay / "roles" / role / "tasks" / f"{part}.yml"
    path.parent.mkdir(parents=True)
    path.write_text(yaml.safe_dump(tasks))


def export(facts):
    return [{"name": "Export", "ansible.builtin.set_fact": facts}] if facts else []


@pytest.fixture
def role(play, overlay, tmp_path):
    """Function that runs a role with others in place of those that act on a host: (exit status, output in one line).

    exported: what the role qualification says of the host.
    """

    def run(name, exported, *options, **variables):
        replace(overlay, "qualification", "facts", export(exported))
        replace(overlay, "vllm_service", "main", SERVE)
        ports = free_ports(len(INSTANCES))
        instances = [{**instance, "port": port} for instance, port in zip(INSTANCES, ports, strict=True)]
        settings = {"vllm_service_instances": instances, f"{name}_report_directory": str(tmp_path / "reports")}
        status, output = play(
            [{"name": "Run", "ansible.builtin.import_role": {"name": f"kepler.vllm.{name}"}}], *options,
            variables={**settings, **variables}, gather_facts=False,
        )
        assert "Traceback" not in output
        return status, " ".join(output.split())

    return run


def qualified(*dies, p2p=True):
    return {"qualification_size": len(dies), "qualification_dies": list(dies), "qualification_p2p": p2p}


@pytest.mark.parametrize(("dies", "asked"), [((0, 1), "TP 2"), ((), "")])
def test_only_servers_that_may_run_are_asked(role, dies, asked):
    """Nobody answers here: what is asked fails."""
    status, output = role("acceptance", qualified(*dies), acceptance_checks=["completion"])
    assert (status == 0) is not bool(dies), output
    assert (f"main {asked} completion failed" in output) is bool(dies)
    assert "late" not in output


def test_a_dry_run_asks_nothing(role, tmp_path):
    checks = {"acceptance_checks": ["completion", "load"], "acceptance_record": True}
    status, output = role("acceptance", {}, "--check", **checks)
    assert status == 0, output
    assert output.count("skipped a dry run asks nothing") == 4, "two checks of two servers"
    assert not (tmp_path / "reports").exists()


def test_numbers_of_dies_end_with_what_has_passed(role):
    status, output = role(
        "acceptance", qualified(0, 1, p2p=False), acceptance_checks=[], acceptance_sizes=[1, 2, 4],
    )
    assert status == 0, output
    assert "Not served on 4 GPUs: this host is qualified for 2." in output
    served = [part.split(", p2p")[0] for part in output.split("serves ")[1:]]
    assert served == ["[[0]]", "[[0, 1]]", "[[0, 1]]"], "the last: as the inventory asks, as far as that has passed"
    assert output.count("p2p False") == 3


def test_a_host_that_nobody_qualified_is_loaded_with_nothing(role):
    status, output = role("acceptance", {}, acceptance_checks=[], acceptance_sizes=[4])
    assert status != 0
    assert "found [4] on a host without a qualification that holds" in output
    assert "playbooks/qualify.yml" in output
    assert "serves" not in output


@pytest.mark.parametrize(
    ("exported", "measured"),
    [(qualified(0, 1), ["main"]), (qualified(0, 1, 2, 3), ["main"]), ({}, ["main", "late"]), (qualified(), [])],
)
def test_only_servers_that_may_run_are_measured(role, exported, measured):
    status, output = role("bench", exported, bench_lengths=[[8, 8]], bench_concurrency=[1])
    assert (status == 0) is not bool(measured), output
    assert [name for name in ("main", "late") if f"vllm@{name}: found /v1/models:" in output] == measured


def test_a_dry_run_measures_nothing(role):
    status, output = role("bench", {}, "--check", bench_lengths=[[8, 8]], bench_concurrency=[1])
    assert status == 0, output


def test_the_smoke_playbook_asks_only_servers_that_may_run(play, overlay):
    """A server that was started would be found failed here."""
    replace(overlay, "qualification", "facts", export(qualified(0)))
    instances = [{**INSTANCES[0], "gpus": [die], "tensor_parallel_size": 1, "name": f"on-{die}", "port": 8001 + die}
                 for die in (1, 0)]
    (asked,) = yaml.safe_load(SMOKE.read_text())
    status, output = play(
        asked["tasks"], gather_facts=False,
        programs={"systemctl": "echo ActiveState=failed; echo SubState=failed", "journalctl": "exit 0"},
        variables={"vllm_service_instances": instances, "store_root": str(overlay / "store")},
    )
    assert status != 0
    assert not (overlay / "store").exists(), "it only looks"
    assert [name for name in ("on-0", "on-1") if f"vllm@{name}.service: found failed" in output] == ["on-1"], output
