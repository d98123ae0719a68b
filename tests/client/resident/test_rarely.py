"""What others cause at will is said once a minute, and every time is counted."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from client.resident.rarely import _MOST_KEPT, Rarely


@given(st.lists(st.floats(0, 40), max_size=40))
def test_nothing_is_said_twice_a_minute_and_nothing_is_lost(pauses: list[float]) -> None:
    now, said, times = 0.0, list[float](), 0
    rarely = Rarely(clock=lambda: now)
    for pause in pauses:
        now += pause
        if number := rarely.times("x"):
            said.append(now)
            times += number
    assert all(later - earlier > 59.9 for earlier, later in itertools.pairwise(said))
    now += 61
    assert times + rarely.times("x") == len(pauses) + 1


def test_one_users_flood_hides_nobody_else() -> None:
    rarely = Rarely(clock=lambda: 0.0)
    assert [rarely.times(1) for _ in range(3)] == [1, 0, 0]
    assert rarely.times(2) == 1


def test_what_is_kept_is_bounded() -> None:
    rarely = Rarely(clock=lambda: 0.0)
    for user in range(2 * _MOST_KEPT):
        rarely.times(user)
    assert len(rarely._said) == _MOST_KEPT
