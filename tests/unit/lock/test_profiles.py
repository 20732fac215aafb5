"""Profiles and their locks: those that are there hold, and what does not is refused in one message."""

import json
import shutil
from pathlib import Path

import pytest
import yaml
from ansible import context
from ansible.errors import AnsibleError
from ansible.utils.context_objects import CLIArgs
from ansible_collections.kepler.vllm.plugins.filter import kepler_profiles
from ansible_collections.kepler.vllm.plugins.plugin_utils import profiles
from ansible_run import ansible_playbook

PROJECT = Path(__file__).resolve().parents[3]


@pytest.fixture
def root(tmp_path, monkeypatch):
    """A copy of the project's profiles that a test may spoil."""
    monkeypatch.setenv("KEPLER_PROFILES_DIR", str(tmp_path / "profiles"))
    return Path(shutil.copytree(PROJECT / "profiles", tmp_path / "profiles"))


@pytest.fixture
def lock(root):
    return root / "k80" / "lock"


def spoil(path, change):
    content = yaml.safe_load(path.read_text())
    change(content)
    path.write_text(yaml.safe_dump(content))


def second(root, name="example", **groups):
    """A second profile, with groups of its own."""
    shutil.copytree(root / "k80", root / name)
    spoil(root / name / "profile.yml", lambda content: content["groups"].update(
        {"hosts": f"{name}-hosts", "builder": f"{name}_builder", **groups}
    ))


def refusal(lock):
    with pytest.raises(AnsibleError) as caught:
        profiles.lock_of(lock.parent)
    return str(caught.value)


def test_the_profiles_of_the_project_hold():
    root = PROJECT / "profiles"
    for name, profile in profiles.profiles(root).items():
        assert profile["name"] == name
        lock = profiles.lock_of(root / name)
        assert {"sources", "rpms", "modules", "python", "repos", "kernels"} <= set(lock)
        assert {package["project"] for package in lock["python"]["serving"]} >= {"torch", "transformers"}


def test_the_common_lock_stands_in_every_profiles(root, monkeypatch, tmp_path):
    entry = {"name": "nginx", "arch": "x86_64", "repo": "appstream", "role": "load_balancer", "verified": False,
             "reason": "a test"}
    (tmp_path / "rpms.yml").write_text(yaml.safe_dump({"modules": [], "rpms": [entry]}))
    monkeypatch.setattr(profiles, "COMMON_LOCK", tmp_path)
    profiles.common_lock.cache_clear()
    try:
        assert profiles.common_lock()["rpms"] == [entry]
        assert profiles.lock_of(root / "k80")["rpms"][0] == entry
    finally:
        profiles.common_lock.cache_clear()


@pytest.mark.parametrize("digest", ["", "abc", "G" * 64, "0" * 63, "A" * 64])
def test_a_digest_that_is_none_is_refused(lock, digest):
    spoil(lock / "sources.yml", lambda content: content["sources"]["vllm"].update(sha256=digest))
    message = refusal(lock)
    assert "sources.yml" in message
    assert "['vllm']['sha256']" in message
    assert "restore it from version control" in message


def test_a_source_without_a_digest_is_refused(lock):
    spoil(lock / "sources.yml", lambda content: content["sources"]["vllm"].pop("sha256"))
    assert "'sha256' is a required property" in refusal(lock)


def test_an_unverified_source_needs_its_reason(lock):
    spoil(lock / "sources.yml", lambda content: content["sources"]["cpython"].update(verified=False))
    assert "'reason' is a required property" in refusal(lock)


def test_source_comes_from_urls_or_index_and_not_both(lock):
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


@pytest.mark.parametrize(("file", "change", "missing"), [
    ("rpms", lambda content: content.pop("kernels"), "rpms.yml: kernels"),
    ("rpms", lambda content: content.pop("repos"), "rpms.yml: repos: cuda-rhel8"),
    ("rpms", lambda content: content["repos"].pop("cuda-rhel8"), "rpms.yml: repos: cuda-rhel8"),
    ("rpms", lambda content: content.update(rpms=[entry for entry in content["rpms"] if "cuda" not in entry["role"]]),
     "rpms.yml: package of the role cuda_toolkit"),
    ("sources", lambda content: content["sources"].pop("cpython"), "sources.yml: cpython 3.10"),
    ("sources", lambda content: content["sources"]["cpython"].update(version="3.11.4"), "sources.yml: cpython 3.10"),
])  # fmt: skip
def test_a_lock_without_what_the_profile_names_is_refused(lock, file, change, missing):
    spoil(lock / f"{file}.yml", change)
    message = refusal(lock)
    assert f"{lock}: found no {missing}; expected all that {lock.parent}/profile.yml names" in message
    assert "Add it to the lock" in message


