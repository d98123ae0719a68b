"""Intake: the replies of one round, one after the other: judged, written down, added to the average, dropped.

in        what a Transport hands over, in any order; each site's request
out       the average update, the next clip norms, and a line of the record for every site
relies on judgement.py, and on aggregation.py or central.py for the sum; keeps headers and no update

Memory does not grow with the number of sites, but for those lines, and for the aggregations that compare all updates.
"""

from collections.abc import Mapping
from functools import lru_cache

from server.aggregation import Weights, start_average
from server.central import ProtectedSum, noisy_unclipped_share
from server.checkpoint import Progress
from server.judgement import Reply, judge
from server.plan import Central, Plan
from server.records import Outcome, SiteRound
from shared.config import RunConfig
from shared.messages import Refusal, ReplyHeader, TrainReply, TrainRequest, reply_fields
from shared.privacy.mechanism import next_clip_norm
from shared.threads import threads_for


class Intake:
    """One round's replies; `take` each, then `settle`."""

    def __init__(self, progress: Progress, *, run: RunConfig, central: Central | None) -> None:
        """Starts with no reply; `progress` is changed by `settle` only."""
        self._progress, self._run, self._central = progress, run, central
        self._counts = {site: sum(reply.counts) for site, reply in (progress.statistics or {}).items()}
        self._lines: dict[str, SiteRound] = {}
        self._used, self._is_reproducible = 0, False
        self._shares, self._within = list[float](), list[bool]()
        self._average = start_average(run.federation)
        self._protected = None
        if central is not None and progress.site_clip_norm is not None:
            self._protected = ProtectedSum(central.plan, clip_norm=progress.site_clip_norm)

    def take(self, site: str, reply: Reply, *, request: TrainRequest) -> None:
        """Judges a reply, adds what is usable and keeps none of it but its header."""
        # PRIVACY: a second update of one site would move the sum by more than the clip norm.
        # test_a_site_is_in_the_sum_once_however_often_it_answers
        if site in self._lines:
            return
        judged = judge(reply, request=request)
        if not isinstance(judged, TrainReply):
            outcome: Outcome = "refused" if isinstance(judged, Refusal) else judged.outcome
            self._lines[site] = SiteRound(site=site, outcome=outcome, code=judged.code)
            return
        self._lines[site] = _line(site, judged)
        self._count(judged.header)
        with threads_for(sum(value.numel() for value in judged.update.values())):
            if self._protected is not None:
                self._protected.add(judged.update)
            else:
                weight = weight_of(site, judged.header, counts=self._counts, run=self._run)
                self._average.add(judged.update, weight=weight)

    def settle(self) -> Weights | None:
        """The round's average update, None where there is none; the next clip norms stand in `progress`."""
        progress, local = self._progress, self._run.local_privacy
        progress.reproducible_noise |= self._is_reproducible
        update = self._settled()
        if local is not None and progress.clip_norm is not None and self._shares:
            share = sum(self._shares) / len(self._shares)
            progress.clip_norm = next_clip_norm(progress.clip_norm, unclipped_share=share, settings=local)
        return update

    def lines(self, plan: Plan) -> tuple[SiteRound, ...]:
        """What became of every site of the run, in the plan's order."""
        if plan.rounds is None:
            # PRIVACY: the cost counts on nobody knowing who was drawn. test_records_do_not_tell_who_was_drawn
            return tuple(_without_reply(site, "withheld") for site in plan.site_names)
        return tuple(self._lines.get(site) or _without_reply(site, "not-asked") for site in plan.site_names)

    def _count(self, header: ReplyHeader) -> None:
        self._used += 1
        self._is_reproducible |= header.privacy is not None and header.privacy.reproducible_noise
        if header.unclipped_share is not None:
            # held to what a share can be, so that no site has a larger say than any other
            self._shares.append(min(1.0, max(0.0, header.unclipped_share)))
        self._within.append(bool(header.is_within_clip))

    def _settled(self) -> Weights | None:
        progress, central = self._progress, self._central
        if self._protected is None or central is None or progress.site_clip_norm is None:
            # too few matter only where no noise covers it
            return None if self._used < max(1, self._run.federation.min_sites) else self._average.result()
        plan, source = central.plan, central.plan.source(progress.round_number, purpose="noise")
        # PRIVACY: also where nobody answered; a round left out would tell. test_a_round_without_updates_is_noise_alone
        update = self._protected.noisy_average(source)
        if plan.is_adaptive:
            share = noisy_unclipped_share(self._within, plan=plan, source=source)
            progress.site_clip_norm = next_clip_norm(
                progress.site_clip_norm, unclipped_share=share, settings=plan.privacy
            )
        return update


def weight_of(site: str, header: ReplyHeader, *, counts: Mapping[str, float], run: RunConfig) -> float:
    """How much an update counts: as any other, or by noisy counts where the run asked for them, else by nominal size.

    Args:
        site: whose.
        header: of its reply.
        counts: noisy totals of the sites that gave any.
        run: the run's settings.
    """
    if run.federation.weighting == "uniform":
        return 1.0
    return max(1.0, counts.get(site, float(header.nominal_size)))


def _line(site: str, reply: TrainReply) -> SiteRound:
    header = reply.header
    if header.is_within_clip is not None:
        # PRIVACY: exact, and for the server alone; its name among the fields says that it came.
        # test_records_do_not_hold_the_bit_of_a_site
        header = header.model_copy(update={"is_within_clip": None})
    return SiteRound(
        site=site,
        outcome="used",
        epsilon=header.privacy.epsilon if header.privacy else None,
        update_bytes=sum(value.nbytes for value in reply.update.values()),
        fields=reply_fields(reply),
        header=header,
    )


@lru_cache(maxsize=2**17)
def _without_reply(site: str, outcome: Outcome) -> SiteRound:
    """The line of a site that has none of its own; the same one in every round."""
    return SiteRound(site=site, outcome=outcome)
