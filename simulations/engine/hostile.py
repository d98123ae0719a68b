"""Hostile: a client app whose site sends harm in place of what its agent let out, through the same messages.

in        a Flower message; the reply of the real client app
out       the reply of a hostile site, as records that the server has to read like anybody's
relies on attacks/plan.py for who is hostile; simulations only
"""

import json
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.app import simulated_site
from shared.record_names import ARRAYS, HEADER
from simulations.attacks.plan import Attack


class HostileApp(ClientApp):
    """The real client app, and behind it some sites that change what they send."""

    def __init__(self, honest: ClientApp, *, attack: Attack) -> None:
        """Takes the app that all sites run, and who is hostile."""
        super().__init__()
        self._honest, self._attack = honest, attack

    def is_hostile(self, site_file: Path) -> bool:
        """Whether the site of these settings changes what it sends."""
        return site_file.stem in self._attack.sites

    def __call__(self, message: Message, context: Context) -> Message:
        """What the site answers; a refusal stays one."""
        reply, site_file = self._honest(message, context), simulated_site(context)
        if site_file is None or not self.is_hostile(site_file) or not reply.has_content():
            return reply
        return Message(twisted(reply.content, attack=self._attack), reply_to=message)


def twisted(records: RecordDict, *, attack: Attack) -> RecordDict:
    """The records of an honest answer, with what the attack changes in them; all else as it was.

    The header stays: a hostile site says that it has protected its update like everybody.
    """
    made = RecordDict(dict(records))
    arrays, header = records.get(ARRAYS), records.get(HEADER)
    if isinstance(arrays, ArrayRecord):
        made[ARRAYS] = _arrays(arrays, attack=attack)
    elif attack.kind == "other-name" and isinstance(header, ConfigRecord):
        said = json.loads(str(header["json"]))
        if "site" in said:
            made[HEADER] = ConfigRecord({"json": json.dumps({**said, "site": attack.pretended})})
    return made


def _arrays(arrays: ArrayRecord, *, attack: Attack) -> ArrayRecord:
    values = {name: np.asarray(array.numpy()) for name, array in arrays.items()}
    match attack.kind:
        case "scaled":
            sent = {name: value * attack.factor for name, value in values.items()}
        case "sign-flipped":
            sent = {name: value * -attack.factor for name, value in values.items()}
        case "constant":
            numbers = np.concatenate([value.ravel() for value in values.values()]).astype(np.float64)
            level = attack.factor * float(np.sqrt(np.mean(np.square(numbers))))
            sent = {name: np.full_like(value, level) for name, value in values.items()}
        case "not-a-number":
            sent = {name: np.full_like(value, np.nan) for name, value in values.items()}
        case "other-name" | "label-flipped":
            return arrays
    # float32 as the server asks for: a product with a Python number may be wider
    return ArrayRecord({name: Array(value.astype(np.float32)) for name, value in sent.items()})
