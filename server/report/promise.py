"""Promise: the guarantee of a run in sentences, for people who decide and for people who check.

in        a RunRecord, as levels
out       alarms, the guarantee without symbols, the guarantee with epsilon and delta, a scale to read epsilon on
relies on claims being no wider than the mechanism: a unit at a site, or a site at a server that is trusted
"""

import math

from server.records import RunRecord
from server.report.document import Notice
from server.report.levels import Level, alarms, levels
from server.report.numbers import best_guess, delta_text, epsilon_text, listed
from server.report.privacy_words import PrivacyWords
from server.report.words import Words

_SCALE = (0.1, 0.5, 1.0, 2.0, 4.0, 8.0)


def alarm_notices(record: RunRecord, *, sentences: PrivacyWords) -> list[Notice]:
    """Everything that alarms, in red, the worst first."""
    found = []
    for alarm in alarms(record):
        title, text = sentences.alarms[alarm.name]
        found.append(Notice(title, text.format(**alarm.values), is_alarm=True))
    return found


def notices(record: RunRecord, *, words: Words, sentences: PrivacyWords) -> list[Notice]:
    """Alarms first, then where the data is generated."""
    found = alarm_notices(record, sentences=sentences)
    if record.card is not None and record.card.generated:
        found.append(Notice("GENERATED DATA", words.texts["generated"], is_alarm=False))
    return found


def plain_guarantee(record: RunRecord, *, words: Words, sentences: PrivacyWords) -> str:
    """The guarantee in one paragraph, without a symbol or a technical term."""
    said = []
    for level in levels(record):
        # each promise is judged by its own epsilon, right behind it: one word for both would be unjust to one of them
        if (text := _plain(level, record, sentences=sentences)) and (bound := bound_of(level)) is not None:
            said += [text, _judgement(bound, words=words)]
    if not levels(record):
        return sentences.plain["none"]
    if not said:
        return sentences.plain["nothing"]
    return " ".join([sentences.plain["would_be"], *said] if record.reproducible_noise else said)


def guarantee(record: RunRecord, *, words: Words, sentences: PrivacyWords) -> list[str]:
    """What differential privacy promises at each level, and how much that is."""
    if not levels(record):
        return [sentences.plain["none"]]
    found = [text for level in levels(record) for text in _promise(level, words=words)]
    if not found:
        return [sentences.plain["nothing"]]
    return [sentences.plain["would_be"], *found] if record.reproducible_noise else found


def guesses(record: RunRecord) -> list[tuple[str, str]]:
    """Epsilon against the certainty it allows: a scale on which to read the run's own numbers."""
    own = [(level, bound) for level in levels(record) if (bound := bound_of(level)) is not None]
    if not own:
        return []
    delta = max(level.delta for level, _ in own)
    rows = [(f"{epsilon:g}", percent(best_guess(epsilon, delta=delta))) for epsilon in _SCALE]
    names = {"record": "this run", "subject": "this run, one person", "site": "this run, a whole site"}
    for level, bound in own:
        name = "this run" if len(own) == 1 else names[level.unit]
        rows.append((f"{name}: {epsilon_text(bound)}", percent(best_guess(bound, delta=level.delta))))
    return rows


def highest_epsilon(record: RunRecord) -> float | None:
    """The largest epsilon that the run states: of any site or, where only sites are protected, of a whole site."""
    return next((bound_of(level) for level in levels(record)), None)


def bound_of(level: Level) -> float | None:
    """Epsilon of a level; where it is withheld, what the run may have cost at most."""
    return level.asked_epsilon if level.epsilon is None and level.is_withheld else level.epsilon


def seen_by_server(record: RunRecord) -> str:
    """What a server that is trusted for whole sites has before its eyes."""
    if record.run.local_privacy is None:
        return "every site's update without noise"
    return "every site's update, with the noise of the site's own promise"


def percent(share: float) -> str:
    """Rounded up, and never to a certainty that is not there."""
    if share > 0.9999:
        return "more than 99.99 %"
    digits = 2 if share > 0.99 else 1
    return f"{math.ceil(share * 100 * 10**digits) / 10**digits:.{digits}f} %"


def _plain(level: Level, record: RunRecord, *, sentences: PrivacyWords) -> str:
    bound = bound_of(level)
    if bound is None:
        return ""
    share = best_guess(bound, delta=level.delta)
    name = "site" if level.is_central else "local_withheld" if level.epsilon is None else "local"
    return sentences.plain[name].format(
        thing=sentences.things[level.unit],
        sure="in practically every case"
        if share > 0.9999
        else f"in at most {percent(share).removesuffix(' %')} of 100 cases",
        seen=seen_by_server(record),
    )


def _promise(level: Level, *, words: Words) -> list[str]:
    bound = bound_of(level)
    if bound is None:
        return []
    which = "site" if level.is_central else "withheld" if level.epsilon is None else "local"
    said = {
        "epsilon": epsilon_text(bound),
        "delta": delta_text(level.delta),
        "earlier": words.texts["earlier_site" if level.is_central else "earlier_local"] if level.counts_earlier else "",
        "factor": f"{math.ceil(math.exp(bound)):,}" if bound < 20 else "more than a hundred million",
        "sure": percent(best_guess(bound, delta=level.delta)),
    }
    found = [
        f"{words.texts[f'mechanism_{level.unit}']} {words.texts[f'promise_{which}'].format(**said)}",
        f"{words.texts[f'meaning_{level.unit}'].format(**said)} {_judgement(bound, words=words)}",
    ]
    if level.second_epsilon is not None:
        text = words.texts["second_opinion"].format(
            accountant=listed([words.accountants[name] for name in level.accountants]),
            other=listed([words.accountants[name] for name in level.second_accountants]),
            epsilon=epsilon_text(level.second_epsilon),
        )
        found.append(text)
    return found


def _judgement(epsilon: float, *, words: Words) -> str:
    """A reading of epsilon in words.

    Source: the tiers of Ponomareva et al. 2023, arXiv:2303.00654, section 5.2: up to 1 strong, up to 10 reasonable,
    above that weak. Ours is stricter between 4 and 10, where the worst case is already close to certainty.
    """
    for limit in (1, 4, 10):
        if epsilon <= limit:
            return words.texts[f"judgement_{limit}"]
    return words.texts["judgement_more"]
