"""The filters that turn lock entries into sources."""

import pytest
from ansible.errors import AnsibleFilterError
from ansible_collections.kepler.vllm.plugins.filter import lock_sources

PACKAGES = [
    {"project": name, "version": "1", "file": f"{name}-1-py3-none-any.whl", "sha256": "0" * 64}
    for name in ("torch", "nvidia-nccl-cu11", "numpy")
]


def names(sources):
    return [source["name"] for source in sources]


def test_include_and_exclude_are_complements():
    patterns = ["torch", "nvidia-*"]
    assert names(lock_sources.locked_wheels(PACKAGES, include=patterns)) == ["torch", "nvidia-nccl-cu11"]
    assert names(lock_sources.locked_wheels(PACKAGES, exclude=patterns)) == ["numpy"]
    assert names(lock_sources.locked_wheels(PACKAGES)) == ["torch", "nvidia-nccl-cu11", "numpy"]


@pytest.mark.parametrize("side", ["include", "exclude"])
def test_a_pattern_that_matches_nothing_is_named(side):
    with pytest.raises(AnsibleFilterError, match="'tensorflow'"):
        lock_sources.locked_wheels(PACKAGES, **{side: ["tensorflow"]})


def test_a_wheel_is_named_by_project_version_file_and_digest():
    assert lock_sources.locked_wheels(PACKAGES, include=["numpy"]) == [
        {
            "name": "numpy",
            "file": "numpy-1-py3-none-any.whl",
            "sha256": "0" * 64,
            "index": {"project": "numpy", "version": "1"},
        }
    ]


def test_a_source_that_is_not_locked_is_named():
    with pytest.raises(AnsibleFilterError, match=r"no source 'gcc'; found cpython"):
        lock_sources.locked_source({"cpython": {}}, "gcc")
