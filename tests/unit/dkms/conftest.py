"""The real dkms over directories of a test, and the roles' way to run a play."""

import shutil
from pathlib import Path

import pytest
from role_play import overlay, play  # noqa: F401

SYSTEM = "/usr/sbin:/usr/bin:/sbin:/bin"

CONF = """\
PACKAGE_NAME="nvidia"
PACKAGE_VERSION="{version}"
BUILT_MODULE_NAME[0]="nvidia"
DEST_MODULE_LOCATION[0]="/extra"
MAKE[0]="make KERNELRELEASE=$kernelver -C $kernel_source_dir M=$dkms_tree/nvidia/{version}/build modules"
CLEAN="true"
AUTOINSTALL="yes"
"""
SOURCE = """\
#include <linux/module.h>
MODULE_LICENSE("GPL");
MODULE_VERSION("{version}");
{body}
"""


def headers():
    """Kernels of this machine whose headers are installed: [(name, directory)]."""
    return [
        (path.name, (path / "build").resolve())
        for path in sorted(Path("/lib/modules").glob("*"))
        if (path / "build" / "Makefile").is_file()
    ]


class Dkms:
    """A module tree, a source tree and dkms's own tree below `root`, and programs that use them."""

    def __init__(self, root, version):
        self.root, self.version = root, version
        self.tree, self.modules = root / "dkms", root / "lib" / "modules"
        self.framework = root / "framework.conf.d"
        self.source = root / "src" / f"nvidia-{version}"
        for directory in (self.tree, self.modules, self.framework, self.source):
            directory.mkdir(parents=True)
        (self.source / "dkms.conf").write_text(CONF.format(version=version))
        (self.source / "Makefile").write_text("obj-m += nvidia.o\n")
        self.write("")

    def write(self, body):
        """The module's source, with `body` in it."""
        (self.source / "nvidia.c").write_text(SOURCE.format(version=self.version, body=body))

    def headers(self, name, directory):
        """Headers of the kernel `name`."""
        (self.modules / name).mkdir(exist_ok=True)
        (self.modules / name / "build").symlink_to(directory)

    def programs(self):
        """What a host's dkms, depmod and modinfo are here. dkms takes settings of the environment like its file's."""
        real = {name: shutil.which(name, path=SYSTEM) for name in ("dkms", "modinfo", "depmod")}
        settings = f"for file in {self.framework}/*.conf; do [ ! -e $file ] || . $file; done"
        return {
            "dkms": (
                f"sign_file=${{SIGN_FILE:-/nowhere}}; set -a; export sign_file; {settings}; set +a\n"
                f'echo "$@" >> {self.root}/calls\n'
                f'exec {real["dkms"]} "$@" --dkmstree {self.tree} --sourcetree {self.root}/src '
                f"--installtree {self.modules}"
            ),
            "modinfo": f'exec {real["modinfo"]} -b {self.root} "$@"',
            "depmod": f'exec {real["depmod"]} -b {self.root} "$@"',
        }

    def calls(self):
        """What dkms was asked to do."""
        path = self.root / "calls"
        return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="session")
def kernels():
    """Two kernels whose headers this machine has."""
    if shutil.which("dkms", path=SYSTEM) is None:
        pytest.skip("dkms is not installed (packages: dkms, and linux-headers of two kernels)")
    found = headers()
    if len(found) < 2:
        pytest.skip(f"found headers of {len(found)} kernels in /lib/modules; two are needed")
    return found[:2]


@pytest.fixture
def dkms(tmp_path, kernels):
    return Dkms(tmp_path / "host", "1.2.3")
