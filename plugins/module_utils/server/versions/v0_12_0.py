"""vLLM 0.12.0 with the V1 engine, as it is released: the lines of its log and the metrics that are read. Data only."""

# Whether one model spans hosts by Ray, or by ranks that vLLM starts on each of them itself.
RAY = False
# How the title of a rank's process begins.
RANK = b"VLLM::Worker"

# Phases of a start, by a regular expression of the lines that a server writes; the last one seen counts.
PHASES = (
    (r"Initializing a V1 LLM engine", "starting the ranks"),
    (r"Loading \w+ checkpoint shards: +(\d+)%", "loading weights, {} %"),
    (r"Starting to load model|Loading weights on", "loading weights"),
    (r"Loading weights took|Dynamo bytecode transform time|Warming up model for the comp", "compiling the model"),
    (r"Directly load the compiled graph|Compiling a graph for|torch.compile takes",
     "measuring memory for the KV cache"),
    (r"(?:GPU|CPU) KV cache size: ([\d,]+) tokens", "preparing a KV cache of {} tokens"),
    (r"Capturing CUDA graphs .*: +(\d+)%", "capturing CUDA graphs, {} %"),
    (r"Starting vLLM API server|Application startup complete", "warm-up: waiting for the first token"),
)

# Requests before a server is ready, by what they compile: Triton makes a kernel when it is first asked for it.
WARM_UP = (
    ("a long prompt", {"prompt": "1 " * 100, "max_tokens": 4, "temperature": 0}),
    ("a prompt that is in the cache", {"prompt": "1 " * 100 + "2", "max_tokens": 4, "temperature": 0}),
    ("sampling", {
        "prompt": "1", "max_tokens": 4, "temperature": 0.8, "top_p": 0.9, "top_k": 20, "min_p": 0.01, "seed": 1,
        "presence_penalty": 0.1, "repetition_penalty": 1.1, "logprobs": 2,
    }),
    ("a guide", {
        "prompt": "1", "max_tokens": 4, "temperature": 0, "structured_outputs": {"regex": "[0-9]{4}"},
    }),
)

# Lines in the log of a sound server: always, by dtype, by the device and by the key cuda_graphs.
LOG_WANTED = {
    "always": ("V1 LLM engine",),
    "float32": ("dtype=torch.float32",),
    "half": ("dtype=torch.float16",),
    "gpu": ("TRITON_ATTN",),
    "eager": ("enforce_eager=True",),
    "graphs": ("enforce_eager=False", "Graph capturing finished"),
}
# Words that it never has: types that these GPUs have not, and errors.
LOG_UNWANTED = ("dtype=torch.bfloat16", "Traceback")

# What the module of a request's endpoint writes: a client's mistake, no fault of the server.
REQUEST_FAULTS = r"\[serving_\w+\.py:\d+\]"
# Lines of the end of an engine or of a rank: the reason, where no error was named before.
ENGINE_ENDS = (r"(?:Engine core|Worker) proc \S+ died unexpectedly",)

# Fields of a request that another version obeys and this one ignores: a value that means nothing, and what to send.
IGNORED_FIELDS = {
    "guided_json": (None, 'structured_outputs: {"json": ...}'),
    "guided_regex": (None, 'structured_outputs: {"regex": ...}'),
    "guided_choice": (None, 'structured_outputs: {"choice": [...]}'),
    "guided_grammar": (None, 'structured_outputs: {"grammar": ...}'),
    "guided_whitespace_pattern": (None, 'structured_outputs: {"regex": ...}'),
    "best_of": (1, "n, and choose among the answers"),
}
# Paths that stop or change the server for all, or take what nobody has checked.
CLOSED_PATHS = ("/pause", "/resume", "/is_paused", "/scale_elastic_ep", "/is_scaling_elastic_ep",
                "/inference/v1/generate")

# Names of the metrics that the supervisor, the alert rules and the dashboard read.
METRICS = {
    "prompt_tokens": "vllm:prompt_tokens_total",
    "generation_tokens": "vllm:generation_tokens_total",
    "requests_running": "vllm:num_requests_running",
    "requests_waiting": "vllm:num_requests_waiting",
    "requests_finished": "vllm:request_success_total",
    "preemptions": "vllm:num_preemptions_total",
    "kv_cache_usage": "vllm:kv_cache_usage_perc",
    "queue_time": "vllm:request_queue_time_seconds_bucket",
    "time_to_first_token": "vllm:time_to_first_token_seconds_bucket",
    "time_per_output_token": "vllm:inter_token_latency_seconds_bucket",
    "request_latency": "vllm:e2e_request_latency_seconds_bucket",
}
