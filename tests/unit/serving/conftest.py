import sys

import pytest
from supervised import ROOT, Supervised

sys.path.insert(0, str(ROOT / "vllm_src"))


@pytest.fixture
def unit(tmp_path):
    unit = Supervised(tmp_path)
    yield unit
    unit.close()
