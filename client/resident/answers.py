"""Kept answers: what was paid for and what has left, on the owner's disk, so that an identical request costs once.

in        a request that the owner permits, the reservation that pays for it, the answer that will leave
out       the same answer again; or the reservation under which nothing has left yet; or neither
relies on the ledger's word: a row that is not there, or void, pays for nothing, whatever lies in these files

    reserve (ledger) -> note -> train -> answer on the disk -> release (ledger) -> sent

A row that is still reserved has let nothing out, because its release comes before the sending. So the round may be
trained again under it; after the release never again, whatever became of the file with the answer.

    FOLDER/RUN/ROUND.note      which request, under which reservation, how often begun
    FOLDER/RUN/ROUND.answer    what left
    FOLDER/.ledger-*.mark      the last reservation of a data set, longer than any note: ledger_mark.py
"""

import contextlib
import fcntl
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Literal

from pydantic import Field
from torch import Tensor

from client.charge import COUNTS_ROUND
from client.resident.answer_files import Answer, as_file, from_file, parsed, read, request_digest, sync_folder, write
from client.resident.ledger_mark import Granted, granted_of, keep_mark, newest, read_mark, unforgetting
from shared.errors import ConfigError, LedgerError, ReplayedRequest
from shared.messages import RequestHeader, StatisticsHeader
from shared.privacy.ledger import Ledger, LedgerRow, Reservation

MOST_TRIES = 3
"""trainings under one reservation, of which at most the last one was not cut off"""


class Case:
    """One request, and what is kept about it: nothing, where answers are not kept."""

    def standing(self, ledger: Ledger) -> Answer | Reservation | None:  # noqa: ARG002
        """What became of this request before: its answer, the reservation that still pays for it, or neither.

        Raises:
            ReplayedRequest: the round is over here, and the request is another one.
        """
        return None

    def note(self, reservation: Reservation) -> None:
        """Writes down that the request is about to be answered under a reservation; before any data is read."""

    def forget(self) -> None:
        """Takes the note away: the reservation is about to be given back, or pays for a failure that is told."""

    def keep(self, answer: Answer) -> None:
        """Writes down what will leave; before its reservation is released."""


class Answers:
    """Where answers are kept: nowhere, as in simulations, whose ledgers are thrown away with them."""

    def case(
        self,
        header: RequestHeader | StatisticsHeader,  # noqa: ARG002
        *,
        data_set: str,  # noqa: ARG002
        weights: Mapping[str, Tensor],  # noqa: ARG002
    ) -> Case:
        """One request's case."""
        return Case()

    def ledger(self, path: Path, *, data_set: str, open_ledger: Callable[[Path], Ledger]) -> Ledger:  # noqa: ARG002
        """The owner's ledger, which holds all that is remembered of a data set.

        Raises:
            LedgerError: it was removed or set back; also as `Ledger`.
        """
        return open_ledger(path)


NO_ANSWERS = Answers()


class _Note(Granted):
    """Which request a reservation pays for."""

    form: Literal[1]
    request: str = Field(pattern="^[0-9a-f]{64}$")
    tries: int = Field(ge=1)
    epsilon_spent: float | None = Field(description="None: infinite, of a round without noise")

    def paid(self) -> Reservation:
        """The reservation, as the ledger gave it."""
        return Reservation(
            id=self.reservation,
            data_set=self.data_set,
            run_id=self.run_id,
            round_number=self.round_number,
            attempt=self.attempt,
            use=self.use,
            epsilon_spent=math.inf if self.epsilon_spent is None else self.epsilon_spent,
        )


