"""Open round: what of a request needs neither its weights nor the owner's ledger; the round's random numbers.

in        the header of a request, and the owner's settings
out       OpenRound, read by agent.py and by cohort_entry.py; or why the owner does not permit it
relies on permission.py for what the owner allows, on run_model.py for what the request must bring
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from client.limits import refuse_beyond_limits
from client.permission import Cards, Permitted, clip_norm_of_round, permit, site_clip_norm_of_round
from client.plan import PrivacyPlan
from client.run_model import ExchangedShapes, RunKey, exchanged_shapes, key_of, num_parameters
from client.site import SiteConfig
from shared.config import RunConfig
from shared.errors import PermissionRefused, WireError
from shared.messages import PROTOCOL_VERSION, RequestHeader, StatisticsHeader
from shared.model.registry import load_extensions
from shared.privacy.noise import RandomSource, reproducible_source, secret_source


@dataclass(frozen=True, slots=True)
class OpenRound:
    """A round that a site's owner permits, before anything is planned, paid for or read."""

    header: RequestHeader
    site: SiteConfig
    permitted: Permitted
    key: RunKey
    """of the run as it is carried out here"""
    shapes: ExchangedShapes
    """of the tensors that the request must bring, and the update will have; one object for all sites alike"""
    clip_norm: float | None
    """adaptive clipping of records or subjects: this round's norm"""
    site_clip_norm: float | None
    """unit site: largest norm of the whole update"""

    def at(self, site: SiteConfig) -> "OpenRound":
        """The same round at another site of equal terms."""
        return OpenRound(self.header, site, self.permitted, self.key, self.shapes, self.clip_norm, self.site_clip_norm)

    @property
    def names(self) -> tuple[str, ...]:
        """Parameters that are trained, in the model's order."""
        return tuple(self.shapes.trained)


def open_round(header: RequestHeader, *, site: SiteConfig, cards: Cards | None = None) -> OpenRound:
    """What of a request needs neither its weights nor the owner's ledger.

    Args:
        cards: as `permit`.

    Raises:
        MotetError: the request is not what a server may ask, or the owner does not permit it.
    """
    permitted = permitted_here(header, site=site, cards=cards)
    key = key_of(permitted.run)
    clip_norm, site_clip_norm = clip_norm_of_round(header), site_clip_norm_of_round(header)
    if (size := num_parameters(key)) > site.max_parameters:
        raise PermissionRefused(
            f"the run's model has {size:,} parameters; allowed: {site.max_parameters:,} (max_parameters)"
        )
    shapes = exchanged_shapes(key, permitted.modalities, tasks=permitted.tasks, frozen=permitted.frozen)
    if not shapes.trained.keys() - set(shapes.personal):
        raise PermissionRefused(
            f"of what the run's sites train in common nothing is left here; allowed: patterns in frozen, "
            f"{list(site.frozen)}, that spare something"
        )
    return OpenRound(
        header=header,
        site=site,
        permitted=permitted,
        key=key,
        shapes=shapes,
        clip_norm=clip_norm,
        site_clip_norm=site_clip_norm,
    )


def permitted_here(
    header: RequestHeader | StatisticsHeader, *, site: SiteConfig, cards: Cards | None = None
) -> Permitted:
    """What of a request the owner permits, with the owner's own parts registered.

    Raises:
        MotetError: it comes from another version, or is not permitted.
    """
    if header.protocol_version != PROTOCOL_VERSION:
        raise WireError(
            f"protocol_version is {header.protocol_version}; allowed: {PROTOCOL_VERSION}; install the same Motet"
        )
    permitted = permit(header.run, site=site, cards=cards)
    for part in site.parts:
        _load_part(part)
    refuse_beyond_limits(header, permitted.run, limits=site.limits)
    return permitted


def sources_of(opened: OpenRound, *, plan: PrivacyPlan | None) -> tuple[RandomSource, RandomSource]:
    """The random numbers of one round at one site: for its noise, and for all that it draws otherwise."""
    run, site, number = opened.permitted.run, opened.site, opened.header.round_number
    noise, sampling = (
        source_of(run, site=site, purpose=f"{number}/{use}", is_secret=plan is not None)
        for use in ("noise", "sampling")
    )
    return noise, sampling


def nominal_size(opened: OpenRound, *, plan: PrivacyPlan | None) -> int:
    """The public number that sampling follows from: of what is protected, or of records."""
    return opened.site.nominal_units(plan.unit if plan else "record")


def source_of(run: RunConfig, *, site: SiteConfig, purpose: str, is_secret: bool) -> RandomSource:
    """Random numbers: secret where they protect, from the run's seed only where the owner simulates."""
    # PRIVACY: noise and batches that a seed gives back protect nobody. test_noise_differs_between_equal_runs
    if is_secret and not site.privacy.reproducible_noise:
        return secret_source()
    return reproducible_source(run.seed, purpose=f"{site.name}/{purpose}")


@lru_cache(maxsize=64)
def _load_part(path: Path) -> None:
    """The owner's own registrations, once a process."""
    load_extensions(path)
