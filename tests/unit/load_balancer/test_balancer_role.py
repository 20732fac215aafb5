"""What the role makes of an inventory, and what it refuses."""

import json
import re
import stat
from base64 import b64encode
from pathlib import Path

import balancer_rig as rig
import pytest
import yaml
from ansible import context
from ansible.errors import AnsibleFilterError
from ansible.utils.context_objects import CLIArgs
from ansible_collections.kepler.vllm.plugins.filter import kepler_balancer as judge
from ansible_collections.kepler.vllm.plugins.filter import kepler_instances
from rendered import PROFILE

ROOT = Path(__file__).resolve().parents[3]

EXAMPLES = sorted((ROOT / "inventory" / "examples").glob("tp*.yml"))
needs_nginx = pytest.mark.skipif(bool(rig.LACKING), reason=rig.LACKING)


@pytest.fixture
def asked():
    """What a good inventory asks for."""
    return {
        "host": "0.0.0.0", "port": 8443, "tls": True, "certificate": "/k/cert", "certificate_key": "/k/key",
        "keys_file": "/k/clients", "upstream_key_file": "/k/servers", "default_pool": "m", "drained": ["box/a"],
        "pools": {"m": [
            {"name": "box/a", "address": "127.0.0.1", "port": 8000, "key_file": "/k/servers"},
            {"name": "other/a", "address": "10.0.0.2", "port": 8000},
        ]},
    }  # fmt: skip


def test_a_good_inventory_has_no_findings(asked):
    assert judge.balancer_findings(asked, "box") == []


@pytest.mark.parametrize(
    ("changes", "variable", "found"),
    [
        ({"keys_file": ""}, "keys_file", "nothing, and load_balancer_host 0.0.0.0"),
        ({"certificate": ""}, "certificate", "nothing"),
        ({"certificate_key": ""}, "certificate_key", "nothing"),
        ({"certificate": "cert.pem"}, "certificate", '"cert.pem"'),
        ({"keys_file": "/k/a;b"}, "keys_file", '"/k/a;b"'),
        ({"upstream_key_file": ""}, "upstream_key_file", "nothing, and servers with /k/servers"),
        ({"host": "balancer"}, "host", '"balancer"'),
        ({"port": "8443"}, "port", '"8443"'),
        ({"port": 70000}, "port", "70000"),
        ({"max_body_mib": 0}, "max_body_mib", "0"),
        ({"max_body_mib": -1}, "max_body_mib", "-1"),
        ({"max_fails": 0}, "max_fails", "0"),
        ({"fail_timeout": True}, "fail_timeout", "true"),
        ({"read_timeout": "1h"}, "read_timeout", '"1h"'),
        ({"default_pool": "n"}, "default_pool", '"n"'),
        ({"drained": ["box/b"]}, "drained", '"box/b"'),
        ({"pools": {}}, "pools", "no server"),
        ({"pools": ["m"]}, "pools", '["m"]'),
        ({"pools": {"m": [{"name": "box/a"}]}}, "pools.m[0]", '{"name": "box/a"}'),
    ],
)
def test_what_is_wrong_is_said(asked, changes, variable, found):
    (finding,) = judge.balancer_findings({**asked, **changes}, "box")
    assert (finding["variable"], finding["found"]) == (f"load_balancer_{variable}", found)
    assert finding["expected"] and finding["next_step"]


ODD: list = [None, 0, -1, 1.5, True, [], {}, [None], [[]], {"a": 1}, {"a": [1]}, "a\nb", "{"]


@pytest.mark.parametrize("name", ["host", "port", "tls", "certificate", "keys_file", "pools", "default_pool", "drained",
                                  "max_fails", "access_log"])
def test_odd_values_are_findings_and_no_traceback(asked, name):
    for value in ODD:
        found = judge.balancer_findings({**asked, name: value}, "box")
        assert all(isinstance(part, str) for item in found for part in item.values())
    for key in ("name", "address", "port", "serves"):
        for value in ODD:
            pools = {"m": [{**asked["pools"]["m"][0], key: value}]}
            judge.balancer_findings({**asked, "pools": pools}, "box")


@pytest.mark.parametrize("key", ["name", "model", "host", "port", "hosts", "served_model_name", "adapters"])
def test_malformed_instance_of_another_host_is_named(key):
    for value in (None, -1, 1.5, [None], {1: 2}, "", "a\nb"):
        with pytest.raises(AnsibleFilterError, match=rf"vllm_service_instances.0..*{key} of h0: found .*; expected "):
            pools_of({"model": "/m/x", key: value})


