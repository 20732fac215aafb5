"""Small recipes, and what the tests of the store share. Runs on Python 3.6 too."""

import contextlib
import errno
import hashlib
import http.server
import os
import subprocess
import sys
from pathlib import Path

import pytest

PLUGINS = Path(__file__).resolve().parents[3] / "plugins"
sys.path.insert(0, str(PLUGINS))

from module_utils.store import address  # noqa: E402

PLAIN_BUILDER = """\
mkdir -p "$out/bin"
echo "$out" > "$out/bin/where"
chmod +x "$out/bin/where"
ln -s bin/where "$out/link"
"""
# What another run's process has mounted or open by the same name would be in use here too.
PLAIN_BUILDER += "# %s %s\n" % (os.environ.get("PYTEST_XDIST_TESTRUNUID"), os.environ.get("PYTEST_XDIST_WORKER"))


@contextlib.contextmanager
def small_disk(directory, options):
    """Mount a small file system over an empty directory; options: of tmpfs."""
    assert subprocess.call(["mount", "-t", "tmpfs", "-o", options, "none", directory]) == 0
    try:
        yield
    finally:
        subprocess.call(["umount", directory])


def fill(root):
    """Take all the room for files that a disk has: how many it had."""
    for number in range(1000):
        try:
            Path(root, "filler-%d" % number).touch()
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise
            return number
    pytest.fail("the disk did not fill")


def can_unshare():
    """Whether this process may make the namespaces that a build runs in."""
    return os.geteuid() == 0 and os.system("unshare --net --mount --propagation private true 2>/dev/null") == 0


needs_namespaces = pytest.mark.skipif(not can_unshare(), reason="needs root and unshare")


def recipe(**differs):
    """A recipe that builds two files; keywords replace its fields."""
    made = {
        "name": "hello", "version": "1.0", "system": "x86_64-linux", "builder": PLAIN_BUILDER, "environment": {},
        "sources": [], "inputs": {}, "toolchain": [],
    }
    made.update(differs)
    return made


def source(path, **differs):
    """A source that is the file `path`."""
    made = {"name": path.name, "file": path.name, "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
            "urls": ["file://%s" % path]}
    made.update(differs)
    return made


def committed(root, made):
    return address.is_committed(address.output_path(root, made))


class RangeHandler(http.server.BaseHTTPRequestHandler):
    """Files of a directory; understands a range that is open at its end."""

    def __init__(self, directory, requests, *arguments):
        self.directory, self.seen = directory, requests
        super().__init__(*arguments)

    def do_GET(self):
        wanted = self.headers.get("Range")
        self.seen.append((self.path, wanted))
        path = Path(self.directory + self.path)
        if path.is_dir():
            path = path / "index.html"
        if not path.exists():
            self.send_error(404)
            return
        content = path.read_bytes()
        start = int(wanted[len("bytes="):-1]) if wanted else 0
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Type", "application/json" if content.startswith(b"{") else "text/html")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        # The first answer for a file whose name says so breaks off in the middle.
        whole = "breaks-off" not in self.path or wanted
        self.wfile.write(content[start:] if whole else content[: len(content) // 2])

    def log_message(self, *arguments):
        """Say nothing."""
