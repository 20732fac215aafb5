"""The role preflight: one message with all findings, and no host touched too early."""

import json
import os
import shutil
import socket
from pathlib import Path

import pytest
from ansible_run import ansible_playbook
from module_server import module_python
from rendered import evaluate

ROOT = Path(__file__).resolve().parents[3]

INVENTORY = [{
    "name": "Judge", "ansible.builtin.import_role": {"name": "kepler.vllm.preflight", "tasks_from": "inventory"},
}]
HOST = [{"name": "Judge", "ansible.builtin.import_role": {"name": "kepler.vllm.preflight", "tasks_from": "host"}}]
NOWHERE = {"ansible_connection": "ssh", "ansible_host": "host.invalid"}


def test_inventory_faults_come_at_once_without_touching_host(play):
    instance = {"name": "demo", "model": "org/name", "tensor_parallel_size": "4", "bogus": 1}
    variables = {**NOWHERE, "vllm_service_instances": [instance], "pytorch_provider": "conda"}
    status, output = play(INVENTORY, variables=variables, gather_facts=False)
    assert status != 0
    assert output.count("FAILED!") == 1
    assert "3 error(s) on box; nothing was changed" in output
    where = "vllm_service_instances[0]"
    for variable in (f"{where}.tensor_parallel_size", f"{where}.bogus", "pytorch_provider"):
        assert f"error: {variable}: found" in output
    assert "changed=0    unreachable=0" in output


def test_misspelled_and_mistyped_variables_stop_the_play(play):
    faults = {"vllm_service_instnces": [], "nvidia_driver_reboot": "yes", "nvidia_driver_signing_key": "/k"}
    variables = {**NOWHERE, **faults}
    status, output = play(INVENTORY, variables=variables, gather_facts=False)
    assert status != 0
    assert "3 error(s) on box" in output
    message = " ".join(output.split())
    assert "Did you mean vllm_service_instances?" in message
    assert 'nvidia_driver_reboot: found "yes"; expected true or false, without quotes' in message
    assert "error: nvidia_driver_signing_certificate: found" in message


def test_the_command_line_may_give_text(play):
    status, output = play(INVENTORY, "-e", "nvidia_driver_reboot=true", variables=NOWHERE, gather_facts=False)
    assert status == 0, output


@pytest.mark.parametrize(("playbook", "options", "said"), [
    ("playbooks/rollback.yml", ("-e", "store_generation_wantd=3"),
     "-e store_generation_wantd: found a variable that nothing reads; expected store_generation_wanted."),
    ("playbooks/plan.yml", ("-e", "@more.yml"),
     "-e plan_contxt: found a variable that nothing reads; expected plan_context."),
    ("site.yml", ("--tags", "vllm_service_,store"),
     "tag vllm_service_: found one that no task has; expected vllm_service."),
])  # fmt: skip
def test_misspelled_option_stops_every_playbook(tmp_path, playbook, options, said):
    inventory = tmp_path / "hosts.yml"
    inventory.write_text("k80-hosts: {hosts: {box: {ansible_connection: local}}}\n")
    (tmp_path / "more.yml").write_text("plan_contxt: 3\n")
    done = ansible_playbook(tmp_path, "-i", inventory, ROOT / playbook, *options)
    assert done.returncode != 0 and "TASK" not in done.stdout
    assert said in " ".join(done.stderr.split())


def test_facts_that_roles_exported_are_no_unknown_variables(play):
    exported = {"name": "Export", "ansible.builtin.set_fact": {"repos_missing": [], "store_share": {}}}
    status, output = play([exported, *INVENTORY], variables=NOWHERE, gather_facts=False)
    assert status == 0, output
    assert "a variable that nothing reads" not in output


def test_a_sound_inventory_passes_without_a_host(play, tmp_path):
    variables = {**NOWHERE, "vllm_service_instances": [{"name": "demo", "model": "org/name", "dies": [0, 1, 2, 3]}]}
    more = tmp_path / "more.yml"
    more.write_text("site_since: 2026-01-01\nstore_color: red\n")
    status, output = play(INVENTORY, "-e", f"@{more}", variables=variables, gather_facts=False)
    assert status == 0, output
    assert "warning: store_color: found" in output
    assert "changed=0" in output


@pytest.mark.parametrize("options", [(), ("--check", "--diff")], ids=["run", "check"])
def test_host_faults_come_in_one_message(play, tmp_path, options):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        status, output = play(HOST, *options, variables={
            "vllm_service_instances": [{"name": "demo", "model": str(tmp_path / "none"), "port": port}],
            "preflight_pci_root": str(tmp_path / "pci"),
            "store_root": str(tmp_path / "kepler"),
            "preflight_disk_gib": {str(tmp_path): 10**6},
            "preflight_json": str(tmp_path / "reports"),
        })
    assert status != 0
    assert output.count("FAILED!") == 1
    for part in (
        "no Tesla K80 on the PCI bus (NVIDIA functions there: none at all)",
        f"vllm_service_instances[0].model: found {tmp_path / 'none'}: nothing is there",
        f"vllm_service_instances[0].port: found {port}, where",
        f"(process {os.getpid()}, ",
        "preflight_disk_gib and preflight_store_gib: found",
        f"{tmp_path} 1e+06",
    ):
        assert part in " ".join(output.split())
    assert "changed=0" in output
    report = json.loads((tmp_path / "reports" / "box.json").read_text())
    assert report["host"] == "box"
    severities = [item["severity"] for item in report["findings"]]
    assert severities == sorted(severities)  # the worst come first
    assert report["errors"] == severities.count("error") > 3
    assert {"severity", "variable", "found", "expected", "next_step"} == set(report["findings"][0])
    assert not (tmp_path / "kepler").exists()


