"""The role on this machine: what it says before it does, what it leaves, and what it does a second time."""

import json

import pytest
from simulated import ROOT

NO_SERVERS = "exit 0"


@pytest.fixture
def role(play, box):
    """Function that runs the role, but for what installs its files, against a host with one board: (status, output)."""
    root = box.install()
    settings = {
        "__qualification_programs": str(box.directory), "qualification_directory": str(box.kept),
        "__qualification_directories": [], "__qualification_files": [],
        "store_root": str(root), "qualification_seconds": 0,
        "qualification_pair_timeout": 5, "qualification_report_directory": str(box.directory / "reports"),
    }

    def run(*options, parts=("run", "report"), systemctl=NO_SERVERS, smi=f'exec {box.smi} "$@"', **variables):
        tasks = [
            {"name": "Run", "ansible.builtin.include_role": {"name": "kepler.vllm.qualification", "tasks_from": name}}
            for name in parts
        ]
        tasks.append({"name": "Show", "ansible.builtin.debug": {
            "msg": "may use {{ qualification_size | default('?') }} {{ qualification_dies | default('?') }} "
                   "p2p {{ qualification_p2p | default('?') }} "
                   "graphs {{ (qualification_graphs | default({})).because | default('?') }}",
        }})
        status, output = play(
            tasks, "-e", json.dumps({**settings, **variables}), *options,
            programs={"nvidia-smi": smi, "systemctl": systemctl}, gather_facts=False,
        )
        assert "Traceback" not in output
        return status, " ".join(output.split())

    return run


def record(box):
    return json.loads((box.kept / "stamp.json").read_text())


def report(box):
    return (box.directory / "reports" / "box.html").read_text()


def test_once_and_then_no_more(role, box):
    status, output = role("--check", "--diff")
    assert status == 0, output
    assert "Would load [0], then [0, 1], 0 s each: this host was never qualified." in output
    assert "changed=0" in output
    assert list(box.kept.iterdir()) == []

    done = {"event": "done", "equal": True, "eager": 0.008, "graphs": 0.005}
    box.behave({"load": [["sleep", 2]], "graphs": [["say", done], ["exit", 0]]})
    # Servers that shall have graphs if the host has proved them.
    status, output = role(vllm_service_instances=[{"name": "a", "model": "/m", "cuda_graphs": "auto"}])
    assert status == 0, output
    assert "box: qualification: stage" in output, "progress"
    assert "may use 2 [0, 1] p2p True graphs the same answers, 5.0 ms a step with them, 8.0 without" in output
    assert record(box)["result"] == "passed"
    assert record(box)["generation"] == "7"
    assert "Servers may use GPUs 0, 1." in report(box)

    before = {path.name: path.stat().st_mtime_ns for path in box.kept.iterdir()}
    for options in ((), ("--check", "--diff")):
        status, output = role(*options)
        assert status == 0, output
        assert "changed=0" in output
        assert "may use 2 [0, 1] p2p True" in output
    assert {path.name: path.stat().st_mtime_ns for path in box.kept.iterdir()} == before

    (box.directory / "reports" / "box.html").unlink()
    status, output = role()
    assert "changed=1" in output, "a report that is missing is written again"
    assert report(box)


def test_what_passed_may_be_served(role, box):
    box.behave({"load 0,1": [box.becomes(1, temperature=95), ["sleep", 30]]})
    status, output = role()
    assert status == 0, output
    assert output.count("qualification: stopped at a bad sign. Servers get GPU 0 alone, of 2 that were to pass.") == 1
    assert "error: GPU 1: found 95 degrees" in output
    assert "may use 1 [0]" in output
    assert "Found: 95 degrees" in report(box)

    box.behave({})
    box.write()
    status, output = role(qualification_retry=True)
    assert status == 0, output
    assert "may use 2 [0, 1]" in output
    assert "Servers may use GPUs 0, 1." in report(box), "the report is that of the last run"


