"""Shows that the module store_gc is at work; see modules/store_gc.py."""

from __future__ import annotations

from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import WaitingAction


class ActionModule(WaitingAction):
    pass
