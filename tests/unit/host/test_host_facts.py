"""What the host says about itself, read from captured files."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from module_utils import facts

PLUGINS = Path(__file__).resolve().parents[3] / "plugins"


def test_os_release():
    text = '# Rocky\nNAME="Rocky Linux"\nID=rocky\nVERSION_ID="8.10"\n\nnonsense\nHOME_URL=\'a=b\'\n'
    assert facts.os_release(text) == {"NAME": "Rocky Linux", "ID": "rocky", "VERSION_ID": "8.10", "HOME_URL": "a=b"}
    assert facts.os_release(None) == {}


def test_who_runs(tmp_path):
    for pid, name in (("1", "systemd"), ("812", "fapolicyd"), ("self", "python")):
        (tmp_path / pid).mkdir()
        (tmp_path / pid / "comm").write_text(name + "\n")
    (tmp_path / "99").mkdir()  # it has ended meanwhile
    assert facts.runs("fapolicyd", str(tmp_path))
    assert not facts.runs("python", str(tmp_path))


@pytest.mark.parametrize(
    ("text", "permissive"),
    [("permissive = 1\n", True), ("#permissive = 1\npermissive = 0\n", False), (" permissive=1", True), (None, False)],
)
def test_fapolicyd_that_refuses_nothing(text, permissive):
    assert facts.is_permissive(text) is permissive


def test_directories_that_fapolicyd_opens():
    """What is open to root or to trusted programs alone, or for reading, is not open."""
    rules = [
        "# allow perm=any all : dir=/commented/\nallow perm=any uid=0 : dir=/var/tmp/\n"
        "allow perm=any all : dir=/opt/kepler/\nallow_audit perm=any all : dir=/var/lib/vllm/\n",
        "allow perm=open all : dir=/srv/\ndeny_audit perm=any all : dir=/home/\nallow perm=any all : trust=1\n"
        "allow perm=any all : dir=execdirs\nallow perm=any all : dir=/data/ trust=1\n", None,
    ]
    assert facts.allowed_directories(rules) == ["/opt/kepler/", "/var/lib/vllm/"]


TCP = """  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1F40 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 4242 1 0 100 0 0 10 0
   1: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 17 1 0 100 0 0 10 0
   2: 0100007F:9C40 0100007F:1F40 01 00000000:00000000 00:00000000 00000000     0        0 99 1 0 20 4 30 10 -1
"""
TCP6 = """  sl  local_address                         remote_address                        st tx_queue rx_queue
   0: 00000000000000000000000001000000:1F41 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 77 1 0 100
   1: 00000000000000000000000000000000:1F42 00000000000000000000000000000000:0000 0A 0:0 0:0 0 0 0 78 1 0 100
