"""A program `dnf` for tests: prints what the real one prints, about repositories that a test describes.

FAKE_DNF names a directory with `world.json`: `repos` (id to lines of the query), `failing` (ids), `streams` that are on
offer, and `install` (text that the installation prints). It takes from its arguments which repositories are defined,
as the real one does, and writes its arguments into `calls`.
"""

import json
import os
import re
import sys
from pathlib import Path

HERE = Path(os.environ["FAKE_DNF"])
OPTION = "--setopt=reposdir="
FAILURE = """\
Errors during downloading metadata for repository '{0}':
  - Curl error (7): Couldn't connect to server for http://127.0.0.1:9/x/repodata/repomd.xml [Failed to connect]
Error: Failed to download metadata for repo '{0}': Cannot download repomd.xml: Cannot download repodata/repomd.xml
Ignoring repositories: {0}
"""
TABLE = """\
Dependencies resolved.
================================================================================
 Package       Architecture  Version                     Repository        Size
================================================================================
Installing:
 xz            x86_64        5.2.4-4.el8_6               baseos           5.5 k

Transaction Summary
================================================================================
"""


def main():
    world = json.loads((HERE / "world.json").read_text())
    with (HERE / "calls").open("a") as stream:
        stream.write(json.dumps(sys.argv[1:]) + "\n")
    (directory,) = [item.removeprefix(OPTION) for item in sys.argv if item.startswith(OPTION)]
    text = "".join(path.read_text() for path in sorted(Path(directory).glob("*.repo")))
    (HERE / "repos.txt").write_text(text)
    defined = re.findall(r"^\[(.+)\]$", text, re.MULTILINE)
    if "module" in sys.argv:
        missing = [name for name in sys.argv[sys.argv.index("enable") + 1:] if name not in world.get("streams", [])]
        if missing:
            sys.exit(f"Error: Problems in request:\nmissing groups or modules: {', '.join(missing)}")
        sys.exit("Operation aborted.")
    if "install" in sys.argv:
        print(world.get("install", TABLE))
        sys.exit("Operation aborted.")
    for name in world.get("failing", []):
        print(FAILURE.format(name), file=sys.stderr)
    for name, lines in world["repos"].items():
        for line in lines:
            if name in defined and line.partition("|")[0] in sys.argv:
                print(f"{line}|{name}")


main()
