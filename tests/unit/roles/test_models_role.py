"""Which models the role fetches."""

import json
from pathlib import Path

ROLE = Path(__file__).resolve().parents[3] / "roles" / "models"


def test_a_model_may_stand_in_the_defaults_of_the_instances(play):
    tasks = [{"name": "Show", "ansible.builtin.debug": {"msg": "asked {{ __models_asked | to_json }}"}}]
    status, output = play(
        tasks, gather_facts=False, vars_files=[str(ROLE / part / "main.yml") for part in ("defaults", "vars")],
        variables={
            "vllm_service_instance_defaults": {"model": "owner/both", "port": 8000},
            "vllm_service_instances": [{"name": "a"}, {"name": "b", "model": "owner/own", "revision": "v1"}],
        },
    )
    assert status == 0, output
    said = " ".join(output.split()).partition("asked ")[2]
    asked, _ = json.JSONDecoder().raw_decode(said.replace("\\", ""))
    assert asked == [{"name": "owner/both", "revision": "main"}, {"name": "owner/own", "revision": "v1"}]
