"""CMU-MOSI: opinions about films, spoken to a camera, as transcripts and feature vectors of text, audio and video.

in        an .npz of transcripts and of the features that Poria et al. 2017 published
out       one site a training video, some training videos for validation, the official test videos
relies on writer.py for the folder

The published text and video vectors hold the training labels (docs/decisions/0004): the card's order puts the clean
modalities first, and the README of the folder warns.
"""

import io
from dataclasses import dataclass
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Bool, Float, Int

from shared.errors import ConfigError
from shared.schema import DataCard, DataSchema, ModalitySchema
from simulations.datasets.writer import TEST, VALIDATION, BuiltDataset, File, NewRow, built, writing

LABELS = ("negative", "positive")
ARRAYS = {"audio": "audio", "text_features": "text", "video": "video"}
"""modality -> array of the .npz with its vectors; `text` is the transcript itself"""


@dataclass(frozen=True)
class _Segments:
    """N spoken segments."""

    transcripts: tuple[str, ...]
    features: dict[str, Float[np.ndarray, "..."]]
    """by modality, [N, width] each once `_check` has seen them"""
    labels: Int[np.ndarray, "N"]
    names: tuple[str, ...]
    videos: tuple[str, ...]
    is_test: Bool[np.ndarray, "N"]


def build_mosi(target: Path, *, source: Path, validation_videos: int = 10, seed: int = 0) -> BuiltDataset:
    """Write CMU-MOSI as site folders: a site is a video, which is one speaker; a row is a segment of it.

    Args:
        source: the .npz, or the folder it lies in.
        validation_videos: training videos, drawn at random, that the server keeps; the others are sites.

    Raises:
        ConfigError: `source` is not such data, there are too few videos, or `target` is taken.
    """
    segments = _read(source)
    videos = sorted({video for video, test in zip(segments.videos, segments.is_test, strict=True) if not test})
    if not 1 <= validation_videos < len(videos):
        raise ConfigError(f"validation_videos is {validation_videos}; allowed: 1 to {len(videos) - 1}")
    kept = np.random.default_rng([seed, 5]).permutation(len(videos))[:validation_videos]
    parts = {videos[int(index)]: VALIDATION for index in kept}
    widths = {name: values.shape[1] for name, values in segments.features.items()}
    with writing(target, card=_card(widths)) as writer:
        for row, (name, video) in enumerate(zip(segments.names, segments.videos, strict=True)):
            values: dict[str, str | File] = {"text": segments.transcripts[row]}
            values |= {modality: File(".npy", _npy(vectors[row])) for modality, vectors in segments.features.items()}
            part = TEST if segments.is_test[row] else parts.get(video, f"video-{video}")
            label = LABELS[int(segments.labels[row])]
            writer.add(
                part, NewRow(f"s{row:04d}", values, targets={"label": label}, subject=video, columns={"segment": name})
            )
        writer.finish(
            how_it_was_made=_STORY.format(
                sites=len(writer.sites),
                videos=len(videos),
                validation=validation_videos,
                seed=seed,
                widths=", ".join(f"{name} {width}" for name, width in widths.items()),
            )
        )
    return built(target, writer=writer)


def _npy(vector: Float[np.ndarray, "width"]) -> bytes:
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(vector, dtype=np.float32))
    return content.getvalue()


def _read(source: Path) -> _Segments:
    files = sorted(source.glob("*.npz")) if source.is_dir() else [source]
    needed = (*ARRAYS.values(), "transcript", "y", "segment", "video_id", "is_test")
    allowed = f"an .npz with {', '.join(needed)}, or a folder that holds just one .npz"
    if len(files) != 1 or files[0].suffix != ".npz":
        raise ConfigError(f"{source}: holds {len(files)} .npz files, or is none; allowed: {allowed}")
    try:
        with np.load(files[0], allow_pickle=False) as arrays:
            segments = _Segments(
                # A tokenizer that tells capitals apart would take a shouted transcript for abbreviations.
                transcripts=tuple(" ".join(str(text).lower().split()) for text in arrays["transcript"]),
                features={name: arrays[array].astype(np.float32) for name, array in ARRAYS.items()},
                labels=arrays["y"].astype(np.int64),
                names=tuple(str(name) for name in arrays["segment"]),
                videos=tuple(str(name) for name in arrays["video_id"]),
                is_test=arrays["is_test"].astype(np.bool_),
            )
    except (OSError, ValueError, KeyError, BadZipFile) as error:
        raise ConfigError(f"{files[0]}: {error}; allowed: {allowed}") from None
    _check(segments, place=files[0])
    return segments


def _check(segments: _Segments, *, place: Path) -> None:
    shapes = {name: values.shape for name, values in segments.features.items()}
    both = {v for v, test in zip(segments.videos, segments.is_test, strict=False) if test} & {
        v for v, test in zip(segments.videos, segments.is_test, strict=False) if not test
    }
    columns = (segments.transcripts, segments.labels, segments.names, segments.videos, segments.is_test)
    lengths = {len(column) for column in columns}
    faults = [
        (any(len(s) != 2 for s in shapes.values()), f"features are {shapes}; allowed: [segments, width] each"),
        (lengths != {s[0] for s in shapes.values()}, "its arrays hold different numbers of segments"),
        (bool(both), f"videos {sorted(both)[:5]} are in training and in the test"),
        (not set(np.unique(segments.labels)) <= {0, 1}, "y holds something else than 0 (negative) and 1 (positive)"),
        (not segments.is_test.any(), "no segment is marked is_test"),
        (not all(np.isfinite(v).all() for v in segments.features.values()), "a feature is not finite"),
        (not all(segments.transcripts), "a transcript is empty"),
    ]
    for is_there, text in faults:
        if is_there:
            raise ConfigError(f"{place}: {text}")


def _card(widths: dict[str, int]) -> DataCard:
    return DataCard(
        title="CMU-MOSI: sentiment of spoken film reviews, as transcripts and as text, audio and video features",
        generated=False,
        licence="for research only: the videos belong to those who made them; do not ship data or model in a product",
        citation=(
            "A. Zadeh, R. Zellers, E. Pincus, L.-P. Morency. Multimodal sentiment intensity analysis in videos. IEEE "
            "Intelligent Systems 31(6), 2016. Features: S. Poria et al., Context-dependent sentiment analysis in "
            "user-generated videos, ACL 2017"
        ),
        source="https://github.com/declare-lab/multimodal-deep-learning, bc-LSTM/data",
        content=DataSchema(
            task="single-label",
            labels=LABELS,
            modalities={
                "text": ModalitySchema(kind="text"),
                **{name: ModalitySchema(kind="features", width=width) for name, width in widths.items()},
            },
            ignored=("segment",),
        ),
    )


_STORY = """
Each row is a segment of a video in which one person speaks about a film, and whether it is negative or positive.
`text` is the transcript, in small letters; `audio`, `video` and `text_features` are the vectors that Poria et al. 2017
published (numbers of features: {widths}). `subject_id` is the video.

**Warning: `text_features` and `video` hold the labels of the training videos.** Their authors trained the networks that
make them on those labels, of validation and sites alike, and without privacy. A run that uses them

- has no validation: on videos whose labels are in the features almost any model looks nearly perfect;
- is not private, whatever epsilon its report shows: the features told the labels before the run began.

Use `text`, and `audio`, whose vectors were computed without labels. Keep the others for comparison with the literature.

- Test: the official test videos. Validation: {validation} of the {videos} training videos, drawn at random. Sites: the
  other {sites}, one each.
- Seed {seed}.
"""
