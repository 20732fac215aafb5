"""What the documents name is there: files, headings, variables, commands, tags, alerts."""

import re
from pathlib import Path

import pytest
import yaml
from repository import ROLES, ROOT, files, load, name_of, text_of

# A table of changes to the code, and what former releases had.
OTHERS = {"docs/mutants.md", "CHANGELOG.md"}
DOCUMENTS = [path for path in files() if path.suffix == ".md" and name_of(path) not in OTHERS]
EACH = pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
FENCED = re.compile("^```.*?^```", re.DOTALL | re.MULTILINE)
CODE = [text_of(path) or "" for path in files() if path.suffix not in (".md", ".json") and path != Path(__file__)]
# Words and options of everything but documents.
WORDS = {word for text in CODE for word in re.findall(r"--[a-z-]+|\w+", text)}
TAGS = {tag.strip() for text in CODE for tags in re.findall(r"tags: \[(.*?)\]", text) for tag in tags.split(",")}
# Variables by the role or the playbook that their names begin with.
OWNERS = "|".join([*ROLES, *(path.stem for path in files("playbooks") if path.suffix == ".yml")])
# kind -> what names one in a document. Words of the code that are none of the kind do not count.
NAMES = {
    "variable": re.compile(rf"`((?:{OWNERS})_[a-z0-9_]*[a-z0-9])(?=[`:])|-e '?(?:\{{\")?([a-z]\w+)(?=[=\"])"),
    "environment variable": re.compile(r"\b((?:STANDIN|KEPLER|VLLM_SERVING)_[A-Z0-9_]*[A-Z0-9]|[A-Z]+_LONG)\b"),
    "file": re.compile(r"(?<![\w./-])((?:playbooks|roles|plugins|tests|molecule|profiles|inventory)/[\w./-]+\.\w+)"),
    "alert": re.compile(r"`(Kepler[A-Z]\w+)`"),
    "option": re.compile(r"`(?:kepler-store|python -m standin|tests/\w+\.sh) [^`]*?(--[a-z-]+)"),
}  # fmt: skip


def slug(heading):
    """GitHub's anchor of a heading."""
    heading = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", heading).replace(" ", "-")


def anchors(path):
    return {slug(heading) for heading in re.findall("^#+ (.+)$", FENCED.sub("", path.read_text()), re.MULTILINE)}


def broken_links(path, text):
    for target in re.findall(r"\]\(([^)\s]+)\)", re.sub("`[^`]*`", "", FENCED.sub("", text))):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        if not there.exists() or (anchor and anchor not in anchors(there)):
            yield target


def unknown(text):
    """Pairs of kind and name that no file but documents has."""
    for kind, pattern in NAMES.items():
        for groups in pattern.findall(text):
            name = groups if isinstance(groups, str) else "".join(groups)
            known = (ROOT / name).exists() if kind == "file" else name in WORDS
            if not known and "NAME" not in name:
                yield kind, name


def targets():
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@EACH
def test_links_lead_somewhere(path):
    assert list(broken_links(path, path.read_text())) == []


@EACH
def test_what_a_document_names_is_there(path):
    assert list(unknown(path.read_text())) == []


@EACH
def test_commands_of_make_are_there(path):
    assert set(re.findall(r"(?:`|\$ )make ([a-z][a-z-]+)", path.read_text())) <= targets()


@EACH
def test_tags_are_there(path):
    named = {tag for tags in re.findall(r"ansible-playbook [^`\n]*(?:-t|--tags) ([\w,]+)", path.read_text())
             for tag in tags.split(",")}
    assert named <= TAGS


def test_commands_that_write_a_key_make_its_directory():
    """Before the first run there is no /etc/kepler."""
    texts = [text_of(path) or "" for path in [*DOCUMENTS, *files("inventory", "plugins")]]
    commands = [command for text in texts for command in re.findall(r"umask 077;([^\n]*)", text)]
    assert len(commands) > 5
    assert [command for command in commands if "mkdir -p" not in command and " cd /etc/" not in command] == []


def test_each_alert_is_explained():
    rules = yaml.safe_load((ROOT / "roles/monitoring/files/kepler.rules.yml").read_text())
    alerts = {rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule}
    assert alerts
    assert alerts == set(NAMES["alert"].findall((ROOT / "docs/monitoring.md").read_text()))


def test_each_option_of_a_plan_is_explained():
    options = set(re.findall(r"\b(plan_[a-z_]+) \| default", (ROOT / "playbooks/plan.yml").read_text()))
    text = (ROOT / "docs/capacity.md").read_text()
    assert options
    assert options == set(re.findall(r"^\| `(plan_\w+)` \|", text, re.MULTILINE))


def test_each_playbook_is_in_a_document():
    """Or is a part of one that is."""
    parts = {item["ansible.builtin.import_playbook"].split("/")[-1]
             for path in [ROOT / "site.yml", *files("playbooks")] if path.suffix == ".yml"
             for item in load(path) if "ansible.builtin.import_playbook" in item}
    documents = "".join(path.read_text() for path in DOCUMENTS)
    assert [path.name for path in files("playbooks") if path.suffix == ".yml" and path.name not in parts
            and f"playbooks/{path.name}" not in documents] == []


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("`store_rot` and `store_root`", "variable"), ("-e store_rot=x", "variable"),
        ("`-e '{\"store_rot\": 1}'`", "variable"),
        ("KEPLER_NOTHING", "environment variable"), ("`playbooks/absent.yml`", "file"), ("`KeplerNothing`", "alert"),
        ("`kepler-store gc --absent`", "option"),
    ],
)  # fmt: skip
def test_a_name_of_nothing_is_found(text, kind):
    assert [found for found, _ in unknown(text)] == [kind]


def test_a_link_to_nothing_is_found():
    path = ROOT / "README.md"
    text = "[a](docs/absent.md) [b](docs/store.md#absent) [c](docs/store.md#what-a-collection-keeps) [d](LICENSE)"
    assert list(broken_links(path, text)) == ["docs/absent.md", "docs/store.md#absent"]
