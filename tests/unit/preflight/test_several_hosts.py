"""Instances over several hosts: what of the inventory is refused, and what each host gets."""

import json

import pytest
import yaml
from ansible.errors import AnsibleFilterError
from ansible_collections.kepler.vllm.plugins.filter import kepler_hosts
from ansible_collections.kepler.vllm.plugins.filter.kepler_balancer import balancer_pools
from ansible_collections.kepler.vllm.plugins.filter.kepler_instances import instances_with_defaults, inventory_findings
from ansible_collections.kepler.vllm.plugins.filter.kepler_qualification import qualified_instances
from ansible_collections.kepler.vllm.plugins.module_utils.server.versions import table_of
from ansible_collections.kepler.vllm.plugins.plugin_utils.engine_options import by_ray
from ansible_collections.kepler.vllm.plugins.plugin_utils.several_hosts import PORTS, link_of
from rendered import PROFILE, ROOT, evaluate, profiles, render
from vllm_serving.cluster import SPAN

SERVE = PROFILE["serve"]
EXAMPLE = yaml.safe_load((ROOT / "inventory/examples/two-hosts.yml").read_text())["k80-hosts"]
HOSTS = list(EXAMPLE["hosts"])
FIRST, SECOND = HOSTS
ADDRESSES = EXAMPLE["vars"]["vllm_service_instances"][0]["link"]


def instance(**changes):
    (made,) = instances_with_defaults(
        [{**EXAMPLE["vars"]["vllm_service_instances"][0], **changes}], {}, SERVE,
    )  # fmt: skip
    return {key: value for key, value in made.items() if value != "leave out"}


def facts(address):
    return {"interfaces": ["lo", "ens2f0"], "lo": {"ipv4": {"address": "127.0.0.1"}},
            "ens2f0": {"ipv4": {"address": address}}}


def hostvars(**changes):
    return {
        host: {"inventory_hostname": host, "ansible_facts": facts(ADDRESSES[host]),
               "vllm_service_instances": [instance()], "preflight_clock_ahead": 0, **changes}
        for host in HOSTS
    }


def test_example_is_valid():
    assert inventory_findings([instance()], SERVE) == []


@pytest.mark.parametrize(("changes", "variable", "found"), [
    ({"hosts": [FIRST]}, "hosts", "k80-1"),
    ({"hosts": [FIRST, FIRST]}, "hosts", "k80-1"),
    ({"link": "leave out"}, "link", "nothing"),
    ({"link": {FIRST: "10.0.0.1", SECOND: "10.0.0.1"}}, "link", "10.0.0.1"),
    ({"link": {FIRST: "10.0.0.1", "other": "10.0.0.2"}}, "link", "other"),
    ({"link": {FIRST: "ens2f0", SECOND: "ens2f0"}}, "link", "ens2f0"),
    ({"link": "two words"}, "link", "two words"),
    ({"link": {FIRST: "127.0.0.1", SECOND: "127.0.0.2"}}, "link", "127.0.0.1"),
    ({"link_key_file": "leave out"}, "link_key_file", "nothing"),
    ({"link_port": 80}, "link_port", "80"),
    ({"link_port": 7990}, "link_port", "7990"),
    ({"cuda_graphs": True}, "cuda_graphs", "cuda_graphs and hosts"),
    ({"cuda_graphs": "auto"}, "cuda_graphs", "cuda_graphs and hosts"),
    ({"adapters": {"a": "/srv/a"}}, "adapters", "adapters and hosts"),
    ({"extra_args": {"pipeline-parallel-size": 2}}, "extra_args.pipeline-parallel-size", ""),
    ({"extra_args": {"distributed-executor-backend": "mp"}}, "extra_args.distributed-executor-backend", "hosts"),
    ({"engine": "stock", "extra_args": {"async-scheduling": True}}, "extra_args.async-scheduling", "hosts"),
    ({"hosts": "leave out", "link_key_file": "leave out"}, "link", "link without hosts"),
])  # fmt: skip
def test_instances_that_cannot_span_hosts_are_refused(changes, variable, found):
    findings = inventory_findings([instance(**changes)], SERVE)
    assert any(item["variable"] == f"vllm_service_instances[0].{variable}" and found in item["found"]
               for item in findings), findings  # fmt: skip


