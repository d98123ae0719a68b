"""Pyramid: the questions of NIST SP 800-226, level by level, answered from a run's record.

in        a RunRecord, as levels
out       a table: level, question, answer, where the answer is from
relies on saying "ask" where neither record nor program knows; an unknown is never answered with a hope

Source: NIST SP 800-226 (2025), "Guidelines for Evaluating Differential Privacy Guarantees": the differential privacy
pyramid. Its levels are the guideline's; the questions are put in our words.
"""

from collections.abc import Iterable, Mapping

from server.records import RunRecord, Scores
from server.report.charts import headline_metric
from server.report.document import Block, Cell, Table, Words, rows
from server.report.exactly import disagreement_text, neighbours_name
from server.report.levels import Level, levels
from server.report.numbers import delta_text, epsilon_text, estimate_text, listed, metric_name, metric_text
from server.report.participation import participation
from server.report.privacy_words import PrivacyWords
from server.report.promise import bound_of, seen_by_server
from server.report.words import Words as Meanings

_RECORD, _PROGRAM, _ASK = "this record", "the program", "nobody here: ask the operator"
_UNKNOWN = "Not known to this program: ask the operator."
Answer = tuple[str, str, str]
"""question, answer, where from"""


def pyramid_blocks(record: RunRecord, *, words: Meanings, sentences: PrivacyWords) -> tuple[Block, ...]:
    """The whole pyramid, from its top to its base."""
    parts: Mapping[str, Iterable[Answer]] = {
        "Top: the promise": _top(record, sentences=sentences),
        "Middle: what can weaken it": _middle(record, words=words, sentences=sentences),
        "Base: what it stands on": _base(record),
    }
    lines = [
        (part, question, answer, Cell(source, "care" if source == _ASK else ""))
        for part, answers in parts.items()
        for question, answer, source in answers
    ]
    table = Table(head=("Level", "Question", "Answer", "Known from"), rows=rows(*lines))
    return (Words(sentences.pyramid["lead"]), table)


def _top(record: RunRecord, *, sentences: PrivacyWords) -> Iterable[Answer]:
    found = levels(record)
    if not found:
        yield ("Epsilon: how much may be learned about one unit?", "Without limit: nothing was protected.", _RECORD)
    for level in found:
        yield (f"Epsilon: how much may be learned about one {level.unit}?", _epsilon(level, record), _RECORD)
    for level in found:
        yield (
            f"Unit: what is one {level.unit}?",
            f"{sentences.exact[neighbours_name(level)]}. {_caveat(level)}",
            _RECORD,
        )
    trusted = "Everybody who sees an update, or the model: nothing was protected."
    if found:
        said = [sentences.exact["trust_site" if level.is_central else "trust_local"] for level in found]
        trusted = " ".join(f"{text}." for text in said).format(seen=seen_by_server(record))
    yield ("Trust model: who sees what before noise hides it?", trusted, _PROGRAM)


def _middle(record: RunRecord, *, words: Meanings, sentences: PrivacyWords) -> Iterable[Answer]:
    name = headline_metric(record)
    reached = estimate_text(record.test.overall.metrics.get(name))
    yield (
        "Utility: what is the result good for?",
        f"{metric_name(name)} {reached} on {record.test.overall.num_samples:,} test samples. What the same run "
        "reaches without noise is not in this record; set runs side by side with: motet compare",
        _RECORD,
    )
    yield ("Bias: is it worse for some than for others?", _bias(record), _RECORD)
    yield (
        "Bias: whom does noise cost most?",
        "Noise hides small groups and rare classes first, and clipping holds back whoever differs most. How that "
        "falls on people who are not in the test part is not known to this program: ask the operator.",
        _ASK,
    )
    yield ("Algorithm: is the accounted mechanism the one that ran?", _correctness(record), _RECORD)
    for level in levels(record):
        yield (
            f"Algorithm: who checked the arithmetic for one {level.unit}?",
            f"{disagreement_text(level, words=words, sentences=sentences)}.",
            _RECORD,
        )
    yield (
        "Algorithm: were runs made to choose the settings counted?",
        "Every run on a data set is in its site's ledger and in its epsilon, runs made to tune included. What was "
        "chosen by looking at data outside this program is not known to it: ask the operator.",
        _PROGRAM,
    )
    yield ("Side channels: floating point", _floating_point(record), _RECORD)
    yield (
        "Side channels: timing, sizes, errors",
        "Times and sizes of messages are not hidden. Errors leave a site as one of a few codes without text, and a "
        "refusal says nothing about records.",
        _PROGRAM,
    )


