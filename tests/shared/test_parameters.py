"""Parameters: each belongs to a modality or to all, and only layers with per-sample gradients pass."""

from collections.abc import Callable

import pytest
import torch
from torch import nn

from shared.errors import ModelError
from shared.model.multimodal import build_model
from shared.model.parameters import (
    PerModality,
    check_per_sample,
    given_names,
    modality_of,
    tensor_of,
    trainable_names,
)
from tests.shared.example_runs import FUSIONS, example_run, small

NAMES = {"photo": small("cnn"), "words": small("transformer")}


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_site_sends_nothing_of_a_modality_it_lacks(fusion: str) -> None:
    model = build_model(example_run(NAMES, fusion=fusion))
    everything = trainable_names(model, ("photo", "words"))
    photo, words = trainable_names(model, ("photo",)), trainable_names(model, ("words",))

    assert everything == tuple(name for name, _ in model.named_parameters())
    assert not any("words" in name for name in photo)
    assert set(photo) | set(words) == set(everything)
    assert {name for name in everything if modality_of(model, name) is None} == set(photo) & set(words)
    assert all(any(name.startswith(f"encoders.{key}.") for name in everything) for key in NAMES)


@pytest.mark.parametrize(
    ("fusion", "name", "modality"),
    [
        ("concat", "encoders.words.token.weight", "words"),
        ("concat", "fusion.project.photo.weight", "photo"),
        ("gated", "fusion.gate.words.bias", "words"),
        ("attention", "fusion.token.photo.bias", "photo"),
        ("attention", "fusion.layers.0.mix.weight", None),
        ("average", "head.words.linear.weight", "words"),
        ("mean", "head.linear.weight", None),
    ],
)
def test_names_say_whom_a_parameter_serves_and_stay_as_they_are(fusion: str, name: str, modality: str | None) -> None:
    model = build_model(example_run(NAMES, fusion=fusion))
    assert name in dict(model.named_parameters())
    assert modality_of(model, name) == modality


def test_a_modality_called_like_a_part_of_another_is_not_confused_with_it() -> None:
    inner = nn.ModuleDict({"photo": nn.Linear(1, 1)})
    model = nn.Sequential()
    model.add_module("encoders", PerModality({"words": inner}))

    assert modality_of(model, "encoders.words.photo.weight") == "words"
    assert trainable_names(model, ("photo",)) == ()


def test_frozen_parameters_do_not_travel() -> None:
    model = build_model(example_run(NAMES))
    model.encoders["photo"].requires_grad_(requires_grad=False)
    assert not any(name.startswith("encoders.photo.") for name in trainable_names(model, ("photo", "words")))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(2, 2), nn.Linear(2, 2)
        self.second.weight = self.first.weight


@pytest.mark.parametrize(
    ("layer", "said"),
    [
        (nn.BatchNorm2d(2), r"deep\.layer: BatchNorm2d mixes the samples.*use nn\.GroupNorm"),
        (nn.SyncBatchNorm(2), "SyncBatchNorm mixes"),
        (nn.LSTM(2, 2), r"deep\.layer: LSTM hides its steps.*LinearLstm"),
        (nn.GRU(2, 2), "GRU"),
        (nn.RNN(2, 2), "RNN"),
        (nn.LSTMCell(2, 2), "LSTMCell"),
        (nn.MultiheadAttention(2, 1), r"use shared\.model\.attention\.TransformerBlock"),
        (nn.TransformerEncoderLayer(2, 1, 2), r"deep\.layer\.self_attn: MultiheadAttention"),
        (nn.InstanceNorm1d(2, track_running_stats=True), "keeps running statistics"),
        (nn.Dropout(0.1), "Dropout draws from a generator"),
        (nn.LazyLinear(2), "has no shape yet"),
        (Tied(), r"deep\.layer\.second\.weight: is the same tensor as deep\.layer\.first\.weight"),
    ],
)
@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_layer_without_exact_per_sample_gradients_is_named_with_what_to_use(layer: nn.Module, said: str) -> None:
    model = nn.ModuleDict({"deep": nn.ModuleDict({"layer": layer})})
    with pytest.raises(ModelError, match=said):
        check_per_sample(model)


def test_all_faults_of_a_model_are_told_at_once() -> None:
    with pytest.raises(ModelError, match=r"0: BatchNorm1d(.|\n)*1: GRU"):
        check_per_sample(nn.Sequential(nn.BatchNorm1d(2), nn.GRU(2, 2)))


def test_layers_with_exact_gradients_pass() -> None:
    check_per_sample(nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.InstanceNorm2d(4)))


def test_the_refused_batch_norm_does_mix_samples() -> None:
    layer, rows = nn.BatchNorm1d(2), torch.tensor([[0.0, 1.0], [2.0, 3.0], [1.0, 1.0]])
    other = torch.tensor([[0.0, 1.0], [9.0, 9.0], [1.0, 1.0]])
    assert not torch.allclose(layer(rows)[0], layer(other)[0])


class Library(nn.Module):
    """A layer with rows of its own that a run gives it."""

    given = ("rows", "layer.bias")

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2)
        self.layer.bias.requires_grad = False
        self.register_buffer("rows", torch.zeros(3, 2))
        self.register_buffer("built", torch.ones(1))


def test_what_a_module_is_given_is_sent_where_its_modality_is_and_never_trained() -> None:
    model = nn.Sequential()
    model.add_module("encoders", PerModality({"words": Library(), "photo": nn.Linear(1, 1)}))

    assert given_names(model, ("words", "photo")) == ("encoders.words.layer.bias", "encoders.words.rows")
    assert given_names(model, ("photo",)) == ()
    assert not set(given_names(model, ("words",))) & set(trainable_names(model, ("words",)))
    assert torch.equal(tensor_of(model, "encoders.words.rows"), torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda library: setattr(library, "given", ("row",)), r"encoders\.row: there is no parameter or buffer"),
        (lambda library: setattr(library, "given", ("layer.weight",)), r"layer\.weight: it trains"),
        (
            lambda library: setattr(library, "rows", torch.zeros(3, dtype=torch.int64)),
            r"rows: it is of type torch\.int",
        ),
    ],
)
def test_a_module_that_names_what_cannot_be_given_is_refused(change: Callable[[Library], None], said: str) -> None:
    model, library = nn.Sequential(), Library()
    change(library)
    model.add_module("encoders", library)
    with pytest.raises(ModelError, match=said):
        given_names(model, ())
