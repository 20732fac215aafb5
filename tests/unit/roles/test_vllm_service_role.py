"""What the role writes for an instance, and the unit that all instances share."""

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.filter.kepler_instances import instances_with_defaults
from ansible_collections.kepler.vllm.plugins.plugin_utils import profiles
from rendered import PROFILE, render

ROOT = Path(__file__).resolve().parents[3]
ROLE = ROOT / "roles" / "vllm_service"
INSTANCE = {"name": "main", "model": "/srv/models/x"}
# Two that share the GPUs.
FIRST = {**INSTANCE, "name": "first", "gpu_memory_utilization": 0.4}
SECOND = {**FIRST, "name": "second", "port": 8001}
# Settings of [Service] that systemd 239 has, EL8's, as far as a server may want them; with Red Hat's own backport
# RestrictSUIDSGID (239-15).
SYSTEMD_239 = {
    "Type", "NotifyAccess", "User", "Group", "WorkingDirectory", "EnvironmentFile", "Environment",
    "RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve", "ExecStart", "ExecStartPre",
    "ExecStartPost", "ExecReload", "ExecStop", "ExecStopPost", "TimeoutStartSec", "TimeoutStopSec", "TimeoutSec",
    "WatchdogSec", "KillMode", "KillSignal", "SendSIGKILL", "Restart", "RestartSec", "RestartPreventExitStatus",
    "SuccessExitStatus", "SyslogIdentifier", "UMask", "LimitNOFILE", "LimitCORE", "LimitMEMLOCK", "NoNewPrivileges",
    "CapabilityBoundingSet", "AmbientCapabilities", "SecureBits", "ProtectSystem", "ProtectHome", "ReadWritePaths",
    "ReadOnlyPaths", "InaccessiblePaths", "PrivateTmp", "PrivateDevices", "PrivateNetwork", "PrivateUsers",
    "PrivateMounts", "TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths", "DevicePolicy", "DeviceAllow",
    "ProtectKernelTunables", "ProtectKernelModules", "ProtectControlGroups", "RestrictNamespaces",
    "RestrictRealtime", "RestrictSUIDSGID", "RestrictAddressFamilies", "LockPersonality", "KeyringMode",
    "RemoveIPC", "SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber", "MemoryMax", "MemoryHigh",
    "CPUQuota", "CPUWeight", "Nice", "TasksMax", "IPAddressDeny", "IPAddressAllow", "OOMScoreAdjust",
}  # fmt: skip


@pytest.fixture
def write():
    """Function that gives a template of the role as it would stand on a host."""

    def run(template, instance=None, **variables):
        variables.setdefault("store_root", "/opt/kepler")
        known = {"__vllm_service_current": {"stat": {"lnk_target": "generations/7"}}}
        (item,) = instances_with_defaults([{**INSTANCE, **(instance or {})}], {}, PROFILE["serve"])
        return render("vllm_service", template, **known, item=item, **variables)

    return run


# An instance that sets most keys, and one of defaults: what each file held before there was a second engine.
RECORDED = Path(__file__).parent / "k80-files"
FULL = {
    "name": "full", "host": "0.0.0.0", "port": 8001, "gpus": [0, 1], "tensor_parallel_size": 2, "dtype": "half",
    "cuda_graphs": True, "max_model_len": 2048, "gpu_memory_utilization": 0.8, "served_model_name": "x",
    "api_key_file": "/etc/k", "memory_max": "48G", "nice": 5, "parsers": False, "adapters": {"a": "/srv/a"},
    "extra_args": {"swap-space": 2, "enable-prefix-caching": True},
}


@pytest.mark.parametrize("path", sorted(RECORDED.iterdir()), ids=lambda path: path.name)
def test_a_second_engine_changes_no_file_of_a_k80_host(write, path):
    name, _, template = path.stem.partition(".")
    assert write(f"{template}.j2", {"main": {}, "full": FULL}[name]) == path.read_text()


STOCK = profiles.profiles(ROOT / "profiles")["volta"]


