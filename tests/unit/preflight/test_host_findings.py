"""What is concluded from the facts of a host."""

import pytest
from ansible_collections.kepler.vllm.plugins.filter.kepler_boards import profile_gpus
from ansible_collections.kepler.vllm.plugins.filter.kepler_driver import driver_findings, signing_pair_findings
from ansible_collections.kepler.vllm.plugins.filter.kepler_host import (
    host_findings,
    paths_to_look_at,
    paths_to_read,
    ports_to_look_at,
)
from rendered import PROFILE

KERNELS = {"range": "4.0-1*.el8", "tested": ["4.0-1.el8"]}
LOCKED = {"driver": "1.2.3", "stream": "1-dkms", "kernels": KERNELS}
ROOT = "/opt/kepler"
MODEL = {"name": "demo", "model": "/srv/demo"}
K80, K40, NEWER = "0x102d", "0x1023", "0x20b0"


NEEDS = [{"path": ROOT, "gib": 30, "variable": "preflight_store_gib"}]


def function(device, number, **changes):
    """A function that sits on the bus without a bridge above it."""
    return {
        "address": f"0000:{number:02x}:00.0", "vendor": "0x10de", "device": device, "driver": None,
        "bar1": {"start": 2**40, "size": 2**34}, "width": 16, "max_width": 16, "bridges": [], "slot": None,
        "iommu": None, **changes,
    }


def board(first, dies=2, slot=None, acs=(False, False), width=16):
    """The dies of a K80 board whose switch has the bus `first`."""
    up = {"address": f"0000:{first:02x}:00.0", "width": width, "max_width": 16, "acs": None}
    root = {"address": "0000:00:02.0", "width": None, "max_width": None, "acs": None}
    down = {"width": 16, "max_width": 16}
    return [
        function(K80, first + 2 + die, slot=slot, bridges=[
            root, up, {**down, "address": f"0000:{first + 1:02x}:{8 * (die + 1):02x}.0", "acs": acs[die]}
        ])
        for die in range(dies)
    ]


def place(path, mount="/", noexec=False):
    """A place where programs are to run."""
    return {"path": path, "mount": mount, "noexec": noexec}


def host(**changes):
    """Facts of a host that is ready for everything."""
    return {
        "os": {"id": "rocky", "version_id": "8.10", "pretty_name": "Rocky Linux 8.10"},
        "architecture": "x86_64",
        "kernel": "4.0-1.el8.x86_64", "kernels": ["4.0-1.el8.x86_64"],
        "init": "systemd",
        "cpu_flags": ["avx", "avx2", "sse4_2"],
        "memory": 128 * 2**30,
        "secure_boot": False,
        "signing_key": None,
        "enrollment": "missing",
        "iommu": {"groups": 0, "passthrough": False},
        "xids": [],
        "ecc": [],
        "pci": [function(K80, number) for number in range(4)],
        "modules": [],
        "nvidia_version": None,
        "streams": {},
        "packages": ["bash", "kmod-nvidia-latest-dkms", "nvidia-driver"], "driver_package": LOCKED["driver"],
        "runfile": False,
        "programs": [place(ROOT), place("/var/lib/vllm")],
        "dkms": place("/var/lib/dkms"),
        "paths": {"/srv/demo": "directory"},
        "ports": [],
        "free": {ROOT: {"mount": "/", "bytes": 100 * 2**30}},
        **changes,
    }


TWO_DIES = {**MODEL, "gpus": [0, 1], "tensor_parallel_size": 2}


def judge(facts, *instances, container=False, needs=None, memory_gib=8, jobs=0, **others):
    return host_findings(
        facts, profile=PROFILE, instances=list(instances) or [MODEL], locked=LOCKED, root=ROOT, needs=needs or NEEDS,
        memory_gib=memory_gib, jobs=jobs, container=container, **others,
    )


def only(findings, severity="error"):
    (found,) = findings
    assert found["severity"] == severity
    assert all(found.values())
    return found


