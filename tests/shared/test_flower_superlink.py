"""The SuperLink's threads: few, and told where Flower begins to serve."""

import asyncio
import importlib
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import uvicorn
from anyio.to_thread import current_default_thread_limiter
from fastapi import FastAPI

from shared import flower_superlink


@asynccontextmanager
async def _of_flower(_: FastAPI) -> AsyncIterator[dict[str, object]]:
    yield {"of": "flower"}


def test_the_app_has_few_threads_while_it_serves_and_keeps_its_own_state(monkeypatch: pytest.MonkeyPatch) -> None:
    app, came = FastAPI(lifespan=_of_flower), dict[str, object]()

    async def life() -> None:
        async with app.router.lifespan_context(app) as state:
            came.update(threads=current_default_thread_limiter().total_tokens, state=state)

    def serve(_: FastAPI, **options: object) -> None:
        came.update(options)
        asyncio.run(life())

    monkeypatch.setattr(flower_superlink, "_run", serve)
    flower_superlink._run_with_few_threads(app, workers=1)
    assert came == {"workers": 1, "threads": flower_superlink.THREADS, "state": {"of": "flower"}}


def test_flower_serves_by_the_name_that_is_replaced() -> None:
    """Where this fails with another Flower, its SuperLink would run with all of its threads again."""
    flowers = importlib.import_module("flwr.superlink.cli.flower_superlink")
    assert flowers.uvicorn is uvicorn
    assert "uvicorn.run(" in inspect.getsource(flowers._run_superlink_http_api)
