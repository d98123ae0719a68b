"""Client app: decode, call the agent, encode; the part of a site that Flower delivers and that decides nothing.

in        a Flower message and the context of the node it reached
out       a Flower message with what agent.py let out
relies on the node's own settings for the site file; no path is ever taken from a message
"""

import functools
import logging
import os
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp

from client.agent import answer_hello, answer_statistics, answer_train
from shared.errors import WireError
from shared.messages import Refusal
from shared.wire import decode_arrays, decode_request_header, decode_statistics_header, encode_reply

SITE_KEY = "site"
"""node setting that names the site file: flower-supernode --node-config 'site="/path/site.toml"'"""
SIMULATED_SITES_VARIABLE = "MOTET_SIMULATED_SITES"
"""simulations only: a file with one site file a line, picked by the node's partition-id"""

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
            return Message(encode_reply(Refusal("internal")), reply_to=message)

    return guarded


@app.query()
@_never_raising
def hello_or_counts(message: Message, context: Context) -> Message:
    """Who this site is, as its owner published it, if nothing is asked; or the noisy counts that are asked for."""
    records, site_file = message.content, _site_file(context)
    if site_file is None:
        return Message(encode_reply(Refusal("settings-invalid")), reply_to=message)
    if not records:
        return Message(encode_reply(answer_hello(site_file)), reply_to=message)
    try:
        header = decode_statistics_header(records)
    except WireError as error:
        return Message(encode_reply(Refusal(error.code)), reply_to=message)
    return Message(encode_reply(answer_statistics(header, site_file=site_file)), reply_to=message)


@app.train()
@_never_raising
def train(message: Message, context: Context) -> Message:
    """One round of protected training."""
    records, site_file = message.content, _site_file(context)
    if site_file is None:
        return Message(encode_reply(Refusal("settings-invalid")), reply_to=message)
    try:
        header = decode_request_header(records)
    except WireError as error:
        return Message(encode_reply(Refusal(error.code)), reply_to=message)
    reply = answer_train(header, lambda shapes: decode_arrays(records, shapes=shapes), site_file=site_file)
    return Message(encode_reply(reply), reply_to=message)


def _site_file(context: Context) -> Path | None:
    named = context.node_config.get(SITE_KEY)
    if isinstance(named, str):
        return Path(named)
    listed, number = os.environ.get(SIMULATED_SITES_VARIABLE), context.node_config.get("partition-id")
    if listed is None or not isinstance(number, int):
        return None
    return Path(Path(listed).read_text(encoding="utf-8").splitlines()[number])
