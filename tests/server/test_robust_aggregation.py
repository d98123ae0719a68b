"""Krum, multi-krum and norm bound: what hostile updates can do, what they cannot, and what is refused beforehand."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import settings as tried
from hypothesis import strategies as st

from server import coordinate_wise
from server.aggregation import Weights, aggregate, start_average
from server.history import read_rounds
from server.judgement import Reply
from server.krum import squared_distances
from server.plan import make_plan
from server.records import AggregationNote, RunRecord
from server.report.privacy import privacy_texts
from shared.config import FederationSettings, RunConfig
from shared.errors import ConfigError, RunError
from shared.messages import TrainReply, TrainRequest
from shared.model.multimodal import build_model
from shared.settings import parse_settings
from tests.server.conftest import RECORD, SITE, CallTransport, protected_run, small_run, train
from tests.server.made_records import build_record

Rows = Sequence[Sequence[float]]
POINTS = st.lists(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3), min_size=5, max_size=9)
KRUM, MULTI_KRUM = {"aggregation": "krum", "byzantine_sites": 1}, {"aggregation": "multi-krum", "byzantine_sites": 1}
MEDIAN_BOUND: Mapping[str, object] = {"aggregation": "norm-bound"}
FIXED_BOUND: Mapping[str, object] = {"aggregation": "norm-bound", "norm_bound": 2.0}


def settings(**options: object) -> FederationSettings:
    hostile = options.get("byzantine_sites")
    fewest = 2 * hostile + 3 if isinstance(hostile, int) else 1
    return FederationSettings.model_validate({"rounds": 1, "min_sites": fewest, **options})


def updates_of(rows: Rows) -> dict[str, Weights]:
    return {
        f"s{n:02d}": {"w": torch.tensor([row[0]]), "v": torch.tensor([list(row[1:])])} for n, row in enumerate(rows)
    }


def averaged(updates: Mapping[str, Weights], **options: object) -> np.ndarray:
    result = aggregate(updates, weights=dict.fromkeys(updates, 1.0), settings=settings(**options))
    return np.concatenate([result[name].double().numpy().ravel() for name in ("w", "v") if name in result])


def noted(updates: Mapping[str, Weights], **options: object) -> AggregationNote:
    average = start_average(settings(**options))
    for site, update in updates.items():
        average.add(update, weight=1.0, site=site)
    average.result()
    note = average.note()
    assert note is not None
    return note


def scores_by_hand(rows: Rows, *, hostile: int) -> list[float]:
    """Blanchard et al. 2017, section 4, letter by letter."""
    found = []
    for i, one in enumerate(rows):
        distances = sorted(
            float(np.sum((np.array(one) - np.array(other)) ** 2)) for j, other in enumerate(rows) if j != i
        )
        found.append(sum(distances[: len(rows) - hostile - 2]))
    return found


@pytest.mark.parametrize("at_once", [1, 10, 35, 10**6])
@pytest.mark.parametrize("rule", ["median", "trimmed-mean"])
def test_numbers_that_are_sorted_in_parts_come_out_as_all_at_once(
    rule: str, at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nine sites, a parameter of 3 x 4 numbers and one without a shape; the second source is numpy."""
    draws = np.random.default_rng(5)
    tables, numbers = draws.normal(size=(9, 3, 4)).astype(np.float32), draws.normal(size=9).astype(np.float32)
    updates = {
        f"s{n}": {"w": torch.from_numpy(tables[n].T.copy()).T, "v": torch.tensor(float(numbers[n]))} for n in range(9)
    }
    monkeypatch.setattr(coordinate_wise, "_AT_ONCE", at_once)
    found = aggregate(updates, weights=dict.fromkeys(updates, 1.0), settings=settings(aggregation=rule, trim_share=0.2))
    for name, values in (("w", tables), ("v", numbers)):
        ordered = np.sort(values, axis=0)
        expected = ordered[4] if rule == "median" else ordered[1:8].mean(axis=0)
        assert found[name].shape == expected.shape
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("num_numbers", [1, 7, 70_000])
def test_krum_takes_what_its_definition_takes(num_numbers: int) -> None:
    """Nine rows, two of them far off; the second source is numpy, pair by pair."""
    draws = np.random.default_rng(num_numbers)
    rows = draws.normal(size=(9, num_numbers)).astype(np.float32)
    rows[3] += 40
    rows[6] *= -30
    updates = {f"s{n}": {"w": torch.from_numpy(row)} for n, row in enumerate(rows)}
    scores = scores_by_hand(rows.astype(np.float64).tolist(), hostile=2)
    found = averaged(updates, aggregation="krum", byzantine_sites=2)
    np.testing.assert_array_equal(found, rows[int(np.argmin(scores))])
    best = np.argsort(scores)[:7]
    found = averaged(updates, aggregation="multi-krum", byzantine_sites=2)
    np.testing.assert_allclose(found, rows[best].astype(np.float64).mean(axis=0), rtol=1e-6, atol=1e-6)
    kept = averaged(updates, aggregation="multi-krum", byzantine_sites=2, kept_sites=3)
    np.testing.assert_allclose(kept, rows[best[:3]].astype(np.float64).mean(axis=0), rtol=1e-6, atol=1e-6)


