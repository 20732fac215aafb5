import pytest
from role_play import overlay, play  # noqa: F401
from simulated import Box


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path)
