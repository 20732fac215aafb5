"""One server under systemd: a supervisor beside vLLM, and the admission in front of its API.

The supervisor (`python -m vllm_serving NAME OPTIONS.yaml GENERATION`) needs the standard library alone: it is there
before torch and vLLM are, and when they hang. A port of vLLM names its own command line and middleware by the entry
point group `vllm_serving`; nothing here imports it.
"""
