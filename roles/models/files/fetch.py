#!/usr/bin/env python3
"""Fetches one model from the hub into the shared cache, on the Python of the serving environment.

Its argument says as JSON what to fetch: `name`, `revision`, `directory` for the record, `expected` (sha256 of
files by name; empty where none are recorded), `uses` (engine and options of each server of it) on GPUs of a
`capability`. Leaves `record.json` there, or `fault.json` with what went wrong, and `progress.json` while it works. What
an earlier run has fetched is not fetched again.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from checkpoint import engine, files, heads  # the role installs them beside this program
from checkpoint.errors import FileError
from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from requests.exceptions import RequestException

CHUNK = 1 << 22
# How often a busy hub is asked again, and the longest wait in seconds.
TRIES, LONGEST_WAIT = 5, 300


class FetchError(Exception):
    """A model that cannot be fetched or served; the message has the next step."""


def write(directory: Path, name: str, content: dict[str, Any]) -> None:
    """Write a JSON file that is there in whole or not at all."""
    path = directory / name
    path.with_suffix(".new").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    os.replace(path.with_suffix(".new"), path)


def reader(name: str, revision: str) -> Callable[[str, int, int], bytes]:
    """Function that reads bytes of a file of the hub: its name, the first one, and the one after the last."""
    session = get_session()

    def read(file: str, first: int, last: int) -> bytes:
        there = try_to_load_from_cache(name, file, revision=revision)
        if isinstance(there, str):
            with open(there, "rb") as stream:
                stream.seek(first)
                return stream.read(last - first)
        if first == last:
            return b""
        headers = {**build_hf_headers(), "Range": f"bytes={first}-{last - 1}"}
        with session.get(hf_hub_url(name, file, revision=revision), headers=headers, timeout=60, stream=True) as answer:
            hf_raise_for_status(answer)
            # A hub that knows no ranges answers with the whole.
            skipped = first if answer.status_code == 200 else 0
            return answer.raw.read(skipped + last - first, decode_content=True)[skipped:]

    return read


def check(
    name: str, revision: str, sizes: dict[str, int], directory: Path, uses: Sequence[dict[str, Any]],
    capability: str | None,
) -> None:
    """Raise FetchError if a server of it cannot serve the model, by its configs and headers. Before it is fetched.

    Raises FileError for a file that is not what it should be.
    """
    with tempfile.TemporaryDirectory(dir=directory) as laid:
        heads.lay_out(laid, sizes, reader(name, revision))
        is_gguf = min(sizes).lower().endswith(".gguf")
        facts = files.read_model(heads.place_of(laid, min(sizes)) if is_gguf else laid)
    check_facts(facts, min(sizes) if is_gguf else "config.json", uses, capability)


def check_facts(facts: dict[str, Any], place: str, uses: Sequence[dict[str, Any]], capability: str | None) -> None:
    """Raise FetchError if a server of it cannot serve the model of which read_model gave `facts`; `place`: its file."""
    for fault in facts["faults"]:
        named = Path(fault["file"]).name
        raise FetchError(f"{named}: found {fault['found']}; expected {fault['expected']}. Choose another file of the "
                         "model, or another checkpoint of it.")
    for use in uses:
        served_by = engine.Engine(use["engine"], capability)
        for found, expected in engine.judge(
            facts["config"], facts["tensors"], facts["tokenizer"], use["options"], served_by
        ):
            raise FetchError(f"{place}: found {found}; expected {expected}. Choose another checkpoint of the model.")


def digests(path: Path) -> tuple[str, str]:
    """(sha256 of a file, its name as a blob of git)."""
    whole, blob = hashlib.sha256(), hashlib.sha1(b"blob %d\0" % path.stat().st_size, usedforsecurity=False)
    with path.open("rb") as stream:
        while chunk := stream.read(CHUNK):
            whole.update(chunk)
            blob.update(chunk)
    return whole.hexdigest(), blob.hexdigest()


class Meter:
    """Writes how much has been fetched, every two seconds."""

    def __init__(self, directory: Path, cache: Path, total: int) -> None:
        self.directory, self.cache, self.total = directory, cache, total
        self.over = threading.Event()
        self.thread = threading.Thread(target=self.follow, daemon=True)

    def follow(self) -> None:
        while not self.over.wait(2):
            done = 0
            for path in self.cache.glob("blobs/*"):
                try:
                    done += path.stat().st_size
                except OSError:  # the file was renamed meanwhile
                    pass
            write(self.directory, "progress.json", {"doing": "fetching", "done": done, "total": self.total})

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *exception: object) -> None:
        self.over.set()
        self.thread.join()


def verify(snapshot: Path, siblings: dict[str, Any], expected: dict[str, str], directory: Path) -> dict[str, Any]:
    """{file: {size, sha256}} of what was fetched. Raises FetchError if a file differs from hub or record."""
    found: dict[str, Any] = {}
    total, done = sum(sibling.size or 0 for sibling in siblings.values()), 0
    for name, sibling in sorted(siblings.items()):
        write(directory, "progress.json", {"doing": "verifying", "done": done, "total": total})
        path = snapshot / name
        sha256, blob = digests(path)
        wanted = sibling.lfs.sha256 if sibling.lfs else sibling.blob_id
        if wanted not in (sha256, blob):
            os.unlink(path.resolve())  # so that the next run fetches it anew
            path.unlink()
            raise FetchError(
                f"{name}: found sha256 {sha256}; expected {wanted}, which the hub says. It was removed: run again."
            )
        if expected.get(name, sha256) != sha256:
            raise FetchError(
                f"{name}: found sha256 {sha256}; expected the recorded {expected[name]}. The hub hands out another "
                "file than the one that was recorded: look at who changed it before you record it anew."
            )
        found[name] = {"size": path.stat().st_size, "sha256": sha256}
        done += path.stat().st_size
    missing = sorted(set(expected) - set(found))
    if missing:
        raise FetchError(f"found no {', '.join(missing)}; expected the files that were recorded.")
    return found


def fetch(
    name: str, revision: str, directory: Path, expected: dict[str, str], uses: Sequence[dict[str, Any]],
    capability: str | None,
) -> dict[str, Any]:
    """The record of the model: name, revision, path, files."""
    repository, file = files.split_name(name)
    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    chosen = heads.choose([sibling.rfilename for sibling in info.siblings or []], file)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or [] if sibling.rfilename in chosen}
    if not file and "config.json" not in siblings:
        raise FetchError("found no config.json; expected a model in the form of transformers.")
    sizes = {name: sibling.size or 0 for name, sibling in siblings.items()}
    check(repository, info.sha or revision, sizes, directory, uses, capability)
    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    cache.mkdir(parents=True, exist_ok=True)
    total = sum(sibling.size or 0 for sibling in siblings.values())
    there = sum(path.stat().st_size for path in cache.glob("blobs/*"))
    free = shutil.disk_usage(cache).free
    if total - there > free:
        raise FetchError(
            f"{cache}: found {free / 2**30:.1f} GiB free; expected {(total - there) / 2**30:.1f} GiB for the rest of "
            "the model. Free some, or put vllm_service_home on a larger disk; what was fetched is kept."
        )
    with Meter(directory, cache, total):
        snapshot = Path(snapshot_download(repository, revision=revision, allow_patterns=chosen, max_workers=4))
    found = verify(snapshot, siblings, expected, directory)
    return {"name": name, "asked": revision, "revision": info.sha, "path": str(snapshot), "files": found}


def main() -> int:
    asked = json.loads(sys.argv[1])
    name, revision, directory = asked["name"], asked["revision"], Path(asked["directory"])
    where = f"model {name} at {revision}: "
    try:
        for left in range(TRIES, -1, -1):
            try:
                record = fetch(name, revision, directory, asked["expected"], asked["uses"], asked["capability"])
                break
            except HfHubHTTPError as error:
                answer = error.response
                wait = heads.wait_of(answer.status_code, answer.headers, LONGEST_WAIT) if answer is not None else None
                if wait is None or not left:
                    raise
                time.sleep(wait)
        write(directory, "record.json", record)
        return 0
    except FetchError as fault:
        text = str(fault)
    except FileError as fault:
        text = f"{fault.place}: found {fault.found}; expected {fault.expected}. {fault.next_step}"
    except GatedRepoError:
        text = "found a gated repository; expected one that may be read. Accept its terms, then give models_token_file."
    except RevisionNotFoundError:
        text = "found no such revision; expected 40 hexadecimal digits of a commit of the repository."
    except RepositoryNotFoundError:
        text = "found no such repository; expected OWNER/NAME on the hub, or a directory of the host. A private one "
        text += "needs models_token_file."
    except (HfHubHTTPError, RequestException, OSError) as error:
        line = " ".join(str(error).split())[:300]
        text = f"found {line or type(error).__name__}; expected an answer of {constants.ENDPOINT}. Run again: what was "
        text += "fetched is kept. Where there is no network, copy the model to the host and name its directory."
    write(directory, "fault.json", {"msg": where + text})
    return 1


if __name__ == "__main__":
    sys.exit(main())
