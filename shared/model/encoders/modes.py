"""Modes: what of an encoder trains: all of it, its last layer, or that and low-rank additions to the others.

in        an encoder with its first weights, the run's `mode` and `lora`
out       the same encoder; what is frozen asks for no gradient, so parameters.py leaves it out of what travels
relies on frozen first weights being the same at all sites: public ones, an earlier run's, or those of the run's seed

An encoder of no public weights may be frozen too: its layers before the last are then random features of the seed, or
what `model.start` brings.
"""

from torch import nn

from shared.config import EncoderSettings
from shared.errors import ModelError
from shared.model.encoders.lora import add_lora, additions_fit
from shared.model.encoders.pooling import TimePooling
from shared.model.encoders.projection import Projection

ATTENTION = ("query", "value", "q_lin", "v_lin", "q_proj", "v_proj", "c_attn", "query_key_value")
"""endings of the names of layers that make queries and values: where additions are put if a run names no layers

Source: Hu et al. 2021, arXiv:2106.09685, section 7.1."""


def in_mode(encoder: nn.Module, settings: EncoderSettings, *, width: int, of: str) -> nn.Module:
    """The encoder as the run's mode has it, changed in place.

    Args:
        width: of the embedding, by which its last layer is known.
        of: the encoder, for errors.

    Raises:
        ModelError: the encoder has no last linear layer, or nothing that low-rank additions can be put on.
    """
    if settings.mode in (None, "train"):
        return encoder
    last = last_layers(encoder, width=width)
    if not last:
        raise ModelError(
            f'{of}: mode = "{settings.mode}" trains the last linear layer, and it has none that gives the embedding; '
            'allowed: mode = "train"'
        )
    kept = {id(module) for layer in last.values() for module in layer.modules()}
    encoder.requires_grad_(False)
    if settings.mode == "lora":
        others = {
            path: module
            for path, module in encoder.named_modules()
            if id(module) not in kept and additions_fit(path, module)
        }
        add_lora(encoder, settings.lora, layers=others, usual=ATTENTION, of=of)
    for layer in last.values():
        layer.requires_grad_(True)
    return encoder


def last_layers(encoder: nn.Module, *, width: int) -> dict[str, nn.Module]:
    """What trains in every mode: each `Projection` and what pools over time, or else the last linear layer.

    Args:
        width: of the embedding.
    """
    named = list(encoder.named_modules())
    projections: dict[str, nn.Module] = {
        path: module for path, module in named if isinstance(module, Projection | TimePooling)
    }
    if projections:
        return projections
    linear = [(path, module) for path, module in named if type(module) is nn.Linear and module.out_features == width]
    return dict(linear[-1:])
