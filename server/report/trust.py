"""Trust: who has to be believed for the guarantee to hold, and what it does not cover.

in        a RunRecord, as levels
out       lists for the page of a run and for the privacy report
relies on privacy.toml for every sentence
"""

from server.records import RunRecord
from server.report.document import Block, Heading, Items, Words
from server.report.levels import is_protected, is_withheld, levels
from server.report.privacy_words import PrivacyWords
from server.report.words import Words as Meanings


def protected(record: RunRecord, *, words: Meanings) -> tuple[str, ...]:
    """What the promise covers."""
    if not is_protected(record):
        return words.lists["protected_nothing"]
    found = [text for level in levels(record) for text in words.lists[f"protected_{level.unit}"]]
    if record.run.local_privacy is not None:
        found += words.lists["protected_local"]
    return (*found, *words.lists["protected_always"])


def not_protected(record: RunRecord, *, sentences: PrivacyWords) -> tuple[str, ...]:
    """What the promise does not cover."""
    lists, units = sentences.lists, {level.unit for level in levels(record)}
    membership = lists["not_membership_secret" if is_withheld(record) else "not_membership_public"]
    if not is_protected(record):
        return (*lists["not_everything"], *membership, *lists["not_always"])
    found: list[str] = []
    if "record" in units:
        found += lists["not_people"]
    if units == {"site"}:
        found += lists["not_records_in_a_site"]
    found += (*lists["not_several_sites"], *membership, *lists["not_always"])
    if record.run.local_privacy is not None:
        found += lists["not_paid"]
    return tuple(found)


def trust_blocks(record: RunRecord, *, words: Meanings, sentences: PrivacyWords) -> tuple[Block, ...]:
    """Trust assumptions, what is protected, what is not, and why participation is withheld."""
    lists, found = sentences.lists, list[Block]()
    if record.run.local_privacy is not None:
        found += [Words(sentences.trust["lead_local"]), Items(lists["trust_local"])]
    if record.run.central_privacy is not None:
        secret = lists["trust_site_secret"] if record.run.federation.site_sample_rate is not None else ()
        found += [Words(sentences.trust["lead_site"]), Items((*lists["trust_site"], *secret))]
    found += [Heading("Protected"), Items(protected(record, words=words))]
    found += [Heading("Not protected"), Items(not_protected(record, sentences=sentences))]
    if is_withheld(record):
        found += [Heading("Why participation is withheld"), *(Words(text) for text in lists["withheld"])]
    return tuple(found)
