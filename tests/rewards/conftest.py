"""A scorer whose scores are the texts of the steps, a tiny checkpoint, and packages that are imported in vain."""

import importlib.util
import sys
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import tiny

from pqm_fast.data.encode import Template
from pqm_fast.data.records import EMPTY_STEP
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.step_q_model import StepQModel


class StepsAreScores:
    """The score of the step "1.5" is 1.5; "cut" and what is behind it has none, and an empty completion -9."""

    def __init__(self):
        self.asked = []

    def score(self, solutions):
        self.asked += [(question, list(steps)) for question, steps in solutions]
        return [self.scores(steps) for _, steps in solutions]

    @staticmethod
    def scores(steps):
        known = steps[: steps.index("cut")] if "cut" in steps else steps
        return [-9.0 if step == EMPTY_STEP else float(step) for step in known] + [None] * (len(steps) - len(known))


@pytest.fixture
def scorer():
    return StepsAreScores()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory):
    """The folder of a verifier with random weights, for the words of `tiny.tokenizer`."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = StepQModel.from_pretrained(str(tiny.model_folder(folder / "model", num_hidden_layers=1)))
    model.save(folder / "run", tiny.tokenizer(90), Recipe(Template(step_token="last")))
    return folder / "run"


@pytest.fixture
def unused_imports(monkeypatch):
    """Stand-ins for packages that libraries import although the tests need nothing of them, where they are absent."""
    for package, *submodules in (("latex2sympy2",), ("word2number",), ("vllm", "vllm.inputs", "vllm.utils")):
        if importlib.util.find_spec(package) is None:
            for name in (package, *submodules):
                monkeypatch.setitem(sys.modules, name, MagicMock(SamplingParams=SimpleNamespace))
