"""Worker: the one thread in which the service decodes and computes, with a short queue before it.

in        a function of one request
out       its result, or an error that says busy or too slow
relies on one thread: the model is never asked twice at once, and no request can take the machine from the others
"""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from server.service.errors import RequestError
from server.service.upload import Limits

Result = TypeVar("Result")


class Worker:
    """Runs one function after the other."""

    def __init__(self, limits: Limits) -> None:
        self._limits, self._thread = limits, ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")
        self._pending = 0

    async def run(self, function: Callable[[], Result]) -> Result:
        """The function's result, once those before it are done.

        Raises:
            RequestError: too many wait already, or it took too long. What has begun in the thread goes on to its end.
        """
        if self._pending > self._limits.waiting:
            raise RequestError(503, "busy", "too many requests wait for the model; try again in a moment")
        self._pending += 1
        future = self._thread.submit(function)
        loop = asyncio.get_running_loop()
        future.add_done_callback(lambda _: self._tell_done(loop))
        try:
            return await asyncio.wait_for(asyncio.wrap_future(future), timeout=self._limits.answer_s)
        except TimeoutError:
            future.cancel()
            message = f"no answer within {self._limits.answer_s:g} s; send smaller values, or try again later"
            raise RequestError(504, "timeout", message) from None

    def close(self) -> None:
        """Ends the thread after what it is doing."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _tell_done(self, loop: asyncio.AbstractEventLoop) -> None:
        # in the loop's own thread, which alone counts; a loop that was closed asks no more
        if not loop.is_closed():
            loop.call_soon_threadsafe(self._count_down)

    def _count_down(self) -> None:
        self._pending -= 1
