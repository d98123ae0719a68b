"""Paid once: when a request that was asked before is answered again under the reservation that it already has.

in        what the site agent kept of the request, the data set's history, what the round would cost now
out       the history as it was before that reservation; the reservation, if it pays for just this
relies on client/resident/answers.py for nothing having left under it
"""

import contextlib
from collections.abc import Iterator

from client.charge import COUNTS_ROUND
from client.resident.answers import Case
from shared.errors import ManifestError, PermissionRefused
from shared.privacy.accountant import MechanismUse
from shared.privacy.ledger import Reservation
from shared.privacy.ledger_totals import History


def history_without(paid: Reservation | None, history: History) -> History:
    """The data set as it was before the reservation under which the same request is answered again."""
    return history if paid is None else history.without(paid.use, is_counts=paid.round_number == COUNTS_ROUND)


def still_paid(paid: Reservation | None, use: MechanismUse) -> Reservation | None:
    """The reservation of an earlier try, if it pays for what would be done now.

    Raises:
        PermissionRefused: it paid for something else.
    """
    # PRIVACY: the owner may have changed settings since. test_a_reservation_pays_for_nothing_but_what_it_was_made_for
    if paid is not None and paid.use != use:
        raise PermissionRefused(
            f"round {paid.round_number} of run {paid.run_id} was paid for with other settings; start another run"
        )
    return paid


@contextlib.contextmanager
def forgotten_if_it_fails(case: Case) -> Iterator[None]:
    """That a round failed is an answer too: whoever is told so does not get another one for the same payment."""
    try:
        yield
    except ManifestError:
        raise  # given back, and forgotten before that
    except Exception:
        # PRIVACY: or one question after the other could be asked for one charge.
        # test_a_round_that_failed_is_not_trained_again_for_the_same_payment
        case.forget()
        raise
