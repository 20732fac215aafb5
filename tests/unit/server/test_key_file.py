"""Key files as systemd reads them, and what a server cannot take from one."""

import os
import random

import pytest
from module_utils.server import key_file
from module_utils.server.key_file import KeyFileError, check_key_file, read_key
from module_utils.server.key_text import KeyTextError, assignments, key_of

KEY = "3f6c0b0011223344"

READ = {
    "plain": "VLLM_API_KEY=3f6c0b0011223344\n",
    "no newline at the end": "VLLM_API_KEY=3f6c0b0011223344",
    "carriage returns": "A=1\r\nVLLM_API_KEY=3f6c0b0011223344\r\n",
    "carriage returns alone": "A=1\rVLLM_API_KEY=3f6c0b0011223344\rB=2",
    "single quotes": "VLLM_API_KEY='3f6c0b0011223344'\n",
    "double quotes": 'VLLM_API_KEY="3f6c0b0011223344"\n',
    "an open quote": 'VLLM_API_KEY="3f6c0b0011223344',
    "quotes, then more": "VLLM_API_KEY='3f6c'\"0b00\"11223344\n",
    "quotes, a space, then more": "VLLM_API_KEY='3f6c' 0b0011223344\n",
    "spaces around": "  VLLM_API_KEY = 3f6c0b0011223344 \t\n",
    "the last one": "VLLM_API_KEY=old-key-0123456789\nVLLM_API_KEY=3f6c0b0011223344\n",
    "the last one after an empty one": "VLLM_API_KEY=\nVLLM_API_KEY=3f6c0b0011223344\n",
    "a value that spans lines": "VLLM_API_KEY=3f6c0b00\\\n11223344\n",
    "an escaped character": "VLLM_API_KEY=3f6c\\0b0011223344\n",
    "comments": "# VLLM_API_KEY=a\n; VLLM_API_KEY=b\n  # VLLM_API_KEY=c\nVLLM_API_KEY=3f6c0b0011223344\n",
    "a comment with a backslash in it": "# a \\ b\nVLLM_API_KEY=3f6c0b0011223344\n",
    "a line without =": "VLLM_API_KEY\nVLLM_API_KEY=3f6c0b0011223344\nVLLM_API_KEY\n",
    "another name that ends alike": "VLLM_API_KEY=3f6c0b0011223344\nMY_VLLM_API_KEY=b\nVLLM_API_KEY2=c\n",
    "quotes over lines elsewhere": "A='\nVLLM_API_KEY=no\n'\nVLLM_API_KEY=3f6c0b0011223344\n",
}


@pytest.mark.parametrize("case", sorted(READ))
def test_key_is_the_one_that_systemd_takes(case):
    assert key_of(READ[case]) == KEY


def test_key_may_hold_any_visible_character():
    assert key_of("VLLM_API_KEY=a#b=c'd\"e%n$f;\n") == "a#b=c'd\"e%n$f;"


REFUSED = {
    "empty value": ("VLLM_API_KEY=\n", "an empty VLLM_API_KEY"),
    "empty quotes": ("VLLM_API_KEY=''\n", "an empty VLLM_API_KEY"),
    "spaces alone": ("VLLM_API_KEY=  \n", "an empty VLLM_API_KEY"),
    "an empty one last": ("VLLM_API_KEY=secret\nVLLM_API_KEY=\n", "an empty VLLM_API_KEY"),
    "the bare key": ("secret0b0011223344\n", "no line VLLM_API_KEY="),
    "a bare key that ends with =": ("secret0b0011223344==\n", "no line VLLM_API_KEY="),
    "another name": ("API_KEY=secret\n", "no line VLLM_API_KEY="),
    "another case": ("vllm_api_key=secret\n", "no line VLLM_API_KEY="),
    "a colon": ("VLLM_API_KEY: secret\n", "no line VLLM_API_KEY="),
    "export": ("export VLLM_API_KEY=secret\n", "export in front of VLLM_API_KEY"),
    "a byte order mark": ("\ufeffVLLM_API_KEY=secret\n", "a byte order mark"),
    "a comment": ("# VLLM_API_KEY=secret\n", "no line VLLM_API_KEY="),
    "nothing": ("", "an empty file"),
    "blank lines": (" \n\t\r\n", "an empty file"),
    "a space within": ("VLLM_API_KEY=secret key\n", "a space"),
    "a comment after it": ("VLLM_API_KEY=secret # mine\n", "a space"),
    "a tab within quotes": ("VLLM_API_KEY='secret\tkey'\n", "cannot carry"),
    "a line break within quotes": ("VLLM_API_KEY='secret\nkey'\n", "cannot carry"),
    "a space at the end of quotes": ("VLLM_API_KEY='secret '\n", "a space"),
    "a control character": ("VLLM_API_KEY=secret\x7f\n", "cannot carry"),
    "a euro sign": ("VLLM_API_KEY=secret\u20ac\n", "cannot carry"),
    "a space of no width": ("VLLM_API_KEY=secret\u200b\n", "cannot carry"),
    "a NUL": ("VLLM_API_KEY=secret\0key\n", "a NUL character"),
    "a backslash in single quotes": ("VLLM_API_KEY='secret\\a'\n", "a backslash in quotes"),
    "a backslash in double quotes elsewhere": ('A="\\n"\nVLLM_API_KEY=secret\n', "a backslash in quotes"),
    "a comment that ends with a backslash": ("# mine \\\nVLLM_API_KEY=secret\n", "the end of a comment"),
}


