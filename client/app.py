"""Client app: the part of a site that Flower delivers; it carries messages to the site agent and decides nothing.

in        a Flower message and the context of the node it reached
out       a Flower message with what the agent let out
relies on the node's own settings for where the agent is; no path is ever taken from a message

Whoever runs the server wrote what is delivered. So nothing is protected here: the agent, which the owner installed, has
the data and the ledger, and this process runs as a user who can read neither (docs/deployment.md).
"""

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from client.resident.carrier import carry
from client.resident.protocol import Kind
from shared.record_names import REFUSAL

AGENT_KEY = "agent"
"""node setting that names the agent's socket: flower-supernode --node-config 'agent="/path/agent.sock"'"""
SITE_KEY = "simulated-site"
"""simulations only: a site file, answered in this process"""
SIMULATED_SITES_VARIABLE = "MOTET_SIMULATED_SITES"
"""simulations only: a file with one site file a line, picked by the node's partition-id and answered in this process"""

log = logging.getLogger("motet.site")
app = ClientApp()
Handler = Callable[[Message, Context], Message]


def _never_raising(handler: Handler) -> Handler:
    """A handler whose failures are refusals: nothing but a code leaves, whatever went wrong."""

    @functools.wraps(handler)
    def guarded(message: Message, context: Context) -> Message:
        try:
            return handler(message, context)
        except Exception:
            # PRIVACY: Flower sends an exception's text to the server. test_a_failing_client_app_sends_only_a_code
            log.exception("client app failed")
            return Message(RecordDict({REFUSAL: ConfigRecord({"code": "internal"})}), reply_to=message)

    return guarded


@app.query()
@_never_raising
def hello_or_counts(message: Message, context: Context) -> Message:
    """Who this site is, as its owner published it, if nothing is asked; or the noisy counts that are asked for."""
    return Message(_answer("query", message.content, context=context), reply_to=message)


@app.train()
@_never_raising
def train(message: Message, context: Context) -> Message:
    """One round of protected training."""
    return Message(_answer("train", message.content, context=context), reply_to=message)


def _answer(kind: Kind, records: RecordDict, *, context: Context) -> RecordDict:
    agent = context.node_config.get(AGENT_KEY)
    if isinstance(agent, str):
        return carry(kind, records, agent=Path(agent))
    site_file = simulated_site(context)
    if site_file is None:
        return RecordDict({REFUSAL: ConfigRecord({"code": "settings-invalid"})})
    from client.answering import answer_query, answer_training  # torch, which the carrier does without

    answer = answer_query if kind == "query" else answer_training
    return answer(records, site_file=site_file)


def simulated_site(context: Context) -> Path | None:
    """The settings of the simulated site that a node stands for; None for a node of a deployment."""
    named = context.node_config.get(SITE_KEY)
    if isinstance(named, str):
        return Path(named)
    listed, number = os.environ.get(SIMULATED_SITES_VARIABLE), context.node_config.get("partition-id")
    if listed is None or not isinstance(number, int):
        return None
    return Path(Path(listed).read_text(encoding="utf-8").splitlines()[number])
