"""What the options and the environment of a unit say, and what is refused of them."""

import json
import os

import pytest
import yaml
from gguf_files import header_values, layer, write
from vllm_serving import supervisor
from vllm_serving.checkpoint.speculation import OPTION
from vllm_serving.errors import ConfigError
from vllm_serving.instance import LONGEST, read_instance

ENVIRONMENT = {
    "RUNTIME_DIRECTORY": "/run/vllm/main", "CUDA_VISIBLE_DEVICES": "0,1,2,3", "VLLM_API_KEY": "x",
    "VLLM_SERVING_START": "1800", "VLLM_SERVING_STALL": "600.5", "VLLM_SERVING_DRAIN": "0",
    "WATCHDOG_USEC": "180000000",
}  # fmt: skip
OPTIONS = {"model": "/srv/models/x", "port": 8000}
# As the role writes them.
HEAD = "#\n# Ansible managed\n#\n"


@pytest.fixture
def read(tmp_path):
    def read(options=OPTIONS, **variables):
        path = tmp_path / "main.yaml"
        if options is not None:
            path.write_text(options if isinstance(options, str) else HEAD + json.dumps(options, indent=4))
        environment = {name: value for name, value in {**ENVIRONMENT, **variables}.items() if value is not None}
        return read_instance("main", path, "7", environment)

    return read


def limits_of(instance):
    return instance.start_timeout, instance.stall_timeout, instance.drain_timeout, instance.watchdog


def test_what_is_read(read):
    instance = read()
    assert limits_of(instance) == (1800, 600.5, 0, 180)
    assert (instance.host, instance.address, instance.key) == ("0.0.0.0", "127.0.0.1", "x")
    assert str(instance) == "generation 7, model /srv/models/x, GPUs 0, 1, 2, 3, http://0.0.0.0:8000"


def test_what_is_left_out(read):
    nothing = dict.fromkeys(ENVIRONMENT) | {"RUNTIME_DIRECTORY": "/run/vllm/main"}
    instance = read({**OPTIONS, "host": "127.0.0.1"}, **nothing)
    assert limits_of(instance) == (1800, 600, 300, 0)
    assert (instance.key, instance.gpus) == (None, "all")


def test_server_to_which_cuda_shows_no_die_is_on_the_cpu(read):
    assert read(CUDA_VISIBLE_DEVICES="").gpus == "cpu"


@pytest.mark.parametrize("model", ["# no comment", "ключ \U0001f600", 'a "quoted"\nline'])
def test_options_are_what_vllm_reads(read, tmp_path, model):
    path = tmp_path / "main.yaml"
    path.write_text(HEAD + json.dumps({**OPTIONS, "model": model}, ensure_ascii=False, indent=4))
    assert read(path.read_text()).model == yaml.safe_load(path.read_text())["model"] == model


def test_addresses_of_ipv6(read):
    assert read({**OPTIONS, "host": "::"}).address == "::1"
    assert str(read({**OPTIONS, "host": "::1"})).endswith("http://[::1]:8000")


REFUSED = [
    (None, {}, "main.yaml: cannot be read: "),
    *((text, {}, "main.yaml: cannot be read: ") for text in ("", HEAD, '{"model": [', "model: x\n", "[" * 10**5)),
    (["model"], {}, "expected options of vLLM with at least model and port."),
    ({"model": "x"}, {}, "expected options of vLLM with at least model and port."),
    ({"model": "x", "port": "8000"}, {}, "expected options of vLLM with at least model and port."),
    (OPTIONS, {"RUNTIME_DIRECTORY": None}, "RUNTIME_DIRECTORY: found nothing"),
    (OPTIONS, {"RUNTIME_DIRECTORY": "/" + "x" * LONGEST}, f"found {LONGEST + 1} characters; expected at most 52"),
    (OPTIONS, {"VLLM_SERVING_DRAIN": "long"}, "VLLM_SERVING_DRAIN: found 'long'; expected a number from 0."),
    (OPTIONS, {"VLLM_SERVING_STALL": "-1"}, "VLLM_SERVING_STALL: found '-1'; expected a number from 0."),
    (OPTIONS, {"VLLM_SERVING_START": "inf"}, "VLLM_SERVING_START: found 'inf'; expected a number from 0."),
    (OPTIONS, {"WATCHDOG_USEC": "nan"}, "WATCHDOG_USEC: found 'nan'; expected a number from 0."),
]


