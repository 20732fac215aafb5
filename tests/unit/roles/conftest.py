"""What the tests of roles share: the fixture `play`, and what the store's tests share."""

import sys
from pathlib import Path

from role_play import overlay, play  # noqa: F401

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "store"))
