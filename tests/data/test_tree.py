"""Prefix trees: each trajectory attends to exactly itself, and no token that could be shared occurs twice."""

import math
from dataclasses import replace
from itertools import combinations, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pqm_fast.data.batches import PackingUnits
from pqm_fast.data.encode import Encoder, Template, ensure_step_token
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.pack import pack, pack_trees
from pqm_fast.data.questions import group_by_question, question_number
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.data.tree import lay_out, prefix_order, split_tree
from pqm_fast.model.tokenizer import load_tokenizer

# three tokens, one of them with bytes in another order than the numbers: prefixes collide all the time
SEQUENCE = st.lists(st.sampled_from([1, 2, 256]), min_size=1, max_size=7)
SEQUENCES = st.lists(SEQUENCE, max_size=12)


def arrays(sequences):
    return [np.array(s, dtype=np.int32) for s in sequences]


def prefixes(sequences):
    """The nodes of their trie."""
    return {tuple(s[: k + 1]) for s in sequences for k in range(len(s))}


def seen(batch):
    """The rows that each row attends to, from the rows of each sequence and the path that ends with them."""
    paths = np.split(batch.paths.numpy(), np.cumsum(batch.path_lengths, dtype=int))[:-1]
    visible = []
    for length, path in zip(batch.lengths, paths, strict=True):
        assert path[-length:].tolist() == list(range(len(visible), len(visible) + length))
        visible += [path[: len(path) - back].tolist() for back in reversed(range(length))]
    return visible


@settings(max_examples=100, deadline=None)
@given(SEQUENCES)
def test_every_token_sees_its_own_prefix(sequences):
    layout = lay_out(arrays(sequences))
    assert len(layout.input_ids) == len(prefixes(sequences))
    for i, path in zip(layout.order, layout.paths, strict=True):
        assert layout.input_ids[path].tolist() == sequences[i]
        assert layout.position_ids[path].tolist() == list(range(len(sequences[i])))
    ends = np.cumsum(layout.suffix_lengths)
    for path, own, end in zip(layout.paths, layout.suffix_lengths.tolist(), ends.tolist(), strict=True):
        assert path[len(path) - own :].tolist() == list(range(end - own, end))
    leaves = {tuple(s) for s in sequences} - {p[:-1] for p in prefixes(sequences)}
    assert np.count_nonzero(layout.suffix_lengths) == len(leaves)  # as few sequences as can be


@settings(max_examples=100, deadline=None)
@given(SEQUENCES)
def test_order_and_shared_prefixes(sequences):
    order, shared = prefix_order(arrays(sequences))
    # equal ones as they come, and one that begins others behind them
    assert order.tolist() == sorted(range(len(sequences)), key=lambda i: ([*sequences[i], math.inf], i))
    ordered = [sequences[i] for i in order]
    assert shared.tolist()[:1] == [0] * bool(sequences)
    for before, after, common in zip(ordered, ordered[1:], shared[1:], strict=False):
        assert len(prefixes([before]) & prefixes([after])) == common


def best_cut(lengths, shared, budget):
    """(fewest runs, smallest largest run) by trying all cuts."""

    def size(a, b):
        return sum(lengths[a:b]) - sum(shared[a + 1 : b])

    n = len(lengths)
    for runs in range(1, n + 1):
        largest = [
            max(size(a, b) for a, b in zip((0, *cuts), (*cuts, n), strict=True))
            for cuts in combinations(range(1, n), runs - 1)
        ]
        if min(largest) <= budget:
            return runs, min(largest)
    raise AssertionError


@settings(max_examples=100, deadline=None)
@given(st.lists(SEQUENCE, min_size=1, max_size=8), st.integers(7, 30))
def test_cuts_are_as_few_and_as_even_as_can_be(sequences, budget):
    order, shared = prefix_order(arrays(sequences))
    ordered = [sequences[i] for i in order]
    lengths = np.array([len(s) for s in ordered])
    starts, sizes = split_tree(lengths, shared, budget)
    assert starts[0] == 0
    for start, end, size in zip(starts, [*starts[1:], len(ordered)], sizes, strict=True):
        assert start < end
        assert size == len(prefixes(ordered[start:end]))
    assert (len(sizes), max(sizes)) == best_cut(lengths.tolist(), shared.tolist(), budget)


def test_group_by_question():
    assert [g.tolist() for g in group_by_question(np.array([7, 3, 7, 3, 9], dtype=np.uint64))] == [[1, 3], [0, 2], [4]]
    assert group_by_question(np.zeros(0, dtype=np.uint64)) == []


