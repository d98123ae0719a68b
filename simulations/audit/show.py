"""Show: an audit on the terminal, in words that claim no more than was found.

in        Audit
out       a table and a few sentences
relies on nothing
"""

from rich.console import Group
from rich.table import Table
from rich.text import Text

from server.records import Audit
from simulations.audit.run import is_alarm


def render_audit(audit: Audit) -> Group:
    """What each attack shows, what is claimed, and what may be concluded."""
    table = Table("attack", "epsilon is at least", "what it did", title=f"audit of {audit.site}, unit {audit.unit}")
    for attack in audit.attacks:
        is_above = attack.lower_bound > audit.claimed_epsilon
        table.add_row(attack.name, f"{attack.lower_bound:.2f}", attack.detail, style="bold red" if is_above else None)
    return Group(table, *(Text(sentence) for sentence in sentences(audit)))


def sentences(audit: Audit) -> tuple[str, ...]:
    """The claim, how sure the bounds are, the conclusion, and what to do with all this."""
    together = 1 - sum(1 - attack.confidence for attack in audit.attacks)
    found = [f"Claimed: epsilon is at most {audit.claimed_epsilon:.2f} at delta {audit.delta:g}, all rounds together."]
    if audit.planted_fault is not None:
        found.append(f"The training code was broken on purpose: {audit.planted_fault}.")
    each = ", ".join(sorted({f"{attack.confidence:.1%}" for attack in audit.attacks}))
    found.append(f"Confidence: {each} of each lower bound by itself, {together:.1%} of all of them together.")
    if is_alarm(audit):
        highest = max(audit.attacks, key=lambda attack: attack.lower_bound)
        found.append(
            f'ALARM: the attack "{highest.name}" shows epsilon {highest.lower_bound:.2f} at least, more than '
            "is claimed. Either the training code does not do what was accounted for, or chance did what it does in at "
            f"most {1 - together:.1%} of audits: repeat it with another --seed and run motet preflight."
        )
    else:
        found.append(
            "No attack shows more than is claimed. That is evidence, not proof: other attacks may see more, and a "
            "bound of 0 says that the attack saw nothing, not that nothing leaks."
        )
    found.append(
        "The audit trained on the site's records without charging any ledger: keep its results where the records are."
    )
    return tuple(found)
