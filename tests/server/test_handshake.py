"""The handshake: who says to be a site has that site's enrolled key, answers this very question, and runs this release."""

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.agent import answer_hello
from client.answering import answer_query
from client.app import SITE_KEY
from server.enrolment import enrol, read_enrolment, revoke, write_enrolment
from server.handshake import Enrolled, Introduction, judge_introduction, read_handshake, write_handshake
from server.strategy import FlowerTransport
from shared.errors import ConfigError, RunError
from shared.keys import PrivateKey, new_key, private_text, public_line, sign, write_secret
from shared.messages import PROTOCOL_VERSION, Hello, HelloRequest, OtherVersion, Refusal
from shared.record_names import HEADER, REFUSAL
from shared.version import VERSION
from shared.wire import decode_hello, decode_query, encode_hello_request, encode_reply
from simulations.engine.local import LocalGrid
from tests.client.asking import site_file

NONCE, OTHER_NONCE = "0" * 64, "1" * 64


def hello(name: str = "north", *, key: PrivateKey | None = None, nonce: str = NONCE, **fields: object) -> Hello:
    made = Hello(protocol_version=PROTOCOL_VERSION, site=name, modalities=("left",)).model_copy(update=fields)
    return made if key is None else made.model_copy(update={"signature": sign(key, made.signed_text(nonce))})


def enrolled(folder: Path, *names: str, days: int | None = None) -> dict[str, PrivateKey]:
    """Keys by name, enrolled in folder/enrolled."""
    keys = {name: new_key() for name in names}
    for name, key in keys.items():
        public = folder / f"{name}.pub"
        public.write_text(public_line(key.public_key(), name=name), encoding="utf-8")
        enrol(public, folder=folder / "enrolled", days=days)
    return keys


def site_with_key(folder: Path) -> Path:
    """Its settings name a key beside them."""
    path = site_file(folder)
    path.write_text(path.read_text(encoding="utf-8") + '\n[agent]\nkey = "key"\n', encoding="utf-8")
    return path


def judged(folder: Path, said: Hello, *, nonce: str = NONCE, taken: tuple[str, ...] = ()) -> Introduction:
    return judge_introduction(said, nonce=nonce, enrolled=Enrolled(folder / "enrolled"), taken=taken)


def test_an_introduction_signed_by_the_enrolled_key_is_accepted(tmp_path: Path) -> None:
    keys = enrolled(tmp_path, "north", "south")
    found = judged(tmp_path, hello("north", key=keys["north"]))
    assert (found.site, found.code, found.version) == ("north", None, VERSION)


def test_a_site_that_speaks_in_anothers_name_is_refused(tmp_path: Path) -> None:
    keys = enrolled(tmp_path, "north", "south")
    for said in (hello("north", key=keys["south"]), hello("north", key=new_key()), hello("north")):
        found = judged(tmp_path, said)
        assert (found.site, found.code) == (None, "wrong-signature")
        assert "north" in found.line


def test_a_replayed_introduction_is_refused(tmp_path: Path) -> None:
    keys = enrolled(tmp_path, "north")
    overheard = hello("north", key=keys["north"], nonce=NONCE)
    assert judged(tmp_path, overheard, nonce=NONCE).code is None
    assert judged(tmp_path, overheard, nonce=OTHER_NONCE).code == "wrong-signature"


@pytest.mark.parametrize(
    "changed",
    [{"site": "south"}, {"nominal_size": 7}, {"modalities": ("right",)}, {"frozen": ("*",)}, {"version": "0.4.99"}],
)
def test_nothing_that_was_signed_can_be_changed_on_the_way(tmp_path: Path, changed: dict[str, object]) -> None:
    keys = enrolled(tmp_path, "north", "south")
    said = hello("north", key=keys["north"]).model_copy(update=changed)
    assert judged(tmp_path, said).code == "wrong-signature"


