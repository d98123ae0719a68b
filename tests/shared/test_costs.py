"""Costs: alignment is of each sample by itself, reaches the encoders turned round, and costs an absent modality nothing."""

import pytest
import torch
from torch import Tensor, nn

from client.gradient.bookkeeping import BookkeepingEngine
from client.gradient.functional import FunctionalEngine
from client.gradient.reference import ReferenceEngine
from client.gradient.stacked import why_not_stacked
from shared.batch import Batch
from shared.config import AdversarySettings, RunConfig
from shared.errors import ModelError
from shared.model.costs import ModalityAdversary, build_costs
from shared.model.encoders import preprocessor
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import trainable_names
from shared.privacy.mechanism import Clip
from tests.shared.example_runs import example_run, small

OURS = [f"costs.adversary.{name}" for name in ("hidden.weight", "hidden.bias", "guess.weight", "guess.bias")]


def run_with(*, weight: float = 0.1, names: tuple[str, ...] = ("motion", "vector")) -> RunConfig:
    table = {"photo": small("cnn"), "motion": small("statistics"), "vector": small("linear")}
    run = example_run({name: table[name] for name in names}, fusion="mean")
    adversary = AdversarySettings(weight=weight, hidden=5)
    return run.model_copy(update={"model": run.model.model_copy(update={"adversary": adversary})})


SHAPES = {name: preprocessor(run_with(), name).shape for name in run_with().modalities}


def adversary(*, weight: float = 0.5, num_modalities: int = 3) -> ModalityAdversary:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return ModalityAdversary(width=4, num_modalities=num_modalities, hidden=5, weight=weight)


def batch_of(size: int) -> Batch:
    draws = torch.Generator().manual_seed(2)
    inputs = {name: torch.randn(size, *shape, generator=draws).double() for name, shape in SHAPES.items()}
    present = torch.rand(size, 2, generator=draws) < 0.7
    return Batch(inputs=inputs, present=present, targets=torch.randint(3, (size,), generator=draws))


def test_the_cost_is_the_mean_cross_entropy_of_the_guesses_at_what_is_present() -> None:
    embeddings = torch.randn(3, 3, 4, generator=torch.Generator().manual_seed(1))
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 0, 0]], dtype=torch.bool)
    cost = adversary()
    guesses = cost.guess(cost.hidden(embeddings).relu())
    each = torch.stack(
        [
            nn.functional.cross_entropy(guesses[:, place], torch.full((3,), place), reduction="none")
            for place in range(3)
        ]
    )

    torch.testing.assert_close(cost(embeddings, present)[0], each[:, 0].mean())
    torch.testing.assert_close(cost(embeddings, present)[1], (each[0, 1] + each[2, 1]) / 2)
    assert cost(embeddings, present)[2].count_nonzero() == 0


def test_gradients_are_turned_round_and_scaled_on_their_way_to_the_embeddings_and_nowhere_else() -> None:
    embeddings = torch.randn(4, 3, 4, generator=torch.Generator().manual_seed(1), requires_grad=True)
    present = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 0, 0]], dtype=torch.bool)
    cost = adversary(weight=0.25)
    straight = -cost.told(embeddings).diagonal(dim1=1, dim2=2)
    expected = (straight * present).sum(dim=1) / present.sum(dim=1).clamp(min=1)
    wanted = torch.autograd.grad(expected.sum(), [embeddings, *cost.parameters()])

    found = torch.autograd.grad(cost(embeddings, present).sum(), [embeddings, *cost.parameters()])

    torch.testing.assert_close(found[0], -0.25 * wanted[0])
    assert found[0][~present].count_nonzero() == 0
    assert found[0][present].count_nonzero() > 0
    for ours, theirs in zip(found[1:], wanted[1:], strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_sample_costs_the_same_whoever_is_beside_it_and_whatever_stands_where_it_has_nothing() -> None:
    embeddings = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(1))
    present = torch.rand(6, 3, generator=torch.Generator().manual_seed(2)) < 0.6
    cost = adversary()
    garbage = torch.where(present[:, :, None], embeddings, 1e3)
    together = cost(embeddings, present)

    assert torch.equal(cost(garbage, present), together)
    torch.testing.assert_close(cost(embeddings.flip(0), present.flip(0)).flip(0), together)
    for row in range(6):
        torch.testing.assert_close(cost(embeddings[row : row + 1], present[row : row + 1])[0], together[row])


def test_the_cost_is_added_in_training_alone() -> None:
    run = run_with()
    model, batch = build_model(run), batch_of(5)
    inputs = {name: values.float() for name, values in batch.inputs.items()}
    plain = build_model(run.model_copy(update={"model": run.model.model_copy(update={"adversary": None})}))

    trained = model.train()(inputs, batch.present)
    torch.testing.assert_close(trained[:, :3], plain(inputs, batch.present))
    torch.testing.assert_close(
        model.loss(trained, batch.targets), plain.loss(trained[:, :3], batch.targets) + trained[:, 3]
    )
    assert torch.equal(model.eval()(inputs, batch.present), trained[:, :3])


