"""The vars plugin kepler_lock: the lock that is there holds, and a lock that does not is refused in one message."""

import importlib.util
import shutil
from pathlib import Path

import pytest
import yaml
from ansible.errors import AnsibleError

PROJECT = Path(__file__).resolve().parents[3]
spec = importlib.util.spec_from_file_location("kepler_lock", PROJECT / "plugins" / "vars" / "kepler_lock.py")
kepler_lock = importlib.util.module_from_spec(spec)
spec.loader.exec_module(kepler_lock)


@pytest.fixture
def lock(tmp_path):
    """A copy of the project's lock that a test may spoil."""
    return Path(shutil.copytree(kepler_lock.DEFAULT, tmp_path / "lock"))


def spoil(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def refusal(lock):
    with pytest.raises(AnsibleError) as caught:
        kepler_lock.load(lock)
    return str(caught.value)


def test_the_lock_of_the_project_holds():
    lock = kepler_lock.load(kepler_lock.DEFAULT)
    assert {"sources", "rpms", "modules", "python"} <= set(lock)
    assert {package["project"] for package in lock["python"]["serving"]} >= {"torch", "transformers"}


@pytest.mark.parametrize("digest", ["", "abc", "G" * 64, "0" * 63, "A" * 64])
def test_a_digest_that_is_none_is_refused(lock, digest):
    spoil(lock / "sources.yml", lambda content: content["sources"]["vllm"].update(sha256=digest))
    message = refusal(lock)
    assert "sources.yml" in message
    assert "['vllm']['sha256']" in message
    assert "Restore the entry" in message


def test_a_source_without_a_digest_is_refused(lock):
    spoil(lock / "sources.yml", lambda content: content["sources"]["vllm"].pop("sha256"))
    assert "'sha256' is a required property" in refusal(lock)


def test_an_unverified_source_needs_its_reason(lock):
    spoil(lock / "sources.yml", lambda content: content["sources"]["cpython"].update(verified=False))
    assert "'reason' is a required property" in refusal(lock)


def test_a_source_comes_from_urls_or_from_the_index_not_from_both(lock):
    spoil(lock / "sources.yml", lambda content: content["sources"]["vllm"].update(urls=["https://example.org/v.tar"]))
    assert "['vllm']" in refusal(lock)


@pytest.mark.parametrize("file", ["../torch.whl", "/torch.whl", "torch.tar.gz"])
def test_a_package_is_a_plain_wheel_name(lock, file):
    spoil(lock / "python" / "serving.yml", lambda content: content["packages"][0].update(file=file))
    assert "serving.yml" in refusal(lock)


def test_an_address_in_a_package_is_refused(lock):
    spoil(lock / "python" / "serving.yml", lambda content: content["packages"][0].update(url="https://example.org/w"))
    assert "Additional properties" in refusal(lock)


def test_a_missing_file_is_named(lock):
    (lock / "rpms.yml").unlink()
    assert "rpms.yml" in refusal(lock)


def test_an_empty_directory_is_no_lock(tmp_path):
    assert "no lock there" in refusal(tmp_path)
