"""The supervisor with a server that loads, hangs, crashes and loses its port, and a systemd that listens."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest
import yaml
from supervised import KEY, ROOT, wait_for
from vllm_serving import supervisor
from vllm_serving.client import Answer
from vllm_serving.instance import read_instance
from vllm_serving.versions import table_of, v0_9_2, v0_12_0


@pytest.fixture
def bare(tmp_path):
    """Function that gives an instance of some variables, without a process."""

    def read(port=8000, **variables):
        (tmp_path / "main.yaml").write_text(json.dumps({"model": "x", "host": "127.0.0.1", "port": port}))
        return read_instance("main", tmp_path / "main.yaml", "7", {"RUNTIME_DIRECTORY": "/run/vllm/main", **variables})

    return read


LOADING = [
    "INFO 11-21 08:34:27 [llm_engine.py:230] Initializing a V0 LLM engine (v0.9.2) with config: model='x'",
    "\rLoading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<?, ?it/s]",
    "INFO 11-21 08:34:35 [executor_base.py:113] # cuda blocks: 32768, # CPU blocks: 0",
]
ERROR = "ValueError: dtype: found float16; expected float32"


def test_package_needs_the_standard_library_alone(tmp_path):
    """And what it has in common with hosts, as it is packed: whole."""
    shutil.copytree(ROOT / "vllm_src" / "vllm_serving", tmp_path / "vllm_serving")
    program = (
        "import importlib, pkgutil, sys\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "import vllm_serving\n"
        "for found in pkgutil.walk_packages(vllm_serving.__path__, 'vllm_serving.'):\n"
        "    if found.name != 'vllm_serving.__main__': importlib.import_module(found.name)\n"
        "print({name.partition('.')[0] for name in sys.modules} - sys.stdlib_module_names - {'__main__'})\n"
    )
    command = [sys.executable, "-I", "-S", "-c", program, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("{'vllm_serving'}\n", "")


def test_a_port_names_its_own_command_line_and_middleware(tmp_path, monkeypatch):
    options = tmp_path / "main.yaml"
    upstream = ["from vllm.entrypoints.cli.main import main; main()", "vllm_serving.admission.AdmissionMiddleware"]
    assert supervisor.command_of(options)[2::5] == upstream
    (tmp_path / "a_port-1.dist-info").mkdir()
    entries = tmp_path / "a_port-1.dist-info" / "entry_points.txt"
    entries.write_text("[vllm_serving]\nmiddleware = a_port.api:Own\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert supervisor.command_of(options)[2::5] == [upstream[0], "a_port.api.Own"]
    entries.write_text("[vllm_serving]\ncommand = a_port.starts:serve\n[another]\nmiddleware = other:Other\n")
    assert supervisor.command_of(options)[2::5] == ["from a_port.starts import serve; serve()", upstream[1]]


@pytest.mark.parametrize(("version", "message"), [
    ("0.10.0", "vLLM: found version 0.10.0; expected 0.12.0 or 0.9.2."),
    ("0.9.21+empty", "found version 0.9.21+empty;"),
    (None, "vllm"),
])
def test_a_vllm_without_a_table_is_refused(bare, tmp_path, monkeypatch, capsys, version, message):
    bare()
    if version:
        (tmp_path / "vllm-0.dist-info").mkdir()
        (tmp_path / "vllm-0.dist-info" / "METADATA").write_text(f"Name: vllm\nVersion: {version}\n")
        monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(os, "environ", {"RUNTIME_DIRECTORY": "/run/vllm/main"})
    assert supervisor.main(["main", str(tmp_path / "main.yaml"), "7"]) == supervisor.CONFIGURATION
    printed = capsys.readouterr().out
    assert printed.startswith("vllm@main ends: ") and message in printed and printed.count("\n") == 1


def test_locked_vllm_has_a_table():
    for path in ROOT.glob("profiles/*/lock/sources.yml"):
        lock = yaml.safe_load(path.read_text())
        assert table_of(lock["sources"]["vllm"]["version"]).METRICS


@pytest.mark.parametrize(
    ("version", "table"),
    [("0.9.2", v0_9_2), ("0.9.2+empty", v0_9_2), ("0.9.2+cpu.1", v0_9_2), ("0.12.0", v0_12_0), ("0.12.0+cpu", v0_12_0),
     ("0.12.0.post2", v0_12_0)],
)
def test_a_build_of_a_version_has_its_table(version, table):
    assert table_of(version) is table


def test_released_vllm_compiles_before_it_is_ready(bare, monkeypatch, capsys):
    asked, told = [], []

    async def ask(instance, path, body, timeout):
        asked.append(body)

    monkeypatch.setattr(supervisor, "ask", ask)
    monkeypatch.setattr(supervisor, "notify", lambda **fields: told.append(fields["STATUS"]))
    for table in (v0_9_2, v0_12_0):
        asyncio.run(supervisor.Supervisor(bare(), [], table).warm_up())
    assert asked == [body for _, body in v0_12_0.WARM_UP]
    assert all(body["max_tokens"] <= 4 for body in asked)
    assert told[0] == f"warm-up 1 of {len(asked)}: a long prompt"
    assert capsys.readouterr().out.count("is at warm-up") == len(asked)


def test_server_whose_engine_ended_in_warm_up_is_not_ready(bare, monkeypatch):
    """Else a start that fails each time would never count as failed."""
    asked, health = [], iter([200, 503, 503, 200, 200])

    async def ask(instance, path, body=None, timeout=0):
        asked.append(path)
        if path == "/health":
            return Answer(next(health), {}, "")
        return Answer(200, {}, json.dumps({"choices": [{"text": "a"}], "usage": {"completion_tokens": 1}}))

    monkeypatch.setattr(supervisor, "ask", ask)
    monkeypatch.setattr(supervisor, "notify", lambda **fields: None)
    monkeypatch.setattr(supervisor, "POLL", 0)
    assert asyncio.run(supervisor.Supervisor(bare(), [], v0_12_0).until_ready()) is None
    assert next(health, None) is None
    assert asked.count("/v1/completions") == 2 * (1 + len(v0_12_0.WARM_UP))


def test_ready_means_a_token(unit):
    unit.order(log=LOADING, seconds=0.5)
    unit.start()
    unit.ready()
    status = unit.fields("STATUS")
    assert "preparing a KV cache of 32768 blocks" in status
    assert status[-1] == "serving"
    lines = unit.output().splitlines()
    assert lines[0] == "False False"  # neither torch nor vLLM
    assert lines[1] == (
        f"vllm@main starts: generation 7, model /srv/models/x, GPUs cpu, http://127.0.0.1:{unit.port}"
    )
    assert "is ready after" in lines[-1]
    # Its own questions are no news.
    assert "HTTP/1.0" not in unit.output()


@pytest.mark.parametrize("stall", [60, 0.5], ids=["no answer yet", "no answer in time"])
def test_not_ready_without_a_token(unit, stall):
    """/health answers, the ranks hang."""
    unit.order(hang=True)
    unit.start(VLLM_SERVING_STALL=stall)
    time.sleep(2)
    assert unit.fields("READY") == []
    unit.order(hang=False)
    unit.ready()


def test_a_model_that_cannot_complete_ends_it(unit):
    unit.order(refuse=404)
    unit.start()
    assert unit.ended() == 1
    assert "the server answered 404 instead of a token: no completions here" in unit.last()
    assert unit.fields("READY") == []


def test_progress_buys_time_and_a_hang_gets_none(unit):
    unit.order(log=LOADING, repeat="No available shared memory broadcast block found in 60 second.")
    unit.start(VLLM_SERVING_STALL=3)
    wait_for(lambda: any("no progress for" in text for text in unit.fields("STATUS")))
    bought = [seconds for seconds, fields in unit.sent if "EXTEND_TIMEOUT_USEC" in fields]
    assert bought
    assert set(unit.fields("EXTEND_TIMEOUT_USEC")) == {"3000000"}
    # A line that repeats, whatever its numbers, is no progress: nothing was bought for the whole of the stall.
    assert time.monotonic() - bought[-1] > 2
    unit.process.send_signal(signal.SIGTERM)  # what systemd does then
    assert unit.ended() == 1
    assert "ends: stopped while preparing a KV cache of 32768 blocks; no progress for" in unit.last()


def test_a_start_is_not_bought_time_for_ever(unit):
    unit.order(log=LOADING, seconds=60)
    unit.start(VLLM_SERVING_STALL=60, VLLM_SERVING_START=2)
    wait_for(lambda: any("not ready after" in text for text in unit.fields("STATUS")))
    assert max(map(int, unit.fields("EXTEND_TIMEOUT_USEC"))) <= 2_000_000


@pytest.mark.parametrize(("began", "moved", "reason"), [
    (97, 1, None), (99, 1, "not ready after 99 s"), (60, 47, None), (60, 49, "no progress for 49 s"),
])  # fmt: skip
def test_start_has_no_more_than_its_own_time(bare, began, moved, reason):
    """One poll, and one for systemd's clock, before VLLM_SERVING_START and VLLM_SERVING_STALL are over."""
    supervised = supervisor.Supervisor(bare(VLLM_SERVING_START="100", VLLM_SERVING_STALL="50"), [], v0_9_2)
    now = time.monotonic()
    supervised.started_at, supervised.progress_at = now - began, now - moved
    assert supervised.stalled() == reason


