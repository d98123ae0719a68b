"""Site: what the real agent of a throw-away site charges and lets out, over all rounds of a small run.

in        a Rehearsal, whose replies came through the agent, its plan, its ledger and its data folder
out       Outcomes of composition, allow-list and update-clipped
relies on shared/messages.py: a name that is not in its headers may not leave
"""

import json

from client.preflight.outcome import Outcome
from client.preflight.rehearsal import ROUNDS, SITES, SMALL_SITE_CLIP_NORM, Rehearsal, flat
from shared.errors import WireError
from shared.messages import PrivacyStatement, ReplyHeader
from shared.privacy.accountant import MechanismUse, spent_epsilon
from shared.privacy.ledger import Ledger
from shared.record_names import ARRAYS, HEADER
from shared.wire import decode_reply, encode_reply

TOLERANCE = 1e-6
SLACK = 1e-4
"""relative; what float32 may add to an update that is clipped as a whole"""


def composition(rehearsal: Rehearsal) -> Outcome:
    """All rounds of a run have one mechanism, and ledger and statements charge them composed, not one by one."""
    replies = rehearsal.replies[:ROUNDS]
    statements = [reply.header.privacy for reply in replies if reply.header.privacy is not None]
    if len(statements) < len(replies):
        return Outcome(False, "a reply of a run with privacy says that it has none")
    last = statements[-1]
    if any(
        (each.noise_multiplier, each.sample_rate) != (last.noise_multiplier, last.sample_rate) for each in statements
    ):
        return Outcome(False, "the mechanism changes from round to round; it must be calibrated once for all of them")
    whole = MechanismUse(last.noise_multiplier, last.sample_rate, last.steps_per_round * ROUNDS)
    accountant = rehearsal.run.local_privacy.accountant if rehearsal.run.local_privacy is not None else "pld"
    composed = spent_epsilon([whole], delta=last.delta, accountant=accountant)
    ledger = Ledger(rehearsal.folder / "ledger.sqlite")
    on_disk = ledger.spent(SITES[0], unit=last.unit, delta=last.delta, accountant=accountant)
    asked = rehearsal.run.local_privacy.epsilon if rehearsal.run.local_privacy is not None else composed
    said = f"{ROUNDS} rounds compose to epsilon {composed:.4g}"
    for found, where in ((last.epsilon, "the last reply"), (on_disk, "the ledger")):
        if abs(found - composed) > TOLERANCE * composed:
            return Outcome(False, f"{said}; {where} says {found:.4g}")
    if composed > asked * (1 + TOLERANCE):
        return Outcome(False, f"{said}, above the run's {asked:.4g}")
    return Outcome(True, f"{said}, in the ledger and in the last reply, within the run's {asked:.4g}")


def allow_list(rehearsal: Rehearsal) -> Outcome:
    """A reply holds the fields of ReplyHeader and the named parameters and nothing else; anything more is refused."""
    shapes = {name: tuple(rehearsal.model.get_parameter(name).shape) for name in rehearsal.names}
    for reply in rehearsal.replies:
        records = encode_reply(reply)
        header = json.loads(str(records.config_records[HEADER]["json"]))
        extra = set(header) - set(ReplyHeader.model_fields)
        extra |= set(header.get("privacy") or {}) - set(PrivacyStatement.model_fields)
        extra |= set(records) - {HEADER, ARRAYS} | set(records.config_records[HEADER]) - {"json"}
        extra |= set(records.array_records[ARRAYS]) - set(shapes)
        if extra:
            return Outcome(False, f"a reply holds {', '.join(sorted(extra))}, which is not on the allow-list")
        decode_reply(records, shapes=shapes)
        header["train_loss"] = 0.0
        records.config_records[HEADER]["json"] = json.dumps(header)
        try:
            decode_reply(records, shapes=shapes)
        except WireError:
            continue
        return Outcome(False, "a reply with a field that is not on the allow-list was read, not refused")
    return Outcome(
        True, f"{len(rehearsal.replies)} replies hold the header's fields and {len(shapes)} parameters and no more"
    )


def update_clipped(rehearsal: Rehearsal) -> Outcome:
    """A site whose noise is the server's to add sends nothing longer than the norm it was told."""
    longest = max(float(flat(reply.update).norm()) for reply in rehearsal.replies)
    return Outcome(
        longest <= SMALL_SITE_CLIP_NORM * (1 + SLACK),
        f"the longest update that left has norm {longest:.4g}, allowed {SMALL_SITE_CLIP_NORM:g}",
    )
