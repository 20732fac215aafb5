"""Fingerprints of OpenPGP public keys (RFC 4880), with the standard library alone."""

import base64
import binascii
import hashlib
import re
import struct

PUBLIC_KEY = 6  # packet tag of a primary key; subkeys have another
BLOCK = re.compile(
    r"-----BEGIN PGP PUBLIC KEY BLOCK-----(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL
)


def blocks(text):
    """Binary content of every armored public key block in `text`.

    Raises ValueError where a block is not base64.
    """
    found = []
    for body in BLOCK.findall(text):
        # Header lines end with an empty line; a line that starts with `=` is the checksum.
        lines = [line.strip() for line in body.strip("\n").splitlines()]
        start = lines.index("") + 1 if "" in lines else 0
        data = "".join(line for line in lines[start:] if not line.startswith("="))
        try:
            found.append(base64.b64decode(data, validate=True))
        except binascii.Error as error:
            raise ValueError("not base64: %s" % error)
    return found


def packets(data):
    """(tag, body) of every packet of the binary `data` (RFC 4880, 4.2).

    Raises ValueError where the data ends within a packet or has a length form that keys do not use.
    """
    found = []
    position = 0
    try:
        while position < len(data):
            head = data[position]
            position += 1
            if not head & 0x80:
                raise ValueError("no packet at byte %d" % (position - 1))
            if head & 0x40:  # new format
                tag = head & 0x3F
                first = data[position]
                if first < 192:
                    length, size = first, 1
                elif first < 224:
                    length, size = ((first - 192) << 8) + data[position + 1] + 192, 2
                elif first == 255:
                    length, size = struct.unpack_from(">I", data, position + 1)[0], 5
                else:
                    raise ValueError("a packet of partial length")
            else:
                tag = (head >> 2) & 0x0F
                form = head & 3
                if form == 3:
                    raise ValueError("a packet of indeterminate length")
                size = 1 << form
                length = int.from_bytes(data[position:position + size], "big")
            position += size
            if position + length > len(data):
                raise ValueError("the data ends within a packet")
            found.append((tag, data[position:position + length]))
            position += length
    except (IndexError, struct.error):
        raise ValueError("the data ends within a packet")
    return found


def fingerprints(text):
    """Fingerprints of the primary keys in the armored `text`: upper-case hexadecimal, in their order.

    Raises ValueError where the text cannot be read, or holds a key that is not of version 4.
    """
    found = []
    for data in blocks(text):
        for tag, body in packets(data):
            if tag != PUBLIC_KEY:
                continue
            if body[:1] != b"\x04":
                raise ValueError("a key that is not of version 4")
            found.append(hashlib.sha1(b"\x99" + struct.pack(">H", len(body)) + body).hexdigest().upper())
    return found
