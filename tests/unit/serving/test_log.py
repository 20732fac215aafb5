"""The server's log and its metrics, as the versions of vLLM write them."""

import pytest
from vllm_serving.client import PROBE_MARK, Answer, has_token, total
from vllm_serving.log import MOST_PATTERNS, Log, error_of, is_probe, phase_of
from vllm_serving.versions import v0_9_2, v0_12_0

PHASES = v0_9_2.PHASES

WORKER = "\x1b[1;36m(VllmWorkerProcess pid=14283)\x1b[0;0m "
LIFE = [
    ("INFO 11-21 09:06:13 [api_server.py:1395] vLLM API server version 0.9.2", "starting vLLM"),
    ("INFO 11-21 09:06:19 [api_server.py:268] Started engine process with PID 13781", "starting vLLM"),
    ("INFO 11-21 09:06:25 [llm_engine.py:230] Initializing a V0 LLM engine (v0.9.2) with config: model='/srv/x', "
     "speculative_config=None", "starting the ranks"),
    (WORKER + "INFO 11-21 09:06:32 [multiproc_worker_utils.py:226] Worker ready; awaiting tasks", "starting the ranks"),
    ("INFO 11-21 09:06:32 [parallel_state.py:1076] rank 0 in world size 2 is assigned as DP rank 0, PP rank 0, TP rank "
     "0, EP rank 0", "starting the ranks"),
    ("INFO 11-21 09:06:32 [cuda_model_runner.py:1171] Starting to load model /srv/x...", "loading weights"),
    ("Loading safetensors checkpoint shards:   0% Completed | 0/4 [00:00<?, ?it/s]", "loading weights, 0 %"),
    ("Loading safetensors checkpoint shards:  75% Completed | 3/4 [01:00<00:20, 20.00s/it]", "loading weights, 75 %"),
    ("Loading pt checkpoint shards: 100% Completed | 1/1 [00:00<00:00, 159.29it/s]", "loading weights, 100 %"),
    ("INFO 11-21 09:06:32 [default_loader.py:272] Loading weights took 0.01 seconds",
     "measuring memory for the KV cache"),
    ("INFO 11-21 09:06:32 [executor_base.py:113] # cuda blocks: 32768, # CPU blocks: 0",
     "preparing a KV cache of 32768 blocks"),
    ("INFO 11-21 09:06:32 [executor_base.py:118] Maximum concurrency for 1024 tokens per request: 512.00x",
     "preparing a KV cache of 32768 blocks"),
    ("INFO 11-21 09:06:33 [llm_engine.py:428] init engine (profile, create kv cache, warmup model) took 0.49 seconds",
     "preparing a KV cache of 32768 blocks"),
    ("INFO 11-21 09:06:34 [api_server.py:1457] Starting vLLM API server 0 on http://127.0.0.1:8721",
     "warm-up: waiting for the first token"),
    ("INFO:     Application startup complete.", "warm-up: waiting for the first token"),
]  # fmt: skip


CORE = "\x1b[0;36m(EngineCore_DP0 pid=30015)\x1b[0;0m "
# Lines of the CPU build's own start; those of a GPU in between have the form of the format strings in its source.
LIFE_0_12_0 = [
    ("(APIServer pid=28190) INFO 11-30 07:13:08 [api_server.py:1772] vLLM API server version 0.12.0", "starting vLLM"),
    (CORE + "INFO 11-30 07:13:47 [core.py:93] Initializing a V1 LLM engine (v0.12.0) with config: model='/srv/x'",
     "starting the ranks"),
    (CORE + "INFO 11-30 07:13:48 [gpu_model_runner.py:3468] Starting to load model /srv/x...", "loading weights"),
    ("Loading safetensors checkpoint shards:  75% Completed | 3/4 [01:00<00:20, 20.00s/it]", "loading weights, 75 %"),
    (CORE + "INFO 11-30 07:13:48 [default_loader.py:308] Loading weights took 0.01 seconds", "compiling the model"),
    (CORE + "INFO 11-30 07:13:48 [gpu_model_runner.py:3549] Model loading took 1.2 GiB memory and 3.0 seconds",
     "compiling the model"),
    (CORE + "INFO 11-30 07:13:49 [backends.py:715] Dynamo bytecode transform time: 9.12 s", "compiling the model"),
    (CORE + "INFO 11-30 07:14:40 [backends.py:288] Compiling a graph for dynamic shape takes 48.33 s",
     "measuring memory for the KV cache"),
    (CORE + "INFO 11-30 07:14:48 [kv_cache_utils.py:1286] GPU KV cache size: 524,288 tokens",
     "preparing a KV cache of 524,288 tokens"),
    ("Capturing CUDA graphs (mixed prefill-decode, PIECEWISE):  43%|####3     | 22/51 [00:02<00:03,  9.07it/s]",
     "capturing CUDA graphs, 43 %"),
    (CORE + "INFO 11-30 07:15:18 [core.py:254] init engine (profile, create kv cache, warmup model) took 29.55 seconds",
     "capturing CUDA graphs, 43 %"),
    ("(APIServer pid=28190) INFO 11-30 07:14:19 [api_server.py:1847] Starting vLLM API server 0 on http://127.0.0.1:1",
     "warm-up: waiting for the first token"),
    ("(APIServer pid=28190) INFO:     Application startup complete.", "warm-up: waiting for the first token"),
]  # fmt: skip


