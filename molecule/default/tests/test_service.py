"""The server: unit, sandbox, API, log."""

import concurrent.futures
import json
import re
import sys
import urllib.error
import urllib.request

import openai
import pytest
from conftest import MODEL, PROJECT, URL
from license import PROMPTS, follows

sys.path.insert(0, str(PROJECT / "tests" / "port"))
import corpus

TOKENS = 40
# Of tests/models/licence-llama.
VOCABULARY = 512


@pytest.fixture(scope="module")
def api(key):
    return openai.OpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0)


@pytest.fixture(scope="module")
def inside(k80):
    """Function that runs a command in the mounts of the running server, as its user."""
    pid = k80.check_output("systemctl show vllm@demo --property MainPID --value")
    enter = f"nsenter --target {pid} --mount -- setpriv --reuid vllm --regid vllm --clear-groups"
    return lambda command: k80.run(f"{enter} /bin/sh -c '{command}'")


def get(path, header=None):
    """Status and body of a GET."""
    request = urllib.request.Request(URL + path, headers={"Authorization": f"Bearer {header}"} if header else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def post(body, key, path="/v1/completions"):
    """Status of the answer to this body."""
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{URL}{path}", data=body, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as error:
        return error.code


def test_the_unit_runs(k80):
    unit = k80.service("vllm@demo")
    assert unit.is_running
    assert unit.is_enabled
    assert k80.check_output("systemctl show vllm@demo --property User --value") == "vllm"


def test_four_ranks(k80):
    """The executor is rank 0; three workers beside it."""
    log = k80.check_output("journalctl --unit vllm@demo --no-pager --output cat")
    start = log.rindex("Initializing a V0 LLM engine")
    assert "tensor_parallel_size=4" in log[start:]
    assert set(re.findall(r"rank (\d) in world size 4", log[start:])) == {"0", "1", "2", "3"}


def test_what_the_log_says(k80):
    assert "VLLM_USE_V1=0" in k80.file("/etc/kepler/instances/demo.env").content_string
    log = k80.check_output("journalctl --unit vllm@demo --no-pager --output cat")
    # Other tests have killed the server before.
    log = log[log.rindex("vllm@demo starts: "):]
    assert "Initializing a V0 LLM engine" in log
    assert "Using Torch SDPA attention backend for Kepler GPU (sm < 60)." in log
    for unwanted in ("FlashAttention", "xformers", "Triton", "Traceback"):
        assert unwanted not in log


def test_the_key_is_nowhere_but_in_its_file(k80, key):
    assert key not in k80.check_output("journalctl --no-pager")
    assert key not in k80.check_output("cat /proc/[0-9]*/cmdline | tr '\\0' ' '")
    k80.check_output("cut -d= -f2 /etc/kepler-standin/api-key.env > /run/key")
    assert k80.run("grep -rFf /run/key /etc/kepler /etc/systemd /var/log /var/lib/vllm").rc == 1


@pytest.mark.parametrize("header", [None, "wrong"])
@pytest.mark.parametrize("path", ["/v1/models", "/invocations", "/tokenize", "/docs", "/load"])
def test_no_answer_without_the_key(header, path):
    """Upstream asks for the key below /v1 alone."""
    assert get(path, header)[0] == 401


def test_the_sandbox_as_the_kernel_sees_it(k80):
    """Every process of the unit: the vLLM user, no capability, none to be had, system calls filtered."""
    k80.check_output("id vllm")
    group = k80.check_output("systemctl show vllm@demo --property ControlGroup --value")
    found = k80.check_output(f"cat $(find /sys/fs/cgroup -path '*{group}/cgroup.procs' | head -1)").split()
    assert len(found) >= 6  # supervisor, API server, engine, three ranks
    for pid in found:
        status = dict(line.split(":\t", 1) for line in k80.check_output(f"cat /proc/{pid}/status").splitlines())
        assert status["Uid"].split()[0] == k80.check_output("id --user vllm")
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == 0, name


@pytest.mark.parametrize(
    "path", ["/etc/kepler/instances", "/opt/kepler/store", "/usr", "/var/log", "/home", "/sys/fs/cgroup"]
)
def test_what_the_server_cannot_write(inside, k80, path):
    assert inside(f"touch {path}/written-by-vllm").rc != 0
    # Not for want of permission alone: the mount is read-only.
    mount = inside(f"findmnt --noheadings --output VFS-OPTIONS --target {path}").stdout
    assert mount.split(",")[0] == "ro", mount


@pytest.mark.parametrize("path", ["/var/lib/vllm", "/run/vllm/demo", "/tmp", "/dev/shm"])
def test_what_the_server_can_write(inside, path):
    assert inside(f"touch {path}/written && rm {path}/written").rc == 0


@pytest.mark.parametrize("path", ["/tmp", "/dev/shm"])
def test_what_the_server_has_for_itself(inside, k80, path):
    k80.check_output(f"touch {path}/of-the-host")
    assert inside(f"ls {path}/of-the-host").rc != 0
    k80.check_output(f"rm {path}/of-the-host")


def test_the_key_file_is_not_the_server_s_to_read(inside, k80):
    assert k80.file("/etc/kepler-standin/api-key.env").user == "root"
    assert inside("cat /etc/kepler-standin/api-key.env").rc != 0


def test_devices(k80):
    """Memory and chance, nothing else: here are no NVIDIA devices. Tried by root within the unit's control group."""
    assert k80.check_output("systemctl show vllm@demo --property DevicePolicy --value") == "closed"
    group = k80.check_output("systemctl show vllm@demo --property ControlGroup --value")
    control = k80.run(f"ls -d /sys/fs/cgroup/devices{group} 2>/dev/null").stdout.strip()
    if not control:
        pytest.skip("this container's systemd has no devices controller")
    allowed = k80.check_output(f"cat {control}/devices.list").splitlines()
    assert "c 1:3 rwm" in allowed
    assert not [line for line in allowed if line.split()[0] in "ab"]
    assert not [line for line in allowed if line.split()[1].split(":")[0] not in ("1", "5", "136")]


def test_the_exposure(k80):
    """By systemd's own measure, 10 is a service without any protection."""
    last = k80.check_output("systemd-analyze security --no-pager vllm@demo").splitlines()[-1]
    assert float(re.search(r"exposure level for vllm@demo.service: ([\d.]+)", last)[1]) <= 3.0


def test_systemd_finds_nothing_wrong_with_the_units(k80):
    found = k80.run("systemd-analyze verify vllm@demo.service vllm.target")
    assert "vllm" not in found.stderr, found.stderr


REFUSED = [
    (b"{", 400), (b"[]", 400), (b"null", 400), (b'{"prompt": "a", "max_tokens": -1}', 400),
    (b'{"prompt": "a", "max_tokens": NaN}', 400), (b'{"model": "other", "prompt": "a"}', 404),
    (b'{"prompt": "a", "max_tokens": 9, "min_tokens": 3, "stop_token_ids": [99999]}', 400),
    (b'{"prompt": "a", "guided_decoding_backend": "xgrammar", "guided_regex": "["}', 400),
    (b'"' + 9 * 2**20 * b"a" + b'"', 413),
]


@pytest.mark.parametrize(("body", "status"), REFUSED, ids=lambda value: str(value)[:40])
def test_a_bad_request_is_refused(key, body, status):
    assert post(body, key) == status


def test_requests_that_hurt_are_refused(k80, key):
    """It is the same server afterwards, and its log holds nothing of the bodies."""
    before = k80.check_output("systemctl show vllm@demo --property InvocationID --value")
    made = [(json.dumps({**body, "user": corpus.SECRET}).encode(), key, path)
            for path, body, _ in (*corpus.guides(), *corpus.hurting(VOCABULARY))]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert set(pool.map(lambda asked: post(*asked), made)) == {400}
    assert k80.check_output("systemctl show vllm@demo --property InvocationID --value") == before
    log = k80.check_output("journalctl --unit vllm@demo --no-pager --output cat")
    assert corpus.SECRET not in log
    assert key not in log


def test_health():
    assert get("/health")[0] == 200


def test_models(key):
    status, body = get("/v1/models", key)
    assert status == 200
    assert [model["id"] for model in json.loads(body)["data"]] == [MODEL]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_completion_is_the_license_word_for_word(api, prompt):
    answer = api.completions.create(model=MODEL, prompt=prompt, max_tokens=TOKENS, temperature=0)
    assert answer.usage.completion_tokens == TOKENS
    assert follows(prompt, answer.choices[0].text), answer.choices[0].text


def test_a_chat_completion(api):
    messages = [{"role": "user", "content": PROMPTS[0]}]
    answer = api.chat.completions.create(model=MODEL, messages=messages, max_tokens=TOKENS, temperature=0)
    assert follows(PROMPTS[0], answer.choices[0].message.content)


def test_a_streamed_chat_completion(api):
    messages = [{"role": "user", "content": PROMPTS[1]}]
    stream = api.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=TOKENS, temperature=0, stream=True
    )
    parts = [chunk.choices[0].delta.content or "" for chunk in stream]
    assert sum(map(bool, parts)) > 10
    assert follows(PROMPTS[1], "".join(parts))


def test_metrics(key):
    status, body = get("/metrics", key)
    assert status == 200
    assert re.search(r'^vllm:generation_tokens_total\{.*\} [1-9]', body, re.MULTILINE)
