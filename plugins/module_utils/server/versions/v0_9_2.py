"""vLLM 0.9.2 with the V0 engine and the port: the lines of its log and the metrics that are read. Data only."""

# Whether one model spans hosts by Ray, or by ranks that vLLM starts on each of them itself.
RAY = True

# Phases of a start, by a regular expression of the lines that a server writes; the last one seen counts.
PHASES = (
    (r"Loading \w+ checkpoint shards: +(\d+)%", "loading weights, {} %"),
    (r"Starting to load model|Loading weights on", "loading weights"),
    (r"Initializing a V0 LLM engine", "starting the ranks"),
    (r"Loading weights took", "measuring memory for the KV cache"),
    (r"# \w+ blocks: (\d+)", "preparing a KV cache of {} blocks"),
    (r"Starting vLLM API server|Application startup complete", "warm-up: waiting for the first token"),
)

# Requests before a server is ready, by what they compile.
WARM_UP = ()

# Lines in the log of a sound server: always, by dtype, device and the key cuda_graphs. Half is how weights are stored;
# the engine computes in float32 either way.
LOG_WANTED = {
    "always": ("V0 LLM engine", "Torch SDPA attention backend", "dtype=torch.float32"),
    "half": ("dtype: half",),
    "cpu": ("enforce_eager=True",),
    "eager": ("enforce_eager=True",),
    "graphs": ("enforce_eager=False", "CUDA graphs: captured"),
}
# Words that it never has: kernels that a K80 cannot run, and errors.
LOG_UNWANTED = ("FlashAttention", "xformers", "Triton", "Traceback")

# What the module of a request's endpoint writes: a client's mistake, no fault of the server.
REQUEST_FAULTS = r"\[serving_\w+\.py:\d+\]"
# Lines of the end of an engine or of a rank: the reason, where no error was named before.
ENGINE_ENDS = ()

# Fields of a request that another version obeys and this one ignores: a value that means nothing, and what to send.
IGNORED_FIELDS = {"structured_outputs": (None, "guided_json, guided_regex, guided_choice or guided_grammar")}
# Paths that stop or change the server for all, or take what nobody has checked.
CLOSED_PATHS = ()

# Names of the metrics that the supervisor, the alert rules and the dashboard read.
METRICS = {
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
    "requests_running": "vllm:num_requests_running",
    "requests_waiting": "vllm:num_requests_waiting",
    "requests_finished": "vllm:request_success_total",
    "preemptions": "vllm:num_preemptions_total",
    "kv_cache_usage": "vllm:gpu_cache_usage_perc",
    "queue_time": "vllm:request_queue_time_seconds_bucket",
    "time_to_first_token": "vllm:time_to_first_token_seconds_bucket",
    "time_per_output_token": "vllm:time_per_output_token_seconds_bucket",
    "request_latency": "vllm:e2e_request_latency_seconds_bucket",
}