def test_a_name_that_nobody_enrolled_or_that_was_revoked_is_refused(tmp_path: Path) -> None:
    keys = enrolled(tmp_path, "north", "south")
    assert judged(tmp_path, hello("west", key=new_key())).code == "not-enrolled"
    revoke("north", folder=tmp_path / "enrolled")
    assert judged(tmp_path, hello("north", key=keys["north"])).code == "not-enrolled"
    assert judged(tmp_path, hello("south", key=keys["south"])).code is None


def test_an_expired_key_is_refused_with_the_words_what_to_do(tmp_path: Path) -> None:
    keys = enrolled(tmp_path, "north", days=30)
    folder = tmp_path / "enrolled"
    assert judged(tmp_path, hello("north", key=keys["north"])).code is None
    over = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    write_enrolment(read_enrolment(folder, name="north").model_copy(update={"expires": over}), folder=folder)
    found = judged(tmp_path, hello("north", key=keys["north"]))
    assert (found.site, found.code) == ("north", "key-expired")
    assert "motet site key" in found.line


def test_a_second_site_of_one_name_is_refused_even_with_the_right_key(tmp_path: Path) -> None:
    keys = enrolled(tmp_path, "north")
    assert judged(tmp_path, hello("north", key=keys["north"]), taken=("north",)).code == "name-taken"


def test_simulated_sites_need_no_key(tmp_path: Path) -> None:
    assert judge_introduction(hello("north"), nonce=NONCE, enrolled=None, taken=()).code is None
    with pytest.raises(RunError, match="two sites are called 'north'"):
        judge_introduction(hello("north"), nonce=NONCE, enrolled=None, taken=("north",))


def test_a_deployment_without_its_folder_of_keys_accepts_nobody(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="no folder of enrolled keys"):
        Enrolled(tmp_path / "enrolled")


def test_a_site_answers_with_its_key_and_the_server_believes_it(tmp_path: Path) -> None:
    keys = enrolled(tmp_path, "north")
    write_secret(tmp_path / "key", private_text(keys["north"]))
    path = site_with_key(tmp_path)
    asked = HelloRequest(protocol_version=PROTOCOL_VERSION, version=VERSION, nonce=NONCE)
    said = decode_hello(answer_query(encode_hello_request(asked), site_file=path))
    assert isinstance(said, Hello)
    assert judged(tmp_path, said).code is None


def test_a_site_whose_key_is_gone_refuses_with_a_code_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = site_with_key(tmp_path)
    asked = HelloRequest(protocol_version=PROTOCOL_VERSION, version=VERSION, nonce=NONCE)
    assert answer_hello(path, asked=asked) == Refusal("settings-invalid")
    assert "the key cannot be read" in caplog.text


