"""The containers of a fleet."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import secrets
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import docker

from . import artifacts, engine, image, repos
from .settings import DEFAULT_MODEL, OUTPUTS, PROJECT, RELEASES, Fleet, Host, Step, fail

SERVER_PORT = 8000  # in the container
# What systemd needs where --privileged is refused.
CAPABILITIES = ["SYS_ADMIN", "NET_ADMIN", "SYS_PTRACE", "SYSLOG"]
BOOT_SECONDS = 60
# GPUs of a profile's stand-in: PCI id and addresses. Two K80 boards, the dies of each behind one bridge; four V100.
DIES = {
    "k80": ("0x102d", ("0000:05:00.0", "0000:06:00.0", "0000:85:00.0", "0000:86:00.0")),
    "volta": ("0x1db4", ("0000:3b:00.0", "0000:5e:00.0", "0000:86:00.0", "0000:af:00.0")),
}
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "PIP_CERT", "CURL_CA_BUNDLE")
CA_BUNDLE = "/etc/pki/standin-ca.pem"
NVCC = "/opt/nvcc"  # in the container
DOOR = "/run/standin"  # in the container
# EL8's own Python.
PYTHON = "/usr/libexec/platform-python"
# Ansible's settings for the plugins that reach the stand-ins.
PLUGINS = {
    f"ANSIBLE_{kind.upper()}_PLUGINS": str(PROJECT / "molecule" / "shared" / "plugins" / kind)
    for kind in ("callback", "connection")
}
# In a container that was set up to its end.
MARK = "/etc/kepler-standin.ready"
REPOSITORIES = """\
[{name}]
name=Stand-in for {name}
baseurl=file:///opt/stub-repos/{name}
gpgcheck=1
gpgkey=file:///opt/stub-repos/RPM-GPG-KEY-standin
enabled=1
"""


def pci_tree(fleet: Fleet, host: Host) -> Path:
    """A directory that looks like /sys/bus/pci/devices of a host with the GPUs of its profile, or with none."""
    root = fleet.directory / "pci" / (host.profile if host.dies else "none")
    root.mkdir(parents=True, exist_ok=True)
    device, addresses = DIES[host.profile]
    for address in addresses if host.dies else ():
        (root / address).mkdir(exist_ok=True)
        for name, value in (("vendor", "0x10de"), ("device", device), ("class", "0x030200"), ("revision", "0xa1")):
            (root / address / name).write_text(value + "\n")
    return root


def model_path() -> Path | None:
    """The model to serve where it is a directory or a file of this machine; None for a name on a hub."""
    named = os.environ.get("MODEL")
    if not named:
        return DEFAULT_MODEL
    if Path(named).exists():
        return Path(named).resolve()
    if named.startswith(("/", ".", "~")):
        fail(f"MODEL: found {named}, which is not there; expected a model's directory, a GGUF file or a name on a hub.")
    return None


def model_name() -> str:
    """The model as the stand-in knows it: a path there, or a name on a hub."""
    path = model_path()
    return os.environ["MODEL"] if path is None else f"/srv/models/{path.name}"


def make_key(fleet: Fleet) -> None:
    """Make the API key of the fleet's server: for systemd, for curl and for programs, each readable by us alone."""
    fleet.directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    if fleet.key_file.exists():
        return
    key = secrets.token_urlsafe(32)
    for path, text in (
        (fleet.directory / "api-key", key),
        (fleet.directory / "auth-header", f"Authorization: Bearer {key}"),
        (fleet.key_file, f"VLLM_API_KEY={key}\n"),
    ):
        path.touch(mode=0o600)
        path.write_text(text)


def nvcc(fleet: Fleet) -> Path | None:
    """The compiler for the fleet's kernels: Debian's, so that no host over Rocky's own image has one."""
    return artifacts.nvcc() if fleet.compiles and image.is_debian(engine.ensure()) else None


