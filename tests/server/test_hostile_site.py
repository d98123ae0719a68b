"""A hostile site at the server: whatever its reply holds, that site has failed, and the round is the one of the others."""

import copy
import io
import json
import pickle
import zipfile
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from client.app import SITE_KEY
from server.checkpoint import Progress
from server.intake import Intake
from server.judgement import Failure, Reply
from server.plan import Plan
from server.strategy import FlowerTransport
from shared.messages import (
    PROTOCOL_VERSION,
    Hello,
    PrivacyStatement,
    ReplyHeader,
    RequestHeader,
    TrainRequest,
)
from shared.model.exchange import Exchange
from shared.record_names import ARRAYS, HEADER, REFUSAL
from shared.wire import decode_arrays
from simulations.engine.local import LocalGrid
from tests.tiny import tiny_config

FUZZ = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
RUN = tiny_config(private=True)
WEIGHTS = {"w": torch.zeros(2, 3), "scale": torch.zeros(())}
UPDATE = {"w": torch.full((2, 3), 0.25), "scale": torch.tensor(0.5)}
ASKED = TrainRequest(
    RequestHeader(protocol_version=PROTOCOL_VERSION, run=RUN, run_id="r", round_number=3, planned_rounds=9), WEIGHTS
)
_LOCAL = RUN.local_privacy
assert _LOCAL is not None
HONEST = ReplyHeader(
    protocol_version=PROTOCOL_VERSION,
    run_id="r",
    round_number=3,
    nominal_size=40,
    privacy=PrivacyStatement(
        unit="record",
        epsilon=1.5,
        delta=_LOCAL.delta,
        clip_norm=_LOCAL.clip_norm,
        noise_multiplier=1.1,
        sample_rate=RUN.training.sampling(40),
        steps_per_round=RUN.training.steps(40),
        accountant=_LOCAL.accountant,
        reproducible_noise=False,
    ),
)
TEXT = HONEST.model_dump_json()
CODES = {"message-invalid", "another-round", "privacy-differs", "fields-differ"}
"""every way in which a reply may be found wanting; "message-unreadable", where nobody knows how, is not among them"""
Said = Reply


def honest() -> RecordDict:
    return RecordDict(
        {HEADER: ConfigRecord({"json": TEXT}), ARRAYS: ArrayRecord({n: Array(v.numpy()) for n, v in UPDATE.items()})}
    )


def transport(hostile: RecordDict) -> FlowerTransport:
    """Two honest sites and one that answers what the test says."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        is_hostile = str(context.node_config[SITE_KEY]) == "bad"
        return Message(hostile if is_hostile else honest(), reply_to=message)

    grid = LocalGrid(app, sites=[Path(name) for name in ("a", "bad", "c")])
    there = FlowerTransport(grid)
    there._nodes = dict(zip(("a", "bad", "c"), grid.get_node_ids(), strict=True))
    return there


def round_of(hostile: RecordDict | None) -> tuple[str, str | None, dict[str, list[float]]]:
    """What became of the hostile site in a round of three, and the model's change; None: it is not asked."""
    names = ("a", "bad", "c") if hostile is not None else ("a", "c")
    intake = Intake(Progress(weights=dict(WEIGHTS)), run=RUN, central=None)
    for site, reply in transport(honest() if hostile is None else hostile).train(
        dict.fromkeys(names, ASKED), timeout_s=1.0
    ):
        intake.take(site, reply, request=ASKED)
    settled = intake.settle()
    assert settled is not None
    hellos = tuple(Hello(protocol_version=PROTOCOL_VERSION, site=name, modalities=("left",)) for name in names)
    exchanges = dict.fromkeys(names, Exchange(tuple(WEIGHTS), ()))
    lines = intake.lines(Plan(hellos, rounds=(names,) * 3, planned=dict.fromkeys(names, 3), exchanges=exchanges))
    assert [line.outcome for line in lines if line.site != "bad"] == ["used", "used"]
    line = next((line for line in lines if line.site == "bad"), None)
    change = {name: value.tolist() for name, value in settled.items()}
    return (line.outcome, line.code, change) if line is not None else ("", None, change)


WITHOUT = round_of(None)[2]


def check(hostile: RecordDict) -> tuple[str, str | None]:
    """Left out with a code, and the model is that of the others; or an ordinary update of numbers that can be."""
    outcome, code, change = round_of(hostile)
    if outcome == "used":
        held = decode_arrays(hostile, shapes=ASKED.update_shapes)
        for name, values in change.items():
            assert np.allclose(values, np.mean([UPDATE[name].numpy()] * 2 + [held[name].numpy()], axis=0), rtol=1e-4)
        return outcome, code
    assert outcome == ("refused" if REFUSAL in hostile and code not in CODES else "invalid")
    assert outcome == "refused" or code in CODES
    assert change == WITHOUT
    return outcome, code


