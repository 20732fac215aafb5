import pytest
from supervised import Supervised


@pytest.fixture
def unit(tmp_path):
    unit = Supervised(tmp_path)
    yield unit
    unit.close()
