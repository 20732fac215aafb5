"""How Ansible's tasks reach a stand-in: its door, and the connection plugin that knocks."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.playbook.play_context import PlayContext
from ansible.plugins.loader import connection_loader

SHARED = Path(__file__).resolve().parents[3] / "molecule" / "shared"
sys.path.insert(0, str(SHARED))

from standin import door  # noqa: E402

connection_loader.add_directory(str(SHARED / "plugins" / "connection"))


@pytest.fixture
def connect(tmp_path):
    """Connections of the plugin to a host whose doors lie in `doors`."""

    def make(doors=tmp_path, host="box"):
        connection = connection_loader.get("standin", PlayContext(), os.devnull)
        connection.set_options(direct={"host": host, "doors": str(doors)})
        return connection

    return make


@pytest.fixture
def doors(tmp_path):
    """Directory with a door to this machine, below a name that is longer than a socket's address may be."""
    directory = tmp_path / ("long" * 40)
    (directory / "box").mkdir(parents=True)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    here = os.open(directory / "box", os.O_PATH)
    listener.bind(f"/proc/self/fd/{here}/door")
    listener.listen(8)
    threading.Thread(target=door.serve, args=(listener,), daemon=True).start()
    return directory


@pytest.mark.parametrize(
    ("command", "given", "expected"),
    [
        ("cat; echo said >&2; exit 7", b"text\0", (7, b"text\0", b"said\n")),
        ("true", None, (0, b"", b"")),
        ("read -r line; kill -TERM $$", b"line\n", (128 + signal.SIGTERM, b"", b"")),
        ("test ! -t 0 && pwd && umask", b"", (0, b"/\n0022\n", b"")),
        # Python ignores SIGPIPE; what it starts must not.
        ("yes | head -c 1 > /dev/null; echo 'übergroß'", None, (0, "übergroß\n".encode(), b"")),
        ("bash -o pipefail -c 'yes | true'", None, (128 + signal.SIGPIPE, b"", b"")),
        ("no-such-program", None, (127, b"", b"not found")),
        (f"true {'x' * (150 << 10)}", None, (126, b"", b"too long")),
    ],
    ids=["streams", "nothing", "signal", "surroundings", "pipe", "broken pipe", "unknown", "too long"],
)
def test_a_command_has_its_streams_and_its_status(connect, doors, command, given, expected):
    old = os.umask(0o022)
    try:
        status, output, errors = connect(doors).exec_command(command, in_data=given)
    finally:
        os.umask(old)
    assert (status, output) == expected[:2]
    assert expected[2] in errors


def test_more_than_a_pipe_holds_goes_each_way(connect, doors):
    text = os.urandom(3 << 20)
    assert connect(doors).exec_command("tee /dev/stderr", in_data=text) == (0, text, text)


def test_commands_run_beside_one_another(connect, doors, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with ThreadPoolExecutor() as pool:
        reader = pool.submit(connect(doors).exec_command, f"cat {fifo}")
        assert connect(doors).exec_command(f"echo met > {fifo}")[0] == 0
        assert reader.result(10)[1] == b"met\n"


def test_files_go_there_and_back(connect, doors, tmp_path):
    there, back = tmp_path / "the 'file'", tmp_path / "back"
    connect(doors).put_file(__file__, str(there))
    connect(doors).fetch_file(str(there), str(back))
    assert back.read_bytes() == Path(__file__).read_bytes()
    with pytest.raises(AnsibleConnectionFailure, match="No such file"):
        connect(doors).fetch_file(str(tmp_path / "absent"), str(back))


@pytest.mark.parametrize("name", ["box", "closed"])
def test_a_host_without_a_door_is_unreachable(connect, tmp_path, name):
    if name == "closed":
        (tmp_path / name).mkdir()
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET).bind(str(tmp_path / name / "door"))
    with pytest.raises(AnsibleConnectionFailure, match=f"{name}: found no door in {tmp_path}: .*; expected a stand-in"):
        connect(tmp_path, name).exec_command("true")


def ends_with(command, argument):
    """Whether this is the last argument of a process."""
    with contextlib.suppress(OSError):
        return command.read_bytes().endswith(f"\0{argument}\0".encode())
    return False


def test_a_door_opens_once_and_again_after_its_end(tmp_path):
    address = str(tmp_path / "door")

    def open_it():
        """Process that answers, after an opening as it is in a stand-in."""
        text = Path(door.__file__).read_text()
        subprocess.run([sys.executable, "-c", text, address], check=True, capture_output=True)
        (keeper,) = (path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if ends_with(path, address))
        return int(keeper)

    first = open_it()
    try:
        assert open_it() == first
    finally:
        os.kill(first, signal.SIGKILL)
    second = open_it()
    os.kill(second, signal.SIGKILL)
    assert second != first
