"""The local engine is a Flower grid: messages there and back, each site for itself, no text of a site's in a reply."""

from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from client.app import SITE_KEY
from client.app import app as real_client_app
from server.judgement import Failure
from server.strategy import FlowerTransport
from shared.messages import PROTOCOL_VERSION, Hello, Refusal, ReplyHeader, RequestHeader, TrainReply, TrainRequest
from shared.wire import decode_hello, encode_reply
from simulations.engine.local import FLOWER_VERSIONS, LocalGrid, run_locally
from tests.shared.example_runs import example_run

SECRET = "patient 4711 has it"
SITES = [Path("a.toml"), Path("b.toml"), Path("c.toml")]


def site_of(context: Context) -> str:
    return Path(str(context.node_config[SITE_KEY])).stem


def client_app(*, raising: str = "") -> ClientApp:
    """Sites named after their files; each doubles the array `w` in place, and one of them may raise instead."""
    app = ClientApp()

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        said = Hello(protocol_version=PROTOCOL_VERSION, site=site_of(context), modalities=("sensor",))
        return Message(encode_reply(said), reply_to=message)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        if site_of(context) == raising:
            raise ValueError(SECRET)
        arrays = message.content.array_records["arrays"]
        arrays["w"] = Array(arrays["w"].numpy() * 2)
        return Message(message.content, reply_to=message)

    return app


def weights(value: float) -> RecordDict:
    return RecordDict({"arrays": ArrayRecord({"w": Array(torch.full((2,), value).numpy())})})


def numbers(message: Message) -> list[float]:
    return [float(value) for value in message.content.array_records["arrays"]["w"].numpy()]


def train_messages(grid: LocalGrid, content: RecordDict) -> list[Message]:
    return [grid.create_message(content, MessageType.TRAIN, node, "1") for node in grid.get_node_ids()]


def test_the_private_names_of_flower_are_known_for_the_installed_version() -> None:
    assert version("flwr").rsplit(".", 1)[0] in FLOWER_VERSIONS


def test_every_message_and_every_reply_has_an_id_of_its_own_and_finds_its_way_back() -> None:
    grid = LocalGrid(client_app(), sites=SITES)
    messages = train_messages(grid, weights(1.0))
    ids = list(grid.push_messages(messages))
    replies = list(grid.pull_messages(ids))

    assert len({*ids, *(reply.metadata.message_id for reply in replies)}) == 6
    assert [reply.metadata.reply_to_message_id for reply in replies] == ids
    assert [reply.metadata.src_node_id for reply in replies] == [node.node_id for node in grid.get_nodes()]
    assert list(grid.pull_messages(ids)) == []


def test_a_site_that_writes_into_its_message_changes_nobody_elses() -> None:
    """All three messages share one record, as Flower's own strategies send them."""
    grid, shared = LocalGrid(client_app(), sites=SITES), weights(1.0)
    replies = grid.send_and_receive(train_messages(grid, shared))

    assert [numbers(reply) for reply in replies] == [[2.0, 2.0]] * 3
    assert shared.array_records["arrays"]["w"].numpy().tolist() == [1.0, 1.0]


def test_a_site_that_raises_costs_its_own_reply_only_and_its_text_does_not_travel() -> None:
    grid = LocalGrid(client_app(raising="b"), sites=SITES)
    replies = list(grid.send_and_receive(train_messages(grid, weights(1.0))))

    assert [reply.has_content() for reply in replies] == [True, False, True]
    assert SECRET not in str(replies[1].error)
    assert "ValueError" not in str(replies[1].error)


def test_the_server_learns_of_a_failed_site_only_that_it_failed() -> None:
    transport = FlowerTransport(LocalGrid(client_app(raising="b"), sites=SITES))
    assert [hello.site for hello in transport.hello(expected=3, min_sites=3, timeout_s=1.0)] == ["a", "b", "c"]

    header = RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=example_run({"vector": {"name": "linear"}}), run_id="r", round_number=1,
        planned_rounds=1,
    )  # fmt: skip
    answers = dict(transport.train({"b": TrainRequest(header, {"w": torch.ones(2)})}, timeout_s=1.0))
    assert isinstance(answers["b"], Failure)
    assert answers["b"].outcome == "failed"
    assert answers["b"].code.startswith("flower-")


def test_a_reply_that_stays_in_the_process_has_the_metadata_that_flower_would_write() -> None:
    grid = LocalGrid(client_app(), sites=SITES)
    message = train_messages(grid, weights(1.0))[1]
    grid.push_messages([message])
    header = ReplyHeader(protocol_version=PROTOCOL_VERSION, run_id="r", round_number=1, nominal_size=9, privacy=None)
    ours, flowers = grid.answered(message, TrainReply(header, {})), Message(RecordDict(), reply_to=message)
    own = {name: vars(ours.metadata)[name] for name in ("_message_id", "_created_at", "_ttl")}
    assert vars(flowers.metadata) | own == vars(ours.metadata)
    assert ours.metadata.created_at == pytest.approx(flowers.metadata.created_at, abs=60)
    assert ours.metadata.created_at + ours.metadata.ttl == pytest.approx(
        message.metadata.created_at + message.metadata.ttl
    )
    assert not ours.has_error()


def test_what_an_app_notes_of_a_site_is_there_at_its_next_message_and_nobody_elses() -> None:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        noted = context.state.setdefault("notes", ConfigRecord({"called": 0}))
        noted["called"] = int(noted["called"]) + 1  # type: ignore[arg-type, assignment]
        return Message(RecordDict({"notes": ConfigRecord(dict(noted))}), reply_to=message)  # type: ignore[arg-type]

    grid = LocalGrid(app, sites=SITES)
    first = train_messages(grid, weights(1.0))
    for count in (1, 2):
        replies = grid.send_and_receive(first if count == 1 else train_messages(grid, weights(1.0)))
        assert [reply.content["notes"]["called"] for reply in replies] == [count] * 3


def test_a_message_to_no_site_gets_an_error_reply() -> None:
    grid = LocalGrid(client_app(), sites=SITES)
    (reply,) = grid.send_and_receive([grid.create_message(weights(1.0), MessageType.TRAIN, 77, "1")])
    assert not reply.has_content()


def test_what_stops_the_server_app_comes_through() -> None:
    server = ServerApp()

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        raise RuntimeError(f"{len(list(grid.get_node_ids()))} sites, then it stopped")

    with pytest.raises(RuntimeError, match="3 sites, then it stopped"):
        run_locally(server, client_app(), sites=SITES)


@pytest.mark.parametrize("asked", ["client.answering.answer_hello", "client.app.carry"])
def test_a_failing_client_app_sends_only_a_code(
    asked: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Through the app itself, with an agent and without: in a deployment Flower would send the exception's text."""

    def fail(*args: object, **named: object) -> None:
        raise ValueError(SECRET)

    monkeypatch.setattr(asked, fail)
    monkeypatch.setattr("client.answering.decode_request_header", fail)
    if asked == "client.app.carry":
        monkeypatch.setattr("client.app.SITE_KEY", "agent-of-nobody")
        monkeypatch.setattr("client.app.AGENT_KEY", SITE_KEY)
    grid = LocalGrid(real_client_app, sites=SITES[:1])
    (node,) = grid.get_node_ids()
    for kind in (MessageType.QUERY, MessageType.TRAIN):
        (reply,) = grid.send_and_receive([grid.create_message(RecordDict(), kind, node, "1")])
        assert decode_hello(reply.content) == Refusal("internal")
        assert set(reply.content) == {"refusal"}
        assert reply.content["refusal"] == ConfigRecord({"code": "internal"})
    assert SECRET in caplog.text
