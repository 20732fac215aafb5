"""What is concluded from the facts of a host."""

import pytest
from kepler_preflight import driver_findings, host_findings, k80_dies

LOCKED = {"driver": "1.2.3", "stream": "1-dkms", "kernel": "4.0-1.x86_64"}
ROOT = "/opt/kepler"
MODEL = {"name": "demo", "model": "/srv/demo"}
K80, K40, NEWER = "0x102d", "0x1023", "0x20b0"


def function(device, number):
    return {"address": f"0000:{number:02x}:00.0", "vendor": "0x10de", "device": device, "driver": None}


def host(**changes):
    """Facts of a host that is ready for everything."""
    return {
        "os": {"id": "rocky", "version_id": "8.10", "pretty_name": "Rocky Linux 8.10"},
        "architecture": "x86_64",
        "kernel": LOCKED["kernel"],
        "init": "systemd",
        "secure_boot": False,
        "pci": [function(K80, number) for number in range(4)],
        "modules": [],
        "nvidia_version": None,
        "streams": {},
        "packages": ["bash", "kmod-nvidia-latest-dkms", "nvidia-driver"],
        "runfile": False,
        "paths": {"/srv/demo": "directory"},
        "ports": [],
        "free": {ROOT: 100 * 2**30},
        **changes,
    }


def judge(facts, *instances, container=False):
    return host_findings(
        facts, instances=list(instances) or [MODEL], locked=LOCKED, root=ROOT, gib=30, container=container
    )


def only(findings, severity="error"):
    (found,) = findings
    assert found["severity"] == severity
    assert all(found.values())
    return found


def test_a_ready_host():
    assert judge(host()) == []
    assert k80_dies(host()) == 4


@pytest.mark.parametrize("identity", ["rhel", "almalinux", "centos", "ol"])
def test_other_rebuilds_of_enterprise_linux_8(identity):
    assert judge(host(os={"id": identity, "version_id": "8", "pretty_name": identity})) == []


@pytest.mark.parametrize(
    ("identity", "version", "name"),
    [("rocky", "9.4", "Rocky Linux 9.4"), ("debian", "12", "Debian GNU/Linux 12"), ("fedora", "8", "Fedora 8"),
     ("rocky", "80", "Rocky Linux 80"), ("", "", "")],
)
def test_another_release(identity, version, name):
    found = only(judge(host(os={"id": identity, "version_id": version, "pretty_name": name})))
    assert name in found["found"]
    assert "Enterprise Linux 8" in found["expected"]


def test_another_architecture():
    assert only(judge(host(architecture="aarch64")))["expected"] == "x86_64"


def test_another_init():
    assert "systemd" in only(judge(host(init="bash")))["expected"]


@pytest.mark.parametrize("devices", [[], [NEWER]])
def test_no_k80(devices):
    found = only(judge(host(pci=[function(device, 1) for device in devices])))
    assert "no Tesla K80" in found["found"]
    assert "k80-hosts" in found["next_step"]


def test_a_k40_alone_is_named_and_not_enough():
    found = judge(host(pci=[function(K40, 1)]))
    assert [item["severity"] for item in found] == ["error", "warning"]
    assert "Tesla K40m" in found[1]["found"]


def test_a_k40_beside_k80s_is_left_alone():
    pci = [function(K80, number) for number in range(4)] + [function(K40, 9)]
    found = only(judge(host(pci=pci)), "warning")
    assert "sm_35" in found["expected"]
    assert k80_dies(host(pci=pci)) == 4


def test_dies_are_numbered_over_all_boards():
    sound = {**function("0x10f0", 1), "address": "0000:01:00.1"}
    facts = host(pci=[function(K40, 1), sound, *(function(K80, number) for number in range(2, 6))])
    warning, found = judge(facts)
    assert warning["severity"] == "warning"
    assert (found["variable"], found["found"]) == ("vllm_service_instances[0].dies", "[0]")
    assert "[1, 2, 3, 4]" in found["expected"]
    assert only(judge(facts, {**MODEL, "dies": [1, 2, 3, 4]}), "warning")


def test_a_missing_die():
    found = judge(host(pci=[function(K80, number) for number in range(3)]))
    assert [(item["severity"], item["variable"]) for item in found] == [
        ("warning", "host"),
        ("error", "vllm_service_instances[0].dies"),
    ]


