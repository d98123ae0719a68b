"""Intake: the replies of one round, one after the other: judged, written down, added to the average, dropped.

in        what a Transport hands over, in any order; each site's request
out       the average update, the next clip norms, and a line of the record for every site
relies on judgement.py, and on aggregation.py or central.py for the sum; keeps headers and no update

Memory does not grow with the number of sites, but for those lines, and for the aggregations that compare all updates.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from server.aggregation import Weight, Weights, start_average
from server.central import ProtectedSum, noisy_unclipped_share
from server.checkpoint import Progress
from server.judgement import Failure, Reply, judge
from server.plan import Central, Plan
from server.records import AggregationNote, Outcome, SiteRound
from shared.config import RunConfig
from shared.messages import Refusal, ReplyHeader, TrainReply, TrainRequest, reply_fields
from shared.model.multimodal import MultimodalModel
from shared.model.parameters import modality_of
from shared.privacy.mechanism import next_clip_norm
from shared.threads import threads_for

_FLOAT32_BYTES = 4


class Intake:
    """One round's replies; `take` each, then `settle`."""

    def __init__(
        self, progress: Progress, *, run: RunConfig, central: Central | None, shares: "ModalityShares | None" = None
    ) -> None:
        """Starts with no reply; `progress` is changed by `settle` only.

        Args:
            shares: weighting "modality": what each site's parameters count; there if the run asks for it.
        """
        self._progress, self._run, self._central, self._shares_of = progress, run, central, shares
        self._counts = {site: sum(reply.counts) for site, reply in (progress.statistics or {}).items()}
        self._lines: dict[str, SiteRound] = {}
        self._read: _Read | None = None
        self._used, self._is_reproducible = 0, False
        self._shares, self._within = list[float](), list[bool]()
        self._average = start_average(run.federation)
        self.note: AggregationNote | None = None
        """after `settle`: what the aggregation did to usable updates, where it says so"""
        self._protected = None
        if central is not None and progress.site_clip_norm is not None:
            self._protected = ProtectedSum(central.plan, clip_norm=progress.site_clip_norm)

    def take(self, site: str, reply: Reply, *, request: TrainRequest) -> None:
        """Judges a reply, adds what is usable and keeps none of it but its header."""
        # PRIVACY: a second update of one site would move the sum by more than the clip norm.
        # test_a_site_is_in_the_sum_once_however_often_it_answers
        if site in self._lines:
            return
        if isinstance(reply, Failure):
            self._lines[site] = SiteRound(site=site, outcome=reply.outcome, code=reply.code)
            return
        if isinstance(reply, Refusal):
            self._lines[site] = SiteRound(site=site, outcome="refused", code=reply.code)
            return
        read = self._reading(reply, request=request)
        if read.fault is not None:
            self._lines[site] = SiteRound(site=site, outcome=read.fault.outcome, code=read.fault.code)
            return
        num_bytes = sum(value.nbytes for value in reply.update.values()) if reply.row is None else reply.row.nbytes
        self._lines[site] = SiteRound(
            site=site,
            outcome="used",
            epsilon=read.recorded.privacy.epsilon if read.recorded.privacy else None,
            update_bytes=num_bytes,
            fields=read.fields,
            header=read.recorded,
        )
        self._count(reply.header)
        with threads_for(num_bytes // _FLOAT32_BYTES):
            if self._protected is not None:
                self._protected.add(reply.update, row=reply.row)
            else:
                self._average.add(reply.update, weight=self._weight(site, reply), row=reply.row, site=site)

    def _weight(self, site: str, reply: TrainReply) -> Weight:
        if self._shares_of is not None:
            return self._shares_of.weights(site, header=reply.header, names=tuple(reply.update))
        return weight_of(site, reply.header, counts=self._counts, run=self._run)

    def _reading(self, reply: TrainReply, *, request: TrainRequest) -> "_Read":
        """What follows from header, names and request alone: worked out once for neighbours that have the same ones."""
        read = self._read
        if read is None or not read.is_of(reply, request=request):
            self._read = read = _read(reply, request=request)
        return read

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
            if self._used < max(1, self._run.federation.min_sites):
                return None
            result, self.note = self._average.result(), self._average.note()
            return result
        plan, source = central.plan, central.plan.source(progress.round_number, purpose="noise")
        # PRIVACY: also where nobody answered; a round left out would tell. test_a_round_without_updates_is_noise_alone
        update = self._protected.noisy_average(source)
        if plan.is_adaptive:
            share = noisy_unclipped_share(self._within, plan=plan, source=source)
            progress.site_clip_norm = next_clip_norm(
                progress.site_clip_norm, unclipped_share=share, settings=plan.privacy
            )
        return update


class ModalityShares:
    """How much each parameter of a site's update counts: as many rows as its owner says have the parameter's modality.

    What serves all modalities counts by the nominal size, and so does a modality of which the owner says nothing. No
    number of it was counted at a site for this purpose: all stands in Hello and in the reply's header.
    """

    def __init__(self, plan: Plan, *, model: MultimodalModel) -> None:
        """For the sites of a plan; `model` says which modality a parameter serves."""
        self._plan, self._model = plan, model
        self._serves: dict[tuple[str, ...], dict[str, str | None]] = {}

    def weights(self, site: str, *, header: ReplyHeader, names: tuple[str, ...]) -> dict[str, float]:
        """Parameter -> weight, above 0."""
        if names not in self._serves:
            self._serves[names] = {name: modality_of(self._model, name) for name in names}
        # PRIVACY: what owners declare, never what somebody counted. test_modality_weights_are_what_owners_declare
        declared = self._plan.hello(site).nominal_modality_sizes
        return {
            name: float(declared.get(modality or "", header.nominal_size))
            for name, modality in self._serves[names].items()
        }


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


@dataclass(frozen=True)
class _Read:
    """What a header says, beside the request that it answers: these very objects, which cannot be changed."""

    header: ReplyHeader
    request: TrainRequest
    fault: Failure | None
    """why no reply with it is used"""
    recorded: ReplyHeader
    """what of it is written down"""
    names: tuple[str, ...]
    """of the update"""
    fields: tuple[str, ...]

    def is_of(self, reply: TrainReply, *, request: TrainRequest) -> bool:
        """Whether it holds for this reply too."""
        return self.header is reply.header and self.request is request and self.names == tuple(reply.update)


def _read(reply: TrainReply, *, request: TrainRequest) -> _Read:
    header, judged = reply.header, judge(reply, request=request)
    fault, recorded = judged if isinstance(judged, Failure) else None, header
    if header.is_within_clip is not None:
        # PRIVACY: exact, and for the server alone; its name among the fields says that it came.
        # test_records_do_not_hold_the_bit_of_a_site
        recorded = header.model_copy(update={"is_within_clip": None})
    return _Read(header, request, fault, recorded, tuple(reply.update), reply_fields(reply))


@lru_cache(maxsize=2**17)
def _without_reply(site: str, outcome: Outcome) -> SiteRound:
    """The line of a site that has none of its own; the same one in every round."""
    return SiteRound(site=site, outcome=outcome)