def test_a_ready_host():
    assert judge(host()) == []
    assert profile_gpus(host(), PROFILE["gpu"]) == 4


SPANNING = {**MODEL, "hosts": ["k80-1", "k80-2"], "link_port": 6379}


def test_link_port_in_use_is_an_error():
    """On every host of the instance; Redis has Ray's usual port."""
    redis = {"port": 6380, "address": "127.0.0.1", "pid": 5, "command": "redis", "unit": "redis.service"}
    for name in SPANNING["hosts"]:
        found = only(judge(host(ports=[redis]), SPANNING, name=name))
        assert found["variable"] == "vllm_service_instances[0].link_port"
        assert "6380, where redis (process 5, redis.service) listens" in found["found"]
        for ours in ("vllm@demo.service", "vllm-stage@demo.service"):
            assert judge(host(ports=[{**redis, "unit": ours}]), SPANNING, name=name) == []
    assert judge(host(ports=[redis])) == []
    assert {6379, 6498, 8000} <= set(ports_to_look_at([SPANNING]))
    assert ports_to_look_at([MODEL]) == [8000]


def test_model_missing_on_a_stage_is_an_error():
    found = only(judge(host(paths={"/srv/demo": None}), SPANNING, name="k80-2"))
    assert (found["variable"], found["found"]) == ("vllm_service_instances[0].model", "/srv/demo: nothing is there")


def test_gpu_in_use_is_a_warning():
    process = {"address": "00000000:01:00.0", "pid": 7, "command": "python3", "unit": None}
    found = only(judge(host(gpu_processes=[process]), TWO_DIES), "warning")
    assert found["variable"] == "vllm_service_instances[0].gpus"
    assert found["found"] == "1, used by python3 (process 7, no unit)"
    assert judge(host(gpu_processes=[process]), {**MODEL, "gpus": [0]}) == []
    assert judge(host(gpu_processes=[{**process, "unit": "vllm-stage@demo.service"}]), TWO_DIES) == []


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


@pytest.mark.parametrize(
    ("device", "name", "capability"), [("0x1024", "Tesla K40c", "sm_35"), ("0x118f", "Tesla K10", "sm_30")]
)
def test_other_kepler_boards_are_named_with_their_capability(device, name, capability):
    found = only(judge(host(pci=[*(function(K80, number) for number in range(4)), function(device, 9)])), "warning")
    assert name in found["found"]
    assert capability in found["found"]


def test_a_k40_beside_k80s_is_left_alone():
    pci = [function(K80, number) for number in range(4)] + [function(K40, 9)]
    found = only(judge(host(pci=pci)), "warning")
    assert "sm_35" in found["found"]
    assert profile_gpus(host(pci=pci), PROFILE["gpu"]) == 4


def test_dies_are_numbered_over_all_boards():
    sound = {**function("0x10f0", 1), "address": "0000:01:00.1"}
    facts = host(pci=[function(K40, 1), sound, *(function(K80, number) for number in range(2, 6))])
    warning, found = judge(facts)
    assert warning["severity"] == "warning"
    assert (found["variable"], found["found"]) == ("vllm_service_instances[0].gpus", "[0]")
    assert "[1, 2, 3, 4]" in found["expected"]
    assert only(judge(facts, {**MODEL, "gpus": [1, 2, 3, 4]}), "warning")


def test_dies_that_another_driver_holds_are_none_to_serve_with():
    found = only(judge(host(pci=[function(K80, number, driver="vfio-pci") for number in range(4)])))
    assert found["variable"] == "vllm_service_instances[0].gpus"
    assert "some of []" in found["expected"] and "another driver" in found["expected"]


def test_a_missing_die():
    found = judge(host(pci=[function(K80, number) for number in range(3)]))
    assert [(item["severity"], item["variable"]) for item in found] == [
        ("warning", "host"),
        ("error", "vllm_service_instances[0].gpus"),
    ]


