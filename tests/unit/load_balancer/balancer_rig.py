"""A balancer as the role writes it, and servers behind it that a test can make ill."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import threading
import time

from ansible_run import ansible_playbook
from module_server import module_python
from ports import free_port

KEYS = {"alice": "AliceKey-0123456789.abc", "bob": "bobkey+0123456789/DEF="}
UPSTREAM_KEY = "the-servers-own-key-0123"
# Why nothing can run here, or nothing. The files belong to root, and the program is nginx (nginx-light on Debian).
LACKING = "no nginx on PATH" if not shutil.which("nginx") else "needs root" if os.geteuid() else ""


def tokens(prompt, count):
    """What a server answers to a prompt; no two prompts share a token."""
    return [f"{prompt}.{index}" for index in range(count)]


class Server:
    """One server: counts what it is asked and answers by its `mode`.

    well; draining: 503 before any work; dying: reads the request, then closes without an answer; breaking: closes in
    the middle of the answer; hanging: never answers; failing: 500; busy: 429. `refusing` is a state of the socket, see
    `stop`.
    """

    def __init__(self, loop, port):
        self.loop, self.port = loop, port
        self.listener, self.writers = None, set()
        self.reset()

    def reset(self):
        self.mode, self.asked, self.connections, self.aborted, self.sent, self.idle = "well", [], 0, 0, 0, 5.0

    def call(self, coroutine):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(10)

    def start(self):
        async def listen():
            self.listener = await asyncio.start_server(self.serve, "127.0.0.1", self.port, backlog=512)

        if self.listener is None:
            self.call(listen())

    def stop(self):
        """End all connections and refuse new ones."""

        async def close():
            self.listener.close()
            self.listener = None
            for writer in self.writers:
                writer.transport.abort()
            while self.writers:
                await asyncio.sleep(0.01)

        if self.listener is not None:
            self.call(close())

    @property
    def completions(self):
        return [item for item in self.asked if item["method"] == "POST"]

    async def serve(self, reader, writer):
        self.connections += 1
        self.writers.add(writer)
        try:
            while await self.answer(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.TimeoutError):
            pass
        finally:
            writer.close()
            self.writers.discard(writer)

    async def answer(self, reader, writer):
        head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), self.idle)).decode()
        first, *lines = head.rstrip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {name.lower(): value.strip() for name, value in (line.split(":", 1) for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        self.asked.append({"method": method, "path": path, "headers": headers, "body": body})
        if self.mode == "dying":
            return False
        if self.mode == "hanging":
            await reader.read()
        if self.mode == "draining":
            return await self.plain(writer, 503, {"error": {"message": "draining"}}, "Retry-After: 7\r\n")
        if self.mode == "failing":
            return await self.plain(writer, 500, {"error": {"message": "the engine is dead"}})
        if self.mode == "busy":
            return await self.plain(writer, 429, {"error": {"message": "too many"}})
        if method == "GET":
            known = path in ("/health", "/metrics", "/v1/models")
            return await self.plain(writer, 200 if known else 404, {"path": path})
        asked = json.loads(body)
        return await self.stream(writer, asked)

    def head(self, status):
        """First line, and vLLM's header for browsers, which an answer of the server's middleware lacks."""
        more = "" if self.mode == "draining" else "Access-Control-Allow-Origin: http://server\r\n"
        return f"HTTP/1.1 {status} X\r\n{more}"

    async def plain(self, writer, status, document, more=""):
        body = json.dumps(document).encode()
        writer.write(f"{self.head(status)}Content-Length: {len(body)}\r\n{more}\r\n".encode() + body)
        await writer.drain()
        return True

    async def stream(self, writer, asked):
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        try:
            for index, token in enumerate(tokens(asked["prompt"], asked.get("max_tokens", 3))):
                if self.mode == "breaking" and index == 2:
                    return False
                piece = f"data: {token}\n\n".encode()
                writer.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")
                await writer.drain()
                self.sent += 1
                await asyncio.sleep(asked.get("pace", 0))
        except ConnectionError:
            self.aborted += 1
            return False
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True


@contextlib.contextmanager
def servers(count):
    """`count` servers that listen."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    found = [Server(loop, free_port()) for _ in range(count)]
    try:
        yield found
    finally:
        for server in found:
            server.stop()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