def test_port_of_a_server_on_the_balancer_is_taken(asked):
    (found,) = judge.balancer_findings({**asked, "port": 8000}, "box")
    assert (found["variable"], found["found"]) == ("load_balancer_port", "8000, where box/a listens")


def test_numbers_of_the_command_line_may_be_texts(asked, monkeypatch):
    given = CLIArgs({"extra_vars": ["load_balancer_port=8443 load_balancer_max_body_mib=0"]})
    monkeypatch.setattr(context, "CLIARGS", given)
    found = judge.balancer_findings({**asked, "port": "8443", "max_body_mib": "0", "read_timeout": "60"}, "box")
    assert [item["variable"] for item in found] == ["load_balancer_max_body_mib", "load_balancer_read_timeout"]


@pytest.mark.parametrize(
    ("change", "found"),
    [
        ({"name": "other"}, '"other"'),
        ({"address": "127.0.0.1"}, '"127.0.0.1" of other/a'),
        ({"address": "a b;"}, '"a b;"'),
        ({"port": 0}, "0"),
        ({"name": "box/a"}, "box/a twice"),
        ({"name": "box/b", "address": "127.0.0.1"}, "127.0.0.1:8000 twice"),
    ],
)
def test_a_wrong_server_is_said(asked, change, found):
    asked["pools"]["m"][1].update(change)
    assert [item["found"] for item in judge.balancer_findings(asked, "box")] == [found]


@pytest.mark.parametrize("name", ["v1", "health", "Qwen", "a b", "-a", ""])
def test_a_pool_needs_a_path_of_its_own(asked, name):
    asked["pools"][name] = [{"name": "box/b", "address": "127.0.0.1", "port": 8001}]
    assert [item["variable"] for item in judge.balancer_findings(asked, "box")] == ["load_balancer_pools"]


def test_without_tls_only_where_that_is_said(asked):
    without = {**asked, "certificate": "", "certificate_key": ""}
    assert len(judge.balancer_findings(without, "box")) == 2
    assert judge.balancer_findings({**without, "tls": False}, "box") == []


@pytest.mark.parametrize(
    ("model", "pool"),
    [
        ("Qwen/Qwen3-1.7B", "qwen-qwen3-1.7b"), ("/srv/models/Qwen3-8B/", "qwen3-8b"), ("llama", "llama"),
        ("A b/C", "a-b-c"),
    ],
)  # fmt: skip
def test_the_path_of_a_model(model, pool):
    assert judge.pool_name(model) == pool


def pools_of(*instances):
    """Pools of one host for each of the instances."""
    hosts = {
        f"h{index}": {"vllm_service_instances": [{"name": "a", "host": "0.0.0.0", **instance}]}
        for index, instance in enumerate(instances)
    }
    return judge.balancer_pools(hosts, list(hosts), "box")


REVISION = "0123456789abcdef" * 2 + "01234567"


@pytest.mark.parametrize(
    ("first", "second", "pool"),
    [
        ({"model": "/srv/awq/Qwen3-8B"}, {"model": "/srv/fp16/Qwen3-8B"}, "qwen3-8b"),
        ({"model": "Qwen/Qwen3-8B-GPTQ", "served_model_name": "qwen"},
         {"model": "Qwen/Qwen3-0.6B", "served_model_name": "Qwen"}, "qwen"),
        ({"model": "Org/Model_X"}, {"model": "org/model_x"}, "org-model_x"),
        ({"model": "org/x", "revision": REVISION}, {"model": "org/x", "revision": REVISION[::-1]}, "org-x"),
        ({"model": "org/x", "revision": REVISION}, {"model": "org/x"}, "org-x"),
        ({"model": "org/x", "adapters": {"own": "/a"}}, {"model": "org/x"}, "org-x"),
        ({"model": "/m/x", "served_model_name": "m"}, {"model": "/m/y", "served_model_name": "m"}, "m"),
        ({"model": "/m/a b"}, {"model": "/m/a-b"}, "a-b"),
        ({"model": "/m/llama"}, {"model": "llama"}, "llama"),
        ({"model": "/m/x", "served_model_name": "m n"}, {"model": "/m/x", "served_model_name": "m-n"}, "m-n"),
    ],
)
def test_servers_of_different_models_in_one_pool_are_refused(asked, first, second, pool):
    pools = pools_of(first, first, second)
    assert list(pools) == [pool]
    (finding,) = judge.balancer_findings({**asked, "pools": pools, "default_pool": pool, "drained": []}, "box")
    assert finding["variable"] == "load_balancer_pools"
    assert "h0/a: " in finding["found"] and "h2/a: " in finding["found"]
    assert "served_model_name" in finding["next_step"]
    written = [{key: server[key] for key in ("name", "address", "port")} for server in pools[pool]]
    asked.update(pools={pool: written}, default_pool=pool, drained=[])
    assert judge.balancer_findings(asked, "box") == []


