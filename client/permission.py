"""Permission: what of a run the owner's settings permit, decided before anything is built, charged or read.

in        the run as it arrived, and the owner's SiteConfig
out       Permitted: the run with the owner's own schema, the modalities trained here, the unit protected here
relies on nothing that arrives over the network but as a question
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

from client.site import SiteConfig
from client.unchanged import Same, Unchanged
from shared.card import CARD_NAME, PARENTS_SEARCHED, read_card
from shared.config import RunConfig
from shared.errors import ConfigError, PermissionRefused, WireError
from shared.messages import RequestHeader
from shared.model.encoders.checkpoint import named_folders
from shared.schema import DataCard


@dataclass(frozen=True)
class Permitted:
    """A run that the owner permits, as it is carried out here."""

    run: RunConfig
    """with the owner's schema in place of the server's"""
    modalities: tuple[str, ...]
    """what is trained and sent here"""
    tasks: tuple[str, ...] | None
    """of several tasks, those that rows here answer; None: there are not several, or all"""
    frozen: tuple[str, ...]
    """patterns of what is used here and not trained"""
    unit: Literal["record", "subject"] | None
    """what the site protects by its own noise; None: nothing, which the owner has permitted"""


class Cards:
    """The cards of owners' folders at one moment: a folder that lies above many of them is looked into once."""

    def __init__(self) -> None:
        self._above: dict[tuple[str, int], DataCard | None] = {}

    def card_of(self, data: Path) -> DataCard | None:
        """As `shared.card.find_card` of a folder whose path is resolved.

        Raises:
            ConfigError: there is a card, and it is not readable or not allowed.
        """
        return self._at(str(data), num_above=PARENTS_SEARCHED)

    def _at(self, folder: str, *, num_above: int) -> DataCard | None:
        place = f"{folder}{os.sep}{CARD_NAME}"
        if os.path.isfile(place):  # noqa: PTH113  quicker
            return _read_card(place)
        if not num_above:
            return None
        above = (os.path.dirname(folder), num_above - 1)  # noqa: PTH120  as above
        if above not in self._above:
            self._above[above] = self._at(above[0], num_above=above[1])
        return self._above[above]


def permit(run: RunConfig, *, site: SiteConfig, cards: Cards | None = None) -> Permitted:
    """The run as this site carries it out.

    Args:
        cards: of the sites that are asked at the same moment.

    Raises:
        PermissionRefused: the owner's settings do not permit it.
        ConfigError: the owner's own dataset.toml is missing or not allowed.
    """
    mine = _with_owners_schema(run, site=site, cards=cards or Cards())
    return Permitted(
        run=mine,
        modalities=_modalities(mine, site=site),
        tasks=_tasks(mine, site=site),
        frozen=site.frozen,
        unit=_unit(mine, site=site),
    )


def clip_norm_of_round(header: RequestHeader) -> float | None:
    """The adaptive clip norm that a request brings for records or subjects; None where the norm is fixed.

    Raises:
        WireError: it is missing, or there although the run does not clip adaptively.
    """
    privacy = header.run.local_privacy
    is_needed = privacy is not None and privacy.clipping == "adaptive"
    return _norm(header.clip_norm, is_needed=is_needed, field="clip_norm")


def site_clip_norm_of_round(header: RequestHeader) -> float | None:
    """Largest norm of the whole update in this round: the request's, or the run's; None where sites are not protected.

    Raises:
        WireError: it is missing though clipping is adaptive, or there though sites are not protected.
    """
    central = header.run.central_privacy
    if central is not None and central.clipping != "adaptive" and header.site_clip_norm is None:
        return central.clip_norm
    return _norm(header.site_clip_norm, is_needed=central is not None, field="site_clip_norm")


def _norm(value: float | None, *, is_needed: bool, field: str) -> float | None:
    if (value is not None) != is_needed:
        raise WireError(
            f"{field} is {value}; allowed: a norm where clipping needs one from round to round, and only there"
        )
    return value


