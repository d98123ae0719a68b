"""A TCP proxy between a site's node and the server that can delay, drop, and cut connections half way.

in        a port to listen on, and the server's
out       the same bytes, later, or only some of them, or none
relies on nothing of what they mean: it is TLS

    pass    all bytes, after `delay_s`                 drop   bytes are taken, and go nowhere; connections stay
    refuse  new connections are hung up on             cut    `cut()` ends all connections now, in the middle of whatever it is;
                                                              `cut_after` bytes of a connection from the site: likewise
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from typing import Literal

Mode = Literal["pass", "drop", "refuse"]
_CHUNK = 1 << 14


class Proxy:
    """One listening port; its behaviour may be changed at any time, from any thread."""

    def __init__(self, port: int, *, to: int) -> None:
        self.port, self._to = port, to
        self.mode: Mode = "pass"
        self.delay_s = 0.0
        self.cut_after: int | None = None
        """bytes from the site, after which its connection is cut; counted for each connection"""
        self.num_cut = self.num_connections = 0
        self._loop = asyncio.new_event_loop()
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def cut(self) -> None:
        """Every connection ends now, without a farewell (RST)."""
        self._loop.call_soon_threadsafe(self._cut)

    def _cut(self) -> None:
        for writer in tuple(self._open):
            writer.transport.abort()
        self.num_cut += len(self._open) // 2

    async def _serve(self, started: threading.Event, ended: asyncio.Event) -> None:
        server = await asyncio.start_server(self._take, "127.0.0.1", self.port)
        started.set()
        await ended.wait()
        server.close()
        self._cut()
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.num_connections += 1
        if self.mode == "refuse":
            writer.transport.abort()
            return
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:  # the server is away
            writer.transport.abort()
            return
        self._open |= {writer, back}
        for source, target, counts in ((reader, back, True), (there, writer, False)):
            task = asyncio.create_task(self._carry(source, target, pair=(writer, back), counts=counts))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _carry(
        self,
        source: asyncio.StreamReader,
        target: asyncio.StreamWriter,
        *,
        pair: tuple[asyncio.StreamWriter, asyncio.StreamWriter],
        counts: bool,
    ) -> None:
        carried = 0
        try:
            while data := await source.read(_CHUNK):
                if self.delay_s:
                    await asyncio.sleep(self.delay_s)
                if self.mode == "drop":
                    continue
                limit = self.cut_after if counts else None
                if limit is not None and carried + len(data) > limit:
                    target.write(data[: max(0, limit - carried)])
                    await target.drain()
                    self.num_cut += 1
                    break
                carried += len(data)
                target.write(data)
                await target.drain()
        except OSError:
            pass  # one side has gone: the other one follows
        finally:
            for writer in pair:
                self._open.discard(writer)
                writer.transport.abort()


@contextlib.contextmanager
def proxied(port: int, *, to: int) -> Iterator[Proxy]:
    """A proxy that runs in a thread of this process while this lasts."""
    proxy, started, ended = Proxy(port, to=to), threading.Event(), asyncio.Event()
    loop = proxy._loop
    thread = threading.Thread(target=loop.run_until_complete, args=(proxy._serve(started, ended),), daemon=True)
    thread.start()
    try:
        assert started.wait(timeout=10)
        yield proxy
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(timeout=10)
        loop.close()
