"""What is wrong with a host or an instance of the profile volta is told by the whole preflight, before any change."""

import json
import re

import pytest
from ansible_collections.kepler.vllm.plugins.filter.kepler_boards import gpu_of
from ansible_collections.kepler.vllm.plugins.filter.kepler_capacity import model_findings
from ansible_collections.kepler.vllm.plugins.filter.kepler_driver import driver_findings
from ansible_collections.kepler.vllm.plugins.filter.kepler_host import host_findings
from ansible_collections.kepler.vllm.plugins.filter.kepler_rpms import locked_driver
from ansible_collections.kepler.vllm.plugins.plugin_utils import profiles
from ansible_run import ansible_playbook
from module_server import module_python
from rendered import ROOT, evaluate
from test_host_findings import K80, MODEL, NEEDS, function, place
from test_host_findings import ROOT as STORE
from test_host_findings import host as k80_host

PROFILES = profiles.profiles(ROOT / "profiles")
VOLTA = PROFILES["volta"]
LOCK = profiles.lock_of(ROOT / "profiles" / "volta")
LOCKED = {**locked_driver(LOCK), "kernels": {**LOCK["kernels"], "tested": ["5.14.0-611.el9_7"]}}
WHEELS = evaluate("preflight", "{{ __preflight_wheels }}", profile=VOLTA, kepler_lock=LOCK)
V100, LARGE, TITAN, CMP = "0x1db4", "0x1db5", "0x1d81", "0x1df4"
INSTANCE = {**MODEL, "engine": "stock", "gpus": [0], "tensor_parallel_size": 1}


def gpu(device, number, **changes):
    gib = VOLTA["gpu"]["boards"].get(device, {}).get("bar1_gib", 16)
    return function(device, number, bar1={"start": 2**40, "size": gib * 2**30}, **changes)


def host(**changes):
    """Facts of a V100 host that is ready for everything."""
    return k80_host(**{
        "os": {"id": "rocky", "version_id": "9.7", "pretty_name": "Rocky Linux 9.7"}, "glibc": "2.34",
        "kernel": "5.14.0-611.el9_7.x86_64", "kernels": ["5.14.0-611.el9_7.x86_64"],
        "pci": [gpu(V100, number) for number in range(2)], "driver_package": LOCKED["driver"],
        "packages": ["bash", "kmod-nvidia-latest-dkms", "nvidia-driver"], **changes,
    })


def judge(facts, *instances, profile=VOLTA):
    return host_findings(
        facts, profile=profile, instances=list(instances) or [INSTANCE], locked=LOCKED, root=STORE, needs=NEEDS,
        memory_gib=8, jobs=0, container=False, wheels=WHEELS,
    )


def test_a_ready_host_has_no_finding():
    assert judge(host()) == []


