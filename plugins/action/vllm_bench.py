"""Shows that the module vllm_bench is at work; see modules/vllm_bench.py."""

from __future__ import annotations

from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import WaitingAction


class ActionModule(WaitingAction):
    pass