def test_krum_of_five_numbers_is_that_of_pencil_and_paper() -> None:
    """f = 1, so that the two nearest count: of 0, 1, 3, 7 and 100 the sums are 10, 5, 13, 52 and 18058."""
    rows = [[0.0], [1.0], [3.0], [7.0], [100.0]]
    updates = {f"s{n}": {"w": torch.tensor(row)} for n, row in enumerate(rows)}
    assert scores_by_hand(rows, hostile=1) == [10.0, 5.0, 13.0, 52.0, 18058.0]
    assert averaged(updates, **KRUM).tolist() == [1.0]
    assert averaged(updates, **MULTI_KRUM).tolist() == [11 / 4]
    assert noted(updates, **KRUM).set_aside == ("s0", "s2", "s3", "s4")
    assert noted(updates, **MULTI_KRUM).set_aside == ("s4",)


@tried(deadline=None, max_examples=50)
@given(POINTS, st.lists(st.floats(-1e9, 1e9, width=32), min_size=3, max_size=3))
def test_one_update_moves_krum_no_further_from_the_others_than_they_lie_apart(rows: Rows, wild: list[float]) -> None:
    honest = np.array(rows, dtype=np.float32).astype(np.float64)
    apart = max(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(honest, 2))
    found = averaged(updates_of([*rows, wild]), **KRUM)
    assert np.linalg.norm(honest - found, axis=1).min() <= apart * (1 + 1e-6) + 1e-4


@tried(deadline=None, max_examples=50)
@given(st.integers(1, 3), st.integers(0, 2**32))
def test_hostile_updates_together_move_krum_no_further_than_its_promise(hostile: int, seed: int) -> None:
    """All hostile sites at one point, which lies between, near or far from the others."""
    draws = np.random.default_rng(seed)
    num = 2 * hostile + 3 + int(draws.integers(3))
    honest = draws.normal(size=(num - hostile, 3)).astype(np.float32).astype(np.float64)
    point = (draws.normal(size=3) * 10.0 ** draws.integers(-2, 4)).astype(np.float32)
    apart = max(float(np.linalg.norm(one - other)) for one, other in itertools.combinations(honest, 2))
    updates = updates_of([*honest.tolist(), *[point.tolist()] * hostile])
    found = averaged(updates, aggregation="krum", byzantine_sites=hostile)
    factor = ((num - hostile - 2) / (num - 2 * hostile - 1)) ** 0.5
    assert np.linalg.norm(honest - found, axis=1).min() <= factor * apart * (1 + 1e-6)


@tried(deadline=None, max_examples=50)
@given(POINTS, st.floats(1e3, 1e9, width=32), st.integers(0, 2))
def test_a_far_update_is_set_aside_and_the_mean_of_the_others_is_left(rows: Rows, far: float, place: int) -> None:
    wild = [0.0, 0.0, 0.0]
    wild[place] = far
    updates = updates_of([*rows, wild])
    last = f"s{len(rows):02d}"
    assert noted(updates, **MULTI_KRUM).set_aside == (last,)
    assert last in noted(updates, **KRUM).set_aside
    honest = {site: update for site, update in updates.items() if site != last}
    np.testing.assert_allclose(averaged(updates, **MULTI_KRUM), averaged(honest), rtol=1e-5, atol=1e-5)


