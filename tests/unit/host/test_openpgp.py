"""Fingerprints of public keys, against those that GnuPG gives."""

import base64
import struct

import pytest
from module_utils import openpgp

# An ed25519 key with a cv25519 subkey, made for this test by GnuPG 2.2, which names this fingerprint for it.
FINGERPRINT = "EFE09979F172852BC1BF1173B6624DA1150CEA72"
KEY = """-----BEGIN PGP PUBLIC KEY BLOCK-----
Comment: a test

mDMEawDPcRYJKwYBBAHaRw8BAQdA9BL6bomSvKBGWvoz0ZHnIwI/c0FeFB9e8vsJ
WDwzrtm0F1Rlc3QgPHRlc3RAZXhhbXBsZS5vcmc+iJAEExYIADgWIQTv4Jl58XKF
K8G/EXO2Yk2hFQzqcgUCawDPcQIbAwULCQgHAgYVCgkICwIEFgIDAQIeAQIXgAAK
CRC2Yk2hFQzqcn/eAQCHRt6gCktiILRSAsZrIvYjwtNEwO9vqJ3LaiPACzoq5AEA
wtNSr2kkcvjL9ZtMhDsSX8vLQsCotXbTduZ4J/85mga4OARrAM9xEgorBgEEAZdV
AQUBAQdAslR4mHkH8B1If4xGRQppRPx4sJXIXxCNoiJYO6VFhQ8DAQgHiHgEGBYI
ACAWIQTv4Jl58XKFK8G/EXO2Yk2hFQzqcgUCawDPcQIbDAAKCRC2Yk2hFQzqcqh4
AP4iTo9eGVNXqEznIKXNZ4kGJHXIWl+D8BbYdzazuLv7+gEAmmVT4rKILYUwNKoz
Cg3uVh3/fit5U8wV6cctyHbBYAs=
=KdOk
-----END PGP PUBLIC KEY BLOCK-----
"""


def armored(data):
    body = base64.b64encode(data).decode("ascii")
    return f"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n{body}\n-----END PGP PUBLIC KEY BLOCK-----\n"


def test_the_primary_key_alone_has_a_say():
    assert openpgp.fingerprints(KEY) == [FINGERPRINT]


def test_armor_without_header_lines():
    assert openpgp.fingerprints(KEY.replace("Comment: a test\n", "")) == [FINGERPRINT]


def test_every_key_of_a_file_is_seen():
    assert openpgp.fingerprints(KEY + "other text\n" + KEY) == [FINGERPRINT] * 2
    # Two keys in one block: nobody may hide one behind the expected one.
    data = openpgp.blocks(KEY)[0]
    assert openpgp.fingerprints(armored(data + data)) == [FINGERPRINT] * 2


def test_new_and_old_packet_lengths():
    body = b"\x04" + bytes(300)
    old = bytes([0x80 | 6 << 2 | 1]) + struct.pack(">H", len(body)) + body
    new = bytes([0xC0 | 6, 192 + ((len(body) - 192) >> 8), (len(body) - 192) & 0xFF]) + body
    long = bytes([0xC0 | 6, 255]) + struct.pack(">I", len(body)) + body
    assert len({openpgp.fingerprints(armored(data))[0] for data in (old, new, long)}) == 1


@pytest.mark.parametrize(
    "text", ["", "no key at all", "<html>404</html>", "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\n"]
)
def test_a_text_without_a_key_has_no_fingerprint(text):
    assert openpgp.fingerprints(text) == []


@pytest.mark.parametrize(
    "data",
    [b"\x00\x01", b"\x99\x01\x00\x04", b"\xc6", b"\xc6\xff\x00", b"\xc6\xe5\x04", b"\x9b\x04", b"\x99\x00\x01\x03"],
    ids=["no packet", "cut body", "cut head", "cut length", "partial length", "no length", "version 3"],
)
def test_a_key_that_cannot_be_read_is_refused(data):
    with pytest.raises(ValueError):
        openpgp.fingerprints(armored(data))


def test_armor_that_is_not_base64_is_refused():
    with pytest.raises(ValueError, match="not base64"):
        openpgp.fingerprints(KEY.replace("mDMEawDPcRYJ", "mDME!wDPcRYJ"))
