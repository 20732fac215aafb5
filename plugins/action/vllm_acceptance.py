"""Shows that the module vllm_acceptance is at work; see modules/vllm_acceptance.py."""

from __future__ import annotations

from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import WaitingAction


class ActionModule(WaitingAction):
    pass
