"""Personal: the part of a model that a site trains and keeps to itself, from round to round.

in        a round that is paid for, and what its training made of the parameters that the run calls personal
out       a file a round beside the owner's ledger, from which the run's next round goes on once the answer of that one
          has left; lines on the owner's own screen
relies on those parameters being clipped and noised with all others: what the ledger charged covers them too

A file that is lost or damaged costs what the site had learned for itself: it begins again with the weights that the
request brings, which are the run's first.
"""

import logging
import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from client.open_round import OpenRound
from client.run_model import model_with
from client.site import SiteConfig
from shared.batch import Samples
from shared.privacy.ledger import Ledger
from shared.tensor_file import as_bytes, read_tensors

log = logging.getLogger("motet.site")
_ROWS_AT_ONCE = 256
_SUFFIX = ".safetensors"
Left = frozenset[int] | None
"""rounds of a run whose answers have left a site; None where nobody asks, because each is answered or the run ends"""


def personal_folder(site: SiteConfig, *, run_id: str) -> Path:
    """Where a site keeps what is its own of a run; simulated owners share a ledger, and none shares this."""
    return site.ledger.with_name(f"{site.ledger.name}-personal") / site.name / run_id


def left_rounds(opened: OpenRound, ledger: Ledger) -> frozenset[int]:
    """The rounds of this run whose answers have left, as the ledger has it; it is asked only where a run has something
    personal."""
    if not opened.shapes.personal:
        return frozenset()
    rows = ledger.rows(opened.site.data_set, run_id=opened.header.run_id)
    return frozenset(row.round_number for row in rows if row.state == "released")


def own_weights(opened: OpenRound, *, left: Left) -> dict[str, Tensor]:
    """What the rounds of this run before have made of the site's own parameters; nothing before the first.

    Args:
        left: of the rounds before, those that count.
    """
    folder = personal_folder(opened.site, run_id=opened.header.run_id)
    # PRIVACY: a round that is asked again, after a crash or by a server that begins it anew, begins where it began
    # before; and what never left has made nothing. test_a_round_that_is_trained_again_begins_with_the_same_weights
    earlier = [each for each in _kept_rounds(folder) if each < opened.header.round_number]
    number = max((each for each in earlier if left is None or each in left), default=None)
    if number is None:
        return {}
    path = _file(folder, number)
    try:
        held, _ = read_tensors(path)
    except OSError as error:
        log.warning("%s: not readable (%s); the site begins again with the run's first weights", path, error)
        return {}
    shapes = {name: opened.shapes.trained[name] for name in opened.shapes.personal}
    if {name: tuple(value.shape) for name, value in held.items()} != shapes or not _are_numbers(held):
        log.warning("%s: holds other weights than the run's; the site begins again with its first ones", path)
        return {}
    return held


def keep_own(opened: OpenRound, weights: Mapping[str, Tensor], *, left: Left) -> None:
    """Writes them, whole or not at all, for nobody but the owner to read; only for a round that is in the ledger.

    They are begun with once the round's answer has left; until then those of the round before stay beside them.

    Raises:
        OSError: they cannot be written; the round stays paid for, and nothing of it leaves.
    """
    folder, number = personal_folder(opened.site, run_id=opened.header.run_id), opened.header.round_number
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for above in (folder.parent.parent, folder.parent):
        above.chmod(0o700)
    path = _file(folder, number)
    new = path.with_name(f"{path.name}.{os.getpid()}.new")
    # PRIVACY: nobody else's to read: without the owner's noise, as in unit "site", it shows records.
    # test_what_is_personal_is_the_owners_alone_to_read
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(as_bytes(weights))
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    kept = _kept_rounds(folder)
    before = max((each for each in kept if each < number and (left is None or each in left)), default=number)
    for each in kept:
        if each not in (number, before):
            _file(folder, each).unlink(missing_ok=True)


def tell_what_own_is_worth(
    opened: OpenRound, common: Mapping[str, Tensor], samples: Samples, *, own: Mapping[str, Tensor]
) -> None:
    """Writes to the owner's log what the model costs on the site's rows, with its own parameters and without.

    Said on the owner's screen and nowhere else: it is not noised. Both are measured on rows that were trained on, and
    with the common weights as this round began with them.
    """
    if not len(samples):
        return
    first = _mean_loss(opened, common, samples)
    with_own = _mean_loss(opened, {**common, **own}, samples)
    log.info(
        "%s: loss on the site's own rows %.4g with its own parameters, %.4g with the run's first ones in their place",
        opened.site.name, with_own, first,
    )  # fmt: skip


def _file(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}{_SUFFIX}"


def _kept_rounds(folder: Path) -> list[int]:
    return sorted(int(path.name.removesuffix(_SUFFIX)) for path in folder.glob(f"[0-9]*[0-9]{_SUFFIX}"))


def _mean_loss(opened: OpenRound, weights: Mapping[str, Tensor], samples: Samples) -> float:
    model = model_with(opened.key, weights)
    modes = {module: module.training for module in model.modules()}
    model.eval()
    total, at_once = 0.0, min(_ROWS_AT_ONCE, opened.permitted.run.training.microbatch_size)
    try:
        with torch.no_grad():
            for start in range(0, len(samples), at_once):
                rows = samples.take(torch.arange(start, min(start + at_once, len(samples))))
                total += float(model.loss(model(rows.inputs, rows.present), rows.targets).sum())
    finally:
        for module, mode in modes.items():
            module.training = mode
    return total / len(samples)


def _are_numbers(weights: Mapping[str, Tensor]) -> bool:
    return all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in weights.values())
