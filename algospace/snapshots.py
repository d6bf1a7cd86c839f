"""Saved state: named parts in one blob, with what they belong to and a checksum of each."""

from __future__ import annotations

import io
import json
import zipfile
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from algospace.errors import SchemaError
from algospace.types import AnyArray

_VERSION = 2
_HEADER = "header.json"


def pack(identity: Mapping[str, Any], parts: Mapping[str, bytes]) -> bytes:
    """One blob of `parts`, in order, that only `unpack` with the same `identity` accepts."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:  # the archive's CRC of each part finds damage
        header = {"version": _VERSION, "identity": dict(identity), "parts": list(parts)}
        archive.writestr(zipfile.ZipInfo(_HEADER), json.dumps(header))
        for name, part in parts.items():
            archive.writestr(zipfile.ZipInfo(name), part)
    return buffer.getvalue()


def unpack(identity: Mapping[str, Any], blob: bytes, what: str) -> dict[str, bytes]:
    """The parts of a blob by name; SchemaError, in one line, if it is damaged or belongs to something else."""
    try:
        with zipfile.ZipFile(io.BytesIO(blob)) as archive:
            header = json.loads(archive.read(_HEADER))
            found = {"version": header["version"], **header["identity"]}
            parts = {name: archive.read(name) for name in archive.namelist() if name != _HEADER}
    except (zipfile.BadZipFile, zlib.error, KeyError, TypeError, ValueError, OSError, EOFError,
            RuntimeError) as error:
        # RuntimeError: damage may look like a part that is encrypted, or packed in an unknown way
        raise SchemaError(f"{what}: not a snapshot, or damaged ({error}); build it anew from history") from None
    expected = {"version": _VERSION, **json.loads(json.dumps(dict(identity)))}
    if found != expected:
        raise SchemaError(f"{what}: it was saved for {json.dumps(found)}, this is {json.dumps(expected)}; "
                          "use the same configuration or build it anew from history")
    if header["parts"] != list(parts):  # a damaged list of parts can lose some and still be read
        raise SchemaError(f"{what}: damaged (parts are missing); build it anew from history")
    return parts


def pack_arrays(identity: Mapping[str, Any], arrays: Mapping[str, AnyArray]) -> bytes:
    """`pack` of arrays, records included."""
    parts = {}
    for name, array in arrays.items():
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        parts[name] = buffer.getvalue()
    return pack(identity, parts)


def unpack_all(identity: Mapping[str, Any], blob: bytes, what: str) -> dict[str, AnyArray]:
    """The arrays of a blob, contiguous, of whatever shape; SchemaError as `unpack`."""
    arrays = {}
    try:
        for name, part in unpack(identity, blob, what).items():
            # not ascontiguousarray, which gives an array without axes one
            arrays[name] = np.asarray(np.load(io.BytesIO(part), allow_pickle=False), order="C")
    except (ValueError, EOFError) as error:
        raise SchemaError(f"{what}: damaged ({error}); build it anew from history") from None
    return arrays


def unpack_arrays(identity: Mapping[str, Any], blob: bytes, what: str, like: Mapping[str, AnyArray]
                  ) -> dict[str, AnyArray]:
    """The arrays of a blob, each of the type and shape of its namesake in `like`; SchemaError otherwise."""
    found = unpack_all(identity, blob, what)
    arrays = {}
    for name, template in like.items():
        array = found.get(name)
        if array is None or array.shape != template.shape or array.dtype.itemsize != template.dtype.itemsize:
            raise SchemaError(f"{what}: damaged ('{name}' has another shape); build it anew from history")
        arrays[name] = array.view(template.dtype)  # a file forgets aligned records
    return arrays
