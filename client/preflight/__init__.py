"""Preflight: a run is tried out on made-up rows before it may touch anybody's; each check measures one thing.

in        a RunConfig
out       one PreflightCheck a check, for the terminal, the report and RUN/preflight.json; or a ModelError
relies on rehearsal.py, which sets up the real parts; gradients.py, absence.py, noise.py, sampling.py and site.py look

| check              | measures                                                     |
| own-gradient       | each unit's gradient against a backward pass of its own      |
| bounded            | how far one unit moves a clipped sum, and a whole round      |
| independent        | how far a sample moves when another is exchanged             |
| empty-batch        | sum and noise of steps that drew nobody                      |
| absent-modality    | gradient and noise of an encoder that no row has a value for |
| noise-scale        | variance of the noise, in rounds and in replies              |
| noise-fresh        | noise of two steps, rounds and sites, every seed being equal |
| poisson-sampling   | who enters each of hundreds of steps                         |
| public-denominator | what more rows do to the noise of a round                    |
| composition        | ledger and statements over all rounds of a small run         |
| allow-list         | every name in the replies                                    |
| update-clipped     | length of what leaves where the server adds the noise        |

Each check is wrong about sound code at most once in a million runs. Most use seeds of their own and say the same every
time; noise-fresh and the replies in noise-scale cannot, because that noise must not come from a seed.
"""

from collections.abc import Callable, Collection

from client.preflight.absence import absent_modality, empty_batch, public_denominator
from client.preflight.gradients import bounded, independent, own_gradient
from client.preflight.noise import noise_fresh, noise_scale
from client.preflight.outcome import Outcome
from client.preflight.rehearsal import UNDER_WAY, Rehearsal, rehearse
from client.preflight.sampling import poisson_sampling
from client.preflight.site import allow_list, composition, update_clipped
from shared.config import RunConfig
from shared.errors import ModelError
from shared.preflight import PreflightCheck

__all__ = ["assert_sound", "forget", "preflight"]

Check = Callable[[Rehearsal], Outcome]
_LOCAL: dict[str, Check] = {
    "own-gradient": own_gradient,
    "bounded": bounded,
    "independent": independent,
    "empty-batch": empty_batch,
    "absent-modality": absent_modality,
    "noise-scale": noise_scale,
    "noise-fresh": noise_fresh,
    "poisson-sampling": poisson_sampling,
    "public-denominator": public_denominator,
    "composition": composition,
}
_known: dict[str, tuple[PreflightCheck, ...]] = {}


def preflight(run: RunConfig, *, only: Collection[str] | None = None) -> tuple[PreflightCheck, ...]:
    """What each check that concerns this run found, on made-up rows; a check that breaks down counts as failed.

    Args:
        run: as asked; its rounds and steps are cut down to a few.
        only: names of the checks to make; all if not given, and then assert_sound knows the answer as well.

    Raises:
        ModelError: the model cannot be built at all, or a name or option in it does not exist.
    """
    checks = dict(_LOCAL) if run.local_privacy is not None else {}
    checks["allow-list"] = allow_list
    if run.central_privacy is not None:
        checks["update-clipped"] = update_clipped
    with rehearse(run) as rehearsal:
        found = tuple(_done(name, check, rehearsal) for name, check in checks.items() if only is None or name in only)
    if only is None:
        _known[_key(run)] = found
    return found


def assert_sound(run: RunConfig) -> None:
    """Returns if every check of the run has passed; looked into once a process for equal settings.

    Raises:
        ModelError: names the checks that failed, what they measured, and what to do.
    """
    if UNDER_WAY.get():
        return
    key = _key(run)
    checks = _known[key] if key in _known else preflight(run)
    failed = [check for check in checks if not check.passed]
    # PRIVACY: a run that breaks its promise on made-up rows does not get to see real ones.
    # test_a_run_that_fails_its_preflight_is_refused
    if failed:
        lines = [f"  {check.name}: {check.detail}" for check in failed]
        raise ModelError(
            "\n".join(["preflight: the run's training code does not keep what the accountant assumes", *lines])
            + "\nNo data was read. See each check with: motet preflight SCENARIO; a part of your own that mixes the "
            "samples of a batch, or uses weights from outside their layer, is the usual cause"
        )


def forget() -> None:
    """Lets assert_sound look again at runs it knows; for whoever changes the code in a running process."""
    _known.clear()


def _key(run: RunConfig) -> str:
    """A digest of all that matters here: owners' folders may differ in columns that no model sees."""
    return run.model_copy(update={"data": run.data.model_copy(update={"groups": (), "ignored": ()})}).digest


def _done(name: str, check: Check, rehearsal: Rehearsal) -> PreflightCheck:
    try:
        outcome = check(rehearsal)
    except Exception as error:  # noqa: BLE001  whatever breaks a check, the run is not shown to be sound
        outcome = Outcome(False, f"could not be carried out: {type(error).__name__}: {error}")
    return PreflightCheck(name=name, passed=outcome.passed, detail=outcome.detail)
