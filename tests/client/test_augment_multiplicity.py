"""Tests of training.augment_multiplicity: changed copies of a record are one unit, of which one gradient is clipped."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from client import private_training
from client.gradient.functional import FunctionalEngine
from client.private_training import public_numbers
from shared.batch import Batch
from shared.config import RunConfig
from shared.errors import ConfigError
from shared.model.multimodal import build_model
from shared.privacy.mechanism import ClippedSum
from shared.privacy.noise import reproducible_source
from shared.settings import parse_settings
from tests.client.cohorts import rows_of_run
from tests.client.toy import Toy, flat, plan_of, toy_samples, trained, trained_round, training_settings
from tests.shared.example_runs import AUGMENT, example_run


@pytest.mark.parametrize("copies", [1, 4])
def test_a_record_with_all_its_copies_moves_the_sum_by_at_most_the_clip_norm(copies: int) -> None:
    large = toy_samples(1)
    large = large.subset(torch.tensor([0]))
    large.inputs["first"].mul_(1e4)
    plan = plan_of(sample_rate=1.0, clip_norm=0.5, noise_multiplier=1e-9, expected_batch_size=1.0)
    training = training_settings(sample_rate=1.0).model_copy(
        update={"augment_multiplicity": copies, "learning_rate": 1.0}
    )
    change = flat(trained(Toy(), large, training=training, plan=plan, modality_dropout=0.5))

    assert float(change.norm()) == pytest.approx(0.5, rel=1e-3)


def test_copies_of_a_record_stand_together_and_are_as_many_as_asked() -> None:
    training = training_settings().model_copy(update={"augment_multiplicity": 3})
    public = public_numbers(training, plan=plan_of(sample_rate=0.5), nominal_size=20)
    rows = public.draw(toy_samples(20), source=reproducible_source(1, purpose="sampling"))
    single = public_numbers(training_settings(), plan=plan_of(sample_rate=0.5), nominal_size=20)

    assert public.rows_per_unit == 3
    assert public.expected_batch_size == single.expected_batch_size
    drawn = single.draw(toy_samples(20), source=reproducible_source(1, purpose="sampling"))
    assert torch.equal(rows, drawn.repeat_interleave(3))


def test_values_are_taken_piece_by_piece_however_many_copies_were_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three units of four copies at once, whoever was drawn; the sum, hidden modalities and all, is that of the whole."""
    samples, seen, whole = toy_samples(20), list[int](), FunctionalEngine.clipped_sum

    def watched(self: FunctionalEngine, model: nn.Module, batch: Batch, **how: Any) -> ClippedSum:
        seen.append(len(batch))
        return whole(self, model, batch, **how)

    monkeypatch.setattr(FunctionalEngine, "clipped_sum", watched)
    plan = plan_of(sample_rate=0.8, clip_norm=0.5, noise_multiplier=1e-9, clipping="adaptive")
    training = training_settings(sample_rate=0.8, gradient_engine="functional").model_copy(
        update={"augment_multiplicity": 4}
    )

    def change() -> tuple[Tensor, float | None]:
        result = trained_round(
            Toy(),
            samples,
            training=training,
            plan=plan,
            modality_dropout=0.5,
            noise=reproducible_source(1, purpose="noise"),
            sampling=reproducible_source(2, purpose="sampling"),
        )
        return flat(result.update), result.unclipped_share

    together, share = change()
    (rows,) = seen
    assert rows > 4 * 2 * 3
    seen.clear()
    monkeypatch.setattr(private_training, "BYTES_AT_ONCE", 3 * 4 * 2 * 5 * 4)
    in_pieces, same_share = change()

    assert sum(seen) == rows
    assert max(seen) == 3 * 4
    torch.testing.assert_close(in_pieces, together)
    assert same_share == pytest.approx(share)


def test_with_many_copies_a_record_has_nearly_the_mean_gradient_of_all_changes() -> None:
    """Twice the copies, half the difference between two draws, squared: 16 times for 16 times."""
    run = example_run({"vector": {"name": "linear", "augment": AUGMENT["vector"]}})
    samples, model = rows_of_run(run, 1, seed=1, lacking=None), build_model(run)
    names = tuple(name for name, _ in model.named_parameters())
    plan = plan_of(sample_rate=1.0, clip_norm=100.0, noise_multiplier=1e-9, expected_batch_size=1.0)

    def spread(copies: int) -> float:
        training = training_settings(sample_rate=1.0).model_copy(update={"augment_multiplicity": copies})
        changes = torch.stack(
            [
                flat(
                    trained(
                        model,
                        samples,
                        training=training,
                        plan=plan,
                        names=names,
                        sampling=reproducible_source(seed, purpose="sampling"),
                    )
                )
                for seed in range(30)
            ]
        )
        return float(changes.double().var(dim=0).sum())

    assert 8 < spread(1) / spread(16) < 32


def test_copies_that_are_all_the_same_are_refused() -> None:
    run = example_run({"vector": {"name": "linear"}})
    table = run.model_dump(mode="json")
    table["training"]["augment_multiplicity"] = 2
    with pytest.raises(ConfigError, match="copies of a record that are all the same"):
        parse_settings(RunConfig, table, place="example")
