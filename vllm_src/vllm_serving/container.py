"""Entry of the container image: arguments of `vllm serve`, checks of what the container was given, the supervisor.

`python -m vllm_serving.container GENERATION [DEFAULT...] [ARGUMENT...]`: the image names the generation and defaults,
which arguments of the user replace. `python -m vllm_serving.container --health` asks the server that runs beside it.
"""

from __future__ import annotations

import ctypes
import importlib.util
import json
import os
import re
import shutil
import socket
import stat
import sys
import sysconfig
import urllib.request
from collections.abc import Mapping, MutableMapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from . import envs, key_text
from .addresses import authority, is_loopback
from .checkpoint.engine import Engine
from .client import PROBE_MARK
from .errors import ConfigError
from .instance import CONFIGURATION, Instance, instance_of, key_of
from .supervisor import supervise

USAGE = "expected arguments of vllm serve, such as --model /models/NAME --tensor-parallel-size 4"
# Where the server may keep what ends with it, beside a directory that the operator names.
RUNTIME = ("/run/vllm", "/tmp", "/dev/shm")
OPTIONS, HEALTH = "options.yaml", "health"
SHORT = {"-tp": "tensor-parallel-size", "-pp": "pipeline-parallel-size", "-dp": "data-parallel-size",
         "-q": "quantization"}  # fmt: skip
# What a server of a container cannot have: what to do.
REFUSED = {
    "api-key": "Write the key into a file that others cannot read, and name it in VLLM_API_KEY_FILE",
    "config": "Give the options as arguments",
    "middleware": "The server has its own",
    "root-path": "The server checks keys by the paths of its API",
    "uds": "Publish a port (-p 127.0.0.1:8000:8000)",
    "headless": "A container is one whole server",
    "api-server-count": "Start another container",
    "data-parallel-size": "Start another container, and balance them (docs/containers.md)",
    **dict.fromkeys(("ssl-keyfile", "ssl-certfile", "ssl-ca-certs"), "Let the balancer speak TLS"),
}
# Options with several values; others have one.
MANY = ("served-model-name", "lora-modules", "prompt-adapters", "cuda-graph-sizes", "collect-detailed-traces")
# What Triton compiles with, and what a unit on the CPU has.
COMPILERS = ("gcc", "clang", "cc")
CPU = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "TORCHDYNAMO_DISABLE": "1"}
# Where the released vLLM keeps what it compiles: directories below that of caches, by the variables that name them.
CACHES = {"VLLM_CACHE_ROOT": "vllm", "TRITON_CACHE_DIR": "triton", "TORCHINDUCTOR_CACHE_DIR": "inductor"}
# Below this, NCCL and vLLM's queues may find no room.
SHARED_MIB = 512


def value_of(text: str) -> Any:
    """Return what a value of the command line means: a number, a mapping or a list, else the text."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    return found if isinstance(found, (int, float, dict, list)) else text


def parse(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """Return the options in arguments of `vllm serve`, and the arguments that vLLM gets.

    Model, host and port are options alone: vLLM has them from its file. Raises ConfigError.
    """
    names = Engine("stock" if envs.capability(os.environ) else "port").names
    switches, flags = names.SWITCHES, names.FLAGS
    rest = list(arguments)
    found: dict[str, Any] = {}
    passed: list[str] = []
    while rest:
        word = rest.pop(0)
        name, has_value, value = word.partition("=")
        if not word.startswith("-"):
            if word not in ("vllm", "serve"):
                found["model"] = word
            continue
        name = SHORT.get(name) or name.removeprefix("--").replace("_", "-")
        taken = [word]
        if name in flags | switches:
            values: list[str] = []
        elif name.removeprefix("no-") in switches and name.startswith("no-"):
            found[name.removeprefix("no-")] = False
            passed.append(word)
            continue
        elif has_value:
            values = [value]
        else:
            # Values that begin with a hyphen are negative numbers.
            count = next((at for at, one in enumerate(rest) if re.match("-(?![0-9])", one)), len(rest))
            count = count if name in MANY else min(count, 1)
            values, rest = rest[:count], rest[count:]
            taken += values
        if name in REFUSED and values != ["1"]:
            raise ConfigError(f"--{name}: found it among the arguments; expected none. {REFUSED[name]}.")
        meant = [value_of(one) for one in values]
        found[name] = meant[0] if len(meant) == 1 else meant or True
        if name not in ("model", "host", "port"):
            passed += taken
    if not isinstance(found.get("model"), str):
        raise ConfigError(f"--model: found none; {USAGE}.")
    if not isinstance(found.get("port"), int):
        raise ConfigError(f"--port: found {found.get('port')}; expected a number of 1024 to 65535.")
    return found, passed


def runtime_directory(environment: Mapping[str, str]) -> Path:
    """Return a directory of this user's own in the first place that can be written. Raises ConfigError."""
    wanted = environment.get("RUNTIME_DIRECTORY")
    for place in [wanted] if wanted else RUNTIME:
        directory = Path(place) / str(os.getuid())
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            status = directory.lstat()
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid() and os.access(directory, os.W_OK):
                return directory
        except OSError:
            continue
    raise ConfigError(f"{wanted or ', '.join(RUNTIME)}: found no place that user {os.getuid()} may write; expected one "
                      "in memory. Add --tmpfs /tmp.")