@pytest.mark.parametrize(("said", "status"), [(0, 1), (2, 2), (7, 7)])
def test_a_server_that_ends_by_itself_is_a_failure(unit, said, status):
    """vLLM ends with 0 when its engine has died."""
    unit.start()
    unit.ready()
    unit.order(status=said)
    assert unit.ended() == status
    assert unit.last() == f"vllm@main ends: vLLM ended by itself with status {said} while serving"


def test_a_start_that_fails_names_the_last_error(unit):
    unit.order(log=[*LOADING[:1], f"Traceback\n{ERROR}", "RuntimeError: Engine failed. See stack trace."], status=1)
    unit.start()
    assert unit.ended() == 1
    assert unit.last() == f"vllm@main ends: vLLM ended by itself with status 1 while starting the ranks: {ERROR}"
    assert unit.fields("STATUS")[-1].endswith(ERROR)


def test_a_killed_server(unit):
    unit.start()
    unit.ready()
    rank = int((unit.directory / "rank").read_text())
    os.kill(os.getpgid(rank), signal.SIGKILL)  # the leader alone
    assert unit.ended() == 128 + signal.SIGKILL
    assert "vLLM was killed by SIGKILL while serving" in unit.last()


def test_a_hang_starves_the_watchdog(unit):
    unit.start(WATCHDOG_USEC=1_200_000)
    unit.ready()
    wait_for(lambda: len(unit.fields("WATCHDOG")) >= 2)
    rank = int((unit.directory / "rank").read_text())
    os.kill(rank, signal.SIGSTOP)
    unit.order(hang=True)
    time.sleep(0.6)
    fed = len(unit.fields("WATCHDOG"))
    time.sleep(1.5)
    assert len(unit.fields("WATCHDOG")) == fed
    assert unit.fields("STATUS")[-1].startswith("no sign of life for")
    unit.process.send_signal(signal.SIGABRT)  # what systemd does then
    assert unit.ended() == 1  # and the stopped rank is gone
    assert "ends: hung: no sign of life for" in unit.last()


