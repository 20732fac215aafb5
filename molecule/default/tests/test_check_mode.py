"""A finished host has nothing to do, whoever asks and for whichever part."""

from __future__ import annotations

import re

import yaml
from conftest import PROJECT, TEST, standins

# Examples that name what the stand-in has not (a bundle, models, keys, an exporter), or that load the server.
ELSEWHERE = {
    "acceptance", "bench", "compose", "image", "load_balancer", "models", "monitoring", "offline", "vllm_service",
}
CHECK = ("--check", "--diff")


def recap(printed: str) -> dict[str, int]:
    """Counts of the last line of a run."""
    return {name: int(count) for name, count in re.findall(r"(\w+)=(\d+)", printed.rpartition("PLAY RECAP")[2])}


def examples() -> dict[str, list]:
    """The play that each role's README shows."""
    found = {}
    for readme in sorted(PROJECT.glob("roles/*/README.md")):
        shown = re.search(r"^## Example\n```yaml\n(.*?)```", readme.read_text(), re.DOTALL | re.MULTILINE)
        assert shown, f"{readme}: no example"
        found[readme.parent.name] = yaml.safe_load(shown.group(1))
    return found


def test_a_dry_run_shows_nothing(k80, play):
    status, printed = play("k80-standin", options=CHECK)
    assert status == 0, printed[-3000:]
    assert recap(printed)["changed"] == 0, printed
    assert " --- before" not in printed


def test_the_servers_part_runs_alone(k80, play):
    """The other roles run alone as the examples of their READMEs."""
    status, printed = play("k80-standin", options=("--tags", "vllm_service", *CHECK))
    assert status == 0, printed[-3000:]
    counts = recap(printed)
    assert counts["ok"] > 2
    assert counts["changed"] == 0, printed


def test_the_examples_of_the_roles(k80, play, tmp_path):
    """Each README's play, on the host as it is."""
    (tmp_path / "vars").symlink_to(PROJECT / "playbooks" / "vars")
    shown = examples()
    plays = [dict(part, name=f"Example of {name}") for name in shown if name not in ELSEWHERE for part in shown[name]]
    playbook = tmp_path / "examples.yml"
    playbook.write_text(yaml.safe_dump(plays, sort_keys=False))
    interpreter = standins.ansible_environment(TEST)["STANDIN_PYTHON310"]
    status, printed = play(
        "k80-standin", f"python_interpreter={interpreter}", playbook=playbook, options=("--check",)
    )
    assert status == 0, printed[-3000:]
    for name in set(shown) - ELSEWHERE:
        assert f"PLAY [Example of {name}]" in printed
