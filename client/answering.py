"""Answering: a message's records to the records of the answer, by the owner's settings; alike in every runtime.

in        the records of a message, trusted in nothing, and the path of the owner's settings
out       records that agent.py let out: an update, counts, an introduction, or a refusal's code
relies on wire.py for what a message may be, on agent.py for what it is worth
"""

from pathlib import Path

from flwr.app import RecordDict

from client.agent import answer_hello, answer_statistics, answer_train
from shared.errors import WireError
from shared.messages import Refusal
from shared.wire import decode_arrays, decode_request_header, decode_statistics_header, encode_reply


def answer_query(records: RecordDict, *, site_file: Path) -> RecordDict:
    """Who this site is, as its owner published it, if nothing is asked; or the noisy counts that are asked for."""
    if not records:
        return encode_reply(answer_hello(site_file))
    try:
        header = decode_statistics_header(records)
    except WireError as error:
        return encode_reply(Refusal(error.code))
    return encode_reply(answer_statistics(header, site_file=site_file))


def answer_training(records: RecordDict, *, site_file: Path) -> RecordDict:
    """One round of protected training."""
    try:
        header = decode_request_header(records)
    except WireError as error:
        return encode_reply(Refusal(error.code))
    return encode_reply(answer_train(header, lambda shapes: decode_arrays(records, shapes=shapes), site_file=site_file))
