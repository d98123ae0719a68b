"""A reply is used when it is the one asked for, protected as asked or more strictly; else it costs its own say only."""

import pytest
from pydantic import ValidationError

from server.judgement import Failure, judge, judge_statistics
from server.plan import make_plan
from shared.config import RunConfig
from shared.messages import (
    PROTOCOL_VERSION,
    Hello,
    PrivacyStatement,
    Refusal,
    ReplyHeader,
    RequestHeader,
    StatisticsReply,
    TrainReply,
    TrainRequest,
)
from shared.model.multimodal import build_model
from tests.server.conftest import RECORD, SITE, protected_run

RECORDS = protected_run(changes={"privacy": RECORD})
SUBJECTS = protected_run(changes={"privacy": {**RECORD, "unit": "subject"}})
ADAPTIVE = protected_run(changes={"privacy": {**RECORD, "clipping": "adaptive"}})
SITES = protected_run(changes={"privacy": SITE})
MOVING_SITES = protected_run(changes={"privacy": {**SITE, "clipping": "adaptive"}})
BOTH = protected_run(changes={"privacy": RECORD, "site_privacy": SITE})
COUNTED = protected_run(changes={"privacy": RECORD, "statistics": {"noise_multiplier": 4.0}})


def statement(**changes: object) -> PrivacyStatement:
    said = {
        "unit": "record", "epsilon": 3.0, "delta": 1e-3, "clip_norm": 1.0, "noise_multiplier": 5.0, "sample_rate": 1.0,
        "steps_per_round": 1, "accountant": "rdp", "reproducible_noise": False, **changes,
    }  # fmt: skip
    return PrivacyStatement.model_validate(said)


def judged(
    run: RunConfig, privacy: PrivacyStatement | None, *, clip_norm: float | None = None, **header: object
) -> TrainReply | Refusal | Failure:
    asked = RequestHeader(
        protocol_version=PROTOCOL_VERSION, run=run, run_id="r", round_number=2, planned_rounds=4, clip_norm=clip_norm
    )
    said = {"run_id": "r", "round_number": 2, "nominal_size": 30, **header}
    reply = ReplyHeader.model_validate({"protocol_version": PROTOCOL_VERSION, "privacy": privacy, **said})
    return judge(TrainReply(reply, {}), request=TrainRequest(asked, {}))


@pytest.mark.parametrize(
    ("run", "privacy", "clip_norm", "fields"),
    [
        (protected_run(), None, None, {}),
        (RECORDS, statement(), None, {}),
        (RECORDS, statement(unit="subject"), None, {}),
        (RECORDS, statement(delta=1e-5), None, {}),
        (SUBJECTS, statement(unit="subject"), None, {}),
        (ADAPTIVE, statement(clipping="adaptive", clip_norm=0.7), 0.7, {"unclipped_share": 0.4}),
        (SITES, None, None, {}),
        (MOVING_SITES, None, None, {"is_within_clip": False}),
        (BOTH, statement(), None, {}),
    ],
)
def test_a_reply_protected_as_asked_or_more_strictly_is_used(
    run: RunConfig, privacy: PrivacyStatement | None, clip_norm: float | None, fields: dict[str, object]
) -> None:
    assert isinstance(judged(run, privacy, clip_norm=clip_norm, **fields), TrainReply)


