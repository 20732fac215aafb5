"""What the static tests look at: the files of the repository, its roles and their tasks."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
