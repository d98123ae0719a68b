"""Tests of shared/model/augment/: what is changed of a value belongs to its sample's key alone, and is what is said."""

import math
from collections.abc import Mapping

import pytest
import torch
from torch import Tensor

from shared.config import EncoderSettings
from shared.errors import ModelError
from shared.model.augment import Augmentation, build_augmentation
from shared.model.augment.clip import FrameVectorAugmentation
from shared.model.augment.vector import VectorOptions
from shared.model.encoders import preprocessor
from shared.model.multimodal import build_model
from shared.model.sample_draws import KEYS, normal, uniform
from shared.preprocess.audio import AudioOptions
from shared.privacy.noise import reproducible_source
from tests.shared.example_runs import AUGMENT, example_run

NUMBERS = 1_000_000
FALSE_ALARM_DEVIATIONS = 4.9
"""a fair mean of so many draws is further off once in a million tests"""
ENCODERS = {
    "photo": "cnn",
    "clip": "video",
    "sound": "mel-cnn",
    "motion": "conv1d",
    "words": "embedding-mean",
    "vector": "linear",
}


def keys(num: int) -> Tensor:
    return reproducible_source(1, purpose="test of augmentation").integers(num)


def built(
    modality: str, table: Mapping[str, object] | None = None, *, encoder: str = ""
) -> tuple[Augmentation, Tensor]:
    """The augmentation of a modality of the example run, and eight values that would reach it."""
    name = encoder or ENCODERS[modality]
    settings = EncoderSettings.model_validate({"name": name, "augment": dict(table or AUGMENT[modality])})
    run = example_run({modality: {"name": name}})
    way = preprocessor(run, modality)
    made = build_augmentation(settings, modality=modality, kind=run.data.modalities[modality].kind, preprocessor=way)
    if modality == "words":
        return made, torch.arange(1, 1 + 8 * way.shape[0]).view(8, -1) % 90 + 1
    return made, torch.randn(8, *way.shape, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("modality", ENCODERS)
def test_a_sample_is_changed_alike_alone_and_in_any_company(modality: str) -> None:
    augment, values = built(modality)
    drawn = keys(8)
    together = augment(values, drawn)

    for row in range(8):
        torch.testing.assert_close(augment(values[row : row + 1], drawn[row : row + 1])[0], together[row])
    assert not torch.equal(together, values)
    assert together.shape == values.shape
    assert bool(together.isfinite().all())


@pytest.mark.parametrize("option", [name for name in AUGMENT["clip"] if name != "noise"])
def test_all_frames_of_a_clip_are_changed_alike(option: str) -> None:
    """A clip that stands still goes on standing still; only noise tells its frames apart."""
    augment, values = built("clip", {option: AUGMENT["clip"][option]})
    still = values[:, :1].expand_as(values).contiguous()
    changed = augment(still, keys(8))

    for frame in range(1, changed.shape[1]):
        torch.testing.assert_close(changed[:, frame], changed[:, 0])
    assert not torch.equal(changed, still)


def test_a_clip_of_one_frame_is_changed_as_a_picture_but_for_its_name() -> None:
    clip, values = built("clip", {"saturation": 1.0, "contrast": 0.5, "rotate": 20.0})
    picture, _ = built("photo", {"saturation": 1.0, "contrast": 0.5, "rotate": 20.0})
    picture.modality = clip.modality

    torch.testing.assert_close(clip(values[:, :1], keys(8))[:, 0], picture(values[:, 0], keys(8)))


def test_vectors_of_frames_lose_numbers_of_their_own() -> None:
    augment = FrameVectorAugmentation(VectorOptions(drop=0.5), modality="clip")
    changed = augment(torch.ones(4, 3, 50), keys(4))

    assert changed.shape == (4, 3, 50)
    assert not torch.equal(changed[:, 0], changed[:, 1])
    assert set(changed.unique().tolist()) == {0.0, 2.0}


@pytest.mark.parametrize("modality", ENCODERS)
def test_nothing_is_changed_in_evaluation(modality: str) -> None:
    augment, values = built(modality)
    assert torch.equal(augment.eval()(values, None), values)


@pytest.mark.parametrize("modality", ENCODERS)
def test_training_without_keys_is_refused(modality: str) -> None:
    augment, values = built(modality)
    with pytest.raises(ModelError, match="has no keys"):
        augment(values, None)


@pytest.mark.parametrize("modality", ENCODERS)
def test_blank_values_stay_finite(modality: str) -> None:
    augment, values = built(modality)
    assert bool(augment(torch.zeros_like(values), keys(8)).isfinite().all())


def test_numbers_of_a_sample_are_even_and_gaussian() -> None:
    """Fails by chance for two keys in a million; rejects a mean and a deviation one part in a hundred off."""
    even = uniform(keys(1000), num=NUMBERS // 1000, purpose="a").double()
    bell = normal(keys(1000), num=NUMBERS // 1000, purpose="b").double()

    for mean, deviation in ((even.mean() - 0.5, 12**-0.5), (bell.mean(), 1.0), (bell.square().mean() - 1, 2**0.5)):
        assert abs(float(mean)) <= FALSE_ALARM_DEVIATIONS * deviation / math.sqrt(NUMBERS)
        assert abs(float(mean) + 0.01) > FALSE_ALARM_DEVIATIONS * deviation / math.sqrt(NUMBERS)
    assert float(even.min()) > 0
    assert float(even.max()) < 1


def test_purposes_share_no_numbers() -> None:
    one, other = uniform(keys(4), num=50, purpose="a"), uniform(keys(4), num=50, purpose="b")
    assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.35


def test_a_picture_turned_by_nothing_is_the_same_and_flipped_is_mirrored() -> None:
    still, values = built("photo", {"flip": 0.0, "rotate": 0.0, "scale": 0.0, "brightness": 0.0})
    mirrored, _ = built("photo", {"flip": 1.0})
    upright, _ = built("photo", {"flip_upright": 1.0})

    torch.testing.assert_close(still(values, keys(8)), values)
    torch.testing.assert_close(mirrored(values, keys(8)), values.flip(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(upright(values, keys(8)), values.flip(2), atol=1e-4, rtol=0)


def test_a_turned_picture_is_turned_and_not_bent() -> None:
    augment, _ = built("photo", {"rotate": 90.0})
    size = 16
    across, along = torch.meshgrid(torch.arange(size) - 7.5, torch.arange(size) - 7.5, indexing="ij")
    hill = (-(across**2 + along**2) / 20).exp().expand(8, 3, size, size)
    slope = across.expand(8, 3, size, size)

    # what is the same from all sides stays as it was, but for what lies between pixels
    assert float((augment(hill, keys(8)) - hill).abs().mean()) < 0.01
    assert float((augment(slope, keys(8)) - slope).abs().mean()) > 1


def test_brightness_keeps_black_black() -> None:
    augment, values = built("photo", {"brightness": 0.5})
    black = torch.full_like(values, -1.0)

    torch.testing.assert_close(augment(black, keys(8)), black)


def test_a_channel_that_is_no_colour_is_moved_and_not_lit() -> None:
    settings = EncoderSettings.model_validate(
        {
            "name": "cnn",
            "augment": {"flip": 1.0, "brightness": 0.5},
            "preprocess": {"size": 16, "segment": "otsu", "segment_as": "channel"},
        }
    )
    run = example_run({"photo": settings.model_dump()})
    augment = build_augmentation(settings, modality="photo", kind="image", preprocessor=preprocessor(run, "photo"))
    values = torch.randn(8, 4, 16, 16, generator=torch.Generator().manual_seed(0))
    changed = augment(values, keys(8))

    torch.testing.assert_close(changed[:, 3], values[:, 3].flip(2), atol=1e-4, rtol=0)
    assert not torch.allclose(changed[:, :3], values[:, :3].flip(3), atol=1e-2)


def test_gain_moves_all_bands_of_a_sound_by_one_number() -> None:
    augment, values = built("sound", {"gain_db": 10.0})
    change = augment(values, keys(8)) - values
    spread = AudioOptions().spread

    torch.testing.assert_close(change, change[:, :1, :1].expand_as(change))
    assert float(change.abs().max()) <= 10 * math.log(10) / 10 / spread + 1e-4


def test_an_echo_adds_power_of_earlier_frames_only() -> None:
    augment, values = built("sound", {"echo_db": -3.0, "echo_ms": 100.0})
    click = torch.full_like(values, -5.0)
    click[:, :, 10] = 2.0
    change = augment(click, keys(8)) - click

    assert float(change[:, :, :11].abs().max()) < 0.2
    assert bool((change[:, :, 11:].amax(dim=(1, 2)) > 1).all())
    assert bool((change >= -1e-5).all())


def test_left_out_words_let_the_others_move_up() -> None:
    augment, values = built("words")
    changed = augment(values, keys(8))

    for before, after in zip(values.tolist(), changed.tolist(), strict=True):
        left = [number for number in after if number]
        assert after[: len(left)] == left
        assert left[0] == before[0]
        others = iter(before)
        assert all(number in others for number in left)  # in their order
    assert 0.3 < float((changed == 0).float().mean()) < 0.5


def test_options_that_do_not_fit_what_reaches_the_model_are_refused() -> None:
    with pytest.raises(ModelError, match="no such setting"):
        built("words", {"rotate": 10.0})
    with pytest.raises(ModelError, match="cepstral coefficients"):
        built("sound", {"band_masks": 1}, encoder="mfcc-lstm")
    with pytest.raises(ModelError, match="no such setting"):
        built("sound", {"time_masks": 1}, encoder="mel-statistics")


def test_a_model_changes_values_in_training_alone() -> None:
    model = build_model(example_run({"vector": {"name": "linear", "augment": {"noise": 1.0}}}))
    values = {"vector": torch.randn(4, 5), KEYS: keys(4)}
    present = torch.ones(4, 1, dtype=torch.bool)

    trained = model.train()(values, present)
    assert not torch.equal(trained, model.eval()(values, present))
    assert torch.equal(model(values, present), model({"vector": values["vector"]}, present))
