"""Engine and ranks as forks, of a vLLM that starts them as the real one does and imports nothing else."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from supervised import ROOT, wait_for
from vllm_kepler import forks

PORT = tomllib.loads((ROOT / "vllm_src" / "pyproject.toml").read_text())["project"]
MODULE, FUNCTION = PORT["entry-points"]["vllm_serving"]["command"].split(":")
# What the fake modules hold. Each says that it was imported.
SAYS = "import os\nwith open(os.environ['IMPORTS'], 'a') as log: log.write(f'{__name__} {os.getpid()}\\n')\n"
TORCH = """
threads, touched = None, {touched}
def set_num_threads(count):
    global threads
    threads = count
class cuda:
    _is_in_bad_fork = staticmethod(lambda: touched)
"""
VALUES = "def get_value_class(): return os.environ.get('METRICS', 'its own')\nValueClass = get_value_class()\n"
RANKS = """
import multiprocessing, sys
import prometheus_client.values, torch, vllm
def start(run, *arguments):
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=run, args=(queue, *arguments), daemon=False)
    process.start()
    return process, queue
def look(queue, depth=0):
    seen = {"pid": os.getpid(), "parent": os.getppid(), "threads": torch.threads,
            "metrics": prometheus_client.values.ValueClass,
            "variables": {name: os.environ.get(name) for name in ("EARLY", "LATE")}}
    if depth:
        os.environ["LATE"] += ", and the engine's"
        process, answers = start(look, depth - 1)
        seen["rank"] = answers.get()
        process.join()
    queue.put(seen)
def end(queue, status):
    os._exit(status)
def wait(queue):
    queue.put(os.getpid())
    import signal
    signal.pause()
"""
MAIN = "import json, sys\nfrom vllm.ranks import *\ndef main():\n    "


class Server:
    """The supervisor's command with a vLLM that does what a line of Python says.

    Attributes:
        imports: who imported what, as [module, process].
    """

    def __init__(self, directory):
        self.directory = directory

    def run(self, does, touched=False, **variables):
        """subprocess.CompletedProcess of a server that does this."""
        modules = {"torch": TORCH.format(touched=touched), "prometheus_client.values": VALUES, "vllm.ranks": RANKS,
                   **dict.fromkeys(forks.IMPORTED, "import vllm.ranks"), "vllm.entrypoints.cli.main": MAIN + does}
        for name, holds in modules.items():
            path = self.directory / (name.replace(".", "/") + ".py")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(SAYS + holds)
        self.process = subprocess.Popen(
            [sys.executable, "-c", f"from {MODULE} import {FUNCTION}; {FUNCTION}()"], text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True, env={
                **os.environ, "PYTHONPATH": os.pathsep.join((str(self.directory), str(ROOT / "vllm_src"))),
                "IMPORTS": str(self.directory / "imports"), "TMPDIR": str(self.directory), "EARLY": "1", **variables,
            },
        )  # fmt: skip
        return self.process

    def does(self, does, **options):
        """What such a server prints, as JSON; once every process of it is gone."""
        printed, said = self.run(does, **options).communicate(timeout=20)
        assert self.process.returncode == 0, said
        wait_for(lambda: not self.members())
        return json.loads(printed)

    def members(self):
        """Processes of the server that live."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                state, _, _, session, *_ = path.read_text().rpartition(")")[2].split()
                if int(session) == self.process.pid and state != "Z":
                    found.append(int(path.parent.name))
        return found

    @property
    def imports(self):
        return [line.split() for line in (self.directory / "imports").read_text().splitlines()]


@pytest.fixture
def server(tmp_path):
    server = Server(tmp_path)
    yield server
    with contextlib.suppress(ProcessLookupError):
        os.killpg(server.process.pid, signal.SIGKILL)
    server.process.communicate()


ENGINE = """os.environ.update({later})
    os.environ.pop("EARLY")
    process, queue = start(look, 1)
    print(json.dumps([os.getpid(), queue.get()]))
    process.join()
"""


@pytest.mark.parametrize(("later", "threads", "metrics"), [
    ({"LATE": "the API's", "OMP_NUM_THREADS": "3", "METRICS": "all processes'"}, 3, "all processes'"),
    ({"LATE": ""}, None, "its own"),
])  # fmt: skip
def test_engine_and_ranks_are_forks_with_their_variables(server, later, threads, metrics):
    """Of those who ask for them, not of the process that they are forks of; what was read of them is read again."""
    api, engine = server.does(ENGINE.format(later=later))
    rank = engine["rank"]
    assert engine["variables"] == {"EARLY": None, "LATE": later["LATE"]}
    assert rank["variables"] == {"EARLY": None, "LATE": later["LATE"] + ", and the engine's"}
    assert engine["threads"] == rank["threads"] == threads
    assert engine["metrics"] == rank["metrics"] == metrics
    assert len({api, engine["pid"], rank["pid"], engine["parent"]}) == 4
    assert engine["parent"] == rank["parent"]
    imported = [module for module, _ in server.imports]
    assert len(imported) == len(set(imported))
    assert set(forks.IMPORTED) < set(imported)


@pytest.mark.parametrize("status", [0, 3])
def test_who_asked_is_told_how_a_fork_ended(server, status):
    does = f"process, _ = start(end, {status})\n    process.join()\n    print(process.exitcode)\n"
    assert server.does(does) == status


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_who_asked_is_told_that_a_fork_was_killed(server, number):
    does = f"""process, queue = start(wait)
    os.kill(queue.get(), {int(number)})
    process.join()
    print(process.exitcode)
"""
    assert server.does(does) == -number


def test_forks_of_a_killed_server_are_in_its_group(server):
    """The supervisor ends that."""
    process = server.run("process, queue = start(wait)\n    print(queue.get(), flush=True)\n    process.join()\n")
    engine = int(process.stdout.readline())
    process.kill()
    process.wait()
    assert engine in server.members()
    os.killpg(process.pid, signal.SIGKILL)
    wait_for(lambda: not server.members())


def test_engine_and_ranks_import_anew_after_use_of_cuda(server):
    """Else they could not use it."""
    api, engine = server.does(ENGINE.format(later={"LATE": ""}), touched=True)
    assert engine["parent"] == api
    assert engine["rank"]["parent"] == engine["pid"]
    assert [module for module, _ in server.imports].count("vllm.ranks") == 3
