"""Latecomers: a site that comes on line during a run is let in by its key; nobody takes another's place, or is waited for."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
from flwr.app import ArrayRecord, Context, Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.superlink.grid import HttpGrid

from client.app import SITE_KEY
from server import latecomers, pulling
from server.enrolment import enrol, revoke
from server.handshake import Enrolled, Introduction
from server.judgement import Failure
from server.strategy import FlowerTransport
from shared.errors import RunError
from shared.keys import PrivateKey, new_key, public_line, sign
from shared.messages import PROTOCOL_VERSION, Hello, HelloRequest, OtherVersion, Refusal
from shared.packed_arrays import is_packed
from shared.record_names import ARRAYS
from shared.version import VERSION
from shared.wire import decode_query, encode_reply
from simulations.engine.local import LocalGrid
from tests.server.test_strategy import one_request

Answers = dict[str, Callable[[HelloRequest], RecordDict]]


class Clock:
    """Goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


class OpenGrid(LocalGrid):
    """Nodes that come and go; an answer comes once it is said to."""

    def __init__(self, app: ClientApp, names: Iterable[str]) -> None:
        super().__init__(app, sites=[Path(name) for name in names])
        self.node = {path.name: node for node, path in self._sites.items()}
        self.there: set[str] = set()
        self.is_slow = False
        self.silent: set[str] = set()
        self.asked: list[str] = []
        """names of the nodes of all messages, in the order in which they were sent"""

    def get_node_ids(self) -> Iterable[int]:
        return [self.node[name] for name in self.there]

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        self.asked += [self._sites[each.metadata.dst_node_id].name for each in kept]
        return super().push_messages(kept)

    def pull_messages(self, message_ids: Iterable[str]):  # type: ignore[no-untyped-def]
        names = list(message_ids)
        nodes = {self._sites[self._pending[name].metadata.dst_node_id].name for name in names}
        return [] if self.is_slow or nodes & self.silent else super().pull_messages(names)


def honest(name: str, *, key: PrivateKey) -> Callable[[HelloRequest], RecordDict]:
    def answer(asked: HelloRequest) -> RecordDict:
        if asked.not_accepted is not None:
            return encode_reply(Refusal(asked.not_accepted))
        made = Hello(protocol_version=PROTOCOL_VERSION, site=name, modalities=("left",))
        return encode_reply(made.model_copy(update={"signature": sign(key, made.signed_text(asked.nonce))}))

    return answer


