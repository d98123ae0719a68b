"""Tests of client/gradient/: every engine clips unit by unit, and all give the same numbers.

Of book-keeping, which needs layers to follow, test_bookkeeping.py says what is said of the others here.
"""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from client.gradient import GradientEngine, choose_engine
from client.gradient.bookkeeping import BookkeepingEngine
from client.gradient.choice import AutoEngine, EngineName
from client.gradient.engine import rows_of
from client.gradient.functional import FunctionalEngine
from client.gradient.hooks import HooksEngine
from client.gradient.plain import PlainEngine
from client.gradient.reference import ReferenceEngine
from shared.batch import Batch
from shared.config import EncoderSettings, FederationSettings, ModelSettings, PartSettings, RunConfig, TrainingSettings
from shared.errors import ModelError, PrivacyError
from shared.model.encoders import preprocessor
from shared.model.encoders.language import READ_ELSEWHERE
from shared.model.multimodal import build_model
from shared.model.registry import encoder_registry
from shared.model.sample_draws import draws_keys, with_keys
from shared.privacy.mechanism import GRIDS_PER_NORM, Clip
from shared.privacy.noise import reproducible_source
from shared.schema import DataSchema, Kind, ModalitySchema
from tests.client.toy import NAMES, WIDTH, Planted, Toy, planted_samples, toy_samples
from tests.shared.example_runs import FUSIONS, augment_of

ENGINES: dict[str, GradientEngine] = {
    "reference": ReferenceEngine(),
    "hooks": HooksEngine(),
    "functional": FunctionalEngine(microbatch_size=3),
}
PLANTING = ("reference", "functional")  # hooks do not reach weights outside a layer
WHOLE = Clip(0.5, grid=0.5 / GRIDS_PER_NORM)
WAYS = [(Clip(0.5), 1), (Clip(0.5, per_layer=True), 3), (WHOLE, 3)]
TOY_NAMES = tuple(name for name, _ in Toy().named_parameters())
ELSEWHERE = {*READ_ELSEWHERE, "minilm", "efficientnet-lite0", "frozen-efficientnet-lite0", "openwakeword"}
ELSEWHERE |= {"frozen-transformers", "pretrained-text", "pretrained-image", "pretrained-audio"}

plain = st.floats(min_value=-10, max_value=10, width=32)
strange = st.sampled_from([0.0, 1e-30, 1e18, -1e18, 3e38, math.nan, math.inf, -math.inf])
gradient = st.lists(st.one_of(plain, strange), min_size=WIDTH + 1, max_size=WIDTH + 1)


def flat(sums: dict[str, Tensor]) -> Tensor:
    return torch.cat([sums[name].reshape(-1) for name in sorted(sums)]).double()


@settings(max_examples=25, deadline=None)
@pytest.mark.parametrize("name", PLANTING)
@given(others=st.lists(gradient, max_size=4), one=gradient, clip_norm=st.sampled_from([1e-3, 0.5, 1.0, 30.0]))
def test_one_unit_moves_the_sum_by_at_most_the_clip_norm(
    name: str, others: list[list[float]], one: list[float], clip_norm: float
) -> None:
    model, names = Planted(), ("weight", "bias")

    def summed(rows: list[list[float]]) -> Tensor:
        batch = planted_samples(torch.tensor(rows, dtype=torch.float32).reshape(-1, WIDTH + 1))
        return flat(ENGINES[name].clipped_sum(model, batch, names=names, clip=Clip(clip_norm)).sums)

    with_one, without = summed([*others, one]), summed(others)

    assert with_one.isfinite().all()
    # Sums of up to five vectors of length clip_norm, in float32.
    assert float((with_one - without).norm()) <= clip_norm * (1 + 5e-6)


@pytest.mark.parametrize("name", PLANTING)
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf, 3e38])
def test_a_broken_gradient_contributes_exactly_zero(name: str, broken: float) -> None:
    healthy = [0.1] * (WIDTH + 1)
    rows = torch.tensor([healthy, [*[0.1] * WIDTH, broken], [broken] * (WIDTH + 1)])
    sums = ENGINES[name].clipped_sum(Planted(), planted_samples(rows), names=("weight", "bias"), clip=Clip(1.0)).sums

    alone = (
        ENGINES[name].clipped_sum(Planted(), planted_samples(rows[:1]), names=("weight", "bias"), clip=Clip(1.0)).sums
    )
    assert all(torch.equal(sums[key], alone[key]) for key in sums)


