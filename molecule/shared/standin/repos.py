"""Repositories of stub packages, as mirrors have them: the lock's packages and what has come out since, signed."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from .settings import APT_WAITS, CACHE, PROJECT, Step, fail

SHARED = Path(__file__).resolve().parents[1]
LOCK = PROJECT / "profiles" / "k80" / "lock" / "rpms.yml"
# Those whose metadata is signed as well, as Rocky's is; EPEL's is not.
SIGNED = ("baseos", "appstream")
SIGNER = "Stand-in repositories <standin@example.org>"
CONTEXT = "20240604100000:6b381ea8"
# Newer than the lock on purpose: nothing of these may be installed.
DECOYS = [
    {"name": "nvidia-driver", "epoch": 3, "version": "560.35.03", "release": "1.el8", "arch": "x86_64",
     "repo": "cuda-rhel8", "module": "nvidia-driver", "stream": "latest-dkms"},
    {"name": "cuda-nvcc-12-4", "epoch": 0, "version": "12.4.131", "release": "1", "arch": "x86_64",
     "repo": "cuda-rhel8"},
]
# The kernels on offer, and the one that a host runs: not the first of the release, and not the newest.
KERNELS = ("4.18.0-553.el8_10", "4.18.0-553.89.1.el8_10", "4.18.0-553.144.1.el8_10")
RUNNING = KERNELS[1]
# The same of Enterprise Linux 9.
KERNELS_9 = ("5.14.0-570.17.1.el9_6", "5.14.0-611.5.1.el9_7")
# What is on offer of entries without a version, oldest first: Rocky keeps all builds of a release, EPEL the newest.
BUILDS = {
    "kernel-headers": KERNELS,
    "dkms": ("3.3.0-1.el8",),
    "openssl-devel": ("1.1.1k-12.el8_9", "1.1.1k-14.el8_10"),
    "util-linux": ("2.32.1-46.el8", "2.32.1-48.el8_10"),
    "libuuid-devel": ("2.32.1-46.el8", "2.32.1-48.el8_10"),
    "gcc": ("8.5.0-22.el8_10", "8.5.0-28.el8_10"),
    "tar": ("1.30-9.el8", "1.30-11.el8_10"),
    "bzip2": ("1.0.6-26.el8", "1.0.6-28.el8_10"),
    "cuda-toolkit-config-common": ("11.4.43-1", "12.4.127-1"),
    "cuda-toolkit-11-config-common": ("11.4.43-1", "11.8.89-1"),
}
# Libraries that a package needs in its own version: an old one of the first takes these back.
LIBRARIES = {"openssl-devel": "openssl-libs", "libuuid-devel": "libuuid", "gcc": "libgomp"}
# What a host has before the first run, each in its newest version, and the libraries beside it.
PREINSTALLED = ("kernel-headers", "util-linux", "tar", "xz", "bzip2", "gzip")
OLD_LIBRARIES = ("openssl-libs", "libuuid", "libgomp")
# What the distributors publish after that: the same packages, newer. Hosts do not see it unless told.
LATER = "later"
LATER_DRIVER = "470.999.01"
LATER_KERNEL = "4.18.0-553.151.1.el8_10"
PERSISTENCED = """\
[Unit]
Description=Stands for NVIDIA's persistence daemon

[Service]
ExecStart=/usr/bin/nvidia-persistenced

