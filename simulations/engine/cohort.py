"""Cohort engine: a Flower Grid in this process that has all sites of a round trained together; the default.

in        the server app, the client app, the site files, how much memory a round may take
out       the server app has run; an exception of its own comes through
relies on client/cohort.py for the answers, which are those of the client app; on local.py for all but training

A round's train messages are read once for all sites that share their content, and answered one by one as the server
asks for the replies, so that no more of them are held than were trained together.
"""

import itertools
import logging
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from flwr.app import Message, MessageType, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import ServerApp
from torch import Tensor

from client.arithmetic import PLAIN, Arithmetic
from client.sample_store import SampleStore
from shared.errors import WireError
from shared.messages import Refusal, RequestHeader, TrainReply
from shared.wire import array_shapes, decode_arrays, decode_request_header, encode_reply
from simulations.engine.held_memory import keep_freed_memory, without_what_is_there
from simulations.engine.local import LocalGrid, run_over

log = logging.getLogger("motet.cohort")
Request = tuple[RequestHeader, dict[str, Tensor]]
Answer = TrainReply | Refusal


def run_in_cohorts(
    server_app: ServerApp,
    client_app: ClientApp,
    *,
    sites: Sequence[Path],
    memory_bytes: int,
    folder: Path,
    arithmetic: Arithmetic = PLAIN,
    by_app: Collection[str] = (),
) -> None:
    """Run a federation to its end in this process, a cohort of sites at a time.

    Args:
        server_app: of the run.
        client_app: answers all that is not training.
        sites: the owners' settings, one file a site.
        memory_bytes: about how much the training of one cohort may take.
        arithmetic: where and how precisely cohorts are computed.
        by_app: names of sites whose training the client app answers, too: those that are hostile.
        folder: for the sites' samples while the run lasts; closed to everybody but its owner, and empty afterwards.
    """
    keep_freed_memory()
    with SampleStore(folder) as store, without_what_is_there():
        run_over(
            CohortGrid(
                client_app,
                sites=sites,
                store=store,
                memory_bytes=memory_bytes,
                arithmetic=arithmetic,
                by_app=by_app,
            ),
            server_app,
        )


class CohortGrid(LocalGrid):
    """Answers the train messages of a round together, everything else by calling the client app."""

    def __init__(
        self,
        client_app: ClientApp,
        *,
        sites: Sequence[Path],
        store: SampleStore,
        memory_bytes: int,
        arithmetic: Arithmetic = PLAIN,
        by_app: Collection[str] = (),
        run_id: int = 1,
    ) -> None:
        super().__init__(client_app, sites=sites, run_id=run_id)
        self._by_app = frozenset(by_app)
        self._store, self._memory_bytes, self._arithmetic = store, memory_bytes, arithmetic

    def replies(self, messages: Sequence[Message]) -> Iterator[Message]:
        """A reply to each message, in their order; a cohort is trained when the first reply of it is asked for."""
        is_here = [self._is_trained_here(message) for message in messages]
        together = self._trained(list(itertools.compress(messages, is_here)))
        for message, is_trained in zip(messages, is_here, strict=True):
            yield next(together) if is_trained else self._deliver(message)

    def _is_trained_here(self, message: Message) -> bool:
        site = self.site_of(message)
        return message.metadata.message_type == MessageType.TRAIN and site is not None and site.stem not in self._by_app

    def _trained(self, messages: Sequence[Message]) -> Iterator[Message]:
        requests = {id(content): content for content in (message.content for message in messages)}
        decoded = {name: _decoded(content) for name, content in requests.items()}
        asked = [(message, decoded[id(message.content)]) for message in messages]
        answers = self._answers(
            [(request, self.site_of(message)) for message, request in asked if isinstance(request, tuple)]
        )
        for message, request in asked:
            if isinstance(request, Refusal):
                yield self.numbered(Message(encode_reply(request), reply_to=message))
            else:
                yield self._reply(message, answers)

    def _reply(self, message: Message, answers: Iterator[Answer]) -> Message:
        """The next answer as a reply; where there is none, because training broke down, what Flower says then."""
        try:
            answer = next(answers, None)
            if isinstance(answer, TrainReply):
                return self.answered(message, answer)
            if answer is not None:
                return self.numbered(Message(encode_reply(answer), reply_to=message))
        except Exception:
            # as Flower's own workers do: an error reply, the round goes on. Its words stay on this screen
            log.exception("training of a cohort failed; its remaining sites give no update")
        return self.failed(message)

    def _answers(self, asked: Sequence[tuple[Request, Path | None]]) -> Iterator[Answer]:
        from client.cohort import Asked, answer_cohort  # training code: loaded when the first round needs it

        sites = [Asked(header=header, weights=weights, site_file=path) for (header, weights), path in asked if path]
        yield from answer_cohort(sites, store=self._store, memory_bytes=self._memory_bytes, arithmetic=self._arithmetic)


def _decoded(records: RecordDict) -> Request | Refusal:
    """A train request, whose arrays are compared with the model by who builds it; or why it is none."""
    try:
        return decode_request_header(records), decode_arrays(records, shapes=array_shapes(records))
    except WireError as error:
        log.error("train request: %s", error)
        return Refusal(error.code)
    except Exception:
        log.exception("train request")
        return Refusal("internal")
