"""Each check against a server that works, and against one that has just what the check is there to find."""

import re
import threading
from pathlib import Path

import fake_server
import pytest
from ansible_collections.kepler.vllm.plugins.module_utils.gpu import smi
from ansible_collections.kepler.vllm.plugins.module_utils.server import acceptance, api
from ansible_collections.kepler.vllm.plugins.module_utils.server.versions import v0_9_2, v0_12_0
from fake_server import Server, tokens

ROOT = Path(__file__).resolve().parents[3]


OPTIONS = {
    "name": "main", "device": "kepler", "dies": [0, 1], "dtype": "float32", "concurrency": 4, "requests": 12,
    "cuda_graphs": False, "long_tokens": 200, "golden": [], "golden_prompts": ["one", "two"], "golden_tokens": 6,
}


@pytest.fixture
def server():
    made = Server()
    yield made
    made.httpd.shutdown()


@pytest.fixture
def check(server):
    """Function that makes a check against the server: (what was found, figures)."""

    def run(name, **options):
        asked = acceptance.CheckContext(api.Api("127.0.0.1", server.port, None, 10), {**OPTIONS, **options})
        return acceptance.CHECKS[name](asked)

    return run


@pytest.mark.parametrize("name", ["completion", "chat", "chat_stream", "coherent", "load", "decisions", "record"])
def test_a_working_server_passes(check, name):
    found, _ = check(name)
    assert found


def completion_that(**differs):
    """A server's answer to /v1/completions, with `differs` in its choice."""

    def answer(path, body):
        if path != "/v1/completions" or body.get("stream"):
            return None
        said = tokens(body["prompt"], body["max_tokens"])
        choice = {
            "text": "".join(said),
            "logprobs": {"tokens": said, "token_logprobs": [-0.5] * len(said), "top_logprobs": [{said[0]: -0.5}]},
        }
        choice.update({name: value(body) if callable(value) else value for name, value in differs.items()})
        return 200, {"choices": [choice]}

    return answer


def logprobs_of(token, value):
    """The function that says `token` again and again, each with the log-probability `value`."""
    return lambda body: {
        "tokens": [token] * body["max_tokens"], "token_logprobs": [value] * body["max_tokens"],
        "top_logprobs": [{token: value}],
    }


def changing(values):
    """A function whose answers are `values` in turn, the last for ever."""
    left = list(values)
    return lambda body: left.pop(0) if len(left) > 1 else left[0]


WRONG = {
    "two answers to one question": ("completion", completion_that(text=changing(["a", "b"])), "two answers"),
    "probabilities that are no numbers": (
        "completion", completion_that(logprobs=logprobs_of("!", float("nan"))), "no model has",
    ),
    "an empty chat": ("chat", lambda path, body: (200, {"choices": [{"message": {"content": " "}}]}), "an empty"),
    "an error": ("chat", lambda path, body: (500, {"error": "boom"}), "answered 500"),
    "one token again and again": ("coherent", completion_that(logprobs=logprobs_of("!", -0.1)), "1 different tokens"),
    "noise": (
        "coherent",
        completion_that(logprobs=lambda body: {"tokens": list(range(200)), "token_logprobs": [-10.3] * 200}),
        "that of noise",
    ),
    "text that is none": (
        "coherent", completion_that(text="\N{REPLACEMENT CHARACTER}" * 30), "text that is none",
    ),
    "more than all of the probability": (
        "decisions",
        completion_that(logprobs={"tokens": ["y"], "token_logprobs": [-0.1], "top_logprobs": [{"y": -0.1, "n": -0.1}]}),
        "more than one",
    ),
    "two answers to one decision": ("decisions", completion_that(text=changing("ab")), "answered to"),
}


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_found(check, server, what):
    name, server.answer, said = WRONG[what]
    with pytest.raises(api.CheckFailed, match=said):
        check(name)


def test_a_stream_that_comes_in_one_piece(check, monkeypatch):
    monkeypatch.setattr(fake_server, "tokens", lambda prompt, count: ["".join(tokens(prompt, count))])
    with pytest.raises(api.CheckFailed, match="buffered until it was whole"):
        check("chat_stream")


def test_a_stream_without_its_end(check, server):
    server.end_of_stream = None
    with pytest.raises(api.CheckFailed, match=r"ended without \[DONE\]"):
        check("load")


