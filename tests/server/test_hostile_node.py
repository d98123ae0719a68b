"""A hostile site's node: what Flower cannot decode, who it says to be, and what it says of itself."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import cast

import httpx
import pytest
from flwr.app import Array, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects
from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents, validate_object_content
from flwr.superlink.grid import HttpGrid
from hypothesis import given
from hypothesis import strategies as st

from client.app import SITE_KEY
from server.enrolment import enrol
from server.handshake import Enrolled
from server.judgement import Failure
from server.plan import make_plan
from server.strategy import FlowerTransport
from shared.keys import PrivateKey, new_key, public_line, sign
from shared.messages import PROTOCOL_VERSION, Hello, HelloRequest, TrainReply
from shared.model.multimodal import build_model
from shared.record_names import HEADER
from shared.wire import decode_query, encode_reply
from simulations.engine.local import LocalGrid
from tests.server.conftest import small_run
from tests.server.test_hostile_site import ASKED, FUZZ, UPDATE, VALUES, honest, transport

ARRAY = Array(UPDATE["w"].numpy())


class DistantGrid(HttpGrid):
    """Flower's Grid over a network, but for the network: replies are what a SuperLink would hand over for each site."""

    def __init__(self, inner: LocalGrid, *, rewritten: dict[int, bytes]) -> None:
        self.inner, self.rewritten = inner, rewritten
        """node -> what it pushed in place of its reply"""
        self.is_down = False
        self._asked: dict[str, Message] = {}

    def get_node_ids(self) -> Iterable[int]:
        return self.inner.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        kept = list(messages)
        names = list(self.inner.push_messages(kept))
        self._asked.update(zip(names, kept, strict=True))
        return names

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """As HttpGrid does once it has the bytes; the SuperLink has looked at each object as it does."""
        if self.is_down:
            raise httpx.ConnectError("the SuperLink is away")
        pulled = []
        for name in message_ids:
            node = self._asked[name].metadata.dst_node_id
            if node in self.rewritten:
                root, contents = "0" * 64, {"0" * 64: self.rewritten[node]}
            else:
                (reply,) = self.inner.pull_messages([name])
                objects = get_all_nested_objects(reply)
                root, contents = reply.object_id, {key: each.deflate() for key, each in objects.items()}
            for content in contents.values():
                validate_object_content(content)
            message = cast(Message, inflate_object_from_contents(root, contents))
            message.metadata.__dict__["_message_id"] = root
            pulled.append(message)
        return pulled


def pushed(kind: str, body: bytes) -> bytes:
    return f"{kind}  {len(body)}".encode() + b"\0" + body


@pytest.mark.parametrize(
    "content",
    [
        pushed("Message", b"\xff\xff\xff"), pushed("Message", b""), pushed("RecordDict", b"{}"), pushed("Array", b"x"),
        pushed("ConfigRecord", b"\xff"), pushed("ArrayRecord", b"[" * 5000), ARRAY.deflate(),
    ],
)  # fmt: skip
def test_a_reply_that_flower_cannot_decode_is_one_sites_failure(content: bytes) -> None:
    """The SuperLink's own check passes each of these on."""
    inner = cast(LocalGrid, transport(honest())._grid)
    nodes = dict(zip(("a", "bad", "c"), inner.get_node_ids(), strict=True))
    there = FlowerTransport(DistantGrid(inner, rewritten={nodes["bad"]: content}))
    there._nodes = nodes
    found = dict(there.train(dict.fromkeys(nodes, ASKED), timeout_s=1.0))
    assert isinstance(found["a"], TrainReply)
    assert isinstance(found["c"], TrainReply)
    assert isinstance(found["bad"], Failure)


def test_a_superlink_that_is_away_is_no_sites_failure() -> None:
    inner = cast(LocalGrid, transport(honest())._grid)
    there = FlowerTransport(grid := DistantGrid(inner, rewritten={}))
    there._nodes, grid.is_down = dict(zip(("a", "bad", "c"), inner.get_node_ids(), strict=True)), True
    with pytest.raises(httpx.ConnectError):
        list(there.train({"a": ASKED}, timeout_s=1.0))


