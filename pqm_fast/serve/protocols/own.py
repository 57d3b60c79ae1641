"""The server's own protocol: `POST /score`."""

from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from pqm_fast.data.step_text import split_steps, step_spans
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import aggregate_all
from pqm_fast.rewards import step_rewards
from pqm_fast.serve.problem import Problem
from pqm_fast.serve.protocols.body import Body
from pqm_fast.serve.service import Service, finite


class ScoreRequest(Body):
    question: str
    solutions: list[list[str] | str] = Field(min_length=1)
    """Each a list of steps, or a text that is split at `separator`."""
    separator: str | None = Field(None, min_length=1)
    """Default: --text-separator."""
    aggregate: list[str] = Field([])
    """The ways to reduce the scores of a solution to one."""
    rewards: str | None = None
    """The kind of step rewards to add (`pqm_fast.rewards.REWARDS`)."""
    reward_options: dict[str, float | bool] = Field({})
    """Its numbers, such as the threshold of verified-prefix."""


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/score")
    async def score(body: ScoreRequest) -> JSONResponse:
        """Q-values for the steps of the solutions of one question. With solutions as texts, `spans` has the place of
        each step in its text (null for a solution that is a list)."""
        separator = body.separator or service.config.text_separator
        solutions = [split_steps(s, separator) if isinstance(s, str) else s for s in body.solutions]
        scores = await service.score([(body.question, steps) for steps in solutions])
        answer: dict[str, Any] = {"model": service.model, "scores": scores}
        if any(isinstance(solution, str) for solution in body.solutions):
            answer["spans"] = [step_spans(s, separator) if isinstance(s, str) else None for s in body.solutions]
        try:
            if body.aggregate:
                names = dict.fromkeys(body.aggregate)
                answer["aggregates"] = {how: list(map(finite, aggregate_all(scores, how))) for how in names}
            if body.rewards is not None:
                answer["rewards"] = [step_rewards(steps, body.rewards, **body.reward_options) for steps in scores]
        except PQMError as error:
            raise Problem(400, "bad_option", str(error)) from None
        return JSONResponse(answer)

    return router