def with_header(text: object) -> RecordDict:
    return RecordDict({HEADER: ConfigRecord({"json": cast(str, text)}), ARRAYS: honest()[ARRAYS]})


def with_arrays(**arrays: Array) -> RecordDict:
    return RecordDict(
        {
            HEADER: ConfigRecord({"json": TEXT}),
            ARRAYS: ArrayRecord({**dict(cast(ArrayRecord, honest()[ARRAYS])), **arrays}),
        }
    )


def npy(header: bytes, data: bytes = b"", *, version: bytes = b"\1\0") -> bytes:
    length = len(header).to_bytes(2 if version == b"\1\0" else 4, "little")
    return b"\x93NUMPY" + version + length + header + data


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, w=UPDATE["w"].numpy())
    return file.getvalue()


def bomb() -> bytes:
    """A few hundred bytes that are a gigabyte when they are unpacked."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr("w.npy", b"\0" * 10_000_000)
    return file.getvalue()


FLOATS = b"{'descr': '<f4', 'fortran_order': False, 'shape': %s, }\n"


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\x93NUMPY", b"\x93NUMPY\1\0\xff\xff", archive(), bomb(), b"PK\x03\x04abc", b"PK\x05\x06" + bytes(18),
        pickle.dumps({"a": 1}),
        npy(FLOATS % b"(10000000000000,)"), npy(FLOATS % (b"(" + b"9" * 25 + b",)")), npy(FLOATS % b"(-2, -3)"),
        npy(FLOATS % (b"(" + b"9" * 5000 + b",)")), npy(FLOATS % (b"(" + b"1" * 60_000 + b"x,)")),
        npy(FLOATS % b"(True,)", bytes(4)), npy(FLOATS % b"(2, 3)", bytes(24) + b"more"), npy(FLOATS % b"(2, 3)", bytes(20)),
        npy(b"{'descr':'<f4',\n((((\n"), npy(b"'''\n"), npy(b"(" * 3000 + b"\n"), npy(b"-" * 3500 + b"1\n"),
        npy(b"{[]:1}\n"), npy(b"{1:1,'a':2}\n"), npy(b"\0\0\n"), npy(b"\xff\n", version=b"\3\0"),
        npy(b"{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }\n", pickle.dumps([1])),
        npy(b"{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3), }\n", bytes(24)),
        npy(b"{'descr': ('<f4', (1000000000,)), 'fortran_order': False, 'shape': (2, 3), }\n"),
    ],
)  # fmt: skip
def test_bytes_that_numpy_would_stumble_over_are_refused(data: bytes) -> None:
    """Among them those that make numpy's own reader raise eight kinds of error, or take memory for what is claimed."""
    assert check(with_arrays(w=Array("float32", (2, 3), "numpy.ndarray", data))) == ("invalid", "message-invalid")


@pytest.mark.parametrize("order", ["C", "F"])
def test_numbers_that_numpy_saved_are_read_in_either_order(order: str) -> None:
    values = np.array(np.arange(6.0).reshape(2, 3), dtype=np.float32, order=cast("None", order))
    came = decode_arrays(with_arrays(w=Array(values)), shapes=ASKED.update_shapes)
    assert came["w"].tolist() == [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]]
    assert came["w"].is_contiguous()


@FUZZ
@given(data=st.binary(max_size=300))
def test_any_bytes_in_place_of_numbers(data: bytes) -> None:
    check(with_arrays(w=Array("float32", (2, 3), "numpy.ndarray", data)))


@FUZZ
@given(flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_any_flipped_bytes_of_an_array(flips: list[tuple[int, int]]) -> None:
    """Numbers that came out finite are numbers; a header that was hit is none."""
    data = bytearray(Array(UPDATE["w"].numpy()).data)
    for place, flip in flips:
        data[place % len(data)] ^= flip
    check(with_arrays(w=Array("float32", (2, 3), "numpy.ndarray", bytes(data))))


SHAPES = st.lists(st.integers(-2, 2**63 - 1), max_size=5).map(tuple)


@FUZZ
@given(dtype=st.sampled_from(["float32", "float64", "object", "int64", "", "float32\0"]), shape=st.one_of(SHAPES, st.just((2, 3))),
       stype=st.sampled_from(["numpy.ndarray", "torch.Tensor", "pickle", ""]), name=st.sampled_from(["w", "scale", "rows", "", "../w"]))  # fmt: skip
def test_any_claim_about_an_array(dtype: str, shape: tuple[int, ...], stype: str, name: str) -> None:
    check(with_arrays(**{name: Array(dtype, shape, stype, Array(UPDATE["w"].numpy()).data)}))


@FUZZ
@given(values=st.lists(st.floats(width=32), min_size=6, max_size=6))
def test_any_numbers(values: list[float]) -> None:
    held = np.array(values, np.float32).reshape(2, 3)
    outcome, _ = check(with_arrays(w=Array(held)))
    assert (outcome == "used") == bool((np.abs(held) <= 1e9).all())


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.just(10**4000)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=8), inner, max_size=3)),
    max_leaves=5,
)
FIELDS = st.sampled_from(
    [(name,) for name in json.loads(TEXT)] + [("privacy", name) for name in json.loads(TEXT)["privacy"]] + [("rows",)]
)


