"""Python for modules: a program that has imported what they import, and forks for each that Ansible runs.

A module that Ansible sends is a Python script, which takes a third of a second to import what comes along with it.
"""

import array
import atexit
import importlib
import marshal
import os
import pkgutil
import runpy
import select
import shutil
import socket
import subprocess
import sys
import tempfile
import traceback
import types
from functools import cache
from pathlib import Path

from forked import freeze

ROOT = Path(__file__).resolve().parents[2]
PLUGINS = "ansible_collections.kepler.vllm.plugins"
# In place of Python: gives what it was called with to the server, and ends as the fork does. It imports almost nothing.
CLIENT = """\
#!{python} -IS
import sys, posix
if len(sys.argv) > 1:
    posix.execv({python!r}, [{python!r}, *sys.argv[1:]])
import _socket, marshal
mask = posix.umask(0)
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_SEQPACKET)
server.connect({address!r})
streams = b"".join(number.to_bytes(4, sys.byteorder) for number in range(3))
said = marshal.dumps((posix.getcwd(), posix.environ, mask))
server.sendmsg([said], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
posix._exit(int(server.recv(9) or 1))
"""
LONGEST = 1 << 20


@cache
def module_python():
    """Path of what stands in for Python on a host that is this machine; it works until this process ends."""
    directory = Path(tempfile.mkdtemp(prefix="modules-"))
    address, client = directory / "socket", directory / "python"
    client.write_text(CLIENT.format(python=sys.executable, address=str(address)))
    client.chmod(0o755)
    process = subprocess.Popen([sys.executable, __file__, address], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    atexit.register(lambda: (process.communicate(), shutil.rmtree(directory)))
    return str(client)


def prepare():
    """Import what modules of Ansible and of this project share."""
    from ansible.module_utils import basic, facts, service, urls, yumdnf  # noqa: F401

    sys.path.insert(0, str(ROOT / "collections"))
    for found in pkgutil.walk_packages([str(ROOT / "plugins/module_utils")], f"{PLUGINS}.module_utils."):
        importlib.import_module(found.name)


def run_module(mod_name, init_globals, **keywords):
    """runpy.run_module, for a module in the archive that Ansible sent: what it has beside what is imported counts."""
    archive = init_globals["_modlib_path"]
    sys.modules["ansible"].__path__.insert(0, archive + "/ansible")
    sys.modules["ansible.module_utils"].__path__.append(archive + "/ansible/module_utils")
    for name in ("ansible_collections", PLUGINS):
        package = sys.modules[name]
        package.__path__ = [f"{archive}/{name.replace('.', '/')}", *package.__path__]
    return RUN_MODULE(mod_name, init_globals, **keywords)


RUN_MODULE = runpy.run_module


def run(streams, directory, environment, mask):
    """Be Python that was started with a script on its standard input; returns the exit status."""
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, max(streams) + 1)
    os.chdir(directory)
    os.umask(mask)
    os.environ.clear()
    os.environb.update(environment)
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    sys.argv, runpy.run_module = [""], run_module
    try:
        exec(compile(sys.stdin.buffer.read(), "<stdin>", "exec"), main.__dict__)
    except SystemExit as end:
        if end.code is None or isinstance(end.code, int):
            return end.code or 0
        print(end.code, file=sys.stderr)
        return 1
    except BaseException:
        traceback.print_exc()
        return 1
    return 0


def leave(status):
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status & 0xFF)


def answer(connection):
    """Run what a client was called with in a fork; tell the client its exit status."""
    said, (streams,), _flags, _address = connection.recvmsg(LONGEST, socket.CMSG_SPACE(3 * 4))
    streams = array.array("i", streams[2])
    child = os.fork()
    if not child:
        leave(run(streams, *marshal.loads(said)))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    connection.send(str(status & 0xFF).encode())


def serve(address):
    """Answer clients until standard input ends."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(address)
        listener.listen(64)
        prepare()
        freeze()
        print(flush=True)
        children = set()
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection = listener.accept()[0]
            child = os.fork()
            if not child:
                answer(connection)
                os._exit(0)
            connection.close()
            children = {one for one in children | {child} if os.waitpid(one, os.WNOHANG) == (0, 0)}


if __name__ == "__main__":
    serve(sys.argv[1])
