"""Exactly: the guarantee of each level with everything that has to be stated for it to mean anything.

in        a RunRecord, as levels
out       a table of facts for each level: unit, neighbours, epsilon, delta, mechanism, sampling, accountants
relies on privacy.toml for the sentences; nothing is claimed that a level does not hold
"""

from server.records import RunRecord
from server.report.document import Block, Cell, Heading, Table, Tone, Words, facts
from server.report.levels import Level, Range, levels
from server.report.numbers import delta_text, epsilon_text, listed
from server.report.privacy_words import PrivacyWords
from server.report.promise import bound_of, seen_by_server
from server.report.words import Words as Meanings

_UNITS = {"record": "Record", "subject": "Subject (a person, with all records under one id)", "site": "Whole site"}


def exact_blocks(record: RunRecord, *, words: Meanings, sentences: PrivacyWords) -> tuple[Block, ...]:
    """A table for each level, under its name where there are several."""
    found: list[Block] = []
    for level in levels(record):
        found.append(Heading(f"{_UNITS[level.unit]}: kept by {'the server' if level.is_central else 'every site'}"))
        found.append(_level_table(level, record, words=words, sentences=sentences))
    return tuple(found) or (Words(sentences.plain["none"]),)


def disagreement_text(level: Level, *, words: Meanings, sentences: PrivacyWords) -> str:
    """Who computed epsilon, and how far a second opinion is from it."""
    first = listed([words.accountants.get(name, name) for name in level.accountants])
    if level.disagreement is None or not level.second_accountants:
        return sentences.exact["no_second"].format(first=first)
    second = listed([words.accountants.get(name, name) for name in level.second_accountants])
    share = abs(level.disagreement)
    side = "more" if level.disagreement > 0 else "less"
    difference = "the same to three digits" if share < 0.0005 else f"{share:.1%} {side} at most".replace("%", " %")
    return sentences.exact["agreement"].format(
        first=first, second=second, epsilon=epsilon_text(level.second_epsilon), difference=difference
    )


def _level_table(level: Level, record: RunRecord, *, words: Meanings, sentences: PrivacyWords) -> Table:
    exact = sentences.exact
    side = "site" if level.is_central else "local"
    steps = _span(level.steps, digits=",.0f") + (" rounds" if level.is_central else " local steps")
    composition = exact[f"composition_{side}"].format(steps=steps if level.steps else "as many as its ledger says")
    noise = [exact["noise_reproducible"]] if record.reproducible_noise else [exact[f"noise_{n}"] for n in level.noise]
    return facts(
        ("Guarantee", exact["guarantee"]),
        ("Unit", _UNITS[level.unit]),
        ("Neighbouring data sets", exact[neighbours_name(level)]),
        ("Epsilon", _epsilon(level, record)),
        ("Epsilon of this run alone", _run_epsilon(level)),
        ("Delta", delta_text(level.delta)),
        (
            "What it covers",
            exact["covers_withheld" if level.epsilon is None and level.is_withheld else f"covers_{side}"],
        ),
        ("Mechanism", exact[f"mechanism_{level.unit}"]),
        ("Clipping", exact[f"clipping_{level.clipping}"].format(norms=_span(level.clip_norms, digits=".3g"))),
        ("Noise", Cell("; ".join(noise) or "Not told: withheld", "bad" if record.reproducible_noise else "")),
        ("Noise multiplier", _span(level.noise_multipliers, digits=".4g") + _planned_note(level)),
        ("Sampling", _sampling(level, record, sentences=sentences)),
        ("Composition", composition),
        ("Accountants", disagreement_text(level, words=words, sentences=sentences)),
        ("Who has to be trusted", exact[f"trust_{side}"].format(seen=seen_by_server(record))),
    )


def neighbours_name(level: Level) -> str:
    """Which sentence says what the data sets differ in."""
    if not level.is_central:
        return f"neighbours_{level.unit}"
    return "neighbours_site_secret" if level.sample_rates and level.sample_rates[1] < 1 else "neighbours_site_public"


def _planned_note(level: Level) -> str:
    is_planned = level.is_withheld and not level.is_central and level.noise_multipliers is not None
    return ", as planned; a site may use more" if is_planned else ""


def _epsilon(level: Level, record: RunRecord) -> Cell:
    tone: Tone = "bad" if record.reproducible_noise else "good"
    bound = bound_of(level)
    if bound is None:
        return Cell("Nothing was released")
    if level.epsilon is None:
        return Cell(f"At most {epsilon_text(bound)} in this run, at every site; more is withheld", tone)
    if level.is_central:
        return Cell(epsilon_text(level.epsilon), tone)
    num = len(level.sites)
    return Cell(
        f"{epsilon_text(level.epsilon)}, at the one of {num} sites that spent most"
        if num > 1
        else epsilon_text(level.epsilon),
        tone,
    )


def _run_epsilon(level: Level) -> str:
    if level.run_epsilon is not None:
        return f"{epsilon_text(level.run_epsilon)}; asked for at most {level.asked_epsilon:g}"
    return f"Asked for at most {level.asked_epsilon:g}"


def _sampling(level: Level, record: RunRecord, *, sentences: PrivacyWords) -> str:
    rates = _span(level.sample_rates, digits=".3g")
    if level.is_central:
        is_secret = level.sample_rates is not None and level.sample_rates[1] < 1
        return sentences.exact[f"sampling_site_{'secret' if is_secret else 'public'}"].format(rates=rates)
    if level.sample_rates is None:
        training = record.run.training
        asked = f"{training.sample_rate:g}" if training.sample_rate else f"{training.batch_size} over the declared size"
        return sentences.exact[f"sampling_{level.unit}"].format(rates=asked)
    if level.sample_rates[0] == 1:
        return sentences.exact["sampling_all"]
    return sentences.exact[f"sampling_{level.unit}"].format(rates=rates)


def _span(values: Range | None, *, digits: str) -> str:
    if values is None:
        return "Not told: withheld"
    low, high = (format(value, digits) for value in values)
    return low if low == high else f"{low} to {high}"
