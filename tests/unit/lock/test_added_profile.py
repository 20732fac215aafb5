"""A profile that somebody adds: its hosts are rendered for, planned and preflighted, and nothing else is changed."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from ansible_collections.kepler.vllm.plugins.plugin_utils import profiles
from ansible_run import ansible_playbook
from module_server import module_python
from rendered import evaluate, render

PROJECT = Path(__file__).resolve().parents[3]
BOARD = {"product": "Example X1", "memory_mib": 32768, "bandwidth": 9e11, "link": "pcie", "bar1_gib": 32}
# What differs from the profile that it is copied from.
CHANGES = {
    "groups": {"hosts": "example-hosts", "builder": "example_builder"},
    "platform": {"os": ["rocky"], "major": 9, "cuda_repo": "cuda-rhel9"},
    "gpu": {
        "name": "Example X1",
        "boards": {"0x9999": BOARD, "0x999a": BOARD},
        "compute_capability": "7.0", "other_pci_ids": {}, "undriven_pci_ids": [], "per_board": 1, "cooling": "active",
    },
    "toolchain": {"cuda_home": "/usr/local/cuda-12.8", "compiler_bin": "/usr/bin", "nvcc": ["12.0", "12.9"]},
    "python": {"version": "3.12", "providers": ["source"], "output": "python312", "command": "python3.12"},
    "engines": {"port": {"environment": {"EXAMPLE_SWITCH": "1"}}},
}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Profiles with `example` beside those of the project."""
    root = Path(shutil.copytree(PROJECT / "profiles", tmp_path / "profiles"))
    shutil.copytree(root / "k80", root / "example")
    path = root / "example" / "profile.yml"
    profile = {**yaml.safe_load(path.read_text()), **CHANGES}
    profile["limits"]["temperature"] = 70
    profile["serve"]["sizes"] = [1, 2]
    path.write_text(yaml.safe_dump(profile))
    path = root / "example" / "lock" / "rpms.yml"
    text = path.read_text().replace("cuda-rhel8", "cuda-rhel9").replace("cuda-nvcc-11-4", "cuda-nvcc-12-8")
    path.write_text(re.sub(r"\bel8(_[0-9]+)?\b", "el9", text))
    path = root / "example" / "lock" / "sources.yml"
    path.write_text(path.read_text().replace("version: 3.10.16", "version: 3.12.9"))
    monkeypatch.setenv("KEPLER_PROFILES_DIR", str(root))
    return root


@pytest.fixture
def variables(root):
    """What a host of the profile has."""
    return {"profile": profiles.profiles(root)["example"], "kepler_lock": profiles.lock_of(root / "example")}


def test_roles_render_what_the_profile_says(variables):
    built = evaluate("pytorch", "{{ __pytorch_build_environment }}", **variables)
    assert built["CUDA_HOME"] == "/usr/local/cuda-12.8"
    assert built["TORCH_CUDA_ARCH_LIST"] == "7.0"
    assert built["CC"] == "/usr/bin/gcc"
    for role, script in (("pytorch", "build-source.sh"), ("vllm", "build-vllm.sh"), ("vllm", "build-serving.sh")):
        text = render(role, script, **variables)
        assert "$python312/bin/python3.12" in text
        assert not re.search(r"python3\.?10|sm_37|compute_37|VLLM_USE_V1", text)
    assert "compute_70" in render("pytorch", "build-source.sh", **variables)
    inputs = evaluate("vllm", "{{ __store_python }}", store_outputs={"python312": "/store/p"}, **variables)
    assert inputs == {"python312": "/store/p"}
    assert evaluate("vllm", "{{ vllm_kernels_nvcc }}", **variables) == "/usr/local/cuda-12.8/bin/nvcc"
    assert evaluate("cuda_toolkit", "{{ __cuda_toolkit_nvcc_package }}", **variables) == "cuda-nvcc-12-8"
    assert "/rhel9/" in evaluate("repos", "{{ repos_cuda_baseurl }}", **variables)
    ids = evaluate("repos", "{{ __repos_online_definitions | map(attribute='id') }}", **variables)
    assert ids == ["epel", "cuda-rhel9"]
    assert evaluate("qualification", "{{ qualification_temperature }}", **variables) == "70"


def test_a_model_is_planned_for_its_gpus(root, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096,
    }))
    plan = PROJECT / "playbooks" / "plan.yml"
    arguments = ["-i", "localhost,", plan, "-e", f"plan_model={tmp_path}"]
    done = ansible_playbook(tmp_path, *arguments, "-e", "plan_profile=example")
    assert done.returncode == 0, done.stdout
    assert "A GPU: 32.00 GiB" in done.stdout
    assert "the bound of 900 GB/s" in " ".join(done.stdout.split())
    assert re.findall(r"^ +([0-9]) +fp16", done.stdout, re.MULTILINE) == ["1", "2"]
    unnamed = ansible_playbook(tmp_path, *arguments)
    assert unnamed.returncode != 0
    assert "plan_profile: found none; expected one of example, k80, volta" in " ".join(unnamed.stdout.split())


def test_its_hosts_are_preflighted(root, tmp_path):
    """Two sound boards, on a machine that is of another distribution; a K80 beside them is another profile's."""
    bus = tmp_path / "pci"
    for address, device in (("0000:01:00.0", "0x9999"), ("0000:02:00.0", "0x999a"), ("0000:03:00.0", "0x102d")):
        (bus / address).mkdir(parents=True)
        resource = "0xc6000000 0xc6ffffff 0x40200\n0x0000033000000000 0x00000337ffffffff 0x14220c\n"
        for name, text in (("vendor", "0x10de"), ("device", device), ("resource", resource)):
            (bus / address / name).write_text(text + "\n")
    host = {
        "ansible_connection": "local", "ansible_python_interpreter": module_python(), "ansible_become": False,
        "preflight_pci_root": str(bus), "store_root": str(tmp_path / "kepler"),
    }
    inventory = tmp_path / "hosts.json"
    inventory.write_text(json.dumps({"example-hosts": {"hosts": {"stub": host}}, "k80-hosts": {"hosts": {}}}))
    done = ansible_playbook(
        tmp_path, "-i", inventory, PROJECT / "playbooks" / "preflight.yml", "-l", "example-hosts",
        "-e", "preflight_json=reports",
    )
    assert "changed=1" not in done.stdout
    report = json.loads((tmp_path / "reports" / "stub.json").read_text())
    said = {(item["found"], item["expected"]) for item in report["findings"]}
    assert [found for found, _ in said if "on the PCI bus" in found or "is not mapped" in found] == []
    assert [expected for _, expected in said if expected.startswith("Enterprise Linux")] == [
        "Enterprise Linux 9 (Rocky, RHEL, ...)"
    ]
    assert [pair[0] for pair in said if any("K80" in text for text in pair)] == ["a Tesla K80 at 0000:03:00.0"]
