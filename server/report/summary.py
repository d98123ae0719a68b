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


@dataclass(frozen=True)
class View:
    """Someone, and what they could see."""

    who: str
    sees: str
    not_sees: str


def banners(record: RunRecord) -> list[Banner]:
    """Alarms first, then where the data is generated."""
    found = []
    if record.run.privacy == "none":
        text = (
            "This run was started without privacy, by name. No noise hides the records: whoever sees the updates, and "
            "perhaps whoever gets the model, may be able to tell who was in the data and reconstruct parts of it. Treat "
            "the updates and the model as you would treat the records."
        )
        found.append(Banner("NOT PRIVATE", text, is_alarm=True))
    elif record.reproducible_noise:
        text = (
            "The noise of this run can be drawn again from a seed and taken away. The epsilon shown is what such noise "
            "would give if it were secret; as it stands it protects nobody. This is for simulations only."
        )
        found.append(Banner("REPRODUCIBLE NOISE: PROTECTS NOBODY", text, is_alarm=True))
    if record.card is not None and record.card.generated:
        text = (
            "The data was made by a program from a seed. The scores say nothing about real people, pictures or voices."
        )
        found.append(Banner("GENERATED DATA", text, is_alarm=False))
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
        return [*found, Headline("Privacy", "none", "not private")]
    epsilon = highest_epsilon(record)
    delta = f"delta {delta_text(max((plan.delta for plan in record.privacy), default=record.run.privacy.delta))}"
    return [*found, Headline("Highest epsilon of any site", epsilon_text(epsilon), delta)]


def highest_epsilon(record: RunRecord) -> float | None:
    """The largest epsilon that any site stated; None where none did."""
    stated = [plan.epsilon for plan in record.privacy] + [line[-1] for line in epsilon_by_site(record).values()]
    return max(stated, default=None)


def lead(record: RunRecord) -> list[str]:
    """What was done, in the words of someone who was there."""
    run, card = record.run, record.card
    data = f" of the data set “{card.title}”" if card else ""
    labels = run.data.labels
    aim = (
        f"give a rating between {run.data.rating_range[0]:g} and {run.data.rating_range[1]:g}"
        if run.data.rating_range
        else f"tell {len(labels)} classes apart ({listed(list(labels)) if len(labels) <= 12 else ', '.join(labels[:11]) + ' and others'})"
    )
    trained = (
        f"{count_text(len(record.sites), 'site')}{data} trained one model together to {aim} "
        f"from {listed(list(run.modalities))}. "
        f"The records stayed in the sites' own folders; the sites sent what training had changed in the model, "
        f"and the server averaged it, over {count_text(len(record.rounds), 'round')}."
    )
    if record.chosen_round == 0 and run.federation.select == "best":
        kept = "No round did better on the validation part than the untrained model, so the untrained model was kept."
    elif run.federation.select == "best":
        kept = f"The model after round {record.chosen_round} did best on the server's validation part and was kept."
    else:
        kept = f"The model after the last round, {record.chosen_round}, was kept."
    if record.stopped == "early":
        kept += f" Training ended early, before the planned {run.federation.rounds} rounds, because nothing got better."
    tested = (
        f"It was then measured once on {count_text(record.test.overall.num_samples, 'test sample')} that played no part in any choice. "
        "The ranges beside the scores are 95 % intervals: how far a score would move with other people in the test part."
    )
    return [trained, f"{kept} {tested}"]


def guarantee(record: RunRecord) -> list[str]:
    """What differential privacy promises here, and how much that is."""
    privacy, highest = record.run.privacy, highest_epsilon(record)
    if privacy == "none":
        return ["There is none. The updates that left the sites were neither clipped nor hidden in noise."]
    if highest is None:
        return ["No site sent a protected update, so nothing about any record was released in this run."]
    plans = record.privacy
    delta = max((plan.delta for plan in plans), default=privacy.delta)
    earlier = highest > privacy.epsilon * 1.001
    factor = f"{math.exp(highest):,.0f}" if highest < 20 else "more than a hundred million"
    promise = (
        f"Every site protected each of its records by itself, before anything was sent: in every step, the influence "
        f"of one record is cut to a fixed size and hidden in random noise. The result is differential privacy with "
        f"epsilon {epsilon_text(highest)} and delta {delta_text(delta)} at the site that spent most, for everything "
        f"it sent in all rounds together"
        + (" and for what it had released about the same data before." if earlier else ".")
    )
    meaning = (
        f"In words: had any one record of a site been left out, everything that the server saw from that site would have been "
        f"at most {factor} times less or more likely, except with a chance of {delta_text(delta)}. "
        f"Someone who knows every other record, sees all that the site sent, and starts at even odds whether this one record was "
        f"there, can be right in at most {_percent(best_guess(highest, delta=delta))} of cases. {_judgement(highest)}"
    )
    second = [plan for plan in plans if plan.epsilon_pld is not None]
    agreed = ""
    if second:
        top = max(second, key=lambda plan: plan.epsilon)
        agreed = (
            f"Sites compute epsilon with the {top.accountant.upper()} accountant. An independent one (PLD, dp-accounting) gives "
            f"{epsilon_text(max(plan.epsilon_pld or 0.0 for plan in second))} at most for the same steps of this run."
        )
    return [promise, meaning, *([agreed] if agreed else [])]


