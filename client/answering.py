"""Answering: a message's records to the records of the answer, by the owner's settings; alike in every runtime.

in        the records of a message, trusted in nothing, and the path of the owner's settings
out       records that agent.py let out: an update, counts, an introduction, or a refusal's code
relies on wire.py for what a message may be, on agent.py for what it is worth
"""

import logging
from pathlib import Path

from flwr.app import RecordDict

from client.agent import answer_hello, answer_statistics, answer_train
from client.resident.answers import NO_ANSWERS, Answers
from shared.errors import VersionMismatch, WireError
from shared.messages import PROTOCOL_VERSION, HelloRequest, OtherVersion, Refusal
from shared.version import VERSION
from shared.wire import decode_arrays, decode_query, decode_request_header, encode_reply

log = logging.getLogger("motet.site")


def answer_query(records: RecordDict, *, site_file: Path, answers: Answers = NO_ANSWERS) -> RecordDict:
    """Who this site is, as its owner published it, if nothing is asked; or the noisy counts that are asked for.

    Args:
        answers: as in `client.agent.answer_train`.
    """
    if not records:
        return encode_reply(answer_hello(site_file))
    try:
        asked = decode_query(records)
    except VersionMismatch as error:
        log.error("%s: %s", error.code, error)
        return encode_reply(OtherVersion(protocol_version=PROTOCOL_VERSION, version=VERSION))
    except WireError as error:
        return encode_reply(Refusal(error.code))
    if isinstance(asked, HelloRequest):
        return encode_reply(answer_hello(site_file, asked=asked))
    return encode_reply(answer_statistics(asked, site_file=site_file, answers=answers))


def answer_training(records: RecordDict, *, site_file: Path, answers: Answers = NO_ANSWERS) -> RecordDict:
    """One round of protected training; arguments as `answer_query`."""
    try:
        header = decode_request_header(records)
    except WireError as error:
        return encode_reply(Refusal(error.code))
    return encode_reply(
        answer_train(header, lambda shapes: decode_arrays(records, shapes=shapes), site_file=site_file, answers=answers)
    )
