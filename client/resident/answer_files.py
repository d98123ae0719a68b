"""Answer files: bytes that are on the disk whole or not at all, and read again only as they were written.

in        an answer that will leave, with the digest of the request that it answers
out       the same answer; or nothing, where the file is missing, damaged or another request's
relies on a file system whose rename is atomic and whose fsync is true

    64 characters   SHA-256 of the rest
    one line        JSON: the request's digest, and what the answer says beside its update
    the rest        the update, a safetensors file
"""

import contextlib
import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from shared.errors import ConfigError
from shared.float32_file import as_pieces
from shared.messages import ReplyHeader, RequestHeader, StatisticsHeader, StatisticsReply, TrainReply
from shared.settings import AnySettings, Settings, parse_settings_json
from shared.tensor_file import from_bytes

Answer = TrainReply | StatisticsReply
_DIGEST_BYTES = 64


class _Words(Settings):
    """What an answer says beside its update: one of the two."""

    request: str
    counts: StatisticsReply | None = None
    header: ReplyHeader | None = None


def request_digest(header: RequestHeader | StatisticsHeader, *, weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of all that a request asks, but for how often it was asked."""
    digest = hashlib.sha256(header.model_dump_json(exclude={"attempt"}).encode())
    for name in sorted(weights):
        values = weights[name].detach().cpu().contiguous()
        digest.update(f"\0{name}\0{tuple(values.shape)}\0{values.dtype}\0".encode())
        digest.update(values.numpy().data if values.numel() else b"")
    return digest.hexdigest()


def as_file(answer: Answer, *, request: str) -> tuple[bytes | memoryview, ...]:
    """An answer as bytes: its words, and its update behind them."""
    if isinstance(answer, StatisticsReply):
        return (_line(_Words(request=request, counts=answer)),)
    update = {name: value.detach().cpu().numpy() for name, value in answer.update.items()}
    return _line(_Words(request=request, header=answer.header)), *as_pieces(update)


def _line(words: _Words) -> bytes:
    return words.model_dump_json().encode() + b"\n"


def from_file(held: bytes, *, request: str) -> Answer | None:
    """The answer in these bytes, if it is this request's."""
    text, _, update = held.partition(b"\n")
    words = parsed(_Words, text.decode("utf-8", errors="replace"))
    if words is None or words.request != request:
        return None
    if words.header is None:
        return words.counts
    try:
        return TrainReply(header=words.header, update=from_bytes(update))
    except OSError:
        return None


def parsed(kind: type[AnySettings], text: str) -> AnySettings | None:
    """Settings, or nothing where the text is none."""
    try:
        return parse_settings_json(kind, text, place="kept answer")
    except ConfigError:
        return None


def write(path: Path, *pieces: bytes | memoryview) -> None:
    """The file is there whole or not at all, on the disk when this returns, and nobody else's to read.

    Raises:
        OSError: it cannot be written, and what was there before is as it was.
    """
    new = path.with_name(f"{path.name}.new")
    # PRIVACY: what is kept may be clipped and not noised. test_what_is_kept_is_the_owners_alone_to_read
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        for piece in (digest.hexdigest().encode(), *pieces):
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)
    sync_folder(path.parent)


def read(path: Path) -> bytes | None:
    """What was written; nothing, where there is no file or it is not as it was written."""
    try:
        held = path.read_bytes()
    except OSError:
        return None
    told, content = held[:_DIGEST_BYTES], held[_DIGEST_BYTES:]
    return content if hashlib.sha256(content).hexdigest().encode() == told else None


def sync_folder(folder: Path) -> None:
    """Names in a folder are on the disk, and those taken from it are gone there too."""
    with contextlib.suppress(FileNotFoundError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
