"""Which models the role fetches."""

from rendered import evaluate


def test_a_model_may_stand_in_the_defaults_of_the_instances():
    asked = evaluate(
        "models", "{{ __models_asked }}",
        vllm_service_instance_defaults={"model": "owner/both", "port": 8000},
        vllm_service_instances=[{"name": "a"}, {"name": "b", "model": "owner/own", "revision": "v1"}],
    )
    assert asked == [{"name": "owner/both", "revision": "main"}, {"name": "owner/own", "revision": "v1"}]