@pytest.mark.parametrize(("changes", "severity", "found", "way_out"), [
    ({"pci": [function(K80, 4), function(K80, 5)]}, "error", "no Tesla V100", "A Tesla K80 belongs into k80-hosts."),
    ({"pci": [gpu(V100, 1), function(K80, 4), function(K80, 5)]}, "warning",
     "a Tesla K80 at 0000:04:00.0, 0000:05:00.0", "put it into a host of k80-hosts"),
    ({"driver_package": "590.48.01"}, "error", "driver 590.48.01 installed", "playbooks/upgrade.yml"),
    ({"nvidia_version": "590.48.01"}, "warning", "590.48.01 is loaded", "a reboot will be due"),
    ({"streams": {"nvidia-driver": "open-dkms"}}, "error", "nvidia-driver:open-dkms", "dnf module reset nvidia-driver"),
    ({"streams": {"nvidia-driver": "latest-dkms"}}, "error", "nvidia-driver:latest-dkms", "dnf module reset"),
    ({"packages": ["kmod-nvidia-open-dkms"]}, "error", "kmod-nvidia-open-dkms", "kmod-nvidia-open-dkms"),
    ({"modules": ["nouveau"]}, "warning", "nouveau is loaded", "nvidia_driver turns it off"),
    ({"secure_boot": True}, "error", "Secure Boot is on", "mokutil --import"),
    ({"glibc": "2.28"}, "error", "glibc 2.28", "Enterprise Linux 9 does"),
    ({"os": {"id": "rocky", "version_id": "8.10", "pretty_name": "Rocky Linux 8.10"}}, "error", "Rocky Linux 8.10",
     "Take the host out of v100-hosts"),
    ({"os": {"id": "rhel", "version_id": "9.2", "pretty_name": "Red Hat Enterprise Linux 9.2"}}, "error",
     "Red Hat Enterprise Linux 9.2", "dnf upgrade"),
    ({"kernel": "4.18.0-553.el8_10.x86_64", "kernels": []}, "error", "4.18.0-553", "playbooks/upgrade.yml"),
    ({"pci": [gpu(CMP, 1)]}, "warning", "CMP 100-210", "GPTQ models of 4 bits"),
    ({"pci": [function(LARGE, 1)]}, "error", "is not mapped", "above 4G decoding"),
    ({"programs": [place("/opt/kepler", noexec=True)]}, "error", "noexec", "remount,exec"),
])
def test_a_fault_of_the_host_is_named_with_its_way_out(changes, severity, found, way_out):
    item = next(item for item in judge(host(**changes)) if found in item["found"])
    assert item["severity"] == severity
    assert item["expected"]
    assert re.search(way_out, item["next_step"]), item["next_step"]


@pytest.mark.parametrize("version", ["9.4", "9.10", "9"])
def test_releases_with_python_are_taken(version):
    """CentOS Stream has no minor release."""
    assert judge(host(os={"id": "centos", "version_id": version, "pretty_name": "x"})) == []


def test_a_v100_in_a_host_of_k80s_is_named():
    """A warning beside K80 boards, an error in their place."""
    for pci, severity in (([function(K80, 4), function(K80, 5), gpu(V100, 8)], "warning"), ([gpu(V100, 8)], "error")):
        there = judge(k80_host(pci=pci), profile=PROFILES["k80"])
        item = next(item for item in there if "V100" in item["found"] + item["next_step"])
        assert item["severity"] == severity
        assert "v100-hosts" in item["next_step"]


def test_idle_board_of_another_profile_takes_no_number():
    """Driver 580 drives no K80: CUDA counts the V100 behind it as the first."""
    facts = host(pci=[function(K80, 1), gpu(V100, 4)])
    assert [item["severity"] for item in judge(facts)] == ["warning"]
    found = judge(facts, {**INSTANCE, "gpus": [1]})
    assert any(item["variable"] == "vllm_service_instances[0].gpus" for item in found)


def test_a_driver_before_580_moves_with_an_upgrade_alone():
    older = host(driver_package="535.183.01")
    assert any(item["variable"] == "nvidia_driver_move" for item in judge(older))
    assert not [item for item in driver_findings(older, LOCKED, False, move=True) if item["severity"] == "error"]


CONFIG = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    "max_position_embeddings": 8192, "torch_dtype": "bfloat16",
}


def of_model(device, *, gpus=1, dtype="half", **changes):
    """Findings about a server of the model, whose config differs so, on boards of one kind."""
    there = gpu_of({"pci": [gpu(device, number) for number in range(gpus)]}, VOLTA["gpu"])
    instance = {**INSTANCE, "model": "/m", "dtype": dtype, "max_model_len": 4096, "gpus": list(range(gpus)),
                "tensor_parallel_size": gpus, "extra_args": {"max-num-seqs": 8}}
    models = {"/m": {"config": {**CONFIG, **changes}, "tensors": [], "faults": []}}
    return model_findings(models, [instance], there)


AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
PACKED = {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}


