"""Planted faults: mistakes that real systems have shipped, put into the real code for a while to see them caught.

in        the name of a fault
out       the code broken in that one way while a `with` lasts; the name of the check that has to notice
relies on unittest.mock on the attributes of the real modules, so that whatever runs meanwhile runs the broken code

Tests prove with it that each check of the preflight can fail; `motet preflight --plant` and `motet audit --plant` show
it. How each fault is done is faulty_code.py.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from unittest import mock

from rich.table import Table

import client.preflight
from shared.errors import ConfigError
from simulations import faulty_code, faulty_cohort


@dataclass(frozen=True)
class Fault:
    """One mistake, and who has to notice it."""

    name: str
    sentence: str
    """what is wrong while it lasts"""
    caught_by: str
    """name of the preflight's check that must fail"""
    plant: Callable[[], contextlib.AbstractContextManager[None]]
    """breaks the code while it lasts"""


def _by_name(*faults: Fault) -> Mapping[str, Fault]:
    return {fault.name: fault for fault in faults}


FAULTS = _by_name(
    Fault(
        "batch-norm",
        "Each encoder's output is normalised over the batch, so that samples move each other.",
        "independent",
        faulty_code.batch_norm,
    ),
    Fault(
        "in-batch-contrastive-loss",
        "Each sample's loss takes the other samples of its batch as negatives.",
        "independent",
        faulty_code.in_batch_contrastive_loss,
    ),
    Fault(
        "tied-weights",
        "A weight is also used from outside its layer, and Opacus' hooks miss that part of its gradient.",
        "own-gradient",
        faulty_code.tied_weights,
    ),
    Fault(
        "ghost-clipping-with-the-ordinary-loss",
        "Opacus' ghost clipping is run with torch's own loss: no error, and nothing is clipped.",
        "bounded",
        faulty_code.ghost_clipping_with_the_ordinary_loss,
    ),
    Fault("forgotten-clip", "Gradients are summed without being clipped.", "bounded", faulty_code.forgotten_clip),
    Fault(
        "zero-dimensional-parameters-unclipped",
        "Parameters without dimensions are left out of norm and clipping.",
        "bounded",
        faulty_code.zero_dimensional_parameters_unclipped,
    ),
    Fault(
        "subject-rows-unbounded",
        "Each row of a subject is clipped by itself, so that a subject of many rows counts many times.",
        "bounded",
        faulty_code.subject_rows_unbounded,
    ),
    Fault(
        "noise-divided-by-four",
        "The noise has a quarter of the scale that the accountant is told.",
        "noise-scale",
        faulty_code.noise_divided_by_four,
    ),
    Fault(
        "noise-from-a-seed",
        "Noise follows from torch's global generator, so that whoever knows its seed can take it off.",
        "noise-fresh",
        faulty_code.noise_from_a_seed,
    ),
    Fault(
        "data-dependent-denominator",
        "The sum is divided by a count of the site's rows, which one person more or less moves.",
        "public-denominator",
        faulty_code.data_dependent_denominator,
    ),
    Fault(
        "shuffled-batches",
        "Batches of a fixed size come from a shuffled list, while the accountant assumes Poisson sampling.",
        "poisson-sampling",
        faulty_code.shuffled_batches,
    ),
    Fault(
        "weighted-sampler",
        "Half of the units enter three times as often as the other half.",
        "poisson-sampling",
        faulty_code.weighted_sampler,
    ),
    Fault(
        "empty-batch-skipped",
        "A step that drew nobody adds no noise.",
        "empty-batch",
        faulty_code.empty_batch_skipped,
    ),
    Fault(
        "absent-taken-for-present",
        "Zeros that fill the place of an absent value are trained on as if somebody had sent them.",
        "absent-modality",
        faulty_code.absent_taken_for_present,
    ),
    Fault(
        "engine-made-anew",
        "Every round is accounted as if it were the first, by an accountant made anew.",
        "composition",
        faulty_code.engine_made_anew,
    ),
    Fault(
        "extra-reply-field",
        "A reply carries the training loss, which is nobody's to know.",
        "allow-list",
        faulty_code.extra_reply_field,
    ),
    Fault(
        "unclipped-site-update",
        "Sites send their updates, and the server adds them up, without clipping them.",
        "update-clipped",
        faulty_code.unclipped_site_update,
    ),
    Fault(
        "cohort-shares-noise",
        "Sites that are trained in one pass get the noise of the first of them, each in its own scale.",
        "cohort-gives-the-same",
        faulty_cohort.noise_shared,
    ),
    Fault(
        "cohort-counts-padding",
        "Rows that fill up the batch of a site with fewer count as its own.",
        "cohort-gives-the-same",
        faulty_cohort.padding_counted,
    ),
    Fault(
        "cohort-mixes-up-sites",
        "From the second step on a site's gradients are those of its neighbour's weights.",
        "cohort-gives-the-same",
        faulty_cohort.weights_of_a_neighbour,
    ),
    Fault(
        "fixed-number-of-sites",
        "Every round asks equally many sites, while the accountant assumes a coin for each.",
        "server-sampling",
        faulty_code.fixed_number_of_sites,
    ),
)
"""name -> fault"""


def faults_table() -> Table:
    """A row a fault, for the terminal."""
    table = Table("fault", "while it lasts", "caught by")
    for fault in FAULTS.values():
        table.add_row(fault.name, fault.sentence, fault.caught_by)
    return table


@contextlib.contextmanager
def planted(name: str, *, is_guarded: bool = True) -> Iterator[Fault]:
    """The named fault while it lasts; afterwards the code is as it was, and the preflight looks at everything anew.

    Args:
        name: one of FAULTS.
        is_guarded: whether the agent's own preflight stays on guard, which refuses a run with the fault in it. Off, to
            measure what the fault would have let out.

    Raises:
        ConfigError: there is no such fault.
    """
    fault = FAULTS.get(name)
    if fault is None:
        raise ConfigError(f"{name}: no such fault; allowed: {', '.join(FAULTS)}")
    client.preflight.forget()
    try:
        with contextlib.ExitStack() as stack:
            stack.enter_context(fault.plant())
            if not is_guarded:
                stack.enter_context(mock.patch.object(client.preflight, "assert_sound"))
            yield fault
    finally:
        client.preflight.forget()
