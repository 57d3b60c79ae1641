"""its-hub's own searches with our scores, and a language model that writes digits."""

import asyncio
import inspect

import pytest

from pqm_fast.rewards.adapters import ItsHubPRM

its_hub = pytest.importorskip("its_hub", reason="its-hub is not installed (pip install its_hub==1.2.0)")


class Digits(its_hub.AbstractLanguageModel):
    """Its n-th step, over all solutions, is n."""

    def __init__(self):
        self.written = 0

    async def agenerate(self, messages, stop=None, **options):
        answers = []
        for _ in messages:
            answers.append({"role": "assistant", "content": str(self.written)})
            self.written += 1
        return answers


def test_signatures():
    abstract = its_hub.AbstractProcessRewardModel
    for name in abstract.__abstractmethods__:
        ours, theirs = (inspect.signature(getattr(cls, name)) for cls in (ItsHubPRM, abstract))
        assert list(ours.parameters) == list(theirs.parameters)
        assert inspect.iscoroutinefunction(getattr(ItsHubPRM, name)) == (name == "ascore")


def test_beam_search(scorer):
    from its_hub.core.algorithms.beam_search import BeamSearch
    from its_hub.core.lms.step_generation import StepGeneration

    search = BeamSearch(StepGeneration(max_steps=2, step_token="\n\n"), ItsHubPRM(scorer), beam_width=2)
    result = asyncio.run(search.ainfer(Digits(), "Q", budget=4, return_response_only=False))
    assert {question for question, _ in scorer.asked} == {"Q"}
    best = result.the_one["content"].split("\n\n")
    # two beams, kept twice: of the steps 0 and 1, then 2 to 5, then 6 to 9, `min` prefers what begins with 1
    assert best[0] == "1"
    assert (
        result.scores[result.selected_index]
        == max(result.scores)
        == pytest.approx(ItsHubPRM(scorer).score("Q", ["1"])[0])
    )


def test_particle_filtering(scorer):
    from its_hub.core.algorithms.particle_gibbs import ParticleFiltering
    from its_hub.core.lms.step_generation import StepGeneration

    search = ParticleFiltering(StepGeneration(max_steps=2, step_token="\n\n"), ItsHubPRM(scorer, "last"))
    answer = asyncio.run(search.ainfer(Digits(), "Q", budget=4))
    steps = answer["content"].split("\n\n")
    assert len(steps) == 3
    assert ("Q", steps) in scorer.asked
