"""A V100 host: its packages, its store, and its servers of both engines."""

from __future__ import annotations

import json

import openai
import pytest
import yaml
from conftest import MODEL, PROJECT
from license import PROMPTS, follows
from standin.repos import MIRRORS
from standin.settings import VOLTA

URL = f"http://127.0.0.1:{VOLTA.port}"
LOCK = yaml.safe_load((PROJECT / "profiles" / "volta" / "lock" / "rpms.yml").read_text())


@pytest.fixture(scope="module")
def api(key):
    return openai.OpenAI(base_url=f"{URL}/v1", api_key=key, max_retries=0)


def test_driver_is_the_locked_one_of_the_locked_stream(v100):
    """The repository offers the open modules by default, and a branch that has dropped these GPUs."""
    driver = next(entry for entry in LOCK["rpms"] if entry["name"] == "nvidia-driver")
    assert v100.check_output("rpm -q --qf '%{VERSION}' nvidia-driver") == driver["version"]
    assert v100.run("rpm -q kmod-nvidia-open-dkms").rc != 0
    streams = v100.check_output("cat /etc/dnf/modules.d/nvidia-driver.module")
    assert f"stream={driver['stream']}" in streams.replace(" ", "")
    assert v100.check_output("rpm -q kernel-devel") == f"kernel-devel-{MIRRORS['volta'].running}.x86_64"


def test_host_has_compiler_and_python_and_no_toolkit(v100):
    there = v100.check_output("rpm -qa --qf '%{NAME}\\n'").split()
    assert {"gcc", "gcc-c++", "python3.12", "python3.12-devel", "python3.12-pip"} <= set(there)
    assert not [name for name in there if name.startswith(("cuda-", "libcublas"))]


def test_generation_has_both_engines_over_one_pytorch(v100):
    text = v100.check_output("cat /opt/kepler/current/generation.json")
    outputs = json.loads(text)["outputs"]
    shared = {"python312", "pytorch", "vllm_serving"}
    stock = {"vllm", "vllm_dependencies", "serving"}
    port = {"vllm_port", "vllm_dependencies_port", "serving_port", "vllm_kepler"}
    assert set(outputs) == shared | stock | port
    assert v100.file(f"{outputs['python312']}/bin/python3.12").linked_to == "/usr/bin/python3.12"
    assert v100.run("kepler-store verify vllm_serving").rc == 0


def test_pytorch_has_code_for_the_gpus(v100):
    python = "CUDA_VISIBLE_DEVICES= /opt/kepler/current/serving/bin/python"
    found = v100.check_output(f"{python} -c 'import torch; print(torch.__version__, torch._C._cuda_getArchFlags())'")
    assert "sm_70" in found.split()
    packages = yaml.safe_load((PROJECT / "profiles/volta/lock/python/serving.yml").read_text())["packages"]
    (torch,) = [package["version"] for package in packages if package["project"] == "torch"]
    assert found.split()[0].startswith(torch)


def test_server_is_the_released_engine_under_our_unit(v100):
    assert v100.service("vllm@gpu0").is_running
    log = v100.check_output("journalctl --unit vllm@gpu0 --no-pager --output cat")
    assert "Initializing a V1 LLM engine" in log
    assert "vllm_kepler" not in log
    environment = v100.file("/etc/kepler/instances/gpu0.env").content_string
    assert {"NCCL_CUMEM_ENABLE=0", "NCCL_PROTO=Simple"} <= set(environment.splitlines())


def test_answers_follow_the_text_that_the_model_has_learned(api):
    for prompt in PROMPTS[:3]:
        answer = api.completions.create(model=MODEL, prompt=prompt, max_tokens=30, temperature=0)
        assert follows(prompt, answer.choices[0].text)


def test_instance_of_the_port_runs_its_own_environment(v100):
    """One host, one unit template, two engines."""
    assert v100.service("vllm@port").is_running
    log = v100.check_output("journalctl --unit vllm@port --no-pager --output cat")
    assert "vllm_kepler" in log
    assert "Initializing a V1 LLM engine" not in log
    pid = v100.check_output("systemctl show --value --property MainPID vllm@port")
    environment = json.loads(v100.check_output("cat /opt/kepler/current/generation.json"))["outputs"]["serving_port"]
    assert v100.check_output(f"tr '\\0' ' ' < /proc/{pid}/cmdline").startswith(f"{environment}/bin/python ")
    sources = yaml.safe_load((PROJECT / "profiles/volta/lock/sources.yml").read_text())["sources"]
    version = v100.check_output("curl --silent --fail http://127.0.0.1:8002/version")
    assert json.loads(version)["version"].partition("+")[0] == sources["vllm_port"]["version"]


def test_port_over_two_ranks_answers_as_the_released_engine(ask, api):
    """Greedy, of one model: one computes with the port's operators, the other with vLLM's own."""
    for prompt in PROMPTS[:3]:
        stock = api.completions.create(model=MODEL, prompt=prompt, max_tokens=20, temperature=0)
        answer = ask.text("http://127.0.0.1:8002", model="port", prompt=prompt, max_tokens=20)
        assert answer == stock.choices[0].text


def test_a_request_without_the_key_is_refused():
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{URL}/v1", api_key="another", max_retries=0).models.list()
