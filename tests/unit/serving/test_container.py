"""The entry of the container image: arguments, checks of what the container was given, and who ends a server there."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import types

import pytest
from supervised import KEY, ROOT, Supervised, wait_for
from vllm_serving import container, envs
from vllm_serving.errors import ConfigError

DEFAULTS = ["--host", "0.0.0.0", "--port", "8000", "--dtype", "float32"]
# The container's entry with a server that does what it is told.
START = """
import sys
from vllm_serving import client, container, supervisor
from vllm_serving.versions import v0_9_2
supervisor.POLL, supervisor.IDLE_POLL = 0.1, 0.1
supervisor.table_of = lambda version: v0_9_2
supervisor.metadata.version = lambda name: "0.9.2"
supervisor.command_of = lambda options, *arguments, **others: [sys.executable, sys.argv[1], sys.argv[2]]
container.shares_network_of_host = lambda: False
sys.exit(container.main(sys.argv[3:]))
"""


@pytest.fixture
def model(tmp_path):
    """A directory with a model's config."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}')
    return str(tmp_path / "model")


@pytest.fixture
def alone(tmp_path, model):
    """A server in a container: no systemd listens."""
    unit = Supervised(tmp_path)

    def start(*arguments, **variables):
        unit.run(
            "-c", START, ROOT / "tests" / "unit" / "serving" / "fake_vllm.py", tmp_path, "g1", "--host", "127.0.0.1",
            "--port", unit.port, "--model", model, *arguments,
            **{"PYTHONPATH": ROOT / "vllm_src", "NOTIFY_SOCKET": "", **variables},
        )

    unit.begin = start

    def is_ready():
        assert unit.process.poll() is None, unit.output()
        return "is ready after" in unit.output()

    unit.is_ready = is_ready
    yield unit
    unit.close()


def parse(*arguments):
    return container.parse([*DEFAULTS, *map(str, arguments)])


def test_arguments_of_users_are_taken_and_replace_defaults():
    found, passed = parse(
        "--model", "/models/x", "--dtype", "half", "--enforce-eager", "--tensor-parallel-size", 4, "--port=9000",
        "--max_model_len", 2048, "--gpu-memory-utilization", 0.85, "--rope-scaling", '{"factor": 2}',
        "--no-enable-prefix-caching", "--served-model-name", "one", "two",
    )
    assert found == {
        "model": "/models/x", "host": "0.0.0.0", "port": 9000, "dtype": "half", "enforce-eager": True,
        "tensor-parallel-size": 4, "max-model-len": 2048, "gpu-memory-utilization": 0.85,
        "rope-scaling": {"factor": 2}, "enable-prefix-caching": False, "served-model-name": ["one", "two"],
    }  # fmt: skip
    assert passed == [
        "--dtype", "float32", "--dtype", "half", "--enforce-eager", "--tensor-parallel-size", "4", "--max_model_len",
        "2048", "--gpu-memory-utilization", "0.85", "--rope-scaling", '{"factor": 2}', "--no-enable-prefix-caching",
        "--served-model-name", "one", "two",
    ]  # fmt: skip


@pytest.mark.parametrize("arguments", [
    ("serve", "/models/x", "-tp", "2"), ("vllm", "serve", "/models/x", "-tp=2"),
    ("--enforce-eager", "/models/x", "-tp", "2"),
    ("-tp", "2", "/models/x"), ("--model=/models/x", "--tensor_parallel_size=2"),
])  # fmt: skip
def test_model_is_an_option_or_the_first_argument(arguments):
    found, passed = parse(*arguments)
    assert (found["model"], found["tensor-parallel-size"]) == ("/models/x", 2)
    assert "/models/x" not in passed
    assert "serve" not in passed


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "--model: found none; expected arguments of vllm serve"),
    (("--model", "/m", "--port", "http"), "--port: found http; expected a number"),
    (("--model", "/m", "--api-key", "secret"), "--api-key: found it .* VLLM_API_KEY_FILE"),
    (("--model", "/m", "--config=x.yaml"), "--config: found it .* Give the options as arguments"),
    (("--model", "/m", "--data-parallel-size", "2"), "--data-parallel-size: found it .* Start another container"),
    (("--model", "/m", "--ssl-keyfile", "k"), "--ssl-keyfile: found it .* TLS"),
])  # fmt: skip
def test_arguments_that_no_container_can_have_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message) as refused:
        parse(*arguments)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_one_server_is_no_data_parallel_one():
    assert parse("--model", "/m", "--data-parallel-size", "1")[0]["data-parallel-size"] == 1