def test_a_profile_without_its_lock_is_refused(lock):
    shutil.rmtree(lock)
    assert "no lock there" in refusal(lock)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda content: content.update(gpus=4), "('gpus' was unexpected)"),
        (lambda content: content["groups"].update(balancer="k80_balancer"), "['groups']: Additional properties"),
        (lambda content: content["groups"].pop("builder"), "'builder' is a required property"),
        (lambda content: content["groups"].update(hosts=["k80-hosts"]), "['groups']['hosts']"),
        (lambda content: content["groups"].update(hosts="all"), "['groups']['hosts']"),
        (lambda content: content["groups"].update(hosts="{{ mine }}"), "['groups']['hosts']"),
    ],
)
def test_a_profile_that_does_not_hold_is_refused(root, change, expected):
    path = root / "k80" / "profile.yml"
    spoil(path, change)
    with pytest.raises(AnsibleError) as caught:
        profiles.profiles(root)
    assert str(path) in str(caught.value)
    assert expected in str(caught.value)
    assert "profiles/schema/profile.json" in str(caught.value)


@pytest.mark.parametrize("content", ["", "- groups", "groups: {hosts: [", "groups: k80-hosts", "\x00"])
def test_a_file_that_is_no_profile_is_refused(root, content):
    (root / "k80" / "profile.yml").write_text(content)
    with pytest.raises(AnsibleError, match=r"profile\.yml: "):
        profiles.profiles(root)


@pytest.mark.parametrize("groups", [{"hosts": "k80-hosts"}, {"builder": "k80_builder"}, {"builder": "k80-hosts"}])
def test_two_profiles_share_no_group(root, groups):
    second(root, **groups)
    with pytest.raises(AnsibleError) as caught:
        profiles.profiles(root)
    assert f"found {next(iter(groups.values()))}, which" in str(caught.value)


def test_a_directory_without_profiles_is_named(tmp_path):
    with pytest.raises(AnsibleError, match=r"no profile there: expected NAME/profile\.yml"):
        profiles.profiles(tmp_path)


def test_plays_name_groups_of_all_profiles_of_inventory(root):
    second(root)
    known = {"all": ["a", "b", "c"], "k80-hosts": ["a"], "example-hosts": ["b"], "example_builder": ["c", "b"]}
    assert kepler_profiles.profile_hosts(known) == ["example-hosts", "k80-hosts"]
    assert kepler_profiles.profile_members(known) == ["b", "a"]
    assert kepler_profiles.profile_builders(known) == ["c"]
    assert kepler_profiles.profile_hosts({"all": ["a"], "k80-hosts": ["a"]}) == ["k80-hosts"]
    assert kepler_profiles.profile_builders({"all": ["a"], "k80-hosts": ["a"], "k80_builder": []}) == []


@pytest.mark.parametrize("group", ["k80_builder", "k80_balancer", "vllm_balancer", "vllm_monitoring"])
def test_inventory_without_servers_gives_plays_no_hosts(group):
    assert kepler_profiles.profile_hosts({"all": ["a"], group: ["a"]}) in ("!all", ["k80-hosts"])


@pytest.fixture
def command_line(monkeypatch):
    """Function that gives this process the command line of an ansible-playbook."""
    return lambda **given: monkeypatch.setattr(context, "CLIARGS", CLIArgs(given))


def test_empty_inventory_is_refused_but_for_its_syntax(command_line):
    with pytest.raises(AnsibleError, match="inventory: found no host in a group of a hardware profile"):
        kepler_profiles.profile_hosts({"all": []})
    with pytest.raises(AnsibleError, match="bundle_host: found none; expected a host of the inventory"):
        kepler_profiles.one_host({"all": []}, "", "bundle_host")
    command_line(syntax=True)
    assert kepler_profiles.profile_hosts({"all": ["localhost"]}) == "!all"
    assert kepler_profiles.one_host({"all": []}, "", "bundle_host") == "!all"


def test_limit_to_hosts_without_a_profile_is_refused(command_line):
    """A run that touches nothing would end as one that has nothing to do."""
    groups = {"all": ["a", "b", "c"], "k80-hosts": ["a"], "vllm_balancer": ["b"]}
    for limit in ("a", "b", "a,c", "k80-hosts", "!a", "c*", None):
        command_line(subset=limit)
        assert kepler_profiles.profile_hosts(groups) == ["k80-hosts"]
    command_line(subset="c")
    with pytest.raises(AnsibleError, match="limit: found c, in no group of a hardware profile; expected hosts in k80-"):
        kepler_profiles.profile_hosts(groups)


