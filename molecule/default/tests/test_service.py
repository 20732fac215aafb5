"""The server: unit, API, log."""

import json
import re
import urllib.error
import urllib.request

import openai
import pytest
from conftest import MODEL, PROJECT, URL

TOKENS = 40
LICENCE = " ".join((PROJECT / "LICENSE").read_text().split())
# Passages that the licence has once; each must go on word for word.
PROMPTS = [
    "You may reproduce and distribute copies of the Work or Derivative Works",
    "Unless You explicitly state otherwise, any Contribution intentionally submitted",
    "This License does not grant permission to use the trade names,",
    "If You institute patent litigation against any entity",
    "While redistributing the Work or Derivative Works thereof,",
]


@pytest.fixture(scope="module")
def api(key):
    return openai.OpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0)


def get(path, header=None):
    """Status and body of a GET."""
    request = urllib.request.Request(URL + path, headers={"Authorization": f"Bearer {header}"} if header else {})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def follows(prompt, text):
    """Whether `text` is how the licence goes on after `prompt`."""
    return LICENCE.partition(prompt)[2].startswith(text.rstrip("\N{REPLACEMENT CHARACTER}")) and len(text.split()) > 5


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
def test_no_answer_without_the_key(header):
    assert get("/v1/models", header)[0] == 401


def test_health():
    assert get("/health")[0] == 200


def test_models(key):
    status, body = get("/v1/models", key)
    assert status == 200
    assert [model["id"] for model in json.loads(body)["data"]] == [MODEL]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_completion_is_the_licence_word_for_word(api, prompt):
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
