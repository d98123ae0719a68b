"""The Flower transport: every fault of a site becomes an answer about that site, and nothing else."""

import weakref
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import SITE_KEY
from server.judgement import Failure, Reply
from server.strategy import FlowerTransport
from shared.errors import RunError
from shared.local_array import LocalArray
from shared.messages import PROTOCOL_VERSION, Hello, Refusal, ReplyHeader, RequestHeader, TrainReply, TrainRequest
from shared.record_names import ARRAYS
from shared.wire import encode_reply
from simulations.engine.local import LocalGrid
from tests.tiny import tiny_config

Twist = Callable[[RecordDict], RecordDict]


def honest(records: RecordDict) -> RecordDict:
    return records


def with_value(value: float) -> Twist:
    def twist(records: RecordDict) -> RecordDict:
        records[ARRAYS] = ArrayRecord({"w": torch.tensor([1.0, value])})
        return records

    return twist


def wrong_shape(records: RecordDict) -> RecordDict:
    records[ARRAYS] = ArrayRecord({"w": torch.zeros(3)})
    return records


def unknown_name(records: RecordDict) -> RecordDict:
    records[ARRAYS] = ArrayRecord({"w": torch.zeros(2), "rows": torch.zeros(2)})
    return records


def talkative(records: RecordDict) -> RecordDict:
    records["log"] = ConfigRecord({"loss": 0.25})
    return records


def empty(records: RecordDict) -> RecordDict:
    return RecordDict()


def crashes(records: RecordDict) -> RecordDict:
    raise ValueError("row 17 says joy")


def refuses(records: RecordDict) -> RecordDict:
    return encode_reply(Refusal("refused"))


def transport(twists: dict[str, Twist], *, names: dict[str, str] | None = None) -> FlowerTransport:
    """Sites whose app answers a fixed update, twisted by site."""
    app, called = ClientApp(), dict(names or {})

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        site = str(context.node_config[SITE_KEY])
        said = Hello(protocol_version=PROTOCOL_VERSION, site=called.get(site, site), modalities=("left",))
        return Message(encode_reply(said), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        header = ReplyHeader(
            protocol_version=PROTOCOL_VERSION, run_id="r", round_number=1, nominal_size=9, privacy=None
        )
        records = encode_reply(TrainReply(header, {"w": torch.ones(2)}))
        return Message(twists[str(context.node_config[SITE_KEY])](records), reply_to=message)

    return FlowerTransport(LocalGrid(app, sites=[Path(site) for site in twists]))


def answers(twists: dict[str, Twist]) -> dict[str, Reply]:
    there = transport(twists)
    there.hello(expected=len(twists), min_sites=1, timeout_s=1.0)
    header = RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=tiny_config(private=False), run_id="r", round_number=1, planned_rounds=1
    )
    requests = {site: TrainRequest(header, {"w": torch.zeros(2)}) for site in twists}
    return dict(there.train(requests, timeout_s=1.0))


@pytest.mark.parametrize(
    ("twist", "expected"),
    [
        (with_value(float("nan")), Failure("invalid", "message-invalid")),
        (with_value(float("inf")), Failure("invalid", "message-invalid")),
        (wrong_shape, Failure("invalid", "message-invalid")),
        (unknown_name, Failure("invalid", "message-invalid")),
        (talkative, Failure("invalid", "message-invalid")),
        (empty, Failure("invalid", "message-invalid")),
        (refuses, Refusal("refused")),
    ],
)
def test_what_a_site_does_wrong_is_its_own_answer_and_no_other_sites(twist: Twist, expected: Reply) -> None:
    found = answers({"good": honest, "bad": twist, "other": honest})
    assert found["bad"] == expected
    assert isinstance(found["good"], TrainReply)
    assert isinstance(found["other"], TrainReply)


def test_a_site_whose_app_raises_has_failed_and_its_words_are_not_repeated() -> None:
    found = answers({"good": honest, "bad": crashes})
    assert isinstance(found["bad"], Failure)
    assert found["bad"].outcome == "failed"
    assert "joy" not in found["bad"].code
    assert isinstance(found["good"], TrainReply)