def test_a_site_that_is_not_accepted_tells_its_owner_why(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    asked = HelloRequest(protocol_version=PROTOCOL_VERSION, version=VERSION, nonce=NONCE, not_accepted="key-expired")
    assert answer_hello(site_file(tmp_path), asked=asked) == Refusal("key-expired")
    assert "the server did not accept this site: its key has expired" in caplog.text


@pytest.mark.parametrize(
    ("protocol_version", "version"),
    [(PROTOCOL_VERSION + 1, VERSION), (PROTOCOL_VERSION, "0.3.9"), (PROTOCOL_VERSION, "1.4.0"), (1, "")],
)
def test_both_sides_name_both_versions_where_they_do_not_match(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, protocol_version: int, version: str
) -> None:
    # a server of another version asks, in a form of its own
    question = f'{{"purpose":"hello","protocol_version":{protocol_version},"version":"{version}","new":[1]}}'
    answer = answer_query(RecordDict({HEADER: ConfigRecord({"json": question})}), site_file=site_file(tmp_path))
    word = answer[HEADER]
    assert isinstance(word, ConfigRecord)
    assert OtherVersion.model_validate_json(str(word["json"])) == OtherVersion(
        protocol_version=PROTOCOL_VERSION, version=VERSION
    )
    assert "version-mismatch" in caplog.text
    assert f"protocol {protocol_version}" in caplog.text
    assert f"{VERSION} (protocol {PROTOCOL_VERSION})" in caplog.text
    # a site of another version answers, in a form of its own
    said = decode_hello(RecordDict({HEADER: ConfigRecord({"json": question})}))
    assert said == OtherVersion(protocol_version=protocol_version, version=version)
    found = judge_introduction(said, nonce=NONCE, enrolled=None, taken=())
    assert found.code == "version-mismatch"
    assert f"protocol {protocol_version}" in found.line
    assert f"{VERSION} (protocol {PROTOCOL_VERSION})" in found.line


def test_patches_of_one_release_work_together(tmp_path: Path) -> None:
    patched = ".".join([*VERSION.split(".")[:2], "99"])
    said = decode_hello(encode_reply(hello("north", version=patched)))
    assert isinstance(said, Hello)
    asked = HelloRequest(protocol_version=PROTOCOL_VERSION, version=patched, nonce=NONCE)
    assert decode_query(encode_hello_request(asked)) == asked


def test_a_run_goes_on_with_the_accepted_and_the_others_are_told(tmp_path: Path) -> None:
    keys = enrolled(tmp_path, "north", "south")
    keys["west"] = new_key()
    told: dict[str, str] = {}
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        site, asked = str(context.node_config[SITE_KEY]), decode_query(message.content)
        assert isinstance(asked, HelloRequest)
        if asked.not_accepted is not None:
            told[site] = asked.not_accepted
            return Message(encode_reply(Refusal(asked.not_accepted)), reply_to=message)
        if site == "east":
            return Message(RecordDict(), reply_to=message)
        # south's node says to be north
        name = "north" if site == "south" else site
        return Message(encode_reply(hello(name, key=keys[site], nonce=asked.nonce)), reply_to=message)

    grid = LocalGrid(app, sites=[Path("north"), Path("south"), Path("west"), Path("east")])
    there = FlowerTransport(grid, enrolled=Enrolled(tmp_path / "enrolled"))
    assert [each.site for each in there.hello(expected=4, min_sites=1, timeout_s=1.0)] == ["north"]
    codes = {None, "wrong-signature", "not-enrolled", "no-introduction"}
    assert {each.code for each in there.introductions} == codes
    list(grid.pull_messages(list(grid._pending)))
    assert told == {"south": "wrong-signature", "west": "not-enrolled"}

    write_handshake(there.introductions, folder=tmp_path)
    found = read_handshake(tmp_path)
    assert found is not None
    assert list(found.introductions) == there.introductions


def test_too_few_accepted_sites_end_the_run_with_the_reasons(tmp_path: Path) -> None:
    enrolled(tmp_path, "north")
    app = ClientApp()

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return Message(encode_reply(hello("north", key=new_key())), reply_to=message)

    there = FlowerTransport(LocalGrid(app, sites=[Path("a")]), enrolled=Enrolled(tmp_path / "enrolled"))
    with pytest.raises(RunError, match=r"min_sites asks for 1; who says to be north was not accepted: its key is not"):
        there.hello(expected=1, min_sites=1, timeout_s=0.1)


def test_a_hello_request_that_asks_for_more_is_no_request(tmp_path: Path) -> None:
    asked = HelloRequest(protocol_version=PROTOCOL_VERSION, version=VERSION, nonce=NONCE).model_dump()
    for change in ({"rows": "all"}, {"nonce": "short"}, {"not_accepted": "../../etc"}):
        records = RecordDict({HEADER: ConfigRecord({"json": json.dumps({**asked, **change})})})
        answer = answer_query(records, site_file=site_file(tmp_path))
        assert answer[REFUSAL] == ConfigRecord({"code": "message-invalid"})


def test_a_key_enrolled_under_a_name_that_is_a_path_is_refused(tmp_path: Path) -> None:
    public = tmp_path / "x.pub"
    for name in ("../north", "a/b", ".hidden", "", "a" * 65):
        public.write_text(public_line(new_key().public_key(), name=name), encoding="utf-8")
        with pytest.raises(ConfigError, match="allowed: letters, digits"):
            enrol(public, folder=tmp_path / "enrolled", days=None)