[Install]
WantedBy=multi-user.target
"""


# The distribution's Python 3.12 on a stand-in: the interpreter of this machine that is mounted there, under the name
# that it was called by. An environment's links lead to that name, as on a host, and not out of the store's recipes.
PYTHON_312 = """\
#!/bin/bash
exec -a "$0" "$(readlink -f /opt/standin-python)/bin/python3.12" "$@"
"""


@dataclass(frozen=True)
class Mirror:
    """Repositories of stub packages for the hosts of one profile.

    Attributes:
        profile: whose lock they have.
        dist: the tag of the distribution in releases.
        kernels: those on offer.
        running: the kernel that a host runs.
        builds: of entries without a version, oldest first.
        libraries: that a host has beside PREINSTALLED.
        decoys: packages that nothing may install.
        streams: of the driver's module that are on offer beside the locked one; the first one is the default.
        capture: what nvidia-smi answers from.
        has_later: whether there is a repository of what comes out later.
    """

    profile: str
    dist: str
    kernels: tuple[str, ...]
    running: str
    builds: dict[str, tuple[str, ...]]
    libraries: tuple[str, ...]
    decoys: tuple[dict[str, Any], ...]
    streams: tuple[str, ...]
    capture: str
    has_later: bool = False

    @property
    def lock(self) -> Path:
        return PROJECT / "profiles" / self.profile / "lock" / "rpms.yml"

    @property
    def cuda(self) -> str:
        return f"cuda-rhel{self.dist.removeprefix('el')}"

    @property
    def repositories(self) -> tuple[str, ...]:
        return ("baseos", "appstream", "epel", self.cuda)

    @property
    def capture_file(self) -> Path:
        return SHARED / "captures" / self.capture


K80 = Mirror(
    "k80", "el8", KERNELS, RUNNING, BUILDS, OLD_LIBRARIES, tuple(DECOYS), ("latest-dkms",), "k80x4.csv", has_later=True,
)
# The open modules are the default there, and a branch that has dropped Volta is the newest.
VOLTA = Mirror(
    "volta", "el9", KERNELS_9, KERNELS_9[0], {"kernel-headers": KERNELS_9}, (), (
        {"name": "nvidia-driver", "epoch": 3, "version": "590.48.01", "release": "1.el9", "arch": "x86_64",
         "repo": "cuda-rhel9", "module": "nvidia-driver", "stream": "open-dkms"},
        {"name": "nvidia-driver", "epoch": 3, "version": "590.48.01", "release": "2.el9", "arch": "x86_64",
         "repo": "cuda-rhel9", "module": "nvidia-driver", "stream": "latest-dkms"},
    ), ("open-dkms", "latest-dkms"), "v100x4.csv",
)
MIRRORS = {mirror.profile: mirror for mirror in (K80, VOLTA)}


def version_of(rpms: list[dict[str, Any]], name: str) -> str:
    return next(rpm["version"] for rpm in rpms if rpm["name"] == name)


def contents(rpms: list[dict[str, Any]], mirror: Mirror = K80) -> dict[str, dict[str, str]]:
    """Files of the packages that the roles call: package -> path -> text. All others are empty."""
    found = {
        "nvidia-driver-cuda": {
            "/usr/bin/nvidia-smi": (SHARED / "stubs" / "nvidia-smi").read_text(),
            "/usr/share/kepler-standin/nvidia-smi.csv": mirror.capture_file.read_text(),
        },
        "nvidia-persistenced": {
            "/usr/lib/systemd/system/nvidia-persistenced.service": PERSISTENCED,
            "/usr/bin/nvidia-persistenced": "#!/bin/sh\nexec /bin/sleep infinity\n",
        },
        "python3.12": {"/usr/bin/python3.12": PYTHON_312},
    }
    return {**found, **toolchain(rpms, mirror)}


def toolchain(rpms: list[dict[str, Any]], mirror: Mirror) -> dict[str, dict[str, str]]:
    """The files of the compilers; the distribution's own are those of the stand-in."""
    places = yaml.safe_load((PROJECT / "profiles" / mirror.profile / "profile.yml").read_text())["toolchain"]
    (package,) = (rpm["name"] for rpm in rpms if rpm["name"].startswith("cuda-nvcc-"))
    nvcc = version_of(rpms, package)
    said = f"Cuda compilation tools, release {nvcc.rpartition('.')[0]}, V{nvcc}"
    found = {package: {f"{places['cuda_home']}/bin/nvcc": f"#!/bin/sh\necho '{said}'\n"}}
    if mirror is not K80:
        return found
    gcc, tools = version_of(rpms, "gcc-toolset-10-gcc"), places["compiler_bin"]
    return {
        **found,
        "gcc-toolset-10-gcc": {f"{tools}/gcc": f"#!/bin/sh\necho 'gcc (GCC) {gcc} 20210422 (Red Hat {gcc}-1)'\n"},
        "gcc-toolset-10-gcc-c++": {f"{tools}/g++": f"#!/bin/sh\necho 'g++ (GCC) {gcc} 20210422 (Red Hat {gcc}-1)'\n"},
    }


