"""App: the addresses of the service: a page, a prediction, the model's own facts, a sign of life.

in        HTTP requests
out       HTML, JSON
relies on prediction.py for answers and on shared/media for the judgement of files; nothing that is sent is logged,
          written or kept
"""

import logging
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from server.about import About, about
from server.given import Named, Readers
from server.prediction import Prediction, Predictor
from server.service.errors import RequestError, told
from server.service.headers import SecurityHeaders
from server.service.page import render_page
from server.service.upload import File, Gate, Limits, read_fields
from server.service.worker import Worker
from server.trained import TrainedModel
from shared.config import RunConfig
from shared.errors import MediaFault
from shared.media import SUFFIXES
from shared.settings import Settings
from shared.version import VERSION

LOOPBACK = ("127.0.0.1", "localhost", "::1")
log = logging.getLogger("motet.service")


class ModelFacts(Settings):
    """GET /model."""

    about: About
    endings: dict[str, tuple[str, ...]]
    """modality -> endings its files may have; of a text none"""
    file_bytes: int
    request_bytes: int
    version: str


class Health(Settings):
    """GET /health."""

    status: str = "ok"


def make_app(trained: TrainedModel, *, limits: Limits | None = None, hosts: tuple[str, ...] = LOOPBACK) -> FastAPI:
    """The service of one model.

    Args:
        trained: the model.
        limits: of each request.
        hosts: names under which it may be addressed; a page of another name that resolves to this machine is refused.

    Raises:
        RunError: the run has no report.
        ModelError: the run gives no answers that could be shown.
    """
    limits, predictor, facts = limits or Limits(), Predictor(trained), about(trained)
    worker, gate, run = Worker(limits), Gate(limits), trained.run
    page, policy = render_page(facts)
    app = _guarded_app(run.name, worker=worker, policy=policy, hosts=hosts)

    @app.get("/", response_class=HTMLResponse, include_in_schema=False)
    async def try_it() -> HTMLResponse:
        """A page to try the model with."""
        return HTMLResponse(page)

    @app.get("/health")
    async def health() -> Health:
        """Whether the service answers."""
        return Health()

    @app.get("/model")
    async def model() -> ModelFacts:
        """Labels, modalities, and what the model's training cost the people behind its data."""
        kinds = {name: run.data.modalities[name].kind for name in run.modalities}
        return ModelFacts(
            about=facts,
            endings={name: SUFFIXES[kind] for name, kind in kinds.items()},
            file_bytes=limits.file_bytes,
            request_bytes=limits.request_bytes,
            version=VERSION,
        )

    @app.post("/predict", openapi_extra=_request_body(run))
    async def predict(request: Request) -> Prediction:
        """What the model says of one sample: at least one of its modalities, each in a field of its name."""
        with gate.entered():
            fields = await read_fields(request, names=run.modalities, limits=limits)
        if not fields:
            raise RequestError(422, "nothing-given", f"send at least one of {', '.join(run.modalities)}")
        try:
            return await worker.run(lambda: _answer(fields, predictor=predictor))
        except RequestError:
            raise
        except Exception as error:  # noqa: BLE001  its words could hold what was sent, and are not logged
            log.error("a prediction failed: %s", type(error).__name__)
            raise RequestError(500, "internal", "the service failed; nothing of the request was kept") from None

    return app


def _guarded_app(name: str, *, worker: Worker, policy: str, hosts: tuple[str, ...]) -> FastAPI:
    """An app without addresses: what stands around all of them."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        yield
        worker.close()

    # the usual pages of FastAPI load scripts from elsewhere
    app = FastAPI(title=f"Motet: {name}", version=VERSION, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[*hosts, *(f"[{host}]" for host in hosts if ":" in host)])
    app.add_middleware(SecurityHeaders, policy=policy)
    for kind in (RequestError, HTTPException, Exception):
        app.add_exception_handler(kind, told)
    return app


def _answer(fields: Mapping[str, File | str], *, predictor: Predictor) -> Prediction:
    """Decodes, prepares and predicts, in the worker's thread."""
    readers: Readers = predictor.readers
    raws, faults = {}, []
    for modality, value in fields.items():
        try:
            if isinstance(value, str):
                value = File(name="", content=value.encode())  # noqa: PLW2901
                if readers.run.data.modalities[modality].kind != "text":
                    raise MediaFault(field="value", came="a text", allowed="a file")
            raws[modality] = readers.decoded(modality, value.content, name=value.name)
        except MediaFault as fault:
            faults.append(f"{modality}: {fault}")
    made, broken = readers.prepared_together(raws)
    faults += [f"{modality}: {found}" for modality, found in broken.items()]
    if faults:
        raise RequestError(422, "value-invalid", "; ".join(faults))
    (prediction,) = predictor.of_batch(Named(("request",), readers.batch([made])))
    return prediction


def _request_body(run: RunConfig) -> dict[str, object]:
    """The fields of POST /predict for OpenAPI, which the parser cannot tell by itself."""
    properties = {}
    for name in run.modalities:
        kind = run.data.modalities[name].kind
        if kind == "text":
            properties[name] = {"type": "string", "description": "a text"}
        else:
            ends = ", ".join(SUFFIXES[kind])
            properties[name] = {"type": "string", "format": "binary", "description": f"{kind}; a file ending in {ends}"}
    schema = {"type": "object", "properties": properties, "minProperties": 1}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
