"""Acceptance checks of a server, one function for each.

Each takes a CheckContext and returns (what was found, figures). Raises CheckFailed if the server does not pass, and
CheckSkipped if the check does not apply to it.
"""

import math
import re
import subprocess
import threading
import time

from .. import facts
from ..gpu import smi
from .api import CheckFailed, check_answer, greedy, part_of
from .versions import table_of

PROMPT = "The quick brown fox"
SUBJECTS = ("a river", "the night train", "an old clock", "the harbour", "a letter", "the mountain road", "a violin",
            "the market")
QUESTIONS = ("Is fire hot?", "Is ice warm?", "Do fish live in water?", "Is seven an even number?", "Is the sky green?")

# A coherent answer has many different tokens, and the model is sure of most of them: a stuck kernel repeats one token,
# and one that computes noise spreads its probability over the vocabulary (for 32,000 tokens a logarithm of -10).
DISTINCT = 0.02
LEAST_MEAN = -5.0
# Answers under load that may differ from those given alone: sums in another order turn a tie around.
TIES = 0.05


class CheckSkipped(Exception):
    """A check does not apply to this server. The text says why."""


class CheckContext(object):
    """One server and the options of its checks.

    api: an api.Api. options: of the module vllm_acceptance; `model` and `max_model_len` are added here.
    """

    def __init__(self, api, options):
        self.api = api
        model, longest = api.model()
        self.options = dict(options, model=model, max_model_len=longest or 2048)

    def __getattr__(self, name):
        return self.options[name]


def percentile(values, share):
    """The smallest of `values` that at least `share` of them do not exceed."""
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def latencies(values):
    """Percentiles of times in seconds."""
    return {name: round(percentile(values, share), 4) for name, share in (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))}


def completion(context):
    """The same greedy answer twice, with probabilities that are some."""
    return repr(context.api.complete_twice(context.model, PROMPT, 16)[0]), {}


def chat_body(context):
    """A question, in the form of a chat."""
    return {
        "model": context.model, "messages": [{"role": "user", "content": "Say in a few words what a river is."}],
        "max_tokens": 24, "temperature": 0,
    }


def skip_without_template(error):
    """Raise CheckSkipped if the server says that the model has no chat template; else the error."""
    if "chat template" in str(error):
        raise CheckSkipped("the model has no chat template")
    raise error


def chat_text(context):
    """The answer to a chat, in one piece. Raises CheckSkipped."""
    path = "/v1/chat/completions"
    try:
        answer = context.api.ask(path, chat_body(context))
    except CheckFailed as error:
        skip_without_template(error)
    return part_of(answer, path, str, "choices", 0, "message", "content", missing="")


def chat(context):
    """A chat's answer."""
    text = chat_text(context)
    if not text.strip():
        raise CheckFailed("an empty answer")
    return repr(text), {}


def chat_stream(context):
    """The same answer, token by token."""
    path = "/v1/chat/completions"
    whole, parts = chat_text(context), []
    for _, part in context.api.stream(path, chat_body(context)):
        for choice in part_of(part, path, list, "choices"):
            parts.append(part_of(choice, path, str, "delta", "content", missing=""))
    if "".join(parts) != whole:
        raise CheckFailed("%r streamed, %r in one piece" % ("".join(parts), whole))
    filled = sum(1 for part in parts if part)
    if filled < 2:
        raise CheckFailed("%d part: it was buffered until it was whole" % filled)
    return "%d parts, equal to the answer in one piece" % filled, {}


def coherent(context):
    """A long answer that neither repeats one token nor is noise."""
    tokens = min(context.long_tokens, context.max_model_len - 32)
    text, pieces, probabilities = context.api.complete(context.model, PROMPT, tokens)
    check_answer(text, probabilities, tokens)
    mean = sum(probabilities) / tokens
    distinct = len(set(pieces))
    if distinct < max(DISTINCT * tokens, 5):
        raise CheckFailed("%d different tokens among %d: %r" % (distinct, tokens, text[:80]))
    if mean < LEAST_MEAN:
        raise CheckFailed("a mean log-probability of %.2f, which is that of noise: %r" % (mean, text[:80]))
    if text.count(u"\N{REPLACEMENT CHARACTER}") > 0.1 * tokens:
        raise CheckFailed("text that is none: %r" % text[:80])
    figures = {"tokens": tokens, "distinct": distinct, "mean_logprob": round(mean, 3)}
    return "%d tokens, %d of them different, mean log-probability %.2f" % (tokens, distinct, mean), figures