def later(rpms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The lock's entries as a later lock has them."""
    found = []
    for rpm in rpms:
        if "stream" in rpm:
            rpm = {**rpm, "version": LATER_DRIVER}
        elif "version" in rpm:
            rpm = {**rpm, "release": f"{rpm['release']}.99"}
        found.append(rpm)
    return found


def packages_of(
    rpm: dict[str, Any], mirror: Mirror = K80, kernels: tuple[str, ...] = (), suffix: str = ""
) -> list[dict[str, Any]]:
    """The packages that repositories have of one entry of the lock, and the libraries that come with them.

    kernels: other ones than the mirror's. suffix: makes builds newer.
    """
    if "version" in rpm:
        return [rpm]
    epoch, colon, rest = rpm.get("minimum", "0").rpartition(":")
    builds = mirror.builds.get(rpm["name"], (f"{rest.partition('-')[0]}-1.{mirror.dist}",))
    found = []
    for build in (kernels or mirror.kernels) if rpm.get("unit") == "kernel" else builds:
        version, _, release = build.partition("-")
        package = {**rpm, "epoch": int(epoch) if colon else 0, "version": version, "release": release + suffix}
        evr = "{epoch}:{version}-{release}".format(**package)
        if rpm.get("unit") == "kernel":
            package["requires"] = [f"{name} = {evr}" for name in rpm.get("requires", [])]
            # So dnf keeps them side by side.
            package["provides"] = ["installonlypkg(kernel)"]
        elif LIBRARIES.get(rpm["name"]) in mirror.libraries:
            library = LIBRARIES[rpm["name"]]
            found.append({**package, "name": library, "requires": [], "provides": []})
            package["requires"] = [*rpm.get("requires", []), f"{library} = {evr}"]
        found.append(package)
    return found


def offered(rpms: list[dict[str, Any]], mirror: Mirror = K80) -> list[dict[str, Any]]:
    """All that the repositories have of the lock's entries."""
    return [package for rpm in rpms for package in packages_of(rpm, mirror)]


def offered_later(rpms: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """All that the repository `later` has of them: one newer version of each."""
    newest = {}
    for rpm in later(rpms):
        suffix = "" if rpm.get("unit") == "kernel" else ".99"
        newest.update({package["name"]: package for package in packages_of(rpm, K80, (LATER_KERNEL,), suffix)})
    return list(newest.values())


def file_of(package: dict[str, Any]) -> str:
    return "{name}-{version}-{release}.{arch}.rpm".format(**package)


def preinstalled(rpms: list[dict[str, Any]], mirror: Mirror) -> list[str]:
    """Files, below the repositories, of what a host has before the first run."""
    newest = {package["name"]: package for package in offered(rpms, mirror)}
    found = [newest[name] for name in (*PREINSTALLED, *mirror.libraries)]
    found += [
        package for package in offered(rpms, mirror)
        if package.get("unit") == "kernel" and package["name"] != "kernel-devel"
        and f"{package['version']}-{package['release']}" == mirror.running
    ]
    return [f"{package['repo']}/Packages/{file_of(package)}" for package in found]


def later_contents(rpms: list[dict[str, Any]]) -> dict[str, dict[str, str]]:
    """Like `contents`; nvidia-smi answers with the later driver."""
    driver = version_of(rpms, "nvidia-driver")
    return {
        name: {path: text.replace(driver, LATER_DRIVER) for path, text in files.items()}
        for name, files in contents(rpms).items()
    }


def spec(rpm: dict[str, Any], files: dict[str, str]) -> str:
    """RPM spec of one stub."""
    lines = [
        f"Name: {rpm['name']}", f"Epoch: {rpm['epoch']}", f"Version: {rpm['version']}", f"Release: {rpm['release']}",
        "Summary: Stub for the stand-in", "License: Apache-2.0", f"BuildArch: {rpm['arch']}", "AutoReqProv: no",
    ]
    if "stream" in rpm:
        lines.append(f"ModularityLabel: {rpm['module']}:{rpm['stream']}:{CONTEXT}")
    lines += [f"Requires: {name}" for name in rpm.get("requires", [])]
    lines += [f"Provides: {name}" for name in rpm.get("provides", [])]
    lines += ["%description", f"Stands for {rpm['name']}.", "%install", "mkdir -p %{buildroot}"]
    for number, (path, text) in enumerate(files.items()):
        mode = "0755" if "/bin/" in path else "0644"
        # A percent sign begins a macro.
        body = text.rstrip("\n").replace("%", "%%")
        lines += [f"mkdir -p %{{buildroot}}{Path(path).parent}", f"cat > %{{buildroot}}{path} <<'END{number}'", body,
                  f"END{number}", f"chmod {mode} %{{buildroot}}{path}"]
    return "\n".join([*lines, "%files", *files]) + "\n"


def modules(rpms: list[dict[str, Any]], mirror: Mirror = K80) -> str:
    """Module metadata: a stream for each one named."""
    documents = []
    streams = sorted({(rpm["module"], rpm["stream"]) for rpm in rpms if "stream" in rpm})
    for module, stream in streams:
        members = [rpm for rpm in rpms if rpm.get("stream") == stream]
        version, context = CONTEXT.split(":")
        documents.append({
            "document": "modulemd", "version": 2,
            "data": {
                "name": module, "stream": stream, "version": int(version), "context": context, "arch": "x86_64",
                "summary": f"Stub of {module}", "description": f"Stub of {module}:{stream}.",
                "license": {"module": ["Apache-2.0"]},
                "dependencies": [{"requires": {"platform": [mirror.dist]}}],
                "profiles": {"default": {"rpms": [module]}},
                "artifacts": {"rpms": [
                    f"{rpm['name']}-{rpm['epoch']}:{rpm['version']}-{rpm['release']}.{rpm['arch']}" for rpm in members
                ]},
            },
        })
    documents.append({
        "document": "modulemd-defaults", "version": 1,
        "data": {"module": "nvidia-driver", "stream": mirror.streams[0],
                 "profiles": {stream: ["default"] for _, stream in streams}},
    })
    return "".join("---\n" + yaml.safe_dump(document, sort_keys=False) + "...\n" for document in documents)


def run(*command: str | Path, **environment: str) -> str:
    """Run a program; end with its output where it fails."""
    arguments = [str(part) for part in command]
    done = subprocess.run(arguments, env={**os.environ, **environment}, capture_output=True, text=True)
    if done.returncode:
        fail(f"Stub repositories: {command[0]} failed:\n{(done.stderr or done.stdout).strip()[-2000:]}")
    return done.stdout


def build(target: Path, mirror: Mirror) -> None:
    """Make the repositories below `target`, with the key that signed them."""
    rpms = yaml.safe_load(mirror.lock.read_text())["rpms"]
    files = contents(rpms, mirror)
    packages = [(rpm["repo"], rpm, files.get(rpm["name"], {})) for rpm in offered(rpms, mirror)]
    packages += [(rpm["repo"], rpm, {}) for rpm in mirror.decoys]
    with_modules = [(mirror.cuda, [*rpms, *mirror.decoys])]
    if mirror.has_later:
        files_later = later_contents(rpms)
        packages += [(LATER, rpm, files_later.get(rpm["name"], {})) for rpm in offered_later(rpms)]
        with_modules.append((LATER, later(rpms)))
    work = target / "work"
    home = work / "gnupg"
    home.mkdir(parents=True, mode=0o700)
    (work / "specs").mkdir()
    for repository, rpm, content in packages:
        path = work / "specs" / f"{rpm['name']}-{rpm['version']}-{rpm['release']}.spec"
        path.write_text(spec(rpm, content))
        built = target / repository / "Packages"
        built.mkdir(parents=True, exist_ok=True)
        run("rpmbuild", "-bb", "--quiet", "--nodeps", "--target", rpm["arch"],
            "--define", f"_topdir {work}", "--define", f"_rpmdir {built}", "--define", f"_dbpath {work}/db",
            "--define", "_rpmfilename %%{NAME}-%%{VERSION}-%%{RELEASE}.%%{ARCH}.rpm",
            "--define", "_build_id_links none", "--define", "__os_install_post %{nil}", path)
    gpg = ["gpg", "--batch", "--quiet"]
    run(*gpg, "--passphrase", "", "--quick-generate-key", SIGNER, "rsa3072", "sign", "never", GNUPGHOME=str(home))
    (target / "RPM-GPG-KEY-standin").write_text(run(*gpg, "--armor", "--export", GNUPGHOME=str(home)))
    (target / "preinstalled").write_text("\n".join(preinstalled(rpms, mirror)) + "\n")
    listed = run(*gpg, "--list-keys", "--with-colons", GNUPGHOME=str(home))
    fingerprint = next(line.split(":")[9] for line in listed.splitlines() if line.startswith("fpr:"))
    (target / "fingerprint").write_text(fingerprint)
    run("rpmsign", "--addsign", "--define", f"_gpg_name {SIGNER}", "--define", f"_gpg_path {home}",
        "--define", "__gpg /usr/bin/gpg", *target.glob("*/Packages/*.rpm"), GNUPGHOME=str(home))
    for repository in (*mirror.repositories, *([LATER] if mirror.has_later else [])):
        run("createrepo_c", "--quiet", "--no-database", "--general-compress-type=gz", target / repository)
    for repository, members in with_modules:
        (work / "modules.yaml").write_text(modules(members, mirror))
        run("modifyrepo_c", "--mdtype=modules", "--compress-type=gz", work / "modules.yaml",
            target / repository / "repodata")
    for repository in SIGNED:
        run(*gpg, "--armor", "--detach-sign", target / repository / "repodata" / "repomd.xml", GNUPGHOME=str(home))
    run("gpgconf", "--homedir", home, "--kill", "all")
    # The private key has done its work.
    shutil.rmtree(work)


def ensure(profile: str = "k80") -> Path:
    """Directory of the repositories of a profile's hosts, made anew when the lock or the stubs changed."""
    mirror = MIRRORS[profile]
    inputs = b"".join(
        path.read_bytes()
        for path in (Path(__file__), mirror.lock, SHARED / "stubs" / "nvidia-smi", mirror.capture_file)
    )
    target = CACHE / "repos" / hashlib.sha256(inputs).hexdigest()[:12]
    if (target / "fingerprint").exists() and not (target / "work").exists():
        return target
    programs = {"rpmbuild": "rpm", "gpg": "gnupg"}
    missing = [package for program, package in programs.items() if not shutil.which(program)]
    with Step("Making the stub repositories"):
        if missing and os.geteuid() == 0 and shutil.which("apt-get"):
            run("apt-get", *APT_WAITS, "--quiet", "install", "--yes", "--no-install-recommends", *missing,
                DEBIAN_FRONTEND="noninteractive")
        elif missing:
            fail(f"Stub repositories: found no {', '.join(missing)}; expected rpm and gpg. Install them.")
        shutil.rmtree(target, ignore_errors=True)
        build(target, mirror)
    return target