@FUZZ
@given(field=FIELDS, value=VALUES)
def test_any_field_of_a_header(field: tuple[str, ...], value: object) -> None:
    header = json.loads(TEXT)
    table = header
    for name in field[:-1]:
        table = table[name]
    table[field[-1]] = value
    check(with_header(json.dumps(header)))


@FUZZ
@given(
    text=st.one_of(st.text(max_size=200), VALUES.map(json.dumps), st.integers(0, len(TEXT) - 1).map(TEXT.__getitem__))
)
def test_any_text_for_a_header(text: str) -> None:
    assert check(with_header(text)) == ("invalid", "message-invalid")


@pytest.mark.parametrize(
    "text",
    [
        TEXT + " " * 2_000_000, "[" * 100_000, '{"run_id":' * 20_000, "\ud800",
        TEXT.replace('"nominal_size":40', '"nominal_size":1' + "0" * 5000), 7, 1.5, b"\x80\x04.", [1, 2],
    ],
)  # fmt: skip
def test_a_header_that_would_be_too_much_to_read_is_refused(text: object) -> None:
    outcome, code = check(with_header(text))
    assert (outcome, code) == ("invalid", "message-invalid")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"run_id": "another"}, "another-round"),
        ({"round_number": 2}, "another-round"),
        ({"round_number": 4}, "another-round"),
        ({"privacy": None}, "privacy-differs"),
        ({"nominal_size": 10**30}, "fields-differ"),
        ({"unclipped_share": 0.5}, "fields-differ"),
        ({"is_within_clip": True}, "fields-differ"),
        ({"protocol_version": "4"}, "used"),
        ({"site": "a"}, "message-invalid"),
    ],
)
def test_a_reply_of_another_run_or_round_or_with_more_in_it_is_left_out(change: dict[str, object], code: str) -> None:
    outcome, said = check(with_header(json.dumps({**json.loads(TEXT), **change})))
    assert (said or outcome) == code


def records() -> st.SearchStrategy[RecordDict]:
    """Records of every kind under any name."""
    config = st.dictionaries(st.sampled_from(["json", "code", "x", ""]), st.one_of(st.text(max_size=30), st.integers(-9, 9), st.binary(max_size=9)), max_size=3).map(lambda table: ConfigRecord(dict(table)))  # fmt: skip
    metric = st.dictionaries(st.text(max_size=5), st.floats(), max_size=2).map(lambda table: MetricRecord(dict(table)))
    arrays = st.just(honest()[ARRAYS]).map(copy.deepcopy)
    name = st.one_of(st.sampled_from([HEADER, ARRAYS, REFUSAL]), st.text(max_size=10))
    held = st.dictionaries(name, st.one_of(config, metric, arrays), max_size=4)
    return held.map(lambda found: RecordDict(dict(found)))


@FUZZ
@given(came=records())
def test_any_records(came: RecordDict) -> None:
    outcome, _ = check(came)
    assert outcome != "used"


@FUZZ
@given(code=st.text(max_size=60))
def test_any_code_of_a_refusal(code: str) -> None:
    outcome, said = check(RecordDict({REFUSAL: ConfigRecord({"code": code})}))
    assert outcome == "invalid" or said == code


def test_what_nobody_thought_of_is_still_one_sites_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    there = transport(honest())

    def stumbles(*_: object, **__: object) -> None:
        raise MemoryError("row 17 says joy")

    monkeypatch.setattr("shared.wire.read_float32", stumbles)
    found = dict(there.train({"bad": ASKED}, timeout_s=1.0))
    assert found == {"bad": Failure("invalid", "message-unreadable")}


def test_a_reply_that_is_neither_content_nor_error_is_a_failure() -> None:
    there = transport(honest())
    grid = cast(LocalGrid, there._grid)
    delivered = grid._deliver

    def hollow(message: Message) -> Message:
        reply = delivered(message)
        reply.__dict__.update(_content=None, _error=None, _reply=None)
        return reply

    grid._deliver = hollow  # type: ignore[method-assign]
    assert dict(there.train({"bad": ASKED}, timeout_s=1.0)) == {"bad": Failure("failed", "flower-empty")}
