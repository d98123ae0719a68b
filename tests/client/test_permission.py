"""Units and clipping at the agent: the stricter unit, whom an update without noise may reach, norms that move."""

import json
import math
from pathlib import Path

import pytest
import torch

from client import agent
from client.permission import permit
from client.plan import PrivacyPlan
from client.private_training import train_round
from client.run_model import built_model
from client.site import read_site
from shared.config import RunConfig
from shared.errors import PermissionRefused
from shared.messages import Refusal, TrainReply
from shared.privacy.accountant import MechanismUse, spent_epsilon
from tests.client.asking import SITE_PRIVACY, ask, private, rewrite_subjects, rows_of, site_file, used
from tests.simulations import matching_runs
from tests.simulations.matching_runs import write_part
from tests.tiny import PRIVACY, tiny_config

CENTRAL = tiny_config(private=True, privacy=SITE_PRIVACY)
BOTH = tiny_config(private=True, site_privacy=SITE_PRIVACY)


@pytest.fixture(autouse=True)
def _cold(monkeypatch: pytest.MonkeyPatch) -> None:
    agent._loaded_samples.cache_clear()
    built_model.cache_clear()
    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)


def subject_site(folder: Path, *, epsilon: float = 8.0) -> Path:
    """A site whose owner counts its budget by subjects: eight of them, with five rows each."""
    path = site_file(folder, nominal_subjects=8, unit="subject", epsilon=epsilon)
    rewrite_subjects(folder, num=8)
    return path


def norm(reply: TrainReply) -> float:
    return float(torch.cat([value.double().reshape(-1) for value in reply.update.values()]).norm())


def test_the_stricter_unit_wins(tmp_path: Path) -> None:
    """A run that asks for records is trained by subjects where the owner promised that; never the other way."""
    by_batch = tiny_config(
        private=True, training={"optimizer": "sgd", "learning_rate": 0.5, "batch_size": 4, "local_steps": 2}
    )
    said = used(ask(subject_site(tmp_path), by_batch)).header
    assert said.privacy is not None
    assert (said.privacy.unit, said.privacy.sample_rate, said.nominal_size) == ("subject", 0.5, 8)
    (row,) = rows_of(tmp_path)
    assert (row.unit, row.use.sample_rate) == ("subject", 0.5)

    (tmp_path / "records").mkdir()
    assert ask(site_file(tmp_path / "records"), private(unit="subject")) == Refusal("refused")
    assert not (tmp_path / "records" / "ledger.sqlite").exists()


def test_what_is_tried_out_beforehand_is_the_unit_that_is_protected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[RunConfig] = []
    monkeypatch.setattr("client.preflight.assert_sound", tried.append)
    used(ask(subject_site(tmp_path), private()))
    (run,) = tried
    assert run.local_privacy is not None
    assert run.local_privacy.unit == "subject"


def test_a_run_for_subjects_averages_as_many_records_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[PrivacyPlan] = []

    def watched(*given: object, plan: PrivacyPlan, **rest: object) -> object:
        plans.append(plan)
        return train_round(*given, plan=plan, **rest)  # type: ignore[arg-type]

    monkeypatch.setattr(agent, "train_round", watched)
    training = {
        "optimizer": "sgd",
        "learning_rate": 0.5,
        "sample_rate": 0.5,
        "local_steps": 2,
        "records_per_subject": 3,
    }
    run = tiny_config(private=True, privacy={**PRIVACY, "unit": "subject"}, training=training)
    used(ask(subject_site(tmp_path), run))
    assert [(plan.unit, plan.records_per_unit, plan.expected_batch_size) for plan in plans] == [("subject", 3, 4.0)]