def test_servers_of_one_model_share_a_pool(asked):
    same = {"model": "/m/x/", "served_model_name": "m"}
    pools = pools_of(same, {"model": "/m/x", "served_model_name": "m"}, {"model": "/m/y", "served_model_name": "n"})
    assert judge.balancer_findings({**asked, "pools": pools, "default_pool": "m", "drained": []}, "box") == []


def test_servers_of_several_hosts_come_together_by_model():
    hosts = {
        "box": {"vllm_service_instances": [
            {"name": "a", "model": "/m/x", "host": "0.0.0.0", "api_key_file": "/k"},
            {"name": "b", "model": "/m/y", "served_model_name": "why", "port": 8001},
        ]},
        "far": {"load_balancer_address": "10.0.0.2", "ansible_host": "far.example", "vllm_service_instances": [
            {"name": "a", "model": "/m/x", "host": "0.0.0.0"},
        ]},
        "near": {"ansible_host": "near.example", "vllm_service_instance_defaults": {"host": "::", "port": 9000},
                 "vllm_service_instances": [{"name": "a", "model": "x"}]},
        "idle": {},
    }  # fmt: skip
    pools = judge.balancer_pools(hosts, list(hosts), "box")
    assert {
        pool: [(item["name"], item["address"], item["port"]) for item in servers] for pool, servers in pools.items()
    } == {
        "x": [("box/a", "127.0.0.1", 8000), ("far/a", "10.0.0.2", 8000), ("near/a", "near.example", 9000)],
        "why": [("box/b", "127.0.0.1", 8001)],
    }
    assert judge.balancer_upstream_key_file(pools) == "/k"
    pools["x"][1]["key_file"] = "/other"
    assert judge.balancer_upstream_key_file(pools) == ""


@pytest.mark.parametrize("item", ["main", {"name": "main"}, {"model": "m"}, 7, ["main"], None])
@pytest.mark.parametrize("defaults", [{}, "port=9000", {"port": 9000}])
def test_an_instance_that_is_none_is_said(item, defaults):
    values = {"vllm_service_instances": [item], "vllm_service_instance_defaults": defaults}
    found = re.escape(json.dumps(item))
    with pytest.raises(AnsibleFilterError, match=f"instances.0. of box: found {found}; expected a mapping"):
        judge.balancer_pools({"box": values}, ["box"], "box")


@pytest.mark.parametrize("instances", ["main", 7, {"model": "m"}])
def test_instances_that_are_no_list_are_said(instances):
    with pytest.raises(AnsibleFilterError, match=r"vllm_service_instances.0. of box: found .+; expected a mapping"):
        judge.balancer_pools({"box": {"vllm_service_instances": instances}}, ["box"], "box")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("alice", "line 2 of /k with 1 words"), ("alice a-key-of-16-chars and-more", "line 2 of /k with 3 words"),
        ("al!ce a-key-of-16-chars", "line 2 of /k with another name"),
        ("alice short-key", "line 2 of /k with another key"),
        ('alice a-key"of-16-chars;', "line 2 of /k with another key"),
        ("bob a-key-of-16-chars", "line 2 of /k with the name of line 1"),
        ("alice bobs-key-is-this-1", "line 2 of /k with the key of line 1"),
    ],
)  # fmt: skip
def test_a_wrong_line_of_keys_is_said_without_its_key(line, found):
    findings = judge.balancer_key_findings("/k", f"bob bobs-key-is-this-1\n{line}\n")
    assert [item["found"] for item in findings] == [found]
    assert not any(word in str(findings) for word in line.split()[1:])


def test_a_key_file_may_not_be_empty():
    assert [item["found"] for item in judge.balancer_key_findings("/k", "# nobody\n")] == ["/k without a line"]


@pytest.mark.parametrize("text", [
    "", "OTHER=0123456789abcdef\n", "VLLM_API_KEY=short\n", "0123456789abcdef\n",
    "export VLLM_API_KEY=0123456789abcdef\n", "\ufeffVLLM_API_KEY=0123456789abcdef\n",
    "VLLM_API_KEY=0123456789abcdef\nVLLM_API_KEY=\n", "VLLM_API_KEY='0123456789abcdef x'\n",
    "VLLM_API_KEY=0123456789abcdef%\n", f"VLLM_API_KEY={'0123456789abcdef' * 300}\n",
])
def test_the_servers_key_must_be_one(text):
    (finding,) = judge.balancer_upstream_key_findings("/k", text)
    assert "0123456789abcdef" not in str(finding)


