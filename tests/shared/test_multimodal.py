"""The whole model: rows are independent, and an absent modality has no influence at all."""

import itertools

import pytest
import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap

from shared.errors import ModelError
from shared.model.encoders import preprocessor
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import modality_of
from shared.model.registry import Fusion
from tests.shared.example_runs import FUSIONS, OF_KIND, example_run, finished, small

PAIRS = [
    (first, second, fusion)
    for (first, second), fusion in zip(
        itertools.cycle(
            [
                ({"photo": "cnn"}, {"words": "transformer"}),
                ({"sound": "mel-cnn"}, {"motion": "conv1d"}),
                ({"words": "embedding-mean"}, {"sound": "mfcc-lstm"}),
                ({"motion": "statistics"}, {"vector": "linear"}),
            ]
        ),
        [fusion for fusion in FUSIONS for _ in range(4)],
        strict=False,
    )
]


def model_and_inputs(
    names: dict[str, str], *, fusion: str, rows: int = 5, rating: bool = False, head: str = "linear"
) -> tuple[MultimodalModel, dict[str, Tensor], Tensor, Tensor]:
    run = example_run({key: small(name) for key, name in names.items()}, fusion=fusion, rating=rating, head=head)
    inputs = {key: finished(key, shape=preprocessor(run, key).shape, rows=rows, seed=7) for key in run.modalities}
    present = torch.ones(rows, len(run.modalities), dtype=torch.bool)
    targets = torch.linspace(-2, 2, rows) if rating else torch.arange(rows) % 3
    return build_model(run), inputs, present, targets


@pytest.mark.parametrize(("first", "second", "fusion"), PAIRS)
def test_each_sample_has_its_own_exact_gradient_and_none_for_what_it_lacks(
    first: dict[str, str], second: dict[str, str], fusion: str
) -> None:
    model, inputs, present, targets = model_and_inputs({**first, **second}, fusion=fusion, rows=3)
    present[1, 0] = present[2, 1] = False
    weights = {key: value.detach() for key, value in model.named_parameters()}

    def loss(parameters: dict[str, Tensor], values: dict[str, Tensor], there: Tensor, target: Tensor) -> Tensor:
        rows = {key: value[None] for key, value in values.items()}
        outputs: Tensor = functional_call(model, parameters, (rows, there[None]))
        return model.loss(outputs, target[None]).sum()

    together = vmap(grad(loss), in_dims=(None, 0, 0, 0))(weights, inputs, present, targets)

    for row in range(3):
        rows = slice(row, row + 1)
        outputs = model({key: value[rows] for key, value in inputs.items()}, present[rows])
        model.zero_grad()
        torch.autograd.backward(model.loss(outputs, targets[rows]).sum())
        for key, parameter in model.named_parameters():
            alone = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            torch.testing.assert_close(together[key][row], alone, atol=1e-5, rtol=1e-4)
            serves = modality_of(model, key)
            if serves is not None and not present[row, model.modalities.index(serves)]:
                assert together[key][row].count_nonzero() == 0


@pytest.mark.parametrize("fusion", FUSIONS)
def test_absent_modality_gets_no_gradient(fusion: str) -> None:
    model, inputs, present, targets = model_and_inputs({"words": "transformer", "vector": "linear"}, fusion=fusion)
    present[:, model.modalities.index("vector")] = False
    inputs["vector"] = torch.full_like(inputs["vector"], float("nan"))

    outputs = model(inputs, present)
    torch.autograd.backward(model.loss(outputs, targets).sum())

    assert outputs.isfinite().all()
    for key, parameter in model.named_parameters():
        if modality_of(model, key) == "vector":
            assert parameter.grad is None or parameter.grad.count_nonzero() == 0
        elif parameter.grad is not None:
            assert parameter.grad.isfinite().all()


@pytest.mark.parametrize("fusion", FUSIONS)
@pytest.mark.parametrize("absent", ["photo", "words", "motion"])
def test_what_stands_in_an_absent_input_does_not_matter_and_it_may_be_left_out(fusion: str, absent: str) -> None:
    names = {"photo": "cnn", "words": "embedding-mean", "motion": "statistics"}
    model, inputs, present, _ = model_and_inputs(names, fusion=fusion)
    present[:, model.modalities.index(absent)] = False
    garbage = {**inputs, absent: inputs[absent].flip(0) * 3}
    left_out = {key: value for key, value in inputs.items() if key != absent}

    expected = model(inputs, present)

    assert torch.equal(model(garbage, present), expected)
    assert torch.equal(model(left_out, present), expected)
    assert torch.equal(model(left_out, torch.ones_like(present)), expected)


class CarelessFusion(Fusion):
    """What a user might write: it forgets that a modality can be absent."""

    def forward(self, embeddings: Tensor, present: Tensor) -> Tensor:
        return embeddings.sum(dim=1)


