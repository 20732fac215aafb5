"""Filters that turn lock entries into the `sources` of store_output."""

from __future__ import annotations

from fnmatch import fnmatch

from ansible.errors import AnsibleFilterError

# Wheels of the serving environment that come as the output pytorch.
PYTORCH_WHEELS = ["torch", "nvidia-*"]


def locked_source(sources: dict, name: str) -> dict:
    """Source `name` of the lock in the form that store_output takes."""
    if name not in sources:
        raise AnsibleFilterError(
            f"lock/sources.yml: no source {name!r}; found {', '.join(sorted(sources))}. Add it there."
        )
    entry = sources[name]
    return {"name": name, **{key: entry[key] for key in ("file", "sha256", "urls", "index") if key in entry}}


def locked_wheels(packages: list[dict], include: list[str] | None = None, exclude: list[str] | None = None) -> list:
    """Wheels of one Python environment of the lock in the form that store_output takes.

    `include` and `exclude` are shell patterns of project names. A pattern that matches nothing is an
    error: it stands for a package that the recipe needs.
    """
    projects = [package["project"] for package in packages]
    for pattern in (include or []) + (exclude or []):
        if not any(fnmatch(project, pattern) for project in projects):
            raise AnsibleFilterError(
                f"lock/python: nothing there matches {pattern!r}. Add the package to the .in file and run "
                "`make lock`."
            )
    return [
        {
            "name": package["project"],
            "file": package["file"],
            "sha256": package["sha256"],
            "index": {"project": package["project"], "version": package["version"]},
        }
        for package in packages
        if any(fnmatch(package["project"], pattern) for pattern in include or ["*"])
        and not any(fnmatch(package["project"], pattern) for pattern in exclude or [])
    ]


def engine_wheels(lock: dict, suffixes: list[str]) -> list[str]:
    """Names of the wheels that the environments of engines are made of, each once. suffixes: those of the engines."""
    found = [package["file"] for suffix in suffixes for package in lock["python"][f"serving{suffix}"]]
    found += [lock["sources"][f"vllm{suffix}"]["file"] for suffix in suffixes]
    return list(dict.fromkeys(file for file in found if file.endswith(".whl")))


def bundle_sources(lock: dict, providers: dict[str, str], ray: bool = False) -> list[dict]:
    """Every file that the recipes take for these providers, in the form that store_output takes.

    providers: values of pytorch_provider and python_provider. ray: whether servers span hosts.
    """
    from_source = providers["pytorch_provider"] == "source"
    # Of every engine: a host without a network may take up another one.
    suffixes = [name.removeprefix("vllm") for name in lock["sources"] if name.startswith("vllm")]
    found = [locked_source(lock["sources"], f"vllm{suffix}") for suffix in suffixes]
    for suffix in suffixes:
        found += locked_wheels(lock["python"][f"serving{suffix}"], exclude=PYTORCH_WHEELS if from_source else None)
    if from_source:
        found += [locked_source(lock["sources"], "pytorch"), *locked_wheels(lock["python"]["pytorch-build"])]
    if ray:
        found += locked_wheels(lock["python"]["ray"])
    if providers["python_provider"] == "source":
        found.append(locked_source(lock["sources"], "cpython"))
    # Two environments may hold the same file.
    return list({source["file"]: source for source in found}.values())


class FilterModule:
    def filters(self) -> dict:
        return {
            "bundle_sources": bundle_sources, "engine_wheels": engine_wheels, "locked_source": locked_source,
            "locked_wheels": locked_wheels,
        }