def trajectory(ids, rows, labels):
    return Trajectory(np.array(ids, np.int32), np.array(rows, np.int32), np.array(labels, np.float32))


def test_layout_of_a_tree_batch():
    first = [
        (10, trajectory([5, 6, 8], [1, 2], [1, 0])),
        (11, trajectory([5, 6, 7, 9], [1, 3], [1, np.nan])),
        (12, trajectory([5, 6], [1], [0])),  # a prefix of the others
        (13, trajectory([5, 6, 8], [1, 2], [0, 1])),  # the same tokens as 10, other labels
    ]
    second = [(14, trajectory([5, 1], [1], [1])), (15, trajectory([4], [], []))]  # two trees
    batch = pack_trees([first, second], pad_to=10)
    assert batch.members == (11, 10, 13, 12, 15, 14)
    assert batch.input_ids.tolist() == [5, 6, 7, 9, 8, 4, 5, 1, 0, 0]
    assert batch.position_ids.tolist() == [0, 1, 2, 3, 2, 0, 0, 1, 0, 0]
    assert batch.lengths == (4, 1, 1, 2)  # 13 and 12 add nothing
    assert batch.path_lengths == (4, 3, 1, 2)
    assert batch.paths.tolist() == [0, 1, 2, 3, 0, 1, 4, 5, 6, 7]
    assert batch.cu_steps.tolist() == [0, 1, 3, 5, 6, 6, 7]
    assert batch.step_tokens.tolist() == [1, 1, 4, 1, 4, 1, 7]
    assert batch.labels.tolist() == [1, 1, 0, 0, 1, 0, 1]
    assert (batch.num_trajectories, batch.num_steps, batch.num_tokens) == (6, 7, 8)
    assert batch.cu_groups.tolist() == [0, 4, 6]
    assert batch.parent.tolist() == [-1, -1, 1, -1, 1, -1, -1]  # the same number in two questions is two nodes
    assert batch.siblings.order.tolist() == [0, 1, 3, 5, 2, 4, 6]
    assert batch.outcomes.isnan().all()
    assert {column.device.type for column in batch.to("meta").siblings} == {"meta"}
    kinds = {name: str(value.dtype) for name, value in vars(batch).items() if hasattr(value, "dtype")}
    assert {kinds.pop(name) for name in ("labels", "outcomes")} == {"torch.float32"}
    assert {kinds.pop(name) for name in ("cu_steps", "cu_groups", "parent")} == {"torch.int32"}
    assert set(kinds.values()) == {"torch.int64"}
    everything = pack_trees([first, second], labelled_only=False)
    assert everything.step_tokens.tolist() == [1, 3, 1, 4, 1, 4, 1, 7]
    with pytest.raises(ValueError, match="8 tokens do not fit a batch of 7"):
        pack_trees([first, second], pad_to=7)
    assert pack_trees([]).paths is None


@st.composite
def numbered(draw):
    """Trajectories, each with a question number, in any order."""
    made, question = [], []
    for ids in draw(SEQUENCES):
        rows = draw(st.sets(st.integers(0, len(ids) - 1)))
        labels = [draw(st.sampled_from([0.0, 1.0, np.nan])) for _ in rows]
        made.append(trajectory(ids, sorted(rows), labels))
        question.append(draw(st.integers(0, 2)))
    return made, np.array(question, dtype=np.uint64)


@settings(max_examples=100, deadline=None)
@given(numbered(), st.booleans(), st.integers(0, 5))
def test_steps_of_a_tree_batch_are_those_of_its_trajectories(given, labelled_only, padding):
    made, question = given
    own = [[t.input_ids.tolist() for t, q in zip(made, question, strict=True) if q == number] for number in range(3)]
    unique = sum(len(prefixes(group)) for group in own)
    how = {"pad_to": unique + padding, "labelled_only": labelled_only}
    batch = pack(list(enumerate(made)), question=question, **how)
    assert batch.num_tokens == unique
    assert sorted(batch.members) == list(range(len(made)))
    assert (batch.paths is None) == (batch.lengths == batch.path_lengths)
    everywhere = torch.arange(unique) if batch.paths is None else batch.paths
    cu_steps, visible_to = batch.cu_steps.tolist(), seen(replace(batch, paths=everywhere))
    assert len(visible_to) == unique
    for b, number in enumerate(batch.members):
        t = made[number]
        keep = ~np.isnan(t.labels) | (not labelled_only)
        mine = slice(cu_steps[b], cu_steps[b + 1])
        np.testing.assert_array_equal(batch.labels[mine], t.labels[keep])
        for row, step in zip(batch.step_tokens[mine].tolist(), t.step_tokens[keep], strict=True):
            visible = visible_to[row]
            assert batch.input_ids[visible].tolist() == t.input_ids[: step + 1].tolist()
            assert batch.position_ids[visible].tolist() == list(range(step + 1))


