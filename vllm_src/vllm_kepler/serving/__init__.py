"""One server under systemd: a supervisor beside `vllm serve`, and the door in front of its API.

The supervisor (`python -m vllm_kepler.serving NAME OPTIONS.yaml GENERATION`) imports neither torch nor vLLM: it is
there before they are, and when they hang. The door is an ASGI middleware that vLLM loads by its option `--middleware`.
"""
