"""tests/mutants.py and its table: what applies, what is noticed, and what it says of the rest."""

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))
import mutants  # noqa: E402

KNOWN = mutants.read_table(ROOT / mutants.TABLE)
ENTRY = """[[mutant]]
id = "{id}"
file = "product.py"
text = '''{text}'''
becomes = '''{becomes}'''
lets = "a wrong answer"
tests = ["tests/test_product.py"]
"""


@pytest.mark.parametrize("mutant", KNOWN, ids=lambda mutant: mutant.id)
def test_mutant_still_applies(mutant):
    changed = mutants.mutated(mutant, ROOT)
    if mutant.file.endswith(".py"):
        compile(changed, mutant.file, "exec")
    paths = [ROOT / word for word in mutant.tests if word.startswith("tests/")]
    assert paths and all(path.exists() for path in paths)
    files = [file for path in paths for file in ([path] if path.is_file() else path.rglob("test_*.py"))]
    text = "".join(file.read_text() for file in files)
    # A name that no test has any more would select none: mutants.py ends there.
    expressions = [after for word, after in pairwise(mutant.tests) if word == "-k"]
    for word in re.findall(r"[\w.-]+", " ".join(expressions)):
        assert word in text or word in ("and", "or", "not"), word
    assert mutant.lets and "|" not in mutant.lets


def test_document_has_each_mutant_as_it_stands():
    document = (ROOT / "docs" / "mutants.md").read_text()
    rows = [line for line in mutants.markdown([], KNOWN, document).splitlines() if line.startswith("| ")]
    assert rows == [line for line in document.splitlines() if line.startswith("| ")]


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Function that runs the script on a repository with one product and these mutants: status and directory.

    Its tests pass, or fail if the product is `broken`.
    """
    root = tmp_path / "repository"
    (root / "tests").mkdir(parents=True)
    (root / "product.py").write_text("ANSWER = 42\nOTHER = 1\n")
    (root / "tests" / "test_product.py").touch()
    seen, known = [], {}

    def pytest_in(clone, runner, tests, processes):
        text = (clone / "product.py").read_text()
        seen.append((clone, text))
        status = next((status for word, status in known.items() if word in text), 0)
        return status, f"FAILED {tests[0]}::test_answer[case] - assert 0\n"

    def run(*entries, statuses=None, arguments=()):
        known.update(statuses or {"broken": 1})
        (root / "tests" / "mutants.toml").write_text("\n".join(ENTRY.format(**entry) for entry in entries))
        return mutants.main([*map(str, arguments)], root)

    subprocess.run(["git", "init", "--quiet", root], check=True)
    monkeypatch.setattr(mutants, "pytest_in", pytest_in)
    run.seen, run.root = seen, root
    return run


NOTICED = {"id": "one", "text": "ANSWER = 42", "becomes": "ANSWER = 'broken'"}
SURVIVOR = {"id": "two", "text": "OTHER = 1", "becomes": "OTHER = 2"}


def test_noticed_mutant_gives_status_0(small, capsys, tmp_path):
    assert small(NOTICED, arguments=["--markdown", tmp_path / "out.md"]) == 0
    printed = capsys.readouterr().out
    assert "one                      noticed   test_product.py::test_answer" in printed
    assert "1 mutants: 1 noticed, 0 SURVIVED, 0 not run" in printed
    document = (tmp_path / "out.md").read_text()
    assert "| one | `product.py`: `ANSWER = 42` becomes `ANSWER = 'broken'` | a wrong answer |" in document
    assert "`test_product.py::test_answer` |" in document


def test_document_keeps_what_did_not_run_again(small, tmp_path):
    path = tmp_path / "out.md"
    small(NOTICED, SURVIVOR, arguments=["--markdown", path])
    assert "2 mutants: 1 noticed, 1 SURVIVED." in path.read_text()
    rows = [line for line in path.read_text().splitlines() if line.startswith(("| one", "| two"))]
    small(NOTICED, SURVIVOR, statuses={"OTHER = 2": 1}, arguments=["--markdown", path, "--only", "two"])
    assert "2 mutants: 2 noticed." in path.read_text()
    assert rows[0] in path.read_text() and rows[1] not in path.read_text()


def test_survivor_gives_status_1(small, capsys):
    assert small(NOTICED, SURVIVOR) == 1
    assert "two                      SURVIVED" in capsys.readouterr().out


def test_each_mutant_meets_a_clean_clone_that_goes_away(small):
    small(NOTICED, SURVIVOR)
    texts = [text for _, text in small.seen]
    # First without any, then one change at a time.
    assert texts == ["ANSWER = 42\nOTHER = 1\n", "ANSWER = 'broken'\nOTHER = 1\n", "ANSWER = 42\nOTHER = 2\n"]
    assert not any(clone.exists() for clone, _ in small.seen)
    assert (small.root / "product.py").read_text() == texts[0]


@pytest.mark.parametrize(("entry", "message"), [
    ({**NOTICED, "text": "ANSWER = 41"}, "one no longer applies: product.py: found 0 times; expected once: 'ANSWER"),
    ({**NOTICED, "text": " = "}, "one no longer applies: product.py: found 2 times"),
    ({**NOTICED, "becomes": NOTICED["text"]}, "one: product.py: found a replacement that changes nothing"),
])
def test_mutant_that_no_longer_applies_is_named(small, capsys, entry, message):
    assert small(SURVIVOR, entry) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"mutants.py: {message}") and said.count("\n") == 1
    assert small.seen == []


@pytest.mark.parametrize("status", [2, 3, 4, 5, -9])
def test_other_status_of_pytest_is_no_verdict(small, capsys, status):
    assert small(NOTICED, statuses={"broken": status}) == 2
    assert capsys.readouterr().err.startswith(f"mutants.py: one: pytest ended with status {status}")
    assert not any(clone.exists() for clone, _ in small.seen)


def test_tests_that_fail_without_a_mutant_are_named(small, capsys):
    assert small(NOTICED, statuses={"OTHER": 1}) == 2
    said = capsys.readouterr().err
    assert "do not pass without a mutant: tests/test_product.py: test_product.py::test_answer" in said


def test_interrupt_leaves_no_clone(small, monkeypatch, capsys):
    clones = []

    def interrupted(clone, *_):
        clones.append(clone)
        raise KeyboardInterrupt

    monkeypatch.setattr(mutants, "pytest_in", interrupted)
    assert small(NOTICED) == 130
    assert capsys.readouterr().err == "mutants.py: interrupted\n"
    assert clones and not clones[0].exists()


@pytest.mark.parametrize(("arguments", "message"), [
    (["--only", "three"], "--only: found three; expected ids of tests/mutants.toml (--list shows them)"),
    (["--jobs", "0"], "--jobs: found 0; expected 1 or more"),
])
def test_wrong_option_is_refused_in_one_line(small, capsys, arguments, message):
    assert small(NOTICED, arguments=arguments) == 2
    assert capsys.readouterr().err == f"mutants.py: {message}\n"


def test_id_that_comes_twice_is_refused(small, capsys):
    assert small(NOTICED, {**SURVIVOR, "id": "one"}) == 2
    assert "found the id one twice" in capsys.readouterr().err


def test_only_the_asked_mutants_are_made(small):
    assert small(NOTICED, SURVIVOR, arguments=["--only", "one"]) == 0
    assert len(small.seen) == 2