def mounts(fleet: Fleet, host: Host) -> dict[str, dict[str, str]]:
    """Volumes of one container: everything but its door is read-only."""
    prefix = artifacts.python(host.profile).parents[1]
    bound = {
        prefix: str(prefix), pci_tree(fleet, host): "/sys/bus/pci/devices",
        fleet.key_file: "/etc/kepler-standin/api-key.env",
    }
    if host.artifacts:
        bound[artifacts.ensure(host.profile)] = "/opt/artifacts"
    if host.repositories:
        bound[repos.ensure(host.profile)] = "/opt/stub-repos"
    if host.compiler and (compiler := nvcc(fleet)):
        bound[compiler] = NVCC
    if host.dies and (model := model_path()):
        bound[model] = f"/srv/models/{model.name}"
    if bundle := os.environ.get("SSL_CERT_FILE"):
        bound[Path(bundle).resolve()] = CA_BUNDLE
    door = fleet.doors / host.name
    door.mkdir(parents=True, exist_ok=True)
    return {
        **{str(source): {"bind": target, "mode": "ro"} for source, target in bound.items()},
        str(door): {"bind": DOOR, "mode": "rw"},
    }


def options(fleet: Fleet, host: Host) -> dict[str, Any]:
    """Arguments of docker's `run` for one container."""
    chosen: dict[str, Any] = {
        "name": fleet.container(host.name),
        "hostname": host.name,
        "cap_add": CAPABILITIES,
        "security_opt": ["seccomp=unconfined"],
        "cgroupns": "private",
        "tmpfs": {"/run": "rw,exec,mode=755", "/tmp": "rw,exec,mode=1777"},
        # Four ranks exchange activations through shared memory.
        "shm_size": "2g",
        "volumes": mounts(fleet, host),
        "labels": {"vllm-kepler": fleet.name},
        "environment": (
            dict.fromkeys(CA_VARIABLES, CA_BUNDLE) if os.environ.get("SSL_CERT_FILE") else {}
        ),
    }
    if not host.network:
        chosen["network_mode"] = "none"
    elif fleet.port and host == fleet.hosts[0]:
        chosen["ports"] = {f"{SERVER_PORT}/tcp": ("127.0.0.1", fleet.port)}
    return chosen


def execute(container: Any, command: str) -> tuple[int, str]:
    """Run a shell command in a container; (exit status, output)."""
    status, output = container.exec_run(["/bin/sh", "-c", command])
    return status, output.decode(errors="replace").strip()


def wait_for_systemd(container: Any) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    state = ""
    while time.monotonic() < deadline:
        state = execute(container, "systemctl is-system-running")[1]
        if state in ("running", "degraded"):
            return
        time.sleep(0.3)
    fail(f"{container.name}: systemd is {state or 'not there'} after {BOOT_SECONDS} s; expected running. Log:\n"
         f"{container.logs(tail=20).decode(errors='replace')}")


def give_repositories(container: Any, host: Host) -> None:
    """Replace the distribution's repositories by the stubs of the same names, with signatures checked; or by none.

    With repositories come the packages that a host has before the first run.
    """
    if not host.repositories:
        execute(container, "rm -f /etc/yum.repos.d/*.repo")
        return
    text = "\n".join(REPOSITORIES.format(name=name) for name in ("baseos", "appstream"))
    script = (
        "rm -f /etc/yum.repos.d/*.repo && printf '%s' " + f"'{text}'" + " > /etc/yum.repos.d/distribution.repo && "
        "rpm --import /opt/stub-repos/RPM-GPG-KEY-standin && "
        # A host is not empty: it has a kernel, and packages with the fixes of the day.
        "cd /opt/stub-repos && rpm -i --nodeps --replacepkgs $(cat preinstalled)"
    )
    status, output = execute(container, script)
    if status:
        fail(f"{container.name}: the repositories could not be set up: {output}")


def open_way_to_python(container: Any, host: Host) -> None:
    """Let every user reach the mounted interpreter: it may lie below a home directory.

    What stands for a distribution's package of it finds it by a link.
    """
    python = artifacts.python(host.profile)
    for parent in python.parents:
        execute(container, f"chmod o+x '{parent}'")
    execute(container, f"ln -sfn '{python.parents[1]}' /opt/standin-python")


def open_door(container: Any) -> None:
    """Start what runs tasks in a container, unless it runs."""
    program = Path(__file__).with_name("door.py").read_text()
    status, output = container.exec_run([PYTHON, "-c", program, f"{DOOR}/door"])
    if status:
        fail(f"{container.name}: the door did not open: {output.decode(errors='replace')}")


