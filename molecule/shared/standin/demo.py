"""The main job, shown: site.yml on a stand-in, then a served completion."""

from __future__ import annotations

import json
import re
import subprocess
import time

import openai
import yaml

from . import engine, hosts
from .settings import DEMOS, PROJECT, Fleet, fail

INVENTORY = PROJECT / "inventory" / "standin"
PROMPT = "Unless required by applicable law or agreed to in writing,"
TOKENS = 40


def heading(text: str) -> None:
    print(f"\n== {text}", flush=True)


def converge(fleet: Fleet) -> str:
    """Run `ansible-playbook site.yml` as a user does, for the group of the fleet's profile; its recap line."""
    profile = yaml.safe_load((PROJECT / "profiles" / fleet.profile / "profile.yml").read_text())
    group, host = profile["groups"]["hosts"], fleet.hosts[0].name
    command = ["ansible-playbook", "-i", str(INVENTORY.relative_to(PROJECT)), "site.yml", "-l", group]
    print("$ " + " ".join(command), flush=True)
    process = subprocess.Popen(
        command, cwd=PROJECT, env=hosts.ansible_environment(fleet), stdout=subprocess.PIPE, text=True,
    )
    recap = ""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        if re.match(rf"{host}\s+: ok=", line):
            recap = line.strip()
    if process.wait():
        fail("site.yml did not end well: the message above says why. The same command goes on where it stopped.")
    return recap


def show_service(fleet: Fleet) -> None:
    client = engine.ensure()
    container = client.containers.get(fleet.container(fleet.hosts[0].name))
    command = "systemctl status --no-pager --lines 5 vllm@demo"
    print(f"$ {command}\n{hosts.execute(container, command)[1]}", flush=True)


def complete(fleet: Fleet, url: str, model: str) -> None:
    """A completion through curl; the key comes from a file."""
    body = json.dumps({"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0})
    header = fleet.directory / "auth-header"
    command = ["curl", "--silent", "--fail-with-body", f"{url}/completions", "-H", f"@{header}",
               "-H", "Content-Type: application/json", "-d", body]
    print("$ " + " ".join(f"'{part}'" if " " in part else part for part in command), flush=True)
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        fail(f"curl ended with {done.returncode}: {done.stdout}{done.stderr}")
    answer = json.loads(done.stdout)
    print(json.dumps(answer["usage"]))
    print(f"{PROMPT}\033[1m{answer['choices'][0]['text']}\033[0m", flush=True)


def stream(fleet: Fleet, url: str, model: str) -> None:
    """A streamed chat completion through the openai package; of a model without a chat template, a completion."""
    client = openai.OpenAI(base_url=url, api_key=(fleet.directory / "api-key").read_text())
    try:
        chat = client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": PROMPT}], max_tokens=TOKENS, temperature=0, stream=True,
        )
        parts = (chunk.choices[0].delta.content for chunk in chat)
    except openai.BadRequestError as error:
        if "chat template" not in error.message:
            raise
        print("This model has no chat template: a completion in place of a chat.", flush=True)
        plain = client.completions.create(model=model, prompt=PROMPT, max_tokens=TOKENS, temperature=0, stream=True)
        parts = (chunk.choices[0].text for chunk in plain)
    for part in parts:
        print(part or "", end="", flush=True)
    print(flush=True)


def run(profile: str) -> None:
    started, fleet = time.monotonic(), DEMOS[profile]
    hosts.up(fleet)
    heading("The main job")
    recap = converge(fleet)
    url, model = f"http://127.0.0.1:{fleet.port}/v1", hosts.model_name()
    heading("The unit")
    show_service(fleet)
    heading("A completion")
    complete(fleet, url, model)
    heading("A streamed answer, through the openai package")
    stream(fleet, url, model)
    option = "" if profile == "k80" else f" PROFILE={profile}"
    minutes, seconds = divmod(int(time.monotonic() - started), 60)
    heading(f"Done in {minutes} min {seconds:02} s: {' '.join(re.findall(r'(?:ok|changed|failed)=[0-9]+', recap))}")
    print(f"""
The server answers at   {url}
its key stands in       {fleet.directory / 'api-key'}
a shell on the host     docker {_engine_option()}exec -it {fleet.container(fleet.hosts[0].name)} bash
run it again            make demo{option}         (changes nothing)
remove it               make demo-down{option}""")


def _engine_option() -> str:
    return f"-H unix://{engine.SOCKET} " if engine.SOCKET.exists() else ""
