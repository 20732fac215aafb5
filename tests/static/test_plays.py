"""Plays run on the hosts of all hardware profiles, by one expression."""

import pytest
from repository import files, load, name_of

HOSTS = "{{ groups | kepler.vllm.profile_hosts }}"
# Hosts of a play that are not those of all profiles, and why.
OTHERS = {
    "bench.yml": {None: "the balancer"},
    "builder.yml": {"{{ groups | kepler.vllm.profile_builders | kepler.vllm.or_nobody }}": "builds for the others"},
    "build.yml": {"{{ groups | kepler.vllm.profile_builders | kepler.vllm.or_nobody }}": "has built for the others"},
    "bundle.yml": {
        "{{ groups | kepler.vllm.one_host(bundle_host | default(''), 'bundle_host') }}": "one host, which downloads",
    },
    "host.yml": {None: "a builder that serves nothing"},
    "image.yml": {
        "{{ groups | kepler.vllm.one_host(image_host | default(''), 'image_host') }}": "one host, which writes it",
    },
    "load_balancer.yml": {None: "the balancer"},
    "lock_rpms.yml": {
        "localhost": "reads the inventory", "{{ lock_host | default('') | kepler.vllm.or_nobody }}": "one host",
    },
    "rollback.yml": {"{{ groups | kepler.vllm.in_batches }}": "hosts that share an instance together"},
    "upgrade.yml": {"{{ groups | kepler.vllm.in_batches }}": "hosts that share an instance together"},
    "monitoring.yml": {None: "the host of Prometheus"},
    "plan.yml": {"localhost": "nothing but the controller"},
    "uninstall.yml": {None: "the balancer"},
}


@pytest.mark.parametrize("path", [path for path in files("playbooks") if path.suffix == ".yml"], ids=name_of)
def test_plays_run_on_the_hosts_of_all_profiles(path):
    plays = [play for play in load(path) if "hosts" in play]
    named = [play["hosts"] for play in plays if play["hosts"] != HOSTS]
    allowed = OTHERS.get(path.name, {})
    assert [hosts for hosts in named if hosts not in allowed] == [] or (None in allowed and len(set(named)) == 1)


def test_one_filter_stands_for_no_hosts():
    assert [path.name for path in files("playbooks") if "!all" in path.read_text()] == []


def test_one_expression_names_the_balancers():
    books = [files(f"playbooks/{name}.yml")[0] for name in ("load_balancer", "uninstall")]
    named = {play["hosts"] for book in books for play in load(book)}
    assert len(named - {HOSTS}) == 1
