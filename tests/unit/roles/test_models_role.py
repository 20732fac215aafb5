"""Which models the role fetches, and with what."""

from rendered import ROOT, evaluate

PORT = {"engine": "port", "options": {}}


def test_a_model_may_stand_in_the_defaults_of_the_instances():
    asked = evaluate(
        "models", "{{ __models_asked }}",
        vllm_service_instance_defaults={"model": "owner/both", "port": 8000},
        vllm_service_instances=[{"name": "a"}, {"name": "b", "model": "owner/own", "revision": "v1"}],
    )
    assert asked == [{"name": "owner/both", "revision": "main", "uses": [PORT]},
                     {"name": "owner/own", "revision": "v1", "uses": [PORT]}]


def test_program_that_fetches_has_whole_reader_of_checkpoints():
    files = evaluate("models", "{{ __models_reader_files | map(attribute='dest') | list }}")
    own = {path.name for path in (ROOT / "plugins/module_utils/checkpoint").glob("*.py")}
    assert set(files) == {f"/usr/local/libexec/kepler-models/checkpoint/{name}" for name in own} and "engine.py" in own