@pytest.mark.parametrize(("changes", "found", "instead"), [
    ({"quantization_config": AWQ}, "awq and engine: stock", "GPTQ"),
    ({"quantization_config": PACKED}, "compressed-tensors and engine: stock", "GPTQ"),
    ({"quantization_config": {"quant_method": "fp8"}}, "fp8 and engine: stock", "unquantized weights or GPTQ"),
    ({"quantization_config": {"quant_method": "mxfp4"}}, "mxfp4 and engine: stock", "unquantized weights or GPTQ"),
    ({"architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "kv_lora_rank": 512},
     "multi-head latent attention", "engine: port serves it"),
])
def test_a_model_without_kernels_is_refused_with_what_works(changes, found, instead):
    (item,) = of_model(V100, **changes)
    assert item["severity"] == "error"
    assert found in item["found"]
    assert instead in item["expected"]


@pytest.mark.parametrize(("device", "gpus", "changes", "fits"), [
    (LARGE, 1, {}, True), (TITAN, 1, {}, False), (TITAN, 2, {}, True), (TITAN, 1, {"quantization_config": GPTQ}, True),
])
def test_memory_of_the_board_decides(device, gpus, changes, fits):
    """8 B parameters: 16 GB in float16, under 6 in 4 bits. A TITAN V has 12."""
    found = of_model(device, gpus=gpus, **changes)
    assert [item["severity"] for item in found] == ([] if fits else ["error"])


def test_bfloat16_is_refused_as_a_dtype_alone():
    """A checkpoint in bfloat16 is served in float16."""
    assert of_model(LARGE, torch_dtype="bfloat16") == []
    asked = {**INSTANCE, "dtype": "bfloat16", "port": 8000}
    rule = "{{ [i] | kepler.vllm.inventory_findings(profile.serve) }}"
    found = evaluate("preflight", rule, i=asked, profile=VOLTA)
    (item,) = [item for item in found if item["variable"].endswith("dtype")]
    assert (item["severity"], "bfloat16" in item["found"]) == ("error", True)
    assert "half" in item["expected"]


def test_playbook_names_boards_in_the_wrong_group(tmp_path):
    """Through the whole playbook, on a bus of files: nothing is changed on any host."""
    boards = {"v100-hosts": {"wrong": ["0x102d"], "mixed": [V100, "0x102d"]}, "k80-hosts": {"other": [V100]}}
    inventory = {}
    for group, hosts in boards.items():
        inventory[group] = {"hosts": {}}
        for name, devices in hosts.items():
            for number, device in enumerate(devices):
                here = tmp_path / name / f"0000:{number:02}:00.0"
                here.mkdir(parents=True)
                memory = "0x0000033000000000 0x00000333ffffffff 0x14220c"
                resource = f"0xc6000000 0xc6ffffff 0x40200\n{memory}\n"
                for file, text in (("vendor", "0x10de"), ("device", device), ("resource", resource)):
                    (here / file).write_text(text + "\n")
            inventory[group]["hosts"][name] = {
                "ansible_connection": "local", "ansible_python_interpreter": module_python(), "ansible_become": False,
                "preflight_pci_root": str(tmp_path / name), "store_root": str(tmp_path / "kepler"),
            }
    (tmp_path / "hosts.json").write_text(json.dumps(inventory))
    done = ansible_playbook(
        tmp_path, "-i", tmp_path / "hosts.json", ROOT / "playbooks" / "preflight.yml", "-e", "preflight_json=reports",
    )
    assert done.returncode != 0
    assert "changed=1" not in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
    found = {
        path.stem: {(item["severity"], group) for item in json.loads(path.read_text())["findings"]
                    for group in boards if re.search(f"(belongs into|into a host of) {group}", item["next_step"])}
        for path in (tmp_path / "reports").glob("*.json")
    }
    assert found == {
        "wrong": {("error", "k80-hosts")}, "mixed": {("warning", "k80-hosts")}, "other": {("error", "v100-hosts")},
    }