def boards(root, *addresses, bar1="0x0000033800000000 0x0000033bffffffff 0x14220c"):
    """A sysfs directory with K80 dies."""
    for address in addresses:
        (root / address).mkdir(parents=True)
        resource = f"0xc6000000 0xc6ffffff 0x40200\n{bar1}\n"
        for name, text in (("vendor", "0x10de"), ("device", "0x102d"), ("resource", resource)):
            (root / address / name).write_text(text + "\n")
    return str(root)


def findings(play, tmp_path, **variables):
    """Findings of the host part as its JSON has them."""
    shutil.rmtree(tmp_path / "reports", ignore_errors=True)
    _, output = play(HOST, variables={
        "store_root": str(tmp_path / "kepler"), "preflight_json": str(tmp_path / "reports"), **variables,
    })
    assert "changed=0" in output
    return json.loads((tmp_path / "reports" / "box.json").read_text())["findings"]


def test_dies_of_the_bus_are_judged(play, tmp_path):
    dies = [f"0000:0{number}:00.0" for number in range(4)]
    sound = findings(play, tmp_path, preflight_pci_root=boards(tmp_path / "pci", *dies))
    assert [item for item in sound if "K80" in item["found"] or "die" in item["found"]] == []
    unmapped = boards(tmp_path / "low", *dies, bar1="0x0000000000000000 0x00000003ffffffff 0x14220c")
    found = findings(play, tmp_path, preflight_pci_root=unmapped)
    assert sum("above 4G decoding" in item["next_step"] for item in found) == 4


def test_the_journals_xids_come_into_the_report(play, tmp_path):
    line = "2024-03-01T10:00:00+0000 k80 kernel: NVRM: Xid (PCI:0000:06:00): 79, pid=1, GPU has fallen off the bus."
    lost = "2024-03-01T10:01:00+0000 k80 kernel: NVRM: GPU 0000:05:00.0: RmInitAdapter failed! (0x26:0xffff:1113)"
    _, output = play(
        HOST, variables={"store_root": str(tmp_path / "kepler"), "preflight_json": str(tmp_path / "reports")},
        programs={"journalctl": f'case "$*" in *"NVRM: "*_TRANSPORT=kernel) echo "{line}"; echo "{lost}";; esac'},
    )
    report = json.loads((tmp_path / "reports" / "box.json").read_text())
    assert any("Xid 79" in item["found"] for item in report["findings"]), output
    assert any("RmInitAdapter failed" in item["found"] for item in report["findings"]), output


def test_the_inventorys_faults_are_written_too(play, tmp_path):
    variables = {**NOWHERE, "pytorch_provider": "conda", "preflight_json": str(tmp_path / "reports")}
    status, _ = play(INVENTORY, variables=variables, gather_facts=False)
    assert status != 0
    (found,) = json.loads((tmp_path / "reports" / "box.json").read_text())["findings"]
    assert found["variable"] == "pytorch_provider"


def test_the_playbook_alone_writes_a_report_for_each_host(tmp_path):
    inventory = tmp_path / "hosts.yml"
    local = {"ansible_connection": "local", "ansible_python_interpreter": module_python(), "ansible_become": False,
             "preflight_pci_root": str(tmp_path / "none"), "store_root": str(tmp_path / "kepler")}
    inventory.write_text(json.dumps({"k80-hosts": {"hosts": {"one": local, "two": local}}}))
    playbook = ROOT / "playbooks" / "preflight.yml"
    done = ansible_playbook(tmp_path, "-i", inventory, playbook, "-e", "preflight_json=reports")
    assert done.returncode != 0
    assert "changed=1" not in done.stdout
    for name in ("one", "two"):
        report = json.loads((tmp_path / "reports" / f"{name}.json").read_text())
        assert report["host"] == name
        assert any("no Tesla K80" in item["found"] for item in report["findings"])


@pytest.mark.parametrize(
    ("changes", "jobs"),
    [
        ({"pytorch_jobs": 6}, "6"),
        ({"pytorch_jobs": 6, "pytorch_provider": "wheel"}, "0"),
        ({"pytorch_jobs": 6, "store_builds": False}, "0"),
        ({"pytorch_jobs": 6, "groups": {"k80_builder": ["other"]}}, "0"),
        ({"pytorch_jobs": 6, "groups": {"k80_builder": ["other"]}, "store_builds": True}, "6"),
        ({"pytorch_jobs": 0, "ansible_facts": {"processor_vcpus": 56}}, "0"),
    ],
)
def test_compile_jobs_are_those_of_the_host_that_builds(changes, jobs):
    host = {"groups": {}, "inventory_hostname": "box"}
    assert str(evaluate("preflight", "{{ __preflight_jobs }}", **{**host, **changes})) == jobs


def test_old_names_of_settings_stop_the_run_with_the_new_ones(play):
    variables = {**NOWHERE, "qualification_store_root": "/srv/kepler", "bench_instances": []}
    status, output = play(INVENTORY, variables=variables, gather_facts=False)
    assert status != 0
    assert output.count("FAILED!") == 1
    assert (
        "bench_instances, qualification_store_root: found variables that no role reads any more; expected "
        "vllm_service_instances, store_root, which every role reads."
    ) in " ".join(output.split())
