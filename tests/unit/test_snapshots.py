"""A snapshot comes back as it was, or is refused in one line: no damaged bit passes for a smaller state."""

from __future__ import annotations

import numpy as np
import pytest

from algospace.errors import SchemaError
from algospace.snapshots import pack, pack_arrays, unpack, unpack_all

IDENTITY = {"symbol": "ES", "widths": (1, 5)}
RECORDS = np.zeros(2, np.dtype([("n", "i8"), ("small", "i1")], align=True))
ARRAYS = {"state.a": np.arange(5.0), "without axes": np.array(3), "records": RECORDS, "empty": np.zeros((0, 4))}


def test_arrays_come_back_with_their_shapes_and_can_be_written_to() -> None:
    found = unpack_all(IDENTITY, pack_arrays(IDENTITY, ARRAYS), "state")
    assert list(found) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert (found[name].shape, found[name].dtype) == (array.shape, array.dtype), name
        np.testing.assert_array_equal(found[name], array)
        assert found[name].flags.writeable
        assert found[name].flags.c_contiguous


def test_every_flipped_bit_and_every_cut_is_refused_or_changes_nothing() -> None:
    parts = {"a": b"first", "b": b"second part"}
    blob = pack(IDENTITY, parts)
    changed = [blob[:i] + bytes([blob[i] ^ (1 << bit)]) + blob[i + 1:]
               for i in range(len(blob)) for bit in range(8)]
    messages = []
    for damaged in [*changed, *(blob[:i] for i in range(len(blob)))]:
        try:
            assert unpack(IDENTITY, damaged, "state") == parts
        except SchemaError as error:
            messages.append(str(error))
    assert len(messages) > len(changed) // 2
    assert not any("\n" in message for message in messages)


def test_another_identity_is_refused() -> None:
    with pytest.raises(SchemaError, match=r'saved for .*"NQ"'):
        unpack(IDENTITY, pack({**IDENTITY, "symbol": "NQ"}, {}), "state")