@pytest.mark.parametrize("text", ["a-secret\n", "VLLM_API_KEY=a-secret\n", '# of all\nVLLM_API_KEY="a-secret"\n',
                                  "# mine\n'a-secret'\n", "VLLM_API_KEY=a-secret\nRAY_AUTH_TOKEN=another\n"])
def test_key_file_has_a_key_or_the_line_of_a_unit(tmp_path, text):
    (tmp_path / "key").write_text(text)
    (tmp_path / "key").chmod(0o440)
    environment = {"VLLM_API_KEY_FILE": str(tmp_path / "key")}
    container.read_key(environment)
    assert environment["VLLM_API_KEY"] == "a-secret"


@pytest.mark.parametrize(("text", "mode", "message"), [
    ("a-secret", 0o644, "found mode 0644, which lets others read it; .* chmod 400"),
    ("a-secret", 0o402, "found mode 0402"),
    ("", 0o400, "found an empty file; .* openssl rand"),
    ("two words of a-secret", 0o400, "with a space"),
    ("a-secret\na-secret\n", 0o400, "found no line VLLM_API_KEY="),
    (None, 0, "cannot be read: No such file or directory; .* mount it with -v"),
])  # fmt: skip
def test_key_file_that_is_none_is_refused(tmp_path, text, mode, message):
    if text is not None:
        (tmp_path / "key").write_text(text)
        (tmp_path / "key").chmod(mode)
    with pytest.raises(ConfigError, match=f"VLLM_API_KEY_FILE: .*{message}") as refused:
        container.read_key({"VLLM_API_KEY_FILE": str(tmp_path / "key")})
    assert "a-secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_model_that_is_not_mounted_is_named(tmp_path, model):
    container.check_model(model)
    container.check_model("Qwen/Qwen3-0.6B")
    with pytest.raises(ConfigError, match=r"--model: found nothing at .*/nowhere in the container.*-v /srv/models"):
        container.check_model(str(tmp_path / "nowhere"))
    # An engine makes the directory where a mount's source is missing.
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"--model: found no config.json in .*/empty; .*-v /srv/models"):
        container.check_model(str(tmp_path / "empty"))


@pytest.fixture
def gpus(tmp_path, monkeypatch):
    """Function that gives the container so many GPUs, a driver and an image's CUDA."""

    def give(count, driver=(11, 4), image=(11, 7)):
        (tmp_path / "dev").mkdir()
        for number in range(count):
            (tmp_path / "dev" / f"nvidia{number}").touch()
        monkeypatch.setattr(container, "cuda_of_driver", lambda: driver)
        monkeypatch.setattr(container, "cuda_of_image", lambda: image)
        return tmp_path

    return give


@pytest.mark.parametrize(("given", "wanted", "message"), [
    ((0,), 1, "GPU: found none in the container; .*--gpus all .*VLLM_KEPLER_DEVICE=cpu"),
    ((2,), 4, "--tensor-parallel-size: found 4, and 2 GPUs in the container"),
    ((4, None), 4, "libcuda.so.1: found none beside the GPUs; .*NVIDIA_DRIVER_CAPABILITIES"),
    ((4, (11, 4), (12, 8)), 4, "driver: found one for CUDA 11.4; expected one for CUDA 12.0 or newer, .* CUDA 12.8"),
])  # fmt: skip
def test_gpus_that_do_not_do_are_named(gpus, given, wanted, message):
    with pytest.raises(ConfigError, match=message) as refused:
        container.check_gpus(wanted, gpus(*given))
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("given", [(4,), (1, (13, 0)), (1, (12, 0), (12, 8)), (1, (11, 4), None)])
def test_newer_driver_and_older_minor_release_of_cuda_do(gpus, given):
    container.check_gpus(1, gpus(*given))


def test_cuda_of_the_image_is_read_without_importing_torch(tmp_path, monkeypatch):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise RuntimeError")
    version = tmp_path / "torch" / "version.py"
    monkeypatch.syspath_prepend(tmp_path)
    for text, found in (("cuda: Optional[str] = '11.7'", (11, 7)), ("cuda = '12.8'", (12, 8)), ("cuda = None", None)):
        version.write_text(f"__version__ = '2.0.1'\n{text}\nhip: Optional[str] = None\n")
        assert container.cuda_of_image() == found


