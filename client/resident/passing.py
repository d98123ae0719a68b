"""Passing: the parts of a message to the agent's own code and back, without a copy of any array.

in        parts as they came over the socket; records as client/answering.py made them
out       the other of the two
relies on shared/wire.py judging tensors as it judges what comes in bytes
"""

import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from client.resident.conversion import parts_of
from client.resident.protocol import Parts
from shared.errors import WireError
from shared.local_array import LocalArray
from shared.record_names import ARRAYS, HEADER
from shared.wire import local_array_record


def records_within(parts: Parts) -> RecordDict:
    """A request as records.

    Raises:
        WireError: an array is of a kind that no message holds.
    """
    records = RecordDict() if parts.header is None else RecordDict({HEADER: ConfigRecord({"json": parts.header})})
    if parts.arrays is not None:
        try:
            tensors = {name: torch.from_numpy(values) for name, values in parts.arrays.items()}
        except (TypeError, ValueError) as error:
            raise WireError(f"an array of a message is of a kind that is not known here: {error}") from None
        records[ARRAYS] = local_array_record(tensors)
    return records


def parts_within(records: RecordDict) -> Parts:
    """An answer's parts."""
    arrays = records.get(ARRAYS)
    if not isinstance(arrays, ArrayRecord) or not all(isinstance(each, LocalArray) for each in arrays.values()):
        return parts_of(records)
    others = RecordDict({name: record for name, record in records.items() if name != ARRAYS})
    tensors = {name: array.tensor for name, array in arrays.items() if isinstance(array, LocalArray)}
    said = parts_of(others)
    return Parts(header=said.header, arrays={name: each.cpu().numpy() for name, each in tensors.items()})
