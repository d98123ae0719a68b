"""Layers: what activations and output gradients say of a layer's weights' gradients, row by row, for many sites.

in        K*R rows, site by site, through one layer whose weights [K, *shape] every site has of its own
out       outputs; after the backward pass squared norms [K, U] of each unit's gradient, and weighted sums [K, *shape]
relies on torch's kernels; stacked.py puts these in the place of a model's own layers for a while

Source: per-sample norms of a linear layer: Goodfellow 2015, arXiv:1510.01799; with positions, and for convolutions and
embeddings: Li et al. 2022, arXiv:2110.05679, section 4; one backward pass for norms and sums: Bu et al. 2023,
arXiv:2210.00038 (book-keeping). Ours differs: sites side by side, and where a layer sees several positions its per-unit
gradient is formed and kept, which costs less than the product of its Gram matrices for all but the largest layers.
"""

from torch import nn

from client.gradient.layers.base import Rows, WatchedLayer
from client.gradient.layers.convolution import ConvolutionLayer
from client.gradient.layers.embedding import EmbeddingLayer
from client.gradient.layers.linear import LinearLayer
from client.gradient.layers.norm import NormLayer

__all__ = ["KINDS", "ConvolutionLayer", "Rows", "WatchedLayer", "why_not_watched"]

KINDS: dict[type[nn.Module], type[WatchedLayer]] = {
    nn.Linear: LinearLayer,
    nn.Conv1d: ConvolutionLayer,
    nn.Conv2d: ConvolutionLayer,
    nn.Embedding: EmbeddingLayer,
    nn.LayerNorm: NormLayer,
    nn.GroupNorm: NormLayer,
}


def why_not_watched(module: nn.Module) -> str | None:
    """Why a layer with weights of its own cannot be followed; None where it can."""
    kind = type(module)
    if kind not in KINDS or module._forward_hooks or module._forward_pre_hooks or "forward" in module.__dict__:
        return f"{kind.__name__} is none of {', '.join(known.__name__ for known in KINDS)}, or has hooks"
    if isinstance(module, nn.Conv1d | nn.Conv2d) and (
        module.padding_mode != "zeros" or isinstance(module.padding, str)
    ):
        return f"{kind.__name__} pads with {module.padding_mode!r}, {module.padding!r}"
    if isinstance(module, nn.Embedding) and (module.max_norm or module.scale_grad_by_freq or module.sparse):
        return f"{kind.__name__} has max_norm, scale_grad_by_freq or sparse"
    return None