def test_one_board_serves_two_dies_and_no_more():
    board = host(pci=[function(K80, number) for number in range(2)])
    assert judge(board, {**MODEL, "gpus": [0, 1], "tensor_parallel_size": 2}) == []
    found = only(judge(board))
    assert found["variable"] == "vllm_service_instances[0].gpus"
    assert found["found"] == "[2, 3]"


@pytest.mark.parametrize(("kind", "text"), [(None, "nothing is there"), ("file", "a file")])
def test_a_model_path_without_a_directory(kind, text):
    found = only(judge(host(paths={"/srv/demo": kind})))
    assert found["variable"] == "vllm_service_instances[0].model"
    assert "/srv/demo" in found["found"]
    assert text in found["found"]


def test_a_model_that_the_service_cannot_read():
    blocked = {"/srv/demo": {"path": "/srv", "found": "mode 0700, owner ops"}}
    found = only(judge(host(unreadable=blocked), user="kepler"))
    assert found["variable"] == "vllm_service_instances[0].model"
    assert found["found"] == "/srv (mode 0700, owner ops), which the user kepler cannot read"
    assert "setfacl -m u:kepler:rX /srv" in found["next_step"]
    assert judge(host(unreadable={"/srv/demo": None})) == []


def test_files_named_in_options_are_read_too():
    instance = {**MODEL, "extra_args": {"tokenizer": "/srv/t", "chat-template": "{{ x }}", "seed": 1}}
    assert paths_to_read([instance, {"name": "a", "model": "org/x"}]) == ["/srv/demo", "/srv/t"]
    found = only(judge(host(unreadable={"/srv/t": {"path": "/srv/t/a", "found": "mode 0600, owner root"}}), instance))
    assert found["variable"] == "vllm_service_instances[0].extra_args.tokenizer"


def test_a_model_name_is_no_path():
    assert judge(host(paths={}), {"name": "demo", "model": "Qwen/Qwen2-0.5B"}) == []


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
    other = {**MODEL, "name": "other", "port": 8001}
    assert only(judge(host(ports=[listener("127.0.0.1", "vllm@other.service")]), MODEL, other))


def test_a_port_of_an_instance_that_leaves():
    """It is stopped before the others start."""
    assert judge(host(ports=[listener("127.0.0.1", "vllm@other.service")])) == []


@pytest.mark.parametrize("socket", [listener("127.0.0.1", "vllm@demo.service"), listener("192.0.2.1", "nginx.service")])
def test_a_port_that_is_our_own_or_at_another_address(socket):
    assert judge(host(ports=[socket])) == []


def space(**gib):
    """Free space: path -> (mount point, GiB)."""
    return {path: {"mount": mount, "bytes": count * 2**30} for path, (mount, count) in gib.items()}


def test_too_little_disk():
    found = only(judge(host(free=space(**{ROOT: ("/", 29)}))))
    assert found["variable"] == "preflight_store_gib"
    assert "29.0 GiB" in found["found"]


THREE = [
    *NEEDS,
    {"path": "/usr", "gib": 5, "variable": "preflight_disk_gib"},
    {"path": "/boot", "gib": 0.5, "variable": "preflight_disk_gib"},
]


def test_needs_of_one_file_system_are_added_up():
    free = space(**{ROOT: ("/", 34), "/usr": ("/", 34), "/boot": ("/boot", 1)})
    found = only(judge(host(free=free), needs=THREE))
    assert found["variable"] == "preflight_disk_gib and preflight_store_gib"
    assert found["expected"] == f"35 GiB or more (GiB: {ROOT} 30, /usr 5)"
    assert judge(host(free=space(**{ROOT: ("/", 35), "/usr": ("/", 35), "/boot": ("/boot", 1)})), needs=THREE) == []


def test_each_file_system_is_judged_by_itself():
    free = space(**{ROOT: ("/opt", 31), "/usr": ("/", 2), "/boot": ("/boot", 0.25)})
    found = judge(host(free=free), needs=THREE)
    assert [item["found"] for item in found] == [
        "2.0 GiB free on the file system at /", "0.2 GiB free on the file system at /boot"
    ]


