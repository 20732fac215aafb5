"""The image in an engine: no network, a read-only file system, a user of no name; the acceptance steps of its users."""

import contextlib
import json
import os
import re
import threading
import time
import urllib.request

import docker
import pytest
from docker.errors import DockerException

IMAGE = "vllm-kepler:test"
# The released engine with its own wheels, which no CPU can serve.
RELEASED = "vllm-kepler:released"
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

# The image has the package.
OPENAI = """
import sys, openai
client = openai.OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="a-secret", max_retries=0)
prompt = "Unless required by applicable law"
done = client.completions.create(model=sys.argv[1], prompt=prompt, max_tokens=5, temperature=0)
print(done.choices[0].text)
try:
    client.with_options(api_key="another").models.list()
except openai.AuthenticationError as error:
    print(type(error).__name__)
"""


def engine(image):
    try:
        found = docker.from_env(timeout=600)
        found.images.get(image)
    except DockerException:
        pytest.skip(f"needs an engine with {image} (tests/image.sh)")
    return found


@pytest.fixture
def start():
    """Function that starts the image with arguments of `vllm serve`: the container."""
    client, started = engine(IMAGE), []

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
            container.remove(force=True, v=True)


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
    if container.image.labels["vllm-kepler.engine"] == "port":
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


def test_openai_client_is_served_through_a_published_port(start, tmp_path):
    (tmp_path / "key").write_text("a-secret\n")
    (tmp_path / "key").chmod(0o400)
    os.chown(tmp_path / "key", 10001, 10001)
    container = serve(
        start, 1, network_mode="bridge", read_only=False, user=None, ports={"8000/tcp": ("127.0.0.1", None)},
        environment={"VLLM_KEPLER_DEVICE": "cpu", "VLLM_API_KEY_FILE": "/run/key"},
        volumes={f"{ROOT}/tests/models": {"bind": "/models", "mode": "ro"},
                 str(tmp_path / "key"): {"bind": "/run/key", "mode": "ro"}},
    )
    address = f"http://127.0.0.1:{container.ports['8000/tcp'][0]['HostPort']}"
    assert urllib.request.urlopen(f"{address}/health", timeout=20).status == 200
    status, printed = container.exec_run(["python", "-c", OPENAI, MODEL])
    assert (status, printed.decode().splitlines()) == (0, [" or agreed to", "AuthenticationError"])


def test_volume_at_the_home_can_be_written(start):
    volume = docker.from_env().volumes.create()
    try:
        container = start("--model", MODEL, entrypoint=["sh", "-c", "touch ~/a && mkdir -p ~/huggingface"], user=None,
                          volumes={volume.name: {"bind": "/var/lib/vllm", "mode": "rw"}})
        assert container.wait(timeout=60)["StatusCode"] == 0, container.logs().decode()
        container.remove()
    finally:
        volume.remove()


@pytest.mark.parametrize("options", [
    {"tmpfs": {"/var/lib/vllm": "exec,mode=1777"}, "environment": {"TMPDIR": "/dev/shm"}},
    {"read_only": False, "user": None},
])  # fmt: skip
def test_released_engine_compiles_in_the_container(options):
    given = {"read_only": True, "user": str(USER), "cap_drop": ["ALL"], "network_mode": "none", **options}
    script = {f"{ROOT}/tests/image/compile_kernel.py": {"bind": "/compile_kernel.py", "mode": "ro"}}
    printed = engine(RELEASED).containers.run(
        RELEASED, ["/compile_kernel.py"], entrypoint=["python"], volumes=script, remove=True, stderr=True, **given
    ).decode()  # fmt: skip
    assert "image_compiler-1/bin/gcc" in printed
    assert re.search("loaded 2.9.0[+]cu128 3.5.0 0.12.0$", printed.strip())


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