@dataclass(frozen=True)
class KeptCase(Case):
    """One request, with files of its own."""

    answers: "KeptAnswers"
    request: str
    """digest of all of it but `attempt`"""
    data_set: str
    run_id: str
    round_number: int
    attempt: int

    def standing(self, ledger: Ledger) -> Answer | Reservation | None:
        """As `Case.standing`; an answer is given again only under a row of the ledger that is paid."""
        rows = [row for row in ledger.rows(self.data_set, run_id=self.run_id) if row.state != "void"]
        note = self._read_note()
        row = None if note is None else next((each for each in rows if note.is_of(each)), None)
        if note is not None and row is not None and note.request == self.request:
            answer = self._read_answer()
            if answer is not None:
                if row.state == "reserved":
                    ledger.release(note.paid())
                self.answers.num_sent_again += 1
                return answer
            # PRIVACY: only while nothing has left under it, and only so often, because whoever asks sees each time that
            # the agent was gone. test_what_was_released_is_never_trained_again_for_the_same_payment
            if row.state == "reserved" and note.tries < MOST_TRIES:
                return note.paid()
        self._refuse_replayed(rows, note=None if row is None else note)
        return None

    def note(self, reservation: Reservation) -> None:
        """As `Case.note`: one try more where it is the same reservation again.

        Raises:
            LedgerError: it cannot be written; then nothing may be read.
        """
        before = self._read_note()
        is_again = before is not None and before.reservation == reservation.id and before.request == self.request
        tries = 1 + (before.tries if before is not None and is_again else 0)
        with _told(self.answers.folder):
            note = _Note(
                **self.answers.mark(reservation).model_dump(),
                form=1,
                request=self.request,
                tries=tries,
                epsilon_spent=None if math.isinf(reservation.epsilon_spent) else reservation.epsilon_spent,
            )
            self.answers.make_room(self.run_id)
            write(self._path("note"), note.model_dump_json().encode())
            self._path("answer").unlink(missing_ok=True)  # of another request, under another reservation
            self.answers.drop_rounds(self.run_id)

    def forget(self) -> None:
        """As `Case.forget`, and on the disk."""
        self._path("answer").unlink(missing_ok=True)
        self._path("note").unlink(missing_ok=True)
        sync_folder(self.answers.folder / self.run_id)

    def keep(self, answer: Answer) -> None:
        """As `Case.keep`.

        Raises:
            LedgerError: it cannot be written; then nothing may be sent.
        """
        with _told(self.answers.folder):
            write(self._path("answer"), *as_file(answer, request=self.request))

    def _refuse_replayed(self, rows: list[LedgerRow], *, note: _Note | None) -> None:
        last_round = max((row.round_number for row in rows), default=0)
        last_attempt = max((row.attempt for row in rows), default=0)
        if self.round_number < last_round or self.attempt < last_attempt:
            raise ReplayedRequest(
                f"round {self.round_number}, attempt {self.attempt}, of run {self.run_id}: this site was asked for "
                f"round {last_round}, attempt {last_attempt}, before; allowed: later ones, or the same request again"
            )
        has_left = any(row.round_number == self.round_number and row.state == "released" for row in rows)
        if note is not None and note.request != self.request and has_left:
            raise ReplayedRequest(
                f"round {self.round_number} of run {self.run_id} was answered here, for other weights or settings; "
                "allowed: the same request again, or the next round"
            )

    def _path(self, kind: Literal["note", "answer"]) -> Path:
        return self.answers.folder / self.run_id / f"{self.round_number:06d}.{kind}"

    def _read_note(self) -> _Note | None:
        held = read(self._path("note"))
        note = None if held is None else parsed(_Note, held.decode("utf-8", errors="replace"))
        which = (self.data_set, self.run_id, self.round_number)
        return note if note and (note.data_set, note.run_id, note.round_number) == which else None

    def _read_answer(self) -> Answer | None:
        held = read(self._path("answer"))
        return None if held is None else from_file(held, request=self.request)


@contextlib.contextmanager
def _told(folder: Path) -> Iterator[None]:
    """What cannot be written is told to the owner in words, as a ledger's own failure is."""
    try:
        yield
    except OSError as error:
        raise LedgerError(
            f"{folder}: cannot be written: {error.strerror}. Nothing was sent; what was reserved stays spent. Make "
            "room there, and the site takes part again"
        ) from None