@pytest.mark.parametrize("case", sorted(REFUSED))
def test_text_without_a_usable_key_is_refused_unseen(case):
    text, found = REFUSED[case]
    with pytest.raises(KeyTextError) as caught:
        key_of(text)
    assert found in str(caught.value)
    assert "secret" not in str(caught.value)


def as_systemd_239(text):  # noqa: PLR0912
    """Assignments as the state machine of systemd 239 finds them, character by character."""
    found, state, name, value, kept = [], "before", "", "", 0

    def push(keep):
        found.append((name.rstrip(" \t"), value[:kept] if keep else value))

    for char in text:
        newline = char in "\n\r"
        if state == "before":
            if char in "#;":
                state = "comment"
            elif char not in " \t\n\r":
                state, name = "name", char
        elif state == "name":
            if newline:
                state = "before"
            elif char == "=":
                state, value, kept = "start", "", 0
            else:
                name += char
        elif state == "start":
            if newline:
                push(False)
                state = "before"
            elif char in "'\"":
                state = char
            elif char == "\\":
                state = "escape"
            elif char not in " \t":
                state, value = "value", value + char
                kept = len(value)
        elif state == "value":
            if newline:
                push(True)
                state = "before"
            elif char == "\\":
                state = "escape"
            else:
                value += char
                kept = kept if char in " \t" else len(value)
        elif state == "escape":
            state = "value"
            value += "" if newline else char
            kept = len(value)
        elif state in "'\"":
            if char == state:
                state = "start"
            else:
                value += char
        elif state == "comment" and newline:
            state = "before"
    if state not in ("before", "name", "comment"):
        push(state == "value")
    return found


def test_assignments_are_those_of_systemd_on_random_texts():
    """Without what systemd's versions read differently."""
    dice = random.Random(20261129)
    compared = 0
    for _ in range(20000):
        text = "".join(dice.choice("AB==  \t\n\r'\"\\#;x") for _ in range(dice.randrange(24)))
        try:
            ours = list(assignments(text))
        except KeyTextError:
            continue
        compared += bool(ours)
        assert ours == as_systemd_239(text), repr(text)
    assert compared > 3000


def write(path, content, mode=0o600):
    path.write_bytes(content)
    path.chmod(mode)
    return str(path)


@pytest.fixture
def owned(monkeypatch):
    """Let files of the user who runs the tests pass for root's."""
    real = os.stat

    def fake(path, *args, **keywords):
        status = list(real(path, *args, **keywords))
        status[4] = 0
        return os.stat_result(status)

    if os.geteuid():
        monkeypatch.setattr(key_file.os, "stat", fake)


GOOD = b"VLLM_API_KEY=3f6c0b0011223344\n"


@pytest.mark.parametrize("mode", [0o600, 0o400])
def test_file_of_root_alone_is_taken(tmp_path, owned, mode):
    path = write(tmp_path / "key", GOOD, mode)
    check_key_file(path)
    assert read_key(path) == KEY


def test_file_without_a_key_is_refused_by_its_variable(tmp_path):
    with pytest.raises(KeyFileError, match="found no line RAY_AUTH_TOKEN=; expected .* RAY_AUTH_TOKEN=KEY"):
        read_key(write(tmp_path / "key", GOOD), "RAY_AUTH_TOKEN")


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o660, 0o610])
def test_mode_that_lets_others_in_is_refused(tmp_path, owned, mode):
    with pytest.raises(KeyFileError) as caught:
        check_key_file(write(tmp_path / "key", GOOD, mode))
    assert "mode {:04o}".format(mode) in caught.value.found
    assert KEY not in str(caught.value)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("owner", [1, 65534])
def test_file_of_another_user_is_refused(tmp_path, owner):
    path = write(tmp_path / "key", GOOD)
    os.chown(path, owner, 0)
    with pytest.raises(KeyFileError, match="owner {} ".format(owner)):
        check_key_file(path)


def test_what_is_no_file_is_refused_without_waiting(tmp_path, owned):
    os.mkfifo(str(tmp_path / "pipe"), 0o600)
    (tmp_path / "directory").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("nowhere")
    for name, found in (("pipe", "no regular file"), ("directory", "no regular file"), ("none", "No such file"),
                        ("link", "No such file")):
        for read in (check_key_file, read_key):
            with pytest.raises(KeyFileError, match=found):
                read(str(tmp_path / name))


@pytest.mark.parametrize(
    ("content", "found"), [(b"VLLM_API_KEY=secret\xff\n", "no UTF-8"), (b"#" * 20000 + b"\n" + GOOD, "more than 16384")]
)
def test_bytes_that_are_no_text_of_a_key_are_refused(tmp_path, owned, content, found):
    with pytest.raises(KeyFileError, match=found) as caught:
        check_key_file(write(tmp_path / "key", content))
    assert "secret" not in str(caught.value)