def test_two_instances_need_ports_of_their_own():
    first = instance(gpus=[0, 1], tensor_parallel_size=2)
    second = {**first, "name": "other", "port": 8001, "gpus": [2, 3], "link_port": first["link_port"] + PORTS - 1}
    (found,) = inventory_findings([first, second], SERVE)
    assert found["variable"] == "vllm_service_instances[1].link_port"
    assert inventory_findings([first, {**second, "link_port": first["link_port"] + PORTS}], SERVE) == []
    assert PORTS == SPAN


def test_port_of_an_instance_lies_in_no_link_of_another():
    first = instance(gpus=[0, 1], tensor_parallel_size=2)
    other = {"name": "b", "model": "/m", "gpus": [2], "tensor_parallel_size": 1}
    (second,) = instances_with_defaults([other], {}, SERVE)
    start = first["link_port"]
    for port, taken in ((start - 1, False), (start, True), (start + PORTS - 1, True), (start + PORTS, False)):
        found = inventory_findings([first, {**second, "port": port}], SERVE)
        assert [item["variable"] for item in found] == ["vllm_service_instances[1].port"] * taken


def test_hosts_that_nobody_knows_are_named():
    unknown = instance(hosts=["k80-l", "k80-z"], link="ens2f0")
    values = hostvars(vllm_service_instances=[unknown])
    here = kepler_hosts.instances_here([unknown], FIRST)
    assert here == []
    (found,) = kepler_hosts.hosts_findings(here, FIRST, values, HOSTS)
    assert (found["severity"], found["variable"]) == ("error", "vllm_service_instances[0].hosts")
    assert "k80-l" in found["found"] and FIRST in found["expected"]


def test_hosts_take_their_own_instances():
    alone = {"name": "a", "model": "/m"}
    assert kepler_hosts.instances_here([alone, instance()], "k80-3") == [alone]
    assert kepler_hosts.servers_here([alone, instance()], SECOND) == [alone]
    assert [kepler_hosts.unit_of(instance(), host) for host in HOSTS] == [
        "vllm@llama-70b", "vllm-stage@llama-70b",
    ]  # fmt: skip
    assert kepler_hosts.need_ray(HOSTS, hostvars(), SERVE)
    assert not kepler_hosts.need_ray(HOSTS, hostvars(vllm_service_instances=[alone]), SERVE)


def test_ray_is_built_for_engines_that_span_hosts_by_it():
    """The supervisor and the controller have one opinion of each engine that a profile locks."""
    for name, profile in profiles.profiles(ROOT / "profiles").items():
        sources = yaml.safe_load((ROOT / "profiles" / name / "lock" / "sources.yml").read_text())["sources"]
        for engine, own in profile["engines"].items():
            table = table_of(sources["vllm" + own["suffix"]]["version"])
            assert bool(by_ray([engine])) == table.RAY, (name, engine)
    without = {key: value for key, value in instance().items() if key != "engine"}
    for defaults, needed in (({}, False), ({"engine": "stock"}, False), ({"engine": "port"}, True)):
        values = hostvars(vllm_service_instances=[without], vllm_service_instance_defaults=defaults)
        assert kepler_hosts.need_ray(HOSTS, values, VOLTA["serve"]) == needed


def test_balancer_sees_one_server():
    hosts = {name: {**values, "ansible_host": name} for name, values in hostvars().items()}
    (servers,) = balancer_pools(hosts, HOSTS, "balancer").values()
    assert [server["name"] for server in servers] == [f"{FIRST}/llama-70b"]


def test_qualification_never_shrinks_a_stage():
    assert qualified_instances([instance()], [0, 1]) == []
    assert qualified_instances([instance()], [0, 1, 2, 3]) == [instance()]
    lost = hostvars()
    lost[SECOND]["qualification_dies"] = [0, 1]
    assert kepler_hosts.without_lost_hosts([instance()], lost) == []
    assert kepler_hosts.without_lost_hosts([instance()], hostvars()) == [instance()]


@pytest.mark.parametrize("link", [ADDRESSES, "ens2f0"])
def test_link_is_found_by_addresses_and_by_interface(link):
    assert link_of(instance(link=link), SECOND, hostvars()) == {
        "address": "10.77.0.2", "interface": "ens2f0", "head": "10.77.0.1", "peers": ["10.77.0.1"],
    }