@pytest.mark.parametrize(("options", "variables", "message"), REFUSED)
def test_refusals(read, options, variables, message):
    with pytest.raises(ConfigError) as refused:
        read(options, **variables)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "127.0.0.1.example", "k80-1", "", None])
@pytest.mark.parametrize("key", [None, "", " ", "\t\r\n"])
def test_server_beyond_loopback_needs_a_key(read, host, key):
    options = OPTIONS if host is None else {**OPTIONS, "host": host}
    with pytest.raises(ConfigError, match=r"VLLM_API_KEY: found no key .* that api_key_file names\.$"):
        read(options, VLLM_API_KEY=key)
    assert read(options).key == "x"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.0.1", "::1", "localhost"])
def test_server_on_loopback_needs_no_key(read, host):
    assert read({**OPTIONS, "host": host}, VLLM_API_KEY="").key is None


def test_the_longest_directory(read):
    assert read(RUNTIME_DIRECTORY="/" + "x" * (LONGEST - 1))


def test_a_refusal_is_one_line_and_a_status_of_its_own(tmp_path, monkeypatch, capsys):
    """systemd does not start the unit again."""
    monkeypatch.setattr(os, "environ", {})
    assert supervisor.main(["main", str(tmp_path / "none.yaml"), "7"]) == 78
    printed = capsys.readouterr().out
    assert printed.startswith(f"vllm@main ends: {tmp_path}/none.yaml: cannot be read: ")
    assert printed.count("\n") == 1
    (tmp_path / "open.yaml").write_text(json.dumps(OPTIONS))
    monkeypatch.setattr(os, "environ", {"RUNTIME_DIRECTORY": "/run/vllm/main", "VLLM_API_KEY": ""})
    assert supervisor.main(["main", str(tmp_path / "open.yaml"), "7"]) == 78
    assert capsys.readouterr().out.startswith("vllm@main ends: VLLM_API_KEY: found no key for a server on 0.0.0.0")
    assert supervisor.main(["main"]) == 78
    assert "usage: " in capsys.readouterr().err

MODEL = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.fixture
def model(tmp_path):
    """Function that writes a model's files and gives the options for it."""

    def write_files(config, tokenizer=None, more=None):
        (tmp_path / "config.json").write_text(json.dumps(config))
        if tokenizer is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(tokenizer))
        return {"model": str(tmp_path), "port": 8000, **(more or {})}

    return write_files


UNSERVABLE = [
    ({**MODEL, "model_type": "smollm3"}, None, "model_type smollm3"),
    ({**MODEL, "architectures": ["Olmo3ForCausalLM"]}, None, "Olmo3ForCausalLM"),
    ({**MODEL, "rope_parameters": {"rope_type": "proportional"}}, None, "rope_parameters.rope_type"),
    ({**MODEL, "quantization_config": {"quant_method": "fp8"}}, None, "quantized with fp8"),
    ({**MODEL, "model_type": "mamba2"}, None, "state-space"),
    (MODEL, {"tokenizer_class": "SentencePieceBackend"}, "SentencePieceBackend"),
]


@pytest.mark.parametrize(("config", "tokenizer", "named"), UNSERVABLE)
def test_a_model_that_no_start_can_serve(read, model, tmp_path, monkeypatch, config, tokenizer, named):
    options = model(config, tokenizer)
    with pytest.raises(ConfigError, match=named):
        read(options)
    monkeypatch.setattr(os, "environ", ENVIRONMENT)
    assert supervisor.main(["main", str(tmp_path / "main.yaml"), "7"]) == 78


def test_several_gguf_files_are_refused_before_start(read, model, tmp_path):
    options = model({"model_type": "llama"})
    (tmp_path / "a.gguf").touch()
    assert read(options)
    (tmp_path / "b.gguf").touch()
    with pytest.raises(ConfigError, match=r"found a\.gguf, b\.gguf; expected one GGUF file"):
        read(options)