def introduced(folder: Path, answers: dict[str, Callable[[HelloRequest], RecordDict]]) -> FlowerTransport:
    """Sites that introduce themselves as the test says."""
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        asked = decode_query(message.content)
        assert isinstance(asked, HelloRequest)
        return Message(answers[str(context.node_config[SITE_KEY])](asked), reply_to=message)

    grid = LocalGrid(app, sites=[Path(name) for name in answers])
    return FlowerTransport(grid, enrolled=Enrolled(folder / "enrolled"))


def honest_hello(name: str, *, key: PrivateKey) -> Callable[[HelloRequest], RecordDict]:
    def answer(asked: HelloRequest) -> RecordDict:
        made = Hello(protocol_version=PROTOCOL_VERSION, site=name, modalities=("left", "right"), nominal_size=30)
        return encode_reply(made.model_copy(update={"signature": sign(key, made.signed_text(asked.nonce))}))

    return answer


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, PrivateKey]]:
    folder, made = tmp_path_factory.mktemp("keys"), {name: new_key() for name in ("north", "bad")}
    for name, key in made.items():
        (folder / f"{name}.pub").write_text(public_line(key.public_key(), name=name), encoding="utf-8")
        enrol(folder / f"{name}.pub", folder=folder / "enrolled", days=None)
    return folder, made


HELLO_FIELDS = st.sampled_from([*Hello.model_fields, "purpose", "rows"])


@FUZZ
@given(field=HELLO_FIELDS, value=VALUES, is_signed=st.booleans())
def test_any_introduction(keys: tuple[Path, dict[str, PrivateKey]], field: str, value: object, is_signed: bool) -> None:
    """By a site whose key is enrolled, too: nobody else is held up, no name but its own is its own, and a plan is made."""
    folder, held = keys

    def answer(asked: HelloRequest) -> RecordDict:
        made = Hello(protocol_version=PROTOCOL_VERSION, site="bad", modalities=("left",), nominal_size=30)
        said = {**made.model_dump(mode="json"), field: value}
        try:
            twisted = Hello.model_validate_json(json.dumps(said))
        except ValueError:
            twisted = made
        if is_signed and field != "signature":
            said["signature"] = sign(held["bad"], twisted.signed_text(asked.nonce))
        return RecordDict({HEADER: ConfigRecord({"json": json.dumps(said)})})

    there = introduced(folder, {"north": honest_hello("north", key=held["north"]), "bad": answer})
    found = there.hello(expected=2, min_sites=1, timeout_s=1.0)
    assert {each.site for each in found} <= {"north", "bad"}
    assert "north" in {each.site for each in found}
    for each in there.introductions:
        assert each.line.isprintable()
        assert len(each.line) < 600
    run = small_run()
    assert "north" in make_plan(found, run=run, model=build_model(run)).site_names


def test_a_node_that_answers_as_another_node_takes_no_question_from_it(
    keys: tuple[Path, dict[str, PrivateKey]],
) -> None:
    """Which node a reply is from stands in the reply, as that node wrote it; what counts is the question it answers."""
    folder, held = keys
    there = introduced(
        folder, {"bad": honest_hello("bad", key=held["bad"]), "north": honest_hello("north", key=held["north"])}
    )
    grid = cast(LocalGrid, there._grid)
    bad, north = grid.get_node_ids()
    delivered = grid._deliver

    def lying(message: Message) -> Message:
        reply = delivered(message)
        if message.metadata.dst_node_id == bad:
            reply.metadata.__dict__["_src_node_id"] = north
        return reply

    grid._deliver = lying  # type: ignore[method-assign]
    assert [each.site for each in there.hello(expected=2, min_sites=1, timeout_s=1.0)] == ["bad", "north"]
    assert there._nodes == {"bad": bad, "north": north}
