"""Forgetting: what this process remembers of runs, kept to a few of them.

in        nothing but the memories themselves, after each request
out       those that hold many runs are emptied; what is asked next is worked out again
relies on each of them being a memory and no more: their own sizes suit ten thousand simulated sites

Settings of a run can be a million characters long, and those of a run that is refused are remembered like any other: a
thousand requests, none of them paid for, would fill some GB.
"""

from client.charge import _made_plan
from client.memory import bytes_of_row
from client.passed import note_of
from client.permission import _with_schema
from client.run_model import _key_of, exchanged_shapes

MOST_RUNS = 16
"""that each of them may hold"""
MEMORIES = (_made_plan, bytes_of_row, note_of, _with_schema, _key_of, exchanged_shapes)


def forget_many() -> None:
    """Empties what holds more runs than that."""
    for each in MEMORIES:
        if each.cache_info().currsize > MOST_RUNS:
            each.cache_clear()