def test_gguf_file_alone_gets_a_directory_of_its_own(read, tmp_path, monkeypatch):
    """As the unit's own, in memory; the API calls the model as before, unless the options name it."""
    monkeypatch.setattr("vllm_serving.instance.LONGEST", 500)
    file, runtime = tmp_path / "models" / "m.gguf", tmp_path / "run"
    file.parent.mkdir()
    write(file, layer(), header_values("llama"))
    for model in (file, file.parent):
        instance = read({**OPTIONS, "model": str(model)}, RUNTIME_DIRECTORY=str(runtime))
        assert (instance.model, instance.files) == (str(model), runtime / "model")
        assert instance.arguments == ["--served-model-name", str(model)]
        command = supervisor.command_of(tmp_path / "main.yaml", *instance.arguments, model=instance.files)
        assert command[command.index("serve") + 1] == str(runtime / "model")
    assert json.loads((runtime / "model" / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    assert (runtime / "model" / "m.gguf").resolve() == file
    named = read({**OPTIONS, "model": str(file), "served-model-name": "x"}, RUNTIME_DIRECTORY=str(runtime))
    assert named.arguments == []


def test_gguf_file_that_cannot_be_served_ends_the_start(read, tmp_path, monkeypatch):
    write(tmp_path / "m.gguf", layer(), header_values("llama", tokenizer=[]))
    options = {**OPTIONS, "model": str(tmp_path / "m.gguf")}
    with pytest.raises(ConfigError, match="found a tokenizer of the kind None; expected"):
        read(options)
    monkeypatch.setattr(os, "environ", ENVIRONMENT)
    assert supervisor.main(["main", str(tmp_path / "main.yaml"), "7"]) == 78


def test_gguf_file_of_the_hub_is_served_from_its_cache(read, tmp_path, monkeypatch):
    monkeypatch.setattr("vllm_serving.instance.LONGEST", 500)
    snapshot = tmp_path / "hub/models--owner--name/snapshots/abc"
    snapshot.mkdir(parents=True)
    options = {**OPTIONS, "model": "owner/name/m.gguf", "revision": "abc"}
    places = {"HF_HOME": str(tmp_path), "RUNTIME_DIRECTORY": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match=r"found no .*/abc/m\.gguf; expected owner/name/m\.gguf in the hub's cache"):
        read(options, **places)
    write(snapshot / "m.gguf", layer(), header_values("llama"))
    instance = read(options, **places)
    assert (instance.files, instance.model) == (tmp_path / "run" / "model", "owner/name/m.gguf")
    assert (instance.files / "m.gguf").resolve() == snapshot / "m.gguf"


def test_gguf_file_alone_is_no_draft(read, tmp_path):
    write(tmp_path / "m.gguf", layer(), header_values("llama"))
    draft = {"model": str(tmp_path / "m.gguf"), "num_speculative_tokens": 2}
    with pytest.raises(ConfigError, match="found a GGUF file alone for a draft model"):
        read({**OPTIONS, OPTION: json.dumps(draft)})


def test_a_model_of_the_hub_is_looked_at_in_the_cache(read, tmp_path):
    snapshot = tmp_path / "hub/models--owner--name/snapshots/abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps({**MODEL, "model_type": "smollm3"}))
    (tmp_path / "hub/models--owner--name/refs").mkdir()
    (tmp_path / "hub/models--owner--name/refs/main").write_text("abc")
    hub = {"model": "owner/name", "port": 8000}
    for options in (hub, {**hub, "revision": "abc"}):
        with pytest.raises(ConfigError, match="smollm3"):
            read(options, HF_HOME=str(tmp_path))
    assert read({**hub, "revision": "def"}, HF_HOME=str(tmp_path))


@pytest.mark.parametrize(
    ("config", "tokenizer", "more"),
    [
        (MODEL, None, {}), (MODEL, {"tokenizer_class": "PreTrainedTokenizerFast"}, {}), (["no mapping"], None, {}),
        # What the operator says counts more.
        ({**MODEL, "architectures": ["Own"]}, None, {"hf-overrides": '{"architectures": ["LlamaForCausalLM"]}'}),
        (MODEL, {"tokenizer_class": "SentencePieceBackend"}, {"tokenizer": "/srv/other"}),
        ({**MODEL, "model_type": "own", "auto_map": {"AutoConfig": "c.C"}}, None, {"trust-remote-code": True}),
    ],
)
def test_a_model_that_a_start_may_serve(read, model, config, tokenizer, more):
    assert read(model(config, tokenizer, more))


def test_overrides_that_no_engine_serves_are_refused(read, model):
    with pytest.raises(ConfigError, match="the model type mamba"):
        read(model(MODEL, None, {"hf-overrides": '{"model_type": "mamba"}'}))


@pytest.fixture
def adapter(tmp_path):
    """Function that writes an adapter's config and returns NAME=DIRECTORY."""

    def write(name, **config):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"lora_alpha": 8, **config}))
        # A header of two bytes, without tensors.
        (tmp_path / name / "adapter_model.safetensors").write_bytes(b"\x02" + bytes(7) + b"{}")
        return f"{name}={tmp_path / name}"

    return write