@pytest.mark.parametrize(("link", "change", "message"), [
    ("ens9", {}, "found no interface ens9 with an IPv4 address"),
    (ADDRESSES, {"ansible_facts": facts("10.9.9.9")}, "found no interface with 10.77.0.2"),
    ("ens2f0", {"ansible_facts": {}}, "found no facts of"),
])  # fmt: skip
def test_missing_link_is_told_in_one_line(link, change, message):
    values = hostvars(**change)
    with pytest.raises(AnsibleFilterError, match=message):
        link_of(instance(link=link), SECOND, values)
    (found,) = kepler_hosts.link_findings([instance(link=link)], SECOND, values)
    assert found["variable"] == "vllm_service_instances[0].link"
    assert message.removeprefix("found ") in found["found"]
    assert found["expected"] and found["next_step"]


def test_clocks_of_the_hosts_are_compared():
    values = hostvars()
    assert kepler_hosts.link_findings([instance()], SECOND, values) == []
    values[SECOND]["preflight_clock_ahead"] = 90
    (found,) = kepler_hosts.link_findings([instance()], SECOND, values)
    assert (found["severity"], found["variable"]) == ("error", "vllm_service_instances[0].hosts")
    assert "90 s apart" in found["found"]
    # One host says it.
    assert kepler_hosts.link_findings([instance()], FIRST, values) == []


@pytest.mark.parametrize(("part", "file"), [
    ("config", "config.json"), ("tensors", "tensors"), ("tokenizer", "tokenizer_config.json"),
    ("generation", "generation_config.json"),
])  # fmt: skip
@pytest.mark.parametrize(("model", "key"), [("/srv/m", "/srv/m"), ("owner/m", "owner/m@main")])
def test_files_of_the_model_are_compared(part, file, model, key):
    same = {"config": {"num_hidden_layers": 80}, "tensors": [], "tokenizer": {}, "generation": {"top_p": 0.9}}
    other = {**same, part: {"num_hidden_layers": 40}}
    values = hostvars()
    for host, found in zip(HOSTS, (same, other), strict=True):
        values[host]["__preflight_models"] = {"models": {key: found}}
    (found,) = kepler_hosts.link_findings([instance(model=model)], SECOND, values)
    assert (found["severity"], found["variable"]) == ("error", "vllm_service_instances[0].model")
    assert f"other contents of {file} than on {FIRST}" in found["found"]
    values[SECOND]["__preflight_models"] = {"models": {key: same}}
    assert kepler_hosts.link_findings([instance(model=model)], SECOND, values) == []


def test_generations_of_the_hosts_are_compared():
    values = hostvars()
    for host, path in zip(HOSTS, ("/opt/kepler/store/a-serving_ray-1", "/opt/kepler/store/b-serving_ray-1"),
                          strict=True):  # fmt: skip
        stats = [{"item": "stock", "stat": {"exists": True, "lnk_source": "/opt/kepler/store/c"}},
                 {"item": "port", "stat": {"exists": True, "lnk_source": path}}]  # fmt: skip
        values[host]["__preflight_active"] = {"results": stats}
    (found,) = kepler_hosts.link_findings([instance()], SECOND, values)
    assert (found["severity"], found["variable"]) == ("warning", "vllm_service_instances[0].hosts")
    assert "a-serving_ray-1 on k80-1" in found["found"]
    assert f"-l '{FIRST}:{SECOND}'" in found["next_step"]
    # Those of another engine are the same.
    assert kepler_hosts.link_findings([instance(engine="stock")], SECOND, values) == []
    # A host that comes new has none yet.
    values[SECOND]["__preflight_active"] = {"results": [{"item": "port", "stat": {"exists": False}}]}
    assert kepler_hosts.link_findings([instance()], SECOND, values) == []


def test_host_outside_of_the_run_is_named():
    values = hostvars()
    del values[FIRST]["preflight_clock_ahead"]
    (found,) = kepler_hosts.link_findings([instance()], SECOND, values)
    assert (found["severity"], found["found"]) == ("warning", f"{FIRST} outside of this run")


