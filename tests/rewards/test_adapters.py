"""What the adapters give, with the arguments that the libraries document. The libraries are not needed."""

import asyncio
import math
import subprocess
import sys
from dataclasses import dataclass
from threading import Thread

import pytest
import torch

from pqm_fast import Scorer
from pqm_fast.data.records import EMPTY_STEP
from pqm_fast.errors import PQMError
from pqm_fast.rewards.adapters import ItsHubPRM, SearchAndLearnPRM, openrlhf_reward, trl_reward, verl_reward
from pqm_fast.rewards.solutions import SolutionScorer, last_question

CHAT = [{"role": "system", "content": "Think."}, {"role": "user", "content": "Q"}]
PARTS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Q"}]}]


@dataclass
class Message:
    role: str
    content: str | list | None


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


@pytest.mark.parametrize("messages", ["Q", CHAT, PARTS, [Message("user", "Q"), Message("assistant", None)]])
def test_the_question_of_a_prompt(messages):
    assert last_question(messages) == "Q"


def test_a_prompt_without_a_question():
    with pytest.raises(PQMError, match="no message with the role `user`"):
        last_question([{"role": "system", "content": "Think."}])


def test_trl(scorer):
    reward = trl_reward(scorer)
    assert reward.__name__ == "pqm_difference"
    assert reward(prompts=["Q", "R"], completions=["2\n\n1.5", ""], completion_ids=[[1], [2]]) == [1.5, -9.0]
    assert scorer.asked == [("Q", ["2", "1.5"]), ("R", [EMPTY_STEP])]


def test_trl_with_messages(scorer):
    completion = [
        {"role": "assistant", "content": "2\n3"},
        {"role": "tool", "content": "?"},
        CHAT[1] | {"content": "x"},
    ]
    reward = trl_reward(scorer, "soft-min", separator="\n", temperature=1e-4)
    assert reward(prompts=[CHAT], completions=[completion]) == [pytest.approx(math.tanh(1))]
    assert scorer.asked == [("Q", ["2", "3"])]


def test_trl_leaves_out_what_does_not_fit_the_context(scorer):
    metrics = {}
    reward = trl_reward(scorer, aggregate="mean")
    got = reward(prompts=["Q"] * 4, completions=["1\n\ncut", "1\n\n2", "3", "4"], log_metric=metrics.__setitem__)
    assert got == [None, 1.5, 3.0, 4.0]
    assert metrics == {"rewards/pqm_mean/cut_off": 0.25}


def test_trl_takes_the_question_from_a_column(scorer):
    reward = trl_reward(scorer, question_column="problem")
    assert reward(prompts=["Solve: P"], completions=["1"], problem=["P"]) == [1.0]
    assert scorer.asked == [("P", ["1"])]
    with pytest.raises(PQMError, match="no column 'problem'"):
        reward(prompts=["Solve: P"], completions=["1"])


def test_verl(scorer):
    reward = verl_reward(scorer, "log-sigmoid")
    got = reward(data_source="d", solution_str="2\n\n-1\n\ncut", ground_truth="7", extra_info={"question": "Q"}, more=1)
    assert got == {
        "score": pytest.approx(math.log(sigmoid(2)) + math.log(sigmoid(-1))),
        "steps": 3.0,
        "cut_off": 1.0,
    }
    for extra_info in (None, {"index": 3}):
        with pytest.raises(PQMError, match="d: `extra_info` of the data has no 'question'"):
            reward("d", "2", "7", extra_info)


def test_openrlhf(scorer):
    reward = openrlhf_reward(scorer, question=lambda prompt: prompt.split("user\n")[-1].split("<|im_end|>")[0])
    prompt = "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\n"
    got = reward([f"{prompt}2\n\n1<|im_end|>\n", f"{prompt}3\n\ncut"], [prompt, prompt], labels=["7", "7"])
    assert scorer.asked == [("Q", ["2", "1"]), ("Q", ["3", "cut"])]
    assert got["rewards"].dtype == torch.float32
    assert got["rewards"].tolist() == got["scores"].tolist() == [1.0, 3.0]
    assert {name: value.tolist() for name, value in got["extra_logs"].items()} == {"steps": [2, 2], "cut_off": [0, 1]}
    with pytest.raises(PQMError, match="a query does not begin with its prompt: "):
        reward(["2"], [prompt], ["7"])


def test_its_hub(scorer):
    prm = ItsHubPRM(scorer)
    expected = [sigmoid(-1), sigmoid(3), 0.0]
    assert prm.score("Q", ["2\n\n-1", "3\n\n", "1\n\ncut"]) == pytest.approx(expected)
    assert asyncio.run(prm.ascore([Message("user", "Q")], ["2\n\n-1", "3", "cut"])) == pytest.approx(expected)
    assert {question for question, _ in scorer.asked} == {"Q"}
    assert ItsHubPRM(scorer, "last").score("Q", ["-1\n\n2"]) == pytest.approx([sigmoid(2)])
    assert prm.score("Q", []) == []


def test_search_and_learn(scorer):
    got = SearchAndLearnPRM(scorer).score(["Q", "R"], [["2\n\n-1", ""], ["1\n\ncut"]])
    assert got == [
        [[pytest.approx(sigmoid(2)), pytest.approx(sigmoid(-1))], [pytest.approx(sigmoid(-9))]],
        [[pytest.approx(sigmoid(1)), 0.0]],
    ]
    assert [question for question, _ in scorer.asked] == ["Q", "Q", "R"]


def test_a_checkpoint_and_threads(checkpoint):
    """A folder is opened, and threads that score at the same time get what one gets."""
    solutions = [("w3 w4", "w5 w6\n\nw7"), ("w8", "w9 w10")]
    expected = Scorer.from_pretrained(checkpoint).score([("w3 w4", ["w5 w6", "w7"]), ("w8", ["w9 w10"])])
    scorer = SolutionScorer(checkpoint)
    results = []
    threads = [Thread(target=lambda: results.append(scorer.score(solutions))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_a_server_needs_no_transformers():
    """verl and OpenRLHF require other releases of it than our models do."""
    code = """
import sys
sys.modules.update(dict.fromkeys(["transformers", "triton", "safetensors", "scipy", "datasets"]))  # not importable
from pqm_fast.rewards.adapters import openrlhf_reward, verl_reward
verl_reward("http://127.0.0.1:1"), openrlhf_reward("http://127.0.0.1:1")
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda s: trl_reward(s, "sum"), "unknown step reward 'sum'"),
        (lambda s: trl_reward(s, aggregate="sum"), "unknown aggregator 'sum'"),
        (lambda s: trl_reward(s, aggregate="min", threshold=1), "takes no numbers; found threshold"),
        (lambda s: verl_reward(s, "verified-prefix"), "threshold: None was given"),
        (lambda s: trl_reward(s, "verified-prefix", threshold=0, correct=True), "correct: it is of one solution"),
        (lambda s: openrlhf_reward(s, temperature=1), "'difference' takes no numbers; found temperature"),
        (lambda s: ItsHubPRM(s, "sum"), "unknown aggregator 'sum'"),
        (lambda s: SearchAndLearnPRM(s, separator=""), "separator: it is empty"),
        (lambda s: SearchAndLearnPRM("no/such/folder"), "no/such/folder"),
    ],
)
def test_bad_input_is_noticed_before_training(scorer, make, message):
    with pytest.raises(PQMError, match=message):
        make(scorer)