def _base(record: RunRecord) -> Iterable[Answer]:
    if record.engine in {"cohort", "local", "flower"}:
        where = "This was a simulation: all folders lay on machines of whoever ran it, who could see them."
    else:
        where = (
            "A resident process of the owner's alone reads a site's data and ledger, and answers one local socket; "
            "messages went through Flower, encrypted where its links were set up with certificates."
        )
    yield ("Security: who can reach the records at a site?", where, _PROGRAM)
    yield ("Security: who has accounts on the sites' and the server's machines?", _UNKNOWN, _ASK)
    yield (
        "Security: can the record of spending be turned back?",
        "The ledger only grows and is on the disk before data is opened; one restored from an old copy, or deleted, "
        "has forgotten what came after. How it is kept and copied: ask the operator.",
        _PROGRAM,
    )
    yield (
        "Data exposure: did records leave the sites?",
        "No message of this program holds a record. The held-out data lies with the server without protection.",
        _PROGRAM,
    )
    yield ("Data exposure: how were the records collected, by what right, for how long?", _UNKNOWN, _ASK)
    yield ("Data exposure: which other copies or releases of the same records are there?", _UNKNOWN, _ASK)


def _epsilon(level: Level, record: RunRecord) -> str:
    bound = bound_of(level)
    if bound is None:
        return "Nothing was released."
    most = "At most " if level.epsilon is None else ""
    earlier = ", earlier runs included" if level.counts_earlier else ""
    secret = " The noise can be drawn again, so this number protects nobody." if record.reproducible_noise else ""
    return f"{most}{epsilon_text(bound)} at delta {delta_text(level.delta)}, all rounds together{earlier}.{secret}"


def _caveat(level: Level) -> str:
    return {
        "record": "A person with several records is several units; epsilon adds up over them.",
        "subject": "A person is whoever has one subject id in the site's manifest; is that so? Ask the site's owner.",
        "site": "A person is covered as a part of their site.",
    }[level.unit]


def _bias(record: RunRecord) -> str:
    found = [
        f"{column}: {text}" for column, values in record.test.by_group.items() if (text := _spread(values, record))
    ]
    overall = record.test.overall
    for task, scores in {"": overall, **overall.tasks}.items():
        classes = [(each.f1.value, each.label) for each in scores.classes if each.support]
        if classes:
            low, high = min(classes), max(classes)
            of = f"classes of {task.replace('_', ' ')}" if task else "classes"
            found.append(f"{of}: F1 from {metric_text(low[0])} ({low[1]}) to {metric_text(high[0])} ({high[1]})")
    if not record.test.by_group:
        found.append("the data names no group of people, so no difference between groups was measured")
    return f"{'; '.join(found)}."[:1].upper() + f"{'; '.join(found)}."[1:]


def _spread(values: Mapping[str, Scores], record: RunRecord) -> str:
    name = headline_metric(record)
    scores = [(found.named[name].value, value) for value, found in values.items() if name in found.named]
    if not scores:
        return ""
    low, high = min(scores), max(scores)
    return f"{metric_name(name)} from {metric_text(low[0])} ({low[1]}) to {metric_text(high[0])} ({high[1]})"


def _correctness(record: RunRecord) -> str:
    passed, checks = sum(check.passed for check in record.preflight), len(record.preflight)
    tested = f"{passed} of {checks} checks of the training code passed" if checks else "No preflight check is recorded"
    if record.audit is None:
        return f"{tested}; no audit was made."
    bound = max((attack.lower_bound for attack in record.audit.attacks), default=0.0)
    fault = ", of code broken on purpose" if record.audit.planted_fault is not None else ""
    return f"{tested}; an audit{fault} found epsilon to be at least {bound:.2f}, claimed at most " + (
        f"{record.audit.claimed_epsilon:.2f}."
    )


def _floating_point(record: RunRecord) -> str:
    kinds = sorted(set().union(*participation(record).noise.values()))
    said = {
        "discrete": "whole numbers with discrete Gaussian noise, which leave no rounding to attack",
        "float64": "noise in float64 on sums in float32, whose low bits can betray a little",
        "float32": "noise in float32, whose tails and low bits can betray a little more",
    }
    parts = [f"Sites: {listed([said[kind] for kind in kinds])}."] if kinds else []
    if record.run.central_privacy is not None:
        parts.append(f"Server: {said['float64']}.")
    return " ".join(parts) or "No noise is recorded."
