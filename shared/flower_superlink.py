"""SuperLink: Flower's own program, with fewer threads than it would take.

in        the SuperLink's own options, as words of the command line
out       the SuperLink, until it is ended
relies on Flower 1.41 to serve by `uvicorn.run`, which is replaced by one that tells anyio first

Flower serves requests in anyio's 40 threads, and nearly each of them writes to one SQLite file. SQLite has them look
for its lock again and again, in no order, and gives up after five seconds: with tens of sites that push at once some
are told `database is locked`, and an update is lost, or a heartbeat and with it the run. Python runs one thread at a
time anyway; here the others wait in order, before they hold anything. docs/many-sites.md has what it comes to.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import uvicorn
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI
from flwr.superlink.cli.flower_superlink import flower_superlink

THREADS = 4
"""one works, the others are at the disk"""
_run = uvicorn.run


def _run_with_few_threads(app: FastAPI, **options: Any) -> None:
    begun = app.router.lifespan_context

    @asynccontextmanager
    async def lifespan(each: FastAPI) -> AsyncIterator[Any]:
        current_default_thread_limiter().total_tokens = THREADS
        async with begun(each) as state:
            yield state

    app.router.lifespan_context = lifespan
    _run(app, **options)


if __name__ == "__main__":
    uvicorn.run = _run_with_few_threads  # type: ignore[assignment]
    flower_superlink()
