"""The vars plugin kepler_profile: filters are loaded once in a run, not by each task of each host."""

import sys

import pytest
import yaml
from ansible_run import ansible_playbook

COUNTED = """\
import os
with open({seen!r}, "a") as stream:
    stream.write("%d\\n" % os.getpid())
class {kind}Module:
    def {method}(self):
        return {{"counted": lambda value: True}}
"""


@pytest.mark.parametrize(
    ("kind", "method", "expression"),
    [("Filter", "filters", "{{ 1 | counted }}"), ("Test", "tests", "{{ 1 is counted }}")],
)
def test_plugins_of_templates_load_once(tmp_path, kind, method, expression):
    seen, plugins = tmp_path / "seen", tmp_path / f"{kind.lower()}_plugins"
    plugins.mkdir()
    (plugins / "counted.py").write_text(COUNTED.format(seen=str(seen), kind=kind, method=method))
    tasks = [{"name": "Name one", "ansible.builtin.debug": {"msg": expression}}] * 2
    (tmp_path / "play.yml").write_text(
        yaml.safe_dump([{"name": "Play", "hosts": "all", "gather_facts": False, "tasks": tasks}])
    )
    done = ansible_playbook(
        tmp_path, "-i", "one,two,", "-c", "local", "-e", f"ansible_python_interpreter={sys.executable}", "play.yml"
    )
    assert done.stdout.count("msg: true") == 4, done.stdout
    assert len(seen.read_text().split()) == 1
