"""Work that outlives its module: its start, and results that later calls take."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from module_utils import jobs

PLUGINS = str(Path(__file__).resolve().parents[3] / "plugins")
MODULE = """
import sys, time
sys.path.insert(0, sys.argv[1])
from module_utils import jobs

def work():
    while not open(sys.argv[2]).read():
        time.sleep(0.01)
    jobs.write_result([sys.argv[3]], msg="done")

jobs.start(work)
"""


def test_started_work_outlives_its_module_and_its_pipes(tmp_path):
    go, result = tmp_path / "go", tmp_path / "result.json"
    go.write_text("")
    # Returns only once nobody holds the pipe.
    command = [sys.executable, "-c", MODULE, PLUGINS, str(go), str(result)]
    assert subprocess.check_output(command, stderr=subprocess.STDOUT) == b""
    assert jobs.take_result([str(result)]) == {}
    go.write_text("go")
    late = time.time() + 10
    while not result.exists() and time.time() < late:
        time.sleep(0.01)
    assert jobs.take_result([str(result)]) == {"msg": "done"}


def test_result_goes_where_there_is_room_and_is_taken_once(tmp_path):
    paths = [str(tmp_path / "missing" / "a.json"), str(tmp_path / "b.json")]
    jobs.write_result(paths, msg="full disk")
    assert os.listdir(str(tmp_path)) == ["b.json"]
    assert jobs.take_result(paths) == {"msg": "full disk"}
    assert jobs.take_result(paths) == {}
    assert os.listdir(str(tmp_path)) == []


@pytest.mark.parametrize("text", ['{"msg": "ha', "[]", '{"msg": 3}', ""])
def test_truncated_result_is_ignored(tmp_path, text):
    (tmp_path / "a.json").write_text(text)
    assert jobs.take_result([str(tmp_path / "a.json")]) == {}
