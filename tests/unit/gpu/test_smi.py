"""An nvidia-smi that fails, says nothing or never answers."""

import pytest
from module_utils.gpu import smi


@pytest.fixture
def program(tmp_path):
    """Function that makes an nvidia-smi of a script."""

    def make(script):
        path = tmp_path / "nvidia-smi"
        path.write_text("#!/bin/sh\n" + script + "\n")
        path.chmod(0o755)
        return str(path)

    return make


@pytest.mark.parametrize(
    ("script", "answer"),
    [
        ("echo a; echo b >&2", (True, "a\nb")),
        ("echo lost; exit 15", (False, "lost")),
        ("exit 9", (False, "{} ended with status 9 and said nothing")),
        ("kill -KILL $$", (False, "{} ended with status -9 and said nothing")),
        ("exec sleep 60", (False, "{} did not answer within 1 s")),
    ],
)
def test_what_it_says_and_whether_it_succeeded(program, script, answer):
    path = program(script)
    fine, text = smi.smi(path, [], timeout=1)
    assert (fine, text) == (answer[0], answer[1].format(path))


def test_a_program_that_is_missing(tmp_path):
    fine, text = smi.smi(str(tmp_path / "none"), [])
    assert not fine and "No such file" in text


def test_query_asks_for_bare_values(program):
    assert smi.query(program('echo "$@"'), ("a", "b")) == (True, "--query-gpu=a,b --format=csv,noheader,nounits")