def test_adapters_become_arguments_of_vllm(read, adapter, tmp_path):
    """As many at once as there are, of the largest one's rank, unless the options say otherwise."""
    assert read().arguments == []
    named = " ".join([adapter("small", r=4), adapter("large", r=20)])
    modules = [json.dumps({"name": name, "path": str(tmp_path / name)}) for name in ("small", "large")]
    assert read(VLLM_SERVING_ADAPTERS=named).arguments == [
        "--enable-lora", "--max-lora-rank", "32", "--max-loras", "2", "--max-cpu-loras", "2",
        "--lora-modules", *modules,
    ]
    said = read({**OPTIONS, "max-loras": 4, "max-lora-rank": 64}, VLLM_SERVING_ADAPTERS=named).arguments
    assert said == ["--enable-lora", "--max-cpu-loras", "4", "--lora-modules", *modules]
    assert supervisor.command_of(tmp_path / "main.yaml", *said)[-len(said):] == said


@pytest.mark.parametrize(("config", "options", "message"), [
    ({"r": 4, "use_dora": True}, {}, "found use_dora (DoRA); expected a LoRA adapter"),
    ({"r": 64}, {"max-lora-rank": 16}, "found rank 64; expected at most 16 (max-lora-rank)"),
    ({}, {}, "found r None and lora_alpha 8"),
    ({"r": 4}, {"max-lora-rank": "16"}, "extra_args.max-lora-rank: found '16'; expected one of 8, 16, "),
    ({"r": 4}, {"max-loras": "2"}, "extra_args.max-loras: found '2'; expected an integer from 1."),
])
def test_adapters_that_cannot_be_served_end_the_start(read, adapter, config, options, message):
    with pytest.raises(ConfigError) as refused:
        read({**OPTIONS, **options}, VLLM_SERVING_ADAPTERS=adapter("bad", **config))
    assert message in str(refused.value)
    assert str(refused.value).startswith(("adapter bad in /", "extra_args."))


@pytest.mark.parametrize(("name", "content", "message"), [
    ("adapter_config.json", "{", "found what is no JSON: "), ("adapter_config.json", None, "found No such file"),
    ("adapter_model.safetensors", "short", "found 5 bytes that begin with no header in /"),
    ("adapter_model.safetensors", None, "found No such file or directory in /"),
])
def test_files_of_adapters_are_judged_before_the_start(read, adapter, tmp_path, name, content, message):
    named = adapter("bad", r=4)
    (tmp_path / "bad" / name).unlink()
    if content:
        (tmp_path / "bad" / name).write_text(content)
    with pytest.raises(ConfigError, match=message):
        read(VLLM_SERVING_ADAPTERS=named)


@pytest.mark.parametrize(("said", "message"), [
    ({"method": "eagle"}, "speculative-config.method: found 'eagle'; expected ngram"),
    ({"method": "ngram", "num_speculative_tokens": 0}, "num_speculative_tokens: found 0; expected an integer of 1 to"),
    ({"num_speculative_tokens": 2}, "found the model type mamba2: state-space"),
])
def test_speculation_that_no_start_can_serve(read, model, tmp_path, said, message):
    draft = {} if "method" in said else {"model": model({"model_type": "mamba2"})["model"]}
    with pytest.raises(ConfigError, match=message):
        read({**OPTIONS, "speculative-config": json.dumps({**said, **draft})})
    assert read({**OPTIONS, "speculative-config": "["})