@pytest.mark.parametrize(("table", "life"), [(v0_9_2, LIFE), (v0_12_0, LIFE_0_12_0)], ids=["0.9.2", "0.12.0"])
def test_the_phases_of_a_start(table, life):
    log, seen = Log(table), []
    for line, _ in life:
        log.feed(f"{line}\n".encode())
        seen.append(log.phase)
    assert seen == [phase for _, phase in life]
    assert log.error is None


ERRORS = [
    ("ValueError: dtype: found float16; expected float32", "ValueError: dtype: found float16; expected float32"),
    ("ERROR 11-21 09:00:00 [engine.py:458] RuntimeError: NCCL error: unhandled system error",
     "RuntimeError: NCCL error: unhandled system error"),
    (WORKER + "ERROR 11-21 09:00:00 [multiproc_worker_utils.py:239] torch.cuda.OutOfMemoryError: CUDA out of memory.",
     "torch.cuda.OutOfMemoryError: CUDA out of memory."),
    (WORKER + "ValueError: rank 1 has no die", "ValueError: rank 1 has no die"),
    ("main.py: error: unrecognized arguments: --no-such-option", "error: unrecognized arguments: --no-such-option"),
    ("main.py serve: error: argument --dtype: invalid choice: 'float31' (choose from 'auto', 'float32')",
     "error: argument --dtype: invalid choice: 'float31' (choose from 'auto', 'float32')"),
    ("  Value error, max_model_len (4096) is greater than the derived one (1024). [type=value_error, input_value=x]",
     "Value error, max_model_len (4096) is greater than the derived one (1024). [type=value_error, input_value=x]"),
    ("VLLM_KEPLER_DEVICE: found 'gpu'; expected cpu or nothing.",
     "VLLM_KEPLER_DEVICE: found 'gpu'; expected cpu or nothing."),
    ("OSError: [Errno 98] Address already in use", "OSError: [Errno 98] Address already in use"),
]  # fmt: skip
NO_ERRORS = [
    "RuntimeError: Engine process failed to start. See stack trace for the root cause.",
    "ERROR 11-21 09:00:00 [x.py:1] RuntimeError: Worker failed. Inspect the stacktrace above.",
    "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig",
    "asyncio.exceptions.CancelledError: deadline",
    "WARNING 11-21 09:06:36 [protocol.py:58] The following fields were present in the request but ignored: {'prompt'}",
    "    raise ValueError(message)",
    "Traceback (most recent call last):",
    'INFO:     127.0.0.1:39072 - "POST /v1/completions HTTP/1.1" 400 Bad Request',
    "INFO 11-21 09:06:19 [config.py:841] This model supports multiple tasks: {'generate'}. Defaulting to 'generate'.",
    "",
]  # fmt: skip


@pytest.mark.parametrize(("line", "error"), ERRORS)
def test_lines_that_name_an_error(line, error):
    log = Log(v0_9_2)
    log.feed(f"{line}\nTraceback (most recent call last):\n".encode())
    assert log.error == error


# As 0.12.0 wrote them: two requests that it refused, then the kernel ended its engine.
API = "\x1b[0;36m(APIServer pid=18080)\x1b[0;0m "
REFUSED = f"""\
{API}ERROR 11-30 11:05:50 [serving_completion.py:137] Traceback (most recent call last):
{API}ERROR 11-30 11:05:50 [serving_completion.py:137] ValueError: This model's maximum context length is 1024 tokens.
{API}INFO:     127.0.0.1:38432 - "POST /v1/completions HTTP/1.1" 400 Bad Request
"""
KILLED = f"""\
{API}ERROR 11-30 11:05:51 [core_client.py:600] Engine core proc EngineCore_DP0 died unexpectedly, shutting down client.
{API}ERROR 11-30 11:05:51 [async_llm.py:546] AsyncLLM output_handler failed.
{API}ERROR 11-30 11:05:51 [async_llm.py:546] vllm.v1.engine.exceptions.EngineDeadError: See stack trace (above).
"""
LOST = f"""\
{CORE}ERROR 11-30 11:10:50 [multiproc_executor.py:233] Worker proc VllmWorker-1 died unexpectedly, shutting down.
{CORE}ERROR 11-30 11:10:54 [core.py:845] RuntimeError: canceled
"""
FAILED = f"{CORE}ERROR 11-30 11:05:50 [core.py:845] torch.OutOfMemoryError: CUDA out of memory.\n"


