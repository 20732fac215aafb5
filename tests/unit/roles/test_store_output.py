"""The action plugin store_output on this machine: progress, failures, work nobody waited for, files handed over."""

import hashlib
import json
import subprocess

import pytest
from recipes import needs_namespaces

pytestmark = needs_namespaces


@pytest.fixture
def output(play, tmp_path):
    """Function that makes an output by the action plugin: (exit status, output)."""

    def run(builder, *options, sources=()):
        task = {"name": "Make it", "kepler.vllm.store_output": {
            "root": str(tmp_path / "kepler"), "name": "hello", "version": "1", "builder": builder,
            "sources": list(sources), "index_urls": ["http://127.0.0.1:9/simple"],
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


def test_other_names_are_exported_beside_later_outputs(play, tmp_path):
    tasks = [
        {"name": "Make it", "kepler.vllm.store_output": {
            "root": str(tmp_path / "kepler"), "version": "1", "builder": 'touch "$out"', "index_urls": [], **named,
        }} for named in ({"name": "first", "also": ["any"]}, {"name": "second"})
    ]
    found = {"that": ["store_outputs | list == ['first', 'any', 'second']", "store_outputs.any == store_outputs.first",
                      "store_outputs.second is search('-second-1$')"]}
    status, printed = play([*tasks, {"name": "Compare", "ansible.builtin.assert": found}], gather_facts=False)
    assert status == 0, printed


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


@pytest.fixture
def handed(tmp_path):
    """A source that lies on the controller."""
    file = tmp_path / "port.tar"
    file.write_text("the port")
    return {"name": "port", "file": "port.tar", "sha256": hashlib.sha256(b"the port").hexdigest(),
            "controller": str(file)}  # fmt: skip


def test_controller_file_is_copied_if_there_is_work(output, handed, tmp_path):
    builder, store = 'cat "$src/port.tar" > "$out/copy"', tmp_path / "kepler"
    status, printed = output(builder, sources=[handed])
    assert status == 0, printed
    (path,) = (store / "store").iterdir()
    assert (path / "copy").read_text() == "the port"
    # Where the file lies is no part of the output's address, and a second run hands nothing over.
    source = store / "sources" / handed["sha256"]
    source.unlink()
    (tmp_path / "port.tar").rename(tmp_path / "elsewhere.tar")
    status, printed = output(builder, sources=[dict(handed, controller=str(tmp_path / "elsewhere.tar"))])
    assert status == 0, printed
    assert "changed=0" in printed
    assert not source.exists()


def test_controller_file_other_than_locked_is_refused(output, handed, tmp_path):
    (tmp_path / "port.tar").write_text("another port")
    status, printed = output('touch "$out/built"', sources=[handed])
    assert status != 0
    printed = " ".join(printed.split())
    assert f"port.tar: found sha256 {hashlib.sha256(b'another port').hexdigest()}" in printed
    assert f"expected {handed['sha256']}" in printed
    assert not list((tmp_path / "kepler" / "store").iterdir())
    assert not list((tmp_path / "kepler" / "sources").iterdir())


def test_a_file_that_is_not_on_the_controller_is_fetched(output, handed, tmp_path):
    (tmp_path / "port.tar").unlink()
    status, printed = output('touch "$out/built"', sources=[handed])
    assert status != 0
    assert "source port: the file port.tar could not be had" in printed