def test_options_and_environment_of_a_released_vllm(write):
    def options(**said):
        return yaml.safe_load(write("instance.yaml.j2", {"engine": "stock", **said}, profile=STOCK))

    assert options()["disable-custom-all-reduce"] is True
    assert "enforce-eager" not in options(cuda_graphs=True)
    assert options(cuda_graphs=False)["enforce-eager"] is True
    assert options(extra_args={"enable-prefix-caching": False})["no-enable-prefix-caching"] is True
    text = write("instance.env.j2", {"engine": "stock"}, profile=STOCK, vllm_service_home="/var/lib/vllm")
    known = dict(line.partition("=")[::2] for line in text.splitlines() if not line.startswith("#"))
    caches = {name: known.pop(name) for name in ("VLLM_CACHE_ROOT", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR")}
    assert len(set(caches.values())) == 3
    assert all(path.startswith("/var/lib/vllm/.cache/vllm@main/") for path in caches.values())
    assert known["VLLM_HOST_IP"] == "127.0.0.1"
    assert (known["NCCL_CUMEM_ENABLE"], known["NCCL_PROTO"]) == ("0", "Simple")
    assert not [name for name in known if name in ("VLLM_USE_V1", "VLLM_ATTENTION_BACKEND")]


def settings(text):
    """The lines NAME=VALUE of the section [Service]."""
    joined = text.partition("[Service]")[2].partition("[Install]")[0].replace("\\\n", "")
    return [line.partition("=")[::2] for line in joined.splitlines() if line and not line.startswith("#")]


def test_the_unit_needs_no_newer_systemd(write):
    unknown = {name for name, _ in settings(write("vllm@.service.j2"))} - SYSTEMD_239
    assert unknown == set()


def test_systemd_takes_the_unit(write, tmp_path):
    unit = tmp_path / "vllm@main.service"
    unit.write_text(write("vllm@.service.j2"))
    assert "vllm" not in subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True).stderr
    measured = subprocess.run(["systemd-analyze", "security", "--offline=true", unit], capture_output=True, text=True)
    if "exposure level" not in measured.stdout:
        pytest.skip("this systemd measures only units that it has loaded")
    assert float(re.search(r"Overall exposure level for .*: ([\d.]+)", measured.stdout)[1]) <= 3.0


def test_the_times_of_the_unit_hang_together(write):
    """A stop takes the drain and vLLM's own time; a test that shortens one must not be cut off by another."""
    found = dict(settings(write("vllm@.service.j2", vllm_service_drain=10, vllm_service_watchdog=20,
                                vllm_service_start_stall=30)))
    assert (found["TimeoutStopSec"], found["WatchdogSec"], found["TimeoutStartSec"]) == ("70", "20", "30")
    environment = write("instance.env.j2", vllm_service_drain=10, vllm_service_start_stall=30)
    assert "VLLM_SERVING_DRAIN=10\n" in environment
    assert "VLLM_SERVING_STALL=30\n" in environment


# A Python that says how it was called.
CALLED = '#!/bin/sh\necho "$0" "$@"\n'


@pytest.mark.parametrize(("outputs", "module"), [
    (["serving", "vllm_kepler"], "vllm_kepler.serving"),
    (["serving", "vllm_kepler", "vllm_serving"], "vllm_serving"),
    (["serving", "vllm_serving"], "vllm_serving"),
])
def test_unit_starts_the_supervisor_that_the_generation_has(write, tmp_path, outputs, module):
    """Files in /etc stay as they are when a host goes back to a generation from before."""
    generation = tmp_path / "generations" / "41"
    generation.mkdir(parents=True)
    for name in outputs:
        (tmp_path / f"store-{name}" / "bin").mkdir(parents=True)
        (generation / name).symlink_to(tmp_path / f"store-{name}")
    (tmp_path / "store-serving" / "bin" / "python").write_text(CALLED)
    (tmp_path / "store-serving" / "bin" / "python").chmod(0o755)
    (tmp_path / "current").symlink_to("generations/41")
    command = dict(settings(write("vllm@.service.j2", store_root=str(tmp_path))))["ExecStart"]
    program, option, text = shlex.split(command.replace("$$", "$").replace("%i", "main"))
    printed = subprocess.run([program, option, text], capture_output=True, text=True, check=True).stdout
    assert printed.split() == [
        f"{tmp_path}/store-serving/bin/python", "-m", module, "main", "/etc/kepler/instances/main.yaml", "41",
    ]  # fmt: skip


@pytest.mark.parametrize("there", [True, False])
def test_instance_of_another_engine_starts_its_environment(write, tmp_path, there):
    """After a rollback to a generation without it, it says so and is not started again."""
    generation = tmp_path / "generations" / "41"
    for name in ["serving", *(["serving_port"] if there else [])]:
        (tmp_path / f"store-{name}" / "bin").mkdir(parents=True)
        (tmp_path / f"store-{name}" / "bin" / "python").write_text(CALLED)
        (tmp_path / f"store-{name}" / "bin" / "python").chmod(0o755)
        generation.mkdir(parents=True, exist_ok=True)
        (generation / name).symlink_to(tmp_path / f"store-{name}")
    (tmp_path / "current").symlink_to("generations/41")
    text = write("instance.conf.j2", {"engine": "port"}, profile=STOCK, store_root=str(tmp_path))
    assert "ExecStart" not in write("instance.conf.j2", {"engine": "stock"}, profile=STOCK)
    cleared, command = [value for name, value in settings(text) if name == "ExecStart"]
    program, option, script = shlex.split(command.replace("$$", "$").replace("%i", "main"))
    done = subprocess.run([program, option, script], capture_output=True, text=True)
    if there:
        assert done.stdout.split() == [
            f"{tmp_path}/store-serving_port/bin/python", "-m", "vllm_serving", "main",
            "/etc/kepler/instances/main.yaml", "41",
        ]  # fmt: skip
    else:
        assert (cleared, done.returncode) == ("", 78)
        assert done.stderr.startswith("generation 41: found no serving_port, which this instance runs. Activate one")
        assert "78" in dict(settings(write("vllm@.service.j2")))["RestartPreventExitStatus"].split()


def test_environment_keeps_names_of_older_generations(write):
    lines = dict(line.partition("=")[::2] for line in write("instance.env.j2").splitlines() if "=" in line)
    new = {name.removeprefix("VLLM_SERVING_"): lines[name] for name in lines if name.startswith("VLLM_SERVING_")}
    assert set(new) == {"START", "STALL", "DRAIN", "HELD", "BODY", "SEQUENCES"}
    assert new == {name: lines[f"VLLM_KEPLER_{name}"] for name in new}


@pytest.mark.parametrize("model", ["/srv/models/x", "/srv/модели/# \U0001f600", '/srv/a "model": {b}', "/srv/a'b\\c"])
def test_options_are_the_same_for_vllm_and_supervisors(write, model):
    """vLLM and supervisors from before vllm_serving read YAML, the supervisor JSON below the comment."""
    text = write("instance.yaml.j2", {"model": model, "extra_args": {"swap-space": 0.00001, "trust-remote-code": True}})
    found = json.loads("".join(line for line in text.splitlines() if not line.startswith("#")))
    assert found == {**yaml.safe_load(text), "swap-space": 0.00001}
    assert (found["model"], found["port"], found["trust-remote-code"]) == (model, 8000, True)


def test_the_unit_names_its_runtime_directory(write):
    """systemd 239 does not."""
    found = dict(settings(write("vllm@.service.j2")))
    assert found["Environment"] == "RUNTIME_DIRECTORY=%t/" + found["RuntimeDirectory"]


@pytest.mark.parametrize(("limits", "lines"), [
    ({}, []),
    ({"memory_max": "48G", "cpu_quota": "800%", "nice": -5}, ["MemoryMax=48G", "CPUQuota=800%", "Nice=-5"]),
])
def test_limits_of_an_instance(write, limits, lines):
    found = [f"{name}={value}" for name, value in settings(write("instance.conf.j2", limits))]
    assert found == lines


@pytest.mark.parametrize("most", [1, 1024])
def test_sequences_of_a_request_are_bounded(write, most):
    assert f"VLLM_SERVING_SEQUENCES={most}\n" in write("instance.env.j2", vllm_service_max_sequences=most)


@pytest.mark.parametrize(("instance", "off"), [({}, False), ({"parsers": True}, False), ({"parsers": False}, True)])
def test_parsers_are_off_only_when_asked(write, instance, off):
    assert ("VLLM_SERVING_PARSERS=0\n" in write("instance.env.j2", instance)) == off


def test_adapters_are_named_in_the_environment(write):
    assert "VLLM_SERVING_ADAPTERS" not in write("instance.env.j2")
    adapters = {"b": "/srv/b", "a": "/srv/a"}
    assert "VLLM_SERVING_ADAPTERS=a=/srv/a b=/srv/b\n" in write("instance.env.j2", {"adapters": adapters})


@pytest.mark.parametrize(("said", "on"), [({}, False), ({"cuda_graphs": False}, False), ({"cuda_graphs": True}, True)])
def test_cuda_graphs_only_when_asked(write, said, on):
    assert ("VLLM_KEPLER_CUDA_GRAPHS=1\n" in write("instance.env.j2", said)) == on


@pytest.mark.parametrize(("known", "switch", "why"), [
    (None, "0", "nobody qualified this host"),
    ({"proved": False, "because": "another answer with them"}, "0", "another answer with them"),
    ({"proved": True, "because": "the same answers, 2.0 ms"}, "1", "the same answers, 2.0 ms"),
    ({"proved": False, "because": 'rank 0: "no\nword" $HOME'}, "0", "rank 0: noword HOME"),
])
def test_automatic_graphs_follow_the_qualification(write, known, switch, why):
    written = write("instance.env.j2", {"cuda_graphs": "auto"}, **({"qualification_graphs": known} if known else {}))
    assert f"VLLM_KEPLER_CUDA_GRAPHS={switch}\nVLLM_KEPLER_CUDA_GRAPHS_AUTO={why}\n" in written


def test_the_hub_is_left_alone_unless_asked(write):
    assert "HF_HUB_OFFLINE=1\n" in write("instance.env.j2")
    assert "HF_HUB_OFFLINE" not in write("instance.env.j2", vllm_service_hub_offline=False)


@pytest.mark.parametrize(("host", "asked", "opened"), [
    ("0.0.0.0", True, True), ("0.0.0.0", False, False), ("127.0.0.1", True, False),
])
def test_the_firewall_only_when_asked_and_beyond_loopback(play, tmp_path, host, asked, opened):
    """firewalld is none here: the module gets as far as saying so."""
    task = {"name": "Open", "ansible.builtin.include_tasks": str(ROLE / "tasks/firewall.yml")}
    status, output = play([task], gather_facts=False, variables={
        "vllm_service_firewalld": asked, "__vllm_service_servers": [{**INSTANCE, "host": host, "port": 8000}],
        "__vllm_service_peers": [],
    })
    assert (status != 0) == opened, output
    assert ("firewall" in output.partition("Open the ports")[2].partition("PLAY RECAP")[0]) == opened


# A systemd that knows every unit, has them all enabled and running, and notes what it is told.
SYSTEMCTL = """[ "$1" = --no-block ] && shift
echo "$@" >> {log}
if [ "$1" = show ]; then echo LoadState=loaded; echo ActiveState=active; fi"""


@pytest.fixture
def serve(play, tmp_path):
    """Function that runs parts of the role below a directory: (exit status, output, what systemd was told to do)."""
    store, log = tmp_path / "store", tmp_path / "systemctl.log"
    (store / "generations").mkdir(parents=True)
    (store / "current").symlink_to("generations/7")
    for name in ("instances", "systemd"):
        (tmp_path / name).mkdir()

    def run(*options, parts=("configure", "find", "start"), systemctl=SYSTEMCTL, **variables):
        log.write_text("")
        tasks = [
            {"name": "Run", "ansible.builtin.include_role": {"name": "kepler.vllm.vllm_service", "tasks_from": part}}
            for part in parts
        ]
        settings = {
            "vllm_service_instances": [FIRST, SECOND],
            "store_root": str(store),
            "__vllm_service_directory": str(tmp_path / "instances"),
            "__vllm_service_systemd": str(tmp_path / "systemd"), **variables,
        }
        status, output = play(
            tasks, "-e", json.dumps(settings), *options, programs={"systemctl": systemctl.format(log=log)},
            gather_facts=False,
        )
        assert "Traceback" not in output
        doing = {"start", "stop", "restart", "disable"}
        return status, output, [line for line in log.read_text().splitlines() if line.split()[0] in doing]

    return run


def restarts(*names):
    return [f"restart vllm@{name}.service" for name in names]


def test_what_did_not_change_goes_on_running(serve, tmp_path):
    model = str(ROOT / "tests" / "models" / "licence-llama")
    asked = {"vllm_service_instances": [{**FIRST, "model": model}, {**SECOND, "model": model, "memory_max": "75%"}]}
    status, output, told = serve(**asked)
    assert (status, told) == (0, restarts("first", "second")), output
    # The server's 4 GiB, four ranks of 2 and of 4 pinned, and weights of less than one.
    for name, limit in (("first", "29G"), ("second", "75%")):
        written = (tmp_path / "systemd" / f"vllm@{name}.service.d" / "instance.conf").read_text()
        assert f"\nMemoryMax={limit}\n" in written
    status, output, told = serve(**asked)
    assert (status, told) == (0, []), output
    assert "changed=0" in output


def test_host_without_a_generation_gets_no_unit(serve, tmp_path):
    (tmp_path / "store" / "current").unlink()
    assert serve("--check", parts=("check",))[0] == 0
    status, output, told = serve(parts=("check", "configure"))
    assert (status != 0, told) == (True, [])
    assert "store/current: found none on box; expected the active generation" in " ".join(output.split())
    assert not [*(tmp_path / "instances").iterdir(), *(tmp_path / "systemd").iterdir()]


@pytest.mark.parametrize("what", ["options", "generation", "unit"])
def test_a_restart_is_not_lost_when_a_run_breaks_off_before_it(serve, tmp_path, what):
    (tmp_path / "systemd" / "vllm@.service").write_text("old")
    assert serve()[2] == restarts("first", "second")
    asked = {}
    if what == "options":
        asked = {"vllm_service_instances": [FIRST, {**SECOND, "max_model_len": 512}]}
    elif what == "generation":
        (tmp_path / "store" / "current").unlink()
        (tmp_path / "store" / "current").symlink_to("generations/8")
    else:
        (tmp_path / "systemd" / "vllm@.service").write_text("new")
    assert serve(parts=("configure",), **asked)[2] == []
    if what == "options":
        status, output, told = serve("--check", **asked)
        assert (status, output.count("changed: [box]"), told) == (0, 1, []), output
    status, output, told = serve(**asked)
    assert (status, told) == (0, restarts(*(["second"] if asked else ["first", "second"]))), output


def test_a_restart_that_systemd_refuses_is_tried_again(serve):
    refusing = SYSTEMCTL + '\nif [ "$1 $2" = "restart vllm@second.service" ]; then exit 1; fi'
    assert serve(systemctl=refusing)[0] != 0
    assert serve()[2] == restarts("first", "second")


def test_a_dry_run_says_what_would_start_anew(serve, tmp_path):
    serve()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("instances/*")}
    status, output, told = serve("--check", vllm_service_drain=7)
    assert (status, told) == (0, []), output
    assert output.count("changed: [box]") == 4, "files and server of each"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("instances/*")} == before