@pytest.mark.parametrize(("text", "error"), [
    (REFUSED, None), (REFUSED + KILLED, "Engine core proc EngineCore_DP0 died unexpectedly"),
    (FAILED + KILLED, "torch.OutOfMemoryError: CUDA out of memory."),
    (FAILED + REFUSED + KILLED, "torch.OutOfMemoryError: CUDA out of memory."),
    (REFUSED + LOST + KILLED, "Worker proc VllmWorker-1 died unexpectedly"),
])
def test_end_of_an_engine_is_no_fault_of_a_request(text, error):
    log = Log(v0_12_0)
    log.feed(text.encode())
    assert log.error == error


@pytest.mark.parametrize("line", NO_ERRORS)
def test_lines_that_name_none(line):
    assert error_of(line) is None


def test_the_last_error_counts_and_is_cut():
    log = Log(v0_9_2)
    log.feed(b"ValueError: the first\nValueError: " + b"a" * 1000 + b"\nRuntimeError: failed. See stack trace.\n")
    assert log.error == "ValueError: " + "a" * 288


@pytest.mark.parametrize("line", [line for line, _ in LIFE[:2]] + NO_ERRORS)
def test_lines_without_a_phase(line):
    assert phase_of(line, PHASES) is None


def test_own_questions_are_not_passed_on():
    """And only those: nobody else knows the mark."""
    own = f'INFO:     127.0.0.1:39072 - "GET /health{PROBE_MARK} HTTP/1.0" 200 OK'
    other = 'INFO:     127.0.0.1:39072 - "GET /health?probe-0123456789abcdef HTTP/1.1" 200 OK'
    assert is_probe(own)
    assert Log(v0_9_2).feed(f"{own}\n{other}\n{own}\n".encode()) == [other]


def test_lines_come_in_pieces():
    log = Log(v0_9_2)
    assert log.feed("INFO a\nINFO wäre".encode()[:-3]) == ["INFO a"]
    assert log.feed("äre".encode()[1:]) == []
    assert log.feed(b"\r\n\r\n") == ["INFO wäre"]
    # A progress bar's lines end with a carriage return alone.
    bar = b"\rLoading safetensors checkpoint shards:  50% Completed | 1/2 [00:00<?, ?it/s]\r"
    assert len(log.feed(bar)) == 1
    assert log.phase == "loading weights, 50 %"
    assert log.feed(b"\xff\xfe\n") == ["��"]


def test_a_line_that_repeats_is_no_progress():
    log = Log(v0_9_2)
    for number in range(100):
        log.feed(f"WARNING 11-21 09:06:{number:02} No available shared memory block in {number} s\n".encode())
    assert len(log.seen_patterns) == 1
    log.feed("".join(f"{'a' * number}\n" for number in range(1, MOST_PATTERNS // 10)).encode())
    assert len(log.seen_patterns) == MOST_PATTERNS // 10
    lines = (f"{'b' * (number // 200)}{'c' * (number % 200)}\n" for number in range(2 * MOST_PATTERNS))
    log.feed("".join(lines).encode())
    assert len(log.seen_patterns) == MOST_PATTERNS


METRICS = """\
# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{model_name="license"} 12.0
# TYPE vllm:prompt_tokens_created gauge
vllm:prompt_tokens_created{model_name="license"} 1.7637161e+09
vllm:generation_tokens_total{model_name="license"} 1.5e+06
vllm:generation_tokens_total{engine="1",model_name="a } 7"} 1.0
vllm:num_requests_running{model_name="license"} 3.0
vllm:num_requests_waiting{model_name="license"} 0.0
vllm:request_prompt_tokens_bucket{le="1.0",model_name="license"} 99.0
process_open_fds 47.0
"""


def test_totals():
    assert total(METRICS, "vllm:prompt_tokens_total") == 12
    assert total(METRICS, "vllm:prompt_tokens_total", "vllm:generation_tokens_total") == 1_500_013
    assert total(METRICS, "vllm:num_requests_running") == 3
    assert total(METRICS, "process_open_fds") == 47
    assert total(METRICS, "vllm:prompt_tokens", "requests_running") == 0
    assert total("", "process_open_fds") == 0
    with pytest.raises(ValueError):
        total("process_open_fds many\n", "process_open_fds")


ANSWERS = [
    (Answer(200, {}, '{"choices": [{"text": ""}]}'), True),
    (Answer(200, {}, '{"choices": [{"index": 0}]}'), False),
    (Answer(200, {}, '{"choices": []}'), False),
    (Answer(200, {}, "[]"), False),
    (Answer(200, {}, "null"), False),
    (Answer(200, {}, "<html>"), False),
    (Answer(500, {}, '{"choices": [{"text": "a"}]}'), False),
    (None, False),
]


@pytest.mark.parametrize(("answer", "whether"), ANSWERS)
def test_what_a_token_is(answer, whether):
    assert has_token(answer) is whether
