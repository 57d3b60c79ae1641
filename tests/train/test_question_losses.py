"""Training with losses that compare the solutions of a question: what they need, and that it is there or asked for."""

import json

import numpy as np
import pytest
import tiny
import yaml
from untimed import untimed

from pqm_fast.cli import main
from pqm_fast.data.encode import Template
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError
from pqm_fast.model.loading import load_config
from pqm_fast.model.recipe import Recipe
from pqm_fast.train.evaluation import evaluate, evaluated
from pqm_fast.train.loop import train
from pqm_fast.train.objective import Objective
from pqm_fast.train.run import prepare

LABELLED = {"prompt": "w9", "completions": ["w8", "w7"], "labels": [1, 1]}


def write(path, rows):
    path.write_text("".join(json.dumps({"id": f"r{i}", **row}) + "\n" for i, row in enumerate(rows)))
    return {"data": (str(path),)}


@pytest.fixture
def unlabelled(tmp_path):
    """Options for solutions without step labels, half of them with `correct` and half with `answer`."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(80):
        steps = [tiny.text(rng, 3) for _ in range(rng.integers(1, 4))]
        row = {"prompt": f"w{20 + i % 20}", "completions": [*steps, f"#### {5 + i % 3}"]}
        rows.append(row | ({"correct": i % 3 == 0} if i % 2 else {"answer": "5.0"}))
    return write(tmp_path / "unlabelled.jsonl", rows)


@pytest.mark.parametrize(
    ("arguments", "recipe"),
    [
        ("--loss bce --compare sibling --compare-weight 0.5 --prefix-tree", ("bce", 4.0, "sibling", 0.5)),
        ("--loss first-error-noisy --noise 0.05 0.2", ("first-error-noisy", 4.0, None, 1.0, 1.0, (0.05, 0.2))),
        ("--loss listwise-softmin --temperature 0.3", ("listwise-softmin", 4.0, None, 1.0, 0.3)),
    ],
)
def test_the_command_trains(configure, branching, unlabelled, tmp_path, arguments, recipe):
    """Without step labels too, if outcomes are all that the loss reads; and again from its own config.yaml."""
    data = unlabelled if "listwise" in arguments else branching
    stored = configure(**data, max_steps=2, eval_fraction=0.2).to_store()
    changed = {name.replace("-", "_") for name in arguments.split() if name.startswith("--")}
    options = {name: value for name, value in stored.items() if value is not None and f"--{name}" not in changed}
    (tmp_path / "options.yaml").write_text(yaml.safe_dump(options))
    assert main(["train", "--config", str(tmp_path / "options.yaml"), *arguments.split()]) == 0
    config = load_config(str(tmp_path / "run"))
    assert Recipe.from_config(config, "run") == Recipe(Template(step_token="last"), *recipe)
    again = ["--config", str(tmp_path / "run" / "config.yaml"), "--out", str(tmp_path / "again")]
    assert main(["train", *again]) == 0
    assert untimed(tmp_path / "again" / "metrics.jsonl") == untimed(tmp_path / "run" / "metrics.jsonl")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert metrics["loss"] > 0
    assert (metrics["step_accuracy"] is None) == (data is unlabelled)


@pytest.mark.parametrize(
    ("losses", "numbers"),
    [
        ({"loss": "bce", "compare": "sibling"}, {"compare_weight": 0.5}),
        ({"loss": "listwise-softmin"}, {"temperature": 0.2}),
        ({"loss": "first-error-noisy"}, {"noise": (0.3, 0.05)}),
    ],
)
def test_the_numbers_reach_the_loss(configure, branching, losses, numbers):
    run = prepare(configure(eval_fraction=0, **losses, **numbers, **branching))
    batch = run.training.pack(run.training.indices)
    value = run.objective(run.model, batch, None, 1.0).loss.item()
    assert value == run.model(batch, zeta=4.0, normalizer=1.0, **losses, **numbers).loss.item()
    with_defaults = Objective(**losses)(run.model, batch, None, 1.0).loss.item()
    assert abs(value - with_defaults) > 1e-3 * value


def test_resuming_with_other_outcomes_is_refused(configure, unlabelled):
    options = {"loss": "listwise", "save_every": 1, "max_steps": 2, **unlabelled}
    run = configure(**options)
    train(run)
    (run.folder / "config.json").unlink()
    with open(unlabelled["data"][0], "r+") as file:
        text = file.read().replace('"correct": false', '"correct": true', 1)
        file.seek(0)
        file.write(text)
        file.truncate()
    with pytest.raises(PQMError, match="the run was started with other data: outcomes "):
        prepare(configure(**options, resume=True))


def test_an_evaluation_takes_whole_questions(configure, branching):
    """With a limit too; in trees its figures are the same."""
    options = {"loss": "group-rank", "eval_fraction": 0.6, "micro_batch_tokens": 1024, **branching}
    trees, plain = (prepare(configure(**options, prefix_tree=on)) for on in (True, False))
    plain.model.load_state_dict(trees.model.state_dict())
    held_out = plain.held_out
    for limit in (1, 10, 30):
        indices = evaluated(plain, held_out, limit)
        question = held_out.dataset.question
        assert set(indices) == set(held_out.indices[np.isin(question[held_out.indices], question[indices])])
        assert len(indices) <= limit or len(set(question[indices])) == 1
    assert len(indices) > 10
    assert evaluate(trees, trees.held_out, 30) == pytest.approx(evaluate(plain, held_out, 30), rel=1e-5, nan_ok=True)


def test_divided_questions_are_counted(configure, branching):
    options = {"loss": "bce", "compare": "sibling", "max_length": 40, "eval_fraction": 0.3, **branching}
    whole = prepare(configure(**options, micro_batch_tokens=400))
    assert not any("are divided" in note for note in whole.notes)
    run = prepare(configure(**options, micro_batch_tokens=60))
    question, lengths = (
        column[run.training.indices] for column in (run.training.dataset.question, run.training.dataset.lengths)
    )
    too_long = sum(lengths[question == number].sum() > 60 for number in set(question))
    assert (
        f"{too_long} questions do not fit a micro-batch of 60 tokens and are divided: the loss compares only "
        "solutions in the same micro-batch; raise --micro-batch-tokens to avoid it"
    ) in run.notes
    assert any(" questions held out do not fit a micro-batch of 60 tokens" in note for note in run.notes)
    trees = prepare(configure(**options, micro_batch_tokens=60, prefix_tree=True))
    assert 0 < trees.order.units.divided < too_long


@pytest.mark.parametrize(
    ("loss", "rows", "found"),
    [
        ("sibling", [{**LABELLED, "prompt": f"w{i}"} for i in range(8)], r"none of 8 questions has any \(0 have two"),
        ("sibling", [LABELLED, {**LABELLED, "completions": ["w8", "w6"], "labels": [1, 1]}], r"\(1 have two"),
        # correct and wrong steps, but never after the same beginning
        ("sibling", [{**LABELLED, "labels": [1, 0]}] * 2, "that continue the same beginning"),
        ("group-rank", [LABELLED, LABELLED], "correct with wrong steps of several solutions"),
        ("listwise", [LABELLED, {**LABELLED, "correct": 1}], "right with wrong solutions"),
    ],
)
def test_data_with_nothing_to_compare(configure, tmp_path, loss, rows, found):
    """Alone, the loss cannot be trained with; beside another it is said that it does nothing."""
    data = write(tmp_path / "rows.jsonl", rows)
    with pytest.raises(PQMError, match=rf"rows.jsonl: {loss} compares .*{found}.*; add solutions.* or choose another"):
        prepare(configure(loss=loss, eval_fraction=0, **data))
    run = prepare(configure(loss="bce", compare=loss, eval_fraction=0, **data))
    assert any(note.startswith("warning: ") and f"{loss} compares" in note for note in run.notes)


def test_data_with_almost_nothing_to_compare(configure, tmp_path):
    rows = [{**LABELLED, "prompt": f"w3 w{i // 80} w{i % 80 + 3}", "labels": [1, i % 2]} for i in range(300)]
    rows += [{**rows[0], "completions": ["w8", "w6"], "labels": [1, 1]}]
    run = prepare(configure(loss="sibling", eval_fraction=0, **write(tmp_path / "rows.jsonl", rows)))
    assert any("and only 0.33% of the questions have any; add solutions" in note for note in run.notes)


OUTCOMES = [
    ({"correct": True, "labels": [0, 1]}, 1),  # what the record says goes before its labels
    ({"correct": 0.25}, 0.25),
    ({"answer": "7", "completions": ["w8", "The answer is 7."]}, 1),
    ({"answer": "7", "completions": ["w8", "The answer is 8."]}, 0),
    ({"answer": "7", "completions": ["w8", "w9"], "finish_reason": "length"}, 0),
    ({"labels": [1, 0.5]}, 0),  # below the threshold
    ({"labels": [1, 0.75]}, 1),
    ({"labels": [0, None]}, 0),
    ({"labels": [1, None]}, None),
    ({"labels": None}, None),
    ({"labels": [1, 1], "completions": ["w8", " ".join(["w9"] * 30)]}, "cut"),
]


def test_outcomes(configure, tmp_path):
    """From `correct`, the answer, or step labels. A record without any is an error, or is counted."""
    rows = [LABELLED | row for row, _ in OUTCOMES]
    options = {"loss": "listwise", "label_threshold": 0.6, "max_length": 20, "eval_fraction": 0}
    options |= write(tmp_path / "rows.jsonl", rows)
    message = r"rows.jsonl: record r8: nothing tells whether .* the loss listwise needs; add `correct`.*--skip-bad"
    with pytest.raises(PQMError, match=message):
        prepare(configure(**options))
    run = prepare(configure(**options, read=ReadOptions(skip_bad=True)))
    known = [i for i, (_, outcome) in enumerate(OUTCOMES) if outcome not in (None, "cut")]
    assert run.training.indices.tolist() == known
    assert [run.training.trajectory(i).outcome for i in known] == [OUTCOMES[i][1] for i in known]
    assert any(
        note.startswith("skipped 2 bad records (2 unknown outcome), for example: record r8") for note in run.notes
    )
    cut = "1 trajectories left out: their end was cut off, so that they have no score to compare; raise --max-length"
    assert cut in run.notes
    batch = run.training.pack(run.training.indices)
    assert batch.num_steps == 2 * len(known)  # also those without a label
    # beside another loss, solutions of unknown outcome stay, with their labelled steps
    rows[1] |= {"correct": 0}
    options |= write(tmp_path / "labelled.jsonl", [row for row in rows if row["labels"]])
    both = prepare(configure(**(options | {"loss": "bce", "compare": "listwise"})))
    assert len(both.training) == len(rows) - 1
    assert "2 trajectories of unknown outcome: listwise leaves them out" in both.notes
    for more in ({"question_id": "q"}, {}):
        bad = write(tmp_path / "bad.jsonl", [{**LABELLED, **more, "correct": "yes"}])
        with pytest.raises(PQMError, match=r"bad.jsonl: record r0: correct is 'yes'; give true, false or a number"):
            prepare(configure(**(options | bad)))
    all_cut = options | write(tmp_path / "cut.jsonl", rows[-1:])
    with pytest.raises(PQMError, match=r"cut.jsonl: no usable record. 1 trajectories left out: .*; raise --max-length"):
        prepare(configure(**all_cut))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "sibling", "compare": "listwise"}, "compare: listwise was given, but the loss sibling compares"),
        ({"loss": "bce", "compare_weight": 0.5}, "compare_weight: 0.5 was given, but no loss to --compare"),
        ({"loss": "bce", "compare": "sibling", "compare_weight": 0.0}, "compare_weight: 0.0 was given; it must be"),
        ({"temperature": 0.0}, "temperature: 0.0 was given; it must be"),
        ({"noise": (0.5, 0.5)}, r"noise: \(0.5, 0.5\) was given; it must be auto, or two rates"),
        ({"noise": (-0.1, 0.5)}, "noise: "),
        ({"noise": (0.1,)}, "noise: "),
    ],
)
def test_options_that_do_not_fit(configure, options, message):
    with pytest.raises(PQMError, match=message):
        configure(**options)


def test_the_labels_that_the_second_loss_takes(configure, tmp_path):
    soft = write(tmp_path / "soft.jsonl", [{**LABELLED, "labels": [0.25, 1]}, LABELLED])
    with pytest.raises(PQMError, match=r"label 0\.25 is neither 0 nor 1, which the loss sibling needs"):
        prepare(configure(loss="bce", compare="sibling", eval_fraction=0, **soft))
    prepare(configure(loss="bce", compare="listwise", eval_fraction=0, **soft))


def test_noise_that_is_estimated(configure, branching, tmp_path):
    run = prepare(configure(loss="first-error-noisy", noise="auto", eval_fraction=0, **branching))
    labels = [run.training.trajectory(i).labels for i in run.training.indices]
    assert all(len(set(own[:-2])) < 2 for own in labels)  # only the last two steps may be wrong
    before, after = run.objective.noise
    assert run.recipe.noise == (before, after)
    assert before < 0.05
    assert after > 0.2
    assert any(note.startswith(f"noise, estimated from the labels of {len(labels)} solutions: ") for note in run.notes)
    single = [{"completions": ["w8"], "labels": [i % 2]} for i in range(9)]
    none_beyond = [{"labels": [1, 0]}, {"labels": [0, None]}, {"labels": [1, 1]}] * 3
    for number, rows in enumerate((single, none_beyond)):
        files = write(tmp_path / f"{number}.jsonl", [LABELLED | row for row in rows])
        run = prepare(configure(loss="first-error-noisy", noise="auto", eval_fraction=0, **files))
        assert any("the labels do not tell these rates" in note for note in run.notes)
