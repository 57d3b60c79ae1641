"""OpenRLHF's remote reward model: `--reward.remote_url http://HOST:PORT/get_reward` (OpenRLHF 0.11)."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from pqm_fast.serve.problem import Problem
from pqm_fast.serve.protocols.body import Body, Texts
from pqm_fast.serve.service import Service


class RewardRequest(Body):
    query: Texts = Field(min_length=1)
    """The prompt and the solution as one text, with the special tokens of the policy."""
    prompts: Texts
    labels: list[Any] | None = None
    """The answers. A PRM does not need them."""


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/get_reward")
    async def get_reward(body: RewardRequest) -> JSONResponse:
        """The reward of each query. `scores`, which OpenRLHF filters questions by, are the same probabilities."""
        if len(body.query) != len(body.prompts):
            message = f"{len(body.query)} queries and {len(body.prompts)} prompts; give one prompt for each query"
            raise Problem(400, "bad_request", message)
        service.check_count(len(body.query))
        pairs = [service.conversation.split_at(q, p) for q, p in zip(body.query, body.prompts, strict=True)]
        rewards, scores = await service.rewards(pairs)
        extra = {
            "steps": [float(len(steps)) for steps in scores],
            "steps_beyond_context": [float(sum(q is None for q in steps)) for steps in scores],
        }
        return JSONResponse({"rewards": rewards, "scores": rewards, "extra_logs": extra})

    return router