@pytest.mark.parametrize("value", [
    "0123456789abcdef", '"0123456789abcdef"', "'0123456789abcdef'", "01234567\\\n89abcdef", "'01234567'\"89abcdef\" ",
])
def test_the_servers_key_is_read_as_systemd_reads_it(value):
    text = f"# key\nVLLM_API_KEY={value}\n"
    assert judge.balancer_upstream_key(text) == "0123456789abcdef"
    assert judge.balancer_upstream_key_findings("/k", text) == []


def test_last_assignment_of_the_servers_key_counts():
    """As it does in an EnvironmentFile of systemd, which the servers' unit reads."""
    text = "VLLM_API_KEY=the-old-key-0123456\nOTHER=1\nVLLM_API_KEY=the-new-key-0123456\n"
    assert judge.balancer_upstream_key(text) == "the-new-key-0123456"


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_shipped_layouts(path):
    """Servers and balancer of each are such as the checks let pass, and every GPU is at work."""
    inventory = yaml.safe_load(path.read_text())
    group = inventory["k80-hosts"]
    values = group["vars"]
    instances = kepler_instances.instances_with_defaults(
        values["vllm_service_instances"], values.get("vllm_service_instance_defaults", {})
    )
    assert kepler_instances.inventory_findings(instances, PROFILE["serve"]) == []
    assert sorted(gpu for item in instances for gpu in item["gpus"]) == [0, 1, 2, 3]
    (balancer,) = inventory["k80_balancer"]["hosts"]
    own = {
        name.removeprefix("load_balancer_"): value
        for name, value in inventory["k80_balancer"].get("vars", {}).items()
    }
    pools = judge.balancer_pools(dict.fromkeys(group["hosts"], values), list(group["hosts"]), balancer)
    assert len(pools) == 1
    defaults = {
        "host": "127.0.0.1", "port": 8080, "tls": "host" in own, "certificate": "", "certificate_key": "",
        "keys_file": "", "upstream_key_file": judge.balancer_upstream_key_file(pools), "pools": pools,
        "default_pool": next(iter(pools)), "drained": [],
    }  # fmt: skip
    assert judge.balancer_findings({**defaults, **own}, balancer) == []


def test_the_layouts_are_those_of_two_boards():
    sizes = {
        path.stem: len(yaml.safe_load(path.read_text())["k80-hosts"]["vars"]["vllm_service_instances"])
        for path in EXAMPLES
    }
    assert sizes == {"tp4": 1, "tp2x2": 2, "tp1x4": 4}


def test_the_check_stops_before_anything_is_changed(tmp_path):
    status, printed = rig.play(tmp_path, {"load_balancer_host": "0.0.0.0"}, tasks_from="check")
    assert status != 0
    assert "nothing was changed" in printed
    for variable in ("keys_file", "certificate", "certificate_key", "pools"):
        assert f"load_balancer_{variable}: found no" in printed


def variables(directory, **more):
    pools = {"m": [{"name": "box/a", "address": "127.0.0.1", "port": 8000}]}
    return {"load_balancer_pools": pools, **rig.key_files(directory), **more}


@needs_nginx
def test_it_is_written_once_and_shows_no_key(tmp_path):
    asked = variables(tmp_path)
    (tmp_path / "again").mkdir()
    given = [Path(path).read_bytes() for path in rig.key_files(tmp_path / "again").values()]
    secrets = [*rig.KEYS.values(), rig.UPSTREAM_KEY, *(b64encode(text).decode() for text in given)]
    for changed in (4, 0):
        status, printed = rig.play(tmp_path, asked, "-vvv", "--diff")
        assert status == 0, printed
        assert f"changed={changed} " in printed
        assert [text for text in secrets if text in printed] == []
    etc = tmp_path / "etc"
    modes = {str(path.relative_to(etc)): stat.S_IMODE(path.stat().st_mode) for path in etc.rglob("*")}
    assert modes == {
        "keys.conf": 0o600, "nginx.conf": 0o644, "next": 0o700, "next/keys.conf": 0o600, "next/nginx.conf": 0o644
    }


@needs_nginx
def test_a_dry_run_writes_nothing(tmp_path):
    status, printed = rig.play(tmp_path, variables(tmp_path), "--check", "--diff")
    assert status == 0, printed
    assert not (tmp_path / "etc").exists()
    assert rig.UPSTREAM_KEY not in printed


