"""Tests of fusion/language.py: a language model reads each sample by itself, and only what of it is there."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from client.gradient.bookkeeping import BookkeepingEngine
from client.gradient.reference import ReferenceEngine
from client.gradient.watching import why_not_stacked
from shared.batch import Batch
from shared.config import RunConfig
from shared.errors import ModelError
from shared.model.encoders import preprocessor
from shared.model.encoders.checkpoint import named_folders, with_digests
from shared.model.fusion.language import LanguageFusion
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import trainable_names
from shared.preprocess.pretrained import local_checkpoint
from shared.preprocess.pretrained_text import text_network
from shared.privacy.mechanism import Clip
from tests.shared.example_runs import example_run
from tests.shared.pretrained_folders import pretrained_folder

KINDS = ("bert", "gpt2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("language")
    return {kind: pretrained_folder(root / kind, kind=kind) for kind in KINDS}


def prefix_run(folder: Path, *, mode: str = "frozen", soft_tokens: int = 2, max_tokens: int = 6) -> RunConfig:
    path = {"path": str(folder)}
    words = {"name": "tokens", "options": path, "preprocess": {"max_tokens": max_tokens}}
    return example_run(
        {"vector": {"name": "linear"}, "words": words},
        fusion="prefix",
        fusion_options={**path, "mode": mode, "soft_tokens": soft_tokens},
    )


def spoken_run(folder: Path, **more: object) -> RunConfig:
    path = {"path": str(folder)}
    return example_run(
        {
            "motion": {"name": "description", "options": path, "preprocess": {"max_tokens": 8}},
            "words": {"name": "tokens", "options": path, "preprocess": {"max_tokens": 6}},
        },
        fusion="verbalise",
        fusion_options={**path, **more},
    )


def rows(run: RunConfig, *, num: int = 5) -> Batch:
    """Samples with words, without, with nothing but words, and with nothing at all."""
    draws = torch.Generator().manual_seed(0)
    texts = ["good day", "bad rain again today", "joy", "sunny", ""][:num]
    inputs: dict[str, Tensor] = {}
    for name in run.modalities:
        way = preprocessor(run, name)
        if name == "words":
            inputs[name] = torch.stack([way.read(text) for text in texts])
        elif name == "vector":
            inputs[name] = torch.randn(num, *way.shape, generator=draws)
        else:
            inputs[name] = torch.randint(1, 9, (num, *way.shape), generator=draws)
    present = torch.tensor([[True, True], [True, False], [False, True], [True, True], [False, False]])[:num]
    return Batch(inputs=inputs, present=present, targets=torch.tensor([0, 1, 2, 0, 1])[:num])


def language_of(model: MultimodalModel) -> LanguageFusion:
    assert isinstance(model.fusion, LanguageFusion)
    return model.fusion


@pytest.mark.parametrize("mode", ["frozen", "lora", "train"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spoken", [False, True])
def test_every_sample_has_a_gradient_of_its_own(kind: str, mode: str, spoken: bool, folders: dict[str, Path]) -> None:
    run = spoken_run(folders[kind], mode=mode) if spoken else prefix_run(folders[kind], mode=mode)
    model, batch = build_model(run).double(), rows(run)
    batch = Batch(
        {name: values.double() if values.is_floating_point() else values for name, values in batch.inputs.items()},
        batch.present,
        batch.targets,
    )
    names = trainable_names(model, run.modalities)
    assert why_not_stacked(model, names=names) is None
    wanted = ReferenceEngine().clipped_sum(model, batch, names=names, clip=Clip(0.5)).sums
    found = BookkeepingEngine().clipped_sum(model, batch, names=names, clip=Clip(0.5)).sums

    for name in names:
        torch.testing.assert_close(found[name], wanted[name], rtol=1e-6, atol=1e-9)
    base = [name for name in names if name.startswith("fusion.network") and "lora" not in name]
    assert bool(base) == (mode == "train")
    assert any("lora" in name for name in names) == (mode == "lora")


@pytest.mark.parametrize("kind", KINDS)
def test_without_soft_tokens_it_is_the_language_model_of_the_text(kind: str, folders: dict[str, Path]) -> None:
    run = prefix_run(folders[kind])
    model, batch = build_model(run).eval(), rows(run)
    place = run.modalities.index("words")
    only_words = torch.zeros_like(batch.present)
    only_words[:, place] = batch.present[:, place]
    own, fusion = text_network(local_checkpoint(folders[kind])), language_of(model)

    with torch.no_grad():
        found = fusion(model.embeddings(batch.inputs, only_words), only_words, batch.inputs)
        wanted = fusion.out(own(batch.inputs["words"].masked_fill(~only_words[:, [place]], 0)))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("spoken", [False, True])
def test_what_is_absent_has_no_influence(kind: str, spoken: bool, folders: dict[str, Path]) -> None:
    run = spoken_run(folders[kind]) if spoken else prefix_run(folders[kind])
    model, batch = build_model(run).eval(), rows(run)
    other = {
        name: torch.where(batch.present[:, place, None], values, torch.ones_like(values))
        for place, (name, values) in enumerate(batch.inputs.items())
    }
    with torch.no_grad():
        outputs, same = model(batch.inputs, batch.present), model(other, batch.present)
        everything = model(batch.inputs, torch.ones_like(batch.present))
        by_itself = torch.cat([model(batch.take(torch.tensor([row])).inputs, batch.present[[row]]) for row in range(5)])

    assert bool(outputs.isfinite().all())
    torch.testing.assert_close(outputs, same)
    torch.testing.assert_close(outputs, by_itself, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(outputs[1:3], everything[1:3])


def test_a_vector_reaches_the_language_model(folders: dict[str, Path]) -> None:
    run = prefix_run(folders["gpt2"])
    model, batch = build_model(run).eval(), rows(run)
    moved = {**batch.inputs, "vector": batch.inputs["vector"].flip(0)}

    with torch.no_grad():
        assert not torch.allclose(model(batch.inputs, batch.present)[0], model(moved, batch.present)[0])


def test_settings_that_do_not_fit_are_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(ModelError, match=r"'prefix': of \['vector'\], \[\] give tokens"):
        build_model(example_run({"vector": {"name": "linear"}}, fusion="prefix"))
    with pytest.raises(ModelError, match="'verbalise': vector gives no tokens"):
        build_model(
            example_run(
                {"vector": {"name": "linear"}}, fusion="verbalise", fusion_options={"path": str(folders["bert"])}
            )
        )
    words = {"name": "tokens", "options": {"path": str(folders["bert"])}}
    with pytest.raises(ModelError, match="fusion 'concat' joins embeddings, and words gives tokens"):
        build_model(example_run({"vector": {"name": "linear"}, "words": words}))
    other = example_run(
        {"vector": {"name": "linear"}, "words": words},
        fusion="prefix",
        fusion_options={"path": str(folders["gpt2"])},
    )
    with pytest.raises(ModelError, match="words: tokens of another language model"):
        build_model(other)
    with pytest.raises(ModelError, match="up to 18 tokens of all modalities together; allowed: 16"):
        build_model(prefix_run(folders["bert"], max_tokens=16))


def test_folders_of_fusion_and_encoders_are_named_and_get_their_digests(folders: dict[str, Path]) -> None:
    run = with_digests(prefix_run(folders["bert"]))

    assert set(named_folders(run)) == {"encoder of words (path)", "fusion (path)"}
    digest = local_checkpoint(folders["bert"]).digest
    assert run.model.fusion.options["weights_digest"] == digest
    assert run.model.encoders["words"].options["weights_digest"] == digest
    assert build_model(run).task.num_outputs == 3
