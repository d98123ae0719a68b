"""Nearest: the places that score highest for a query, found exactly among few, approximately among many.

in        places [N, D] of a catalogue, how they are scored, queries [Q, D]
out       for each query the numbers of the nearest and their scores
relies on faiss, which no other file imports

Exact search takes time in proportion to N. From EXACT_BELOW places on a graph is walked instead, as in Malkov and
Yashunin 2018, arXiv:1603.09320; its recall is measured in test_the_graph_finds_nearly_all_that_exact_search_finds.
"""

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

EXACT_BELOW = 50_000
LINKS, BUILD_WIDTH, SEARCH_WIDTH = 32, 200, 256
"""of a place in the graph; how many candidates are kept while it is built, and while it is searched"""


class NearestPlaces:
    """An index over places; the same places give the same answers."""

    def __init__(
        self,
        places: Float[Tensor, "N D"],
        *,
        score: Literal["cosine", "euclidean"],
        exact_below: int = EXACT_BELOW,
    ) -> None:
        """Builds the index.

        Args:
            places: of a catalogue, as matching.py places them.
            score: cosine, or 1 - squared distance.
            exact_below: from so many places on the search is approximate.
        """
        import faiss

        self.is_exact, self._score, self._num = len(places) < exact_below, score, len(places)
        width, metric = places.shape[1], faiss.METRIC_INNER_PRODUCT if score == "cosine" else faiss.METRIC_L2
        # Any: faiss has no types
        index: Any = faiss.IndexFlat(width, metric)
        if not self.is_exact:
            index = faiss.IndexHNSWFlat(width, LINKS, metric)
            index.hnsw.efConstruction, index.hnsw.efSearch = BUILD_WIDTH, SEARCH_WIDTH
        index.add(_as_rows(places))
        self._index = index

    def search(
        self, queries: Float[Tensor, "Q D"], *, most: int
    ) -> tuple[Int[np.ndarray, "Q T"], Float[np.ndarray, "Q T"]]:
        """Numbers of the places that score highest, best first, and their scores; at most as many as there are."""
        found, numbers = self._index.search(_as_rows(queries), min(most, self._num))
        # faiss gives squared distances, smallest first
        scores = found if self._score == "cosine" else 1 - found
        return numbers.astype(np.int64), scores.astype(np.float32)


def _as_rows(values: Tensor) -> np.ndarray:
    return np.ascontiguousarray(values.detach().to(torch.float32).cpu().numpy())