@pytest.mark.parametrize("name", PLANTING)
def test_a_unit_of_several_rows_gives_their_mean_clipped_once(name: str) -> None:
    """The first unit's rows cancel but for a half; clipped one by one they would have left nothing."""
    rows = torch.zeros(6, WIDTH + 1)
    rows[:, 0] = torch.tensor([9.0, -8.5, 1.0, 0.25, 0.25, 0.25])
    engine = ENGINES[name]
    units = engine.clipped_sum(
        Planted(), planted_samples(rows), names=("weight", "bias"), clip=Clip(1.0), rows_per_unit=3
    )

    assert units.sums["weight"].tolist() == pytest.approx([0.5 + 0.25, 0, 0, 0, 0])
    assert units.unclipped == 2.0


@pytest.mark.parametrize("name", PLANTING)
def test_one_broken_row_empties_its_unit_and_no_other(name: str) -> None:
    rows = torch.full((6, WIDTH + 1), 0.1)
    rows[1, 2] = math.nan
    sums = ENGINES[name].clipped_sum(
        Planted(), planted_samples(rows), names=("weight", "bias"), clip=Clip(1.0), rows_per_unit=3
    )

    assert flat(sums.sums).tolist() == pytest.approx([0.1] * (WIDTH + 1))
    assert sums.unclipped == 1.0


@pytest.mark.parametrize("name", [*ENGINES, "plain"])
def test_a_unit_whose_rows_are_not_all_there_is_refused(name: str) -> None:
    engine = ENGINES.get(name, PlainEngine())
    clip = Clip(math.inf if name == "plain" else 1.0)
    with pytest.raises(PrivacyError, match="a multiple of 3"):
        engine.clipped_sum(Toy(), toy_samples(4), names=TOY_NAMES, clip=clip, rows_per_unit=3)


def test_a_huge_gradient_is_clipped_and_a_small_one_is_left_alone() -> None:
    rows = torch.tensor([[1e15] + [0.0] * WIDTH, [0.0, 0.25] + [0.0] * (WIDTH - 1)])
    sums = (
        ReferenceEngine().clipped_sum(Planted(), planted_samples(rows), names=("weight", "bias"), clip=Clip(0.5)).sums
    )

    assert sums["weight"].tolist() == pytest.approx([0.5, 0.25, 0, 0, 0])


def test_0d_parameters_share_the_norm() -> None:
    rows = torch.tensor([[3.0, 0, 0, 0, 0, 4.0]])
    sums = (
        FunctionalEngine().clipped_sum(Planted(), planted_samples(rows), names=("weight", "bias"), clip=Clip(1.0)).sums
    )

    assert sums["weight"][0].item() == pytest.approx(0.6)
    assert sums["bias"].item() == pytest.approx(0.8)


@pytest.mark.parametrize("name", ENGINES)
def test_an_empty_batch_gives_exact_zeros(name: str) -> None:
    model = Toy()
    sums = ENGINES[name].clipped_sum(model, toy_samples(0), names=TOY_NAMES, clip=Clip(1.0)).sums

    assert {key: value.shape for key, value in sums.items()} == {
        key: parameter.shape for key, parameter in model.named_parameters()
    }
    assert all((value == 0).all() for value in sums.values())


@pytest.mark.parametrize("name", ["hooks", "functional"])
@pytest.mark.parametrize("rows_per_unit", [1, 3])
@pytest.mark.parametrize("clip", [Clip(0.1), Clip(1.0), Clip(math.inf), Clip(0.5, per_layer=True), WHOLE])
def test_engines_agree_on_a_model_with_absent_modalities_and_a_0d_weight(
    name: str, clip: Clip, rows_per_unit: int
) -> None:
    model, samples = Toy(), toy_samples(12)
    wanted, sums = (
        engine.clipped_sum(model, samples, names=TOY_NAMES, clip=clip, rows_per_unit=rows_per_unit).sums
        for engine in (ReferenceEngine(), ENGINES[name])
    )

    atol = 1e-6 if clip.grid is None else 100.0  # of float32's differences in gradients up to 2^20 widths long
    assert all(torch.allclose(sums[key].double(), wanted[key].double(), rtol=1e-5, atol=atol) for key in wanted)


