"""The server's own protocol: `POST /score`."""

from typing import Annotated, Any, Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import Field

from pqm_fast.data.step_text import split_steps, step_spans
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.aggregate import aggregate_all
from pqm_fast.rewards import step_rewards
from pqm_fast.serve.problem import Problem
from pqm_fast.serve.protocols.body import ITEMS, Body, Text, Texts
from pqm_fast.serve.service import Service, finite

Numbers = dict[Literal["temperature", "threshold", "prefix_reward", "correct"], float | bool]


class ScoreRequest(Body):
    question: Text
    solutions: Annotated[list[Texts | Text], ITEMS, Field(min_length=1)]
    """Each a list of steps, or a text that is split at `separator`."""
    separator: Text | None = Field(None, min_length=1)
    """Default: --text-separator."""
    lenient: bool = False
    """Give the steps of a solution that holds the step token null, instead of an error."""
    aggregate: Texts = Field([])
    """The ways to reduce the scores of a solution to one."""
    rewards: Text | None = None
    """The kind of step rewards to add (`pqm_fast.rewards.REWARDS`)."""
    reward_options: Numbers = Field({})
    """Its numbers, such as the threshold of verified-prefix."""


def routes(service: Service) -> APIRouter:
    router = APIRouter()

    @router.post("/score")
    async def score(body: ScoreRequest) -> JSONResponse:
        """Q-values for the steps of the solutions of one question. With solutions as texts, `spans` has the place of
        each step in its text (null for a solution that is a list)."""
        service.check_count(len(body.solutions))
        if body.reward_options and body.rewards is None:
            raise Problem(400, "bad_option", "reward_options without rewards; name the kind of rewards")
        separator = body.separator or service.config.text_separator
        service.check_steps(s.count(separator) + 1 if isinstance(s, str) else len(s) for s in body.solutions)
        solutions = [split_steps(s, separator) if isinstance(s, str) else s for s in body.solutions]
        scores = await service.score([(body.question, steps) for steps in solutions], body.lenient)
        answer: dict[str, Any] = {"model": service.model, "scores": scores}
        if any(isinstance(solution, str) for solution in body.solutions):
            answer["spans"] = [step_spans(s, separator) if isinstance(s, str) else None for s in body.solutions]
        try:
            if body.aggregate:
                names = dict.fromkeys(body.aggregate)
                answer["aggregates"] = {how: list(map(finite, aggregate_all(scores, how))) for how in names}
            if body.rewards is not None:
                numbers: dict[str, Any] = {str(name): number for name, number in body.reward_options.items()}
                answer["rewards"] = [step_rewards(steps, body.rewards, **numbers) for steps in scores]
        except PQMError as error:
            raise Problem(400, "bad_option", str(error)) from None
        return JSONResponse(answer)

    return router