@settings(max_examples=100, deadline=None)
@given(numbered(), st.booleans(), st.booleans())
def test_steps_with_one_parent_continue_one_prefix(given, share, labelled_only):
    """By comparing prefixes as tokens. Steps without a label are parents, whether or not they are listed."""
    made, question = given
    made = [replace(t, outcome=float(i)) for i, t in enumerate(made)]
    batch = pack(list(enumerate(made)), question=question, share=share, labelled_only=labelled_only)
    together = np.split(np.array(batch.members, dtype=int), batch.cu_groups.tolist()[1:-1]) if made else []
    assert [set(group) for group in together] == [set(np.flatnonzero(question == q)) for q in np.unique(question)]
    assert batch.outcomes.tolist() == list(batch.members)
    parents, continued = batch.parent.tolist(), []
    for number in batch.members:
        t = made[number]
        rows = t.step_tokens.tolist()
        for row_before, label in zip([-1, *rows], t.labels, strict=False):  # a first step continues the question
            if not (labelled_only and np.isnan(label)):
                continued.append((question[number], *t.input_ids[: row_before + 1].tolist()))
    assert len(parents) == len(continued) == batch.num_steps
    for i, j in combinations(range(len(parents)), 2):
        if continued[i][0] == continued[j][0]:
            assert (parents[i] == parents[j]) == (continued[i] == continued[j])
    order, first, end = (column.tolist() for column in batch.siblings)
    for position, (begin, stop) in enumerate(zip(first, end, strict=True)):
        expected = [i for i in range(len(parents)) if continued[i] == continued[order[position]]]
        assert order[begin:stop] == expected


@settings(max_examples=50, deadline=None)
@given(numbered(), st.integers(0, 5))
def test_whole_questions_without_shared_rows(given, padding):
    """The same trajectories in the same order as in trees, each laid out as in plain packing."""
    made, question = given
    total = sum(len(t.input_ids) for t in made)
    apart = pack(list(enumerate(made)), question=question, share=False, pad_to=total + padding)
    trees = pack(list(enumerate(made)), question=question)
    plain = pack([(i, made[i]) for i in apart.members], pad_to=total + padding)
    for name in ("input_ids", "position_ids", "lengths", "path_lengths", "paths", "step_tokens", "cu_steps", "labels"):
        np.testing.assert_array_equal(getattr(apart, name), getattr(plain, name), err_msg=name)
    for name in ("members", "cu_groups", "parent", "outcomes", "labels", "cu_steps"):
        np.testing.assert_array_equal(getattr(apart, name), getattr(trees, name), err_msg=name)


@settings(max_examples=40, deadline=None)
@given(numbered())
def test_trees_of_one_trajectory_each_are_plain_packing(given):
    made, _ = given
    plain = pack(list(enumerate(made)))
    apart = pack(list(enumerate(made)), question=np.arange(len(made)))
    assert plain.paths is None
    assert plain.path_lengths == plain.lengths
    compared = {"cu_groups", "parent", "siblings", "outcomes"}
    for name, value in vars(plain).items():
        if name in compared:
            assert value is None, name
        else:
            np.testing.assert_array_equal(value, getattr(apart, name), err_msg=name)


@settings(max_examples=100, deadline=None)
@given(numbered(), st.integers(7, 20), st.integers(0, 3), st.booleans())
def test_units_hold_each_trajectory_once_within_the_budget(given, budget, epoch, share):
    made, question = given
    numbers = np.arange(100, 100 + len(made))  # trajectories of a data set that are not its first
    units = PackingUnits.questions(numbers, question, lambda i: made[i - 100].input_ids, budget, share=share)
    assert sorted(units.members) == numbers.tolist()
    first_of_units = units.members[np.append(0, units.ends)[:-1]] if made else units.members
    assert units.divided == (np.unique(question[first_of_units - 100], return_counts=True)[1] > 1).sum()
    for start, end, size in zip([0, *units.ends][:-1], units.ends, units.sizes, strict=True):
        own = units.members[start:end] - 100
        assert len(set(question[own])) == 1
        tokens = [made[i].input_ids.tolist() for i in own]
        assert 0 < size == (len(prefixes(tokens)) if share else sum(map(len, tokens))) <= budget
        computed = prefixes(tokens) if share else [t[: n + 1] for t in tokens for n in range(len(t))]
        assert units.tokens_of([members := units.members[start:end]]) == size
        assert units.pairs_of([members]) == sum(map(len, computed))
    batches, in_order = units.batches(budget, epoch=epoch), list(units.batches_in_order(budget))
    assert sorted(i for b in batches for i in b) == numbers.tolist()
    assert [i for b in in_order for i in b] == units.members.tolist()
    for members in (*batches, *in_order):
        pairs = [(i, made[i - 100]) for i in members]
        assert pack(pairs, question=question[members - 100], share=share, pad_to=budget).num_tokens <= budget