def test_even_a_fusion_that_forgets_about_absent_modalities_is_given_zeros() -> None:
    model, inputs, present, targets = model_and_inputs({"photo": "cnn", "vector": "linear"}, fusion="sum")
    present[:, 1] = False
    expected = model(inputs, present)
    model.fusion = CarelessFusion()

    outputs = model(inputs, present)
    torch.autograd.backward(model.loss(outputs, targets).sum())

    assert torch.equal(outputs, expected)
    assert all(
        value.grad is not None and value.grad.count_nonzero() == 0 for value in model.encoders["vector"].parameters()
    )


@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_present_modality_does_matter(fusion: str) -> None:
    model, inputs, present, _ = model_and_inputs({"photo": "cnn", "vector": "linear"}, fusion=fusion)
    changed = {**inputs, "vector": inputs["vector"] + 1}
    fewer = present.clone()
    fewer[:, 0] = False

    assert not torch.allclose(model(changed, present), model(inputs, present))
    assert not torch.allclose(model(inputs, fewer), model(inputs, present))


@pytest.mark.parametrize("fusion", FUSIONS)
def test_rows_do_not_see_each_other(fusion: str) -> None:
    names = {modality: choices[0] for modality, choices in OF_KIND.items()}
    model, inputs, present, _ = model_and_inputs(names, fusion=fusion)
    present[0, 1] = present[3, 0] = present[3, 4] = False
    order = torch.tensor([3, 1, 4, 0, 2])

    together = model(inputs, present)
    shuffled = model({key: value[order] for key, value in inputs.items()}, present[order])
    alone = torch.cat(
        [
            model({key: value[row : row + 1] for key, value in inputs.items()}, present[row : row + 1])
            for row in range(5)
        ]
    )

    torch.testing.assert_close(shuffled, together[order], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(alone, together, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("fusion", FUSIONS)
def test_no_rows_and_rows_without_any_modality_are_finite(fusion: str) -> None:
    model, inputs, present, targets = model_and_inputs({"photo": "cnn", "words": "transformer"}, fusion=fusion)

    nobody = model({key: value[:0] for key, value in inputs.items()}, present[:0])
    torch.autograd.backward(model.loss(nobody, targets[:0]).sum())
    assert nobody.shape == (0, 3)

    model.zero_grad()
    nothing = model(inputs, torch.zeros_like(present))
    torch.autograd.backward(model.loss(nothing, targets).sum())
    assert nothing.isfinite().all()
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())


@pytest.mark.parametrize("head", ["linear", "mlp"])
@pytest.mark.parametrize("fusion", FUSIONS)
def test_a_run_gives_the_same_model_every_time_and_moves_no_global_generator(fusion: str, head: str) -> None:
    before = torch.get_rng_state()
    names = {"photo": "cnn", "words": "transformer"}
    first, again = (model_and_inputs(names, fusion=fusion, head=head)[0].state_dict() for _ in range(2))

    assert torch.equal(torch.get_rng_state(), before)
    assert list(first) == list(again)
    assert all(torch.equal(first[key], again[key]) for key in first)


def test_a_modality_more_leaves_the_first_weights_of_the_others_alone() -> None:
    one = build_model(example_run({"photo": small("cnn")}, fusion="mean")).state_dict()
    two = build_model(example_run({"photo": small("cnn"), "words": small("transformer")}, fusion="mean")).state_dict()
    assert all(torch.equal(two[key], value) for key, value in one.items())


def test_ratings_come_in_the_unit_of_the_data_and_their_loss_does_not_depend_on_it() -> None:
    model, inputs, present, targets = model_and_inputs({"vector": "linear"}, fusion="mean", rating=True)
    outputs = model(inputs, present)

    assert outputs.shape == (5, 1)
    torch.testing.assert_close(model.loss(outputs, targets), ((outputs[:, 0] - targets) / 3).square())


def test_linear_encoders_summed_are_logistic_regression_on_all_features_each_times_its_scale() -> None:
    table = {
        "motion": {**small("statistics"), "options": {"normalise_input": False, "scale": 2.0}},
        "vector": small("linear"),
    }
    run = example_run(table, fusion="sum", head="identity", width=3)
    model = build_model(run)
    inputs = {key: finished(key, shape=preprocessor(run, key).shape, rows=4) for key in run.modalities}

    outputs = model(inputs, torch.ones(4, 2, dtype=torch.bool))

    weights = torch.cat([model.encoders[key].get_parameter("linear.weight") for key in run.modalities], dim=1)
    bias = sum(model.encoders[key].get_parameter("linear.bias") for key in run.modalities)
    features = torch.cat([inputs[key] * (2.0 if key == "motion" else 1.0) for key in run.modalities], dim=1)
    expected = features @ weights.T + bias
    torch.testing.assert_close(outputs, expected)


def test_a_modality_name_that_torch_needs_is_refused() -> None:
    run = example_run({"vector": small("linear")})
    schema = run.data.model_copy(update={"modalities": {"values": run.data.modalities["vector"]}})
    model = run.model.model_copy(update={"encoders": {"values": run.model.encoders["vector"]}})

    with pytest.raises(ModelError, match=r"\['values'\] have names that torch needs"):
        build_model(run.model_copy(update={"data": schema, "model": model}))
