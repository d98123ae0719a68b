"""Summary: what a run did, what it reached and who could see what, in sentences.

in        a RunRecord
out       headlines, sentences and lists for the page; the page adds no claim of its own
relies on promise.py and trust.py for what is claimed, levels.py for the numbers
"""

from dataclasses import dataclass

from server.headline import headline_of
from server.records import RunRecord
from server.report.aim import aim
from server.report.levels import Level, is_protected, levels, run_time_text
from server.report.numbers import (
    bytes_text,
    count_text,
    delta_text,
    epsilon_text,
    interval_text,
    listed,
    metric_name,
    metric_text,
)
from server.report.participation import participation
from server.report.promise import bound_of
from server.report.words import Words


@dataclass(frozen=True)
class Headline:
    """A number in large type."""

    label: str
    value: str
    beneath: str
    is_alarm: bool = False


@dataclass(frozen=True)
class View:
    """Someone, and what they could see."""

    who: str
    sees: str
    not_sees: str


def headlines(record: RunRecord) -> list[Headline]:
    """The numbers one asks for first: what it reaches on the test part, and what it cost; four at most."""
    metrics, promised, shown = record.test.overall.named, levels(record), headline_of(record.run.data)
    names = (shown.main, *shown.beside)
    found = [
        Headline(metric_name(name), metric_text(metrics[name].value), interval_text(metrics[name]))
        for name in names[: 4 - max(1, len(promised))]
        if name in metrics
    ]
    if not promised:
        return [*found, Headline("Privacy", "none", "see the notice on top", is_alarm=True)]
    is_alarm = record.reproducible_noise
    for level in promised:
        beneath = "but the noise is not secret" if is_alarm else f"delta {delta_text(level.delta)}"
        found.append(Headline(_epsilon_label(level), epsilon_text(bound_of(level)), beneath, is_alarm=is_alarm))
    return found


def _epsilon_label(level: Level) -> str:
    if level.is_central:
        return "Epsilon of a whole site"
    if level.epsilon is None and level.is_withheld:
        return f"Epsilon of any site, at most, per {level.unit}"
    return "Highest epsilon of any site" + (", per person" if level.unit == "subject" else "")


def lead(record: RunRecord, *, words: Words) -> list[str]:
    """What was done, in the words of someone who was there."""
    run = record.run
    data = f" on the data set “{record.card.title}”" if record.card else ""
    trained = (
        f"{count_text(len(record.sites), 'site')} trained one model together{data}, for "
        f"{count_text(len(record.rounds), 'round')}, to {aim(record.run.data)} from {listed(list(run.modalities))}. "
        f"{words.texts['how']}"
    )
    tested = (
        f"It was then measured once, on {count_text(record.test.overall.num_samples, 'test sample')} "
        f"that played no part in any choice. {words.texts['intervals']}"
    )
    outcomes = {site.outcome for each in record.rounds for site in each.sites} - {"not-asked"}
    if outcomes and not outcomes & {"used", "withheld"}:
        trained = (
            f"{count_text(len(record.sites), 'site')} were asked to train one model together{data}, for "
            f"{count_text(len(record.rounds), 'round')}, and no update of any of them was used. "
            "The model is the one that the run began with."
        )
    return [trained, f"{_choice(record)} {tested}"]


def views(record: RunRecord, *, words: Words) -> list[View]:
    """Who could see what while the run went on, and after it."""
    # an update that leaves a site without noise can show its records, also where noise hides the sum of all
    private = is_protected(record) and record.run.local_privacy is not None
    said = {
        "update": _update_words(record),
        "yet": "" if private else words.texts["yet"],
        "mixed": _mixed_words(record),
        "counts": " unless they were asked for and noisy" if record.statistics else "",
    }
    found = [View(who, sees.format(**said), not_sees.format(**said)) for who, (sees, not_sees) in words.views.items()]
    if record.engine in words.engines:
        found.append(View("Whoever ran this simulation", words.engines[record.engine], ""))
    return found


def costs(record: RunRecord) -> list[tuple[str, str]]:
    """Time, memory and traffic."""
    sent = sum(totals.sent_bytes for totals in participation(record).sites.values())
    engines = {
        "cohort": "simulated in one process, a cohort of sites at a time",
        "local": "simulated in one process, one site after the other",
        "flower": "simulated by Flower",
    }
    engine = engines.get(record.engine, record.engine)
    return [
        ("Started", record.started),
        ("Time", run_time_text(record)),
        ("Largest memory of one process", bytes_text(record.peak_memory_bytes)),
        ("Engine", engine),
        *_computed(record),
        ("Parameters trained", f"{record.num_parameters:,}"),
        ("Sent by all sites", bytes_text(sent)),
        ("Seed", str(record.run.seed)),
    ]


def _computed(record: RunRecord) -> list[tuple[str, str]]:
    """Device, precision and memory bound of a simulation; of each of its starts, where they differ."""
    found = []
    for each in record.computed:
        again = f" ({each.engine})" if len(record.computed) > 1 else ""
        found += [(f"Device{again}", each.device), (f"Precision{again}", each.precision)]
        if each.memory_bytes is not None:
            found.append((f"Memory bound of a cohort{again}", f"about {bytes_text(each.memory_bytes)}"))
    return found


def _choice(record: RunRecord) -> str:
    federation = record.run.federation
    if federation.select == "last":
        kept = f"The model after the last round, {record.chosen_round}, was kept."
    elif record.chosen_round == 0:
        kept = "No round did better on the validation part than the untrained model, so that one was kept."
    else:
        kept = f"The model after round {record.chosen_round} did best on the server's validation part and was kept."
    if record.stopped == "early":
        kept += f" Training ended before the planned {federation.rounds} rounds, because {_why_early(record)}."
    return kept


def _why_early(record: RunRecord) -> str:
    """Patience, or a budget for whole sites that rounds repeated after an interruption have used up."""
    patience = record.run.federation.patience_rounds
    best = record.chosen_round if record.run.federation.select == "best" else 0
    if patience is not None and (record.run.central_privacy is None or len(record.rounds) - best >= patience):
        return "nothing got better"
    return "the budget for whole sites covered no further round"


def _update_words(record: RunRecord) -> str:
    if not is_protected(record):
        return "unprotected update"
    return "protected update" if record.run.local_privacy is not None else "update, limited but without noise"


def _mixed_words(record: RunRecord) -> str:
    if is_protected(record) and record.run.central_privacy is not None:
        return "the sum of all sites' updates, with the server's noise on it"
    return (
        "the average of all sites' protected updates" if is_protected(record) else "the average of all sites' updates"
    )
