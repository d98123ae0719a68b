"""The agent: what an owner permits, what it costs, and that nothing else leaves."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from client import agent
from client.agent import answer_hello
from client.private_training import train_round
from client.run_model import built_model
from client.sampling import poisson_batch
from shared.errors import ModelError
from shared.messages import PROTOCOL_VERSION, Hello, Refusal, ReplyHeader, TrainReply
from shared.privacy.accountant import MechanismUse, spent_epsilon
from shared.privacy.noise import RandomSource
from tests.client.asking import ask, private, rows_of, site_file, used
from tests.tiny import LABELS, PRIVACY, tiny_config


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    agent._loaded_samples.cache_clear()
    built_model.cache_clear()
    # four seconds each, and tests of their own; below, one test has the real one
    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)


def test_a_hello_says_what_the_owner_published_and_nothing_else(tmp_path: Path) -> None:
    hello = answer_hello(site_file(tmp_path, modalities=("left",)))
    assert hello == Hello(protocol_version=PROTOCOL_VERSION, site="north", modalities=("left",), nominal_size=40)


def test_cost_is_on_disk_before_data_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, seen = site_file(tmp_path), []

    def load(*_: object, **__: object) -> None:
        # another connection, as after a crash: what it sees is on the disk
        seen.append(rows_of(tmp_path))
        raise RuntimeError("the disk fails here")

    monkeypatch.setattr(agent, "load_samples", load)
    assert ask(path, tiny_config(private=True)) == Refusal("internal")
    # nor is it given back: what broke may be settings of the server's on one record
    assert [row.state for row in rows_of(tmp_path)] == ["reserved"]
    ((row,),) = seen
    assert (row.state, row.mechanism, row.unit, row.round_number) == ("reserved", "gaussian", "record", 1)
    assert row.use.noise_multiplier > 0


def test_only_data_that_cannot_be_read_is_given_back(tmp_path: Path) -> None:
    """A folder with faults costs nothing, and its round can be asked again, as another attempt."""
    path, run, manifest = site_file(tmp_path), tiny_config(private=True), tmp_path / "data" / "metadata.jsonl"
    sound = manifest.read_text(encoding="utf-8")
    manifest.write_text('{"label": "joy"}\n', encoding="utf-8")
    assert ask(path, run) == Refusal("manifest-invalid")
    assert [row.state for row in rows_of(tmp_path)] == ["void"]

    manifest.write_text(sound, encoding="utf-8")
    assert ask(path, run) == Refusal("refused")
    replies = [used(ask(path, run, attempt=1)), used(ask(path, run, number=2))]
    assert [row.state for row in rows_of(tmp_path)] == ["void", "released", "released"]
    last = replies[-1].header.privacy
    assert last is not None
    # what was given back is not in the sum
    use = MechanismUse(last.noise_multiplier, last.sample_rate, 2 * last.steps_per_round)
    assert last.epsilon == spent_epsilon([use], delta=last.delta, accountant="pld")


def test_a_failure_in_training_stays_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agent, "train_round", lambda *_, **__: 1 / 0)
    assert ask(site_file(tmp_path), tiny_config(private=True)) == Refusal("internal")
    assert [row.state for row in rows_of(tmp_path)] == ["reserved"]


def test_unsound_training_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found before the ledger is charged, in a run's first round at the site; a non-private run has none to check."""
    asked = []

    def unsound(run: object) -> None:
        asked.append(run)
        raise ModelError("its gradients are not of single samples")

    monkeypatch.setattr("client.preflight.assert_sound", unsound)
    path = site_file(tmp_path, allow_non_private=True)
    assert ask(path, tiny_config(private=True)) == Refusal("model-invalid")
    assert rows_of(tmp_path) == ()
    used(ask(path, tiny_config(private=False)))
    assert len(asked) == 1


def test_the_preflight_is_passed_once_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr("client.preflight.assert_sound", asked.append)
    for number in (1, 2, 3):
        used(ask(site_file(tmp_path), tiny_config(private=True), number=number))
    assert len(asked) == 1


def test_a_request_past_the_cap_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, run = site_file(tmp_path, epsilon=1.0), tiny_config(private=True)
    for number in (1, 2, 3):
        used(ask(path, run, number=number))
    agent._loaded_samples.cache_clear()
    monkeypatch.setattr(agent, "load_samples", lambda *_, **__: pytest.fail("data was read"))
    # what is left would buy nothing but noise; and the run itself has had its three rounds
    assert ask(path, run, run_id="again") == Refusal("refused")
    assert ask(path, run, number=4) == Refusal("refused")
    assert len(rows_of(tmp_path)) == 3