def test_subjects_that_nobody_names_are_a_fault(tmp_path: Path) -> None:
    """Each row would be taken for a person of its own; the owner reads why, and nothing is spent."""
    path = subject_site(tmp_path)
    rewrite_subjects(tmp_path, num=None)
    assert ask(path, private(unit="subject")) == Refusal("manifest-invalid")
    assert [row.state for row in rows_of(tmp_path)] == ["void"]
    # where records are protected they need no subject
    used(ask(site_file(tmp_path, unit="record"), private(), run_id="records"))


def test_only_an_owner_who_trusts_the_server_sends_an_update_without_noise(tmp_path: Path) -> None:
    assert ask(site_file(tmp_path), CENTRAL) == Refusal("refused")
    assert ask(site_file(tmp_path, allow_non_private=True), CENTRAL) == Refusal("refused")
    assert not (tmp_path / "ledger.sqlite").exists()
    reply = used(ask(site_file(tmp_path, trust_server=True), CENTRAL))
    assert (reply.header.privacy, reply.header.is_within_clip) == (None, None)
    (row,) = rows_of(tmp_path)
    assert (row.mechanism, row.state) == ("none", "released")
    # against the server nothing is left to protect, and a private run would be a false promise
    assert ask(site_file(tmp_path, trust_server=True), private(), run_id="later") == Refusal("refused")
    # and trust in the server is no leave for a run without any privacy
    assert ask(site_file(tmp_path, trust_server=True), tiny_config(private=False), run_id="none") == Refusal("refused")


@pytest.mark.parametrize("run", [CENTRAL, BOTH], ids=["alone", "beside records"])
def test_the_whole_update_is_clipped_before_it_leaves(run: RunConfig, tmp_path: Path) -> None:
    path = site_file(tmp_path, trust_server=True)
    assert norm(used(ask(path, run))) == pytest.approx(0.01, rel=1e-5)
    assert norm(used(ask(path, run, number=2, site_clip_norm=0.003))) == pytest.approx(0.003, rel=1e-5)


def test_records_and_sites_at_once_are_both_accounted(tmp_path: Path) -> None:
    """The update has noise of its own, so no trust is needed; the site's ledger knows nothing of the server's noise."""
    replies = [used(ask(site_file(tmp_path), BOTH, number=number)) for number in (1, 2, 3)]
    said = replies[-1].header.privacy
    assert said is not None
    rounds = MechanismUse(said.noise_multiplier, said.sample_rate, 3 * said.steps_per_round)
    assert said.epsilon == spent_epsilon([rounds], delta=1e-3, accountant="pld")
    assert {row.mechanism for row in rows_of(tmp_path)} == {"gaussian"}
    assert all(norm(reply) <= 0.01 * (1 + 1e-5) for reply in replies)


def test_a_site_says_whether_it_was_within_the_norm_only_where_the_norm_adapts(tmp_path: Path) -> None:
    path = site_file(tmp_path, trust_server=True)
    run = tiny_config(private=True, privacy={**SITE_PRIVACY, "clipping": "adaptive"})
    assert used(ask(path, run, site_clip_norm=1e-4)).header.is_within_clip is False
    assert used(ask(path, run, number=2, site_clip_norm=1e4)).header.is_within_clip is True
    assert ask(path, run, number=3) == Refusal("message-invalid")
    assert used(ask(path, CENTRAL, run_id="flat")).header.is_within_clip is None


def test_an_adaptive_norm_comes_with_the_request_and_no_other_norm_does(tmp_path: Path) -> None:
    path, run = site_file(tmp_path), private(clipping="adaptive")
    assert ask(path, run) == Refusal("message-invalid")
    assert ask(path, private(), clip_norm=0.5) == Refusal("message-invalid")
    assert ask(path, private(), site_clip_norm=0.5) == Refusal("message-invalid")
    assert not (tmp_path / "ledger.sqlite").exists()

    reply = used(ask(path, run, clip_norm=0.25))
    said = reply.header.privacy
    assert said is not None
    assert (said.clip_norm, said.clipping) == (0.25, "adaptive")
    assert reply.header.unclipped_share is not None
    assert math.isfinite(reply.header.unclipped_share)
    assert [row.mechanism for row in rows_of(tmp_path)] == ["adaptive-gaussian"]
    plain = used(ask(site_file(tmp_path, epsilon=20.0), private(), run_id="flat")).header
    assert plain.unclipped_share is None
    # the count is paid for inside the same noise multiplier
    assert plain.privacy is not None
    assert said.noise_multiplier == plain.privacy.noise_multiplier