class FarGrid(HttpGrid):
    """The same nodes over a network, where a reply to training is there at the third look."""

    def __init__(self, inner: OpenGrid, *, clock: Clock) -> None:
        self._inner, self._clock, self._looks = inner, clock, 0

    def get_node_ids(self) -> Iterable[int]:
        return self._inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        return self._inner.push_messages(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        names = list(message_ids)
        if self._inner._pending[names[0]].metadata.message_type == MessageType.TRAIN and self._looks < 3:
            self._looks += 1
            self._clock.now += 5
            return []
        return list(self._inner.pull_messages(names))


class Deployed:
    """A transport over an open grid, with what its nodes answer and what was noted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.keys = {name: new_key() for name in ("north", "south", "west")}
        for name, key in self.keys.items():
            (folder / f"{name}.pub").write_text(public_line(key.public_key(), name=name), encoding="utf-8")
            enrol(folder / f"{name}.pub", folder=folder / "enrolled", days=None)
        self.answers: Answers = {name: honest(name, key=key) for name, key in self.keys.items()}
        # two nodes more, which say what a test has them say
        self.answers |= {name: honest("north", key=self.keys["north"]) for name in ("fourth", "fifth")}
        self.noted: list[list[Introduction]] = []
        app = ClientApp()

        @app.query()
        def query(message: Message, context: Context) -> Message:
            asked = decode_query(message.content)
            assert isinstance(asked, HelloRequest)
            return Message(self.answers[str(context.node_config[SITE_KEY])](asked), reply_to=message)

        @app.train()
        def train(message: Message, context: Context) -> Message:
            return Message(encode_reply(Refusal("refused")), reply_to=message)

        self.grid = OpenGrid(app, self.answers)
        self.transport = FlowerTransport(self.grid, enrolled=Enrolled(folder / "enrolled"), note=self.noted.append)

    def begin(self, *names: str) -> None:
        """With these on line."""
        self.grid.there = set(names)
        found = self.transport.hello(expected=len(names), min_sites=1, timeout_s=0.1)
        assert {site.site for site in found} <= set(names)

    def come(self) -> list[str]:
        """Names of the sites that come in at the next two looks: one to ask, one to hear."""
        return [site.site for _ in range(2) for site in self.transport.newcomers()]

    @property
    def codes(self) -> list[str | None]:
        return [each.code for each in self.transport.introductions]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(latecomers, "time", made)
    return made


@pytest.fixture
def deployed(tmp_path: Path, clock: Clock) -> Deployed:
    return Deployed(tmp_path)


def test_a_site_that_comes_on_line_is_asked_at_one_look_and_in_at_the_next(deployed: Deployed) -> None:
    deployed.begin("north")
    assert deployed.transport.newcomers() == []
    deployed.grid.there |= {"south"}
    assert deployed.transport.newcomers() == []
    assert [site.site for site in deployed.transport.newcomers()] == ["south"]
    assert deployed.transport.online() == {"north", "south"}
    assert {each.site for each in deployed.noted[-1]} == {"north", "south"}
    # and is asked nothing more
    assert deployed.come() == []
    assert deployed.grid.asked == ["north", "south"]


def test_an_answer_is_not_waited_for_and_taken_when_it_comes(deployed: Deployed, clock: Clock) -> None:
    deployed.begin("north")
    deployed.grid.there |= {"south"}
    deployed.grid.is_slow = True
    for _ in range(10):
        assert deployed.transport.newcomers() == []
        clock.now += 12
    assert deployed.grid.asked.count("south") == 1
    deployed.grid.is_slow = False
    assert [site.site for site in deployed.transport.newcomers()] == ["south"]


def test_a_node_that_says_nothing_is_asked_again_and_forgotten_when_it_goes(deployed: Deployed, clock: Clock) -> None:
    deployed.begin("north")
    deployed.grid.there |= {"south"}
    deployed.grid.is_slow = True
    for _ in range(60):
        deployed.transport.newcomers()
        clock.now += 10
    assert deployed.grid.asked.count("south") == 4  # in 600 s, with 150 s of patience
    deployed.grid.there = {"north"}
    clock.now += latecomers.AGAIN_S
    deployed.transport.newcomers()
    asked = deployed.transport._latecomers
    assert (asked._questions, asked._answers, asked._heard) == ({}, {}, {})


def test_whose_agent_was_not_running_is_asked_again_a_minute_later(deployed: Deployed, clock: Clock) -> None:
    real = deployed.answers["south"]
    deployed.answers["south"] = lambda asked: encode_reply(Refusal("agent-away"))
    deployed.begin("north", "south")
    assert deployed.codes == [None, "agent-away"]
    deployed.answers["south"] = real
    clock.now += latecomers.AGAIN_S - 1
    assert deployed.come() == []
    clock.now += 2
    assert deployed.come() == ["south"]
    assert deployed.codes == [None, None]


def test_the_minute_begins_with_the_answer(deployed: Deployed, clock: Clock) -> None:
    """An agent that is away is asked for a minute by its own node: no question is to come while that lasts."""
    deployed.answers["south"] = lambda asked: encode_reply(Refusal("agent-away"))
    deployed.begin("north")
    deployed.grid.there |= {"south"}
    deployed.transport.newcomers()
    clock.now += 70
    for _ in range(6):
        deployed.transport.newcomers()
        clock.now += 9
    assert deployed.grid.asked.count("south") == 1
    clock.now += 9
    deployed.transport.newcomers()
    assert deployed.grid.asked.count("south") == 2


@pytest.mark.parametrize("fault", ["another-key", "revoked", "another-version"])
def test_whoever_is_not_accepted_is_told_once_and_asked_at_most_once_a_minute(
    deployed: Deployed, clock: Clock, fault: str
) -> None:
    deployed.begin("north")
    if fault == "another-key":
        deployed.answers["south"] = honest("north", key=deployed.keys["south"])
    elif fault == "revoked":
        revoke("south", folder=deployed.folder / "enrolled")
    else:
        other = OtherVersion(protocol_version=PROTOCOL_VERSION + 1, version=VERSION)
        deployed.answers["south"] = lambda asked: encode_reply(other)
    deployed.grid.there |= {"south"}
    for _ in range(61):
        assert deployed.transport.newcomers() == []
        clock.now += 10
    code = {"another-key": "wrong-signature", "revoked": "not-enrolled", "another-version": "version-mismatch"}[fault]
    assert deployed.codes == [None, code]
    sent = [decode_query(each.content) for each in deployed.grid._pending.values()]
    # nobody pulls what it answers to that
    told = [each.not_accepted for each in sent if isinstance(each, HelloRequest) and each.not_accepted]
    assert told == [code]
    assert 8 <= deployed.grid.asked.count("south") - len(told) <= 11  # in 610 s
    # said once, though it was heard again and again
    assert len(deployed.noted) == 1
    deployed.grid.there = {"north"}
    deployed.transport.newcomers()
    assert deployed.codes == [None]


def test_a_site_is_taken_from_another_node_only_while_its_own_is_off_line(deployed: Deployed, clock: Clock) -> None:
    deployed.begin("north", "south")
    old = deployed.grid.node["north"]
    deployed.grid.there |= {"fourth"}
    assert deployed.come() == []
    assert "name-taken" in deployed.codes
    assert deployed.transport._nodes["north"] == old
    deployed.grid.there -= {"north"}
    clock.now += latecomers.AGAIN_S
    assert deployed.come() == ["north"]
    assert deployed.transport._nodes == {"north": deployed.grid.node["fourth"], "south": deployed.grid.node["south"]}
    assert deployed.codes == [None, None]
    # the old one is a stranger when it comes back
    deployed.grid.there |= {"north"}
    clock.now += latecomers.AGAIN_S
    assert deployed.come() == []
    assert deployed.transport._nodes["north"] == deployed.grid.node["fourth"]


def test_of_two_nodes_with_one_key_one_is_in(deployed: Deployed, clock: Clock) -> None:
    deployed.begin("south", "north")
    deployed.grid.there = {"south", "fourth", "fifth"}
    assert deployed.come() == ["north"]
    held = list(deployed.transport._nodes.values())
    assert len(held) == len(set(held)) == 2
    assert sorted(deployed.codes, key=str) == [None, None, "name-taken"]


def test_a_node_with_the_keys_of_two_sites_is_one_of_them(deployed: Deployed, clock: Clock) -> None:
    """Also where a round is so long that it could be asked twice meanwhile."""
    deployed.begin("north")
    deployed.grid.there |= {"south"}
    for name in ("south", "west"):
        deployed.answers["south"] = honest(name, key=deployed.keys[name])
        for _ in range(2):
            clock.now += latecomers.AGAIN_S
            deployed.transport._look_meanwhile()
    assert deployed.come() == ["south"]
    assert deployed.transport._nodes.keys() == {"north", "south"}


def test_an_introduction_to_an_earlier_question_is_refused(deployed: Deployed, clock: Clock) -> None:
    deployed.begin("north")
    heard: list[str] = []
    real = deployed.answers["south"]

    def overheard(asked: HelloRequest) -> RecordDict:
        heard.append(asked.nonce)
        return real(asked.model_copy(update={"nonce": heard[0]}))

    deployed.answers["south"] = overheard
    deployed.grid.there |= {"south"}
    assert deployed.come() == ["south"]
    # the same answer to the question of another time
    deployed.grid.there = {"north"}
    deployed.transport._nodes.pop("south")
    clock.now += latecomers.AGAIN_S
    deployed.transport.newcomers()
    deployed.grid.there |= {"south"}
    assert deployed.come() == []
    assert len(set(heard)) == 2
    assert "wrong-signature" in deployed.codes


def test_strangers_hold_nobody_up_and_keep_nobody_out(
    deployed: Deployed, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latecomers, "_MOST_ASKED", 2)
    deployed.grid.silent = {"south", "west", "fourth"}
    # behind all of them by the number of its node
    deployed.answers["fifth"] = honest("west", key=deployed.keys["west"])
    deployed.begin("north")
    deployed.grid.there |= {"fifth", *deployed.grid.silent}
    came = list[str]()
    for _ in range(20):
        came += [site.site for site in deployed.transport.newcomers()]
        assert len(deployed.transport._latecomers._questions) <= 2
        clock.now += 30
    assert came == ["west"]


def test_simulated_sites_are_asked_once(tmp_path: Path, clock: Clock) -> None:
    """They are all there from the start: no look costs anything, and none changes a result."""
    deployed = Deployed(tmp_path)
    deployed.transport = FlowerTransport(deployed.grid)
    deployed.begin("north")
    deployed.grid.there |= {"south"}
    deployed.grid.get_node_ids = None  # type: ignore[method-assign, assignment]
    assert deployed.come() == []
    deployed.transport._look_meanwhile()
    assert deployed.grid.asked == ["north"]


def test_a_site_of_the_plan_whose_node_is_not_there_is_silent(deployed: Deployed) -> None:
    """As after a resumption without it."""
    deployed.begin("north")
    found = dict(deployed.transport.train(one_request("north", "south"), timeout_s=1.0))
    assert found["south"] == Failure("late", "no-reply")
    assert "south" not in deployed.grid.asked


def test_who_comes_in_the_middle_of_a_round_is_asked_in_it_and_in_once_it_is_over(
    deployed: Deployed, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pulling, "_POLL_S", 0.001)
    deployed.transport._grid = far = FarGrid(deployed.grid, clock=clock)
    deployed.transport._latecomers._grid = far
    deployed.begin("north")
    deployed.grid.there |= {"south"}
    answers = []
    for site, answer in deployed.transport.train(one_request("north"), timeout_s=60.0):
        answers.append((site, answer))
        # while a round is on, nobody comes in, and no site's node is another
        assert deployed.transport._nodes.keys() == {"north"}
    assert answers == [("north", Refusal("refused"))]
    assert [site.site for site in deployed.transport.newcomers()] == ["south"]


def test_over_a_network_all_sites_share_one_packed_model(deployed: Deployed, clock: Clock) -> None:
    sent = list[Message]()

    class Listening(FarGrid):
        def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
            sent.extend(came := list(messages))
            return super().push_messages(came)

    deployed.transport._grid = Listening(deployed.grid, clock=clock)
    deployed.begin("north", "south")
    sent.clear()
    assert len(dict(deployed.transport.train(one_request("north", "south"), timeout_s=60.0))) == 2
    first, second = (message.content[ARRAYS] for message in sent)
    assert first is second
    assert isinstance(first, ArrayRecord)
    assert is_packed(first)


def test_too_few_at_the_start_are_an_error_still(deployed: Deployed) -> None:
    deployed.grid.there = {"north"}
    with pytest.raises(RunError, match="min_sites asks for 2"):
        deployed.transport.hello(expected=2, min_sites=2, timeout_s=0.1)