@pytest.mark.parametrize("clip", [Clip(0.05), Clip(0.3, per_layer=True)])
@pytest.mark.parametrize("rows_per_unit", [1, 3])
def test_engines_agree_on_a_model_that_is_aligned(clip: Clip, rows_per_unit: int) -> None:
    model = build_model(run_with()).double().train()
    batch, names = batch_of(12), [name for name, _ in model.named_parameters()]
    assert why_not_stacked(model, names=names) is None
    wanted = ReferenceEngine().clipped_sum(model, batch, names=names, clip=clip, rows_per_unit=rows_per_unit)

    for engine in (BookkeepingEngine(), FunctionalEngine(microbatch_size=4)):
        found = engine.clipped_sum(model, batch, names=names, clip=clip, rows_per_unit=rows_per_unit)
        assert found.unclipped == wanted.unclipped
        for name in names:
            torch.testing.assert_close(found.sums[name], wanted.sums[name], rtol=1e-9, atol=1e-12)
    assert all(float(wanted.sums[name].norm()) > 0 for name in OURS)


def test_the_network_that_guesses_travels_from_every_site() -> None:
    model = build_model(run_with())
    for modalities in (("motion", "vector"), ("motion",)):
        names = trainable_names(model, modalities)
        assert [name for name in names if name.startswith("costs.")] == OURS


def test_first_weights_follow_from_the_seed_and_leave_those_of_other_parts_alone() -> None:
    run = run_with()
    plain = build_model(run.model_copy(update={"model": run.model.model_copy(update={"adversary": None})}))
    first, again = build_model(run).state_dict(), build_model(run).state_dict()

    assert all(torch.equal(first[name], value) for name, value in again.items())
    assert all(torch.equal(first[name], value) for name, value in plain.state_dict().items())
    assert set(first) - set(plain.state_dict()) == set(OURS)


def test_one_modality_has_nothing_to_be_told_from() -> None:
    with pytest.raises(
        ModelError,
        match=r"the model has one modality, 'vector', and nothing to tell it from; allowed: two modalities or more",
    ):
        build_model(run_with(names=("vector",)))
    assert build_costs(example_run({"vector": small("linear")})) == {}


def made_up(num: int, *, seed: int) -> tuple[dict[str, Tensor], Tensor]:
    """Three classes, and two modalities that lie apart."""
    draws, means = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(0)
    targets = torch.randint(3, (num,), generator=draws)
    inputs = {}
    for (name, shape), away in zip(SHAPES.items(), (0.5, -0.5), strict=True):
        classes = torch.randn(3, *shape, generator=means)
        inputs[name] = classes[targets] + torch.randn(num, *shape, generator=draws) + away
    return inputs, targets


def told_apart(model: MultimodalModel, inputs: dict[str, Tensor]) -> float:
    """Share of embeddings whose modality a new linear classifier names; a half is chance."""
    with torch.no_grad():
        embeddings = torch.cat([model.encoders[name](inputs[name]) for name in ("motion", "vector")])
    modality = torch.arange(2).repeat_interleave(len(inputs["motion"]))
    embeddings = (embeddings - embeddings.mean(dim=0)) / embeddings.std(dim=0)
    columns = torch.cat([embeddings, torch.ones(len(embeddings), 1)], dim=1)
    fitted = torch.linalg.lstsq(columns, 2.0 * modality[:, None] - 1).solution
    return float((((columns @ fitted)[:, 0] > 0) == modality.bool()).float().mean())


def trained(weight: float | None, *, seed: int) -> MultimodalModel:
    run = run_with(weight=weight or 1.0).model_copy(update={"seed": seed})
    if weight is None:
        run = run.model_copy(update={"model": run.model.model_copy(update={"adversary": None})})
    model, draws = build_model(run).train(), torch.Generator().manual_seed(3)
    inputs, targets = made_up(600, seed=1)
    steps = torch.optim.SGD(model.parameters(), lr=0.05)
    for _ in range(300):
        rows = torch.randint(600, (64,), generator=draws)
        outputs = model({name: values[rows] for name, values in inputs.items()}, torch.ones(64, 2, dtype=torch.bool))
        steps.zero_grad()
        torch.autograd.backward(model.loss(outputs, targets[rows]).mean())
        steps.step()
    return model.eval()


def test_alignment_makes_modalities_harder_to_tell_apart_and_keeps_what_is_learned() -> None:
    inputs, targets = made_up(400, seed=2)
    apart: dict[float | None, float] = {}
    for weight in (None, 0.05):
        models = [trained(weight, seed=seed) for seed in (0, 1)]
        for model in models:
            with torch.no_grad():
                outputs = model(inputs, torch.ones(400, 2, dtype=torch.bool))
            assert (outputs.argmax(dim=1) == targets).float().mean() > 0.97
        apart[weight] = sum(told_apart(model, inputs) for model in models) / 2

    assert apart[None] > 0.8
    assert apart[0.05] < 0.75
