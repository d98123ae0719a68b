"""Gates: a part file of an owner's, at which a site agent halts in the middle of a round until it is let go or killed.

in        files beside a copy of this one, such as `before.2`: halt before training in round 2
out       the same file as `before.2.reached` once the agent is there; it goes on when that is gone
relies on the owner's right to load code of their own (`parts` in site.toml): the product has no hook for tests

    before   nothing is drawn; the round is paid for      after    trained; nothing is kept
    during   between the two steps of the round           reply    kept and released; nothing is sent
"""

import time
from collections.abc import Callable
from pathlib import Path

from client import agent, preflight, private_training
from client.resident import listener

POINTS = ("before", "during", "after", "reply")
_FOLDER = Path(__file__).parent
_MOST_S = 600.0
_round = [0]
"""the round whose answer has not been sent, 0 where there is none"""
_steps = [0]
_rehearsals = [0]
"""in which the agent tries its training code out, with whole rounds on made-up rows, each of which asks for one again"""


def _halt(point: str) -> None:
    gate = _FOLDER / f"{point}.{_round[0]}"
    if _rehearsals[0] or not gate.exists():
        return
    reached = gate.rename(gate.with_name(f"{gate.name}.reached"))
    deadline = time.monotonic() + _MOST_S
    while reached.exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _around_training(real: Callable[..., object]) -> Callable[..., object]:
    def train_round(*given: object, **named: object) -> object:
        _round[0], _steps[0] = int(str(named["round_number"])), 0
        _halt("before")
        trained = real(*given, **named)
        _halt("after")
        return trained

    return train_round


def _before_a_step(real: Callable[..., object]) -> Callable[..., object]:
    def drawn(*given: object, **named: object) -> object:
        _steps[0] += 1
        if _steps[0] == 2:
            _halt("during")
        return real(*given, **named)

    return drawn


def _before_sending(real: Callable[..., object]) -> Callable[..., object]:
    def send_frame(*given: object, **named: object) -> object:
        _halt("reply")
        _round[0] = 0
        return real(*given, **named)

    return send_frame


def _around_preflight(real: Callable[..., object]) -> Callable[..., object]:
    def assert_sound(*given: object) -> object:
        _rehearsals[0] += 1
        try:
            return real(*given)
        finally:
            _rehearsals[0] -= 1

    return assert_sound


for module, name, around in (
    (preflight, "assert_sound", _around_preflight),
    (agent, "train_round", _around_training),
    (private_training, "_drawn", _before_a_step),
    (listener, "send_frame", _before_sending),
):
    setattr(module, name, around(getattr(module, name)))
