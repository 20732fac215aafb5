"""Hardware, driver, compiler, Python and engine are named in profiles, the port and documents, and nowhere else."""

import json
import re
from functools import cache

import pytest
from ansible_collections.kepler.vllm.plugins.plugin_utils import profiles
from repository import ROOT, SCHEMAS, files, name_of, text_of
from test_versions import versions

# What serves every profile.
COMMON = ("roles", "playbooks", "plugins", "site.yml")
# What is known of a release of the engine stands in the table of that release.
TABLES = "plugins/module_utils/server/versions/"
KINDS = (
    r"(sm|compute)_[0-9]{2,3}", r"[KPVAHL][0-9]{2,3}(?= (die|board|host|GPU)s?)", r"driver [0-9]{3}", r"[0-9]{3}-dkms",
    r"cuda-[0-9]+[.-][0-9]+", r"CUDA [0-9.]+", r"cuda-rhel[0-9]+", r"gcc-toolset-[0-9]+", r"python3\.[0-9]+",
    r"PyTorch [0-9]+\.[0-9]+", r"vLLM [0-9]+\.[0-9.]+[0-9]", r"EL[0-9]+", r"(Enterprise|Rocky) Linux [0-9]+",
)
ENGINE = "what is known of this release of the engine; the table of each release is its own"
# (file, string) -> why it stands there.
ALLOWED = {
    ("plugins/module_utils/checkpoint/engine_models.py", "vLLM 0.9.2"): ENGINE,
    ("plugins/module_utils/checkpoint/engine_models.py", "4.51.3"): ENGINE,
    ("plugins/module_utils/checkpoint/engine_models_stock.py", "vLLM 0.12.0"): ENGINE,
    ("plugins/module_utils/checkpoint/engine_models_stock.py", "4.57.6"): ENGINE,
    ("plugins/plugin_utils/capacity.py", "vLLM 0.9.2"): ENGINE,
    ("plugins/plugin_utils/model_families.py", "vLLM 0.9.2"): ENGINE,
}
# Names of groups: those on command lines in comments, and those of inventories that are older than profiles.
GROUPS = re.compile(r"k80[-_](hosts|balancer|monitoring|[0-9]+)")


@cache
def pattern():
    """Strings of KINDS, versions of the locks, and what profiles name."""
    named = set(versions())
    for profile in profiles.profiles(ROOT / "profiles").values():
        gpu, toolchain, python = profile["gpu"], profile.get("toolchain", {}), profile["python"]
        named |= {*gpu["products"], *gpu["pci_ids"], *gpu["other_pci_ids"]}
        named |= {name for engine in profile["engines"].values() for name in engine["environment"]}
        named |= {word for product in gpu["products"] for word in product.split() if re.search("[0-9]", word)}
        named |= {f"Python {python['version']}"}
        # The distribution's own directory is everybody's.
        named |= {toolchain[key] for key in ("cuda_home", "compiler_bin") if toolchain} - {"/usr/bin"}
    return re.compile(r"(?<![\w.])(" + "|".join([*KINDS, *map(re.escape, sorted(named))]) + r")(?!\w|\.\w)")


def strangers(path):
    text = GROUPS.sub("", text_of(path) or "")
    found = {match.group() for match in pattern().finditer(text)}
    return sorted(string for string in found if (name_of(path), string) not in ALLOWED)


@pytest.mark.parametrize(
    "path", [path for path in files(*COMMON) if path.suffix != ".md" and not name_of(path).startswith(TABLES)],
    ids=name_of,
)
def test_what_serves_every_profile_names_no_part_of_one(path):
    assert strangers(path) == [], "take it from `profile` or the lock"


def test_the_allow_list_is_needed_and_reasoned():
    for (name, string), reason in ALLOWED.items():
        assert reason
        (path,) = files(name)
        assert string in path.read_text()


@pytest.mark.parametrize("text", [
    "a K80 has no fan", "Tesla K80", "V100 boards", "sm_37", "compute_70", '"0x102d"', "nvidia-driver:470-dkms",
    "/usr/local/cuda-11.4/bin", "gcc-toolset-10-gcc", "bin/python3.10", "Python 3.10", "CUDA 11.2 to 11.8",
    "cuda-rhel9", "EL8", "Rocky Linux 9", "vLLM 0.9.2", "PyTorch 2.9", "VLLM_USE_V1=0",
])  # fmt: skip
def test_the_pattern_finds_what_it_is_for(text):
    assert pattern().search(text)


@pytest.mark.parametrize("text", ["python_provider", "0x10de", "sha256", "port 8000", "Python 3.6", "1.0.9.2"])
def test_the_pattern_leaves_other_words_alone(text):
    assert not pattern().search(text)


def keys(schema):
    """Names of the keys that a schema describes, and of those below them."""
    for name, value in schema.get("properties", {}).items():
        yield name
        yield from keys(value)


def test_every_key_of_a_profile_is_read():
    """By roles, playbooks and plugins, or by what makes the locks."""
    readers = "\n".join(text_of(path) or "" for path in files(*COMMON, "files/lock/refresh.py") if path.suffix != ".md")
    schema = json.loads((SCHEMAS / "profile.json").read_text())
    assert [key for key in keys(schema) if not re.search(rf"(\.|[\"']){key}\b", readers)] == []