def test_disk_is_not_judged_once_a_generation_is_active():
    there = {"/srv/demo": "directory", f"{ROOT}/current": "directory"}
    assert judge(host(free=space(**{ROOT: ("/", 0)}), paths=there)) == []


def test_a_processor_without_sse42_or_avx2():
    assert "SSE4.2" in only(judge(host(cpu_flags=["avx2"])))["found"]
    assert "AVX2" in only(judge(host(cpu_flags=["sse4_2", "avx"])), "warning")["found"]


def test_memory_for_every_rank_of_every_server():
    found = only(judge(host(memory=23 * 2**30)))
    assert found["variable"] == "preflight_memory_gib"
    assert found["found"] == "23.0 GiB of memory"
    assert "24 GiB or more" in found["expected"]
    assert "swap-space" in found["next_step"]
    small = {**MODEL, "extra_args": {"swap-space": 0}}
    assert judge(host(memory=8 * 2**30), small) == []
    assert only(judge(host(memory=7 * 2**30), small))
    assert only(judge(host(memory=31 * 2**30), small, memory_gib=32))
    assert judge(host(memory=2**30), container=True) == []


def test_memory_for_the_compile_jobs():
    found = only(judge(host(memory=64 * 2**30), jobs=56), "warning")
    assert found["variable"] == "pytorch_jobs"
    assert "pytorch_jobs: 16" in found["next_step"]
    assert judge(host(memory=64 * 2**30), jobs=16) == []
    assert judge(host(memory=64 * 2**30), jobs=0) == []
    there = {"/srv/demo": "directory", f"{ROOT}/current": "directory"}
    assert judge(host(memory=64 * 2**30, paths=there), jobs=56) == []


def test_two_boards_behind_their_switches():
    assert judge(host(pci=board(3) + board(0x83))) == []


def test_a_board_with_one_die_is_named_by_its_slot():
    found = judge(host(pci=board(3) + board(0x83, dies=1, slot="6")), TWO_DIES)
    assert "0000:85:00.0 (slot 6)" in only(found, "warning")["found"]
    assert "0000:83:00.0" in only(found, "warning")["expected"]


def test_two_boards_with_one_die_each_are_two_halves():
    found = judge(host(pci=board(3, dies=1) + board(0x83, dies=1)), TWO_DIES)
    assert [item["severity"] for item in found] == ["warning", "warning"]


@pytest.mark.parametrize("bar", [{"start": 0, "size": 2**34}, {"start": 0, "size": 0}, {"start": 2**32, "size": 2**28}])
def test_a_die_whose_memory_is_not_mapped(bar):
    found = only(judge(host(pci=[*board(3), *board(0x83)[:1], {**board(0x83)[1], "bar1": bar}])))
    assert "0000:86:00.0" in found["found"]
    assert "above 4G decoding" in found["next_step"]


def test_a_bar_that_nobody_can_read_is_not_judged():
    assert judge(host(pci=[{**die, "bar1": None} for die in board(3) + board(0x83)])) == []


def test_a_board_on_fewer_lanes():
    found = only(judge(host(pci=board(3) + board(0x83, slot="6", width=8))), "warning")
    assert found["found"] == "the board behind 0000:83:00.0 in slot 6: a link of 8 lanes"
    found = only(judge(host(pci=[{**board(3)[0], "width": 4}, *board(3)[1:], *board(0x83)])), "warning")
    assert "the GPU 0000:05:00.0: a link of 4 lanes" in found["found"]


def test_acs_above_a_die():
    found = only(judge(host(pci=board(3) + board(0x83, acs=(True, True)))), "warning")
    assert "0000:84:08.0, 0000:84:10.0" in found["found"]
    assert "NCCL_P2P_DISABLE=1" in found["next_step"]