@tried(deadline=None, max_examples=50)
@given(POINTS, st.lists(st.floats(-1e9, 1e9, width=32), min_size=3, max_size=3))
def test_one_update_moves_a_norm_bounded_mean_by_its_share_of_the_bound(rows: Rows, wild: list[float]) -> None:
    quiet, loud = (averaged(updates_of([*rows, last]), **FIXED_BOUND) for last in ([0.0, 0.0, 0.0], wild))
    assert np.linalg.norm(loud - quiet) <= 2.0 / (len(rows) + 1) * (1 + 1e-5) + 1e-6


@tried(deadline=None, max_examples=50)
@given(POINTS, st.lists(st.floats(-1e9, 1e9, width=32), min_size=3, max_size=3))
def test_one_update_moves_the_rounds_own_bound_no_further_than_the_longest_other(rows: Rows, wild: list[float]) -> None:
    longest = max(np.linalg.norm(np.array(row, dtype=np.float32).astype(np.float64)) for row in rows)
    bound = noted(updates_of([*rows, wild]), **MEDIAN_BOUND).norm_bound
    assert bound is not None
    assert bound <= longest * (1 + 1e-6)


@pytest.mark.parametrize("options", [KRUM, MULTI_KRUM, MEDIAN_BOUND, FIXED_BOUND])
@tried(deadline=None, max_examples=50)
@given(rows=POINTS, seed=st.integers(0, 2**32))
def test_who_answers_first_makes_no_difference(options: Mapping[str, object], rows: Rows, seed: int) -> None:
    updates = updates_of(rows)
    shuffled = list(updates)
    np.random.default_rng(seed).shuffle(shuffled)
    notes, results = [], []
    for order in (list(updates), shuffled):
        average = start_average(settings(**options))
        for site in order:
            average.add(updates[site], weight=1.0, site=site)
        results.append(average.result())
        notes.append(average.note())
    assert notes[0] == notes[1]
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, rtol=1e-6, atol=1e-6)


@tried(deadline=None, max_examples=50)
@given(POINTS)
def test_what_sets_nothing_aside_is_the_mean(rows: Rows) -> None:
    updates = updates_of(rows)
    mean = averaged(updates)
    np.testing.assert_array_equal(averaged(updates, aggregation="multi-krum", byzantine_sites=0), mean)
    np.testing.assert_array_equal(averaged(updates, aggregation="norm-bound", norm_bound=1e3), mean)
    assert noted(updates, aggregation="norm-bound", norm_bound=1e3) == AggregationNote(norm_bound=1e3)
    same = updates_of([rows[0]] * 5)
    for options in (KRUM, MULTI_KRUM, MEDIAN_BOUND):
        np.testing.assert_array_equal(averaged(same, **options), averaged(same))


def test_a_norm_bound_of_pencil_and_paper() -> None:
    """Norms 5, 10 and 100: at 4 all are cut, with the median only the last, at half of it the last two."""
    updates = {name: {"w": torch.tensor([3.0 * n, 4.0 * n])} for name, n in (("a", 1.0), ("b", 2.0), ("c", -20.0))}
    np.testing.assert_allclose(averaged(updates, aggregation="norm-bound", norm_bound=4.0), [0.8, 1.0667], rtol=1e-4)
    np.testing.assert_allclose(averaged(updates, aggregation="norm-bound"), [1.0, 4.0 / 3], rtol=1e-6)
    assert noted(updates, aggregation="norm-bound") == AggregationNote(scaled_down=("c",), norm_bound=10.0)
    half = noted(updates, aggregation="norm-bound", norm_bound_factor=0.5)
    assert half == AggregationNote(scaled_down=("b", "c"), norm_bound=5.0)


def test_updates_of_zeros_are_no_fault() -> None:
    updates = updates_of([[0.0, 0.0, 0.0]] * 5)
    for options in (KRUM, MULTI_KRUM, MEDIAN_BOUND, FIXED_BOUND):
        assert averaged(updates, **options).tolist() == [0.0, 0.0, 0.0]


def test_sites_of_other_parameters_are_as_far_as_those_that_have_them_typically() -> None:
    """By hand: over `b`, which three hold, the distances are 4, 16 and 36; who lacks it is 16 from everybody there."""
    updates: list[Weights] = [
        {"a": torch.tensor([0.0]), "b": torch.tensor([0.0])},
        {"a": torch.tensor([1.0]), "b": torch.tensor([2.0])},
        {"a": torch.tensor([2.0]), "b": torch.tensor([6.0])},
        {"a": torch.tensor([1.0])},
    ]
    expected = [
        [0.0, 1 + 4, 4 + 36, 1 + 16],
        [1 + 4, 0.0, 1 + 16, 0 + 16],
        [4 + 36, 1 + 16, 0.0, 1 + 16],
        [1 + 16, 0 + 16, 1 + 16, 0.0],
    ]
    assert squared_distances(updates).tolist() == expected


