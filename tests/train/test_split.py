"""What a run trains on and what it holds out, and the labels that it takes."""

import json
from pathlib import Path

import numpy as np
import pytest
import tiny

from pqm_fast.data.balance import one_sided
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError
from pqm_fast.train.loop import train
from pqm_fast.train.run import prepare


def test_a_question_is_trained_on_or_held_out(configure):
    run = prepare(configure(eval_fraction=0.3))
    question = run.training.dataset.question
    assert not set(question[run.training.indices]) & set(question[run.held_out.indices])
    assert len(set(question[run.held_out.indices])) == 9  # of 30
    assert len(run.training) + len(run.held_out) == 120
    again = prepare(configure(eval_fraction=0.3))
    assert np.array_equal(run.held_out.indices, again.held_out.indices)


def test_held_out_file_takes_its_questions_from_training(configure, tmp_path):
    other = tiny.write_data(tmp_path / "held.jsonl", count=20, questions=10, seed=1)
    run = prepare(configure(eval_data=(other,)))
    assert len(run.held_out) == 20
    assert len(run.training) == 80  # 10 of the 30 questions gone
    assert "40 training trajectories left out: their questions are in the held-out data" in run.notes
    shared = set(run.held_out.dataset.question)
    dataset = run.training.dataset
    (tmp_path / "exclude.txt").write_text(next(dataset.name(i) for i in range(120) if dataset.question[i] in shared))
    run = prepare(configure(eval_data=(other,), exclude=str(tmp_path / "exclude.txt")))
    assert len(run.training) == 80
    assert "39 training trajectories left out: their questions are in the held-out data" in run.notes


def test_soft_labels(configure, tmp_path):
    """A label on the threshold counts as correct."""
    with open(tmp_path / "soft.jsonl", "w") as file:
        for i in range(20):
            row = {"id": f"s{i}", "prompt": f"w{3 + i}", "completions": ["w5", "w6"], "labels": [0.75, 0.25]}
            file.write(json.dumps(row) + "\n")

    def labels(**options):
        run = prepare(configure(data=(str(tmp_path / "soft.jsonl"),), **options))
        return run.training.trajectory(0).labels.tolist()

    assert labels(loss="bce") == [0.75, 0.25]
    assert labels(loss="rank", label_threshold=0.5) == [1.0, 0.0]
    assert labels(loss="rank", label_threshold=0.75) == [1.0, 0.0]
    with pytest.raises(PQMError, match=r"record s0: label 0.75 is neither 0 nor 1.*40 such labels"):
        labels(loss="rank")


@pytest.mark.parametrize(
    ("labels", "threshold", "warning"),
    [
        ([1, 1], None, "all 80 step labels are correct: a model that gives every step the same score looks right"),
        ([0, 0], None, "all 80 step labels are wrong"),
        ([0.25, 0.75], None, None),
        ([0.25, 0.75], 0.2, "all 80 step labels are correct"),
        ([1, None], None, "all 40 step labels are correct"),
    ],
)
def test_a_warning_for_labels_that_are_all_the_same(configure, tmp_path, labels, threshold, warning):
    rows = [{"prompt": f"w{i}", "completions": ["w3", "w4"], "labels": labels} for i in range(3, 43)]
    data = tmp_path / "same.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = prepare(configure(data=(str(data),), loss="bce", label_threshold=threshold))
    warnings = [note for note in run.notes if note.startswith("warning: ")]
    assert len(warnings) == (warning is not None)
    assert warning is None or warnings[0].startswith(f"warning: {data}: {warning}")


def test_a_warning_for_a_class_below_one_percent():
    labels = np.array([0.0] + [1.0] * 100 + [np.nan] * 50, dtype=np.float32)
    assert one_sided(labels[1:]) is not None
    assert one_sided(labels).startswith("only 1 of 101 step labels are wrong: ")
    assert one_sided(1 - labels).startswith("only 1 of 101 step labels are correct: ")
    assert one_sided(labels[:100]) is None
    assert one_sided(labels[:0]) is None


def test_orm_leaves_out_trajectories_without_their_last_step(configure):
    whole = prepare(configure(loss="orm", eval_fraction=0))
    cut = prepare(configure(loss="orm", eval_fraction=0, max_length=12, read=ReadOptions(skip_bad=True)))
    lost = cut.training.dataset.steps_cut > 0
    assert 0 < lost.sum() < 120
    assert len(whole.training) == 120
    assert len(cut.training) == (~lost).sum()
    assert any("orm needs the last step" in note for note in cut.notes)


def test_trajectories_that_lost_every_label_are_left_out_and_counted(configure, tmp_path):
    steps = ["w5 w6 w7", "w8 w9 w10"]
    rows = [
        {"id": "lost", "prompt": "w3", "completions": steps, "labels": [None, True]},
        {"id": "kept", "prompt": "w4", "completions": steps, "labels": [False, True]},
    ]
    (tmp_path / "cut.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = prepare(configure(max_length=5, eval_fraction=0, data=(str(tmp_path / "cut.jsonl"),)))
    assert [run.training.dataset.name(i) for i in range(len(run.training))] == ["kept"]
    assert "1 more were left out: all their labelled steps were cut off" in run.notes


def test_records_are_excluded(configure, tmp_path):
    whole = prepare(configure(eval_fraction=0))
    names = [whole.training.dataset.name(i) for i in whole.training.indices]
    file = tmp_path / "exclude.txt"
    file.write_text(f"\n{names[3]}\n{names[7]}  \n")
    config = configure(eval_fraction=0, exclude=str(file), save_every=5, max_steps=6)
    run = prepare(config)
    assert [run.training.dataset.name(i) for i in run.training.indices] == [
        name for name in names if name not in (names[3], names[7])
    ]
    assert f"2 trajectories left out: {file} names them" in run.notes
    train(config)
    (tmp_path / "run" / "config.json").unlink()
    file.write_text(f"{names[3]}\n{names[8]}\n")  # as many, but others
    with pytest.raises(PQMError, match="the run was started with other data: excluded"):
        train(configure(eval_fraction=0, exclude=str(file), save_every=5, max_steps=6, resume=True))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "holds no id; give a file with one record id a line"),
        (b"\xff\xfe\n", r"cannot be read \(not a text file in UTF-8\)"),
        (b"nobody\nr1\n", "no record of the training data has the id nobody; take it out"),
        (None, r"cannot be read \(No such file or directory\)"),
    ],
)
def test_a_bad_list_of_excluded_records(configure, tmp_path, content, message):
    file = tmp_path / "exclude.txt"
    if content is not None:
        Path(file).write_bytes(content)
    with pytest.raises(PQMError, match=f"exclude: {file}: {message}"):
        prepare(configure(exclude=str(file)))