@pytest.mark.parametrize(
    ("kind", "iommu", "translated"),
    [
        ("DMA", {"groups": 40, "passthrough": False}, True),
        ("DMA-FQ", {"groups": 40, "passthrough": False}, True),
        ("identity", {"groups": 40, "passthrough": False}, False),
        (None, {"groups": 40, "passthrough": False}, True),
        (None, {"groups": 40, "passthrough": True}, False),
        (None, {"groups": 0, "passthrough": False}, False),
    ],
)
def test_an_iommu_that_translates(kind, iommu, translated):
    facts = host(pci=[{**die, "iommu": kind} for die in board(3) + board(0x83)], iommu=iommu)
    found = judge(facts)
    assert [item["severity"] for item in found] == ["warning"] * translated
    assert all("iommu=pt" in item["next_step"] for item in found)
    assert judge(facts, container=True) == []


def test_xids_of_earlier_boots():
    event = {"address": "0000:06:00", "xid": 79, "count": 3, "last": "2024-03-05T11:30:00+0000", "text": "fallen"}
    found = only(judge(host(xids=[event])), "warning")
    assert "Xid 79 (the GPU has fallen off the bus, mostly power or heat) of 0000:06:00, 3 times" in found["found"]
    assert "Xid 999 (see NVIDIA" in only(judge(host(xids=[{**event, "xid": 999}])), "warning")["found"]


@pytest.mark.parametrize(
    ("changes", "found"),
    [({"mode": "Disabled"}, "ECC is off"), ({"volatile": 1}, "1 since"), ({"aggregate": 9}, "9 in all")],
)
def test_ecc(changes, found):
    die = {"address": "00000000:06:00.0", "mode": "Enabled", "volatile": 0, "aggregate": 0}
    assert judge(host(ecc=[die])) == []
    assert found in only(judge(host(ecc=[{**die, **changes}])), "warning")["found"]
    assert judge(host(ecc=[{**die, "volatile": None, "aggregate": None}])) == []


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


@pytest.mark.parametrize("kernel", [
    "4.0-2.el8.x86_64", "4.0-1.el9.x86_64", "6.1.0-1.el8.elrepo.x86_64", "4.0-1.5.rt7.246.el8.x86_64",
    "4.0-1.el8.x86_64+debug", "4.0-1.el8.aarch64", "4.0-10.el8.x86_64",
])  # fmt: skip
def test_a_kernel_out_of_the_range_is_refused(kernel):
    found = only(judge(host(kernel=kernel, kernels=[kernel])))
    assert kernel in found["found"]
    assert "4.0-1*.el8.x86_64" in found["expected"]
    assert found["next_step"].startswith("Run playbooks/upgrade.yml")
    assert "Reboot" in found["next_step"]


def test_installed_kernel_of_the_range_is_named_as_way_out():
    there = ["4.0-1.16.el8.x86_64", "4.0-2.el8.x86_64", "4.0-1.7.el8.x86_64"]
    found = only(judge(host(kernel="4.0-2.el8.x86_64", kernels=there)))
    assert "boot 4.0-1.16.el8.x86_64, which is installed" in found["next_step"]


@pytest.mark.parametrize("kernel", ["4.0-1.9.el8.x86_64", "4.0-1.89.1.el8.x86_64", "4.0-1.144.1.2.el8.x86_64"])
def test_a_kernel_that_nobody_has_tested_gets_a_warning(kernel):
    for move in (False, True):
        found = only(driver_findings(host(kernel=kernel), LOCKED, container=False, move=move), "warning")
        assert kernel in found["found"]
        assert "4.0-1.el8" in found["expected"]
        assert "DKMS builds" in found["next_step"]
    assert driver_findings(host(), LOCKED, container=False) == []


def test_a_runfile_provider_expects_its_own_driver_and_no_other():
    assert judge(host(runfile=True, packages=["bash"]), provider="runfile") == []


