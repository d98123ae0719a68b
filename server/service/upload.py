"""Upload: the fields of one multipart request, read in memory under limits and never written to disk.

in        the body of POST /predict as it arrives
out       modality -> bytes with a file's name, or a text
relies on python-multipart for the format; limits are judged while the body arrives, so that none is read whole first
"""

import asyncio
from collections.abc import AsyncGenerator, Collection
from dataclasses import dataclass

from fastapi import Request
from starlette.datastructures import FormData, UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from server.service.errors import RequestError

MIB = 2**20


@dataclass(frozen=True)
class Limits:
    """What one request may be."""

    file_bytes: int = 16 * MIB
    request_bytes: int = 32 * MIB
    text_bytes: int = 400_000
    read_s: float = 30.0
    """from the first byte of the body to the last"""
    answer_s: float = 60.0
    """from the last byte to the answer, the wait for other requests included"""
    waiting: int = 8
    """requests that may wait for the model; further ones are turned away"""


@dataclass(frozen=True)
class File:
    """A file as it was sent."""

    name: str
    content: bytes


async def read_fields(request: Request, *, names: Collection[str], limits: Limits) -> dict[str, File | str]:
    """The fields of a request, each once; those that were left empty are not among them.

    Raises:
        RequestError: another type, too large, too slow, malformed, or a field that is unknown or sent twice.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        raise RequestError(415, "not-multipart", f"send multipart/form-data with fields of {', '.join(names)}")
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > limits.request_bytes:
        raise _too_large("request", most=limits.request_bytes)
    try:
        async with asyncio.timeout(limits.read_s):
            parser = _Parser(request, most_fields=len(names), limits=limits)
            form = await parser.parse()
    except TimeoutError:
        raise RequestError(408, "too-slow", f"the request took more than {limits.read_s:g} s to arrive") from None
    except MultiPartException as error:
        raise RequestError(400, "malformed", f"not sound multipart/form-data: {error.message}") from None
    return await _fields_of(form, names=names)


class _Parser(MultiPartParser):
    """Starlette's parser, whose files stay in memory and are counted as they grow."""

    def __init__(self, request: Request, *, most_fields: int, limits: Limits) -> None:
        super().__init__(
            request.headers,
            _counted(request, most=limits.request_bytes),
            max_files=most_fields,
            max_fields=most_fields,
            max_part_size=limits.text_bytes,
        )
        # PRIVACY: above this size Starlette would write a file to disk; no request gets so large.
        # test_no_upload_touches_the_disk
        self.spool_max_size = limits.request_bytes + 1
        self._limits, self._part_bytes = limits, 0

    def on_part_begin(self) -> None:
        """A new part is counted from nothing."""
        self._part_bytes = 0
        super().on_part_begin()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        """Ends the reading at the first byte too many."""
        self._part_bytes += end - start
        if self._part_bytes > self._limits.file_bytes:
            raise _too_large("file", most=self._limits.file_bytes)
        super().on_part_data(data, start, end)


async def _counted(request: Request, *, most: int) -> AsyncGenerator[bytes, None]:
    """The body piece by piece; ends at the first byte too many, whatever the header declared."""
    count = 0
    async for piece in request.stream():
        count += len(piece)
        if count > most:
            raise _too_large("request", most=most)
        yield piece


async def _fields_of(form: FormData, *, names: Collection[str]) -> dict[str, File | str]:
    fields: dict[str, File | str] = {}
    for name, value in form.multi_items():
        if name not in names:
            raise RequestError(422, "unknown-field", f"{name[:40]!r} is no modality; allowed: {', '.join(names)}")
        if isinstance(value, UploadFile):
            content = await value.read()
            if not content and not value.filename:
                continue
            made: File | str = File(name=value.filename or "", content=content)
        elif not value.strip():
            continue
        else:
            made = value
        if name in fields:
            raise RequestError(422, "sent-twice", f"{name} was sent twice; allowed: once")
        fields[name] = made
    return fields


def _too_large(what: str, *, most: int) -> RequestError:
    size = f"{most // MIB} MiB" if most >= MIB else f"{most} bytes"
    return RequestError(413, "too-large", f"the {what} is larger than {size}; send a smaller one")
