"""The cohort engine answers a round together: in the order asked, read once, and each site for itself."""

import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pytest
import torch
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from torch import Tensor

from client.app import SITE_KEY
from client.arithmetic import Arithmetic
from client.sample_store import SampleStore
from server.judgement import Failure
from server.strategy import FlowerTransport
from shared.messages import PROTOCOL_VERSION, Hello, Refusal, ReplyHeader, RequestHeader, TrainReply, TrainRequest
from shared.wire import decode_hello, decode_reply, decode_request_header, encode_reply, encode_request
from simulations.engine.cohort import CohortGrid, run_in_cohorts
from simulations.scenario import read_scenario
from simulations.simulate import prepare_run, run_simulation
from tests.shared.example_runs import example_run
from tests.simulations.runs import model_of, record_of, scenario_file, skip_preflight

SECRET = "patient 4711 has it"
NAMES = ("a", "b", "c", "d")
SITES = [Path(f"{name}.toml") for name in NAMES]


@dataclass(frozen=True)
class Asked:
    """As in client/cohort.py."""

    header: RequestHeader
    weights: dict[str, Tensor]
    site_file: Path


Answers = Callable[[Sequence[Asked]], Iterator[TrainReply | Refusal]]


class Trainer(NamedTuple):
    """What stands in for client/cohort.py, and what it was asked."""

    asked: list[list[Asked]]
    memory: list[int]


def update_of(name: str) -> TrainReply:
    """A reply that tells whose it is."""
    header = ReplyHeader(protocol_version=PROTOCOL_VERSION, run_id="r", round_number=1, nominal_size=9, privacy=None)
    return TrainReply(header, {"w": torch.full((2,), float(ord(name)))})


def honest(asked: Sequence[Asked]) -> Iterator[TrainReply | Refusal]:
    for each in asked:
        yield update_of(each.site_file.stem)


def trainer(patch: pytest.MonkeyPatch, answers: Answers = honest) -> Trainer:
    """Puts a stand-in where the engine looks for client/cohort.py."""
    told = Trainer([], [])

    def answer_cohort(
        asked: Sequence[Asked], *, store: SampleStore, memory_bytes: int, arithmetic: Arithmetic
    ) -> Iterator[object]:
        told.asked.append(list(asked))
        told.memory.append(memory_bytes)
        return answers(asked)

    module = ModuleType("client.cohort")
    vars(module).update(Asked=Asked, answer_cohort=answer_cohort)
    patch.setitem(sys.modules, "client.cohort", module)
    return told


def client_app() -> ClientApp:
    """Sites that say who they are and are never asked to train."""
    app = ClientApp()

    @app.query()
    def hello(message: Message, context: Context) -> Message:
        name = Path(str(context.node_config[SITE_KEY])).stem
        return Message(
            encode_reply(Hello(protocol_version=PROTOCOL_VERSION, site=name, modalities=("m",))), reply_to=message
        )

    return app


def request(*, planned_rounds: int = 1) -> TrainRequest:
    run = example_run({"vector": {"name": "linear"}})
    header = RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id="r", round_number=1, planned_rounds=planned_rounds
    )
    return TrainRequest(header, {"w": torch.ones(2)})


@pytest.fixture
def grid(tmp_path: Path) -> Iterator[CohortGrid]:
    with SampleStore(tmp_path / "store") as store:
        yield CohortGrid(client_app(), sites=SITES, store=store, memory_bytes=12345)


def train_messages(grid: CohortGrid, content: RecordDict) -> list[Message]:
    return [grid.create_message(content, MessageType.TRAIN, node, "1") for node in grid.get_node_ids()]


def said(reply: Message) -> str:
    """Whose update it is, or the code of a refusal; nothing where there is no content."""
    if not reply.has_content():
        return ""
    answer = decode_reply(reply.content, shapes={"w": (2,)})
    return answer.code if isinstance(answer, Refusal) else chr(int(answer.update["w"][0]))