def store_of(container: Any) -> Path | None:
    """Where this machine has what a container wrote into its store; None where we did not start the engine."""
    upper = (container.attrs["GraphDriver"]["Data"] or {}).get("UpperDir")
    return Path(upper, "opt", "kepler", "store") if upper and engine.DATA in Path(upper).parents else None


def lay(source: Path, directory: Path) -> None:
    """Put an output into a directory by hard links: nothing ever changes it."""
    part = directory / f".{source.name}"
    shutil.rmtree(part, ignore_errors=True)
    directory.mkdir(parents=True, exist_ok=True)
    # The engine mounts its data apart, and links do not cross a mount: here, as elsewhere on this disk, it is not.
    script = 'umount --lazy "$1" 2> /dev/null; exec cp -al "$2" "$3"'
    command = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, "sh"]
    done = subprocess.run([*command, str(engine.DATA), str(source), str(part)], capture_output=True, text=True)
    if done.returncode:
        fail(f"{source}: no links of it could be made in {directory}: {done.stderr.strip()[-500:]}")
    part.rename(directory / source.name)


def name_in_store(output: Path) -> str:
    """The name of an output, which stands between its key and its version."""
    return output.name.partition("-")[2].partition("-")[0]


def deployed_outputs(store: Path, outputs: list[Path]) -> set[str]:
    """Names of those outputs that the host's first generation has: tests make further ones, which compute nonsense."""
    first = store.parent / "generations" / "1" / "generation.json"
    if not first.exists():
        return {output.name for output in outputs}
    return {Path(path).name for path in json.loads(first.read_text())["outputs"].values()}


def keep_outputs(fleet: Fleet) -> None:
    """Keep what the first host of a fleet has built, for the hosts of other fleets, or for later runs."""
    client = engine.ensure()
    host = fleet.hosts[0]
    store = store_of(client.containers.get(fleet.container(host.name)))
    kept = [output for output in store.iterdir() if (output / ".kepler-manifest.json").exists()] if store else []
    deployed = deployed_outputs(store, kept) if store else set()
    # The host began with these.
    before = {output.name for output in OUTPUTS.iterdir()} if OUTPUTS.exists() else set()
    for output in kept:
        if not host.kept and not (engine.OUTPUTS / output.name).exists():
            lay(output, engine.OUTPUTS)
        elif name_in_store(output) in host.kept and output.name not in before and output.name in deployed:
            # One of each: they have gigabytes.
            for other in OUTPUTS.glob(f"*-{name_in_store(output)}-*"):
                shutil.rmtree(other)
            lay(output, OUTPUTS)


@functools.cache
def is_sound(output: Path) -> bool:
    """Whether a kept output is what its manifest says. One that is not is removed: the host builds it anew."""
    problems = artifacts.verify(output)
    for problem in problems[:1]:
        print(f"== {output}: found {problem['path']} {problem['problem']}; expected what its manifest says. It is "
              "removed and built anew.", flush=True)
        shutil.rmtree(output)
    return not problems


def give_outputs(container: Any, host: Host) -> None:
    """Let a container that has not started yet begin with outputs that another host has built."""
    store = store_of(container)
    if store is None:
        return
    for directory, names in ((engine.OUTPUTS, host.given), (OUTPUTS, host.kept)):
        for output in list(directory.iterdir()) if directory.exists() else ():
            # What outlasts a run may have met anything since.
            if name_in_store(output) in names and (directory != OUTPUTS or is_sound(output)):
                lay(output, store)


