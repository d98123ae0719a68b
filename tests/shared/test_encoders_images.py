"""Image and spectrogram encoders of several layers: what their pieces promise beside having exact gradients."""

import torch
from torch import nn

from shared.model.encoders.conformer import ConformerBlock, ConformerOptions, waves
from shared.model.encoders.pooling import PoolingOptions, TransformerPooling
from shared.model.encoders.resnet import ResidualBlock, ResNet, ResNetOptions
from shared.model.encoders.text import TextTransformer
from shared.model.encoders.transformer import TransformerOptions
from shared.model.encoders.vit import AstOptions, PatchTransformer, VitOptions


def test_a_residual_block_without_its_convolutions_is_what_went_in() -> None:
    block = ResidualBlock(4, 4, stride=1, groups=2)
    nn.init.zeros_(block.second_norm.weight)
    values = torch.rand(2, 4, 6, 6, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(block(values), values)


def test_each_stage_of_a_resnet_halves_the_sides_and_only_there_a_convolution_fits_the_shapes() -> None:
    network = ResNet(3, width=5, options=ResNetOptions(channels=(4, 8), groups=2, blocks=2))
    values = torch.zeros(1, 4, 16, 16)

    shapes = [(values := block(values)).shape[1:] for block in network.blocks]

    assert shapes == [(4, 8, 8), (4, 8, 8), (8, 4, 4), (8, 4, 4)]
    assert [isinstance(block.shortcut, nn.Conv2d) for block in network.blocks] == [True, False, True, False]


def test_a_patch_token_is_one_linear_layer_over_its_own_pixels() -> None:
    network = PatchTransformer(2, sides=(8, 12), patch=(4, 4), width=5, options=VitOptions(token_width=8))
    pictures = torch.randn(1, 2, 8, 12, generator=torch.Generator().manual_seed(0))
    moved = pictures.clone()
    moved[:, :, 4:, 8:] += 1

    tokens, after = (network.token(each).flatten(2).transpose(1, 2) for each in (pictures, moved))

    assert network.place.num_embeddings == tokens.shape[1] == 6
    assert (tokens != after).any(dim=2).nonzero().tolist() == [[0, 5]]
    assert network.token.bias is not None
    alone = network.token.weight.flatten(1) @ pictures[0, :, 4:, 8:].flatten() + network.token.bias
    torch.testing.assert_close(tokens[0, 5], alone)


def test_where_patches_stand_matters_and_by_the_place_embedding_alone() -> None:
    options = VitOptions(token_width=8, hidden=8, layers=1)
    network = PatchTransformer(1, sides=(8, 8), patch=(4, 4), width=5, options=options)
    picture = torch.zeros(1, 1, 8, 8)
    picture[..., :4, :4] = torch.linspace(-2, 2, 16).view(4, 4)

    def moved() -> float:
        here, there = network(picture), network(picture.roll(4, dims=-1))
        return float(((here - there).norm() / here.norm()).detach())

    assert moved() > 0.01
    nn.init.zeros_(network.place.weight)
    assert moved() < 1e-5


def test_frames_that_fill_no_patch_are_cut() -> None:
    options = AstOptions(token_width=8, patch_bands=4, patch_frames=4)
    network = PatchTransformer(1, sides=(8, 11), patch=(4, 4), width=5, options=options)
    frames = torch.randn(1, 1, 8, 11, generator=torch.Generator().manual_seed(0))

    torch.testing.assert_close(network(frames), network(frames[..., :8]))


def test_a_conformer_block_sees_far_by_attention_and_near_by_convolution() -> None:
    block = ConformerBlock(ConformerOptions(token_width=8, kernel=3, groups=2, heads=2, hidden=8))
    steps = torch.randn(1, 12, 8, generator=torch.Generator().manual_seed(0))
    moved = steps.clone()
    moved[:, 0] = steps[:, 1]

    assert bool((block(moved) != block(steps)).any(dim=2).all())
    near = block.near.depth
    assert near.groups == near.in_channels == 8
    changed = (near(moved.transpose(1, 2)) != near(steps.transpose(1, 2))).any(dim=1)
    assert changed.nonzero().tolist() == [[0, 0], [0, 1]]


def test_every_place_has_a_wave_of_its_own() -> None:
    for width in (7, 8):
        found = waves(50, width=width)
        apart = torch.cdist(found, found) + 10 * torch.eye(50)

        assert found.shape == (50, width)
        assert float(found.abs().max()) <= 1
        assert float(apart.min()) > 0.1


def test_transformers_of_words_patches_and_frames_have_the_names_that_stored_models_know() -> None:
    """Behind the first layer they are one class; a model that was stored under other names could not be opened."""
    options = PoolingOptions(pool="transformer")
    words = TextTransformer(9, max_tokens=3, width=4, options=TransformerOptions())
    patches = PatchTransformer(1, sides=(8, 8), patch=(4, 4), width=4, options=VitOptions(layers=1))
    frames = TransformerPooling(8, frames=3, width=4, options=options)
    layers = ("attention_norm", "hidden_norm", "query_key_value", "mix", "widen", "narrow")
    affine = [f"layers.0.{layer}" for layer in layers] + ["token_norm", "linear"]
    shared = ["place.weight", *(f"{layer}.{each}" for layer in affine for each in ("weight", "bias"))]

    assert [name for name, _ in words.named_parameters()] == ["token.weight", *shared]
    assert [name for name, _ in patches.named_parameters()] == ["token.weight", "token.bias", *shared]
    assert [name for name, _ in frames.named_parameters()] == shared
