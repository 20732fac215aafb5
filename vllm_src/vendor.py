"""Lay vLLM's pinned sdist, verified, into vllm_src/upstream: `make vendor`.

The role builds from the archive there and asks no network for it. The unpacked tree beside it is there to read.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
from pathlib import Path

import yaml

PROJECT = Path(__file__).resolve().parents[1]
UPSTREAM = PROJECT / "vllm_src" / "upstream"
sys.path.insert(0, str(PROJECT / "collections"))

from ansible_collections.kepler.vllm.plugins.module_utils.store.errors import StoreError  # noqa: E402
from ansible_collections.kepler.vllm.plugins.module_utils.store.fetch import fetch_sources  # noqa: E402
from ansible_collections.kepler.vllm.plugins.plugin_utils.pip_index import pip_indexes  # noqa: E402


def main() -> None:
    entry = yaml.safe_load((PROJECT / "profiles" / "k80" / "lock" / "sources.yml").read_text())["sources"]["vllm"]
    source = {"name": "vllm", **entry}
    try:
        fetch_sources([source], str(UPSTREAM), [], pip_indexes(), name="file")
    except StoreError as error:
        sys.exit(str(error))
    archive = UPSTREAM / entry["file"]
    tree = UPSTREAM / entry["file"].removesuffix(".tar.gz")
    shutil.rmtree(tree, ignore_errors=True)
    with tarfile.open(archive) as stream:
        stream.extractall(UPSTREAM, filter="data")
    print(f"{archive}: sha256 {entry['sha256']}, as the lock has it\n{tree}: unpacked, to read")


if __name__ == "__main__":
    main()
