"""Host code is imported as it lies in the repository; this runs under Python 3.6 too."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "plugins" / "module_utils"))
