"""A saved state says what it is: magic, format, dtype, package, checksum; what says otherwise is refused.

    magic 8 | format u32 | crc32 of all that follows u32 | length u32 of the head | head (JSON) | parts

The head names the kind of content, the hash of the record's dtype, the package's version and the length of
each part. Numbers are little-endian.
"""

from __future__ import annotations

import json
import zlib
from typing import Any

import numpy as np

from vpmu_emu._jit.native import dtype_hash
from vpmu_emu.errors import ConfigError

MAGIC = b"vpmu_emu"
FORMAT = 1
_FIXED = len(MAGIC) + 12


def pack(kind: str, dtype: np.dtype[Any], facts: dict[str, Any], parts: dict[str, bytes]) -> bytes:
    """The bytes of one saved state; `facts` are plain data that the reader compares with its own."""
    from vpmu_emu import __version__

    head = json.dumps(
        {
            "kind": kind, "dtype": dtype_hash(dtype), "version": __version__, "facts": facts,
            "parts": {name: len(data) for name, data in parts.items()},
        }
    ).encode()  # fmt: skip
    body = len(head).to_bytes(4, "little") + head + b"".join(parts.values())
    return MAGIC + FORMAT.to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body


def unpack(
    data: bytes, kind: str, dtype: np.dtype[Any], facts: dict[str, Any], name: str = "snapshot"
) -> dict[str, bytes]:
    """The parts of a saved state, once everything about it is as it must be.

    Args:
        data: from `pack`.
        kind, dtype, facts: what it must be; a fact that differs is named with both values.
        name: of the file, for messages.

    Raises:
        ConfigError: it is no saved state, broken, of another kind, version or machine.
    """
    from vpmu_emu import __version__

    if data[: len(MAGIC)] != MAGIC or len(data) < _FIXED:
        raise ConfigError(name, "is no saved state of vpmu_emu")
    if (number := int.from_bytes(data[8:12], "little")) != FORMAT:
        raise ConfigError(name, f"has format {number}, this version reads {FORMAT}")
    if zlib.crc32(data[16:]) != int.from_bytes(data[12:16], "little"):
        raise ConfigError(name, "is damaged or cut off: its checksum is wrong")
    end = _FIXED + int.from_bytes(data[16:20], "little")
    head = json.loads(data[_FIXED:end])
    if head["kind"] != kind:
        raise ConfigError(name, f"is a {head['kind']}, not a {kind}")
    if head["dtype"] != dtype_hash(dtype):
        raise ConfigError(
            name,
            f"is of vpmu_emu {head['version']} with record {head['dtype']}, "
            f"this is {__version__} with record {dtype_hash(dtype)}",
        )
    for key, own in facts.items():
        if head["facts"].get(key) != own:
            raise ConfigError(name, f"is of a run with {key} {head['facts'].get(key)}, this one has {own}")
    found, at = {}, end
    for part, length in head["parts"].items():
        found[part] = data[at : at + length]
        at += length
    return found
