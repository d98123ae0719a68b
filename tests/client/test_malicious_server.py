"""A server that means harm: what it may change from request to request, and what it learns by it."""

from pathlib import Path

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from client.private_training import engine_of
from shared.batch import Samples
from shared.config import RunConfig
from shared.errors import ModelError
from shared.messages import Refusal
from shared.privacy.accountant import SMALLEST_NOISE_MULTIPLIER, calibrate_noise
from shared.privacy.mechanism import Clip
from tests.client.asking import ask, rows_of, site_file, used
from tests.client.toy import plan_of, training_settings
from tests.tiny import tiny_config


def test_settings_that_change_in_the_middle_of_a_run_are_tried_out_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Equal ones are not, whatever process asks: what has passed is on the disk."""
    path, sound = site_file(tmp_path), tiny_config(private=True)
    other = sound.model_copy(update={"model": sound.model.model_copy(update={"embedding_width": 5})})
    tried: list[RunConfig] = []

    def assert_sound(run: RunConfig) -> None:
        tried.append(run)
        if run.model.embedding_width == 5:
            raise ModelError("its gradients are not of single samples")

    monkeypatch.setattr("client.preflight.assert_sound", assert_sound)
    for number in (1, 2):
        used(ask(path, sound, number=number))
    assert len(tried) == 1
    assert ask(path, other, number=3) == Refusal("model-invalid")
    assert len(rows_of(tmp_path)) == 2
    used(ask(path, sound, number=3))
    assert len(tried) == 2


@pytest.mark.parametrize("clip_norm", [1e-6, 1e6])
def test_a_round_with_the_most_extreme_settings_is_charged_like_any_other(
    tmp_path: Path, clip_norm: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner's floor is under the noise, and what left is in the ledger, whatever became of the numbers."""
    monkeypatch.setattr("client.preflight.assert_sound", lambda _: None)
    table = tiny_config(private=True).model_dump()
    table["training"] |= {"sample_rate": 1.0, "learning_rate": 1e6}
    table["privacy"] |= {"clip_norm": clip_norm, "epsilon": 1e6, "delta": 0.5}
    ask(site_file(tmp_path), RunConfig.model_validate(table))
    (row,) = rows_of(tmp_path)
    assert row.use.noise_multiplier >= 0.3
    assert row.use.steps == 2


class Wide(nn.Module):
    """A network wide enough for matrix products to be summed in another order when the batch is another."""

    def __init__(self) -> None:
        super().__init__()
        state = torch.random.get_rng_state()
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(64, 128), nn.Linear(128, 3)
        torch.random.set_rng_state(state)

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        outputs: Tensor = self.second(self.first(inputs["first"]).tanh())
        return outputs

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")


def test_with_whole_numbers_nobody_moves_anothers_contribution() -> None:
    """The sum over all but one and that one's own make the sum over all, to the last unit, in whichever engine's name."""
    model, num = Wide(), 130
    names = tuple(name for name, _ in model.named_parameters())
    draws = torch.Generator().manual_seed(1)
    samples = Samples(
        inputs={"first": torch.randn(num, 64, generator=draws)},
        present=torch.ones(num, 1, dtype=torch.bool),
        targets=torch.randint(3, (num,), generator=draws),
        subjects=tuple(str(row) for row in range(num)),
        groups={},
    )
    clip, plan, everybody = Clip(0.7, grid=0.7 / 2**20), plan_of(noise="discrete"), torch.arange(num)
    for name in ("auto", "functional", "hooks"):
        engine = engine_of(model, training=training_settings(gradient_engine=name), plan=plan)
        for one in (0, 70):
            everyone, others, alone = (
                engine.clipped_sum(model, samples.take(rows), names=names, clip=clip).sums
                for rows in (everybody, everybody[everybody != one], everybody[one : one + 1])
            )
            assert all(torch.equal(everyone[each], others[each] + alone[each]) for each in names)


def test_the_search_for_the_least_noise_ends_where_any_would_do() -> None:
    """A rate at which almost nobody is ever drawn; no site may be kept busy for ever by being asked for it."""
    least = calibrate_noise(epsilon=1e6, delta=0.5, sample_rate=1e-9, steps=1, accountant="rdp")
    assert least == pytest.approx(SMALLEST_NOISE_MULTIPLIER)
    with pytest.raises(ValidationError):
        training_settings(sample_rate=1e-10)