def test_one_host_is_the_named_one_a_builder_or_the_first():
    groups = {"all": ["a", "b", "c"], "k80-hosts": ["a", "b"]}
    assert kepler_profiles.one_host(groups, "", "x") == "a"
    assert kepler_profiles.one_host({**groups, "k80_builder": ["b"]}, "", "x") == "b"
    assert kepler_profiles.one_host(groups, "c", "x") == "c"
    with pytest.raises(AnsibleError, match="x: found d; expected a host of the inventory"):
        kepler_profiles.one_host(groups, "d", "x")


@pytest.mark.parametrize("groups", [{"ungrouped": ["a"]}, {"gpu_servers": ["a"]}, {"x1-hosts": ["a"], "k80-hosts": []}])
def test_an_inventory_whose_hosts_are_in_no_profile_is_refused(groups):
    with pytest.raises(AnsibleError, match=r"inventory: found 1 host\(s\), a first, and none .* in k80-hosts or v100-"):
        kepler_profiles.profile_hosts({"all": ["a"], **groups})


SHOW = [{
    "name": "Show", "hosts": "all", "gather_facts": False, "connection": "local", "tasks": [{
        "name": "Show", "ansible.builtin.debug": {
            "msg": "{{ inventory_hostname }} {{ profile.name | default('none') }} {{ kepler_lock.rpms | length > 9 }}",
        },
    }],
}]  # fmt: skip


def run(tmp_path, groups, playbook=None):
    """Run a playbook with an inventory of these groups; its status and output."""
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({
        group: {"hosts": {host: {"ansible_connection": "local"} for host in hosts}} for group, hosts in groups.items()
    }))
    play = tmp_path / "show.yml"
    play.write_text(json.dumps(SHOW))
    done = ansible_playbook(tmp_path, "-i", inventory, playbook or play)
    return done.returncode, " ".join((done.stdout + done.stderr).split())


def test_each_host_has_the_profile_and_the_lock_of_its_group(root, tmp_path):
    second(root)
    status, output = run(tmp_path, {
        "k80-hosts": ["a"], "example-hosts": ["b"], "example_builder": ["b", "c"], "k80_balancer": ["a", "d"],
    })  # fmt: skip
    assert status == 0, output
    for host, said in {"a": "k80 True", "b": "example True", "c": "example True", "d": "none False"}.items():
        assert f"msg: {host} {said}" in output


@pytest.mark.parametrize("groups", [
    {"k80-hosts": ["a", "b"], "example-hosts": ["b"]},
    {"k80-hosts": ["a"], "k80_builder": ["b"], "example-hosts": ["b"]},
])  # fmt: skip
def test_host_in_two_profiles_stops_run_before_first_task(root, tmp_path, groups):
    second(root)
    status, output = run(tmp_path, groups)
    assert status != 0
    assert "b: found in " in output
    assert "(profile example)" in output and "(profile k80)" in output
    assert "Take it out of the others" in output
    assert "TASK" not in output and "Traceback" not in output


def test_an_unknown_key_stops_the_run_before_its_first_task(root, tmp_path):
    spoil(root / "k80" / "profile.yml", lambda content: content.update(color="green"))
    status, output = run(tmp_path, {"k80-hosts": ["a"]})
    assert status != 0
    assert "profile.yml: the file: Additional properties are not allowed ('color' was unexpected)" in output
    assert "TASK" not in output and "Traceback" not in output


@pytest.mark.parametrize("group", ["k80_hosts", "K80-hosts", "k80-host", "k80_builders"])
def test_group_that_is_nearly_a_profiles_is_named(group):
    groups = {"all": ["a", "b"], "k80-hosts": ["a"], group: ["b"]}
    with pytest.raises(AnsibleError, match=f"found b in the group {group}, .*; expected k80[-_][bh]"):
        kepler_profiles.profile_hosts(groups)
    assert kepler_profiles.profile_hosts({**groups, "k80-hosts": ["a", "b"]}) == ["k80-hosts"]


@pytest.mark.parametrize("group", ["k10-hosts", "k80-hosts-north", "p100-hosts", "k80_balancer", "ungrouped"])
def test_group_of_other_machines_is_nobodys_business(group):
    assert kepler_profiles.profile_hosts({"all": ["a", "b"], "k80-hosts": ["a"], group: ["b"]}) == ["k80-hosts"]


@pytest.mark.parametrize("playbook", ["site.yml", "playbooks/gc.yml"])
def test_hosts_in_no_profile_stop_the_run(tmp_path, playbook):
    status, output = run(tmp_path, {"gpu_servers": ["a"]}, PROJECT / playbook)
    assert status != 0
    assert "inventory: found 1 host(s), a first, and none in a group of a hardware profile" in output
    assert "TASK" not in output and "Traceback" not in output