class KeptAnswers(Answers):
    """Answers of the last rounds of the last runs, in a folder that only the agent's user can look into."""

    def __init__(self, folder: Path, *, most_runs: int, most_rounds: int) -> None:
        """Takes the folder for this process alone, until it ends.

        Raises:
            ConfigError: another agent has it, or it cannot be made.
        """
        self.folder, self._most_runs, self._most_rounds = folder, most_runs, most_rounds
        self.num_sent_again = 0
        self._granted: dict[str, tuple[Granted, ...]] = {}
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # PRIVACY: answers of unit "site" are clipped and not noised. test_what_is_kept_is_the_owners_alone_to_read
            folder.chmod(0o700)
            self._lock: IO[bytes] = (folder / "lock").open("wb")
        except OSError as error:
            raise ConfigError(
                f"agent.answers: {folder} cannot be used: {error.strerror}; name another folder"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ConfigError(f"agent.answers: another agent uses {folder}; end it first, or name another") from None

    def close(self) -> None:
        """Gives the folder back."""
        self._lock.close()

    def case(
        self, header: RequestHeader | StatisticsHeader, *, data_set: str, weights: Mapping[str, Tensor]
    ) -> KeptCase:
        """As `Answers.case`."""
        return KeptCase(
            answers=self,
            request=request_digest(header, weights=weights),
            data_set=data_set,
            run_id=header.run_id,
            round_number=header.round_number if isinstance(header, RequestHeader) else COUNTS_ROUND,
            attempt=header.attempt,
        )

    def ledger(self, path: Path, *, data_set: str, open_ledger: Callable[[Path], Ledger]) -> Ledger:
        """As `Answers.ledger`."""
        if data_set not in self._granted:
            mark = read_mark(self.folder, data_set=data_set)
            self._granted[data_set] = (*([] if mark is None else [mark]), *self._notes(data_set))
        return unforgetting(path, granted=self._granted[data_set], folder=self.folder, open_ledger=open_ledger)

    def mark(self, reservation: Reservation) -> Granted:
        """Remembers that a reservation was granted, for as long as the folder is there.

        Raises:
            OSError: it cannot be written.
        """
        granted = granted_of(reservation)
        # PRIVACY: one that is trained under again is not the last, and says nothing of those after it.
        # test_a_round_that_is_trained_again_does_not_set_the_mark_back
        last = newest([*self._granted.get(reservation.data_set, ()), granted])
        keep_mark(self.folder, last)
        self._granted[reservation.data_set] = (last,)
        return granted

    def _notes(self, data_set: str) -> list[Granted]:
        """Those of a data set: what is known of a ledger where no mark was kept yet."""
        held = [read(path) for path in self.folder.glob("*/*.note")]
        notes = [parsed(_Note, each.decode("utf-8", errors="replace")) for each in held if each is not None]
        return [note for note in notes if note is not None and note.data_set == data_set]

    def make_room(self, run_id: str) -> None:
        """A folder for the run; those that were not written to for longest go."""
        runs = sorted(
            (each for each in self.folder.iterdir() if each.is_dir()), key=lambda each: each.stat().st_mtime_ns
        )
        others = [each for each in runs if each.name != run_id]
        for folder in others[: max(0, len(others) - self._most_runs + 1)]:
            for path in folder.iterdir():
                path.unlink()
            folder.rmdir()
        (self.folder / run_id).mkdir(mode=0o700, exist_ok=True)
        sync_folder(self.folder)

    def drop_rounds(self, run_id: str) -> None:
        """The run's rounds before its last ones go."""
        paths = list((self.folder / run_id).iterdir())
        kept = sorted({path.name.split(".")[0] for path in paths})[-self._most_rounds :]
        for path in paths:
            if path.name.split(".")[0] not in kept or path.suffix == ".new":
                path.unlink()

    def num_bytes(self) -> int:
        """Of all that is kept."""
        return sum(path.stat().st_size for path in self.folder.glob("*/*"))