def test_a_busy_server_lives(unit):
    """It answers no question within the time, but its counters rise."""
    unit.start(WATCHDOG_USEC=1_200_000)
    unit.ready()
    unit.order(busy=True, running=3)
    time.sleep(0.5)
    fed = len(unit.fields("WATCHDOG"))
    wait_for(lambda: len(unit.fields("WATCHDOG")) >= fed + 5)
    assert "serving: 3 running, 0 waiting" in unit.fields("STATUS")


def test_a_lost_port_starves_the_watchdog(unit):
    unit.start(WATCHDOG_USEC=1_200_000)
    unit.ready()
    wait_for(lambda: unit.fields("WATCHDOG"))
    unit.order(deaf=True)
    wait_for(lambda: unit.fields("STATUS")[-1].startswith("no sign of life"))


def test_closed_port_ends_a_server_that_hangs(unit):
    """An engine that lost a host closes its port, and may wait for that host's rank for ever."""
    unit.start(WATCHDOG_USEC=60_000_000)
    unit.ready()
    unit.order(deaf=True)
    assert unit.ended() == 1
    assert "ends: vLLM hangs: it has closed its port and goes on running" in unit.last()


def test_a_taken_port(unit):
    with socket.socket() as other:
        # Even one that would share it.
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", unit.port))
        other.listen()
        unit.start()
        assert unit.ended() == 1
    assert unit.last() == f"vllm@main ends: port {unit.port} of 127.0.0.1 cannot be had: Address already in use"


def test_port_is_free_right_after_a_restart(bare):
    """The old server closed first, so that its last connections wait out their time."""
    with socket.socket() as old:
        # As vLLM does.
        old.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        old.bind(("127.0.0.1", 0))
        old.listen()
        port = old.getsockname()[1]
        with socket.create_connection(("127.0.0.1", port)) as client:
            old.accept()[0].close()
            assert client.recv(1) == b""
    with socket.socket() as careless, pytest.raises(OSError, match="Address already in use"):
        careless.bind(("127.0.0.1", port))
    assert supervisor.port_holder(bare(port=port)) is None