"""


def test_listeners_of_ipv4():
    assert facts.listeners(TCP) == [
        {"address": "127.0.0.1", "port": 8000, "inode": "4242"},
        {"address": "0.0.0.0", "port": 22, "inode": "17"},
    ]


def test_listeners_of_ipv6():
    assert [(entry["address"], entry["port"]) for entry in facts.listeners(TCP6)] == [("::1", 8001), ("::", 8002)]


def test_no_table_no_listeners():
    assert facts.listeners(None) == []


@pytest.mark.parametrize(
    ("cgroup", "unit"),
    [
        ("0::/system.slice/system-vllm.slice/vllm@demo.service\n", "vllm@demo.service"),
        ("4:memory:/user.slice\n1:name=systemd:/system.slice/nginx.service\n", "nginx.service"),
        ("0::/user.slice/user-0.slice/session-3.scope\n", "session-3.scope"),
        ("0::/\n", None),
        (None, None),
    ],
)
def test_unit_of_a_process(cgroup, unit):
    assert facts.unit_of(cgroup) == unit


def test_who_holds_a_socket(tmp_path):
    holder = tmp_path / "321"
    (holder / "fd").mkdir(parents=True)
    (holder / "fd" / "7").symlink_to("socket:[4242]")
    (holder / "fd" / "0").symlink_to("/dev/null")
    (holder / "comm").write_text("python\n")
    (holder / "cgroup").write_text("0::/system.slice/vllm@demo.service\n")
    (tmp_path / "322").mkdir()  # a process that has ended meanwhile
    (tmp_path / "self").mkdir()
    assert facts.holders(["4242", "1"], str(tmp_path)) == {
        "4242": {"pid": 321, "command": "python", "unit": "vllm@demo.service"}
    }


def test_free_space_of_a_path_that_does_not_exist_yet(tmp_path):
    status = os.statvfs(str(tmp_path))
    free = facts.free_space(str(tmp_path / "opt" / "kepler"))
    assert 0 < free["bytes"] <= status.f_blocks * status.f_frsize
    assert os.path.ismount(free["mount"])
    assert str(tmp_path).startswith(free["mount"])


def test_two_file_systems_have_two_mount_points(tmp_path):
    (tmp_path / "link").symlink_to("/proc")
    assert facts.mount_point(str(tmp_path / "link" / "nothing")) == "/proc"
    assert facts.mount_point("/") == "/"


CPUINFO = "processor\t: 0\nflags\t\t: fpu sse4_2 avx avx2 avx\n\nprocessor\t: 1\nflags\t\t: fpu\n"


def test_flags_of_the_processor():
    assert facts.cpu_flags(CPUINFO) == ["avx", "avx2", "fpu", "sse4_2"]
    assert facts.cpu_flags("processor : 0\n") == facts.cpu_flags(None) == []


def test_memory():
    assert facts.memory_bytes("MemTotal:       65841668 kB\nMemFree: 1 kB\n") == 65841668 * 1024
    assert facts.memory_bytes("nonsense") == facts.memory_bytes(None) == 0


def test_loaded_modules():
    assert facts.modules("nouveau 1 0 - Live 0x0\nnvidia_uvm 2 0 - Live 0x0\n") == ["nouveau", "nvidia_uvm"]
    assert facts.modules(None) == []


def test_enabled_module_streams(tmp_path):
    (tmp_path / "nvidia-driver.module").write_text(
        "[nvidia-driver]\nname=nvidia-driver\nstream=470-dkms\nprofiles=\nstate=enabled\n"
    )
    (tmp_path / "perl.module").write_text("[perl]\nname = perl\nstream = 5.26\nstate = enabled\n")
    (tmp_path / "php.module").write_text("[php]\nname=php\nstream=\nstate=disabled\n")
    (tmp_path / "notes.txt").write_text("stream=1\nstate=enabled\n")
    assert facts.dnf_module_streams(str(tmp_path)) == {"nvidia-driver": "470-dkms", "perl": "5.26"}
    assert facts.dnf_module_streams(str(tmp_path / "none")) == {}


@pytest.mark.parametrize(("texts", "directory"), [
    ([], "/var/lib/dkms"),
    ([None, "# dkms_tree=/old\n"], "/var/lib/dkms"),
    (['dkms_tree="/srv/dkms"\n'], "/srv/dkms"),
    (["dkms_tree=/a\n", "x=1\n  dkms_tree='/b'  # why\n"], "/b"),
])  # fmt: skip
def test_directory_that_dkms_builds_in(texts, directory):
    assert facts.dkms_tree(texts) == directory


def test_a_mount_that_runs_nothing(tmp_path):
    found = facts.executability(str(tmp_path / "later" / "deeper"))
    assert found["path"].endswith("deeper")
    assert found["noexec"] is bool(os.statvfs(str(tmp_path)).f_flag & os.ST_NOEXEC)
    # /proc is mounted so wherever these tests run.
    assert facts.executability("/proc/sys") == {"path": "/proc/sys", "mount": "/proc", "noexec": True} or not (
        os.statvfs("/proc").f_flag & os.ST_NOEXEC
    )


@pytest.mark.parametrize(
    ("answer", "state"),
    [
        ("/var/lib/dkms/mok.pub is already enrolled\n", "enrolled"),
        ("/var/lib/dkms/mok.pub is already in the enrollment request\n", "pending"),
        ("/var/lib/dkms/mok.pub is not enrolled\n", "absent"),
        ("EFI variables are not supported on this system\n", None),
        ("", None),
        (None, None),
    ],
)
def test_enrollment(answer, state):
    assert facts.enrollment(answer) == state


def test_text_beyond_ascii_is_read_whatever_the_locale(tmp_path):
    (tmp_path / "os-release").write_bytes(b'ID=rocky\nPRETTY_NAME="Rocky \xc3\xa9 \xff"\n')
    program = "import sys; sys.path[:0] = sys.argv[1:2]; from module_utils import facts; " \
              "print(ascii(facts.os_release(facts.read(sys.argv[2]))['PRETTY_NAME']))"
    printed = subprocess.check_output(
        [sys.executable, "-X", "utf8=0", "-c", program, str(PLUGINS), str(tmp_path / "os-release")],
        env={"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0"},
    )
    assert printed.strip() == br"'Rocky \xe9 \ufffd'"
