"""The role bench: what is asked for is checked before anything is measured."""

import json

import pytest

BENCH = [{"name": "Bench", "ansible.builtin.import_role": {"name": "kepler.vllm.bench", "tasks_from": "check"}}]


@pytest.mark.parametrize(("content", "found"), [
    (None, False), ("{}", False), (json.dumps({"points": []}), True),
], ids=["none", "another file", "a run"])  # fmt: skip
def test_a_run_to_compare_with(play, tmp_path, content, found):
    """A relative path counts from where Ansible was started."""
    if content:
        (tmp_path / "reports").mkdir()
        (tmp_path / "reports" / "k80-1.json").write_text(content)
    variables = {"bench_compare": "reports/k80-1.json", "vllm_service_instances": [], "store_root": str(tmp_path)}
    status, output = play(BENCH, "--check", variables=variables, gather_facts=False)
    assert (status == 0) is found, output
    message = f"bench_compare: found no figures in {tmp_path}/reports/k80-1.json on the controller; expected"
    assert (message in " ".join(output.split())) is not found


@pytest.mark.parametrize(("variables", "found"), [
    ({"bench_lengths": [[512, 128, 4], [1024]]}, "bench_lengths: found [[512, 128, 4], [1024]]; expected lists of two"),
    ({"bench_target": "balancer"}, "bench_target: found balancer, and no host in the group vllm_balancer; expected"),
])  # fmt: skip
def test_what_cannot_be_measured_is_refused(play, variables, found):
    status, output = play(BENCH, "--check", variables=variables, gather_facts=False)
    assert status != 0
    assert found in " ".join(output.split())