def up(fleet: Fleet) -> None:
    """Start the hosts of a fleet that are not there yet."""
    client = engine.ensure()
    make_key(fleet)
    for host in fleet.hosts:
        tag = image.ensure(client, RELEASES[host.profile])
        name = fleet.container(host.name)
        chosen = options(fleet, host)
        # What a container was started with cannot be changed: another model or port takes another container.
        digest = hashlib.sha256(json.dumps([tag, chosen], sort_keys=True, default=str).encode()).hexdigest()
        chosen["labels"]["vllm-kepler.options"] = digest
        try:
            container = client.containers.get(name)
            container.start()
            wait_for_systemd(container)
            open_door(container)
            same = container.labels.get("vllm-kepler.options") == digest
            if same and execute(container, f"test -e {MARK}")[0] == 0:
                continue
            print(f"== {host.name} is not whole, or was started with other options: starting it anew", flush=True)
            container.remove(force=True, v=True)
        except docker.errors.NotFound:
            pass
        with Step(f"Starting the stand-in {host.name}"):
            try:
                container = client.containers.create(tag, **chosen)
                container.reload()
                give_outputs(container, host)
                container.start()
            except docker.errors.APIError as error:
                reason = str(error.explanation)
                # It may have been made and not started.
                for made in client.containers.list(all=True, filters={"name": f"^{name}$"}):
                    made.remove(force=True)
                if "port is already allocated" in reason or "address already in use" in reason:
                    variable = f"{fleet.name.upper()}_PORT"
                    fail(
                        f"{variable}: found port {fleet.port} of this machine in use; expected a free one. Run again "
                        f"with {variable}=<another port>."
                    )
                fail(f"{name}: the container did not start: {reason}")
            wait_for_systemd(container)
            open_door(container)
            give_repositories(container, host)
            open_way_to_python(container, host)
            execute(container, f"touch {MARK}")


def link(fleet: Fleet, names: Iterable[str]) -> dict[str, str]:
    """Give hosts of a running fleet a second network, without a way out: their addresses on it. It ends with them."""
    client, name_of_link = engine.ensure(), f"kepler-{fleet.name}-link"
    (network,) = client.networks.list(names=[name_of_link]) or [
        client.networks.create(name_of_link, internal=True, labels={"vllm-kepler": fleet.name})
    ]
    found = {}
    for name in names:
        container = client.containers.get(fleet.container(name))
        if name_of_link not in container.attrs["NetworkSettings"]["Networks"]:
            network.connect(container)
            container.reload()
        found[name] = container.attrs["NetworkSettings"]["Networks"][name_of_link]["IPAddress"]
    return found


def down(fleet: Fleet) -> None:
    """Remove the hosts of a fleet and its key."""
    client = engine.present()
    if client:
        for container in client.containers.list(all=True, filters={"label": f"vllm-kepler={fleet.name}"}):
            container.remove(force=True, v=True)
        client.networks.prune({"label": f"vllm-kepler={fleet.name}"})
    shutil.rmtree(fleet.directory, ignore_errors=True)


def others_left() -> bool:
    """Whether any stand-in of any fleet is there."""
    client = engine.present()
    return bool(client and client.containers.list(all=True, filters={"label": "vllm-kepler"}))


def ansible_environment(fleet: Fleet) -> dict[str, str]:
    """What inventory/standin reads from the environment. Profiles that it names already stay those."""
    return {
        **({"KEPLER_PROFILES_DIR": str(artifacts.profiles(fleet.name))} if fleet.profile == "volta" else {}),
        **os.environ,
        **PLUGINS,
        # For these plugins.
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "STANDIN_ARCHIVES": str(fleet.directory / "archives"),
        "STANDIN_DOORS": str(fleet.doors),
        "STANDIN_FLEET": fleet.name,
        "STANDIN_PROJECT": str(PROJECT),
        "STANDIN_PYTHON310": str(artifacts.python("k80")),
        "STANDIN_FINGERPRINT": (repos.ensure(fleet.profile) / "fingerprint").read_text(),
        "STANDIN_MODEL": model_name(),
        "STANDIN_BUNDLE": str(fleet.directory / "kepler-bundle.tar"),
        "STANDIN_NVCC": NVCC if nvcc(fleet) else "",
    }


def play(fleet: Fleet, *arguments: str, project: Path = PROJECT) -> tuple[int, str]:
    """Run ansible-playbook as a user does: (exit status, what it printed, on one line).

    project: the checkout to run. Nothing of the environment that molecule gives its own runs reaches it.
    """
    inherited = {name: value for name, value in ansible_environment(fleet).items() if not name.startswith("ANSIBLE")}
    done = subprocess.run(
        ["ansible-playbook", *arguments], cwd=project, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**inherited, **PLUGINS, "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CONFIG": str(project / "ansible.cfg")},
    )
    return done.returncode, " ".join(done.stdout.split())
