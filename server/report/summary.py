"""Summary: what a run did and what it promises, in sentences for someone who decides whether it may go on.

in        a RunRecord
out       banners, sentences and lists for the page; the page adds no claim of its own
relies on claims being no wider than the mechanism: a record at a site, not a person, and not the held-out data
"""

import math
from dataclasses import dataclass

from server.records import RunRecord
from server.report.charts import epsilon_by_site
from server.report.numbers import (
    METRIC_NAMES,
    best_guess,
    bytes_text,
    count_text,
    delta_text,
    duration_text,
    epsilon_text,
    interval_text,
    listed,
    metric_text,
)
from server.report.words import Words

_SCALE = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class Banner:
    """Something that must not be overlooked."""

    title: str
    text: str
    is_alarm: bool


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


def banners(record: RunRecord, *, words: Words) -> list[Banner]:
    """Alarms first, then where the data is generated."""
    found = []
    if record.run.privacy == "none":
        found.append(Banner("NOT PRIVATE", words.texts["not_private"], is_alarm=True))
    elif record.reproducible_noise:
        title = "REPRODUCIBLE NOISE: PROTECTS NOBODY"
        found.append(Banner(title, words.texts["reproducible_noise"], is_alarm=True))
    if record.card is not None and record.card.generated:
        found.append(Banner("GENERATED DATA", words.texts["generated"], is_alarm=False))
    return found


def headlines(record: RunRecord) -> list[Headline]:
    """The numbers one asks for first: what it reaches on the test part, and what it cost."""
    metrics = record.test.overall.metrics
    names = ("mae", "pearson", "rmse") if record.run.data.task == "rating" else ("macro_f1", "accuracy", "macro_recall")
    found = [
        Headline(METRIC_NAMES[name], metric_text(metrics[name].value), interval_text(metrics[name]))
        for name in names
        if name in metrics
    ]
    if record.run.privacy == "none":
        return [*found, Headline("Privacy", "none", "see the notice on top", is_alarm=True)]
    epsilon = highest_epsilon(record)
    delta = f"delta {delta_text(max((plan.delta for plan in record.privacy), default=record.run.privacy.delta))}"
    beneath = "but the noise is not secret" if record.reproducible_noise else delta
    label = "Highest epsilon of any site"
    return [*found, Headline(label, epsilon_text(epsilon), beneath, is_alarm=record.reproducible_noise)]


def highest_epsilon(record: RunRecord) -> float | None:
    """The largest epsilon that any site stated; None where none did."""
    stated = [plan.epsilon for plan in record.privacy] + [line[-1] for line in epsilon_by_site(record).values()]
    return max(stated, default=None)


def lead(record: RunRecord, *, words: Words) -> list[str]:
    """What was done, in the words of someone who was there."""
    run = record.run
    data = f" on the data set “{record.card.title}”" if record.card else ""
    trained = (
        f"{count_text(len(record.sites), 'site')} trained one model together{data}, for "
        f"{count_text(len(record.rounds), 'round')}, to {_aim(record)} from {listed(list(run.modalities))}. "
        f"{words.texts['how']}"
    )
    tested = (
        f"It was then measured once, on {count_text(record.test.overall.num_samples, 'test sample')} "
        f"that played no part in any choice. {words.texts['intervals']}"
    )
    return [trained, f"{_choice(record)} {tested}"]


def guarantee(record: RunRecord, *, words: Words) -> list[str]:
    """What differential privacy promises here, and how much that is."""
    privacy, highest, texts = record.run.privacy, highest_epsilon(record), words.texts
    if privacy == "none":
        return [texts["no_guarantee"]]
    if highest is None:
        return [texts["nothing_sent"]]
    delta = max((plan.delta for plan in record.privacy), default=privacy.delta)
    # a site that states more than the run asked for counts what it released before
    earlier = texts["earlier"] if highest > privacy.epsilon * 1.001 else ""
    said = {
        "epsilon": epsilon_text(highest),
        "delta": delta_text(delta),
        "earlier": earlier,
        "factor": f"{math.ceil(math.exp(highest)):,}" if highest < 20 else "more than a hundred million",
        "sure": _percent(best_guess(highest, delta=delta)),
    }
    found = [
        f"{texts['mechanism']} {texts['promise'].format(**said)}",
        f"{texts['meaning'].format(**said)} {_judgement(highest, words=words)}",
    ]
    second = [plan for plan in record.privacy if plan.second_epsilon is not None]
    if second:
        independent = epsilon_text(max(plan.second_epsilon or 0.0 for plan in second))
        others = listed(sorted({words.accountants[plan.second_accountant] for plan in second}))
        accountants = listed(sorted({words.accountants[plan.accountant] for plan in second}))
        found.append(texts["second_opinion"].format(accountant=accountants, other=others, epsilon=independent))
    return [texts["would_be"], *found] if record.reproducible_noise else found


