"""Tests of describe.py, verbal.py and pretrained_words.py: words that stand for a value follow from the value alone."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from shared.errors import ModelError
from shared.media import Waveform
from shared.preprocess.audio import load_torchaudio
from shared.preprocess.describe import describe_picture, describe_signal, describe_sound
from shared.preprocess.pretrained import local_checkpoint
from shared.preprocess.pretrained_words import Captioner, Recogniser
from shared.preprocess.verbal import VerbalOptions, VerbalPreprocessor
from tests.shared.pretrained_folders import pretrained_folder

RATE_HZ = 8_000


def sound(samples: np.ndarray) -> Waveform:
    return Waveform(samples=samples[None].astype(np.float32), sample_rate_hz=RATE_HZ)


def tone(hz: float, *, seconds: float = 2.0, size: float = 0.3) -> np.ndarray:
    return size * np.sin(2 * np.pi * hz * np.arange(round(seconds * RATE_HZ)) / RATE_HZ)


def test_a_picture_is_called_by_its_colours_and_where_they_lie() -> None:
    pixels = np.full((40, 60, 3), 255, dtype=np.uint8)
    pixels[:20] = (220, 30, 30)
    assert describe_picture(Image.fromarray(pixels)) == ("a bright plain picture, mostly white below, mostly red above")
    assert describe_picture(Image.new("L", (9, 9))) == "a dark plain picture, mostly black all over"


def test_a_sound_is_called_by_length_level_pitch_and_course() -> None:
    draws = np.random.default_rng(0)
    assert describe_sound(sound(tone(200))) == "a medium long loud tonal sound, very low in pitch, steady, even"
    assert describe_sound(sound(np.zeros(RATE_HZ * 6))) == "long silence"
    hiss = describe_sound(sound(draws.normal(0, 0.02, RATE_HZ // 2)))
    assert hiss == "a short medium noisy sound, middle in pitch, steady, even"
    swell = tone(1000) * np.linspace(0.01, 1, 2 * RATE_HZ)
    assert describe_sound(sound(swell)).endswith("changing, growing")


def test_a_signal_is_called_channel_by_channel() -> None:
    steps = np.arange(100.0)
    values = np.stack([steps / 100, 20 * np.sin(steps * 2.5) - 200, np.zeros(100)], axis=1).astype(np.float32)
    assert describe_signal(values) == (
        "1 positive weak slow rising; 2 negative strong very fast level; 3 near zero still"
    )


@pytest.mark.parametrize("value", [np.zeros((1, 2), np.float32), np.full((4, 1), 1e30, np.float32)])
def test_extreme_signals_have_words_too(value: np.ndarray) -> None:
    assert describe_signal(value)


def test_words_become_tokens_of_the_language_model_and_the_digest_says_whose(tmp_path: Path) -> None:
    bert, gpt = (local_checkpoint(pretrained_folder(tmp_path / kind, kind=kind)) for kind in ("bert", "gpt2"))
    options = VerbalOptions(max_tokens=6, before="Today:")
    made = VerbalPreprocessor(options, checkpoint=bert, words=lambda _: "good day", network=None)
    plain = VerbalPreprocessor(options, checkpoint=bert, words=lambda _: "bad day", network=None)
    others = [
        VerbalPreprocessor(options, checkpoint=gpt, words=describe_picture, network=None),
        VerbalPreprocessor(options, checkpoint=bert, words=describe_picture, network=gpt),
        VerbalPreprocessor(VerbalOptions(max_tokens=6), checkpoint=bert, words=describe_picture, network=None),
        VerbalPreprocessor(options, checkpoint=bert, words=describe_picture, network=None),
    ]

    assert made.read(Image.new("L", (4, 4))).shape == (6,)
    assert not torch.equal(made.read(Image.new("L", (4, 4))), plain.read(Image.new("L", (4, 4))))
    assert len({each.digest for each in others}) == 4


def test_a_local_network_captions_a_picture(tmp_path: Path) -> None:
    load_torchaudio()
    from transformers import (
        BertTokenizer,
        GPT2Config,
        GPT2LMHeadModel,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTModel,
    )

    eyes = ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8
    )
    torch.manual_seed(0)
    decoder = GPT2Config(vocab_size=8, n_embd=8, n_layer=1, n_head=2, n_positions=64, add_cross_attention=True)
    decoder.is_decoder = True
    network = VisionEncoderDecoderModel(encoder=ViTModel(eyes), decoder=GPT2LMHeadModel(decoder))
    network.config.decoder_start_token_id = network.config.pad_token_id = 0
    network.generation_config.decoder_start_token_id = network.generation_config.pad_token_id = 0
    network.save_pretrained(tmp_path)
    (tmp_path / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "house"]))
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps({"image_processor_type": "ViTImageProcessor", "size": {"height": 8, "width": 8}})
    )
    captioner, picture = Captioner(local_checkpoint(tmp_path)), Image.new("RGB", (20, 10), (200, 0, 0))
    said = captioner(picture)

    assert set(said.split()) <= {"a", "red", "house"}
    assert said == captioner(picture.copy())


def test_a_local_network_writes_down_what_is_said(tmp_path: Path) -> None:
    load_torchaudio()
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC

    torch.manual_seed(0)
    config = Wav2Vec2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8, vocab_size=5,
        conv_dim=(4, 4), conv_stride=(5, 4), conv_kernel=(10, 8), num_conv_pos_embeddings=4,
        num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(tmp_path)
    letters = {"<pad>": 0, "<unk>": 1, "|": 2, "A": 3, "B": 4}
    (tmp_path / "vocab.json").write_text(json.dumps(letters))
    Wav2Vec2CTCTokenizer(str(tmp_path / "vocab.json")).save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    Wav2Vec2FeatureExtractor().save_pretrained(tmp_path)  # type: ignore[no-untyped-call]
    recogniser = Recogniser(local_checkpoint(tmp_path))
    said = recogniser(sound(tone(300, seconds=0.5)))

    assert set(said) <= set("AB <unk>")
    assert said == recogniser(sound(tone(300, seconds=0.5)))


def test_a_folder_without_such_a_network_is_refused(tmp_path: Path) -> None:
    checkpoint = local_checkpoint(pretrained_folder(tmp_path / "bert", kind="bert"))
    with pytest.raises(ModelError, match="no captioning network that transformers can read"):
        Captioner(checkpoint)(Image.new("RGB", (4, 4)))
    with pytest.raises(ModelError, match="no speech recogniser that transformers can read"):
        Recogniser(checkpoint)(sound(tone(300)))