def test_a_whole_run_costs_what_was_asked_and_an_independent_accountant_agrees(tmp_path: Path) -> None:
    path, run = site_file(tmp_path, epsilon=20.0), tiny_config(private=True)
    statements = [used(ask(path, run, number=number)).header.privacy for number in (1, 2, 3)]
    assert all(statement is not None for statement in statements)
    said = [statement for statement in statements if statement is not None]
    assert len({each.noise_multiplier for each in said}) == 1
    assert said[0].epsilon < said[1].epsilon < said[2].epsilon <= 8.0
    assert said[2].epsilon > 7.9
    for rounds, each in enumerate(said, start=1):
        use = MechanismUse(each.noise_multiplier, each.sample_rate, each.steps_per_round * rounds)
        # dp-accounting's PLD is what the site used; Opacus' PRV shares no code with it, its RDP is a looser bound
        assert each.accountant == "pld"
        assert each.epsilon == pytest.approx(spent_epsilon([use], delta=each.delta, accountant="prv"), rel=0.02)
        assert each.epsilon <= spent_epsilon([use], delta=each.delta, accountant="rdp")


def test_a_second_run_adds_to_the_first(tmp_path: Path) -> None:
    path, run = site_file(tmp_path, epsilon=20.0), tiny_config(private=True)
    first = used(ask(path, run)).header.privacy
    second = used(ask(path, run, run_id="s")).header.privacy
    assert first is not None
    assert second is not None
    assert second.epsilon > first.epsilon


def test_the_same_round_twice_is_refused(tmp_path: Path) -> None:
    path, run = site_file(tmp_path), tiny_config(private=True)
    used(ask(path, run))
    assert ask(path, run) == Refusal("refused")


def test_a_non_private_run_needs_the_owners_leave_by_name(tmp_path: Path) -> None:
    run = tiny_config(private=False)
    assert ask(site_file(tmp_path), run) == Refusal("refused")
    assert used(ask(site_file(tmp_path, allow_non_private=True), run)).header.privacy is None
    # and then no epsilon bounds this data set any more
    assert ask(site_file(tmp_path), tiny_config(private=True), run_id="later") == Refusal("refused")


def test_a_reply_holds_the_allow_list_and_the_trained_parameters_only(tmp_path: Path) -> None:
    reply = used(ask(site_file(tmp_path, modalities=("left",)), tiny_config(private=True)))
    assert set(reply.header.model_dump()) == set(ReplyHeader.model_fields)
    assert not any("right" in name for name in reply.update)
    assert any("left" in name for name in reply.update)


def test_no_number_of_a_reply_moves_when_records_do(tmp_path: Path) -> None:
    """All that may differ between neighbouring data sets is the protected update."""
    (tmp_path / "more").mkdir()
    (tmp_path / "fewer").mkdir()
    replies = [
        used(ask(site_file(tmp_path / which, rows=rows), tiny_config(private=True))).header
        for which, rows in (("more", 41), ("fewer", 17))
    ]
    assert replies[0] == replies[1]


@pytest.mark.parametrize("reproducible", [False, True])
def test_noise_differs_between_equal_runs(reproducible: bool, tmp_path: Path) -> None:
    """Unless the owner of a simulation asked for noise that a seed gives back."""
    updates = []
    for which in ("first", "second"):
        (tmp_path / which).mkdir()
        updates.append(
            used(ask(site_file(tmp_path / which, reproducible_noise=reproducible), tiny_config(private=True))).update
        )
    assert all(torch.equal(updates[0][name], updates[1][name]) == reproducible for name in updates[0])


def broken_manifest(folder: Path) -> None:
    (folder / "data" / "metadata.jsonl").write_text('{"label": "SECRET-LABEL-17"}\n', encoding="utf-8")


def gone(folder: Path) -> None:
    (folder / "site.toml").unlink()