@pytest.fixture
def released(monkeypatch, tmp_path):
    """Function that checks a container of the released vLLM: its version, programs on the path, whether Python.h is."""
    def check(version, programs=(), header=False, **environment):
        (tmp_path / "bin").mkdir()
        for name in programs:
            (tmp_path / "bin" / name).touch(mode=0o755)
        if header:
            (tmp_path / "Python.h").touch()
        monkeypatch.setenv("PATH", str(tmp_path / "bin"))
        monkeypatch.setattr(container.sysconfig, "get_path", lambda name: str(tmp_path))
        monkeypatch.setattr(container.metadata, "version", lambda name: version)
        container.check_released(environment)
        return environment

    return check


@pytest.mark.parametrize(("given", "message"), [
    ({"version": "0.12.0"}, "compiler: found no gcc or clang or cc in the container; expected gcc and the headers"),
    ({"version": "0.12.0", "programs": ["gcc"]}, "Python.h in the container; expected gcc and the headers"),
    ({"version": "0.12.0", "header": True}, "compiler: found no gcc"),
    ({"version": "0.12.0", "VLLM_KEPLER_DEVICE": "cpu"}, "VLLM_KEPLER_DEVICE: found cpu; expected GPUs: the released"),
])  # fmt: skip
def test_what_the_released_engine_lacks_is_named(released, given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        released(**given)


def test_released_engine_starts_with_a_compiler_or_cpu_operators(released):
    assert released("0.12.0", programs=["cc"], header=True) == {}


@pytest.mark.parametrize("released", [True, False])
def test_container_without_gpus_is_sent_to_a_cpu_that_can_serve(tmp_path, released):
    with pytest.raises(ConfigError, match="GPU: found none") as refused:
        container.check_gpus(1, tmp_path, released)
    assert ("VLLM_KEPLER_DEVICE=cpu" in str(refused.value)) != released


def test_cpu_build_of_the_released_engine_gets_what_a_unit_has(released):
    found = released("0.12.0+cpu", VLLM_KEPLER_DEVICE="cpu", VLLM_CPU_KVCACHE_SPACE="3")
    assert (found["VLLM_CPU_KVCACHE_SPACE"], found["TORCHDYNAMO_DISABLE"]) == ("3", "1")


def test_arguments_are_read_as_those_of_the_engine(monkeypatch):
    """--async-scheduling is a switch of the released vLLM alone; what follows it is the model."""
    arguments = [*DEFAULTS, "--async-scheduling", "/models/m"]
    monkeypatch.setenv("VLLM_SERVING_CAPABILITY", "7.0")
    assert container.parse(arguments)[0]["model"] == "/models/m"


def test_network_of_the_host_is_known_by_its_cards(tmp_path):
    (tmp_path / "sys/class/net/eth0").mkdir(parents=True)
    assert not container.shares_network_of_host(tmp_path)
    (tmp_path / "sys/class/net/eth1/device").mkdir(parents=True)
    assert container.shares_network_of_host(tmp_path)


@pytest.mark.parametrize(("cards_of_host", "host", "published"), [(True, "127.0.0.1", False), (False, "0.0.0.0", True)])
def test_without_a_key_the_operator_publishes(monkeypatch, model, cards_of_host, host, published):
    monkeypatch.setattr(container, "shares_network_of_host", lambda: cards_of_host)
    options, environment = {"model": model, "host": "0.0.0.0"}, {"VLLM_KEPLER_DEVICE": "cpu"}
    (warning,) = container.prepare(options, environment)
    assert "no API key" in warning
    assert options["host"] == host
    assert envs.is_published(environment) == published


def test_with_a_key_nothing_is_published_without_it(monkeypatch, model):
    monkeypatch.setattr(container, "shares_network_of_host", lambda: False)
    environment = {"VLLM_KEPLER_DEVICE": "cpu", "VLLM_API_KEY": "k"}
    assert container.prepare({"model": model, "host": "0.0.0.0"}, environment) == []
    assert not envs.is_published(environment)
    assert environment["CUDA_VISIBLE_DEVICES"] == ""


def test_any_user_gets_a_directory_of_its_own(tmp_path, monkeypatch):
    monkeypatch.setattr(container, "RUNTIME", (str(tmp_path / "file" / "x"), str(tmp_path / "good")))
    (tmp_path / "file").write_text("no directory")
    found = container.runtime_directory({})
    assert found == tmp_path / "good" / str(os.getuid())
    assert found.stat().st_mode & 0o777 == 0o700
    assert container.runtime_directory({}) == found
    # One that somebody else has made is no place for sockets and keys.
    os.chown(found, 12345, 12345)
    with pytest.raises(ConfigError, match=r"found no place that user .* may write; .*--tmpfs /tmp"):
        container.runtime_directory({})


def test_caches_have_a_place_in_a_read_only_file_system(tmp_path):
    environment = {"HOME": "/proc/sys"}
    container.write_home(tmp_path, environment)
    assert environment["HOME"] == str(tmp_path / "home")


def test_what_triton_compiles_lies_where_it_may_run(tmp_path, monkeypatch):
    environment = {"HOME": str(tmp_path), "TRITON_CACHE_DIR": "/own"}
    container.write_caches(environment)
    assert environment["TRITON_CACHE_DIR"] == "/own"
    assert environment["TORCHINDUCTOR_CACHE_DIR"] == f"{tmp_path}/.cache/inductor"
    monkeypatch.setattr(container.os, "statvfs", lambda path: types.SimpleNamespace(f_flag=os.ST_NOEXEC))
    with pytest.raises(ConfigError, match=r"found a file system with noexec, .*-v vllm:/var/lib/vllm") as no:
        container.write_caches({"HOME": str(tmp_path)})
    assert "\n" not in str(no.value)


def test_directory_of_the_driver_is_that_of_the_loaded_library(tmp_path):
    (tmp_path / "maps").write_text(
        f"7f00-7f01 r-xp 0 08:01 12    /usr/lib64/libc.so.6\n7f02-7f03 r-xp 0 08:01 13  {tmp_path}/libcuda.so.580.1\n")
    assert container.directory_of_driver(tmp_path / "maps") is None
    (tmp_path / "libcuda.so.1").touch()
    assert container.directory_of_driver(tmp_path / "maps") == str(tmp_path)


def test_health_follows_the_server(alone):
    def health():
        return subprocess.run(
            [sys.executable, "-m", "vllm_serving.container", "--health"], capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT / "vllm_src"), "RUNTIME_DIRECTORY": str(alone.runtime)},
        )

    assert health().returncode == 1
    alone.begin()
    wait_for(alone.is_ready)
    assert health().returncode == 0
    assert "/health" not in alone.output(), "checks stand in no log"
    alone.process.send_signal(signal.SIGTERM)
    assert alone.process.wait(20) == 0
    assert "ends: stopped as asked" in alone.output()
    assert health().returncode == 1


