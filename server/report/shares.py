"""Shares: what the run began with, and which part of the model each site trained, was given or kept.

in        a RunRecord
out       blocks for the page of a run and for the privacy report; none where all sites train all of a model made anew
relies on what owners have said of themselves in public, and on the record of the earlier run that this one began with
"""

from server.records import Origin, RunRecord, SiteShare
from server.report.document import Block, Heading, Table, Words, rows
from server.report.numbers import listed

_COVERS = {
    "private": "It was differentially private for those whose records it was trained on. What it has cost them stands "
    "in the ledgers of its own sites, and in this run's totals where a site was in both.",
    "none": "IT WAS NOT PRIVATE: the epsilons of this report do not cover the records that it was trained on, and "
    "this model may show them.",
    "unknown": "How it was made is not known: the epsilons of this report do not cover the records that it was "
    "trained on.",
}


def share_blocks(record: RunRecord) -> tuple[Block, ...]:
    """Where the run began, and who trained what."""
    return (*_start(record.start), *_kept(record), *_late(record), *_by_site(record.shares))


def late_sites(record: RunRecord) -> list[str]:
    """Each site that came after the first round, with the round from which on it could be asked."""
    late = sorted((share.first_round, share.site) for share in record.shares if share.first_round > 1)
    return [f"{site} from round {first} on" for first, site in late]


def _start(start: Origin | None) -> tuple[Block, ...]:
    if start is None:
        return ()
    whose = f"run {start.run_id}" if start.run_id else "a model file that lay in no folder of its run"
    begun = (
        f"This run began with {start.parameters:,} weights of {whose} (SHA-256 {start.file_digest[:16]}…): "
        f"{listed(_parts(start.tensors))}."
    )
    return (Heading("Begun with an earlier run"), Words(begun), Words(_COVERS[start.privacy]))


def _kept(record: RunRecord) -> tuple[Block, ...]:
    most = max((share.personal for share in record.shares), default=0)
    if not most:
        return ()
    said = (
        f"Each site trained up to {most:,} weights of its own ({listed(list(record.run.model.personal))}) and kept "
        "them. The results of this report are those of the weights that these began with: what a site's own are worth, "
        "it has seen on its own screen only."
    )
    if record.run.local_privacy is not None:
        said += " They were clipped and noised with all others, so what the ledgers charged covers them too."
    else:
        said += " No noise is on them: a site's own must not be handed on."
    return (Heading("Kept at the sites"), Words(said))


def _late(record: RunRecord) -> tuple[Block, ...]:
    late = late_sites(record)
    if not late:
        return ()
    said = (
        f"Came on line after the run had begun: {listed(late)}. A round before that has no entry of theirs. No site "
        "that was in already was asked more often for it than it had been told."
    )
    return (Heading("Came late"), Words(said))


def _by_site(shares: tuple[SiteShare, ...]) -> tuple[Block, ...]:
    """A row for all sites that trained the same; nothing where all did."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for share in shares:
        alike.setdefault(_row(share), []).append(share.site)
    if len(alike) < 2 and not any(share.given or share.frozen or share.tasks for share in shares):
        return ()
    lines = [(_whose(sites), *row) for row, sites in alike.items()]
    head = ("Site", "Modalities", "Tasks", "Used, not trained", "Sends", "Is given", "Keeps")
    return (Heading("Who trained what"), Table(head=head, rows=rows(*lines), numeric=(4, 5, 6)))


def _row(share: SiteShare) -> tuple[str, ...]:
    weighed = share.nominal_modality_sizes
    modalities = [f"{name} ({weighed[name]:,} rows)" if name in weighed else name for name in share.modalities]
    numbers = (share.sent, share.given, share.personal)
    return (
        ", ".join(modalities),
        "all" if share.tasks is None else ", ".join(share.tasks),
        ", ".join(share.frozen) or "nothing",
        *(f"{number:,}" for number in numbers),
    )


def _whose(sites: list[str]) -> str:
    return ", ".join(sites) if len(sites) <= 3 else f"{sites[0]} and {len(sites) - 1} more"


def _parts(names: tuple[str, ...]) -> list[str]:
    """Names up to the second dot, each once: the encoders by modality, the fusion, the head."""
    return list(dict.fromkeys(".".join(name.split(".")[:2]) for name in names))