@pytest.mark.parametrize(("harm", "code"), [(broken_manifest, "manifest-invalid"), (gone, "settings-invalid")])
def test_the_server_learns_a_code_and_no_word_of_what_went_wrong(
    harm: Callable[[Path], None], code: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = site_file(tmp_path)
    harm(tmp_path)
    assert ask(path, tiny_config(private=True)) == Refusal(code)
    assert str(tmp_path) in caplog.text


def test_settings_changed_in_the_middle_of_a_run_are_refused(tmp_path: Path) -> None:
    path = site_file(tmp_path, epsilon=50.0)
    used(ask(path, tiny_config(private=True)))
    greedy = tiny_config(
        private=True, training={"optimizer": "sgd", "learning_rate": 0.5, "sample_rate": 1.0, "local_steps": 9}
    )
    assert ask(path, greedy, number=2) == Refusal("refused")


def test_a_site_without_any_modality_of_the_run_refuses(tmp_path: Path) -> None:
    run = tiny_config(
        private=True,
        model={"embedding_width": 4, "encoders": {"right": {"name": "linear"}}, "fusion": {"name": "concat"}},
    )
    assert ask(site_file(tmp_path, modalities=("left",)), run) == Refusal("refused")


def test_a_folder_that_the_server_names_is_opened_only_if_the_owner_lists_it(tmp_path: Path) -> None:
    (tmp_path / "site").mkdir()
    encoders = {"left": {"name": "linear", "options": {"path": str(tmp_path / "secrets")}}}
    run = tiny_config(private=True, model={"embedding_width": 4, "encoders": encoders, "fusion": {"name": "concat"}})
    assert ask(site_file(tmp_path / "site"), run) == Refusal("refused")


@pytest.mark.parametrize(
    "data",
    [
        {"labels": ["a", "b"]},
        {"labels": ["b", "a", "c"]},
        {"task": "rating", "labels": [], "rating_range": [0, 1]},
        {"modalities": {"left": {"kind": "features", "width": 3}, "right": {"kind": "features", "width": 4}}},
        {"modalities": {"left": {"kind": "features", "width": 4}, "right": {"kind": "text"}}},
    ],
)
def test_a_run_with_another_schema_is_refused(data: dict[str, object], tmp_path: Path) -> None:
    """Whatever the records are, and before anything is paid: a server cannot ask by making records faults."""
    base = {
        "task": "single-label",
        "labels": list(LABELS),
        "modalities": {name: {"kind": "features", "width": 4} for name in ("left", "right")},
    }
    path, left = site_file(tmp_path), {"left": {"name": "linear"}}
    model = {"embedding_width": 4, "encoders": left, "fusion": {"name": "concat"}}
    assert ask(path, tiny_config(private=True, data=base | data, model=model)) == Refusal("refused")
    assert not (tmp_path / "ledger.sqlite").exists()
    assert isinstance(ask(path, tiny_config(private=True, data=base, model=model)), TrainReply)


def test_a_site_without_a_card_of_its_own_takes_no_part(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    (tmp_path / "dataset.toml").unlink()
    assert ask(path, tiny_config(private=True)) == Refusal("settings-invalid")


def test_the_owners_smaller_delta_counts(tmp_path: Path) -> None:
    """Told, calibrated and capped at it: the ledger's cap at the run's delta would grant more."""
    path, run = site_file(tmp_path, epsilon=8.0, delta=1e-6), tiny_config(private=True)
    replies = [used(ask(path, run, number=number)).header.privacy for number in (1, 2, 3)]
    last = replies[-1]
    assert last is not None
    assert last.delta == 1e-6
    use = MechanismUse(last.noise_multiplier, last.sample_rate, 3 * last.steps_per_round)
    assert last.epsilon == pytest.approx(spent_epsilon([use], delta=1e-6, accountant="pld"), rel=1e-6)
    assert 7.5 < last.epsilon <= 8.0


def test_a_second_run_has_more_noise_and_keeps_it(tmp_path: Path) -> None:
    path, run = site_file(tmp_path, epsilon=9.0, on_short_budget="more-noise"), tiny_config(private=True)
    first = [used(ask(path, run, number=number)).header.privacy for number in (1, 2, 3)]
    second = [used(ask(path, run, number=1, run_id="s")).header.privacy]
    between = tiny_config(private=True, seed=9, privacy=dict(PRIVACY, epsilon=0.3))
    used(ask(path, between, run_id="between"))
    second += [used(ask(path, run, number=number, run_id="s")).header.privacy for number in (2,)]
    multipliers = [{each.noise_multiplier for each in run if each is not None} for run in (first, second)]
    assert len(multipliers[0]) == len(multipliers[1]) == 1
    assert max(multipliers[1]) > max(multipliers[0])


def test_a_second_run_that_does_not_fit_is_refused_at_its_first_round(tmp_path: Path) -> None:
    path, run = site_file(tmp_path, epsilon=9.0), tiny_config(private=True)
    used(ask(path, run))
    used(ask(path, run, number=2))
    assert ask(path, run, run_id="s") == Refusal("refused")
    assert len(rows_of(tmp_path)) == 2


def test_with_fewer_rounds_a_run_keeps_its_noise_until_the_cap(tmp_path: Path) -> None:
    path, run = site_file(tmp_path, epsilon=11.0, on_short_budget="fewer-rounds"), tiny_config(private=True)
    first = [used(ask(path, run, number=number)).header.privacy for number in (1, 2, 3)]
    second = [ask(path, run, number=number, run_id="s") for number in (1, 2, 3)]
    granted = [reply.header.privacy for reply in second if isinstance(reply, TrainReply)]
    assert 1 <= len(granted) < 3
    assert second[len(granted) :] == [Refusal("refused")] * (3 - len(granted))
    assert {each.noise_multiplier for each in (*first, *granted) if each} == {
        first[0].noise_multiplier if first[0] else 0
    }
    assert all(each.epsilon <= 11.0 for each in granted if each)
    # nothing was charged for a refused round
    assert len(rows_of(tmp_path)) == 3 + len(granted)


@pytest.mark.parametrize("tell", [False, True])
def test_the_budget_is_told_by_the_owners_leave(tell: bool, tmp_path: Path) -> None:
    path, run = site_file(tmp_path, epsilon=20.0, tell_budget=tell), tiny_config(private=True)
    first = used(ask(path, run)).header.privacy
    later = [used(ask(path, run, number=number, run_id="s")).header.privacy for number in (1, 2)]
    assert first is not None
    assert (first.cap_epsilon, first.epsilon_before) == ((20.0, 0.0) if tell else (None, None))
    for each in later:
        assert each is not None
        assert (each.cap_epsilon, each.epsilon_before) == ((20.0, first.epsilon) if tell else (None, None))


@pytest.mark.parametrize("kind", ["float64", "float32", "discrete"])
def test_the_owner_chooses_the_kind_of_noise(kind: str, tmp_path: Path) -> None:
    reply = used(ask(site_file(tmp_path, noise=kind), tiny_config(private=True)))
    assert reply.header.privacy is not None
    assert reply.header.privacy.noise == kind
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in reply.update.values())


def test_a_run_gets_the_rounds_it_was_planned_for(tmp_path: Path) -> None:
    path = site_file(tmp_path, epsilon=100.0)
    run = tiny_config(private=True, federation={"rounds": 9})
    for number in (1, 2, 3):
        used(ask(path, run, number=number, planned=3))
    assert ask(path, run, number=4, planned=3) == Refusal("refused")


def test_the_owners_floor_under_the_noise_holds(tmp_path: Path) -> None:
    path = site_file(tmp_path, epsilon=1e5, least_noise_multiplier=2.5)
    run = tiny_config(private=True, privacy=dict(PRIVACY, epsilon=1e4))
    statement = used(ask(path, run)).header.privacy
    assert statement is not None
    assert statement.noise_multiplier == 2.5


def test_batches_are_as_secret_as_the_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Equal runs draw other batches; amplification by sampling holds only while nobody can foretell them."""
    drawn: list[list[int]] = []

    def watched(num_units: int, *, sample_rate: float, source: RandomSource) -> Tensor:
        batch = poisson_batch(num_units, sample_rate=sample_rate, source=source)
        drawn.append(batch.tolist())
        return batch

    monkeypatch.setattr("client.sampling.poisson_batch", watched)
    for which in ("first", "second"):
        (tmp_path / which).mkdir()
        used(ask(site_file(tmp_path / which), tiny_config(private=True)))
    # 40 coins, two steps: equal by chance once in 2 to the 80
    assert len(drawn) == 4
    assert drawn[:2] != drawn[2:]


def test_a_model_larger_than_the_owner_allows_is_refused_before_it_is_built(tmp_path: Path) -> None:
    path = site_file(tmp_path)
    path.write_text("max_parameters = 10\n" + path.read_text(encoding="utf-8"), encoding="utf-8")
    assert ask(path, tiny_config(private=True)) == Refusal("refused")


def test_rows_withdrawn_between_rounds_are_not_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, manifest, seen = site_file(tmp_path), tmp_path / "data" / "metadata.jsonl", []

    def watched(model: object, samples: object, **rest: object) -> object:
        seen.append(len(samples))  # type: ignore[arg-type]
        return train_round(model, samples, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(agent, "train_round", watched)
    run = tiny_config(private=True)
    used(ask(path, run))
    manifest.write_text("\n".join(manifest.read_text(encoding="utf-8").splitlines()[:20]), encoding="utf-8")
    used(ask(path, run, number=2))
    assert seen == [40, 20]


def test_the_real_preflight_lets_a_sound_run_through(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    used(ask(site_file(tmp_path), private(delta=1e-3)))
