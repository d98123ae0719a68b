"""Replies are taken one by one: what was worked out for one header and request is used for no other."""

import torch

from server.checkpoint import Progress
from server.intake import Intake
from server.plan import Plan
from shared.messages import PROTOCOL_VERSION, Hello, ReplyHeader, RequestHeader, TrainReply, TrainRequest
from shared.model.exchange import Exchange
from tests.tiny import tiny_config

RUN = tiny_config(private=False)
HEADER = ReplyHeader(protocol_version=PROTOCOL_VERSION, run_id="r", round_number=1, nominal_size=9, privacy=None)
ROW = torch.tensor([1.0, 2.0, 3.0])
UPDATE = {"w": ROW[:2], "v": ROW[2:]}


def request(round_number: int) -> TrainRequest:
    header = RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=RUN, run_id="r", round_number=round_number, planned_rounds=9
    )
    return TrainRequest(header, UPDATE)


def plan(names: str) -> Plan:
    hellos = tuple(Hello(protocol_version=PROTOCOL_VERSION, site=name, modalities=("left",)) for name in names)
    return Plan(
        hellos,
        rounds=(tuple(names),),
        planned=dict.fromkeys(names, 1),
        exchanges=dict.fromkeys(names, Exchange(("w", "v"), ())),
    )


def test_one_header_is_judged_beside_the_request_that_it_answers() -> None:
    """The very object for all; only those that were asked for round 1 are used."""
    intake, first, second = Intake(Progress(weights={}), run=RUN, central=None), request(1), request(2)
    for site, asked in zip("abcd", (first, second, first, second), strict=True):
        intake.take(site, TrainReply(HEADER, UPDATE), request=asked)
    lines = intake.lines(plan("abcd"))
    assert [(line.outcome, line.code) for line in lines] == [("used", None), ("invalid", "another-round")] * 2


def test_a_line_tells_what_its_own_reply_held() -> None:
    """Another header of equal text, other names, and tensors that do not lie side by side."""
    intake, asked = Intake(Progress(weights={}), run=RUN, central=None), request(1)
    larger = HEADER.model_copy(update={"nominal_size": 10})
    for site, reply in {
        "a": TrainReply(HEADER, UPDATE),
        "b": TrainReply(larger, UPDATE),
        "c": TrainReply(larger, {"w": ROW[:2].clone()}),
        "d": TrainReply(HEADER, {"w": ROW[:2].clone(), "v": ROW[2:].clone()}),
    }.items():
        intake.take(site, reply, request=asked)
    lines = intake.lines(plan("abcd"))
    assert [line.header.nominal_size for line in lines if line.header] == [9, 10, 10, 9]
    assert [line.update_bytes for line in lines] == [12, 12, 8, 12]
    assert ["update.v" in line.fields for line in lines] == [True, True, False, True]


def test_an_update_counts_the_same_whether_or_not_it_lies_in_a_row() -> None:
    progress = Progress(weights={})
    intake, asked = Intake(progress, run=RUN, central=None), request(1)
    intake.take("a", TrainReply(HEADER, UPDATE), request=asked)
    intake.take("b", TrainReply(HEADER, {"w": ROW[:2] * 3, "v": ROW[2:] * 5}), request=asked)
    settled = intake.settle()
    assert settled is not None
    assert {name: value.tolist() for name, value in settled.items()} == {"w": [2.0, 4.0], "v": [9.0]}
