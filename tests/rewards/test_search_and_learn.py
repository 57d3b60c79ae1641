"""search-and-learn's own searches with our scores, and a language model that writes digits."""

import inspect
from functools import partial
from types import SimpleNamespace

import pytest

from pqm_fast.rewards.adapters import SearchAndLearnPRM

sal = pytest.importorskip("sal", reason="search-and-learn is not installed (it is not on PyPI: github.com/huggingface)")


class Digits:
    """The n-th text that it writes is n, and a blank line where it is stopped at one."""

    def __init__(self):
        self.written = 0

    def get_tokenizer(self):
        return self

    def apply_chat_template(self, conversations, **options):
        return ["".join(message["content"] for message in messages) for messages in conversations]

    def generate(self, prompts, sampling_params, use_tqdm):
        answers = []
        for _ in prompts:
            stop = getattr(sampling_params, "stop", None)
            text = f"{self.written}{stop[0] if stop else ''}"
            answers.append(SimpleNamespace(text=text, token_ids=[0], stop_reason=stop[0] if stop else None))
            self.written += 1
        return [SimpleNamespace(outputs=[answer]) for answer in answers]


@pytest.fixture
def config(unused_imports):
    from sal.config import Config

    return partial(Config, n=4, beam_width=2, num_iterations=3, agg_strategy="last", search_batch_size=1)


def test_signature(unused_imports):
    from sal.models.reward_models import PRM

    ours, theirs = (inspect.signature(cls.score) for cls in (SearchAndLearnPRM, PRM))
    assert list(ours.parameters) == list(theirs.parameters)


def test_best_of_n(config, scorer):
    from sal.search import best_of_n

    result = best_of_n({"problem": ["Q", "R"]}, config(), Digits(), SearchAndLearnPRM(scorer))
    assert result["completions"] == [["0", "1", "2", "3"], ["4", "5", "6", "7"]]
    assert result["pred"] == ["3", "7"]
    assert [question for question, _ in scorer.asked] == ["Q"] * 4 + ["R"] * 4


@pytest.mark.parametrize("name", ["beam_search", "dvts"])
def test_searches(name, config, scorer):
    import sal.search

    result = getattr(sal.search, name)({"problem": ["Q"]}, config(approach=name), Digits(), SearchAndLearnPRM(scorer))
    [pred], [completions], [scores] = result["pred"], result["completions"], result["scores"]
    assert pred == max(completions, key=lambda text: int(text.split("\n\n")[-1]))
    assert [len(steps) for steps in scores] == [len(text.split("\n\n")) for text in completions]
    assert ("Q", pred.split("\n\n")) in scorer.asked
