"""Template: site.toml as a new site gets it, every setting with its meaning; what is off stands as a comment.

in        the values that the owner gave or confirmed
out       the text of a site.toml that client/site.py reads
relies on nothing; docs/deployment.md shows the same text, and a test compares the two
"""

import json
from collections.abc import Mapping, Sequence

_TEXT = """\
# What the owner of this data permits. Nothing that arrives over the network widens it; what it does not permit is
# refused. Paths are relative to this file. Made by `motet site init`; read again whenever it has changed.
name = {name}  # public: the server and the report know the site by it; unlike every other site's
data = {data}  # the folder with metadata.jsonl (or .csv, .parquet) and the media files
data_set = {data_set}  # the ledger's key; a new name would be a new budget for the same people, so never rename it
nominal_size = {size}  # public: about how many records there are. Sampling and noise follow from it, and not from
                     # counting, because one person more must not show. A round number, best a little too small
{subjects}  # public, likewise: about how many people they are of; needed with unit = "subject" below
modalities = {modalities}  # public: what records here can have; the model's other parts are neither trained nor sent
ledger = "agent/ledger.sqlite"  # what was ever spent. Back it up; restoring an old copy forgets what came after
cache = "agent/cache"  # preprocessed data: as private as the data
max_parameters = 5000000  # a run with a larger model is refused before it is built
checkpoints = []  # folders of public networks that a run may name; a run that names another is refused
frozen = []  # public: patterns of parameters that are not trained here, such as ["encoders.text.*"]
{tasks}  # public: of a data set with several tasks, those that rows here may have answers to; all if not set
# nominal_modality_sizes = {{ image = 800 }}  # public: about how many rows have a modality, where a run weighs by that
parts = []  # Python files of yours that register encoders, fusions or heads for a run to name

[agent]
socket = "socket/agent"  # where the SuperNode's process asks the agent
allowed_users = {users}  # users of this machine who may ask beside the agent's own: the one of the SuperNode
key = "agent/key"  # the private key by which the server knows this site; the SuperNode has a copy of its own
answers = "agent/answers"  # what was let out is kept here, so that a request that is repeated costs once
kept_runs = 4  # runs whose last answers are kept
kept_rounds = 2  # last rounds of a run whose answers are kept
journal = "agent/journal.jsonl"  # what was asked and answered; no personal data stands in it
journal_bytes = 5000000  # of one file of it; five older ones are kept
# metrics_port = 9401  # on 127.0.0.1: /metrics for Prometheus and /health

[limits]  # what one run may ask; what is not set is not limited
# encoders = ["mel-cnn", "embedding-mean"]  # those that runs may name
# fusions = ["concat", "gated"]  # those that runs may name
# heads = ["linear"]  # those that runs may name
# epsilon = 2.0  # largest that a run may ask for
# rounds = 100  # most of one run
# rounds_a_day = 200  # most in 24 hours, all runs together
# local_steps = 20  # most in one round
# rows_a_round = 20000  # most expected in all steps of a round, each counted as often as it is used
memory_gib = 4.0  # most that nominal_size prepared rows take; while they are first prepared, two or three times as much
cache_gib = 16.0  # most that prepared rows take on the disk; those of earlier runs leave first
# run_ids = ["study-7-*"]  # patterns of permitted ids of runs
# run_names = ["study-7"]  # patterns of permitted names of runs

[privacy]
epsilon = {epsilon}  # the most that all runs together may ever spend on this data set ...
delta = {delta}  # ... at this delta: well below 1 / nominal_size
unit = {unit}  # what the budget is about; "subject": a person with 500 records is protected as one. Every row
               # then needs a subject_id, and a run that asks for records is trained by subjects
on_short_budget = "refuse"  # a run that asks for more than is left: take no part, or "fewer-rounds", or "more-noise"
noise = "float64"  # "float32" is faster; "discrete" draws whole numbers, which leave no rounding to attack
least_noise_multiplier = 0.3  # no round has less noise, however good its epsilon: tiny sampling rates need a floor
allow_non_private = false  # true: also answer runs with privacy = "none", whose updates are not protected at all
trust_server = false  # true: also answer runs with unit = "site", whose updates leave without noise, for the server to
                      # add; the ledger then holds a round without noise, and no private run is granted after it
tell_budget = true  # false: reports show neither the epsilon above nor what was spent before a run; the total, always
reproducible_noise = false  # simulations only: noise that can be drawn again protects nobody
"""


def site_toml(
    *,
    name: str,
    data: str,
    data_set: str,
    size: int,
    subjects: int | None,
    modalities: Sequence[str],
    tasks: Sequence[str] | None,
    users: Sequence[str],
    epsilon: float,
    delta: float,
    unit: str,
) -> str:
    """A site.toml with these values and everything else as safe as it can be."""
    values: Mapping[str, object] = {
        "name": name,
        "data": data,
        "data_set": data_set,
        "size": size,
        "modalities": list(modalities),
        "users": list(users),
        "epsilon": epsilon,
        "unit": unit,
    }
    return _TEXT.format(
        **{field: json.dumps(value, ensure_ascii=False) for field, value in values.items()},
        # TOML wants a digit after the point, and JSON does not write 1e-05 in its way
        delta=f"{delta:.1e}",
        subjects="# nominal_subjects = 300" if subjects is None else f"nominal_subjects = {subjects}",
        tasks='# tasks = ["mood"]' if tasks is None else f"tasks = {json.dumps(list(tasks))}",
    )
