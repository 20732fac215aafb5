"""Keys for the RPM database: the announced one alone, and only from a file that holds nothing else."""

import base64
import struct

import module_run
import pytest

rpm_signing_keys = module_run.load("rpm_signing_keys")
fingerprints = rpm_signing_keys.fingerprints


def key(number):
    """An armored public key of version 4; its content is any."""
    body = b"\x04" + bytes([number]) * 50
    data = base64.b64encode(bytes([0x80 | 6 << 2 | 1]) + struct.pack(">H", len(body)) + body).decode()
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{data}\n-----END PGP PUBLIC KEY BLOCK-----\n"


@pytest.fixture
def take(tmp_path, monkeypatch, capsys):
    """Run the module on a file of this content, where key(1) is announced; its answer and what rpm was told."""
    told = []

    def run(text, known="", **options):
        def command(module, arguments, **keywords):
            told.append(arguments[0])
            return (0, known, "") if arguments[0] == "rpm" else (0, "", "")

        monkeypatch.setattr(rpm_signing_keys.AnsibleModule, "run_command", command)
        (tmp_path / "key.asc").write_text(text)
        announced = fingerprints(key(1))[0]
        asked = {"key": str(tmp_path / "key.asc"), "fingerprint": announced, "variable": "repos_epel_gpgkey"}
        return module_run.run(rpm_signing_keys, monkeypatch, capsys, keys=[asked], **options), told

    return run


def test_announced_key_is_imported_once(take):
    answer, told = take(key(1))
    assert (answer["changed"], told) == (True, ["rpm", "rpmkeys"])
    answer, told = take(key(1), known=key(2) + key(1))
    assert (answer["changed"], told[2:]) == (False, ["rpm"])


@pytest.mark.parametrize("text", [key(1) + key(2), key(2) + key(1), key(1) * 2, key(2), "none"])
def test_file_with_any_other_key_is_not_imported(take, text):
    answer, told = take(text)
    assert answer["failed"] and "Nothing was imported" in answer["msg"]
    assert told == ["rpm"]


def test_dry_run_imports_no_key(take):
    answer, told = take(key(1), check_mode=True)
    assert (answer["changed"], told) == (True, ["rpm"])