def test_a_round_is_trained_together_and_answered_in_the_order_asked(
    grid: CohortGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = trainer(monkeypatch)
    messages = train_messages(grid, encode_request(request()))[::-1]
    replies = list(grid.send_and_receive(messages))

    assert [said(reply) for reply in replies] == ["d", "c", "b", "a"]
    assert [reply.metadata.reply_to_message_id for reply in replies] == [m.metadata.message_id for m in messages]
    assert len({reply.metadata.message_id for reply in replies}) == 4
    assert [len(asked) for asked in told.asked] == [4]
    assert told.memory == [12345]


def test_what_sites_share_is_read_once(grid: CohortGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    told, reads = trainer(monkeypatch), list[RecordDict]()

    def counted(records: RecordDict) -> RequestHeader:
        reads.append(records)
        return decode_request_header(records)

    monkeypatch.setattr("simulations.engine.cohort.decode_request_header", counted)
    often, once = (encode_request(request(planned_rounds=rounds)) for rounds in (1, 2))
    messages = train_messages(grid, often)
    messages[2] = grid.create_message(once, MessageType.TRAIN, messages[2].metadata.dst_node_id, "1")
    assert [said(reply) for reply in grid.send_and_receive(messages)] == list(NAMES)

    assert len(reads) == 2
    (a, b, c, d) = told.asked[0]
    assert a.header is b.header is d.header
    assert a.weights is b.weights is d.weights
    assert (a.header.planned_rounds, c.header.planned_rounds) == (1, 2)
    assert [each.site_file for each in (a, b, c, d)] == SITES


def test_a_site_that_refuses_costs_its_own_reply_only(grid: CohortGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(asked: Sequence[Asked]) -> Iterator[TrainReply | Refusal]:
        for each in asked:
            yield Refusal("refused") if each.site_file.stem == "b" else update_of(each.site_file.stem)

    trainer(monkeypatch, answers)
    replies = grid.send_and_receive(train_messages(grid, encode_request(request())))
    assert [said(reply) for reply in replies] == ["a", "refused", "c", "d"]


@pytest.mark.parametrize("breaks_at", [0, 2])
def test_training_that_breaks_down_costs_the_sites_that_are_left_and_its_words_stay_here(
    breaks_at: int, grid: CohortGrid, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def answers(asked: Sequence[Asked]) -> Iterator[TrainReply | Refusal]:
        yield from honest(asked[:breaks_at])
        raise ValueError(SECRET)

    trainer(monkeypatch, answers)
    with caplog.at_level(logging.ERROR):
        replies = list(grid.send_and_receive(train_messages(grid, encode_request(request()))))
    assert [said(reply) for reply in replies] == [*NAMES[:breaks_at], *[""] * (4 - breaks_at)]
    assert not any(SECRET in str(reply.error) for reply in replies if reply.has_error())
    assert SECRET in caplog.text
    assert len(caplog.records) == 1


def test_a_trainer_that_gives_too_few_answers_fails_the_rest(grid: CohortGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer(monkeypatch, lambda asked: honest(asked[:1]))
    replies = grid.send_and_receive(train_messages(grid, encode_request(request())))
    assert [said(reply) for reply in replies] == ["a", "", "", ""]


def test_a_message_that_is_none_is_refused_for_all_that_got_it_and_nobody_else(
    grid: CohortGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = trainer(monkeypatch)
    broken = RecordDict({"header": ConfigRecord({"json": "{}"})})
    messages = train_messages(grid, encode_request(request()))
    for place in (0, 2):
        messages[place] = grid.create_message(broken, MessageType.TRAIN, messages[place].metadata.dst_node_id, "1")
    replies = list(grid.send_and_receive(messages))

    assert [said(reply) for reply in replies] == ["message-invalid", "b", "message-invalid", "d"]
    assert [each.site_file.stem for each in told.asked[0]] == ["b", "d"]


def test_an_update_leaves_before_the_next_cohort_is_trained(grid: CohortGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []

    def answers(asked: Sequence[Asked]) -> Iterator[TrainReply | Refusal]:
        for each in asked:
            made.append(each.site_file.stem)
            yield update_of(each.site_file.stem)

    trainer(monkeypatch, answers)
    replies = iter(grid.send_and_receive(train_messages(grid, encode_request(request()))))
    assert made == []
    assert said(next(replies)) == "a"
    assert made == ["a"]


def test_questions_go_through_the_client_app_and_messages_to_no_site_fail(
    grid: CohortGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = trainer(monkeypatch)
    train = train_messages(grid, encode_request(request()))[:1]
    query = grid.create_message(RecordDict(), MessageType.QUERY, train[0].metadata.dst_node_id, "")
    lost = grid.create_message(encode_request(request()), MessageType.TRAIN, 77, "1")
    hello, failed, trained = grid.send_and_receive([query, lost, *train])

    introduction = decode_hello(hello.content)
    assert isinstance(introduction, Hello)
    assert introduction.site == "a"
    assert failed.has_error()
    assert said(trained) == "a"
    assert [len(asked) for asked in told.asked] == [1]


def test_the_server_gets_one_answer_for_every_site(grid: CohortGrid, monkeypatch: pytest.MonkeyPatch) -> None:
    def answers(asked: Sequence[Asked]) -> Iterator[TrainReply | Refusal]:
        yield from honest(asked[:2])
        raise ValueError(SECRET)

    trainer(monkeypatch, answers)
    transport = FlowerTransport(grid)
    transport.hello(expected=4, min_sites=4, timeout_s=1.0)
    found = list(transport.train(dict.fromkeys(reversed(NAMES), request()), timeout_s=1.0))
    assert [site for site, _ in found] == list(NAMES)
    assert [type(answer) for _, answer in found] == [TrainReply, TrainReply, Failure, Failure]


def test_a_run_in_cohorts_leaves_no_row_behind_and_lets_an_error_of_the_servers_through(tmp_path: Path) -> None:
    server, folder = ServerApp(), tmp_path / "rows"

    @server.main()
    def main(grid: Grid, context: Context) -> None:
        assert isinstance(grid, CohortGrid)
        raise RuntimeError(f"{len(list(grid.get_node_ids()))} sites, folder {folder.stat().st_mode & 0o777:o}")

    with pytest.raises(RuntimeError, match="4 sites, folder 700"):
        run_in_cohorts(server, client_app(), sites=SITES, memory_bytes=1, folder=folder)
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("private", [False, True])
def test_a_run_gives_the_same_in_cohorts_as_one_site_after_the_other(
    private: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The real trainer; and a run that was begun by one engine can be ended by another."""
    monkeypatch.setenv("MOTET_HOME", str(tmp_path / "home"))
    skip_preflight(monkeypatch)
    path = scenario_file(tmp_path, private=private, owners="[owners]\nreproducible_noise = true" if private else "")
    settings, data_set = read_scenario(path, home=tmp_path / "home")
    for name, engine in (("local", "local"), ("cohort", "cohort"), ("both", "local")):
        prepare_run(settings, data_set=data_set, folder=tmp_path / name, engine=engine)
    run_simulation(tmp_path / "local")
    run_simulation(tmp_path / "cohort", memory_bytes=2**20)
    with monkeypatch.context() as patch:
        patch.setattr("server.progress.ProgressLine.tell", stop)
        with pytest.raises(KeyboardInterrupt):
            run_simulation(tmp_path / "both")
    run_simulation(tmp_path / "both", engine="cohort")

    local = model_of(tmp_path / "local")
    for name in ("cohort", "both"):
        model = model_of(tmp_path / name)
        assert model.keys() == local.keys()
        for key, value in local.items():
            torch.testing.assert_close(model[key], value, rtol=1e-5, atol=1e-6)
        rounds = [record_of(tmp_path / each).rounds for each in ("local", name)]
        assert [[site.epsilon for site in each.sites] for each in rounds[0]] == [
            [site.epsilon for site in each.sites] for each in rounds[1]
        ]


def stop(*_: object) -> None:
    raise KeyboardInterrupt
