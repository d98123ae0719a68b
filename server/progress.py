"""Progress: one live line while a run goes on; plain lines where nobody watches a terminal.

in        a RoundRecord after every round
out       round, F1 or error, highest epsilon, time left
relies on rich for the terminal
"""

import time
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from server.headline import headline_of
from server.records import RoundRecord
from server.report.numbers import epsilon_text
from shared.config import RunConfig

_PLAIN_EVERY_S = 5.0
_MOST_NAMED = 3


class ProgressLine:
    """Shows where a run stands; used as a context around its rounds."""

    def __init__(self, *, run: RunConfig, done: int, console: Console | None = None) -> None:
        self._run, self._console = run, console or Console()
        self._live = self._console.is_terminal
        self._last_line, self._shown = -_PLAIN_EVERY_S, ""
        self._highest: float | None = None
        self._of_sites: float | None = None
        self._bar = Progress(
            TextColumn("[bold]round"),
            MofNCompleteColumn(),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("rounds", total=run.federation.rounds, completed=done, state="")

    def __enter__(self) -> "ProgressLine":
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def tell(self, record: RoundRecord) -> None:
        """Show the round that has just ended."""
        told = [site.epsilon for site in record.sites if site.epsilon is not None]
        self._highest = max(told, default=self._highest)
        self._of_sites = record.site_epsilon or self._of_sites
        if record.validation is not None:
            self._shown = headline(record, run=self._run)
        state = f"{self._shown}  {self._privacy()}  {_absences(record)}".rstrip()
        self._bar.update(self._task, completed=record.round, state=state)
        now, last = time.monotonic(), record.round == self._run.federation.rounds
        if not self._live and (last or now - self._last_line > _PLAIN_EVERY_S):
            self._last_line = now
            self._console.print(f"round {record.round}/{self._run.federation.rounds}  {state}", highlight=False)

    def say(self, line: str) -> None:
        """Something that whoever watches should know, above the live line."""
        self._console.print(line, style="yellow", highlight=False, markup=False)

    def _privacy(self) -> str:
        local, central = self._run.local_privacy, self._run.central_privacy
        if local is None and central is None:
            return "NOT PRIVATE"
        shown = []
        if local is not None and self._run.federation.site_sample_rate is not None:
            shown.append(f"{local.unit}: up to epsilon {local.epsilon:g}")
        elif local is not None:
            shown.append(f"highest epsilon {_in_all(self._highest)} (this run: up to {local.epsilon:g})")
        if central is not None:
            shown.append(f"site: epsilon {_in_all(self._of_sites)} (this run: up to {central.epsilon:g})")
        return ", ".join(shown)


def _in_all(epsilon: float | None) -> str:
    # what a ledger held before the run is in it, and may be above what this run may add
    return epsilon_text(epsilon) if epsilon is None else f"{epsilon_text(epsilon)} in all"


def headline(record: RoundRecord, *, run: RunConfig) -> str:
    """The number a run is steered by, as the progress line shows it."""
    shown = headline_of(run.data)
    found = record.validation.named.get(shown.main) if record.validation else None
    return f"validation {shown.short} {found.value:.3f}" if found is not None else ""


def _absences(record: RoundRecord) -> str:
    missing = [site for site in record.sites if site.outcome not in {"used", "not-asked", "withheld"}]
    if not missing:
        return ""
    named = [f"{site.site}: {site.outcome}" for site in missing[:_MOST_NAMED]]
    more = [f"and {len(missing) - _MOST_NAMED} more"] if len(missing) > _MOST_NAMED else []
    return f"{len(missing)} of {len(record.sites)} sites missing ({', '.join([*named, *more])})"