def test_a_site_does_not_come_close_to_all_by_sending_little() -> None:
    """Six of both modalities, one that sends next to nothing, far off in that."""
    draws = np.random.default_rng(5)
    rows = draws.normal(size=(6, 20)).astype(np.float32)
    updates = {f"s{n}": {"a": torch.from_numpy(row[:2]), "b": torch.from_numpy(row[2:])} for n, row in enumerate(rows)}
    updates["z"] = {"a": torch.tensor([50.0, 50.0])}
    assert "z" in noted(updates, **KRUM).set_aside
    assert noted(updates, **MULTI_KRUM).set_aside == ("z",)


def test_a_parameter_that_none_of_the_kept_sites_trained_is_left_alone() -> None:
    updates: dict[str, Weights] = {f"s{n}": {"a": torch.tensor([1.0 + n / 100])} for n in range(5)}
    updates["s5"] = {"a": torch.tensor([90.0]), "b": torch.tensor([1.0])}
    result = aggregate(updates, weights=dict.fromkeys(updates, 1.0), settings=settings(**MULTI_KRUM))
    assert set(result) == {"a"}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"aggregation": "krum"}, "byzantine_sites: aggregation = 'krum' needs it"),
        ({"aggregation": "multi-krum", "byzantine_sites": 2, "min_sites": 6}, r"2 \* 2 \+ 3 = 7 updates"),
        ({**KRUM, "min_sites": 5, "sites_per_round": 4}, "sites_per_round is 4.* needs 5 updates"),
        ({"byzantine_sites": 1, "min_sites": 5}, "byzantine_sites: nothing reads it with aggregation = 'mean'"),
        ({**KRUM, "min_sites": 5, "kept_sites": 2}, 'kept_sites: nothing reads it.*allowed: with "multi-krum"'),
        ({"aggregation": "median", "norm_bound": 1.0}, "norm_bound: nothing reads it"),
        ({**FIXED_BOUND, "norm_bound_factor": 2.0}, "norm_bound_factor: nothing reads it"),
        ({"aggregation": "median", "weighting": "examples"}, 'a hostile one chooses; allowed: "uniform"'),
        ({**FIXED_BOUND, "weighting": "modality"}, 'a hostile one chooses; allowed: "uniform"'),
    ],
)
def test_settings_that_cannot_hold_are_refused(options: Mapping[str, object], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        parse_settings(FederationSettings, {"rounds": 1, **options}, place="federation")


@pytest.mark.parametrize("options", [KRUM, MULTI_KRUM, MEDIAN_BOUND, {"aggregation": "median"}])
def test_robust_rules_are_refused_where_whole_sites_are_protected(options: Mapping[str, object]) -> None:
    """Alone, or beside a protection of records."""
    for changes in ({"privacy": SITE}, {"privacy": RECORD, "site_privacy": SITE}):
        table = protected_run(changes=changes).model_dump()
        table["federation"] |= {"min_sites": 5, **options}
        with pytest.raises(ConfigError, match="calibrated to what one site adds to a plain sum"):
            parse_settings(RunConfig, table, place="run")


def test_robust_rules_are_allowed_where_every_site_adds_its_own_noise() -> None:
    """What leaves is private before it is compared."""
    table = protected_run(changes={"privacy": RECORD}).model_dump()
    table["federation"] |= {"min_sites": 5, **KRUM}
    assert parse_settings(RunConfig, table, place="run").local_privacy is not None


def test_a_round_of_too_few_updates_for_krum_changes_nothing() -> None:
    average = start_average(settings(**KRUM))
    average.add({"w": torch.tensor([1.0])}, weight=1.0, site="a")
    with pytest.raises(AssertionError, match="1 updates; 5 are needed"):
        average.result()
    assert settings(**KRUM).min_sites == small_run(min_sites=5, **KRUM).federation.fewest_updates


FIVE = {f"s{n}": ("left", "right") for n in range(4)} | {"wild": ("left", "right")}


class Wild(CallTransport):
    """One of five sends its update a thousand times as large."""

    def _answer(self, site: str, request: TrainRequest) -> Reply:
        reply = super()._answer(site, request)
        if site != "wild" or not isinstance(reply, TrainReply):
            return reply
        return TrainReply(reply.header, {name: value * 1000 for name, value in reply.update.items()})


def test_the_record_of_a_round_says_whose_updates_were_left_out_or_cut(tmp_path: Path) -> None:
    notes = {}
    for options in (MULTI_KRUM, MEDIAN_BOUND, {"aggregation": "mean"}):
        run = small_run(rounds=2, min_sites=5, **options)
        folder = tmp_path / str(options["aggregation"])
        progress = train(run, folder, transport=Wild(run, FIVE))
        assert read_rounds(folder / "metrics.jsonl") == progress.history
        notes[str(options["aggregation"])] = [each.aggregated for each in progress.history]
    assert notes["multi-krum"] == [AggregationNote(set_aside=("wild",))] * 2
    assert all(note is not None and "wild" in note.scaled_down and note.norm_bound for note in notes["norm-bound"])
    assert notes["mean"] == [None, None]


def test_records_of_a_secret_draw_say_nothing_of_single_updates(tmp_path: Path) -> None:
    """Only a plain sum is allowed there, which leaves nobody out; one site is far beyond the clip norm."""
    run = protected_run(changes={"privacy": SITE}, site_sample_rate=0.9, rounds=2)
    history = train(run, tmp_path, transport=Wild(run, FIVE)).history
    assert [each.aggregated for each in history] == [None, None]


def noted_record(*notes: AggregationNote, **federation: object) -> RunRecord:
    record = build_record()
    rounds = tuple(
        each.model_copy(update={"aggregated": note}) for each, note in zip(record.rounds, notes, strict=False)
    )
    run = record.run.model_copy(update={"federation": record.run.federation.model_copy(update=federation)})
    return record.model_copy(update={"run": run, "rounds": rounds})


@pytest.mark.parametrize("rule", ["krum", "multi-krum"])
def test_the_report_says_whose_updates_were_left_out_and_that_it_proves_nothing(rule: str) -> None:
    first, second, *_ = build_record().sites
    notes = (AggregationNote(set_aside=(first, second)), AggregationNote(set_aside=(first,)), AggregationNote())
    text = privacy_texts(noted_record(*notes, aggregation=rule, byzantine_sites=2))["privacy.md"]
    assert "Whose updates were left out" in text
    assert f"Updates became one by {rule}, which" in text
    assert "bears 2 hostile sites a round" in text
    assert "Of 3 rounds that changed the model" in text
    assert "proves nothing against a site" in text
    assert f"| {first} | 3 | 2 | 0 |" in text
    assert "Whose updates were left out" not in privacy_texts(build_record())["privacy.md"]


def test_the_report_says_whose_updates_were_cut_and_to_which_norm() -> None:
    first = build_record().sites[0]
    notes = (AggregationNote(scaled_down=(first,), norm_bound=1.5), AggregationNote(norm_bound=0.25))
    text = privacy_texts(noted_record(*notes, aggregation="norm-bound"))["privacy.md"]
    assert "a mean of updates cut to a norm of 0.25 to 1.5, the round's own." in text
    assert f"| {first} | 2 | 0 | 1 |" in text
    fixed = privacy_texts(noted_record(AggregationNote(norm_bound=2.0), aggregation="norm-bound"))["privacy.md"]
    assert "a mean of updates cut to a norm of 2. Every update counted in full." in fixed


def test_a_plan_of_too_few_sites_says_which_rule_needs_more(caplog: pytest.LogCaptureFixture) -> None:
    """And one that hostile sites could stop by sending nothing is warned of."""
    run = small_run(**KRUM, min_sites=5)
    hellos = CallTransport(run, FIVE).hello(expected=5, min_sites=1, timeout_s=1)
    with pytest.raises(RunError, match="asks for 5, and krum with byzantine_sites = 1 needs 5"):
        make_plan(hellos[:4], run=run, model=build_model(run))
    assert len(make_plan(hellos, run=run, model=build_model(run)).sites) == 5
    assert "as many that send nothing would stop every round; fewer than 6 sites are in one" in caplog.text
