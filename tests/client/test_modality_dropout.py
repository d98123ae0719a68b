"""Tests of modality dropout: what it hides, and that a sample still has one clipped gradient."""

from dataclasses import replace

import torch
from scipy import stats

from client.private_training import hide_modalities
from shared.privacy.noise import reproducible_source
from tests.client.toy import Toy, flat, plan_of, toy_samples, trained, training_settings


def test_modality_dropout_hides_only_what_is_there_and_never_the_last() -> None:
    samples = toy_samples(3000, seed=9)
    kept = hide_modalities(samples, chance=0.4, source=reproducible_source(2, purpose="test")).present

    assert not (kept & ~samples.present).any()
    assert kept.any(dim=1).all()
    single = samples.present.sum(dim=1) == 1
    assert torch.equal(kept[single], samples.present[single])
    both = kept[~single]
    # Of two, both stay with chance .36, and which one is hidden is even: fails by chance twice in a million.
    assert 1e-6 < stats.binom.cdf(int(both.all(dim=1).sum()), len(both), 0.36) < 1 - 1e-6
    lost = both[~both.all(dim=1)]
    assert 1e-6 < stats.binom.cdf(int(lost[:, 0].sum()), len(lost), 0.5) < 1 - 1e-6


def test_modality_dropout_keeps_empty_batches_and_rows_without_any_modality() -> None:
    samples = toy_samples(6)
    nothing = replace(samples, present=torch.zeros(6, 2, dtype=torch.bool))
    source = reproducible_source(2, purpose="test")

    assert not hide_modalities(nothing, chance=0.9, source=source).present.any()
    assert len(hide_modalities(toy_samples(0), chance=0.9, source=source)) == 0


def test_modality_dropout_leaves_one_clipped_gradient_a_sample() -> None:
    plan = plan_of(sample_rate=1.0, expected_batch_size=1.0, noise_multiplier=0.0)
    for row in range(6):
        samples = toy_samples(6).subset(torch.tensor([row]))
        large = replace(samples, inputs={name: 1e6 * values for name, values in samples.inputs.items()})
        change = trained(Toy(), large, training=training_settings(sample_rate=1.0), plan=plan, modality_dropout=0.5)

        assert float(flat(change).double().norm()) <= 0.7 * (1 + 1e-5)
