"""Evidence: what was done to test the guarantee, and how to check this report and make the run again.

in        a RunRecord
out       blocks of the privacy report: audit, preflight checks, versions, digests
relies on an audit being evidence and no proof: its words claim no more than that
"""

from server.records import Audit, RunRecord
from server.report.document import Block, Cell, Heading, Table, Words, facts, rows
from server.report.numbers import delta_text
from server.report.privacy_words import PrivacyWords


def evidence_blocks(record: RunRecord, *, sentences: PrivacyWords) -> tuple[Block, ...]:
    """Audit and preflight, or that there was none and how to make it."""
    texts = sentences.evidence
    found: list[Block] = [Heading("Audit")]
    if record.audit is None:
        found.append(Words(texts["no_audit"]))
    else:
        said = {"claim": f"{record.audit.claimed_epsilon:.2f}", "delta": delta_text(record.audit.delta)}
        found.append(Words(texts["audit"].format(**said, unit=record.audit.unit)))
        found.append(_audit_table(record.audit))
    found.append(Heading("Preflight"))
    if not record.preflight:
        return (*found, Words(texts["no_preflight"]))
    lines = [
        (check.name, Cell("passed", "good") if check.passed else Cell("failed", "bad"), check.detail)
        for check in record.preflight
    ]
    table = Table(head=("Check", "Result", "What was measured"), rows=rows(*lines))
    return (*found, Words(texts["preflight"]), table)


def again_blocks(record: RunRecord, *, sentences: PrivacyWords) -> tuple[Block, ...]:
    """Versions, digests, and how every number is computed again."""
    texts = sentences.again
    table = facts(
        ("Started", record.started),
        ("Settings, SHA-256", record.run.digest),
        ("Program, SHA-256 over its own files", record.code_digest or texts["no_digest"]),
        *((f"Version of {name}", version) for name, version in record.versions.items()),
    )
    return (Words(texts["lead"]), Words(texts["seeded" if record.reproducible_noise else "secret"]), table)


def _audit_table(audit: Audit) -> Table:
    claim = f"{audit.claimed_epsilon:.2f}"
    lines = []
    for attack in audit.attacks:
        is_above = attack.lower_bound > audit.claimed_epsilon
        bound = f"{attack.lower_bound:.2f}" if attack.lower_bound > 0 else "0.00: showed nothing"
        found = Cell(f"at least {bound}", "bad" if is_above else "")
        verdict = Cell("above the claim", "bad") if is_above else Cell("below the claim")
        lines.append((attack.name, found, f"{attack.confidence:.0%}".replace("%", " %"), claim, verdict, attack.detail))
    if audit.planted_fault is not None:
        fault = Cell(f"Planted fault: {audit.planted_fault}", "bad")
        lines.append((fault.text, fault, "", "", Cell("broken on purpose", "bad"), "says nothing about this run"))
    head = ("Attack", "Epsilon", "Confidence", "Claimed at most", "Verdict", "Detail")
    return Table(head=head, rows=rows(*lines))
