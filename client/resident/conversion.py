"""Conversion: Flower's records to the parts of a message and back, without torch.

in        a RecordDict as Flower delivers it, or the parts of a message as they came over the socket
out       the other of the two; whether it means anything is for whoever answers to judge (shared/wire.py)
relies on array_bytes.py for numpy's format, read without numpy's reader
"""

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from client.resident.protocol import Parts
from shared.array_bytes import read_float32
from shared.errors import WireError
from shared.packed_arrays import file_of, is_packed, pack, record_of
from shared.record_names import ARRAYS, HEADER, REFUSAL

_FORMS: tuple[set[str], ...] = (set(), {HEADER}, {HEADER, ARRAYS}, {REFUSAL})


def parts_of(records: RecordDict) -> Parts:
    """A message taken apart.

    Raises:
        WireError: it is none of Motet's, or an array cannot be read.
    """
    if set(records) not in _FORMS:
        raise WireError(f"message holds records {sorted(records)[:9]}; allowed: {[sorted(form) for form in _FORMS]}")
    arrays = records.get(ARRAYS)
    return Parts(
        header=_word(records, HEADER, "json"),
        code=_word(records, REFUSAL, "code"),
        arrays=_read(arrays) if isinstance(arrays, ArrayRecord) and not is_packed(arrays) else None,
        file=file_of(arrays) if isinstance(arrays, ArrayRecord) and is_packed(arrays) else None,
    )


def records_of(parts: Parts) -> RecordDict:
    """The parts of a message as Flower's records."""
    records = RecordDict()
    if parts.code is not None:
        records[REFUSAL] = ConfigRecord({"code": parts.code})
    if parts.header is not None:
        records[HEADER] = ConfigRecord({"json": parts.header})
    if parts.file is not None:
        records[ARRAYS] = record_of(parts.file)
    elif parts.arrays is not None:
        records[ARRAYS] = pack(parts.arrays)
    return records


def _word(records: RecordDict, record: str, field: str) -> str | None:
    if record not in records:
        return None
    held = records[record]
    word = held.get(field) if isinstance(held, ConfigRecord) and set(held) == {field} else None
    if not isinstance(word, str):
        raise WireError(f"record {record} of a message holds no {field}; allowed: that alone, as text")
    return word


def _read(arrays: ArrayRecord) -> dict[str, np.ndarray]:
    return {name: read_float32(array.data) for name, array in arrays.items()}
