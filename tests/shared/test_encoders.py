"""Encoders: every one has exact per-sample gradients, learns, and is the same from the same seed."""

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, vmap

from shared.errors import ModelError
from shared.model.encoders import build_encoder, preprocessor
from shared.model.encoders.recurrent import LinearLstm
from tests.shared.example_runs import OF_KIND, example_run, finished, raw_value, small

ALL = [(modality, name) for modality, names in OF_KIND.items() for name in names]
DEFAULT_SIZES = {
    "cnn": (10_000, 30_000),
    "transformer": (30_000, 60_000),
    "embedding-mean": (5_000, 30_000),
    "bag-of-ngrams": (30_000, 35_000),
    "mel-cnn": (5_000, 20_000),
    "mfcc-lstm": (2_000, 20_000),
    "mel-statistics": (2_000, 5_000),
    "conv1d": (5_000, 20_000),
    "statistics": (500, 5_000),
    "resnet": (10_000, 30_000),
    "vgg": (10_000, 30_000),
    "vit": (10_000, 30_000),
    "embedding-lstm": (10_000, 30_000),
    "conformer": (10_000, 30_000),
    "ast": (10_000, 30_000),
    "lstm": (2_000, 20_000),
    "video": (10_000, 30_000),
    "linear": (50, 500),
}


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_what_the_preprocessor_finishes_the_encoder_takes(modality: str, name: str) -> None:
    run = example_run({modality: small(name)})
    door, encoder = preprocessor(run, modality), build_encoder(run, modality)

    values = door.finish(torch.stack([door.read(raw_value(modality, seed=seed)) for seed in range(3)]))

    assert values.shape == (3, *door.shape)
    embeddings = encoder(values)
    assert embeddings.shape == (3, 6)
    assert embeddings.isfinite().all()


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_each_sample_has_the_gradient_of_a_backward_pass_of_its_own(modality: str, name: str) -> None:
    run = example_run({modality: small(name)})
    encoder, door = build_encoder(run, modality), preprocessor(run, modality)
    values = finished(modality, shape=door.shape, rows=4)
    weights = {key: value.detach() for key, value in encoder.named_parameters()}

    def loss(parameters: dict[str, torch.Tensor], value: torch.Tensor) -> torch.Tensor:
        embedding: torch.Tensor = functional_call(encoder, parameters, (value[None],))
        return (embedding * torch.linspace(-1, 1, 6)).sum() + embedding.square().sum()

    together = vmap(grad(loss), in_dims=(None, 0))(weights, values)

    for row in range(4):
        encoder.zero_grad()
        embedding = encoder(values[row : row + 1])
        torch.autograd.backward((embedding * torch.linspace(-1, 1, 6)).sum() + embedding.square().sum())
        for key, parameter in encoder.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(together[key][row], parameter.grad, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_zeros_in_place_of_an_absent_value_give_finite_embeddings_and_gradients(modality: str, name: str) -> None:
    run = example_run({modality: small(name)})
    encoder, door = build_encoder(run, modality), preprocessor(run, modality)
    zeros = torch.zeros_like(finished(modality, shape=door.shape, rows=2))

    embeddings = encoder(zeros)
    torch.autograd.backward(embeddings.sum())

    assert embeddings.isfinite().all()
    assert all(value.grad is not None and value.grad.isfinite().all() for value in encoder.parameters())


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_a_batch_of_no_samples_passes(modality: str, name: str) -> None:
    run = example_run({modality: small(name)})
    encoder, door = build_encoder(run, modality), preprocessor(run, modality)
    nothing = door.finish(torch.stack([door.read(raw_value(modality))])[:0])

    assert nothing.shape == (0, *door.shape)
    assert encoder(nothing).shape == (0, 6)


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_an_encoder_learns_to_tell_two_groups_apart(modality: str, name: str) -> None:
    run = example_run({modality: small(name)})
    encoder, door = build_encoder(run, modality), preprocessor(run, modality)
    values, classes = finished(modality, shape=door.shape, rows=24), torch.arange(24) % 2
    if modality == "words":
        values = values.clamp(max=9) + 9 * (values > 0) * classes[:, None]
    else:
        values = values + 1.5 * classes.reshape(-1, *(1,) * len(door.shape)) * torch.ones(door.shape)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(encoder, nn.Linear(6, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)

    losses = []
    for _ in range(40):
        loss = nn.functional.cross_entropy(model(values), classes)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())

    assert losses[-1] < 0.4 * losses[0]


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_first_weights_follow_from_the_seed_and_move_no_global_generator(modality: str, name: str) -> None:
    before = torch.get_rng_state()
    first, again, other = (
        build_encoder(example_run({modality: small(name)}, seed=seed), modality).state_dict() for seed in (1, 1, 2)
    )

    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


@pytest.mark.parametrize(("modality", "name"), ALL)
def test_default_sizes_stay_small_because_noise_grows_with_them(modality: str, name: str) -> None:
    encoder = build_encoder(example_run({modality: {"name": name}}, width=32), modality)
    least, most = DEFAULT_SIZES[name]
    assert least <= sum(parameter.numel() for parameter in encoder.parameters()) <= most


def test_a_padded_text_has_the_embedding_of_the_text() -> None:
    run = example_run({"words": small("transformer")})
    encoder = build_encoder(run, "words")
    short = torch.tensor([[3, 5, 2]])
    padded = torch.tensor([[3, 5, 2, 0, 0, 0]])

    torch.testing.assert_close(encoder(padded), encoder(short))


def test_a_bag_of_ngrams_is_linear_in_the_counts_of_its_tokens() -> None:
    table: dict[str, object] = {"name": "bag-of-ngrams", "options": {"scale": 3.0}, "preprocess": {"vocabulary": 20}}
    encoder = build_encoder(example_run({"words": table}), "words")
    (weights,) = encoder.parameters()
    counts = torch.zeros(21)
    counts[[4, 7, 9]] = torch.tensor([1.0, 2.0, 1.0])

    embedding = encoder(torch.tensor([[7, 4, 9, 7, 0, 0]]))

    torch.testing.assert_close(embedding, 3.0 / 4**0.5 * counts[None] @ weights)


def test_a_bag_of_ngrams_can_start_at_zero() -> None:
    table: dict[str, object] = {"name": "bag-of-ngrams", "options": {"from_zero": True}}
    assert not any(value.any() for value in build_encoder(example_run({"words": table}), "words").parameters())


def test_the_lstm_of_linears_equals_that_of_torch() -> None:
    ours, theirs = LinearLstm(3, hidden=4), nn.LSTM(3, 4, batch_first=True)
    with torch.no_grad():
        # torch orders its gates enter, forget, new, leave; ours are enter, forget, leave, new.
        order = torch.cat([torch.arange(8), torch.arange(12, 16), torch.arange(8, 12)])
        theirs.get_parameter("weight_ih_l0").copy_(ours.input.weight[order])
        theirs.get_parameter("weight_hh_l0").copy_(ours.recurrent.weight[order])
        theirs.get_parameter("bias_ih_l0").copy_(ours.input.bias[order])
        theirs.get_parameter("bias_hh_l0").zero_()
    steps = torch.randn(2, 5, 3, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(ours(steps), theirs(steps)[0].mean(dim=1))


@pytest.mark.parametrize("steps", [1, 5])
def test_the_lstms_gradients_by_hand_are_those_of_its_single_operations(steps: int) -> None:
    model = LinearLstm(3, hidden=4).double()
    values = torch.randn(2, steps, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values.requires_grad_()
    weights = torch.linspace(-1, 2, 8, dtype=torch.float64).view(2, 4)
    asked = [values, *model.parameters()]
    by_hand, by_autograd = (
        torch.autograd.grad((run(values) * weights).sum(), asked) for run in (model, model._step_by_step)
    )

    for mine, theirs in zip(by_hand, by_autograd, strict=True):
        assert mine.shape == theirs.shape
        # one step alone starts from zeros, and its recurrent weights have no gradient
        torch.testing.assert_close(mine, theirs, rtol=1e-11, atol=1e-14)
    assert (float(by_hand[-1].abs().max()) > 0.01) == (steps > 1)


def test_a_modality_that_the_run_does_not_use_is_named() -> None:
    with pytest.raises(ModelError, match=r"'photo' is not in the run; allowed: words"):
        preprocessor(example_run({"words": small("transformer")}), "photo")


@pytest.mark.parametrize(
    ("modality", "table", "said"),
    [
        ("photo", {"name": "resnet", "options": {"channels": (6,), "groups": 4}}, "groups"),
        ("photo", {"name": "vgg", "preprocess": {"size": 8}, "options": {"channels": (8,) * 4}}, "16 or more"),
        ("photo", {"name": "vit", "options": {"patch": 5}}, "divisor of preprocess.size, which is 32"),
        ("photo", {"name": "vit", "options": {"heads": 3}}, "divisor of token_width, which is 32"),
        ("sound", {"name": "ast", "options": {"patch_bands": 64}}, "at most 40 and 101"),
        ("sound", {"name": "ast", "options": {"heads": 3}}, "divisor of token_width, which is 32"),
        ("sound", {"name": "conformer", "options": {"groups": 5}}, "divisors of token_width, 32"),
        ("sound", {"name": "conformer", "options": {"kernel": 4}}, "an odd number"),
        ("photo", {"name": "cnn", "options": {"channels": (6,), "groups": 4}}, "groups"),
        ("words", {"name": "transformer", "options": {"token_width": 9, "heads": 2}}, "divisor of token_width"),
        ("words", {"name": "frozen-transformers"}, "path"),
        ("words", {"name": "frozen-transformers", "options": {"path": "/nowhere"}}, "no weights there"),
        ("photo", {"name": "cnn", "preprocess": {"sise": 8}}, "size = 32"),
    ],
)
def test_a_wrong_option_is_refused_with_what_is_allowed(modality: str, table: dict[str, object], said: str) -> None:
    with pytest.raises(ModelError, match=said):
        build_encoder(example_run({modality: table}), modality)