def test_two_sites_of_one_name_are_refused() -> None:
    there = transport({"a": honest, "b": honest}, names={"b": "a"})
    with pytest.raises(RunError, match="two sites are called 'a'"):
        there.hello(expected=2, min_sites=1, timeout_s=1.0)


def test_waiting_for_sites_has_an_end_and_too_few_are_an_error() -> None:
    with pytest.raises(RunError, match="min_sites asks for 3"):
        transport({"a": honest}).hello(expected=3, min_sites=3, timeout_s=0.1)


def one_request(*names: str) -> dict[str, TrainRequest]:
    """The same request to all of them."""
    header = RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=tiny_config(private=False), run_id="r", round_number=1, planned_rounds=1
    )
    return dict.fromkeys(names, TrainRequest(header, {"w": torch.zeros(2)}))


class OddGrid(LocalGrid):
    """Gathers all replies, backwards, every one of them twice; or loses those of one node."""

    lost: int | None = None

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:  # type: ignore[override]
        replies = [r for r in super().send_and_receive(messages) if r.metadata.src_node_id != self.lost]
        return [*reversed(replies), *replies]


def odd(names: str) -> tuple[FlowerTransport, OddGrid]:
    inner = transport(dict.fromkeys(names, honest))._grid
    assert isinstance(inner, LocalGrid)
    grid = OddGrid(inner._app, sites=[Path(name) for name in names])
    there = FlowerTransport(grid)
    there._nodes = dict(zip(names, grid.get_node_ids(), strict=True))
    return there, grid


def test_a_second_reply_to_one_message_is_not_taken() -> None:
    there, _ = odd("bca")
    found = list(there.train(one_request("a", "b", "c"), timeout_s=1.0))
    assert all(isinstance(reply, TrainReply) for _, reply in found)
    # and gathered replies are taken by the names of the sites, in whatever order they came
    assert [site for site, _ in found] == ["a", "b", "c"]


def test_a_site_that_gave_no_reply_comes_last_and_late() -> None:
    there, grid = odd("abc")
    grid.lost = there._nodes["b"]
    found = list(there.train(one_request("a", "b", "c"), timeout_s=1.0))
    assert [site for site, _ in found] == ["a", "c", "b"]
    assert found[-1][1] == Failure("late", "no-reply")
    assert list(there.train({}, timeout_s=1.0)) == []


def test_sites_that_are_asked_the_same_are_sent_one_record_that_was_encoded_once() -> None:
    sent: list[Message] = []

    class Noting(LocalGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            sent.extend(kept := list(messages))
            return super().push_messages(kept)

    inner = transport({"a": honest, "b": honest, "c": honest})._grid
    assert isinstance(inner, LocalGrid)
    there = FlowerTransport(grid := Noting(inner._app, sites=[Path(name) for name in "abc"]))
    there._nodes = dict(zip("abc", grid.get_node_ids(), strict=True))
    found = dict(there.train(one_request("a", "b") | one_request("c"), timeout_s=1.0))
    assert all(isinstance(reply, TrainReply) for reply in found.values())
    assert sent[0].content is sent[1].content
    assert sent[0].content is not sent[2].content


def test_an_update_is_not_held_while_the_next_site_is_asked() -> None:
    made: list[weakref.ref[torch.Tensor]] = []
    held: list[int] = []

    def noted(records: RecordDict) -> RecordDict:
        held.append(sum(tensor() is not None for tensor in made))
        # not records.array_records, which lies in a circle and is held until Python looks for those
        (array,) = records[ARRAYS].values()
        assert isinstance(array, LocalArray)
        made.append(weakref.ref(array.tensor))
        return records

    there = transport(dict.fromkeys("abcd", noted))
    there.hello(expected=4, min_sites=4, timeout_s=1.0)
    for _, reply in there.train(one_request(*"abcd"), timeout_s=1.0):
        assert isinstance(reply, TrainReply)
        del reply
    assert held == [0, 0, 0, 0]
