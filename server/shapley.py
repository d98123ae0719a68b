"""Shapley: what each of several players brings to a score that they reach together.

in        the score of every subset of the players, or a function that gives it
out       a value for each player; together they are the score of all less the score of none
relies on nothing: the players are modalities, for contributions.py over a held-out part, for prediction.py in a sample
"""

import itertools
import math
from collections.abc import Callable

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor


def shapley_values(scores: Float[Tensor, "S B"], *, num_players: int) -> Float[Tensor, "M B"]:
    """Each player's Shapley value from the score of every subset, exactly.

    Args:
        scores: of subset number s, in which player m is where bit m of s is 1; S is 2 to the number of players.
        num_players: M.

    Source: Shapley 1953, A value for n-person games, equation 13.
    """
    values = torch.zeros(num_players, scores.shape[1], dtype=scores.dtype)
    for player, subset in itertools.product(range(num_players), range(2**num_players)):
        if not subset >> player & 1:
            size = subset.bit_count()
            weight = 1 / (num_players * math.comb(num_players - 1, size))
            values[player] += weight * (scores[subset | 1 << player] - scores[subset])
    return values


def sampled_shapley_values(
    score: Callable[[int], NDArray[np.float64]], *, num_players: int, orders: int, seed: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Each player's Shapley values [M, B], estimated from orders drawn at random, and their standard errors [M, B].

    A player's part in an order is what the score gains when it comes in after those before it. In every order the parts
    add up to the score of all less that of none, and so do the means.

    Args:
        score: B scores of the subset with this number; asked once for each subset that comes up.
        orders: how many are drawn, 2 or more.

    Source: Castro, Gomez and Tejada 2009, Computers & Operations Research 36, section 3.
    """
    draws, known = np.random.default_rng(seed), dict[int, NDArray[np.float64]]()

    def known_score(subset: int) -> NDArray[np.float64]:
        if subset not in known:
            known[subset] = score(subset)
        return known[subset]

    parts = np.zeros((orders, num_players, len(known_score(0))))
    for number in range(orders):
        subset = 0
        for player in draws.permutation(num_players).tolist():
            before, subset = subset, subset | 1 << player
            parts[number, player] = known_score(subset) - known_score(before)
    return parts.mean(axis=0), parts.std(axis=0, ddof=1) / math.sqrt(orders)