def test_a_hung_server_is_ended_without_systemd(alone):
    alone.begin(VLLM_SERVING_WATCHDOG=2)
    wait_for(alone.is_ready)
    began = time.monotonic()
    alone.order(hang=True)
    assert alone.process.wait(20) == 1
    assert time.monotonic() - began > 1.5
    assert re.search("ends: hung: no sign of life for [2-9] s while serving", alone.output())


def test_a_start_without_progress_is_ended_without_systemd(alone):
    alone.order(seconds=60)
    alone.begin(VLLM_SERVING_STALL=1, VLLM_SERVING_START=2)
    assert alone.process.wait(20) == 1
    assert re.search("ends: .*(no progress for|not ready after) [0-9]+ s", alone.output())


def test_what_is_wrong_is_one_line_and_status_78(alone, tmp_path):
    alone.begin("--api-key", "secret")
    assert alone.process.wait(20) == 78
    lines = alone.output().splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("vllm@")
    assert "secret" not in lines[0]


def test_file_for_vllm_has_model_address_and_port(alone, model):
    alone.begin("--tensor-parallel-size", "1")
    wait_for(alone.is_ready)
    (path,) = alone.runtime.glob("*/options.yaml")
    assert json.loads(path.read_text()) == {
        "model": model, "host": "127.0.0.1", "port": alone.port, "disable-log-requests": True}
    assert alone.ask("/health")[0] == 200
    assert KEY not in path.read_text()
