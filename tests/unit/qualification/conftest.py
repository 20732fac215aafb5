import pytest
from simulated import Box


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path)