@pytest.mark.parametrize(
    "packages",
    [
        ["kmod-nvidia-latest-dkms", "nvidia-driver"],
        ["nvidia-persistenced"],
        ["nvidia-driver-cuda-libs", "nvidia-modprobe"],
    ],
)
def test_a_runfile_provider_refuses_the_streams_packages_by_name(packages):
    found = only(judge(host(packages=["bash", *packages]), provider="runfile"))
    assert found["variable"] == "nvidia_driver_provider"
    assert ", ".join(packages) in found["found"]
    assert f"dnf remove {' '.join(packages)}; dnf module reset nvidia-driver" in found["next_step"]
    assert "nvidia_driver_provider: module_stream" in found["next_step"]


def test_a_foreign_package_is_told_once():
    found = only(judge(host(packages=["kmod-nvidia-open-dkms"]), provider="runfile"))
    assert "open kernel modules" in found["found"]


def test_secure_boot_without_a_certificate_prints_every_step():
    found = only(judge(host(secure_boot=True)))
    assert "/var/lib/dkms/mok.pub does not exist yet" in found["found"]
    steps = found["next_step"].splitlines()
    assert len(steps) == 6
    for number, part in enumerate(["openssl req -new -x509", "mokutil --import /var/lib/dkms/mok.pub", "Enroll MOK",
                                   "mokutil --test-key", "run the playbook again"], 1):
        assert steps[number].strip().startswith(f"{number}. ")
        assert part in steps[number]


def test_secure_boot_with_a_certificate_that_is_not_enrolled():
    found = only(judge(host(secure_boot=True, enrollment="absent")))
    assert "openssl" not in found["next_step"]
    assert "1. mokutil --import /var/lib/dkms/mok.pub" in found["next_step"]


@pytest.mark.parametrize(("enrollment", "part"), [("pending", "Enroll MOK"), (None, "dnf install mokutil")])
def test_secure_boot_if_enrollment_is_incomplete_or_unknown(enrollment, part):
    assert part in only(judge(host(secure_boot=True, enrollment=enrollment)))["next_step"]


@pytest.mark.parametrize("changes", [{"enrollment": "enrolled"}, {"nvidia_version": LOCKED["driver"]}])
def test_secure_boot_that_trusts_the_module(changes):
    assert judge(host(secure_boot=True, **changes)) == []


def test_secure_boot_needs_certificate_with_foreign_driver():
    errors = [item for item in judge(host(secure_boot=True, nvidia_version="1.2.2")) if item["severity"] == "error"]
    assert "Secure Boot" in only(errors)["found"]


GIVEN = {"signing_key": "/etc/pki/mok.key", "signing_certificate": "/etc/pki/mok.der"}
SAFE = {"mode": "0400", "owner": 0}


def test_a_signing_key_of_the_operator():
    assert judge(host(secure_boot=True, enrollment="enrolled", signing_key=SAFE), **GIVEN) == []
    found = only(judge(host(secure_boot=True, enrollment="absent", signing_key=SAFE), **GIVEN))
    assert "mokutil --import /etc/pki/mok.der" in found["next_step"]
    assert judge(host(enrollment="absent", signing_key=SAFE), **GIVEN) == []


@pytest.mark.parametrize(
    ("changes", "variable"),
    [
        ({"signing_key": None}, "nvidia_driver_signing_key"),
        ({"signing_key": {"mode": "0644", "owner": 0}}, "nvidia_driver_signing_key"),
        ({"signing_key": {"mode": "0600", "owner": 1000}}, "nvidia_driver_signing_key"),
        ({"signing_key": SAFE, "enrollment": "missing"}, "nvidia_driver_signing_certificate"),
    ],
)
def test_a_signing_key_that_is_no_good(changes, variable):
    assert only(judge(host(**{"enrollment": "enrolled", **changes}), **GIVEN))["variable"] == variable


@pytest.mark.parametrize(
    ("pair", "variable"),
    [(("/k", ""), "nvidia_driver_signing_certificate"), (("", "/c"), "nvidia_driver_signing_key")],
)
def test_half_a_signing_pair(pair, variable):
    assert only(signing_pair_findings(*pair))["variable"] == variable
    assert signing_pair_findings("", "") == signing_pair_findings("/k", "/c") == []