def questions_with_solutions(count, each, seed=0):
    """(tokens of each trajectory, question of each): a question of 30 tokens, solutions that branch off each other."""
    rng = np.random.default_rng(seed)
    tokens, question = [], []
    for number in range(count):
        made = [rng.integers(1, 1000, 30)]
        for _ in range(each):
            stem = made[rng.integers(len(made))]
            made.append(np.concatenate([stem[: rng.integers(30, len(stem) + 1)], rng.integers(1, 1000, 40)]))
        tokens += made[1:]
        question += [number] * each
    shuffled = rng.permutation(len(tokens))
    return [tokens[i] for i in shuffled], np.array(question)[shuffled]


def test_questions_stay_whole_and_mix_from_pass_to_pass():
    tokens, question = questions_with_solutions(60, 8)
    units = PackingUnits.questions(np.arange(len(tokens)), question, tokens.__getitem__, 2000, share=True)

    def plan(**options):
        return [sorted(b.tolist()) for b in units.batches(2000, **options)]

    together = {}
    for epoch in range(2):
        batches = plan(epoch=epoch)
        assert batches == plan(epoch=epoch)
        of_batch = [set(question[b]) for b in batches]
        assert sum(map(len, of_batch)) == 60  # no question is in two batches
        together[epoch] = {pair for own in of_batch for pair in combinations(sorted(own), 2)}
    assert len(together[0] & together[1]) < 0.5 * len(together[0])
    assert plan(seed=1) != plan(seed=2)
    filled = units.sizes.sum() / (len(plan()) * 2000)
    assert filled > 0.8


def test_a_question_beyond_the_budget_is_cut_evenly():
    tokens, question = questions_with_solutions(1, 200)
    whole = PackingUnits.questions(np.arange(200), question, tokens.__getitem__, 10**6, share=True)
    assert len(whole.sizes) == 1
    budget = 2000
    units = PackingUnits.questions(np.arange(200), question, tokens.__getitem__, budget, share=True)
    repeated = units.sizes.sum() - whole.sizes[0]
    assert len(units.sizes) >= math.ceil(whole.sizes[0] / budget)
    assert repeated >= 30 * (len(units.sizes) - 1)  # each run has the question once more
    assert units.sizes.min() > 0.8 * units.sizes.max()
    with pytest.raises(ValueError, match=r"a trajectory of \d+ tokens does not fit a budget of 60"):
        PackingUnits.questions(np.arange(200), question, tokens.__getitem__, 60, share=True)


def test_real_solutions_share_a_quarter_of_their_tokens(shared_data, shared_tokenizer):
    """1.34 times fewer tokens, counted as distinct prefixes too."""
    records = list(islice(read_all([shared_data("gsm8k_best_of_4.json")], ReadOptions(), SkipSummary()), 1600))
    tokenizer = load_tokenizer(str(shared_tokenizer))
    question = np.array([question_number(r.prompt) for r in records], dtype=np.uint64)
    joined = tokenizer(["\n".join([r.prompt, *r.steps]) for r in records])["input_ids"]
    ensure_step_token(tokenizer, Template().step_token)
    encoded = [e.input_ids.tolist() for e in Encoder(tokenizer, Template(), 4096)(records)]
    for sequences in (joined, encoded):
        tokens = arrays(sequences)
        units = PackingUnits.questions(np.arange(len(tokens)), question, tokens.__getitem__, 2**20, share=True)
        total, unique = sum(map(len, tokens)), int(units.sizes.sum())
        assert len(units.sizes) == len(set(question.tolist()))
        assert 1.33 < total / unique < 1.37
        sample = set(np.unique(question)[::40].tolist())
        groups = {}
        for own, number in zip(sequences, question.tolist(), strict=True):
            if number in sample:
                groups.setdefault(number, []).append(own)
        counted = {number: len(prefixes(group)) for number, group in groups.items()}
        starts = [0, *units.ends[:-1].tolist()]
        sizes = {int(question[units.members[a]]): int(s) for a, s in zip(starts, units.sizes, strict=True)}
        assert counted == {number: sizes[number] for number in sample}