def play(directory, variables, *options, group=None, tasks_from="configure", path=None):
    """Run the role's tasks of `tasks_from` with `variables` on the host `box`; exit status and output.

    path: directory of programs that stand first on the host's PATH.
    """
    own = {
        "__load_balancer_directory": str(directory / "etc"),
        "__load_balancer_program": "nginx",
        "__load_balancer_user": "daemon",
        "__load_balancer_pid": str(directory / "pid"),
        "__load_balancer_temporary": str(directory),
    }
    playbook = directory / "play.yml"
    playbook.write_text(json.dumps([{
        "name": "Play", "hosts": "k80_balancer", "gather_facts": False, "tasks": [{
            "name": "Role",
            "ansible.builtin.include_role": {"name": "kepler.vllm.load_balancer", "tasks_from": tasks_from},
            "vars": own,
        }],
        "environment": {"PATH": f"{path}:{os.environ['PATH']}"} if path else {},
    }]))  # fmt: skip
    box = {"ansible_connection": "local", "ansible_python_interpreter": module_python(), **variables}
    inventory = directory / "hosts.yml"
    inventory.write_text(json.dumps({"k80_balancer": {"hosts": {"box": box}}, "k80-hosts": {"hosts": group or {}}}))
    done = ansible_playbook(directory, "-i", inventory, playbook, *options)
    return done.returncode, done.stdout


def secret(path, text):
    path.write_text(text)
    path.chmod(0o400)
    return str(path)


def key_files(directory):
    """The role's variables for a balancer with keys."""
    clients = "# who asks\n" + "".join(f"{name} {key}\n" for name, key in KEYS.items())
    return {
        "load_balancer_keys_file": secret(directory / "clients", clients),
        "load_balancer_upstream_key_file": secret(directory / "upstream", f"VLLM_API_KEY={UPSTREAM_KEY}\n"),
    }


class Balancer:
    """An nginx that runs the configuration in `directory`."""

    def __init__(self, directory, port, context=None):
        self.directory, self.port, self.context = directory, port, context
        with (directory / "stderr").open("ab") as errors:
            self.process = subprocess.Popen(
                ["nginx", "-e", "stderr", "-c", str(directory / "etc" / "nginx.conf")], stderr=errors
            )
        for _ in range(200):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                assert self.process.poll() is None, self.errors
                return
            time.sleep(0.02)
        raise AssertionError((directory / "stderr").read_text())

    def stop(self):
        if self.process.poll() is None:
            self.process.terminate()
        self.process.wait(20)

    def connect(self, timeout=20):
        if self.context:
            return http.client.HTTPSConnection("127.0.0.1", self.port, timeout=timeout, context=self.context)
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)

    def ask(self, method="POST", path="/v1/completions", body=None, connection=None, **headers):
        """Status, headers and text of the answer; body: bytes, or what becomes JSON. Names of headers: _ for -."""
        used = connection or self.connect()
        sent = {"Authorization": f"Bearer {KEYS['alice']}"}
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        if body is None and method == "POST":
            body = {"prompt": "p"}
        used.request(
            method, path, body if isinstance(body, bytes | None) else json.dumps(body),
            {name: value for name, value in sent.items() if value is not None},
        )  # fmt: skip
        answer = used.getresponse()
        found = answer.status, answer.headers, answer.read().decode()
        if connection is None:
            used.close()
        return found

    @property
    def log(self):
        return (self.directory / "access").read_text()

    @property
    def errors(self):
        return (self.directory / "stderr").read_text()


def trusting(certificate):
    return ssl.create_default_context(cafile=str(certificate))