@pytest.mark.parametrize("changes", [{"modules": ["nouveau"]}, {"nvidia_version": "1.2.2"}])
def test_what_a_reboot_cures_is_a_warning(changes):
    assert "reboot" in only(judge(host(**changes)), "warning")["next_step"]


@pytest.mark.parametrize("container", [True, False])
def test_only_an_upgrade_moves_a_driver(container):
    facts = host(driver_package="1.2.2")
    found = only(driver_findings(facts, LOCKED, container))
    assert found["variable"] == "nvidia_driver_move"
    assert "1.2.2 installed, and 1.2.3 locked" in found["found"]
    assert "playbooks/upgrade.yml" in found["next_step"]
    assert driver_findings(facts, LOCKED, container, move=True) == []


def test_only_an_upgrade_moves_the_running_kernel():
    facts = host(kernel="4.0-0.el8.x86_64", kernels=[])
    assert "playbooks/upgrade.yml" in only(driver_findings(facts, LOCKED, container=False))["next_step"]
    assert "reboot" in only(driver_findings(facts, LOCKED, container=False, move=True), "warning")["next_step"]


def test_a_container_has_the_kernel_of_its_machine():
    facts = host(kernel="6.1", secure_boot=True, modules=["nouveau"], nvidia_version="2")
    assert driver_findings(facts, LOCKED, container=True) == []
    assert len(driver_findings(facts, LOCKED, container=False)) == 4


def test_all_findings_come_at_once():
    nothing = {"pci": [], "paths": {}, "free": space(**{ROOT: ("/", 0)})}
    found = judge(host(architecture="aarch64", init="bash", runfile=True, **nothing))
    assert len(found) == 6


def test_a_mount_that_runs_nothing_is_named():
    ready = host()
    assert judge({**ready, "programs": [place(ROOT), place("/var/lib/vllm", "/var")]}) == []
    shared = [place(ROOT, "/opt", True), place("/opt/vllm", "/opt", True)]
    (item,) = judge({**ready, "programs": shared})
    assert item["severity"] == "error"
    assert item["found"] == f"/opt is mounted with noexec, and holds {ROOT}, /opt/vllm"
    assert "remount,exec /opt" in item["next_step"]
    (item,) = judge({**ready, "dkms": place("/var/lib/dkms", "/var", True)})
    assert "/var is mounted with noexec, and holds /var/lib/dkms" in item["found"]


def test_a_container_runs_no_dkms():
    assert [item for item in judge(host(dkms=place("/var/lib/dkms", "/var", True)), container=True)
            if "noexec" in item["found"]] == []


@pytest.mark.parametrize(
    ("opened", "container", "closed"),
    [
        (None, False, []),
        ([], False, [ROOT, "/var/lib/vllm", "/var/lib/dkms"]),
        ([], True, [ROOT, "/var/lib/vllm"]),
        (["/opt/kepler/"], False, ["/var/lib/vllm", "/var/lib/dkms"]),
        (["/opt/", "/var/lib"], False, []),
        (["/opt/kep/", "/var/lib/vllm/"], True, [ROOT]),
    ],
)
def test_fapolicyd_must_let_run_what_is_built(opened, container, closed):
    found = [item for item in judge(host(fapolicyd=opened), container=container) if "fapolicyd" in item["found"]]
    assert len(found) == bool(closed)
    for item in found:
        assert item["severity"] == "error"
        assert item["found"].endswith(f"is built in {', '.join(closed)}")
        for path in closed:
            assert f"'allow perm=any all : dir={path}/'" in item["next_step"]


def test_adapters_are_looked_for_and_read_like_the_model():
    instance = {**MODEL, "adapters": {"own": "/srv/own"}}
    assert {"/srv/own", "/srv/demo"} <= set(paths_to_read([instance])) & set(paths_to_look_at([instance]))
    found = only(judge(host(), instance))
    assert found["variable"] == "vllm_service_instances[0].adapters.own"
    assert found["found"] == "/srv/own: nothing is there"