@needs_nginx
def test_what_nginx_would_not_take_never_goes_live(tmp_path):
    asked = variables(tmp_path)
    assert rig.play(tmp_path, asked)[0] == 0
    live = [tmp_path / "etc" / name for name in ("nginx.conf", "keys.conf")]
    before = [path.read_text() for path in live]
    rig.secret(tmp_path / "clients", f"alice {rig.KEYS['alice']}\n")
    status, printed = rig.play(tmp_path, {**asked, "load_balancer_access_log": "a b c"})
    assert status != 0 and "[emerg]" in printed
    assert [path.read_text() for path in live] == before


@needs_nginx
def test_keys_alone_are_read_by_nginx_before_they_go_live(tmp_path):
    """Though nginx.conf is as it was."""
    asked = variables(tmp_path)
    assert rig.play(tmp_path, asked)[0] == 0
    etc, program = tmp_path / "etc", tmp_path / "programs" / "nginx"
    before = (etc / "keys.conf").read_text()
    rig.secret(tmp_path / "clients", f"alice {rig.KEYS['alice']}\n")
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ngrep -q bob {etc}/next/keys.conf || {{ echo '[emerg] bob' >&2; exit 1; }}\n")
    program.chmod(0o755)
    status, printed = rig.play(tmp_path, asked, path=program.parent)
    assert status != 0 and "[emerg] bob" in printed
    assert (etc / "keys.conf").read_text() == before


@pytest.fixture
def start(tmp_path):
    """Function that runs what starts the balancer: what systemd was told to do, and the counts of the play."""
    log, systemctl = tmp_path / "systemctl.log", tmp_path / "programs" / "systemctl"
    systemctl.parent.mkdir()
    shown = 'if [ "$1" = show ]; then echo LoadState=loaded; echo ActiveState=active; fi'
    systemctl.write_text(f'#!/bin/sh\necho "$@" >> {log}\n{shown}\n')
    systemctl.chmod(0o755)

    def run(*options):
        log.write_text("")
        status, printed = rig.play(tmp_path, {}, *options, tasks_from="start", path=systemctl.parent)
        assert status == 0, printed
        told = [line.split()[0] for line in log.read_text().splitlines()]
        return [word for word in told if word.startswith("re")], printed.rpartition("PLAY RECAP")[2]

    return run


@needs_nginx
def test_revoked_key_is_gone_after_interrupted_run(tmp_path, start):
    """The run that wrote the keys ended there, so the next one finds them as they should be."""
    asked = variables(tmp_path)
    assert rig.play(tmp_path, asked)[0] == 0
    assert start()[0] == ["reload"]
    told, counts = start()
    assert (told, "changed=0" in counts) == ([], True)

    rig.secret(tmp_path / "clients", f"alice {rig.KEYS['alice']}\n")
    assert rig.play(tmp_path, asked)[0] == 0
    assert rig.KEYS["bob"] not in (tmp_path / "etc" / "keys.conf").read_text()
    status, printed = rig.play(tmp_path, asked)
    assert (status, "changed=0" in printed) == (0, True), printed
    told, counts = start("--check")
    assert (told, "changed=1" in counts) == ([], True)
    assert start()[0] == ["reload"]
    assert start()[0] == []


@pytest.mark.skipif(rig.LACKING == "needs root", reason="needs root")
@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.chmod(0o644), "mode 0644; expected a file on the balancer that root alone can read"),
        (lambda path: path.unlink(), "missing; expected a file on the balancer. Put it there"),
        (lambda path: rig.secret(path, "alice short"), "line 1 of"),
    ],
)
def test_a_key_file_that_is_none_is_refused(tmp_path, spoil, message):
    asked = variables(tmp_path)
    path = tmp_path / "clients"
    path.chmod(0o600)
    spoil(path)
    status, printed = rig.play(tmp_path, asked)
    assert status != 0
    assert message in " ".join(printed.split())
    assert "load_balancer_keys_file: found" in printed
    assert not (tmp_path / "etc" / "nginx.conf").exists()


def test_an_address_made_of_facts_that_nobody_gathered():
    values = {"load_balancer_address": "{{ ansible_facts.default_ipv4.address }}", "vllm_service_instances": [
        {"name": "main", "model": "/m/x", "host": "0.0.0.0"}
    ]}  # fmt: skip
    assert judge.balancer_pools({"box": values}, ["box"], "box")["x"][0]["address"] == "127.0.0.1"
    with pytest.raises(judge.AnsibleFilterError, match=r"address of box: found .{{ ansible_facts.* Write it out"):
        judge.balancer_pools({"box": values}, ["box"], "other")
