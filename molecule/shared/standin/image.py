"""The image of a stand-in: Rocky Linux where it can be pulled, else Debian's packages with Rocky's identity."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
from pathlib import Path

import docker

from .settings import APT_WAITS, CACHE, IMAGE, STATE, Step, fail

SHARED = Path(__file__).resolve().parents[1]
ROCKY = "rockylinux"
# By major release: the minor one and its name.
RELEASES = {8: ("10", "Green Obsidian"), 9: ("7", "Blue Onyx")}
BASE = "vllm-kepler/el8-base"
PACKAGES = (
    "systemd systemd-sysv dbus python3 python3-dnf dnf rpm dnf-plugins-core gpg gpg-agent netbase sudo procps iproute2 "
    "kmod pciutils curl tar gzip bzip2 xz-utils ca-certificates libssl3 libffi8 libsqlite3-0 libreadline8 libncursesw6 "
    "libuuid1 libgdbm6 libnsl2 libtirpc3 liblzma5 libbz2-1.0 zlib1g "
    # What the private nvcc and its g++ 10 need of a host.
    "binutils libc6-dev libisl23 libmpc3 libmpfr6 "
    # vLLM's operators for the CPU load it.
    "libnuma1 "
    # The balancer, and the certificate of its tests.
    "nginx openssl "
    # The firewall of hosts that share an instance; the tests of others do without.
    "firewalld"
)
# dnf's plugins that Enterprise Linux ships as well.
PLUGINS = {"versionlock.py", "config_manager.py", "needs_restarting.py", "download.py", "builddep.py"}
RELEASE = "Rocky Linux release 8.10 (Green Obsidian)\n"
OS_RELEASE = """\
NAME="Rocky Linux"
VERSION="8.10 (Green Obsidian)"
ID="rocky"
ID_LIKE="rhel centos fedora"
VERSION_ID="8.10"
PLATFORM_ID="platform:el8"
PRETTY_NAME="Rocky Linux 8.10 (Green Obsidian)"
CPE_NAME="cpe:/o:rocky:rocky:8:GA"
"""
# As the benchmarks for hardened hosts want it (CIS, DISA): signatures of packages from files, and of metadata.
DNF = """\
[main]
gpgcheck=1
localpkg_gpgcheck=1
repo_gpgcheck=1
installonly_limit=3
clean_requirements_on_remove=True
best=True
skip_if_unavailable=False
module_platform_id=platform:el8
"""
# Debian's rpm keeps its database in the home directory.
MACROS = "%dist .el8\n%rhel 8\n%_dbpath /var/lib/rpm\n"


def apt_source() -> str:
    """One line of the machine's own apt configuration: its mirror and its key, for Debian 12's main component."""
    for path in sorted(Path("/etc/apt").glob("sources.list.d/*.sources")):
        text = path.read_text()
        uri = re.search(r"^URIs:\s*(\S+)", text, re.MULTILINE)
        key = re.search(r"^Signed-By:\s*(\S+)", text, re.MULTILINE)
        if uri and key and "debian-archive" in key.group(1):
            return f"deb [signed-by={key.group(1)}] {uri.group(1)} bookworm main"
    plain = Path("/etc/apt/sources.list")
    for line in plain.read_text().splitlines() if plain.exists() else []:
        if line.startswith("deb ") and "debian" in line:
            return re.sub(r"^(deb (?:\[.*?\] )?\S+) .*", r"\1 bookworm main", line)
    fail("Image: found no Debian mirror in /etc/apt; expected one, since no image of Rocky Linux 8 can be pulled.")


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.write_text(text)


def link(path: Path, target: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def give_identity(root: Path) -> None:
    """Make a Debian tree look to Ansible and dnf as a Rocky Linux 8.10 does, of which the Dockerfile makes others."""
    for gone in ("etc/apt", "var/lib/apt", "var/cache/apt", "usr/lib/apt", "var/log"):
        shutil.rmtree(root / gone, ignore_errors=True)
    (root / "var/log/journal").mkdir(parents=True)
    # Package managers of the host distribution would mislead Ansible's facts.
    for program in [*root.glob("usr/bin/apt*"), *root.glob("usr/bin/dpkg*")]:
        program.unlink()
    (root / "etc/debian_version").unlink(missing_ok=True)
    write(root / "usr/lib/os-release", OS_RELEASE)
    link(root / "etc/os-release", "../usr/lib/os-release")
    write(root / "etc/rocky-release", RELEASE)
    for alias in ("redhat-release", "system-release"):
        link(root / "etc" / alias, "rocky-release")
    link(root / "usr/libexec/platform-python", "/usr/bin/python3")
    write(root / "etc/dnf/dnf.conf", DNF)
    write(root / "etc/dnf/vars/releasever", "8\n")
    link(root / "usr/bin/yum", "dnf")
    write(root / "etc/rpm/macros.el8", MACROS)
    for directory in ("etc/yum.repos.d", "etc/pki/rpm-gpg", "etc/dnf/modules.d", "var/lib/rpm", "etc/sysconfig"):
        (root / directory).mkdir(parents=True, exist_ok=True)
    for plugin in root.glob("usr/lib/python3/dist-packages/dnf-plugins/*.py"):
        if plugin.name not in PLUGINS:
            plugin.unlink()
    # nginx as Enterprise Linux has it: its own user and directory, not enabled.
    subprocess.run(["chroot", root, "useradd", "--system", "--shell", "/sbin/nologin", "nginx"], check=True)
    (root / "var/lib/nginx/tmp").mkdir(parents=True, exist_ok=True)
    for unit in ("nginx", "firewalld"):
        (root / f"etc/systemd/system/multi-user.target.wants/{unit}.service").unlink(missing_ok=True)
    write(root / "etc/machine-id", "")
    (root / "etc/fstab").unlink(missing_ok=True)
    subprocess.run(["chroot", root, "rpm", "--initdb"], check=True)


def debian_base() -> Path:
    """Archive of a base made of Debian's packages, from the cache or made anew."""
    archive = CACHE / f"el8-base-{hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]}.tar"
    if archive.exists():
        return archive
    print("   making the base from Debian's packages (about a minute)", flush=True)
    if os.geteuid() != 0:
        fail(f"Image: {ROCKY}:8 cannot be pulled and this user is not root; expected one of both. Be root, or pull it.")
    missing = [program for program in ("mmdebstrap", "rpm") if not shutil.which(program)]
    if missing:
        command = ["apt-get", *APT_WAITS, "--quiet", "install", "--yes", "--no-install-recommends", *missing]
        done = subprocess.run(
            command, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}, capture_output=True, text=True
        )
        if done.returncode:
            fail(f"Image: `{' '.join(command)}` failed:\n{done.stderr.strip()[-2000:]}")
    root = STATE / "rootfs"
    shutil.rmtree(root, ignore_errors=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    options = ["--quiet", "--variant=minbase", "--mode=root", "--dpkgopt=force-unsafe-io",
               '--aptopt=Apt::Install-Recommends "false"', f"--include={','.join(PACKAGES.split())}"]
    options += [f"--dpkgopt=path-exclude=/usr/share/{kind}/*" for kind in ("man", "doc", "locale", "info")]
    made = subprocess.run(["mmdebstrap", *options, "bookworm", root, apt_source()], capture_output=True, text=True)
    if made.returncode:
        fail(f"Image: mmdebstrap failed:\n{made.stderr.strip()[-2000:]}")
    give_identity(root)
    part = archive.with_suffix(".part")
    subprocess.run(["tar", "-C", root, "--numeric-owner", "-cf", part, "."], check=True)
    shutil.rmtree(root)
    for other in CACHE.glob("el8-base-*.tar"):
        other.unlink()
    part.rename(archive)
    return archive


def base(client: docker.DockerClient, major: int) -> str:
    """Name of the base image: pulled where a registry answers, else made."""
    rocky = f"{ROCKY}:{major}"
    try:
        client.images.get(rocky)
        return rocky
    except docker.errors.ImageNotFound:
        pass
    try:
        client.images.pull(ROCKY, tag=str(major))
        return rocky
    except docker.errors.APIError:
        print("   no registry answers", flush=True)
    archive = debian_base()
    tag = archive.stem.rpartition("-")[2]
    try:
        client.images.get(f"{BASE}:{tag}")
    except docker.errors.ImageNotFound:
        client.api.import_image_from_file(str(archive), repository=BASE, tag=tag)
    return f"{BASE}:{tag}"


def ensure(client: docker.DockerClient, major: int = 8) -> str:
    """Tag of the image of a release, built if its inputs changed."""
    inputs = Path(__file__).read_bytes() + (SHARED / "Dockerfile").read_bytes()
    tag = f"{IMAGE.format(major=major)}:{hashlib.sha256(inputs).hexdigest()[:12]}"
    try:
        client.images.get(tag)
    except docker.errors.ImageNotFound:
        with Step("Building the image of the stand-ins"):
            minor, name = RELEASES[major]
            arguments = {"BASE": base(client, major), "MAJOR": str(major), "MINOR": minor, "NAME": name}
            client.images.build(path=str(SHARED), tag=tag, buildargs=arguments, rm=True, forcerm=True)
    return tag


def is_debian(client: docker.DockerClient) -> bool:
    """Whether the stand-ins run over Debian's packages, and with them Debian's programs."""
    return not client.images.get(ensure(client)).labels["vllm-kepler.base"].startswith(ROCKY)


def remove(client: docker.DockerClient) -> None:
    """Remove the images that were built here."""
    for name in (*(IMAGE.format(major=major) for major in RELEASES), BASE):
        for image in client.images.list(name):
            for tag in image.tags:
                client.images.remove(tag, force=True)
