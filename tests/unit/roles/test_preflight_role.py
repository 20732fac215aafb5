"""The role preflight: one message with all findings, and no host touched too early."""

import os
import socket

import pytest

INVENTORY = [{"name": "Judge", "ansible.builtin.import_role": {"name": "preflight", "tasks_from": "inventory"}}]
HOST = [{"name": "Judge", "ansible.builtin.import_role": {"name": "preflight", "tasks_from": "host"}}]
NOWHERE = {"ansible_connection": "ssh", "ansible_host": "host.invalid"}


def test_inventory_faults_come_in_one_message_and_no_host_is_touched(play):
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


def test_a_sound_inventory_passes_without_a_host(play):
    variables = {**NOWHERE, "vllm_service_instances": [{"name": "demo", "model": "org/name"}]}
    status, output = play(INVENTORY, variables=variables, gather_facts=False)
    assert status == 0, output
    assert "changed=0" in output


@pytest.mark.parametrize("options", [(), ("--check", "--diff")], ids=["run", "check"])
def test_host_faults_come_in_one_message(play, tmp_path, options):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        status, output = play(HOST, *options, variables={
            "vllm_service_instances": [{"name": "demo", "model": str(tmp_path / "none"), "port": port}],
            "preflight_pci_root": str(tmp_path / "pci"),
            "preflight_store_root": str(tmp_path / "kepler"),
            "preflight_store_gib": 10**6,
        })
    assert status != 0
    assert output.count("FAILED!") == 1
    for part in (
        "no Tesla K80 on the PCI bus (NVIDIA functions there: none at all)",
        f"vllm_service_instances[0].model: found {tmp_path / 'none'}: nothing is there",
        f"vllm_service_instances[0].port: found {port}, where",
        f"(process {os.getpid()}, ",
        "preflight_store_gib: found",
    ):
        assert part in output
    assert "changed=0" in output
    assert not (tmp_path / "kepler").exists()
