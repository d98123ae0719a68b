"""Upload: the fields of one multipart request, read in memory under limits and never written to disk.

in        the body of POST /predict as it arrives
out       modality -> bytes with a file's name, or a text
relies on python-multipart for the format; limits are judged while the body arrives, so that none is read whole first
"""

import asyncio
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from server.service.errors import RequestError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

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
    arriving: int = 16
    """bodies that may arrive at the same time; further ones are turned away before anything of them is read"""


@dataclass(frozen=True)
class File:
    """A file as it was sent."""

    name: str
    content: bytes


class Gate:
    """Bodies that arrive at the same time, so many and no more: each may take `request_bytes` of memory for a while."""

    def __init__(self, limits: Limits) -> None:
        self._most, self._inside = limits.arriving, 0

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While one body arrives; in the loop's thread alone.

        Raises:
            RequestError: too many arrive already.
        """
        if self._inside >= self._most:
            raise RequestError(503, "busy", "too many requests arrive at once; try again in a moment")
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1


async def read_fields(request: Request, *, names: Collection[str], limits: Limits) -> dict[str, File | str]:
    """The fields of a request, each once; those that were left empty are not among them.

    Raises:
        RequestError: another type, too large, too slow, malformed, or a field that is unknown or sent twice.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    if kind != b"multipart/form-data":
        raise RequestError(415, "not-multipart", f"send multipart/form-data with fields of {', '.join(names)}")
    declared = request.headers.get("content-length", "0")
    if not declared.isdigit() or int(declared) > limits.request_bytes:
        raise _too_large("request", most=limits.request_bytes)
    fields = _Fields(names=names, limits=limits)
    try:
        # it limits the headers of a part by itself
        parser = MultipartParser(options.get(b"boundary", b""), fields.callbacks())
        async with asyncio.timeout(limits.read_s):
            count = 0
            async for piece in request.stream():
                count += len(piece)
                # whatever the header declared
                if count > limits.request_bytes:
                    raise _too_large("request", most=limits.request_bytes)
                parser.write(piece)
        parser.finalize()
    except TimeoutError:
        raise RequestError(408, "too-slow", f"the request took more than {limits.read_s:g} s to arrive") from None
    except FormParserError:
        raise _malformed("it does not follow the format") from None
    if not fields.is_whole:
        raise _malformed("its last line is missing")
    return fields.found


class _Fields:
    """What python-multipart tells, piece by piece; the first thing too many ends the reading."""

    def __init__(self, *, names: Collection[str], limits: Limits) -> None:
        self.found: dict[str, File | str] = {}
        self.is_whole = False
        self._names, self._limits = names, limits
        self._seen: set[str] = set()
        self._header, self._value = b"", b""
        self._disposition: bytes | None = None
        self._name = ""
        self._file_name: str | None = None
        self._content = bytearray()

    def callbacks(self) -> "MultipartCallbacks":
        """What the parser is to call."""
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._data,
            "on_part_end": self._end,
            "on_end": self._all,
        }

    def _begin(self) -> None:
        self._disposition, self._content = None, bytearray()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def _headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        if name not in self._names:
            raise RequestError(422, "unknown-field", f"{name[:40]!r} is no modality; allowed: {', '.join(self._names)}")
        if name in self._seen:
            raise RequestError(422, "sent-twice", f"{name} was sent twice; allowed: once")
        self._seen.add(name)
        file_name = options.get(b"filename")
        self._name, self._file_name = name, None if file_name is None else file_name.decode("utf-8", "replace")

    def _data(self, data: bytes, start: int, end: int) -> None:
        most = self._limits.text_bytes if self._file_name is None else self._limits.file_bytes
        if len(self._content) + end - start > most:
            raise _too_large("text" if self._file_name is None else "file", most=most)
        # PRIVACY: in memory, where the usual form parser would write a large file to disk.
        # test_no_upload_touches_the_disk
        self._content += data[start:end]

    def _end(self) -> None:
        content = bytes(self._content)
        if self._file_name is not None:
            # what a browser sends for a file that was not chosen has neither
            if content or self._file_name:
                self.found[self._name] = File(name=self._file_name, content=content)
            return
        try:
            text = content.decode()
        except UnicodeDecodeError:
            raise _malformed(f"the text of {self._name} is not UTF-8") from None
        if text.strip():
            self.found[self._name] = text

    def _all(self) -> None:
        self.is_whole = True


def _too_large(what: str, *, most: int) -> RequestError:
    size = f"{most // MIB} MiB" if most >= MIB else f"{most:,} bytes"
    return RequestError(413, "too-large", f"the {what} is larger than {size}; send a smaller one")


def _malformed(why: str) -> RequestError:
    return RequestError(400, "malformed", f"the body is not sound multipart/form-data: {why}")