def _unit(run: RunConfig, *, site: SiteConfig) -> Literal["record", "subject"] | None:
    """The stricter of the run's unit and the owner's."""
    owners = site.privacy
    # PRIVACY: without noise of its own the site takes part only by its owner's word.
    # test_a_non_private_run_needs_the_owners_leave_by_name
    if run.privacy == "none" and not owners.allow_non_private:
        raise PermissionRefused(
            'the run has privacy = "none"; allowed: a private one, unless the owner sets privacy.allow_non_private'
        )
    if run.local_privacy is None:
        # PRIVACY: the update leaves as it is, for the server to add noise.
        # test_only_an_owner_who_trusts_the_server_sends_an_update_without_noise
        if run.privacy != "none" and not owners.trust_server:
            raise PermissionRefused(
                'the run has unit "site": the update would leave without noise; allowed: a run of unit '
                f'"{owners.unit}", unless the owner sets privacy.trust_server'
            )
        return None
    # PRIVACY: who promises subjects keeps subjects. test_the_stricter_unit_wins
    if run.local_privacy.unit == "subject" and owners.unit == "record":
        raise PermissionRefused(
            "the run protects subjects, and this site counts its budget by records; allowed once the owner sets "
            'privacy.unit = "subject" and nominal_subjects'
        )
    return owners.unit


def _with_owners_schema(run: RunConfig, *, site: SiteConfig, cards: Cards) -> RunConfig:
    """The run with what the owner's own dataset.toml says records look like; the run must say the same.

    Were the server's word taken, each record that breaks it would show in a refusal: a list of labels, or a range of
    ratings, made narrower from round to round would ask the records one exact question after the other.
    """
    card = cards.card_of(site.data)
    if card is None:
        raise ConfigError(
            f"{site.data}: no dataset.toml in it or above it; what records look like is the owner's to say"
        )
    mine = _with_schema(Same(run), Same(card))
    if mine is None:
        raise PermissionRefused(
            f"{site.data}: the run's tasks, labels, range or modalities differ from the owner's dataset.toml"
        )
    return mine


@lru_cache(maxsize=1024)
def _with_schema(run: Same[RunConfig], card: Same[DataCard]) -> RunConfig | None:
    """The run with the schema of a card; None where the two do not say the same. One object for all sites of a card."""
    # PRIVACY: no word of the server's decides which records are faults. test_a_run_with_another_schema_is_refused
    agreed = {"task", "labels", "rating_range", "tasks", "pair", "item", "modalities"}
    if run.it.data.model_dump_json(include=agreed) != card.it.content.model_dump_json(include=agreed):
        return None
    return run.it.model_copy(update={"data": card.it.content})


_read_card = Unchanged(read_card)


def _modalities(run: RunConfig, *, site: SiteConfig) -> tuple[str, ...]:
    """What of the run this site can train, with encoders from folders that its owner lists."""
    for place, path in named_folders(run).items():
        if Path(path).resolve() not in site.checkpoints:
            raise PermissionRefused(
                f"the run's {place} names the folder {path}; allowed: those the owner lists in checkpoints, "
                f"{[str(each) for each in site.checkpoints]}"
            )
    modalities = tuple(name for name in run.modalities if name in site.modalities)
    if not modalities:
        raise PermissionRefused(f"the run uses {list(run.modalities)}; this site has {list(site.modalities)}")
    if not run.data.may_hold_pairs(site.modalities):
        # PRIVACY: by what the owner declares, which the server knows; whether a row has both is the rows' secret.
        # test_whether_rows_hold_pairs_shows_in_no_answer
        raise PermissionRefused(
            f"the run matches {' with '.join(run.data.pair or ())}, and this site declares {list(site.modalities)}: "
            "its update would be noise alone; allowed: rows that have both, and both named in modalities"
        )
    return modalities


def _tasks(run: RunConfig, *, site: SiteConfig) -> tuple[str, ...] | None:
    """Which of several tasks the rows here answer, in the run's order."""
    if not run.data.tasks or site.tasks is None:
        return None
    tasks = tuple(name for name in run.data.tasks if name in site.tasks)
    if not tasks:
        raise PermissionRefused(f"the run asks for {list(run.data.tasks)}; rows at this site answer {list(site.tasks)}")
    return None if len(tasks) == len(run.data.tasks) else tasks
