"""A run that asks for steps of every kind trains, and reads equal folders equally."""

from pathlib import Path

import torch

from client.private_training import train_round
from shared.config import RunConfig
from shared.dataset import load_samples
from shared.model.multimodal import build_model
from shared.privacy.noise import reproducible_source
from shared.settings import parse_settings
from tests.shared.media_samples import whole_folder

ENCODERS: dict[str, dict[str, object]] = {
    "image": {
        "name": "cnn",
        "options": {"channels": (4, 8), "groups": 2},
        "preprocess": {
            "size": 8, "denoise": "median", "contrast": "auto", "equalise": "adaptive", "sharpen": 0.5,
            "segment": "otsu", "segment_as": "channel",
        },
    },
    "text": {
        "name": "embedding-mean",
        "options": {"token_width": 4},
        "preprocess": {
            "vocabulary": 50, "max_tokens": 8, "language": "en", "stop_words": "drop", "tags": "beside",
            "numbers": "name", "urls": "drop", "markup": "drop", "emoji": "name", "longest_repeat": 3,
        },
    },
    "audio": {
        "name": "mfcc-lstm",
        "options": {"hidden": 4},
        "preprocess": {
            "seconds": 0.2, "bands": 8, "coefficients": 4, "deltas": 2, "denoise": "stationary", "trim": "ends",
            "level": "lufs",
        },
    },
    "motion": {
        "name": "statistics",
        "preprocess": {
            "length": 16, "bands": 2, "features": "all", "levels": 2, "high_pass": 0.05, "window": "hann",
            "part": "centre",
        },
    },
}  # fmt: skip


def run() -> RunConfig:
    kinds = {"image": {"kind": "image"}, "text": {"kind": "text"}, "audio": {"kind": "audio"}}
    table = {
        "name": "steps",
        "seed": 1,
        "data": {
            "task": "single-label",
            "labels": ("joy", "calm"),
            "modalities": {**kinds, "motion": {"kind": "signal", "channels": 3}},
            "groups": ("language",),
            "ignored": ("vector_file_name",),
        },
        "model": {"embedding_width": 6, "encoders": ENCODERS, "fusion": {"name": "concat"}, "head": {"name": "linear"}},
        "training": {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 4, "local_steps": 1},
        "privacy": "none",
        "federation": {"rounds": 1, "server_optimizer": {"name": "fedavg"}},
    }
    return parse_settings(RunConfig, table, place="here")


def test_a_run_with_steps_of_every_kind_trains(tmp_path: Path) -> None:
    whole_folder(tmp_path / "site")
    samples = load_samples(tmp_path / "site", run=run(), cache=tmp_path / "cache")
    again = load_samples(tmp_path / "site", run=run(), cache=tmp_path / "other")
    assert all(torch.equal(samples.inputs[name], again.inputs[name]) for name in ENCODERS)
    assert all(values.isfinite().all() for values in samples.inputs.values())

    model = build_model(run())
    trained = train_round(
        model, samples, names=tuple(name for name, _ in model.named_parameters()), training=run().training, plan=None,
        nominal_size=6, round_number=1, rounds=1, modality_dropout=0.0, noise=reproducible_source(1, purpose="noise"),
        sampling=reproducible_source(1, purpose="sampling"),
    )  # fmt: skip

    for name in ENCODERS:
        moved = [change for parameter, change in trained.update.items() if parameter.startswith(f"encoders.{name}.")]
        assert moved
        assert all(change.isfinite().all() for change in moved)
        assert any(change.count_nonzero() for change in moved)