def golden(context):
    """The answers that were recorded for this model."""
    if not context.golden:
        raise CheckSkipped("no answers are recorded for this model; -e acceptance_record=true records them")
    for answer in context.golden:
        text, _, probabilities = context.api.complete(context.model, answer["prompt"], answer["tokens"])
        check_answer(text, probabilities, answer["tokens"])
        if text != answer["text"]:
            raise CheckFailed("%r after %r; recorded was %r" % (text, answer["prompt"], answer["text"]))
    return "%d answers as recorded" % len(context.golden), {}


def record(context):
    """The answers to compare with from now on."""
    answers = []
    for prompt in context.golden_prompts:
        text, _, probabilities = context.api.complete(context.model, prompt, context.golden_tokens)
        check_answer(text, probabilities, context.golden_tokens)
        answers.append({"prompt": prompt, "tokens": context.golden_tokens, "text": text})
    return "%d answers" % len(answers), {"golden": answers}


def streamed(context, prompt, tokens):
    """One streamed answer: (text, seconds to its first token, seconds from there to its last)."""
    path = "/v1/completions"
    parts, times = [], []
    for seconds, part in context.api.stream(path, greedy(context.model, prompt, tokens)):
        for choice in part_of(part, path, list, "choices"):
            parts.append(part_of(choice, path, str, "text"))
            times.append(seconds)
    if not times:
        raise CheckFailed("a stream without a token")
    return "".join(parts), times[0], times[-1] - times[0]


def run_concurrently(jobs, concurrency):
    """Results of `jobs` (functions), `concurrency` at a time, in their order. Raises the first error."""
    results, errors, turn, lock = [None] * len(jobs), [], iter(range(len(jobs))), threading.Lock()

    def work():
        while not errors:
            with lock:
                number = next(turn, None)
            if number is None:
                return
            try:
                results[number] = jobs[number]()
            except Exception as error:
                errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(concurrency)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results


def load(context):
    """Many streams at once: none is lost, and each answers its own question."""
    tokens = min(32, context.max_model_len - 64)
    subjects = [SUBJECTS[number % len(SUBJECTS)] for number in range(context.requests)]
    prompts = ["%d. A story about %s:" % item for item in enumerate(subjects)]
    alone = [streamed(context, prompt, tokens)[0] for prompt in prompts]
    started = time.time()
    jobs = [lambda prompt=prompt: streamed(context, prompt, tokens) for prompt in prompts]
    answers = run_concurrently(jobs, context.concurrency)
    seconds = time.time() - started
    differ = [number for number, answer in enumerate(answers) if answer[0] != alone[number]]
    if len(differ) > TIES * len(prompts):
        number = differ[0]
        raise CheckFailed("%d of %d answers are not those given alone, such as %r instead of %r" % (
            len(differ), len(prompts), answers[number][0], alone[number]
        ))
    figures = {
        "requests": len(prompts), "concurrency": context.concurrency, "tokens": tokens, "seconds": round(seconds, 2),
        "tokens_per_second": round(len(prompts) * tokens / seconds, 1), "differ": len(differ),
        "first_token": latencies([first for _, first, _ in answers]),
        "each_token": latencies([rest / max(tokens - 1, 1) for _, _, rest in answers]),
    }
    return "%d streams, %d at a time: %.1f tok/s, first token %.2f s, each %.0f ms (median)" % (
        len(prompts), context.concurrency, figures["tokens_per_second"], figures["first_token"]["p50"],
        1000 * figures["each_token"]["p50"],
    ), figures


def choose(context, question):
    """One decision: (token, seconds). Raises CheckFailed if its probabilities are none."""
    prompt = "Question: %s\nAnswer with yes or no.\nAnswer:" % question
    body = dict(greedy(context.model, prompt, 1), logprobs=5)
    path = "/v1/completions"
    started = time.time()
    answer = context.api.ask(path, body)
    seconds = time.time() - started
    text = part_of(answer, path, str, "choices", 0, "text")
    check_answer(text, part_of(answer, path, list, "choices", 0, "logprobs", "token_logprobs"), 1)
    likely = part_of(answer, path, dict, "choices", 0, "logprobs", "top_logprobs", 0)
    check_answer(text, list(likely.values()), len(likely))
    if not likely or sum(math.exp(value) for value in likely.values()) > 1.001:
        raise CheckFailed("probabilities that add up to more than one: %s" % likely)
    return text, seconds


