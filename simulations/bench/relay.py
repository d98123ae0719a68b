"""Relay: a port on loopback that passes bytes on to another one, and counts them; what a deployment sends is seen here.

in        the port of a server
out       bytes to and from it, and how many connections there are; TLS goes through unread
relies on nobody else using the port
"""

import asyncio
import contextlib
import threading
from collections.abc import Iterator

_CHUNK = 2**16


class Relay:
    """Counts what passes; all numbers are since the start."""

    def __init__(self, *, port: int, to: int) -> None:
        """Does not listen yet.

        Args:
            port: where it will.
            to: of the server.
        """
        self.port, self._to = port, to
        self.to_server = self.from_server = 0
        """bytes"""
        self.num_open = self.num_opened = 0
        """connections: now, and in all"""

    async def serve(self, started: threading.Event, ended: asyncio.Event) -> None:
        """Until it is told to end."""
        server = await asyncio.start_server(self._take, "127.0.0.1", self.port)
        started.set()
        await ended.wait()
        server.close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
        except OSError:  # the server is away
            writer.transport.abort()
            return
        self.num_open += 1
        self.num_opened += 1
        carried = [
            asyncio.ensure_future(self._carry(reader, back, is_to_server=True)),
            asyncio.ensure_future(self._carry(there, writer, is_to_server=False)),
        ]
        try:
            await asyncio.wait(carried, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self.num_open -= 1
            for task in carried:
                task.cancel()
            for end in (writer, back):
                end.transport.abort()

    async def _carry(self, source: asyncio.StreamReader, target: asyncio.StreamWriter, *, is_to_server: bool) -> None:
        with contextlib.suppress(OSError):  # one side has gone: the other one follows
            while data := await source.read(_CHUNK):
                if is_to_server:
                    self.to_server += len(data)
                else:
                    self.from_server += len(data)
                target.write(data)
                await target.drain()


@contextlib.contextmanager
def relayed(port: int, *, to: int) -> Iterator[Relay]:
    """A relay that runs in a thread of this process while this lasts.

    Raises:
        OSError: it cannot listen there.
    """
    relay, started, ended = Relay(port=port, to=to), threading.Event(), asyncio.Event()
    loop = asyncio.new_event_loop()
    thread = threading.Thread(
        target=loop.run_until_complete, args=(relay.serve(started, ended),), name="relay", daemon=True
    )
    thread.start()
    try:
        if not started.wait(timeout=10):
            raise OSError(f"port {port}: nothing can be listened for there")
        yield relay
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(timeout=10)
        loop.close()
