"""vLLM's `POST /pooling` with the task `token_classify`, as vLLM answers it for a pooler of type STEP: the Q-value at
each step token of the input."""

import time
import uuid
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from pqm_fast.data.encode import Encoded, Encoder
from pqm_fast.serve.problem import Problem
from pqm_fast.serve.protocols.body import ITEMS, Body, Text, Texts
from pqm_fast.serve.service import Service

Ids = Annotated[list[int], Field(fail_fast=True)]


class PoolingRequest(Body):
    model: Text | None = None
    input: Ids | Annotated[list[Ids], ITEMS] | Text | Texts
    """Token ids, or texts with step tokens in them. A text is tokenised as it is: better send ids, because the tokens
    of a step may depend on the text around it."""
    task: Literal["token_classify"] | None = None
    use_activation: bool | None = None
    """Has no effect, as in vLLM, for which `problem_type` in the checkpoint's config.json says that there is none."""
    encoding_format: Literal["float"] = "float"
    add_special_tokens: bool = True
    user: Text | None = None
    request_id: Text | None = None
    priority: int = Field(0, ge=0, le=0)
    """vLLM's default; requests have no priorities here."""


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/pooling")
    async def pooling(body: PoolingRequest) -> JSONResponse:
        """Q-values at the step tokens of each input."""
        service.check_model(body.model)
        inputs = await service.batcher.encode(_token_ids, body, service)
        scores = await service.score_encoded([("", _encoded(service, ids, n)) for n, ids in enumerate(inputs)])
        data = [
            {"index": number, "object": "pooling", "data": [[q] for q in steps]} for number, steps in enumerate(scores)
        ]
        return JSONResponse(envelope("pool", service, data, sum(map(len, inputs)), body.request_id))

    return router


def envelope(kind: str, service: Service, data: list[Any], tokens: int, id: str | None = None) -> dict[str, Any]:
    """What vLLM and OpenAI put around the results of a request."""
    return {
        "id": f"{kind}-{id or uuid.uuid4().hex}",
        "object": "list",
        "created": int(time.time()),
        "model": service.model,
        "data": data,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
    }


def _token_ids(body: PoolingRequest, service: Service) -> list[list[int]]:
    inputs = body.input
    if not inputs:
        raise Problem(400, "no_input", "input is empty; give token ids, or a text")
    several = [inputs] if isinstance(inputs, str) or isinstance(inputs[0], int) else inputs
    service.check_count(len(several))
    tokenizer = service.encoder.tokenizer
    return [
        tokenizer(item, add_special_tokens=body.add_special_tokens, verbose=False)["input_ids"]
        if isinstance(item, str)
        else item
        for item in several
    ]


def _encoded(service: Service, ids: list[int], number: int) -> Encoded:
    """The solution that `ids` are. Raises Problem for ids that the model cannot take."""
    encoder, name = service.encoder, f"input {number}"
    if not isinstance(encoder, Encoder) or encoder.step_id is None:
        raise Problem(400, "no_step_token", "this model has no step token; use /score")
    vocabulary = service.batcher.scorer.model.embedding.shape[0]
    if wrong := [id for id in ids if not 0 <= id < vocabulary]:
        raise Problem(400, "bad_token", f"{name}: token {wrong[0]} is not one of the {vocabulary:,} of the model")
    if len(ids) > encoder.max_length:
        raise Problem(400, "too_long", f"{name}: {len(ids):,} tokens; the model takes {encoder.max_length:,}")
    tokens = np.array(ids, dtype=np.int32)
    places = np.flatnonzero(tokens == encoder.step_id).astype(np.int32)
    if not len(places):
        message = f"{name}: no step token ({encoder.template.step_token!r}, id {encoder.step_id}) among its tokens"
        raise Problem(400, "no_steps", f"{message}; put one behind each step")
    return Encoded(tokens[: places[-1] + 1], places, steps_cut=0)