def test_definitions_of_the_hosts_are_compared():
    assert kepler_hosts.hosts_findings([instance()], FIRST, hostvars(), HOSTS) == []
    (found,) = kepler_hosts.hosts_findings([instance()], FIRST, hostvars(), HOSTS, False)
    assert (found["found"], "has no Ray" in found["expected"]) == (f"{len(HOSTS)} hosts", True)
    stock = instance(engine="stock")
    assert kepler_hosts.hosts_findings([stock], FIRST, hostvars(vllm_service_instances=[stock]), HOSTS, False) == []
    (found,) = kepler_hosts.hosts_findings([instance()], FIRST, hostvars(), [FIRST])
    assert (found["variable"], found["found"]) == ("vllm_service_instances[0].hosts", SECOND)
    values = hostvars()
    values[SECOND]["vllm_service_instances"] = [instance(tensor_parallel_size=2)]
    (found,) = kepler_hosts.hosts_findings([instance()], FIRST, values, HOSTS)
    assert found["variable"] == "vllm_service_instances[0].tensor_parallel_size"
    values[SECOND]["vllm_service_instances"] = []
    (found,) = kepler_hosts.hosts_findings([instance()], FIRST, values, HOSTS)
    assert "none on k80-2" in found["found"]


def test_hosts_of_an_instance_are_one_batch():
    values = {**hostvars(), "k80-0": {"vllm_service_instances": []}, "k80-3": {}}
    names = {host: kepler_hosts.batch_of(host, values) for host in values}
    assert names[FIRST] == names[SECOND]
    assert len(set(names.values())) == 3
    groups = {"all": ["k80-0", FIRST, "k80-3", SECOND]}
    for host, name in names.items():
        groups.setdefault(name, []).append(host)
    assert kepler_hosts.in_batches(groups) == ["k80-0", FIRST, SECOND, "k80-3"]
    assert kepler_hosts.batch_sizes(groups, 1) == [1, 2, 1]
    assert kepler_hosts.batch_sizes(groups, "3") == [3, 1]
    assert kepler_hosts.batch_sizes(groups, "100%") == [4]
    assert kepler_hosts.batch_sizes({"all": ["a"], "kepler_batch_1": ["a"]}, "30%") == "30%"


def written(template, host, profile=PROFILE, **changes):
    return render("vllm_service", template, item=instance(**changes), inventory_hostname=host, hostvars=hostvars(),
                  profile=profile,
                  store_root="/opt/kepler", __vllm_service_current={"stat": {"lnk_target": "generations/7"}})


def test_server_and_stage_get_their_environment():
    for host, address in ADDRESSES.items():
        lines = written("instance.env.j2", host).splitlines()
        assert {"VLLM_SERVING_HEAD=10.77.0.1:6379", "VLLM_SERVING_HOSTS=2", "VLLM_SERVING_RANKS=4",
                f"VLLM_HOST_IP={address}", "NCCL_SOCKET_IFNAME=ens2f0", "GLOO_SOCKET_IFNAME=ens2f0",
                "VLLM_ENGINE_ITERATION_TIMEOUT_S=180"} <= set(lines)  # fmt: skip
    options = json.loads(written("instance.yaml.j2", FIRST).partition("{")[2].join(["{", ""]))
    assert options["pipeline-parallel-size"] == 2
    assert options["distributed-executor-backend"] == "ray"


def test_drop_ins_start_the_environment_with_ray():
    server, stage = (written("instance.conf.j2", host) for host in HOSTS)
    assert "EnvironmentFile=/etc/kepler/keys/link.env" in server
    assert "EnvironmentFile=/etc/kepler/keys/link.env" in stage
    assert "serving_ray" in server
    assert "ExecStart" not in stage
    assert "X-Kepler-Peers=10.77.0.1" in stage
    unit = render("vllm_service", "vllm-stage@.service.j2", store_root="/opt/kepler")
    assert "serving_ray" in unit
    assert "ray stop" not in unit


VOLTA = profiles.profiles(ROOT / "profiles")["volta"]


def volta(template, host, engine):
    return written(template, host, engine=engine, dtype="half", cuda_graphs=False, profile=VOLTA).splitlines()