def read_key(environment: MutableMapping[str, str]) -> None:
    """Put the key of the file that VLLM_API_KEY_FILE names into the environment. Raises ConfigError."""
    name = environment.get("VLLM_API_KEY_FILE", "")
    if not name:
        return
    wanted = f"a file of user {os.getuid()} that others cannot read"
    where, change = f"VLLM_API_KEY_FILE: {name}", f"On the host: chown {os.getuid()} FILE && chmod 400 FILE"
    try:
        mode = stat.S_IMODE(Path(name).stat().st_mode)
        text = Path(name).read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no text"
        raise ConfigError(f"{where}: cannot be read: {reason}; expected {wanted}. {change}; mount it with -v "
                          f"FILE:{name}:ro.") from None
    if mode & 0o007:
        raise ConfigError(f"{where}: found mode {mode:04o}, which lets others read it; expected {wanted}. {change}.")
    # The form of the units' files, or the key alone.
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    if len(lines) == 1 and key_text.NAME not in lines[0]:
        text = f"{key_text.NAME}={lines[0]}"
    try:
        environment[key_text.NAME] = key_text.key_of(text)
    except key_text.KeyTextError as error:
        raise ConfigError(f"{where}: found {error}; expected one line of visible ASCII characters. Make one: openssl "
                          "rand -hex 24.") from None


def check_model(name: str) -> None:
    """Raise ConfigError for a directory without a model, as one that is not mounted is."""
    path = Path(name)
    mount = "Mount the directory that has it: -v /srv/models:/models:ro"
    if not path.is_absolute():
        return
    try:
        if path.is_dir() and not any(one.name == "config.json" or one.suffix == ".gguf" for one in path.iterdir()):
            raise ConfigError(f"--model: found no config.json in {name}; expected a model. {mount}.")
        path.stat()
    except FileNotFoundError:
        raise ConfigError(f"--model: found nothing at {name} in the container; expected a model. {mount}.") from None
    except OSError as error:
        raise ConfigError(f"--model: {name}: {error.strerror} for user {os.getuid()}; expected a model that it may "
                          "read. Change its mode on the host, or say --user.") from None


def cuda_of_image() -> tuple[int, int] | None:
    """Return the version of CUDA that the image's PyTorch was built with, without importing it."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return None
    text = (Path(spec.origin).parent / "version.py").read_text()
    found = re.search(r"^cuda\b[^=]*= '(\d+)\.(\d+)", text, re.MULTILINE)
    return (int(found[1]), int(found[2])) if found else None


def directory_of_driver(maps: Path = Path("/proc/self/maps")) -> str | None:
    """Return the directory of the driver's library that this process has loaded."""
    for line in maps.read_text().splitlines():
        path = Path(line.rpartition(" ")[2])
        if path.name.startswith("libcuda.so") and (path.parent / "libcuda.so.1").exists():
            return str(path.parent)
    return None