def test_stop_drains(unit):
    unit.order(running=2)
    unit.start()
    unit.ready()
    unit.process.send_signal(signal.SIGTERM)
    wait_for(lambda: any(text.startswith("draining: 2 running") for text in unit.fields("STATUS")))
    assert unit.fields("STOPPING") == ["1"]
    time.sleep(0.5)
    assert unit.process.poll() is None
    unit.order(running=0)
    assert unit.ended() == 0
    assert unit.last() == "vllm@main ends: stopped as asked"


def test_a_drain_ends(unit):
    unit.order(running=2)
    unit.start(VLLM_SERVING_DRAIN=1)
    unit.ready()
    asked = time.monotonic()
    unit.process.send_signal(signal.SIGTERM)
    assert unit.ended() == 0
    assert 0.9 < time.monotonic() - asked < 5
    assert unit.last() == "vllm@main ends: stopped as asked, 2 requests cut off"


def test_a_server_that_ends_while_it_drains(unit):
    unit.order(running=2)
    unit.start()
    unit.ready()
    unit.process.send_signal(signal.SIGTERM)
    wait_for(lambda: any(text.startswith("draining: 2 running") for text in unit.fields("STATUS")))
    unit.order(status=0)
    assert unit.ended(5) == 0


def test_stopped_while_it_starts(unit):
    unit.order(log=LOADING, seconds=60)
    unit.start()
    wait_for(lambda: "preparing a KV cache of 32768 blocks" in unit.fields("STATUS"))
    unit.process.send_signal(signal.SIGTERM)
    assert unit.ended() == 0
    assert not (unit.runtime / "starts").exists()


def test_back_off_and_a_limit(unit):
    unit.order(log=[ERROR], status=1)
    for _ in range(5):
        began = time.monotonic()
        unit.start(pause=0.2)
        assert unit.ended() == 1
    assert time.monotonic() - began >= 1.6  # 0.2 s, doubled three times
    assert "waits 2 s before start 5 of 5; the last one: vLLM ended by itself with status 1" in unit.output()
    unit.order(status=None)
    unit.start()
    assert unit.ended() == 69
    assert unit.last().startswith("vllm@main ends: gave up after 5 starts in a row; the last one: vLLM ended by itself")
    assert unit.last().endswith(ERROR)


def test_a_supervisor_killed_before_ready_counts_as_a_start(unit):
    unit.order(log=LOADING, seconds=60)
    unit.start()
    wait_for(lambda: "preparing a KV cache of 32768 blocks" in unit.fields("STATUS"))
    unit.process.kill()
    unit.process.wait()
    assert (unit.runtime / "starts").read_text() == "1\nthe supervisor was killed"


@pytest.mark.parametrize("end", ["server", "supervisor", "watchdog"])
def test_an_end_after_ready_is_no_failed_start(unit, end):
    """Else a request that ends the server, sent a few times, would end the unit for good."""
    (unit.runtime / "starts").write_text("4\nvLLM ended")
    unit.start()
    unit.ready()
    if end == "server":
        unit.order(status=0)
    else:
        unit.process.send_signal(signal.SIGKILL if end == "supervisor" else signal.SIGABRT)
    assert unit.process.wait(20) != 0
    assert not (unit.runtime / "starts").exists()


def test_a_stop_ends_the_pause(unit):
    (unit.runtime / "starts").write_text("1\nvLLM ended")
    unit.start(pause=60)
    wait_for(lambda: any(text.startswith("waits 60 s") for text in unit.fields("STATUS")))
    unit.process.send_signal(signal.SIGTERM)
    assert unit.ended(5) == 0
    assert not (unit.runtime / "starts").exists()


def test_a_held_server_becomes_ready(unit):
    """systemd must know that it serves before anybody can look at its answers."""
    (unit.directory / "held").write_text("open-sesame")
    unit.start(VLLM_SERVING_HELD=unit.directory / "held")
    unit.ready()


def test_what_the_server_gets(unit):
    (unit.runtime / "tmp").mkdir()
    (unit.runtime / "tmp" / "left").write_text("by a server that was killed")
    (unit.runtime / "draining").touch()
    unit.start()
    unit.ready()
    environment = json.loads((unit.directory / "environment.json").read_text())
    assert environment["TMPDIR"] == str(unit.runtime / "tmp")
    assert environment["VLLM_API_KEY"] == KEY
    assert not set(environment) & {"NOTIFY_SOCKET", "WATCHDOG_USEC"}
    assert not (unit.runtime / "tmp" / "left").exists()
    assert KEY not in unit.output()
    assert not any(KEY in argument for argument in (unit.directory / "rank").read_text())
