"""Roster: who takes part in a run: sites may come late, and a run that is resumed knows what each was told.

in        the sites that introduced themselves, at a start of the run and between its rounds
out       the Plan of the rounds that are left; RUN/plan.json
relies on plan.py for who is asked when, and on the transport for whether a site is who it says to be
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from pydantic import Field

from server.plan import Plan, exchanges_of, make_plan, refuse_too_few, with_site
from server.settings import write_atomically
from shared.config import RunConfig
from shared.errors import ConfigError, RunError
from shared.messages import Hello
from shared.model.exchange import Exchange
from shared.model.multimodal import MultimodalModel
from shared.settings import Settings, parse_settings_json

log = logging.getLogger("motet.server")
FILE_NAME = "plan.json"


class PlannedSite(Settings):
    """A site of the plan."""

    hello: Hello = Field(description="as it introduced itself last, without the signature")
    planned_rounds: int = Field(ge=0, description="the most that it is asked for, as it was told")
    first_round: int | None = Field(default=None, ge=1, description="of one that came late")


class PlanFile(Settings):
    """RUN/plan.json: what follows from nothing else that is kept; the schedule follows from it and the run's seed."""

    run_digest: str
    sites: tuple[PlannedSite, ...] = Field(description="those that came late stand last, in the order they came in")


class Roster:
    """The sites of a run and its plan, which a site that comes late changes; made by `open_roster`."""

    def __init__(self, plan: Plan, *, run: RunConfig, model: MultimodalModel, folder: Path) -> None:
        """Holds a plan; nothing is written."""
        self.plan = plan
        self._run, self._model, self._folder = run, model, folder

    def take_in(self, sites: Sequence[Hello], *, next_round: int, say: Callable[[str], None]) -> None:
        """Sites that came after the start, or came back: from the next round on they are in the plan, and on disk.

        Args:
            sites: whoever was accepted since this was asked last.
            next_round: the first that may ask them.
            say: told of each that had not been in the plan.

        Raises:
            RunError: the plan cannot be written; nobody was asked by it.
        """
        if not sites or next_round > self._run.federation.rounds:
            return
        # who can train nothing is not among them, which was logged with the reason
        exchanges = exchanges_of(sites, run=self._run, model=self._model)
        said = {site.site: site for site in sites if site.site in exchanges}
        plan = _with_words(self.plan, said, exchanges=exchanges)
        for name in sorted(said.keys() - plan.exchanges.keys()):
            if self._run.central_privacy is not None:
                # PRIVACY: delta, denominator and draw were worked out for the number of sites that there were.
                # test_a_run_that_protects_whole_sites_takes_in_none_after_its_start
                say(
                    f"{name} came on line, and takes part in the next run: this one protects whole sites, and was "
                    f"calibrated for the {len(plan.sites)} that it began with"
                )
            else:
                plan = with_site(plan, said[name], exchange=exchanges[name], from_round=next_round, run=self._run)
                say(f"{name} came on line: it takes part from round {next_round} on, {_times(plan.planned[name])}")
        if plan is not self.plan:
            self.keep(plan)

    def keep(self, plan: Plan) -> None:
        """Goes on with a plan, once it is on disk.

        Raises:
            RunError: it cannot be written; nobody was asked by it.
        """
        names = [*(name for name in plan.site_names if name not in plan.joined), *plan.joined]
        sites = tuple(
            PlannedSite(
                hello=plan.hello(name).model_copy(update={"signature": None}),
                planned_rounds=plan.planned.get(name, 0),
                first_round=plan.joined.get(name),
            )
            for name in names
        )
        found = PlanFile(run_digest=self._run.digest, sites=sites)
        write_atomically(self._folder / FILE_NAME, found.model_dump_json(exclude_defaults=True).encode())
        self.plan = plan


def open_roster(
    sites: list[Hello],
    *,
    run: RunConfig,
    model: MultimodalModel,
    folder: Path,
    next_round: int,
    say: Callable[[str], None] = log.warning,
) -> Roster:
    """Who takes part, at a start of the run; where it was started before, by the plan that it had then.

    A site of that plan that is not there now stays in it. One that is new comes late.

    Args:
        sites: those that introduced themselves at this start.
        run: the run's settings.
        model: of the run.
        folder: of the run.
        next_round: the one after those that are done.
        say: told of each site that comes late.

    Raises:
        RunError: they are fewer than the run asks for; or the plan's file is damaged, or belongs to other settings.
    """
    kept = _read(folder, run=run)
    if kept is None:
        roster = Roster(make_plan(sites, run=run, model=model), run=run, model=model, folder=folder)
        # on the disk before anybody is told how often it will be asked
        roster.keep(roster.plan)
    else:
        refuse_too_few(exchanges_of(sites, run=run, model=model), sites=sites, run=run)
        roster = Roster(_planned_anew(kept, run=run, model=model, folder=folder), run=run, model=model, folder=folder)
        roster.take_in(sites, next_round=next_round, say=say)
    return roster


def first_rounds(folder: Path) -> dict[str, int]:
    """Site -> the first round of a run that could ask it; empty where there is no plan yet.

    Raises:
        RunError: the file is damaged.
    """
    kept = _parsed(folder)
    return {} if kept is None else {each.hello.site: each.first_round or 1 for each in kept.sites}


def _planned_anew(kept: PlanFile, *, run: RunConfig, model: MultimodalModel, folder: Path) -> Plan:
    """The plan that a file stands for."""
    began = [each.hello for each in kept.sites if each.first_round is None]
    late = [(each.hello, each.first_round) for each in kept.sites if each.first_round is not None]
    exchanges = exchanges_of([each.hello for each in kept.sites], run=run, model=model)
    plan = make_plan(began, run=run, model=model)
    for site, first_round in late:
        if site.site in exchanges:
            plan = with_site(plan, site, exchange=exchanges[site.site], from_round=first_round, run=run)
    # PRIVACY: a site that was told a number calibrated its noise for it. test_a_plan_that_would_ask_more_is_refused
    told = {each.hello.site: each.planned_rounds for each in kept.sites}
    if {name: plan.planned.get(name, 0) for name in plan.site_names} != told:
        raise RunError(
            f"{folder / FILE_NAME}: does not fit the schedule that this release makes; it was changed, or written by "
            "another release. Go on with the release that began the run, or start a new run"
        )
    return plan


def _with_words(plan: Plan, said: Mapping[str, Hello], *, exchanges: Mapping[str, Exchange]) -> Plan:
    """The plan with what sites of it say of themselves now; the same one where none of them is heard."""
    if not any(site.site in said for site in plan.sites):
        return plan
    return replace(
        plan,
        sites=tuple(said.get(site.site, site) for site in plan.sites),
        exchanges={name: exchanges.get(name, exchange) for name, exchange in plan.exchanges.items()},
    )


def _read(folder: Path, *, run: RunConfig) -> PlanFile | None:
    kept = _parsed(folder)
    if kept is not None and kept.run_digest != run.digest:
        raise RunError(
            f"{folder / FILE_NAME}: written under other settings than {folder}/server.json; start a new run in "
            "another folder"
        )
    return kept


def _parsed(folder: Path) -> PlanFile | None:
    path = folder / FILE_NAME
    if not path.is_file():
        return None
    try:
        return parse_settings_json(PlanFile, path.read_text(encoding="utf-8"), place=str(path))
    except (ConfigError, UnicodeDecodeError) as error:
        raise RunError(f"{error}\nThe plan is damaged: restore {path} from a backup or start a new run") from None


def _times(planned: int) -> str:
    return f"{planned} time{'' if planned == 1 else 's'}"