def guesses(record: RunRecord) -> list[tuple[str, str]]:
    """Epsilon against the certainty it allows: a scale on which to read the run's own number."""
    highest = highest_epsilon(record)
    if record.run.privacy == "none" or highest is None:
        return []
    delta = record.run.privacy.delta
    rows = [(f"{epsilon:g}", _percent(best_guess(epsilon, delta=delta))) for epsilon in (0.1, 0.5, 1, 2, 4, 8)]
    return [*rows, (f"this run: {epsilon_text(highest)}", _percent(best_guess(highest, delta=delta)))]


def views(record: RunRecord, *, words: Words) -> list[View]:
    """Who could see what while the run went on, and after it."""
    private = record.run.privacy != "none"
    update = "protected update" if private else "unprotected update"
    mixed = "the sum of all sites' protected updates" if private else "the average of all sites' updates"
    found = [
        View(
            "The owner of a site",
            "its own records, its own ledger of what was spent, the shared model of every round",
            f"records and updates of other sites, beyond what the shared model carries ({mixed})",
        ),
        View(
            "Whoever runs the server",
            f"each site's {update}, each field listed under “What left the sites”, when and how much each site sent, the held-out data",
            "records of the sites, their training loss, their scores, their label counts, their error texts",
        ),
        View(
            "Whoever gets the model",
            f"the model, which is made from {mixed}",
            "single updates",
        ),
        View("Whoever reads this report", "what is written here", "the model, the updates, the records"),
    ]
    if record.engine in words.engines:
        found.append(View("Whoever ran this simulation", words.engines[record.engine], ""))
    return found


def protected(record: RunRecord) -> list[str]:
    """What the promise covers."""
    if record.run.privacy == "none":
        return ["Nothing that depends on records. Only the files themselves stayed where they were."]
    return [
        "Every single record of every site, its label and all its modalities, against everyone outside that site: "
        "the server, the other sites, whoever gets the model. The server need not be trusted with it.",
        "For all rounds together, and together with everything the site released earlier about the same data set, "
        "as its ledger counts it.",
        "Whatever is later computed from the updates or the model: it cannot weaken the promise.",
    ]


def not_protected(record: RunRecord) -> list[str]:
    """What the promise does not cover."""
    shared = any("num_examples" in site.fields for each in record.rounds for site in each.sites)
    items = [
        "That a site took part, in which rounds, when it answered, how many bytes it sent, and which modalities it has.",
        "The size of its data set as its owner declares it"
        + (", and the number of its records, which some owners allow to be told." if shared else "."),
        "The server's held-out data: the model was chosen and measured on it without noise, and the scores in this report come from it.",
        "What is true of people in general. If faces tell moods, the model learns it whether or not one person's record is there.",
        "Parts of the model that were not trained (frozen encoders). They are public and hold nothing of these records.",
    ]
    if record.run.privacy == "none":
        return ["Everything that depends on records: see the red notice on top.", *items]
    return [
        "A person with several records at a site, or records at several sites, as one person: each record is protected, "
        "and together they may show more. Epsilon adds up over the records of one person.",
        *items,
        "A site that runs a changed program. In this version the program can come from whoever starts the run; an owner should check it or bring it.",
        "Rounds that a site paid for but that never arrived: its own ledger, not this report, has the full account.",
    ]


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


def _judgement(epsilon: float) -> str:
    if epsilon <= 1:
        return "That is a strong promise."
    if epsilon <= 4:
        return "That is a promise of middling strength: the worst case is noticeable, and hard to reach."
    if epsilon <= 10:
        return (
            "Taken as a worst case that is weak; attacks that are known reach far less, because nobody knows all other "
            "records. Judge it together with how sensitive the records are."
        )
    return (
        "That is so close to certainty that the number alone protects little. Do not rely on it for sensitive records."
    )


def _percent(share: float) -> str:
    """Rounded up, and never to a certainty that is not there."""
    if share > 0.9999:
        return "more than 99.99 %"
    digits = 2 if share > 0.99 else 1
    return f"{math.ceil(share * 100 * 10**digits) / 10**digits:.{digits}f} %"
