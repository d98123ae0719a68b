"""Pretrained networks: a checkpoint's weights as a module whose gradient every sample has to itself. The door to
transformers' networks.

in        a Checkpoint
out       the network, of layers that every gradient engine can follow, without dropout and with eager attention
relies on pretrained.py for what must happen before transformers is imported; nothing is fetched, and no code from a
          checkpoint's folder is run
"""

import functools
from pickle import UnpicklingError
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.modules.dropout import _DropoutNd
from torch.nn.utils import parametrize

from shared.errors import ModelError
from shared.preprocess.pretrained import Checkpoint, may_import_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_DRAWS = ("drop", "mask_time_prob", "mask_feature_prob")
"""parts of the names of settings that say how often training hides something, from a generator all samples share"""


class NoDropout(nn.Identity):
    """What stands where a network had dropout, for code that asks how much."""

    p = 0.0


def load_network(checkpoint: Checkpoint) -> "PreTrainedModel":
    """The checkpoint's network without its heads, in float32 and evaluation mode; a copy of its own for each caller.

    Under torch.device("meta") it has no weights, only their shapes.

    Raises:
        ModelError: transformers cannot read it, weights are missing, or it is an encoder and a decoder.
    """
    may_import_transformers()
    from transformers import AutoConfig, AutoModel
    from transformers.utils import logging

    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    local = {"local_files_only": True, "trust_remote_code": False}
    try:
        config = _without_draws(AutoConfig.from_pretrained(checkpoint.path, **local))
        if torch.get_default_device().type == "meta":
            blank = AutoModel.from_config(  # type: ignore[no-untyped-call]
                config, attn_implementation="eager", dtype=torch.float32
            )
            return _followed(blank)
        network, told = AutoModel.from_pretrained(
            checkpoint.path,
            config=config,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
            **local,
        )
    except (OSError, ValueError, KeyError, RuntimeError, UnpicklingError) as error:
        raise ModelError(f"{checkpoint.path}: no network that transformers can read: {error}") from None
    missing = sorted(name for name in told["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise ModelError(
            f"{checkpoint.path}: its weights lack {missing[:5]}; allowed: a folder whose weights are all there"
        )
    return _followed(network)


@functools.lru_cache(maxsize=2)
def read_network(checkpoint: Checkpoint) -> "PreTrainedModel":
    """The checkpoint's network, frozen; the same object for all who ask.

    Raises:
        ModelError: as `load_network`.
    """
    network = load_network(checkpoint)
    network.requires_grad_(False)
    return network


def is_causal(checkpoint: Checkpoint) -> bool:
    """Whether tokens of a text network look back only, as in GPT: their last one has seen the whole text."""
    may_import_transformers()
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    return checkpoint.kind in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and (
        checkpoint.kind not in MODEL_FOR_MASKED_LM_MAPPING_NAMES
    )


def _without_draws(config: "PreTrainedConfig") -> "PreTrainedConfig":
    """The settings without anything that training draws by chance, and without a memory of earlier tokens."""
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError("it is an encoder and a decoder; allowed: a network of one part, such as BERT, GPT-2 or ViT")
    for name, value in vars(config).items():
        if isinstance(value, float) and any(part in name for part in _DRAWS):
            setattr(config, name, 0.0)
    if hasattr(config, "apply_spec_augment"):
        config.apply_spec_augment = False
    if hasattr(config, "use_cache"):
        config.use_cache = False
    return config


def _followed(network: "PreTrainedModel") -> "PreTrainedModel":
    """The same function from plain torch layers, each with its own weights."""
    from transformers.pytorch_utils import Conv1D

    if getattr(network, "pooler", None) is not None:
        # what it gives is not looked at, and noise would be all that it is trained on
        network._modules["pooler"] = None
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, _DropoutNd):
                setattr(parent, name, NoDropout())
            elif isinstance(child, Conv1D):
                setattr(parent, name, _as_linear(child))
            elif parametrize.is_parametrized(child):
                for weight in list(child.parametrizations):  # type: ignore[arg-type]
                    parametrize.remove_parametrizations(child, str(weight))
    network.train(False)
    return network


def _as_linear(layer: nn.Module) -> nn.Linear:
    """GPT-2's Linear, whose weight lies the other way round."""
    weight, bias = layer.get_parameter("weight"), layer.get_parameter("bias")
    linear = nn.Linear(weight.shape[0], weight.shape[1], device=weight.device)
    linear.weight = nn.Parameter(weight.detach().T.contiguous())
    linear.bias = nn.Parameter(bias.detach())
    return linear
