"""The action plugin store_output on this machine: progress, failures, and work that nobody waited for."""

import json
import subprocess

import pytest
from recipes import needs_namespaces

pytestmark = needs_namespaces


@pytest.fixture
def output(play, tmp_path):
    """Function that makes an output by the action plugin: (exit status, output)."""

    def run(builder, *options):
        task = {"name": "Make it", "store_output": {
            "root": str(tmp_path / "kepler"), "name": "hello", "version": "1", "builder": builder,
        }}
        show = {"name": "Show", "ansible.builtin.debug": {"var": "store_outputs.hello"}}
        return play([task, show], *options, gather_facts=False)

    yield run
    subprocess.run(["chmod", "-R", "u+w", tmp_path / "kepler"], check=True)


def test_made_once(output, tmp_path):
    assert output('touch "$out/built"', "--check")[0] == 0
    assert not (tmp_path / "kepler").exists()
    status, printed = output('touch "$out/built"')
    assert status == 0, printed
    assert "changed=1" in printed
    (path,) = (tmp_path / "kepler" / "store").iterdir()
    assert str(path) in printed
    assert (path / "built").exists()
    assert "changed=0" in output('touch "$out/built"')[1]


def test_a_failure_is_told_and_then_tried_again(output, tmp_path):
    marker = tmp_path / "passes"
    builder = f'test -e {marker} || {{ echo "the reason"; exit 7; }}; touch "$out/built"'
    status, printed = output(builder)
    assert status != 0
    assert "hello 1: the builder ended with status 7" in printed
    assert "the reason" in printed
    marker.touch()
    assert output(builder)[0] == 0


def test_a_failure_that_nobody_waited_for_is_no_news(output, tmp_path):
    """Its controller went away; the cause may be gone."""
    status, printed = output('touch "$out/built"')
    assert status == 0, printed
    (path,) = (tmp_path / "kepler" / "store").iterdir()
    result = tmp_path / "kepler" / "build" / f"{path.name.split('-')[0]}.result.json"
    subprocess.run(["rm", "-rf", path], check=True)
    result.write_text(json.dumps({"msg": "an old failure"}))
    status, printed = output('touch "$out/built"')
    assert status == 0, printed
    assert path.exists()
    assert not result.exists()
