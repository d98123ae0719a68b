"""Tokens and places of pretrained vision transformers, in tables: parameters of no layer become layers.

in        a network such as ViT, DeiT or AST, whose embeddings add parameters of their own to all samples alike
out       the same function, in which each sample looks its tokens and places up: gradients that layers can be asked for
relies on embeddings that put their tokens before those of the patches, and add places to all
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

_TOKENS = ("cls_token", "distillation_token")
_PLACES = "position_embeddings"
_UNUSED = ("mask_token",)


class TokensAndPlaces(nn.Module):
    """Patches behind the tokens that stand for the whole, each with the vector of its place.

    Source: Dosovitskiy et al. 2021, arXiv:2010.11929, section 3.1, equation 1.
    """

    def __init__(self, patches: nn.Module, *, tokens: Float[Tensor, "T E"], places: Float[Tensor, "N E"]) -> None:
        super().__init__()
        self.patch_embeddings = patches
        self.tokens, self.places = _table(tokens), _table(places)

    def forward(self, values: Float[Tensor, "B ..."], **_: object) -> Float[Tensor, "B N E"]:
        """All tokens of each sample."""
        patches = self.patch_embeddings(values)
        tokens = self.tokens(_numbers(self.tokens, like=patches))
        all_tokens: Tensor = torch.cat([tokens, patches], dim=1) + self.places(_numbers(self.places, like=patches))
        return all_tokens


def with_tables(network: nn.Module) -> int:
    """Puts tables in the place of an embedding's own parameters, if it has such; how many tokens stand for the whole.

    Args:
        network: changed in place.
    """
    embeddings = getattr(network, "embeddings", None)
    own = {name: value for name, value in getattr(embeddings, "_parameters", {}).items() if value is not None}
    tokens = [own[name] for name in _TOKENS if name in own]
    patches = getattr(embeddings, "patch_embeddings", None)
    is_known = _PLACES in own and set(own) <= {*_TOKENS, _PLACES, *_UNUSED}
    if tokens and is_known and isinstance(patches, nn.Module):
        network.embeddings = TokensAndPlaces(
            patches, tokens=torch.cat([token.detach()[0] for token in tokens]), places=own[_PLACES].detach()[0]
        )
    return len(tokens)


def _table(values: Float[Tensor, "N E"]) -> nn.Embedding:
    table = nn.Embedding(values.shape[0], values.shape[1], device=values.device)
    table.weight = nn.Parameter(values)
    return table


def _numbers(table: nn.Embedding, *, like: Tensor) -> Tensor:
    return torch.arange(table.num_embeddings, device=like.device).expand(len(like), -1)
