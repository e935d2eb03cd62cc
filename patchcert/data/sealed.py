"""Records as JSON files that carry the digest of what they say: a changed byte is noticed when they are read."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from typing import Any

from patchcert.data.storage import Folder
from patchcert.data.untrusted import FileProblem, parsed_json

_SEAL = "sha256"


def digest_of(data: bytes) -> str:
    """The sha256 of bytes, as 64 hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()


def sealed_bytes(record: Mapping[str, Any]) -> bytes:
    """A record as the bytes of its file; equal records give equal bytes.

    Args:
        record: JSON-able, without a key "sha256".
    """
    text = json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    sealed = {**record, _SEAL: digest_of(text.encode())}
    return (json.dumps(sealed, indent=1, sort_keys=True, ensure_ascii=False) + "\n").encode()


def read_sealed(folder: Folder, name: str, *, unsealed: Collection[str]) -> tuple[dict[str, Any], bool]:
    """Read a record that ``sealed_bytes`` wrote.

    A digest finds damage. It proves nothing about who wrote the record: whoever changes it on purpose can write the
    digest anew.

    Args:
        folder: where it lies.
        name: of the file.
        unsealed: the keys of records of earlier versions, which had no digest; such a record is read if it has no
            other keys.

    Returns:
        The record, and whether it is what was written: for the caller to say after a look at its version.

    Raises:
        ValueError: it is no JSON object.
        OSError: it is missing or cannot be read.
    """
    data = folder.read(name)
    record = parsed_json(data)
    if not isinstance(record, dict):
        raise FileProblem(f"it holds {type(record).__name__}, not an object")
    seal = record.pop(_SEAL, None)
    if seal is None and record.keys() <= set(unsealed):
        return record, True
    return record, data == sealed_bytes(record)
