#!/usr/bin/env python3
"""Fetches one model from the hub into the shared cache, on the Python of the serving environment.

Its argument says as JSON what to fetch: `name`, `revision`, `directory` for the record, `expected` (sha256 of
files by name; empty where none are recorded), `engines` that shall serve it on GPUs of a `capability`. Leaves
`record.json` there, or `fault.json` with what went wrong, and `progress.json` while it works. What an earlier run has
fetched is not fetched again.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoint import engine, files, gguf, gguf_families, gguf_tokenizer  # the role installs them beside this program
from checkpoint.errors import FileError
from huggingface_hub import HfApi, constants, hf_hub_url, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
from requests.exceptions import RequestException

CHUNK = 1 << 22
# Of a model's files those that a server reads: configuration, tokenizer, weights.
TEXTS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
OTHER_FORMATS = (".gguf", ".ggml", ".pt", ".pth", ".onnx", ".h5", ".msgpack", ".npz")


class FetchError(Exception):
    """A model that cannot be fetched or served; the message has the next step."""


def write(directory: Path, name: str, content: dict[str, Any]) -> None:
    """Write a JSON file that is there in whole or not at all."""
    path = directory / name
    path.with_suffix(".new").write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")
    os.replace(path.with_suffix(".new"), path)


def choose(names: list[str]) -> list[str]:
    """The files to fetch of those that the model has: texts, and weights as safetensors, else as PyTorch's."""
    own = [name for name in names if "/" not in name]
    weights = [name for name in own if name.endswith(".safetensors") and not name.startswith("consolidated")]
    if not weights:
        weights = [name for name in own if name.startswith("pytorch_model") and name.endswith(".bin")]
    if not weights:
        others = sorted({Path(name).suffix for name in names if name.endswith(OTHER_FORMATS)})
        raise FetchError(
            f"found {'weights as ' + ', '.join(others) if others else 'no weights'}; expected *.safetensors or "
            "pytorch_model*.bin. Choose a repository that has the model in one of these, or name a GGUF file of it: "
            "OWNER/NAME/FILE.gguf."
        )
    return sorted([name for name in own if name.endswith(TEXTS)] + weights)


def choose_gguf(names: list[str], file: str) -> list[str]:
    """A GGUF file, or all parts of one that is split."""
    missing = sorted(set(parts := gguf.all_parts(file)) - set(names))
    if missing:
        others = sorted(name for name in names if name.lower().endswith(".gguf"))
        raise FetchError(f"found no {missing[0]}; expected a GGUF file of the repository: "
                         f"{', '.join(others[:20]) or 'it has none'}.")
    return parts


# Bytes from a GGUF file's begin on that are asked for until its header is in them.
HEADERS = (1 << 20, 1 << 24, 1 << 26)


def read_ranges(name: str, revision: str, sizes: dict[str, int], directory: Path) -> gguf.Header:
    """The header of a GGUF file of the hub, or of its parts, of which no more is fetched.

    Files of the right size take the place of the rest, which is empty. Raises FileError.
    """
    session, there = get_session(), dict.fromkeys(sizes, 0)

    def fetch_range(file: str, first: int, last: int) -> None:
        headers = {**build_hf_headers(), "Range": f"bytes={first}-{last - 1}"}
        answer = session.get(hf_hub_url(name, file, revision=revision), headers=headers, timeout=60)
        hf_raise_for_status(answer)
        with (directory / Path(file).name).open("r+b") as stream:
            stream.seek(first)
            stream.write(answer.content[: last - first])

    for file, size in sizes.items():
        with (directory / Path(file).name).open("wb") as stream:
            stream.truncate(size)
    first = str(directory / Path(next(iter(sizes))).name)
    for ahead in HEADERS:
        for file, size in sizes.items():
            if there[file] < min(ahead, size):
                fetch_range(file, there[file], min(ahead, size))
                there[file] = min(ahead, size)
        begins: dict[str, int] = {}
        try:
            header = gguf.read_header(first)
        except FileError:
            if ahead == HEADERS[-1] or all(there[file] == size for file, size in sizes.items()):
                raise
            continue
        for tensor in header.tensors.values():
            begins[tensor.path] = min(begins.get(tensor.path, tensor.offset), tensor.offset)
        if all(begins.get(str(directory / Path(file).name), 0) <= there[file] for file in sizes):
            break
    for tensor in (header.tensors[key] for key in gguf_families.FACTORS if key in header.tensors):
        file = next(file for file in sizes if Path(file).name == Path(tensor.path).name)
        fetch_range(file, tensor.offset, min(tensor.offset + 4 * math.prod(tensor.shape), sizes[file]))
    return header


def check_gguf(
    name: str, revision: str, siblings: dict[str, Any], directory: Path, engines: Sequence[engine.Engine]
) -> None:
    """Raise FetchError if an engine cannot serve a GGUF file, by its header. Before the file is fetched."""
    with tempfile.TemporaryDirectory(dir=directory) as headers:
        try:
            sizes = {file: sibling.size for file, sibling in sorted(siblings.items())}
            header = read_ranges(name, revision, sizes, Path(headers))
            gguf_families.parts_of(header)
            config, tokenizer = gguf_families.config_of(header), gguf_tokenizer.tokenizer_config_of(header)
        except FileError as error:
            place = Path(error.place).name
            raise FetchError(
                f"{place}: found {error.found}; expected {error.expected}. Choose another file of the model."
            ) from None
    for served_by in engines:
        for found, expected in engine.refusals(config, tokenizer, in_gguf=True, engine=served_by):
            raise FetchError(f"found {found}; expected {expected}. Choose another file of the model.")


# Files that say whether the model can be served. They are fetched first.
CONFIGS = ("config.json", "tokenizer_config.json")


def check_configs(snapshot: Path, engines: Sequence[engine.Engine] = (engine.PORT,)) -> None:
    """Raise FetchError if an engine cannot serve what the configurations describe. Before the weights are fetched."""
    config, tokenizer = (files.try_json(str(snapshot / name)) for name in CONFIGS)
    if config is None:
        raise FetchError("config.json: found no mapping; expected one. Choose another checkpoint of the model.")
    # Code that comes with a model is not fetched.
    for served_by in engines:
        for found, expected in engine.refusals(config, tokenizer, engine=served_by):
            next_step = "Choose another checkpoint of the model."
            raise FetchError(f"config.json: found {found}; expected {expected}. {next_step}")


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
    name: str, revision: str, directory: Path, expected: dict[str, str], engines: Sequence[engine.Engine]
) -> dict[str, Any]:
    """The record of the model: name, revision, path, files."""
    repository, file = files.split_name(name)
    info = HfApi().model_info(repository, revision=revision, files_metadata=True)
    names = [sibling.rfilename for sibling in info.siblings or []]
    chosen = choose_gguf(names, file) if file else choose(names)
    siblings = {sibling.rfilename: sibling for sibling in info.siblings or [] if sibling.rfilename in chosen}
    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")
    if file:
        check_gguf(repository, info.sha or revision, siblings, directory, engines)
        cache.mkdir(parents=True, exist_ok=True)
    elif "config.json" not in siblings:
        raise FetchError("found no config.json; expected a model in the form of transformers.")
    else:
        check_configs(Path(snapshot_download(repository, revision=revision, allow_patterns=list(CONFIGS))), engines)
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
    engines = [engine.Engine(one, asked["capability"]) for one in asked["engines"]]
    try:
        write(directory, "record.json", fetch(name, revision, directory, asked["expected"], engines))
        return 0
    except FetchError as fault:
        text = str(fault)
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
