"""What all unit tests share lies beside this file."""

import contextlib
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(Path(__file__).resolve().parent))
# Host code under the name `module_utils`: it is tested with a Python that has no Ansible, too.
sys.path.insert(0, str(ROOT / "plugins"))
# The supervisor, which runs on any Python with what it imports.
sys.path.insert(0, str(ROOT / "vllm_src"))
# Before anything of the collection is imported, which Ansible then finds; a host's Python has no Ansible.
with contextlib.suppress(ImportError):
    from ansible.plugins.loader import init_plugin_loader

    init_plugin_loader([str(ROOT / "collections")])
