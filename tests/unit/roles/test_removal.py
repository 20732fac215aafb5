"""Directories that the inventory names: what others keep there survives removal."""

import pytest

ROLES = [
    ("store", "store_root", "remove_root", ["store", "sources", "build", "generations", "locks", "trash"]),
    ("offline", "offline_directory", "remove", ["0123456789ab", "ba9876543210"]),
]


@pytest.mark.parametrize(("role", "variable", "tasks", "own"), ROLES)
def test_directory_is_removed_unless_others_use_it(play, tmp_path, role, variable, tasks, own):
    roots = {name: tmp_path / name for name in ("alone", "shared")}
    for root in roots.values():
        for name in own:
            (root / name / "more").mkdir(parents=True)
    (roots["shared"] / "photos").mkdir()
    (roots["shared"] / ".hidden").write_text("mine")
    status, output = play(
        [{"name": f"Remove {name}",
          "ansible.builtin.include_role": {"name": f"kepler.vllm.{role}", "tasks_from": tasks},
          "vars": {variable: str(root)}} for name, root in roots.items()], gather_facts=False,
    )  # fmt: skip
    assert status == 0, output
    assert not roots["alone"].exists()
    assert sorted(path.name for path in roots["shared"].iterdir()) == [".hidden", "photos"]


def test_new_bundle_replaces_bundles_alone(play, tmp_path):
    for name in ("photos", "0123456789ab", "ba9876543210"):
        (tmp_path / "place" / name).mkdir(parents=True)
    unpacked = tmp_path / "place" / "0123456789ab" / "kepler-bundle"
    unpacked.mkdir()
    (unpacked / "bundle.json").write_text("{}")
    status, output = play(
        [{"name": "Install",
          "ansible.builtin.include_role": {"name": "kepler.vllm.offline", "tasks_from": "install"},
          "vars": {"offline_directory": str(tmp_path / "place"), "__offline_file": "/nowhere",
                   "__offline_bundle": {"id": "0123456789ab", "keys": []},
                   "__offline_there": {"stat": {"exists": True}}}}], gather_facts=False,
    )  # fmt: skip
    assert status == 0, output
    assert sorted(path.name for path in (tmp_path / "place").iterdir()) == ["0123456789ab", "photos"]
