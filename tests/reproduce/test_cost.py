"""The estimate: its counts against counts by hand, and its operations against their formula."""

import json

import pytest
from published_files import command_line

from pqm_fast.cli import main
from pqm_fast.reproduce.cost import operations
from pqm_fast.reproduce.document import duration
from pqm_fast.train.deal import Shape

STEP, PROMPT = 1, 2  # a token for [PRM], and the words [INST] and [/INST]


def trajectory(row):
    """The tokens of a record of Math-Shepherd: the stand-in's tokenizer takes a word for a token."""
    question, *steps = row["input"].replace(" ки", "").split("Step ")
    return PROMPT + len(question.split()) + sum(1 + len(step.split()) + STEP for step in steps)


def words(question, text):
    """The words of a solution of a pool as they are written out, with [PRM] for the step token."""
    steps = text.split("Step 2:")
    whole = ["[INST]", *question.split(), "[/INST]"]
    for number, step in enumerate(steps, 1):
        whole += ["Step", f"{number}:", *step.split(), "[PRM]"]
    return tuple(word if word == "[PRM]" or known(word) else "<unk>" for word in whole)


def known(word):
    return word.startswith("w") and word[1:].isdigit()


def test_counts(world, tmp_path, capsys):
    options = world | {"max_steps": None, "epochs": 2, "losses": ("rank", "orm"), "baseline": "orm"}
    options = {name: value for name, value in options.items() if value is not None}
    assert main(["reproduce", "pqm", "--out", str(tmp_path / "out"), *command_line(options), "--estimate-only"]) == 0
    found = json.loads((tmp_path / "out" / "estimate.json").read_text(encoding="utf-8"))
    assert not (tmp_path / "out" / "runs").exists()

    with open(world["data"][0], encoding="utf-8") as file:
        lengths = [trajectory(json.loads(line)) for line in file]
    tokens = sum(lengths)
    pairs = sum(sum(range(1, length + 1)) for length in lengths)  # each token attends to itself and those before
    pools, pairs_of_pools = {}, 0
    for path in sorted((tmp_path / world["pools"][0]).iterdir()):
        nodes, solutions = set(), 0
        for row in json.loads(path.read_text(encoding="utf-8")):
            for response in row["responses"]:
                own = words(row["question"], response["text"])
                nodes |= {(row["question"], own[:end]) for end in range(1, len(own) + 1)}
                solutions += 1
        pools[path.stem] = {"solutions": solutions, "tokens": len(nodes)}
        pairs_of_pools += sum(len(beginning) for _, beginning in nodes)
    assert found["pools"] == pools
    scored = sum(pool["tokens"] for pool in pools.values())
    assert found["names"] == ["rank-zeta2", "rank-zeta4", "orm"]
    for own in found["losses"]:
        assert own["training"]["tokens"] == 2 * tokens
        assert own["scoring"]["tokens"] == scored
        # 2 layers with 4 heads of 8 numbers, each of which is multiplied and added for the scores and for the sums
        matrices, attention = 2 * found["parameters"], 4 * 2 * 4 * 8
        assert own["training"]["operations"] == 3 * (matrices * 2 * tokens + attention * 2 * pairs)
        assert own["scoring"]["operations"] == matrices * scored + attention * pairs_of_pools
        # steps of 2 x 128 tokens: none is longer, and a pass ends with a shorter one
        assert own["steps"] >= 2 * tokens / 256
        for part, name in (("training", "training"), ("scoring", "forward")):
            timed = found["measured"][name]
            assert own[part]["seconds"] == pytest.approx(own[part]["tokens"] * timed["seconds"] / timed["tokens"])
    printed = capsys.readouterr().out
    assert f"| orm | {own['steps']} | {2 * tokens:,} |" in printed
    assert f"| all | {3 * own['steps']} | {6 * tokens:,} |" in printed


def test_operations():
    """A matrix of 3 x 5 in each of 2 layers, whose heads have 7 numbers together; 11 tokens, 13 pairs of tokens."""
    model = Shape(parameters=2 * 3 * 5, depth=2, width=7)
    matrices = 2 * (2 * 11 * 3 * 5)  # in each layer, a multiplication and an addition for each number and token
    attention = 2 * (2 * 13 * 7 + 2 * 13 * 7)  # in each layer, the scores, and the sum of the values
    assert operations(11, 13, model, backward=False) == matrices + attention
    assert operations(11, 13, model, backward=True) == 3 * (matrices + attention)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.0123, "0.012 s"), (119, "1.2e+02 s"), (120, "2.0 minutes"), (7200, "2.0 hours"), (172800, "2.0 days")],
)
def test_duration(seconds, text):
    assert duration(seconds) == text
