"""The layouts of inventory/examples, run as they stand but for the names of the hosts and the model."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conftest import INVENTORY, PROJECT, play
from license import PROMPTS, follows
from standin import hosts as standins
from standin.settings import BUILDER, LONG

pytestmark = pytest.mark.skipif(not LONG, reason="takes minutes: STANDIN_LONG=1 runs it")
EXAMPLES = sorted((PROJECT / "inventory" / "examples").glob("tp*.yml"))
HOSTS = {"k80-1.example.org": "k80-first", "k80-2.example.org": "k80-second"}
KEYS = "/etc/kepler/keys"
# What the operator puts there, as docs/load-balancer.md says.
GIVEN = f"""umask 077 && mkdir -p {KEYS} && cd {KEYS} && cp /etc/kepler-standin/api-key.env servers.env
echo "alice $(od -An -N16 -tx1 /dev/urandom | tr -d ' ')" > clients
printf 'Authorization: Bearer %s\\n' "$(cut -d' ' -f2 clients)" > header
openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost \\
  -addext subjectAltName=DNS:localhost,IP:127.0.0.1 -keyout balancer.key -out balancer.crt 2> /dev/null"""


def inventory(example: Path, directory: Path) -> tuple[Path, dict]:
    """The example as an inventory of the stand-ins, and what it says of them."""
    text = example.read_text()
    for name, standin in HOSTS.items():
        text = text.replace(f"{name}:", f"{standin}:")
    text = re.sub(r"model: /srv/models/.*", f"model: {standins.model_name()}", text)
    groups = yaml.safe_load(text.replace("max_model_len: 4096", "max_model_len: 1024"))
    variables = directory / "group_vars"
    variables.mkdir()
    shutil.copy(INVENTORY / "group_vars" / "all.yml", variables)
    # The stand-ins' own values for all hosts would win over those of a group in the same file.
    for name, group in groups.items():
        (variables / f"{name}.yml").write_text(yaml.safe_dump(group.pop("vars", {})))
    on_stand_in = {"load_balancer_address": "{{ ansible_facts.default_ipv4.address }}", "qualification": "skip"}
    with (variables / "k80-hosts.yml").open("a") as file:
        file.write(yaml.safe_dump(on_stand_in))
    (directory / "hosts.yml").write_text(yaml.safe_dump({**groups, "k80_builder": {"hosts": {"k80-builder": None}}}))
    return directory, yaml.safe_load(text)


@pytest.fixture(scope="module")
def keys(fleet):
    """What the operator gives to the hosts of the examples; the fleet is as its own inventory says afterwards."""
    for standin in HOSTS.values():
        fleet[standin].check_output(GIVEN)
    yield
    fleet["k80-first"].check_output("systemctl disable --now kepler-balancer")
    status, printed = play("site.yml")
    assert status == 0, printed[-3000:]


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_a_layout_serves(fleet, keys, example, tmp_path):
    """Every server answers with sense through the balancer, with as many ranks as the layout says."""
    directory, said = inventory(example, tmp_path)
    status, printed = standins.play(BUILDER, "-i", str(directory), "site.yml")
    assert status == 0, printed[-3000:]

    group, balancing = said["k80-hosts"], said["k80_balancer"].get("vars", {})
    defaults = group["vars"].get("vllm_service_instance_defaults", {})
    instances = [{**defaults, **instance} for instance in group["vars"]["vllm_service_instances"]]
    for server in group["hosts"]:
        units = fleet[server].check_output("systemctl list-units --plain --no-legend --state active 'vllm@*'")
        names = [f"vllm@{instance['name']}.service" for instance in instances]
        assert [line.split()[0] for line in units.splitlines()] == names
        for instance in instances:
            options = fleet[server].check_output(f"cat /etc/kepler/instances/{instance['name']}.yaml")
            assert yaml.safe_load(options)["tensor-parallel-size"] == len(instance["gpus"])

    balancer = fleet["k80-first"]
    tls = "load_balancer_certificate" in balancing
    base = f"{'https' if tls else 'http'}://localhost:{balancing.get('load_balancer_port', 8080)}"
    curl = "curl --silent --show-error --max-time 300"
    if tls:
        assert balancer.run(f"{curl} --fail --cacert {KEYS}/balancer.crt {base}/v1/models").rc != 0
        curl += f" --cacert {KEYS}/balancer.crt --header @{KEYS}/header"
    asked = [f"{base}/health/{server}/{each['name']}" for server in group["hosts"] for each in instances]
    for url in asked:
        balancer.check_output(f"{curl} --fail {url}")
    model = instances[0]["served_model_name"]
    for prompt in PROMPTS * 4:
        body = json.dumps({"model": model, "prompt": prompt, "max_tokens": 32, "temperature": 0})
        answer = balancer.check_output(
            f"{curl} --fail --header 'Content-Type: application/json' --data '{body}' {base}/v1/completions"
        )
        assert follows(prompt, json.loads(answer)["choices"][0]["text"]), answer
    log = balancer.check_output("journalctl --no-pager --output cat --identifier kepler_balancer --lines 20")
    assert len(set(re.findall(r" POST /v1/completions 200 .*? \[([\d.:]+)\]", log))) == len(asked)
