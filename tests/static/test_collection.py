"""The collection kepler.vllm: what Galaxy would build of this repository, installed elsewhere."""

import os
import re
import subprocess

import pytest
import yaml
from repository import ROOT, files

# Of what is built: files of tests make it slow, and are left out anyway.
PARTS = ("galaxy.yml", "README.md", "LICENSE", "meta", "files", "playbooks", "plugins", "profiles", "roles", "vllm_src")
GALAXY = yaml.safe_load((ROOT / "galaxy.yml").read_text())


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Directory of collections with this one, as it is after its installation."""
    directory = tmp_path_factory.mktemp("collections")
    for source in files(*PARTS):
        target = directory / "source" / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            target.symlink_to(source.readlink())
        else:
            target.write_bytes(source.read_bytes())
    (directory / "ansible.cfg").write_text(
        f"[defaults]\ncollections_path = {directory}\nvars_plugins_enabled = kepler.vllm.kepler_profile\n"
    )
    run(directory, "ansible-galaxy", "collection", "build", "--output-path", directory, directory / "source")
    (archive,) = directory.glob("*.tar.gz")
    run(directory, "ansible-galaxy", "collection", "install", "--no-deps", archive)
    return directory


def run(directory, *command):
    environment = {**os.environ, "ANSIBLE_CONFIG": str(directory / "ansible.cfg")}
    done = subprocess.run(command, env=environment, cwd=directory, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_installed_collection_documents_its_modules(installed):
    listed = run(installed, "ansible-doc", "--list", "--type", "module", "kepler.vllm")
    modules = {path.stem for path in (ROOT / "plugins" / "modules").glob("*.py")}
    assert {line.split()[0] for line in listed.splitlines()} == {f"kepler.vllm.{name}" for name in modules}


def test_playbooks_of_installed_collection_find_roles_and_lock(installed):
    """Read the lock with a filter, which needs the vars plugin and the profiles, in another directory."""
    (installed / "hosts.yml").write_text("k80-hosts: {hosts: {localhost: {}}}\n")
    printed = run(
        installed, "ansible", "localhost", "-i", "hosts.yml", "-c", "local", "-m", "ansible.builtin.debug",
        "-a", "msg={{ (kepler_lock | kepler.vllm.locked_driver).driver }}",
    )
    assert re.search(r'"msg": "\d+\.\d+', printed), printed
    run(installed, "ansible-playbook", "-i", "localhost,", "--syntax-check", "kepler.vllm.build")


def test_plugins_change_no_path_of_imports():
    for path in (ROOT / "plugins").rglob("*.py"):
        assert "sys.path" not in path.read_text(), path


def test_the_version_is_one():
    source = (ROOT / "vllm_src" / "vllm_kepler" / "version.py").read_text()
    assert f'__version__ = "{GALAXY["version"]}"' in source
    assert f"\n## {GALAXY['version']}" in (ROOT / "CHANGELOG.md").read_text()