def test_port_runs_its_environment_with_ray():
    first, second = ("\n".join(volta("instance.conf.j2", host, "port")) for host in HOSTS)
    assert '[ -e "$$generation/serving_ray_port" ]' in first
    assert '"$$generation/serving_ray_port")/bin/python" -m vllm_serving \\\n' in first
    assert 'current)/serving_ray_port")/bin/python" \\\n    -m vllm_serving.stage %i\'' in second


def test_released_engine_runs_the_environment_of_one_host():
    """Its stages read the options that the server has."""
    first, second = ("\n".join(volta("instance.conf.j2", host, "stock")) for host in HOSTS)
    assert "ExecStart" not in first
    assert ('current)/serving")/bin/python" \\\n    -m vllm_serving.stage %i /etc/kepler/instances/%i.stage.yaml\''
            in second)  # fmt: skip
    assert "EnvironmentFile=/etc/kepler/keys/link.env" in first and "link.env" in second
    texts = ["\n".join(volta("instance.yaml.j2", host, "stock")).partition("{")[2] for host in HOSTS]
    assert texts[0] == texts[1]
    options = json.loads("{" + texts[0])
    assert (options["pipeline-parallel-size"], options["distributed-executor-backend"]) == (2, "mp")


@pytest.mark.parametrize(("engine", "timeout"), [
    ("stock", "VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS=180"), ("port", "VLLM_ENGINE_ITERATION_TIMEOUT_S=180"),
])  # fmt: skip
def test_ranks_of_either_engine_meet_on_the_link(engine, timeout):
    for host, address in ADDRESSES.items():
        lines = volta("instance.env.j2", host, engine)
        assert [line for line in lines if line.startswith("VLLM_HOST_IP")] == [f"VLLM_HOST_IP={address}"]
        assert [line for line in lines if "TIMEOUT" in line] == [timeout]
        assert "NCCL_CUMEM_ENABLE=0" in lines


def test_released_engine_sees_the_gpus_of_its_ranks_alone():
    """It takes ranks for those of one host by the number of GPUs that it sees."""
    for engine, visible in (("stock", "1,2"), ("port", "1,2,3")):
        lines = written("instance.env.j2", SECOND, engine=engine, dtype="half", cuda_graphs=False, profile=VOLTA,
                        gpus=[1, 2, 3], tensor_parallel_size=2).splitlines()  # fmt: skip
        assert f"CUDA_VISIBLE_DEVICES={visible}" in lines


def test_example_of_volta_is_valid_with_either_engine():
    example = yaml.safe_load((ROOT / "inventory/examples/volta/two-hosts.yml").read_text())["v100-hosts"]
    (item,) = instances_with_defaults(example["vars"]["vllm_service_instances"], {}, VOLTA["serve"])
    assert item["hosts"] == list(example["hosts"])
    for engine in ("stock", "port"):
        assert inventory_findings([{**item, "engine": engine, "cuda_graphs": False}], VOLTA["serve"]) == []
    assert inventory_findings([item], VOLTA["serve"]) == []


def test_server_of_one_host_keeps_its_unit_and_files():
    (item,) = instances_with_defaults([{"name": "a", "model": "/m"}], {}, SERVE)
    for template in ("instance.env.j2", "instance.conf.j2", "instance.yaml.j2"):
        text = render("vllm_service", template, item=item, store_root="/opt/kepler", hostvars={},
                      __vllm_service_current={"stat": {"lnk_target": "generations/7"}})
        assert not any(word in text.lower() for word in ("ray", "pipeline", "link", "peers", "serving_head")), template
    files = evaluate("vllm_service", "{{ __vllm_service_unit_files + (__vllm_service_stage_unit_files "
                     "if __vllm_service_stages else []) }}", vllm_service_instances=[{"name": "a", "model": "/m"}])
    assert [file["template"] for file in files] == ["vllm@.service.j2", "vllm.target.j2"]


def test_sandbox_of_both_units_is_the_same():
    units = [render("vllm_service", name, store_root="/opt/kepler") for name in
             ("vllm@.service.j2", "vllm-stage@.service.j2")]
    boxes = [unit[unit.index("UMask=0077"):] for unit in units]
    assert boxes[0] == boxes[1]
    assert boxes[0].endswith("SystemCallErrorNumber=EPERM\n\n[Install]\nWantedBy=vllm.target\n")