def guesses(record: RunRecord) -> list[tuple[str, str]]:
    """Epsilon against the certainty it allows: a scale on which to read the run's own number."""
    highest = highest_epsilon(record)
    if record.run.privacy == "none" or highest is None:
        return []
    delta = max((plan.delta for plan in record.privacy), default=record.run.privacy.delta)
    rows = [(f"{epsilon:g}", _percent(best_guess(epsilon, delta=delta))) for epsilon in _SCALE]
    return [*rows, (f"this run: {epsilon_text(highest)}", _percent(best_guess(highest, delta=delta)))]


def views(record: RunRecord, *, words: Words) -> list[View]:
    """Who could see what while the run went on, and after it."""
    private = _protects(record)
    said = {
        "update": "protected update" if private else "unprotected update",
        "yet": "" if private else words.texts["yet"],
        "mixed": "the average of all sites' protected updates" if private else "the average of all sites' updates",
    }
    found = [View(who, sees.format(**said), not_sees.format(**said)) for who, (sees, not_sees) in words.views.items()]
    if record.engine in words.engines:
        found.append(View("Whoever ran this simulation", words.engines[record.engine], ""))
    return found


def protected(record: RunRecord, *, words: Words) -> tuple[str, ...]:
    """What the promise covers."""
    return words.lists["protected_nothing" if not _protects(record) else "protected"]


def not_protected(record: RunRecord, *, words: Words) -> tuple[str, ...]:
    """What the promise does not cover."""
    is_told = any("num_examples" in site.fields for each in record.rounds for site in each.sites)
    told = words.lists["exposed_count"] if is_told else ()
    if not _protects(record):
        return (*words.lists["exposed_everything"], *words.lists["exposed_always"], *told)
    return (
        *words.lists["exposed_private"],
        *words.lists["exposed_always"],
        *told,
        *words.lists["exposed_program"],
    )


def costs(record: RunRecord) -> list[tuple[str, str]]:
    """Time, memory and traffic."""
    sent = sum(site.update_bytes for each in record.rounds for site in each.sites)
    engine = {"local": "simulated in one process", "flower": "simulated by Flower"}.get(record.engine, record.engine)
    return [
        ("Started", record.started),
        ("Time", duration_text(record.seconds)),
        ("Largest memory of one process", bytes_text(record.peak_memory_bytes)),
        ("Engine", engine),
        ("Parameters trained", f"{record.num_parameters:,}"),
        ("Sent by all sites", bytes_text(sent)),
        ("Seed", str(record.run.seed)),
    ]


def _protects(record: RunRecord) -> bool:
    return record.run.privacy != "none" and not record.reproducible_noise


def _aim(record: RunRecord) -> str:
    data = record.run.data
    if data.rating_range is not None:
        return f"give a rating between {data.rating_range[0]:g} and {data.rating_range[1]:g}"
    named = list(data.labels) if len(data.labels) <= 12 else [*data.labels[:11], "others"]
    return f"tell {len(data.labels)} classes apart ({listed(named)})"


def _choice(record: RunRecord) -> str:
    federation = record.run.federation
    if federation.select == "last":
        kept = f"The model after the last round, {record.chosen_round}, was kept."
    elif record.chosen_round == 0:
        kept = "No round did better on the validation part than the untrained model, so that one was kept."
    else:
        kept = f"The model after round {record.chosen_round} did best on the server's validation part and was kept."
    if record.stopped == "early":
        kept += f" Training ended before the planned {federation.rounds} rounds, because nothing got better."
    return kept


def _judgement(epsilon: float, *, words: Words) -> str:
    """A reading of epsilon in words.

    Source: the tiers of Ponomareva et al. 2023, arXiv:2303.00654, section 5.2: up to 1 strong, up to 10 reasonable,
    above that weak. Ours is stricter between 4 and 10, where the worst case is already close to certainty.
    """
    for limit in (1, 4, 10):
        if epsilon <= limit:
            return words.texts[f"judgement_{limit}"]
    return words.texts["judgement_more"]


def _percent(share: float) -> str:
    """Rounded up, and never to a certainty that is not there."""
    if share > 0.9999:
        return "more than 99.99 %"
    digits = 2 if share > 0.99 else 1
    return f"{math.ceil(share * 100 * 10**digits) / 10**digits:.{digits}f} %"