@pytest.mark.parametrize(
    ("run", "privacy", "clip_norm", "fields", "code"),
    [
        (RECORDS, None, None, {}, "privacy-differs"),
        (BOTH, None, None, {}, "privacy-differs"),
        (SITES, statement(), None, {}, "privacy-differs"),
        (protected_run(), statement(), None, {}, "privacy-differs"),
        (SUBJECTS, statement(), None, {}, "privacy-differs"),
        (RECORDS, statement(delta=1e-2), None, {}, "privacy-differs"),
        (RECORDS, statement(clip_norm=1.5), None, {}, "privacy-differs"),
        (RECORDS, statement(clipping="per-layer"), None, {}, "privacy-differs"),
        (RECORDS, statement(accountant="pld"), None, {}, "privacy-differs"),
        (ADAPTIVE, statement(clipping="adaptive"), 0.7, {"unclipped_share": 0.4}, "privacy-differs"),
        (ADAPTIVE, statement(clipping="adaptive", clip_norm=0.7), 0.7, {}, "fields-differ"),
        (RECORDS, statement(), None, {"unclipped_share": 0.4}, "fields-differ"),
        (RECORDS, statement(), None, {"is_within_clip": True}, "fields-differ"),
        (SITES, None, None, {"is_within_clip": True}, "fields-differ"),
        (MOVING_SITES, None, None, {}, "fields-differ"),
        (RECORDS, statement(sample_rate=0.5), None, {}, "privacy-differs"),
        (RECORDS, statement(steps_per_round=2), None, {}, "privacy-differs"),
        (RECORDS, statement(noise_multiplier=1e-300), None, {}, "privacy-differs"),
        (RECORDS, statement(noise_multiplier=1e300), None, {}, "privacy-differs"),
        (RECORDS, statement(delta=1e-320), None, {}, "privacy-differs"),
        (RECORDS, statement(), None, {"nominal_size": 10**400}, "fields-differ"),
        (RECORDS, statement(), None, {"round_number": 1}, "another-round"),
        (RECORDS, statement(), None, {"run_id": "other"}, "another-round"),
    ],
)
def test_a_reply_that_is_not_what_was_asked_for_is_invalid(
    run: RunConfig, privacy: PrivacyStatement | None, clip_norm: float | None, fields: dict[str, object], code: str
) -> None:
    """An unprotected update in a private run would be averaged in and its epsilon missing from the report."""
    assert judged(run, privacy, clip_norm=clip_norm, **fields) == Failure("invalid", code)


def test_a_size_that_no_site_has_is_refused_before_it_is_computed_with() -> None:
    """Steps follow from the declared size where the run counts epochs: days of accounting at 10^9 records."""
    training = {"optimizer": "sgd", "learning_rate": 0.1, "batch_size": 16, "local_epochs": 1.0}
    run = protected_run(changes={"privacy": RECORD, "training": training})
    said = statement(sample_rate=16 / 10**9, steps_per_round=10**9 // 16)
    assert judged(run, said, nominal_size=10**9) == Failure("invalid", "fields-differ")
    fitting = statement(sample_rate=16 / 10**4, steps_per_round=10**4 // 16)
    assert isinstance(judged(run, fitting, nominal_size=10**4), TrainReply)
    hellos = [
        Hello(protocol_version=PROTOCOL_VERSION, site=f"s{size}", modalities=("left",), nominal_size=10**size)
        for size in (4, 9, 400)
    ]
    assert make_plan(hellos, run=run, model=build_model(run)).site_names == ("s4",)


def counts(run_id: str = "r", **changes: object) -> StatisticsReply:
    return StatisticsReply(
        protocol_version=PROTOCOL_VERSION,
        run_id=run_id,
        counts=(1.0, 2.0, 3.0),
        privacy=statement(**{"noise_multiplier": 4.0, **changes}),
    )


def test_counts_with_the_noise_asked_for_or_more_are_used() -> None:
    for reply in (counts(), counts(noise_multiplier=9.0), counts(unit="subject")):
        assert judge_statistics(reply, run=COUNTED, run_id="r") is reply


def test_counts_that_are_not_what_was_asked_for_are_invalid() -> None:
    assert judge_statistics(counts(noise_multiplier=3.9), run=COUNTED, run_id="r") == Failure(
        "invalid", "privacy-differs"
    )
    for unmeasured in (counts(delta=1e-320), counts(noise_multiplier=1e300)):
        assert judge_statistics(unmeasured, run=COUNTED, run_id="r") == Failure("invalid", "privacy-differs")
    assert judge_statistics(counts("other"), run=COUNTED, run_id="r") == Failure("invalid", "another-round")
    assert judge_statistics(Refusal("refused"), run=COUNTED, run_id="r") == Refusal("refused")


@pytest.mark.parametrize(
    "changes",
    [{"statistics": {"noise_multiplier": 4.0}, "privacy": RECORD}, {"privacy": {**RECORD, "clipping": "adaptive"}}],
)
def test_counts_of_single_sites_are_not_asked_for_where_sites_are_hidden(changes: dict[str, object]) -> None:
    """They are noisy for a site's records only, and would say much about the site."""
    with pytest.raises(ValidationError, match="tell of single sites"):
        protected_run(changes={**changes, "site_privacy": SITE})
