"""The filters, and what they share with modules, are imported as they lie in the repository."""

import sys
from pathlib import Path

PLUGINS = Path(__file__).resolve().parents[3] / "plugins"
sys.path[:0] = [str(PLUGINS / name) for name in ("filter", "module_utils", "plugin_utils")]