def test_the_running_part_alone_starts_what_is_due(serve):
    """The tag vllm_service_run, without what other tags look at."""
    serve(parts=("configure",))
    status, output, told = serve(parts=("find", "start"))
    assert (status, told) == (0, restarts("first", "second")), output
    assert serve(parts=("find", "start"))[2] == []


def test_an_instance_that_left_the_inventory_is_retired(serve, tmp_path):
    serve()
    (tmp_path / "systemd" / "other.yaml").write_text("of somebody else")
    status, output, told = serve(
        parts=("configure", "find", "retire", "start"), vllm_service_instances=[FIRST]
    )
    assert (status, told) == (0, ["disable vllm@second.service", "stop vllm@second.service"]), output
    assert sorted(path.name for path in (tmp_path / "instances").iterdir()) == ["first.env", "first.yaml", "started"]
    assert [path.name for path in (tmp_path / "systemd").glob("vllm@*")] == ["vllm@first.service.d"]


def test_removing_twice(serve, tmp_path):
    """systemctl fails where there is no such unit."""
    absent = SYSTEMCTL + f'\nif [ "$2" = vllm.target ] && [ ! -e {tmp_path}/systemd/vllm.target ]; then exit 1; fi'
    serve()
    (tmp_path / "systemd" / "vllm.target").touch()
    for times in (1, 2):
        status, output, told = serve(parts=("remove",), systemctl=absent)
        assert status == 0, output
        assert ("stop vllm.target" in told) == (times == 1)
    assert list((tmp_path / "systemd").iterdir()) == []
    assert not (tmp_path / "instances").exists()


def test_the_servers_user_gets_through_to_its_files(play, tmp_path):
    """Whoever made the directories before."""
    (tmp_path / "etc" / "instances").mkdir(parents=True)
    for path in (tmp_path / "etc", tmp_path / "etc" / "instances"):
        path.chmod(0o700)
    tasks = yaml.safe_load((ROLE / "tasks/install.yml").read_text())
    (install,) = (task for task in tasks if "kepler.vllm.host_files" in task)
    install["kepler.vllm.host_files"]["files"] = []
    status, output = play([install], gather_facts=False, variables={
        "__vllm_service_directory": str(tmp_path / "etc" / "instances"),
    })
    assert status == 0, output
    for path in (tmp_path / "etc", tmp_path / "etc" / "instances"):
        assert path.stat().st_mode & 0o777 == 0o755
