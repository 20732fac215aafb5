"""The image in an engine: no network, a read-only file system, a user of no name; the acceptance steps of its users."""

import contextlib
import json
import os
import re
import threading
import time

import docker
import pytest
from docker.errors import DockerException

IMAGE = "vllm-kepler:test"
ROOT = __file__.rpartition("/tests/")[0]
MODEL = "/models/licence-llama"
USER = 23456
READY_SECONDS = 300
ASK = """
import json, sys, urllib.request
body, headers = sys.argv[1], json.loads(sys.argv[2])
request = urllib.request.Request("http://127.0.0.1:8000/v1/completions", body.encode(), headers)
try:
    print(urllib.request.urlopen(request, timeout=280).read().decode())
except urllib.error.HTTPError as error:
    print(json.dumps({"status": error.code}))
"""


def engine():
    try:
        found = docker.from_env(timeout=600)
        found.images.get(IMAGE)
    except DockerException:
        pytest.skip(f"needs an engine with {IMAGE} (tests/image.sh)")
    return found


@pytest.fixture
def start():
    """Function that starts the image with arguments of `vllm serve`: the container."""
    client, started = engine(), []

    def run(*arguments, **options):
        given = {
            "network_mode": "none", "read_only": True, "user": str(USER), "cap_drop": ["ALL"],
            "security_opt": ["no-new-privileges:true"], "environment": {"VLLM_KEPLER_DEVICE": "cpu"},
            "volumes": {f"{ROOT}/tests/models": {"bind": "/models", "mode": "ro"}}, **options,
        }
        started.append(client.containers.run(IMAGE, list(map(str, arguments)), detach=True, **given))
        return started[-1]

    yield run
    for container in started:
        with contextlib.suppress(DockerException):
            container.remove(force=True)


def serve(start, size, **options):
    """A container that is healthy."""
    container = start("--model", MODEL, "--dtype", "float32", "--enforce-eager", "--tensor-parallel-size", size,
                      "--max-model-len", 1024, "--gpu-memory-utilization", 0.85, **options)
    end = time.monotonic() + READY_SECONDS
    while time.monotonic() < end:
        container.reload()
        assert container.status == "running", container.logs().decode()
        if container.attrs["State"]["Health"]["Status"] == "healthy":
            return container
        time.sleep(1)
    raise AssertionError(container.logs().decode())


def ask(container, tokens=20, **headers):
    """The answer to a prompt of the license."""
    body = {"prompt": "Unless required by applicable law", "max_tokens": tokens, "temperature": 0, "ignore_eos": True}
    given = json.dumps({"Content-Type": "application/json", **headers})
    status, printed = container.exec_run(["python", "-c", ASK, json.dumps(body), given])
    assert status == 0, printed.decode()
    return json.loads(printed)


@pytest.mark.parametrize("size", [1, 2, 4])
def test_acceptance_steps_pass(start, size):
    container = serve(start, size)
    assert ask(container)["choices"][0]["text"].startswith(" or agreed to in writing")
    assert ask(container, 500)["usage"]["completion_tokens"] == 500
    log = container.logs().decode()
    assert "Using Torch SDPA attention backend" in log
    assert re.search("vllm@[0-9a-f]+ is ready after [0-9]+ s", log)
    assert "has no API key: whoever reaches the published port" in log or "listens on 127.0.0.1 alone" in log
    assert container.exec_run(["id", "--user"])[1].decode().strip() == str(USER)


def test_stop_finishes_what_runs(start):
    container, answers = serve(start, 4), []
    asking = threading.Thread(target=lambda: answers.append(ask(container, 500)))
    asking.start()
    time.sleep(2)
    container.stop(timeout=120)
    asking.join()
    assert answers[0]["usage"]["completion_tokens"] == 500
    container.reload()
    assert container.attrs["State"]["ExitCode"] == 0
    assert container.logs().decode().splitlines()[-1].endswith("ends: stopped as asked")


def test_key_of_a_file_is_asked_for(start, tmp_path):
    (tmp_path / "key").write_text("a-secret\n")
    (tmp_path / "key").chmod(0o400)
    os.chown(tmp_path / "key", USER, USER)
    container = serve(
        start, 1, environment={"VLLM_KEPLER_DEVICE": "cpu", "VLLM_API_KEY_FILE": "/run/key"},
        volumes={f"{ROOT}/tests/models": {"bind": "/models", "mode": "ro"},
                 str(tmp_path / "key"): {"bind": "/run/key", "mode": "ro"}},
    )
    assert ask(container) == {"status": 401}
    assert "choices" in ask(container, Authorization="Bearer a-secret")
    assert "a-secret" not in container.logs().decode()
    assert "a-secret" not in json.dumps(container.attrs)


@pytest.mark.parametrize(("arguments", "options", "message"), [
    (["--model", MODEL], {"environment": {}}, "GPU: found none in the container"),
    (["--model", "/models/nothing"], {}, "--model: found nothing at /models/nothing in the container"),
    (["--model", MODEL], {"volumes": {}}, "--model: found nothing at /models/licence-llama"),
    (["--model", MODEL], {"environment": {"VLLM_KEPLER_DEVICE": "cpu", "VLLM_API_KEY_FILE": "/etc/passwd"}},
     "VLLM_API_KEY_FILE: /etc/passwd: found mode 0644"),
    ([], {}, "--model: found none; expected arguments of vllm serve"),
])  # fmt: skip
def test_what_is_missing_is_one_line(start, arguments, options, message):
    container = start(*arguments, **options)
    assert container.wait(timeout=60)["StatusCode"] == 78
    (line,) = container.logs().decode().splitlines()
    assert message in line
