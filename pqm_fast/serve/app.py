"""The application: the routes of all protocols, and one form for every error."""

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from pqm_fast.serve.gate import Application, Gate
from pqm_fast.serve.problem import Problem
from pqm_fast.serve.protocols import openrlhf, own, verl, vllm
from pqm_fast.serve.service import Service

QUOTED_PROBLEMS = 3  # of a body with more

logger = logging.getLogger(__name__)


def make_app(service: Service, token: str) -> Application:
    """The ASGI application of the server. It closes the batcher when it ends."""
    batcher = service.batcher

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        batcher.close()

    # its pages of documentation load scripts from another server
    app = FastAPI(title="pqm-fast", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    for protocol in (own, vllm, openrlhf, verl):
        app.include_router(protocol.routes(service))

    @app.head("/health", include_in_schema=False)
    @app.get("/health")
    async def health() -> JSONResponse:
        if not batcher.alive:
            raise Problem(500, "not_scoring", "the server does not score any more; restart it")
        return JSONResponse({"status": "ok", "model": service.model})

    @app.get("/metrics")
    async def show_metrics() -> Response:
        return Response(batcher.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/v1/models")
    async def models() -> JSONResponse:
        model = {"id": service.model, "object": "model", "created": 0, "owned_by": "pqm-fast"}
        return JSONResponse({"object": "list", "data": [model]})

    app.add_exception_handler(Problem, _answer_problem)
    app.add_exception_handler(RequestValidationError, _answer_invalid)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_defect)
    return Gate(app, service.config.limits, token, batcher.metrics, paths=frozenset(app.openapi()["paths"]))


async def _answer_problem(_: Request, problem: Any) -> JSONResponse:
    return JSONResponse(problem.body, problem.status, problem.headers)


async def _answer_invalid(request: Request, error: Any) -> JSONResponse:
    """What is wrong with the body, without repeating the body."""
    if "json" not in request.headers.get("content-type", ""):
        problem = Problem(415, "not_json", "send the body as JSON, with the header `Content-Type: application/json`")
        return await _answer_problem(request, problem)
    errors = error.errors()
    if errors[0]["type"] == "too_long":
        return await _answer_problem(request, Problem(413, "too_many_items", _told(errors[0])))
    problems = [_told(problem) for problem in errors[:QUOTED_PROBLEMS]]
    if len(errors) > QUOTED_PROBLEMS:
        problems.append(f"and {len(errors) - QUOTED_PROBLEMS} more")
    return await _answer_problem(request, Problem(400, "bad_request", "; ".join(problems)))


def _told(error: dict[str, Any]) -> str:
    # the place, without the names of the types that were tried there
    place = [str(part) for part in error["loc"][1:] if isinstance(part, int) or (part.isidentifier() and part != "str")]
    return f"{'.'.join(place) or 'the body'}: {error['msg'].removeprefix('Value error, ')}"


async def _answer_http(request: Request, error: Any) -> JSONResponse:
    """No such path, or another method."""
    code = {404: "no_such_path", 405: "wrong_method"}.get(error.status_code, "bad_request")
    problem = Problem(error.status_code, code, f"{request.method} {request.url.path}: {error.detail}")
    return JSONResponse(problem.body, problem.status, problem.headers | dict(error.headers or {}))  # with Allow


async def _answer_defect(request: Request, error: Exception) -> JSONResponse:
    """uvicorn writes the traceback to the log."""
    return await _answer_problem(request, Problem(500, "internal", "the server failed; its log says why"))
