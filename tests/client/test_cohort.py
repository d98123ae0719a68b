"""The cohort: every site is granted, paid for and answered as if it were alone, and nobody's trouble is another's."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client import agent
from client.agent import answer_train
from client.charge import charge_for_round
from client.cohort import Asked, answer_cohort
from client.private_training import TrainedRound
from client.run_model import exchanged_shapes, key_of
from client.sample_store import SampleStore
from shared.batch import Samples
from shared.config import RunConfig
from shared.dataset import load_samples
from shared.errors import ManifestError
from shared.messages import PROTOCOL_VERSION, Refusal, RequestHeader, TrainReply
from shared.privacy.ledger import Ledger, LedgerRow
from tests.client.asking import SITE_PRIVACY, rewrite_subjects
from tests.tiny import CARD, tiny_config, write_folder

pytestmark = pytest.mark.usefixtures("cold")

# full batches, whose exact cost takes no time to compute
FULL = {"optimizer": "momentum", "learning_rate": 0.5, "sample_rate": 1.0, "local_steps": 2}
RUN = tiny_config(private=True, training=FULL)
NO_NOISE = tiny_config(private=False, training=FULL)
CENTRAL = tiny_config(private=True, training=FULL, privacy=SITE_PRIVACY)
PLENTY = 1 << 30


def add_site(
    root: Path, name: str, *, modalities: tuple[str, ...] = ("left", "right"), data_set: str = "", ledger: str = "",
    rows: int = 12, **privacy: object,
) -> Path:  # fmt: skip
    """One site of a simulated federation: a card and, unless it is named, a ledger that all share."""
    folder = root / "sites" / name
    write_folder(folder / "data", rows=rows, modalities=modalities, seed=len(name) + rows)
    (root / "dataset.toml").write_text(CARD, encoding="utf-8")
    values = {"name": name, "data": "data", "data_set": data_set or name, "nominal_size": 10, "nominal_subjects": 6,
              "modalities": list(modalities), "ledger": ledger or "../../ledger.sqlite", "cache": "cache"}  # fmt: skip
    owner = {"epsilon": 20.0, "delta": 1e-3, "reproducible_noise": True, "allow_non_private": True,
             "trust_server": True, **privacy}  # fmt: skip
    lines = [f"{key} = {json.dumps(value)}" for key, value in values.items()]
    lines += ["[privacy]", *(f"{key} = {json.dumps(value)}" for key, value in owner.items())]
    (folder / "site.toml").write_text("\n".join(lines), encoding="utf-8")
    return folder / "site.toml"


def add_sites(root: Path, num: int = 4) -> list[Path]:
    return [add_site(root, f"site-{number}") for number in range(num)]


def header_of(
    run: RunConfig, *, number: int = 1, run_id: str = "r", attempt: int = 0, planned: int = 3
) -> RequestHeader:
    return RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id=run_id, round_number=number, attempt=attempt,
        planned_rounds=planned,
    )  # fmt: skip


def weights_of(run: RunConfig, modalities: tuple[str, ...] = ("left", "right")) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(1)
    shapes = exchanged_shapes(key_of(run), modalities).sent
    return {name: torch.randn(shape, generator=draws) * 0.3 for name, shape in shapes.items()}


def asked_of(paths: Sequence[Path], run: RunConfig = RUN, *, number: int = 1, run_id: str = "r") -> list[Asked]:
    """One request shared by all sites that train the same parameters, as the engine makes them."""
    header = header_of(run, number=number, run_id=run_id)
    named = [
        tuple(name for name in ("left", "right") if (path.parent / f"data/{name}-0.npy").exists()) for path in paths
    ]
    weights = {names: weights_of(run, names) for names in set(named)}
    return [Asked(header, weights[names], path) for path, names in zip(paths, named, strict=True)]


def answered(asked: list[Asked], *, store: SampleStore, memory_bytes: int = PLENTY) -> list[TrainReply | Refusal]:
    return list(answer_cohort(asked, store=store, memory_bytes=memory_bytes))


def one_by_one(asked: list[Asked]) -> list[TrainReply | Refusal]:
    return [answer_train(each.header, lambda _, each=each: each.weights, site_file=each.site_file) for each in asked]  # type: ignore[misc]


def rows_of(root: Path) -> list[LedgerRow]:
    """Every row of the shared ledger but its times, in order, read anew as after a crash."""
    ledger = Ledger(root / "ledger.sqlite")
    rows = [row for name in ledger.data_sets() for row in ledger.rows(name)]
    return [
        replace(row, created_utc="", ended_utc=None if row.ended_utc is None else "")
        for row in sorted(rows, key=lambda row: row.id)
    ]


def states(root: Path) -> dict[str, str]:
    return {row.data_set: row.state for row in rows_of(root)}


def mixed_sites(root: Path) -> list[Path]:
    """Of every kind: alike ones, others in size, budget, modality, unit; one without budget, one with faulty data."""
    paths = add_sites(root, 3)
    paths.append(add_site(root, "larger", rows=17))
    paths.append(add_site(root, "tighter", epsilon=9.0, on_short_budget="more-noise"))
    paths.append(add_site(root, "spent", epsilon=9.0))
    paths.append(add_site(root, "faulty"))
    (root / "sites" / "faulty" / "data" / "metadata.jsonl").write_text('{"label": "joy"}\n', encoding="utf-8")
    paths.append(add_site(root, "people", unit="subject"))
    rewrite_subjects(root / "sites" / "people", num=6)
    paths += [add_site(root, "left-1", modalities=("left",)), add_site(root, "left-2", modalities=("left",))]
    paths.append(add_site(root, "strict", allow_non_private=False, trust_server=False))
    paths.append(add_site(root, "whole", noise="discrete"))
    return paths


@pytest.mark.parametrize("run", [RUN, NO_NOISE, CENTRAL], ids=["private", "no noise", "sites"])
def test_a_cohort_answers_and_pays_as_one_site_after_another(
    run: RunConfig, tmp_path: Path, store: SampleStore
) -> None:
    """On a ledger with an earlier run: the same rows, all columns but the times; the same answers."""
    both = {}
    for which in ("cohort", "alone"):
        root = tmp_path / which
        paths, replies = mixed_sites(root), []
        one_by_one(asked_of([path for path in paths if path.parent.name in ("spent", "tighter", "site-1")], run_id="e"))
        for number in (1, 2):
            asked = asked_of(paths, run, number=number)
            replies += answered(asked, store=store) if which == "cohort" else one_by_one(asked)
        both[which] = (rows_of(root), replies)

    (rows, replies), (expected_rows, expected) = both["cohort"], both["alone"]
    assert rows == expected_rows
    assert {row.state for row in rows} == {"released", "void"}
    for reply, other in zip(replies, expected, strict=True):
        if isinstance(other, Refusal):
            assert reply == other
            continue
        assert isinstance(reply, TrainReply)
        assert reply.header == other.header
        assert list(reply.update) == list(other.update)
        for name, value in other.update.items():
            torch.testing.assert_close(reply.update[name], value, rtol=1e-4, atol=1e-6)
    num_refused = sum(isinstance(reply, Refusal) for reply in replies)
    assert num_refused == {"r": 4, "n": 4, "s": 4}[{id(RUN): "r", id(NO_NOISE): "n", id(CENTRAL): "s"}[id(run)]]


def test_every_cost_of_a_cohort_is_on_disk_before_data_is_read(
    tmp_path: Path, store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def load(*given: object, **named: object) -> Samples:
        # another connection, as after a crash: what it sees is on the disk
        seen.append(states(tmp_path))
        return load_samples(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(agent, "load_samples", load)
    replies = answered(asked_of(add_sites(tmp_path)), store=store)
    assert all(isinstance(reply, TrainReply) for reply in replies)
    assert seen == [{f"site-{number}": "reserved" for number in range(4)}] * 4
    # and in the next round, when nothing is read, no less
    answered(asked_of(sorted(tmp_path.glob("sites/*/site.toml")), number=2), store=store)
    assert (len(seen), len(rows_of(tmp_path))) == (4, 8)


def test_a_refused_site_does_not_stop_the_others(tmp_path: Path, store: SampleStore) -> None:
    paths = [*add_sites(tmp_path, 2), add_site(tmp_path, "poor", epsilon=0.1), tmp_path / "nowhere" / "site.toml"]
    wrong = {**weights_of(RUN), "more": torch.zeros(1)}
    asked = [*asked_of(paths[:3]), replace(asked_of(paths[:1])[0], site_file=paths[3])]
    asked.insert(1, replace(asked[0], weights=wrong, site_file=add_site(tmp_path, "misled")))
    answered(asked_of([paths[2]]), store=store)
    replies = answered(asked, store=store)

    codes = [reply.code if isinstance(reply, Refusal) else "" for reply in replies]
    assert codes[:3] == ["", "message-invalid", ""]
    assert codes[4] == "settings-invalid"
    assert set(states(tmp_path)) <= {"site-0", "site-1", "poor"}


def test_a_site_past_its_cap_is_refused_and_the_others_are_granted(tmp_path: Path, store: SampleStore) -> None:
    paths = [*add_sites(tmp_path, 2), add_site(tmp_path, "short", epsilon=9.0)]
    answered(asked_of([paths[2]], run_id="earlier"), store=store)
    replies = answered(asked_of(paths), store=store)

    assert [isinstance(reply, TrainReply) for reply in replies] == [True, True, False]
    assert replies[2] == Refusal("refused")
    assert [(row.data_set, row.run_id) for row in rows_of(tmp_path)] == [
        ("short", "earlier"), ("site-0", "r"), ("site-1", "r"),
    ]  # fmt: skip


def test_a_crash_while_reserving_writes_nothing(
    tmp_path: Path, store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths, real, asked = add_sites(tmp_path), charge_for_round, []

    def crash(*given: object, **named: object) -> object:
        asked.append(given)
        return real(*given, **named) if len(asked) < 3 else 1 / 0  # type: ignore[arg-type]

    monkeypatch.setattr("client.cohort_entry.charge_for_round", crash)
    monkeypatch.setattr(agent, "load_samples", lambda *_, **__: pytest.fail("data was read"))
    assert answered(asked_of(paths), store=store) == [Refusal("internal")] * 4
    assert rows_of(tmp_path) == []


def test_a_ledger_that_fails_grants_nothing_and_leaves_other_ledgers_alone(tmp_path: Path, store: SampleStore) -> None:
    paths = [*add_sites(tmp_path, 2), add_site(tmp_path, "own", ledger="own.sqlite")]
    (tmp_path / "ledger.sqlite").write_bytes(b"no ledger at all, but long enough to be taken for a file of some kind")
    replies = answered(asked_of(paths), store=store)
    assert replies[:2] == [Refusal("ledger-invalid")] * 2
    assert isinstance(replies[2], TrainReply)


def test_two_sites_of_one_data_set_cannot_both_have_its_last_round(tmp_path: Path, store: SampleStore) -> None:
    paths = [add_site(tmp_path, f"site-{number}", data_set="same") for number in range(2)]
    weights = weights_of(RUN)
    asked = [Asked(header_of(RUN, attempt=number, planned=1), weights, path) for number, path in enumerate(paths)]
    replies = answered(asked, store=store)
    assert isinstance(replies[0], TrainReply)
    assert replies[1] == Refusal("refused")
    assert len(rows_of(tmp_path)) == 1


@pytest.mark.parametrize(
    ("error", "code", "state"),
    [
        (ManifestError(folder="data", manifest="metadata.jsonl", num_rows=0, faults=()), "manifest-invalid", "void"),
        (RuntimeError("the disk fails here"), "internal", "reserved"),
    ],
)
def test_only_faulty_data_of_a_cohort_is_given_back(
    error: Exception, code: str, state: str, tmp_path: Path, store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(folder: Path, **named: object) -> Samples:
        if folder.parent.name == "site-1":
            raise error
        return load_samples(folder, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(agent, "load_samples", load)
    replies = answered(asked_of(add_sites(tmp_path)), store=store)
    assert replies[1] == Refusal(code)
    assert all(isinstance(reply, TrainReply) for reply in (replies[0], *replies[2:]))
    assert states(tmp_path) == {**{f"site-{number}": "released" for number in (0, 2, 3)}, "site-1": state}


def test_a_failure_in_training_stays_spent_and_costs_its_group_only(
    tmp_path: Path, store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(_: object, members: Sequence[object], **__: object) -> list[TrainedRound]:
        raise ZeroDivisionError(f"{len(members)} members")

    monkeypatch.setattr("client.cohort_training.train_cohort", train)
    paths = [*add_sites(tmp_path, 3), add_site(tmp_path, "other", modalities=("left",))]
    replies = answered(asked_of(paths), store=store)
    assert replies[:3] == [Refusal("internal")] * 3
    assert isinstance(replies[3], TrainReply)
    assert states(tmp_path) == {**{f"site-{number}": "reserved" for number in range(3)}, "other": "released"}


def test_only_what_left_is_released(tmp_path: Path, store: SampleStore) -> None:
    """Whoever stops asking leaves the rest reserved; whoever takes every answer finds all of it released."""
    paths = add_sites(tmp_path)
    answers = answer_cohort(asked_of(paths), store=store, memory_bytes=PLENTY)
    assert isinstance(next(answers), TrainReply)
    assert isinstance(next(answers), TrainReply)
    answers.close()
    assert list(states(tmp_path).values()) == ["released", "released", "reserved", "reserved"]

    answers = answer_cohort(asked_of(paths, number=2), store=store, memory_bytes=PLENTY)
    taken = [next(answers) for _ in paths]
    assert len(taken) == 4
    assert list(states(tmp_path).values()) == ["released"] * 4


@pytest.mark.parametrize(("sites_that_fit", "sizes"), [(100, [5]), (2, [2, 2]), (0, [])])
def test_the_memory_decides_how_many_train_together(
    sites_that_fit: int, sizes: list[int], tmp_path: Path, store: SampleStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site left over, or one that alone is too large, is trained by itself."""
    from client import cohort_training

    seen, real = [], cohort_training.train_cohort

    def train(model: object, members: Sequence[object], **rest: object) -> list[TrainedRound]:
        seen.append(len(members))
        return real(model, members, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(cohort_training, "train_cohort", train)
    asked = asked_of(add_sites(tmp_path, 5))
    # weights, gradients, change and momentum; 12 rows of two vectors of four
    one = 4 * (4 * sum(value.numel() for value in asked[0].weights.values()) + 12 * 8)
    replies = answered(asked, store=store, memory_bytes=sites_that_fit * one + one // 2)
    assert seen == sizes
    assert all(isinstance(reply, TrainReply) for reply in replies)


def test_data_that_changed_is_read_again(tmp_path: Path, store: SampleStore) -> None:
    paths = add_sites(tmp_path, 2)
    first = answered(asked_of(paths, NO_NOISE), store=store)
    manifest = paths[0].parent / "data" / "metadata.jsonl"
    manifest.write_text("\n".join(manifest.read_text(encoding="utf-8").splitlines()[:5]), encoding="utf-8")
    second = answered(asked_of(paths, NO_NOISE, run_id="again"), store=store)
    for number, is_same in enumerate((False, True)):
        before, after = first[number], second[number]
        assert isinstance(before, TrainReply)
        assert isinstance(after, TrainReply)
        assert all(torch.allclose(before.update[name], after.update[name]) for name in before.update) == is_same


def test_no_requests_have_no_answers(store: SampleStore) -> None:
    assert answered([], store=store) == []
