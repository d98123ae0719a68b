"""Server app: from the settings in a run folder to its report, over whatever Grid Flower hands in.

in        the run folder's path, from Flower's run config or from the environment
out       checkpoints and metrics after every round, the chosen model, report.html and report.json
relies on strategy.py for messages; everything else here is plain calls
"""

import os
import platform
import resource
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Literal

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from rich.console import Console

from server.announcement import announcement
from server.checkpoint import Progress, save_model
from server.code_digest import code_digest
from server.evaluation import evaluate
from server.failure import noted_failure
from server.handshake import Enrolled, write_handshake
from server.heldout import HeldOut, load_held_out
from server.negatives import public_negatives
from server.plan import Central, Plan, start_central
from server.privacy_summary import summarise_central, summarise_privacy
from server.progress import ProgressLine
from server.records import Computed, RoundRecord, RunRecord, SiteStatistics
from server.roster import open_roster
from server.rounds import chosen, load_weights, run_rounds, start_or_resume
from server.run_log import run_log
from server.running import run_alone
from server.settings import ServerSettings, count_start, read_computed, read_preflight, read_settings
from server.strategy import FlowerTransport
from server.tensorboard import EventWriter
from shared.errors import RunError
from shared.messages import Hello
from shared.model.multimodal import MultimodalModel, build_model
from shared.model.parameters import trainable_names
from shared.model.registry import load_extensions
from shared.preflight import PreflightCheck
from shared.version import VERSION

RUN_FOLDER_KEY = "run-folder"
RUN_FOLDER_VARIABLE = "MOTET_RUN_FOLDER"
_REPORTED_PACKAGES = ("torch", "opacus", "flwr", "dp-accounting", "transformers", "numpy", "scipy")

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation that the run folder describes, from its last checkpoint if it has one."""
    folder = _run_folder(context)
    # a simulation says everything on the terminal of whoever started it
    is_flowers = bool(context.run_config.get(RUN_FOLDER_KEY))
    log: AbstractContextManager[Callable[[str], None]] = run_log(folder) if is_flowers else nullcontext(lambda _: None)
    with run_alone(folder), log as note, noted_failure(folder):
        _run(grid, folder=folder, note=note)


def _run(grid: Grid, *, folder: Path, note: Callable[[str], None]) -> None:
    settings = read_settings(folder)
    for extension in settings.extensions:
        load_extensions(extension)
    attempt, began = count_start(folder), time.monotonic()
    run = settings.run
    transport = FlowerTransport(grid, enrolled=_enrolled(settings), note=partial(write_handshake, folder=folder))
    held_out = load_held_out(settings)
    renew = public_negatives(settings, held_out=held_out)
    model = build_model(run)
    sites = _introduced(transport, settings=settings, folder=folder)
    progress = start_or_resume(model, settings=settings, folder=folder)
    roster = open_roster(sites, run=run, model=model, folder=folder, next_round=progress.round_number + 1)
    central = start_central(roster.plan, settings=settings, model=model)
    Console().print("\n".join(announcement(roster.plan, run=run, central=central)), highlight=False, markup=False)
    with ProgressLine(run=run, done=progress.round_number) as line, EventWriter(folder) as events:

        def tell(record: RoundRecord) -> None:
            line.tell(record)
            events.write(record)

        def say(text: str) -> None:
            line.say(text)
            note(text)

        progress, stopped = run_rounds(
            transport,
            progress=progress,
            model=model,
            roster=roster,
            settings=settings,
            validation=held_out.validation,
            folder=folder,
            attempt=attempt,
            tell=tell,
            say=say,
            central=central,
            renew=renew,
        )
    record = _record(
        progress,
        stopped,
        model=model,
        plan=roster.plan,
        central=central,
        settings=settings,
        held_out=held_out,
        preflight=read_preflight(folder),
        computed=read_computed(folder),
        began=began,
    )
    save_model(chosen(progress, run=run)[1], path=folder / "model.safetensors", run_digest=run.digest)
    # only now: no round waits for what makes pages
    from server.report.closing import closing_table
    from server.report.html import write_report

    write_report(record, folder)
    Console().print(closing_table(record, folder=folder))


def _introduced(transport: FlowerTransport, *, settings: ServerSettings, folder: Path) -> list[Hello]:
    """The sites that are there; whoever was not accepted stands in the file too, also where the run ends here."""
    federation = settings.run.federation
    try:
        return transport.hello(
            expected=settings.num_sites, min_sites=federation.min_sites, timeout_s=federation.wait_for_sites_s
        )
    finally:
        write_handshake(transport.introductions, folder=folder)


def _record(
    progress: Progress,
    stopped: Literal["completed", "early"],
    *,
    model: MultimodalModel,
    plan: Plan,
    central: Central | None,
    settings: ServerSettings,
    held_out: HeldOut,
    preflight: tuple[PreflightCheck, ...],
    computed: tuple[Computed, ...],
    began: float,
) -> RunRecord:
    run = settings.run
    chosen_round, weights = chosen(progress, run=run)
    load_weights(model, weights)
    measure = partial(
        evaluate,
        model,
        run=run,
        bootstrap_samples=run.evaluation.bootstrap_samples,
        seed=run.seed,
    )
    test = measure(held_out.test, part="test", subsets=run.evaluation.modality_subsets)
    validation = measure(held_out.validation, part="validation", subsets=False)
    statistics = progress.statistics or {}
    return RunRecord(
        run=run,
        card=settings.card,
        engine=settings.engine,
        reproducible_noise=progress.reproducible_noise or (central is not None and settings.reproducible_noise),
        started=settings.started,
        # PRIVACY: the time of all rounds tells how often sites were in them.
        # test_a_run_that_protects_sites_by_a_secret_draw_tells_nothing_of_it
        seconds=0.0 if plan.rounds is None else time.monotonic() - began,
        peak_memory_bytes=_peak_memory_bytes(),
        versions={
            "motet": VERSION,
            "python": platform.python_version(),
            **{package: version(package) for package in _REPORTED_PACKAGES},
        },
        stopped=stopped,
        chosen_round=chosen_round,
        rounds=tuple(progress.history),
        privacy=summarise_privacy(progress.history, run=run, plan=plan, statistics=statistics),
        test=test,
        validation=validation,
        num_parameters=sum(model.get_parameter(name).numel() for name in trainable_names(model, run.modalities)),
        sites=plan.site_names,
        central=summarise_central(central) if central else None,
        statistics=tuple(
            SiteStatistics(site=site, counts=reply.counts, noise_multiplier=reply.privacy.noise_multiplier)
            for site, reply in sorted(statistics.items())
        ),
        preflight=preflight,
        start=progress.start,
        computed=computed,
        shares=plan.shares(model),
        code_digest=code_digest(),
    )


def _enrolled(settings: ServerSettings) -> Enrolled | None:
    return Enrolled(settings.enrolled) if settings.enrolled is not None else None


def _run_folder(context: Context) -> Path:
    named = context.run_config.get(RUN_FOLDER_KEY) or os.environ.get(RUN_FOLDER_VARIABLE)
    if not isinstance(named, str) or not named:
        raise RunError(
            f"no run folder is named; give one with: flwr run . LINK --run-config '{RUN_FOLDER_KEY}=\"/path/of/run\"', "
            "prepared by: motet prepare SCENARIO --out /path/of/run"
        )
    return Path(named)


def _peak_memory_bytes() -> int:
    """Largest resident size of this process or of one of its children, whichever is larger."""
    kilobytes = max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return kilobytes * 1024