def test_the_load_is_what_was_asked_for(check, server):
    gate = threading.Barrier(4, timeout=10)
    seen = []

    def wait_for_the_others(path, body):
        seen.append(body["prompt"])
        if len(seen) > 12:  # the first twelve are asked alone
            gate.wait()

    server.answer = wait_for_the_others
    _, figures = check("load")
    assert server.most == 4
    assert sorted(seen[:12]) == sorted(seen[12:])
    assert len(set(seen)) == 12
    assert (figures["requests"], figures["concurrency"], figures["differ"]) == (12, 4, 0)
    assert figures["first_token"]["p50"] <= figures["first_token"]["p99"]


def test_answers_of_one_another_under_load_are_found(check, server, monkeypatch):
    """A server that mixes up its streams as soon as there is more than one."""
    monkeypatch.setattr(fake_server, "tokens", lambda prompt, count: tokens("x" if server.most > 1 else prompt, count))
    gate = threading.Barrier(2, timeout=10)
    seen = []

    def two_at_once(path, body):
        seen.append(1)
        if len(seen) > 12:
            gate.wait()

    server.answer = two_at_once
    with pytest.raises(api.CheckFailed, match="are not those given alone"):
        check("load", concurrency=2)


@pytest.mark.parametrize(("others", "passes"), [(0, True), (2, True), (3, False)])
def test_few_ties_pass_under_load_and_more_do_not(check, monkeypatch, others, passes):
    """One answer in twenty may be another than the one that was given alone."""
    asked = []

    def answers(prompt, count):
        asked.append(prompt)
        turned = asked.count(prompt) > 1 and int(prompt.partition(".")[0]) < others
        return tokens("x" if turned else prompt, count)

    monkeypatch.setattr(fake_server, "tokens", answers)
    if passes:
        assert check("load", requests=40)[1]["differ"] == others
        return
    with pytest.raises(api.CheckFailed, match="3 of 40 answers are not those given alone"):
        check("load", requests=40)


def test_recorded_answers(check):
    _, figures = check("record")
    recorded = figures["golden"]
    assert [answer["prompt"] for answer in recorded] == ["one", "two"]
    check("golden", golden=recorded)
    recorded[1]["text"] += "!"
    with pytest.raises(api.CheckFailed, match="recorded was"):
        check("golden", golden=recorded)


def test_nothing_recorded_is_skipped(check):
    with pytest.raises(acceptance.CheckSkipped, match="acceptance_record"):
        check("golden")


@pytest.mark.parametrize("name", ["chat", "chat_stream"])
def test_a_model_without_a_chat_template_is_skipped(check, server, name):
    server.answer = lambda path, body: (400, {"message": "no chat template is defined"})
    with pytest.raises(acceptance.CheckSkipped, match="no chat template"):
        check(name)


def test_a_server_that_is_not_there():
    with pytest.raises(api.CheckFailed, match="v1/models"):
        acceptance.CheckContext(api.Api("127.0.0.1", 9, None, 5), OPTIONS)


LISTED = "0, 00000000:05:00.0\n1, 00000000:06:00.0\n"
UNITS = {10: "vllm@main.service", 11: "vllm@main.service", 12: "vllm@other.service", 13: "session-3.scope"}


def judged(*apps, dies=(0, 1)):
    lines = "".join(f"{pid}, 00000000:0{5 + die}:00.0, {memory}\n" for die, pid, memory in apps)
    used = smi.processes(LISTED, lines)
    return acceptance.check_memory(used, list(dies), "vllm@main.service", UNITS.get)


def test_memory_of_each_die():
    found, figures = judged((0, 10, 9000), (1, 11, 9001))
    assert found == "GPU 0: 9000 MiB, GPU 1: 9001 MiB"
    assert figures == {"mib": {"0": "9000", "1": "9001"}}


def test_a_rank_that_is_missing():
    with pytest.raises(api.CheckFailed, match=r"no process of vllm@main\.service on GPU 1"):
        judged((0, 10, 9000), (1, 13, 9000))


def test_a_foreign_process():
    with pytest.raises(api.CheckFailed, match="process 13 on GPU 1"):
        judged((0, 10, 9000), (1, 11, 9000), (1, 13, 200))


def test_servers_may_share_a_die_or_use_other_dies():
    judged((0, 10, 4000), (0, 12, 4000), (1, 13, 100), dies=(0,))


GOOD_LOG = (
    "Initializing a V0 LLM engine (v0.9.2) with config: dtype=torch.float32, enforce_eager=True\n"
    "Using Torch SDPA attention backend for Kepler GPU (sm < 60).\n"
)