def test_a_unit_that_changes_in_the_middle_of_a_run_is_refused(tmp_path: Path) -> None:
    used(ask(subject_site(tmp_path, epsilon=50.0), private()))
    path = site_file(tmp_path, unit="record", epsilon=50.0)
    assert ask(path, private(), number=2) == Refusal("refused")


@pytest.mark.parametrize("option", ["path", "network_path", "image_path"])
@pytest.mark.parametrize("part", ["encoder", "fusion", "head"])
def test_no_folder_is_opened_that_its_owner_does_not_list(part: str, option: str, tmp_path: Path) -> None:
    """Whatever part names it, and the encoder of pictures in an encoder of clips too."""
    site = read_site(site_file(tmp_path))
    run = tiny_config(private=True)
    assert permit(run, site=site).modalities
    named = {"options": {option: str(tmp_path / "elsewhere")}}
    if part == "encoder":
        first, encoder = next(iter(run.model.encoders.items()))
        changed = run.model.model_copy(
            update={"encoders": {**run.model.encoders, first: encoder.model_copy(update=named)}}
        )
    else:
        changed = run.model.model_copy(update={part: getattr(run.model, part).model_copy(update=named)})
    asked = run.model_copy(update={"model": changed})

    with pytest.raises(PermissionRefused, match="elsewhere; allowed: those the owner lists in checkpoints"):
        permit(asked, site=site)
    listed = site.model_copy(update={"checkpoints": (tmp_path / "elsewhere",)})
    assert permit(asked, site=listed).modalities


def pairs_site(folder: Path, *, modalities: tuple[str, ...] = ("left", "right")) -> Path:
    """A site of a matching whose owner declares these modalities; twelve items of two rows each."""
    write_part(folder / "data", items=12, rows_per_item=2, seed=0)
    path = site_file(folder, modalities=modalities)
    (folder / "dataset.toml").write_text(matching_runs.CARD, encoding="utf-8")
    return path


def halved(folder: Path) -> None:
    """Each row keeps one of the two."""
    manifest = folder / "data" / "metadata.jsonl"
    rows = [json.loads(line) for line in manifest.read_text(encoding="utf-8").splitlines()]
    for number, row in enumerate(rows):
        del row[("left_file_name", "right_file_name")[number % 2]]
    manifest.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def test_a_site_that_declares_half_of_a_pair_is_refused_before_it_costs_anything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run = RunConfig.model_validate(matching_runs.matching_run(private=True))
    assert ask(pairs_site(tmp_path, modalities=("left",)), run) == Refusal("refused")
    assert not (tmp_path / "ledger.sqlite").exists()
    assert "allowed: rows that have both, and both named in modalities" in caplog.text


def test_whether_rows_hold_pairs_shows_in_no_answer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Both sites answer alike and pay alike; what is missing is told to the owner's own screen."""
    run = RunConfig.model_validate(matching_runs.matching_run(private=True))
    whole, without = (pairs_site(tmp_path / name) for name in ("whole", "without"))
    halved(without.parent)
    replies = [used(ask(path, run)) for path in (whole, without)]
    assert replies[0].header.model_dump() == replies[1].header.model_dump()
    assert {name: value.shape for name, value in replies[0].update.items()} == {
        name: value.shape for name, value in replies[1].update.items()
    }
    told = [message for message in caplog.messages if "no row has both left and right" in message]
    assert len(told) == 1
    assert str(without.parent / "data") in told[0]