def test_not_even_one_die(role, box):
    box.behave({"load 0": [["exit", 9]]})
    for _ in range(2):
        status, output = role()
        assert status != 0
        assert "Not even one GPU passed: no server may start." in output
        assert "under load: rank 0 ended with status 9" in output
    assert len(list(box.kept.glob("trace*"))) == 1


def test_skipping_is_recorded(role, box):
    status, output = role(qualification="skip")
    assert status == 0, output
    assert "qualification: skipped. Nobody qualified this host" in output
    assert "may use 2 [0, 1] p2p True" in output
    assert (record(box)["result"], record(box)["passed_size"]) == ("skipped", 0)


@pytest.fixture
def told(box):
    """File of what systemd was told on a host where a server runs."""
    return box.directory / "systemctl.log"


@pytest.fixture
def systemctl(told):
    answers = "list-units) echo 'vllm@main.service loaded active running vLLM';; "
    answers += "show) echo LoadState=loaded; echo ActiveState=active;;"
    return f'echo "$@" >> {told}; case "$1" in {answers} esac'


def test_servers_go_on_where_the_dies_cannot_be_read(role, systemctl, told):
    status, output = role(systemctl=systemctl, smi="echo NVIDIA-SMI has failed; exit 9")
    assert status != 0
    assert "nvidia-smi: found NVIDIA-SMI has failed; expected the Tesla K80 GPUs of the host." in output
    assert not told.exists()


def test_nothing_is_installed_or_stopped_on_a_host_that_cannot(role, box, systemctl, told):
    """Neither without GPUs nor without what the ranks run in."""
    made = {"__qualification_directories": [str(box.directory / "made")]}
    assert role(smi="exit 9", systemctl=systemctl, **made)[0] != 0
    (box.directory / "kepler" / "current").unlink()
    status, output = role(systemctl=systemctl, **made)
    assert status != 0
    assert "Run playbooks/build.yml first" in output
    assert not told.exists()
    assert not (box.directory / "made").exists()
    assert list(box.kept.iterdir()) == []


def test_what_the_host_was_qualified_for_can_be_read_alone(role, box, systemctl, told):
    assert "may use ? ? p2p ?" in role(parts=("facts",))[1]
    box.behave({"load 0,1": [["exit", 9]]})
    assert role()[0] == 0
    before = {path.name: path.stat().st_mtime_ns for path in box.kept.iterdir()}
    status, output = role(parts=("facts",), systemctl=systemctl, qualification_retry=True)
    assert status == 0, output
    assert "may use 1 [0] p2p True" in output
    assert "changed=0" in output
    assert {path.name: path.stat().st_mtime_ns for path in box.kept.iterdir()} == before
    box.state["dies"][1]["serial"] = "0320000000007"
    box.write()
    assert "may use ? ? p2p ?" in role(parts=("facts",), systemctl=systemctl)[1], "another board"
    assert not told.exists()


def test_servers_that_hold_the_dies_are_stopped(role, told, systemctl):
    assert "changed=0" in role("--check", systemctl=systemctl)[1]
    assert not told.exists()
    status, output = role(systemctl=systemctl)
    assert status == 0, output
    assert "stop vllm@main.service" in told.read_text().splitlines()
    told.unlink()
    assert "changed=0" in role(systemctl=systemctl)[1]
    assert not told.exists()


def test_a_dry_run_on_a_host_without_a_driver(role):
    status, output = role("--check", smi="exit 127")
    assert status == 0, output
    assert "Would load the GPUs of the host, 0 s each: this host was never qualified." in output


def test_clocks_power_limits_and_modes_are_never_set():
    paths = [*(ROOT / "roles/qualification").rglob("*"), *(ROOT / "plugins").rglob("qualif*.py")]
    files = [path for path in paths if path.is_file() and path.suffix in (".yml", ".py")]
    assert len(files) > 10
    setting = {"-pl", "--power-limit", "-ac", "--applications-clocks", "-lgc", "-rac", "-pm", "-mig", "-r"}
    for path in files:
        words = set(path.read_text().replace('"', " ").replace(",", " ").replace("'", " ").split())
        assert not setting & words, path