@pytest.mark.parametrize("name", ENGINES)
def test_only_the_named_parameters_count_towards_the_norm(name: str) -> None:
    model, samples, names = Toy(), toy_samples(5), ("head.weight", "head.bias")
    sums = ENGINES[name].clipped_sum(model, samples, names=names, clip=Clip(0.2)).sums

    expected = torch.zeros(2)
    rows = [samples.take(torch.tensor([row])) for row in range(5)]
    for row in rows:
        outputs = model(row.inputs, row.present)
        loss = model.loss(outputs, row.targets).sum()
        gradients = torch.autograd.grad(loss, [model.head.weight, model.head.bias])
        norm = math.hypot(*(float(part.norm()) for part in gradients))
        expected += torch.tensor([float(part.sum()) * min(1, 0.2 / norm) for part in gradients])
    assert set(sums) == set(names)
    assert torch.allclose(torch.stack([sums[key].sum() for key in names]), expected, atol=1e-5)


@pytest.mark.parametrize("name", ENGINES)
def test_an_engine_leaves_the_model_as_it_was(name: str) -> None:
    model = Toy()
    model.first.requires_grad_(False)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    facts = [
        (key, value.requires_grad, value.grad is None, set(vars(value))) for key, value in model.named_parameters()
    ]
    hooks = [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()]
    ENGINES[name].clipped_sum(model, toy_samples(4), names=("head.weight", "scale.factor"), clip=Clip(1.0))

    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert facts == [
        (key, value.requires_grad, value.grad is None, set(vars(value))) for key, value in model.named_parameters()
    ]
    assert hooks == [len(module._forward_hooks) + len(module._backward_hooks) for module in model.modules()]


@pytest.mark.parametrize("name", ENGINES)
def test_a_name_that_is_not_in_the_model_is_refused(name: str) -> None:
    with pytest.raises((ModelError, KeyError)):
        ENGINES[name].clipped_sum(Toy(), toy_samples(2), names=("no.such",), clip=Clip(1.0))


def test_hooks_refuse_a_model_they_cannot_carry() -> None:
    rows = torch.ones(2, WIDTH + 1)
    with pytest.raises(ModelError, match="functional"):
        HooksEngine().clipped_sum(Planted(), planted_samples(rows), names=("weight",), clip=Clip(1.0))