def cuda_of_driver() -> tuple[int, int] | None:
    """Return the newest CUDA that the driver knows, or None without the driver's library."""
    try:
        library = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if library.cuDriverGetVersion(ctypes.byref(number)):
        return None
    return number.value // 1000, number.value % 1000 // 10


def check_gpus(wanted: int, root: Path = Path("/"), released: bool = False) -> None:
    """Raise ConfigError if there is no GPU for each of `wanted` ranks, or a driver that is too old for the image.

    released: whether the image has vLLM as it is released, which no CPU can run.
    """
    devices = list(root.glob("dev/nvidia[0-9]*"))
    if not devices:
        raise ConfigError("GPU: found none in the container; expected those of the host. Install NVIDIA's container "
                          "toolkit there and say --gpus all (podman: --device nvidia.com/gpu=all)"
                          + ("." if released else f", or try without: -e {envs.DEVICE}=cpu."))
    if wanted > len(devices):
        raise ConfigError(f"--tensor-parallel-size: found {wanted}, and {len(devices)} GPUs in the container; expected "
                          "one for each rank. Give it more (--gpus all), or spread the model over fewer.")
    driver, image = cuda_of_driver(), cuda_of_image()
    if driver is None:
        raise ConfigError("libcuda.so.1: found none beside the GPUs; expected the driver's. Leave "
                          "NVIDIA_DRIVER_CAPABILITIES as the image has it, compute,utility.")
    # Within a major version of CUDA, older drivers run newer libraries.
    if image and driver[0] < image[0]:
        raise ConfigError(f"driver: found one for CUDA {driver[0]}.{driver[1]}; expected one for CUDA {image[0]}.0 or "
                          f"newer, since the image has CUDA {image[0]}.{image[1]}. Install a newer driver on the host, "
                          "or use the image of another profile.")


def check_released(environment: MutableMapping[str, str]) -> None:
    """Raise ConfigError if the released vLLM lacks what it computes with; complete its environment for the CPU."""
    if envs.computes_on_cpu(environment):
        if "+cpu" not in metadata.version("vllm"):
            raise ConfigError(f"{envs.DEVICE}: found cpu; expected GPUs: the released vLLM of this image has operators "
                              "for no CPU. Give the container GPUs (--gpus all), or take the image of the port.")
        for name, value in CPU.items():
            environment.setdefault(name, value)
        return
    # Triton asks the loader's cache, which nobody renews in a read-only file system.
    if directory := directory_of_driver():
        environment.setdefault("TRITON_LIBCUDA_PATH", directory)
    header = Path(sysconfig.get_path("include")) / "Python.h"
    if not any(map(shutil.which, COMPILERS)):
        missing = f"no {' or '.join(COMPILERS)}"
    elif not header.exists():
        missing = f"no {header}"
    else:
        return
    raise ConfigError(f"compiler: found {missing} in the container; expected gcc and the headers of Python, with which "
                      "Triton compiles for the GPUs. Write the image anew, which has them, or take that of the port.")


def shares_network_of_host(root: Path = Path("/")) -> bool:
    """Return whether the container has a network card of the host, as with --network host."""
    return any((card / "device").exists() for card in root.glob("sys/class/net/*"))


