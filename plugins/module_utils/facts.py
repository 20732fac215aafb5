"""Read facts of a host from its files as plain data. Nothing here writes."""

import os
import re
import socket
import struct

UNIT = re.compile(r"^[^/]+\.(service|scope|socket|slice)$")
DKMS_TREE = re.compile(r"""^\s*dkms_tree=["']?([^"'\s#]+)""", re.MULTILINE)
# `allow perm=any all : dir=/opt/kepler/`, also with its audit and syslog variants.
FAPOLICYD_ALLOW = re.compile(r"^\s*allow(?:_audit|_syslog|_log)?\s+perm=any\s+all\s*:\s*dir=(\S+)\s*$", re.MULTILINE)
LISTEN = "0A"  # state of a listening socket in /proc/net/tcp


def read_raw(path):
    """Text of a small file, or None if there is none that can be read; UTF-8, whatever the locale says."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return None


def read(path):
    """Stripped text of a small file, or None if there is none that can be read."""
    text = read_raw(path)
    return None if text is None else text.strip()


def os_release(text):
    """Mapping of an os-release file; a line that is no assignment is passed over."""
    found = {}
    for line in (text or "").splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            found[key] = value.strip("\"'")
    return found


def address_of(text):
    """Address as people write it, of the hexadecimal form that /proc/net/tcp and tcp6 have."""
    words = [text[start:start + 8] for start in range(0, len(text), 8)]
    packed = b"".join(struct.pack("<I", int(word, 16)) for word in words)
    return socket.inet_ntop(socket.AF_INET if len(packed) == 4 else socket.AF_INET6, packed)


def listeners(table):
    """Listening sockets in the text of /proc/net/tcp or tcp6: [{address, port, inode}]."""
    found = []
    for line in (table or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == LISTEN:
            address, port = fields[1].split(":")
            found.append({"address": address_of(address), "port": int(port, 16), "inode": fields[9]})
    return found


def unit_of(cgroup):
    """The systemd unit that the text of /proc/PID/cgroup names: the innermost one, or None."""
    best = None
    for line in (cgroup or "").splitlines():
        parts = line.split(":", 2)
        if len(parts) != 3 or parts[1] not in ("", "name=systemd"):
            continue
        for step in parts[2].split("/"):
            if UNIT.match(step) and not step.endswith(".slice"):
                best = step
    return best


def process(pid, proc="/proc"):
    """{pid, command, unit} of a process; the last two are None if it has ended."""
    directory = os.path.join(proc, str(pid))
    return {
        "pid": int(pid),
        "command": read(os.path.join(directory, "comm")),
        "unit": unit_of(read(os.path.join(directory, "cgroup"))),
    }


def holders(inodes, proc="/proc"):
    """{inode: {pid, command, unit}} of the processes that hold the sockets `inodes`."""
    wanted = {"socket:[%s]" % inode: inode for inode in inodes}
    found = {}
    for pid in (name for name in os.listdir(proc) if name.isdigit()):
        directory = os.path.join(proc, pid)
        files = os.path.join(directory, "fd")
        try:
            links = [os.readlink(os.path.join(files, name)) for name in os.listdir(files)]
        except OSError:  # the process has ended meanwhile
            continue
        for link in links:
            if link in wanted:
                found[wanted[link]] = process(pid, proc)
    return found


def mount_point(path):
    """Mount point of the file system of `path`, or of the nearest existing directory above it."""
    path = os.path.abspath(path)
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    path = os.path.realpath(path)
    while not os.path.ismount(path):
        path = os.path.dirname(path)
    return path


def free_space(path):
    """{mount, bytes} of the file system that `path` lies on, or will: bytes that root can still write there."""
    mount = mount_point(path)
    status = os.statvfs(mount)
    return {"mount": mount, "bytes": status.f_bfree * status.f_frsize}


def executability(path):
    """{path, mount, noexec}: whether the file system that `path` lies on, or will, refuses to run programs."""
    mount = mount_point(path)
    return {"path": path, "mount": mount, "noexec": bool(os.statvfs(mount).f_flag & os.ST_NOEXEC)}


def dkms_tree(texts):
    """Directory that DKMS builds in; texts: of its settings, of which the last one counts."""
    found = [value for text in texts for value in DKMS_TREE.findall(text or "")]
    return found[-1] if found else "/var/lib/dkms"


def runs(command, proc="/proc"):
    """Return whether a process of this name runs."""
    return any(read(os.path.join(proc, pid, "comm")) == command for pid in os.listdir(proc) if pid.isdigit())


def is_permissive(text):
    """Return whether fapolicyd.conf has it report and refuse nothing."""
    return re.search(r"^\s*permissive\s*=\s*1\b", text or "", re.MULTILINE) is not None


def allowed_directories(rules):
    """Directories below which fapolicyd's rules let everybody do everything, from the texts of its rule files."""
    return sorted({
        directory for text in rules for directory in FAPOLICYD_ALLOW.findall(text or "") if directory.startswith("/")
    })


def glibc():
    """Version of the C library, such as 2.28; empty where it is another one."""
    name, _, version = (os.confstr("CS_GNU_LIBC_VERSION") or "").partition(" ")
    return version if name == "glibc" else ""


def cpu_flags(text):
    """Flags of the first processor in the text of /proc/cpuinfo, sorted."""
    for line in (text or "").splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == "flags":
            return sorted(set(value.split()))
    return []


def memory_bytes(text):
    """Bytes of memory in the text of /proc/meminfo; 0 if it does not say."""
    match = re.search(r"^MemTotal:\s+(\d+) kB$", text or "", re.MULTILINE)
    return int(match.group(1)) * 1024 if match else 0


def modules(text):
    """Names of the loaded kernel modules, from the text of /proc/modules."""
    return [line.split()[0] for line in (text or "").splitlines() if line.strip()]


def dnf_module_streams(directory):
    """{module: enabled stream} of dnf's own records, the `.module` files of `directory`."""
    found = {}
    try:
        names = sorted(os.listdir(directory))
    except OSError:
        return found
    for name in names:
        if not name.endswith(".module"):
            continue
        text = read(os.path.join(directory, name)) or ""
        values = dict(line.replace(" ", "").split("=", 1) for line in text.splitlines() if "=" in line)
        if values.get("state") == "enabled":
            found[name[:-len(".module")]] = values.get("stream", "")
    return found


def enrollment(answer):
    """`enrolled`, `pending` (until a reboot) or `absent`: from the answer of `mokutil --test-key`; None without one.

    Its exit status differs between versions; its words do not.
    """
    text = (answer or "").lower()
    if "already enrolled" in text:
        return "enrolled"
    if "already in the enrollment request" in text:
        return "pending"
    return "absent" if "is not enrolled" in text else None