def test_one_board_serves_two_dies_and_no_more():
    board = host(pci=[function(K80, number) for number in range(2)])
    assert judge(board, {**MODEL, "dies": [0, 1], "tensor_parallel_size": 2}) == []
    found = only(judge(board))
    assert found["variable"] == "vllm_service_instances[0].dies"
    assert found["found"] == "[2, 3]"


@pytest.mark.parametrize(("kind", "text"), [(None, "nothing is there"), ("file", "a file")])
def test_a_model_path_without_a_directory(kind, text):
    found = only(judge(host(paths={"/srv/demo": kind})))
    assert found["variable"] == "vllm_service_instances[0].model"
    assert "/srv/demo" in found["found"]
    assert text in found["found"]


def test_a_model_name_is_no_path():
    assert judge(host(paths={}), {"name": "demo", "model": "Qwen/Qwen2-0.5B"}) == []


def test_a_key_file_that_does_not_exist():
    found = only(judge(host(), {**MODEL, "api_key_file": "/etc/kepler/key"}))
    assert found["variable"] == "vllm_service_instances[0].api_key_file"


def listener(address, unit, pid=7):
    return {"port": 8000, "address": address, "pid": pid, "command": pid and "nginx", "unit": unit}


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "::"])
def test_a_port_in_use(address):
    found = only(judge(host(ports=[listener(address, "nginx.service")])))
    assert found["variable"] == "vllm_service_instances[0].port"
    assert "8000" in found["found"]
    assert "nginx" in found["found"]
    assert "vllm@demo.service" in found["expected"]


def test_a_port_held_from_another_namespace():
    assert "namespace" in only(judge(host(ports=[listener("0.0.0.0", None, pid=None)])))["found"]


def test_a_port_that_another_instance_holds():
    assert only(judge(host(ports=[listener("127.0.0.1", "vllm@other.service")])))


@pytest.mark.parametrize("socket", [listener("127.0.0.1", "vllm@demo.service"), listener("192.0.2.1", "nginx.service")])
def test_a_port_that_is_our_own_or_at_another_address(socket):
    assert judge(host(ports=[socket])) == []


def test_too_little_disk():
    found = only(judge(host(free={ROOT: 29 * 2**30})))
    assert found["variable"] == "preflight_store_gib"
    assert "29.0 GiB" in found["found"]


def test_disk_is_not_judged_once_a_generation_is_active():
    there = {"/srv/demo": "directory", f"{ROOT}/current": "directory"}
    assert judge(host(free={ROOT: 0}, paths=there)) == []


def test_another_module_stream():
    found = only(judge(host(streams={"nvidia-driver": "latest-dkms"})))
    assert "latest-dkms" in found["found"]
    assert judge(host(streams={"nvidia-driver": LOCKED["stream"], "perl": "5.26"})) == []


@pytest.mark.parametrize(
    "package", ["akmod-nvidia", "xorg-x11-drv-nvidia-470xx", "nvidia-x11-drv-470xx", "kmod-nvidia-open-dkms"]
)
def test_a_driver_from_elsewhere(package):
    found = only(judge(host(packages=["bash", package])))
    assert package in found["found"]
    assert package in found["next_step"]


def test_a_driver_of_the_runfile():
    assert "nvidia-uninstall" in only(judge(host(runfile=True)))["next_step"]


def test_another_kernel():
    found = only(judge(host(kernel="4.0-2.x86_64")))
    assert LOCKED["kernel"] in found["expected"]
    assert "reboot" in found["next_step"]


def test_secure_boot_stops_an_unsigned_module():
    assert "Secure Boot" in only(judge(host(secure_boot=True)))["found"]
    assert judge(host(secure_boot=True, nvidia_version=LOCKED["driver"])) == []


@pytest.mark.parametrize("changes", [{"modules": ["nouveau"]}, {"nvidia_version": "1.2.2"}])
def test_what_a_reboot_cures_is_a_warning(changes):
    assert "reboot" in only(judge(host(**changes)), "warning")["next_step"]


def test_a_container_has_the_kernel_of_its_machine():
    facts = host(kernel="6.1", secure_boot=True, modules=["nouveau"], nvidia_version="2")
    assert driver_findings(facts, LOCKED, container=True) == []
    assert len(driver_findings(facts, LOCKED, container=False)) == 3


def test_all_findings_come_at_once():
    found = judge(host(architecture="aarch64", init="bash", pci=[], runfile=True, free={ROOT: 0}, paths={}))
    assert len(found) == 6