def multiple_choice(context):
    """Many questions of one token each, with probabilities; one question has one answer."""
    questions = [QUESTIONS[number % len(QUESTIONS)] for number in range(context.requests)]
    given = {question: set() for question in QUESTIONS}
    started = time.time()
    jobs = [lambda question=question: choose(context, question) for question in questions]
    answers = run_concurrently(jobs, context.concurrency)
    seconds = time.time() - started
    for number, (answer, _) in enumerate(answers):
        given[questions[number]].add(answer)
    for question, texts in sorted(given.items()):
        if len(texts) > 1:
            raise CheckFailed("%s answered to %r" % (sorted(texts), question))
    figures = {
        "decisions": len(questions), "per_second": round(len(questions) / seconds, 2),
        "latency": latencies([taken for _, taken in answers]),
    }
    return "%d decisions, %.1f a second, %.2f s each (median)" % (
        len(questions), figures["per_second"], figures["latency"]["p50"]
    ), figures


def output_of(*command):
    """Return the output of a command. Raises CheckFailed."""
    try:
        return subprocess.check_output(
            command, stderr=subprocess.STDOUT, encoding="utf-8", errors="replace", timeout=60
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise CheckFailed("%s: %s" % (command[0], getattr(error, "output", None) or error))


def unit_of(pid):
    """The systemd unit of a process; empty if it has none or is gone."""
    return facts.unit_of(facts.read("/proc/%s/cgroup" % pid)) or ""


def query(what, *fields):
    """Return nvidia-smi's answer to a query. Raises CheckFailed."""
    fine, text = smi.query("nvidia-smi", fields, what=what)
    if not fine:
        raise CheckFailed(text)
    return text


def memory(context):
    """The server's ranks on each of its GPUs, and nobody else there."""
    if context.device == "cpu":
        raise CheckSkipped("the CPU computes")
    used = smi.processes(
        query("gpu", "index", "pci.bus_id"), query("compute-apps", "pid", "gpu_bus_id", "used_memory")
    )
    return check_memory(used, context.dies, "vllm@%s.service" % context.name, unit_of)


def check_memory(used, gpus, unit, unit_of_pid):
    """As `memory`. used: what smi.processes returned. unit_of_pid: function of a process id."""
    ours = {gpu for gpu, pid, _ in used if unit_of_pid(pid) == unit}
    missing = [gpu for gpu in gpus if gpu not in ours]
    if missing:
        raise CheckFailed("no process of %s on GPU %s" % (unit, ", ".join(map(str, missing))))
    # Another server of this project may share a GPU: the inventory says so.
    foreign = [
        "process %d on GPU %s" % (pid, gpu) for gpu, pid, _ in used
        if gpu in gpus and not unit_of_pid(pid).startswith("vllm@")
    ]
    if foreign:
        raise CheckFailed("beside it: " + ", ".join(foreign))
    amounts = {str(gpu): amount for gpu, pid, amount in used if unit_of_pid(pid) == unit}
    return ", ".join("GPU %s: %s MiB" % item for item in sorted(amounts.items())), {"mib": amounts}


def log(context):
    """Check the log since the server's start: our engine and backend, and nothing that the GPUs cannot do."""
    unit = "vllm@%s.service" % context.name
    invocation = output_of("systemctl", "show", unit, "--property", "InvocationID").strip().partition("=")[2]
    if not invocation:
        raise CheckFailed("%s does not run" % unit)
    try:
        table = table_of(context.api.version())
    except ValueError as error:
        raise CheckFailed(str(error))
    return check_log(
        output_of("journalctl", "--quiet", "--no-pager", "--output", "cat", "_SYSTEMD_INVOCATION_ID=" + invocation),
        table, context.dtype, context.cuda_graphs, context.device,
    )


def check_log(text, table, dtype, cuda_graphs=False, device="kepler"):
    """As `log`, of the log's text. table: of this version of vLLM."""
    kinds = ["always", dtype] + (["cpu"] if device == "cpu" else ["gpu", "graphs" if cuda_graphs else "eager"])
    wanted = [line for kind in kinds for line in table.LOG_WANTED.get(kind, ())]
    missing = [line for line in wanted if line not in text]
    if missing:
        raise CheckFailed("no line with: " + ", ".join(missing))
    own = "\n".join(line for line in text.splitlines() if not re.search(table.REQUEST_FAULTS, line))
    found = [word for word in table.LOG_UNWANTED if word in own]
    if found:
        raise CheckFailed("lines with: " + ", ".join(found))
    return ", ".join(wanted), {}


CHECKS = {
    "completion": completion, "chat": chat, "chat_stream": chat_stream, "log": log, "memory": memory,
    "coherent": coherent, "golden": golden, "load": load, "decisions": multiple_choice, "record": record,
}
