"""Shows that the module rpm_download is at work; see modules/rpm_download.py."""

from __future__ import annotations

from ansible_collections.kepler.vllm.plugins.plugin_utils.polling import WaitingAction


class ActionModule(WaitingAction):
    pass
