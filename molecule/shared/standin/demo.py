"""The main job, shown: site.yml on a stand-in, then a served completion."""

from __future__ import annotations

import json
import re
import subprocess
import time
from typing import Any

import openai

from . import engine, hosts
from .settings import DEMO, PROJECT, fail

INVENTORY = PROJECT / "inventory" / "standin"
PROMPT = "Unless required by applicable law or agreed to in writing,"
TOKENS = 40


def heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def converge(fleet: Any, *arguments: str) -> str:
    """Run `ansible-playbook site.yml -l k80-hosts` as a user does; its recap line."""
    command = ["ansible-playbook", "-i", str(INVENTORY.relative_to(PROJECT)), "site.yml", "-l", "k80-hosts", *arguments]
    print("$ " + " ".join(command), flush=True)
    process = subprocess.Popen(
        command, cwd=PROJECT, env=hosts.ansible_environment(fleet), stdout=subprocess.PIPE, text=True,
    )
    recap = ""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if re.match(r"k80-standin\s+: ok=", line):
            recap = line.strip()
    if process.wait():
        fail("site.yml did not end well: the message above says why. `make demo` goes on where it stopped.")
    return recap


def show_service() -> None:
    client = engine.ensure()
    container = client.containers.get(DEMO.container("k80-standin"))
    command = "systemctl status --no-pager --lines 5 vllm@demo"
    print(f"$ {command}\n{hosts.execute(container, command)[1]}", flush=True)


def complete(url: str, model: str) -> None:
    """A completion through curl; the key comes from a file."""
    body = json.dumps({"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0})
    header = DEMO.directory / "auth-header"
    command = ["curl", "--silent", "--fail-with-body", f"{url}/completions", "-H", f"@{header}",
               "-H", "Content-Type: application/json", "-d", body]
    print("$ " + " ".join(f"'{part}'" if " " in part else part for part in command), flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        fail(f"curl ended with {done.returncode}: {done.stdout}{done.stderr}")
    answer = json.loads(done.stdout)
    print(json.dumps(answer["usage"]))
    print(f"{PROMPT}\033[1m{answer['choices'][0]['text']}\033[0m", flush=True)


def chat(url: str, model: str) -> None:
    """A streamed chat completion through the openai package."""
    client = openai.OpenAI(base_url=url, api_key=(DEMO.directory / "api-key").read_text())
    stream = client.chat.completions.create(
        model=model, messages=[{"role": "user", "content": PROMPT}], max_tokens=TOKENS, temperature=0, stream=True,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print(flush=True)


def run() -> None:
    started = time.monotonic()
    hosts.up(DEMO)
    heading("The main job")
    recap = converge(DEMO)
    url, model = f"http://127.0.0.1:{DEMO.port}/v1", hosts.model_name()
    heading("The unit")
    show_service()
    heading("A completion")
    complete(url, model)
    heading("A streamed chat completion, through the openai package")
    chat(url, model)
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    heading(f"Done in {minutes} min {seconds:02} s: {' '.join(re.findall(r'(?:ok|changed|failed)=[0-9]+', recap))}")
    print(f"""
The server answers at   {url}
its key stands in       {DEMO.directory / 'api-key'}
a shell on the host     docker {_engine_option()}exec -it {DEMO.container('k80-standin')} bash
run it again            make demo         (changes nothing)
remove it               make demo-down""")


def _engine_option() -> str:
    return f"-H unix://{engine.SOCKET} " if engine.SOCKET.exists() else ""