def prepare(options: dict[str, Any], environment: MutableMapping[str, str]) -> list[str]:
    """Check what the container was given and complete the environment. Returns warnings. Raises ConfigError."""
    warnings = []
    ranks = options.get("tensor-parallel-size")
    ranks = ranks if isinstance(ranks, int) else 1
    if envs.computes_on_cpu(environment):
        environment["CUDA_VISIBLE_DEVICES"] = ""
        # Threads that spin while they wait take the processors from the other ranks.
        environment.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    else:
        environment.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
        check_gpus(ranks, released=envs.capability(environment) is not None)
        shared = os.statvfs("/dev/shm")
        if ranks > 1 and shared.f_blocks * shared.f_frsize < SHARED_MIB << 20:
            warnings.append(f"/dev/shm has {shared.f_blocks * shared.f_frsize >> 20} MiB; ranks that find no room in "
                            "it end: say --shm-size 2g")
    if envs.capability(environment):
        check_released(environment)
    read_key(environment)
    check_model(options["model"])
    host = str(options["host"])
    if key_of(environment) is None and not is_loopback(host):
        if shares_network_of_host():
            options["host"] = "127.0.0.1"
            warnings.append("has no API key and the network of the host: it listens on 127.0.0.1 alone. Set "
                            "VLLM_API_KEY_FILE")
        else:
            envs.publish(environment)
            warnings.append("has no API key: whoever reaches the published port may use it. Publish it on loopback (-p "
                            "127.0.0.1:8000:8000), or set VLLM_API_KEY_FILE")
    environment["WATCHDOG_USEC"] = str(envs.number(environment, "VLLM_SERVING_WATCHDOG") * 1e6)
    return warnings


def write_home(directory: Path, environment: MutableMapping[str, str]) -> None:
    """Give caches a place in the runtime directory where the home cannot be written."""
    home = environment.get("HOME", "/")
    if not os.access(home, os.W_OK):
        (directory / "home").mkdir(exist_ok=True)
        environment["HOME"] = str(directory / "home")
        environment["XDG_CACHE_HOME"] = str(directory / "home" / ".cache")


def write_caches(environment: MutableMapping[str, str]) -> None:
    """Give what Triton and Inductor compile a place below the home. Raises ConfigError where nothing there may run."""
    home = environment["HOME"]
    for name, directory in CACHES.items():
        environment.setdefault(name, f"{home}/.cache/{directory}")
    if os.statvfs(home).f_flag & os.ST_NOEXEC:
        raise ConfigError(f"{home}: found a file system with noexec, as /dev/shm and --tmpfs /tmp are; expected one "
                          f"where user {os.getuid()} may write and run what Triton compiles. Add -v "
                          "vllm:/var/lib/vllm, which keeps it for the next start, or --tmpfs /tmp:exec.")


def container_name() -> str:
    """Return the host name of the container as the server's name in its log."""
    return re.sub("[^a-z0-9-]+", "-", socket.gethostname().lower())[:42] or "container"


def health() -> int:
    """Ask the server that runs in this container. Returns the exit status of a health check."""
    try:
        with urllib.request.urlopen((runtime_directory(os.environ) / HEALTH).read_text(), timeout=5) as answer:
            print("the server is well" if answer.status == 200 else f"status {answer.status}")
            return 0 if answer.status == 200 else 1
    except (OSError, ConfigError) as error:
        print(error)
        return 1


def main(arguments: list[str]) -> int:
    """Serve as the arguments say, or check the health. Returns the exit status."""
    if arguments == ["--health"]:
        return health()
    name, generation = container_name(), arguments[0] if arguments else ""
    passed: list[str] = []

    def read() -> Instance:
        options, others = parse(arguments[1:])
        passed.extend(others)
        directory = runtime_directory(os.environ)
        os.environ["RUNTIME_DIRECTORY"] = str(directory)
        for warning in prepare(options, os.environ):
            print(f"vllm@{name} {warning}", flush=True)
        write_home(directory, os.environ)
        if envs.capability(os.environ) and not envs.computes_on_cpu(os.environ):
            write_caches(os.environ)
        own = {key: options[key] for key in ("model", "host", "port")}
        (directory / OPTIONS).write_text(json.dumps({**own, "disable-log-requests": True}))
        instance = instance_of(name, directory / OPTIONS, options, generation, os.environ)
        # With the mark of probes, which stand in no log.
        address = authority(instance.address, instance.port)
        (directory / HEALTH).write_text(f"http://{address}/health{PROBE_MARK}")
        return instance

    try:
        return supervise(name, read, passed)
    except OSError as error:
        print(f"vllm@{name} ends: {error}", flush=True)
        return CONFIGURATION


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