class FoldsTokens(nn.Module):
    """Every token a row of one Linear: a usual idiom, after which Opacus' rows are no longer samples."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2)

    def forward(self, inputs: dict[str, Tensor], present: Tensor) -> Tensor:
        size, tokens, _ = inputs["x"].shape
        folded: Tensor = self.linear(inputs["x"].reshape(size * tokens, 3))
        return folded.reshape(size, tokens, 2).sum(dim=1)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return 100 * outputs.sum(dim=1)


def test_rows_that_are_not_samples_are_refused_by_the_hooks_engine() -> None:
    model, names = FoldsTokens(), ["linear.weight", "linear.bias"]
    batch = Batch(inputs={"x": torch.ones(2, 8, 3)}, present=torch.ones(2, 1, dtype=torch.bool), targets=torch.zeros(2))
    with pytest.raises(ModelError, match="16 rows where the batch has 2 samples"):
        HooksEngine().clipped_sum(model, batch, names=names, clip=Clip(1.0))
    whole = FunctionalEngine().clipped_sum(model, batch, names=names, clip=Clip(1.0)).sums
    assert float(torch.cat([each.reshape(-1) for each in whole.values()]).norm()) <= 2.0001


def test_the_plain_engine_refuses_to_clip() -> None:
    for clip in (Clip(1.0), Clip(math.inf, grid=1.0)):
        with pytest.raises(PrivacyError, match="does not clip"):
            PlainEngine().clipped_sum(Toy(), toy_samples(2), names=TOY_NAMES, clip=clip)


def test_the_plain_engine_is_the_reference_without_clipping() -> None:
    model, samples = Toy(), toy_samples(9)
    for rows_per_unit in (1, 3):
        wanted, found = (
            engine.clipped_sum(model, samples, names=TOY_NAMES, clip=Clip(math.inf), rows_per_unit=rows_per_unit)
            for engine in (ReferenceEngine(), PlainEngine())
        )
        assert found.unclipped == wanted.unclipped
        assert all(torch.allclose(found.sums[key], wanted.sums[key], rtol=1e-5, atol=1e-6) for key in TOY_NAMES)


@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ("auto", AutoEngine),
        ("bookkeeping", BookkeepingEngine),
        ("functional", FunctionalEngine),
        ("hooks", HooksEngine),
        ("reference", ReferenceEngine),
    ],
)
def test_the_asked_engine_is_chosen(asked: EngineName, kind: type) -> None:
    assert isinstance(choose_engine(asked, Toy()), kind)


def test_auto_takes_hooks_for_opacus_recurrent_layers() -> None:
    from opacus.layers import DPLSTM

    assert isinstance(choose_engine("auto", nn.Sequential(DPLSTM(2, 3))), HooksEngine)


def registry_run(encoders: list[tuple[Kind, str]], *, fusion: str, rating: bool = False) -> RunConfig:
    schema: dict[Kind, ModalitySchema] = {
        **{kind: ModalitySchema(kind=kind) for kind in ("image", "text", "audio")},
        "signal": ModalitySchema(kind="signal", channels=2),
        "features": ModalitySchema(kind="features", width=6),
    }
    parts = {f"part{number}": part for number, part in enumerate(encoders)}
    return RunConfig(
        name="engines",
        seed=3,
        data=DataSchema(
            task="rating" if rating else "single-label",
            labels=() if rating else ("a", "b", "c"),
            rating_range=(0.0, 4.0) if rating else None,
            modalities={name: schema[kind] for name, (kind, _) in parts.items()},
        ),
        model=ModelSettings(
            embedding_width=8,
            encoders={name: EncoderSettings(name=encoder) for name, (_, encoder) in parts.items()},
            fusion=PartSettings(name=fusion),
        ),
        training=TrainingSettings(optimizer="sgd", learning_rate=0.1, batch_size=4, local_steps=1),
        privacy="none",
        federation=FederationSettings(rounds=1),
    )


def registry_batch(run: RunConfig, *, size: int) -> Batch:
    generator = torch.Generator().manual_seed(4)
    inputs = {}
    for name in run.modalities:
        shape = (size, *preprocessor(run, name).shape)
        text = run.data.modalities[name].kind == "text"
        inputs[name] = (
            torch.randint(0, 50, shape, generator=generator)
            if text
            else torch.randn(shape, generator=generator).double()
        )
    present = torch.rand(size, len(run.modalities), generator=generator) < 0.6
    present[:, 0] |= ~present.any(dim=1)
    classes = torch.randint(3, (size,), generator=generator)
    batch = Batch(inputs=inputs, present=present, targets=classes.double() if run.data.task == "rating" else classes)
    return with_keys(batch, source=reproducible_source(4, purpose="dropout")) if draws_keys(build_model(run)) else batch


def assert_engines_agree(run: RunConfig, *, clip: Clip, rows_per_unit: int) -> None:
    # In float64, where a ReLU at its kink does not tip over because one engine rounds another way.
    model, batch = build_model(run).double(), registry_batch(run, size=6)
    names = tuple(name for name, _ in model.named_parameters())
    wanted = ReferenceEngine().clipped_sum(model, batch, names=names, clip=clip, rows_per_unit=rows_per_unit)
    # a contribution may round to the neighbouring whole number where the engines differ in the last bit
    rtol, atol = (1e-9, 1e-12) if clip.grid is None else (0.0, 2.0)
    assert float(flat(wanted.sums).norm()) * (clip.grid or 1.0) > 0.1
    engines: list[GradientEngine] = [HooksEngine(), FunctionalEngine(microbatch_size=4)]
    if clip.grid is None:
        engines.append(BookkeepingEngine(microbatch_size=4))
    for engine in engines:
        found = engine.clipped_sum(model, batch, names=names, clip=clip, rows_per_unit=rows_per_unit)
        assert found.unclipped == wanted.unclipped
        for key in names:
            assert found.sums[key].dtype == wanted.sums[key].dtype
            assert torch.allclose(found.sums[key], wanted.sums[key], rtol=rtol, atol=atol), (type(engine).__name__, key)


KINDS: tuple[Kind, ...] = ("image", "text", "audio", "signal", "features")
BUILT_IN = [(kind, name) for kind in KINDS for name in encoder_registry.names(takes=kind) if name not in ELSEWHERE]


@pytest.mark.parametrize(("clip", "rows_per_unit"), WAYS)
@pytest.mark.parametrize(("kind", "name"), BUILT_IN)
def test_engines_agree_on_every_encoder(kind: Kind, name: str, clip: Clip, rows_per_unit: int) -> None:
    run = registry_run([(kind, name), ("features", "linear")], fusion="concat")
    assert_engines_agree(run, clip=clip, rows_per_unit=rows_per_unit)


@pytest.mark.parametrize(("clip", "rows_per_unit"), WAYS)
def test_engines_agree_on_what_dropout_leaves(clip: Clip, rows_per_unit: int) -> None:
    run = registry_run([("text", "transformer"), ("features", "linear")], fusion="concat")
    run = run.model_copy(update={"model": run.model.model_copy(update={"dropout": 0.4})})
    assert_engines_agree(run, clip=clip, rows_per_unit=rows_per_unit)


@pytest.mark.parametrize(("clip", "rows_per_unit"), WAYS)
@pytest.mark.parametrize(
    ("kind", "name"),
    [("image", "cnn"), ("text", "transformer"), ("audio", "mel-cnn"), ("signal", "conv1d"), ("features", "linear")],
)
def test_engines_agree_on_what_augmentation_changes(kind: Kind, name: str, clip: Clip, rows_per_unit: int) -> None:
    run = registry_run([(kind, name), ("features", "linear")], fusion="concat")
    first = run.modalities[0]
    encoder = run.model.encoders[first].model_copy(update={"augment": augment_of(name)})
    changed = run.model.model_copy(update={"encoders": {**run.model.encoders, first: encoder}})
    assert_engines_agree(run.model_copy(update={"model": changed}), clip=clip, rows_per_unit=rows_per_unit)


@pytest.mark.parametrize(("clip", "rows_per_unit"), WAYS)
@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("rating", [False, True])
def test_engines_agree_on_every_fusion_and_task(fusion: str, rating: bool, clip: Clip, rows_per_unit: int) -> None:
    run = registry_run([("features", "linear"), ("features", "linear")], fusion=fusion, rating=rating)
    assert_engines_agree(run, clip=clip, rows_per_unit=rows_per_unit)


@pytest.mark.parametrize("rows_per_unit", [1, 3])
@pytest.mark.parametrize("name", ["hooks", "functional"])
def test_no_engine_holds_more_than_a_microbatch(name: str, rows_per_unit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[int] = []

    def noted(batch: Batch, *, start: int, stop: int) -> Batch:
        rows = rows_of(batch, start=start, stop=stop)
        held.append(len(rows))
        return rows

    engine = HooksEngine(microbatch_size=6) if name == "hooks" else FunctionalEngine(microbatch_size=6)
    monkeypatch.setattr(f"client.gradient.{name}.rows_of", noted)
    batch, model = toy_samples(21), Toy()
    pieces = engine.clipped_sum(model, batch, names=NAMES, clip=Clip(0.5), rows_per_unit=rows_per_unit)
    whole = ReferenceEngine().clipped_sum(model, batch, names=NAMES, clip=Clip(0.5), rows_per_unit=rows_per_unit)

    assert (max(held), sum(held)) == (6, 21)
    for parameter in NAMES:
        torch.testing.assert_close(pieces.sums[parameter], whole.sums[parameter])
    assert pieces.unclipped == whole.unclipped