GRAPHS_LOG = GOOD_LOG.replace("True", "False") + (
    "CUDA graphs: captured decoding steps of 1, 2, 4, 8, 16 sequences, up to 4096 tokens each; they take 60 MiB beside "
    "the KV cache.\n"
)
HALF_LOG = "dtype: half: weights and KV cache are stored as float16, activations and arithmetic are float32.\n"


def test_a_log_as_it_should_be():
    acceptance.check_log(GOOD_LOG, v0_9_2, "float32")
    acceptance.check_log(GOOD_LOG + HALF_LOG, v0_9_2, "half")


def test_a_log_of_cuda_graphs():
    """They are there where they were asked for, and nowhere else."""
    acceptance.check_log(GRAPHS_LOG, v0_9_2, "float32", cuda_graphs=True)
    with pytest.raises(api.CheckFailed, match="no line with: enforce_eager=True"):
        acceptance.check_log(GRAPHS_LOG, v0_9_2, "float32")
    with pytest.raises(api.CheckFailed, match="no line with: enforce_eager=False, CUDA graphs: captured"):
        acceptance.check_log(GOOD_LOG, v0_9_2, "float32", cuda_graphs=True)


STOCK_LOG = (
    "Initializing a V1 LLM engine (v0.12.0) with config: dtype=torch.float16, enforce_eager=False\n"
    "Using AttentionBackendEnum.TRITON_ATTN backend.\nGraph capturing finished in 9 secs, took 0.41 GiB\n"
)


def test_a_log_of_vllm_as_it_is_released():
    acceptance.check_log(STOCK_LOG, v0_12_0, "half", cuda_graphs=True)
    acceptance.check_log(STOCK_LOG.partition("Using")[0], v0_12_0, "half", cuda_graphs=True, device="cpu")
    for text, said in ((STOCK_LOG.replace("float16", "bfloat16"), "no line with: dtype=torch.float16"),
                       (STOCK_LOG.replace("TRITON", "FLEX"), "no line with: TRITON_ATTN"),
                       (STOCK_LOG.replace("False", "True"), "no line with: enforce_eager=False"),
                       (STOCK_LOG + "Traceback (most recent call last):\n", "lines with: Traceback")):
        with pytest.raises(api.CheckFailed, match=said):
            acceptance.check_log(text, v0_12_0, "half", cuda_graphs=True)
    refused = "(APIServer pid=1) ERROR 11-30 11:05:50 [serving_completion.py:137] Traceback (most recent call last):\n"
    acceptance.check_log(STOCK_LOG + refused, v0_12_0, "half", cuda_graphs=True)


@pytest.mark.parametrize(("device", "line"), [("kepler", "enforce_eager=False"), ("cpu", "enforce_eager=True")])
def test_the_log_follows_the_inventory(check, monkeypatch, device, line):
    """The CPU has no CUDA graphs, whatever the inventory says."""
    written = {"systemctl": "InvocationID=7", "journalctl": GRAPHS_LOG if device == "kepler" else GOOD_LOG}
    monkeypatch.setattr(acceptance, "output_of", lambda program, *arguments: written[program])
    assert line in check("log", device=device, cuda_graphs=True)[0]


@pytest.mark.parametrize("version", ["0.10.1", "0.9.20+empty", None])
def test_log_of_a_vllm_without_a_table(check, server, monkeypatch, version):
    monkeypatch.setattr(acceptance, "output_of", lambda *_: "InvocationID=7")
    server.version = version
    said = f"found version {version}; expected 0.12.0 or 0.9.2" if version else "expected version: str"
    with pytest.raises(api.CheckFailed, match=re.escape(said)):
        check("log")


def test_weights_that_are_not_stored_as_asked():
    with pytest.raises(api.CheckFailed, match="no line with: dtype: half"):
        acceptance.check_log(GOOD_LOG, v0_9_2, "half")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD_LOG.replace("V0", "V1"), "no line with: V0 LLM engine"),
        (GOOD_LOG.replace("True", "False"), "enforce_eager=True"),
        (GOOD_LOG.replace("float32", "float16"), "torch.float32"),
        (GOOD_LOG + "Using FlashAttention\n", "lines with: FlashAttention"),
        (GOOD_LOG + "Traceback (most recent call last):\n", "lines with: Traceback"),
    ],
)
def test_a_log_that_is_another(text, said):
    with pytest.raises(api.CheckFailed, match=said):
        acceptance.check_log(text, v0_9_2, "float32")
