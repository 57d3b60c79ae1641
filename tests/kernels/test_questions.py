"""The losses that compare the solutions of a question, in both backends: odd questions, what must not matter, weights.

That they equal their definitions on ordinary and on extreme scores is tested with all other losses.
"""

import itertools
import math

import pytest
import torch
from cases import BACKENDS, OF_QUESTIONS, assert_close, cu_steps_of, define, exact_case, make_case, run
from pqm_kernels import LOSSES, question_losses, siblings, step_loss, trajectory_losses

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's, of NaN

# What is added to another loss; each is computed by other code than the same loss alone.
PAIRS = [("bce", "sibling"), ("rank", "listwise-softmin"), ("rank-theory", "group-rank")]
ALONE_AND_PAIRS = [(loss, None) for loss in OF_QUESTIONS] + PAIRS


def groups_of(sizes, device="cpu"):
    return cu_steps_of(sizes, device)


def case_of(device, lengths, sizes, seed=0, **options):
    case = make_case(device, lengths=lengths, seed=seed, **({"width": 4} | options))
    return case | {"cu_groups": groups_of(sizes, device)}


def assert_defined(case, backend, **options):
    found = run(case, backend=backend, **options)
    assert_close(found, define(case, **options))
    return found


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("loss", "compare"), ALONE_AND_PAIRS)
def test_odd_questions(device, backend, loss, compare):
    """Of one, two and no solutions, and of solutions without steps; the outcomes known, unknown, or from the labels."""
    case = case_of(device, [4, 0, 5, 3, 2, 0], [1, 2, 0, 3])
    options = {"loss": loss, "compare": compare, "compare_weight": -0.7, "temperature": 0.6, "zeta": 2.0}
    assert_defined(case, backend, **options)
    if LOSSES[compare or loss].uses_outcomes:
        assert_defined(case | {"outcomes": None}, backend, **options)
    if compare is None and LOSSES[loss].uses_outcomes:
        for outcome in (0.0, 1.0, math.nan) if backend == "eager" else (math.nan,):  # none right, all right, none known
            found = assert_defined(case | {"outcomes": torch.full((6,), outcome, device=device)}, backend, **options)
            assert found["loss"] == 0
            assert not found["hidden"].any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("loss", "compare"), ALONE_AND_PAIRS)
def test_a_long_solution_in_a_question(device, backend, loss, compare):
    """Its steps are scored by several programs, of which the last one, or that of another solution, sees them all."""
    case = case_of(device, [3, 66, 2, 5], [3, 1], rows=30)
    case["trajectory_weights"] = torch.tensor([0.5, 2.0, 0.3, 1.5], device=device)
    assert_defined(case, backend, loss=loss, compare=compare)


@pytest.mark.parametrize("loss", ["sibling", "group-rank", "listwise-softmin"])
@pytest.mark.parametrize("count", [20, pytest.param(500, marks=pytest.mark.slow)])
def test_many_solutions(device, loss, count):
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(3, 9, (count,), generator=generator).tolist()
    case = case_of(device, lengths, [count], rows=300, width=2)
    case["parent"] = torch.randint(count // 2, case["parent"].shape, generator=generator).to(device)
    assert_defined(case, "triton", loss=loss)


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_prefix_of_two_questions_is_two(device, backend):
    """Numbers of prefixes count within a question."""
    case = case_of(device, [2, 2], [1, 1], norm=False)
    case |= {"parent": torch.zeros(4, dtype=torch.int64, device=device), "labels": torch.ones(4, device=device)}
    case["labels"][:2] = 0
    assert run(case, backend=backend, loss="sibling")["loss"] == 0
    assert run(case | {"cu_groups": groups_of([2], device)}, backend=backend, loss="sibling")["loss"] > 0


def permuted(case, order):
    """The case with its solutions in this order, and the steps of each where it has them now."""
    ends = case["cu_steps"].tolist()
    steps = torch.tensor([t for b in order for t in range(ends[b], ends[b + 1])], device=case["labels"].device)
    moved = {name: case[name][steps] for name in ("step_index", "labels", "parent")}
    moved["outcomes"] = case["outcomes"][torch.tensor(order, device=steps.device)]
    return case | moved | {"cu_steps": cu_steps_of([ends[b + 1] - ends[b] for b in order], steps.device)}, steps.cpu()


@pytest.mark.parametrize(
    ("backend", "loss"), [*(("eager", loss) for loss in OF_QUESTIONS), ("triton", "sibling"), ("triton", "group-rank")]
)
def test_solutions_and_questions_in_any_order(device, backend, loss):
    case = case_of(device, [3, 2, 4, 5, 2], [3, 2])
    moved, steps = permuted(case, [4, 3, 1, 2, 0])
    moved["cu_groups"] = groups_of([2, 3], device)
    before, after = (run(one, backend=backend, loss=loss) for one in (case, moved))
    before["q"] = before["q"][steps]
    assert_close(after, before | {"terms": define(case, loss=loss)["terms"]}, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", OF_QUESTIONS)
@pytest.mark.parametrize("place", [1e4, -1e4])
def test_solutions_that_differ_by_less_than_their_scores_round(device, backend, loss, place):
    """In a solution of forty steps that two others repeat but for a little."""
    generator = torch.Generator().manual_seed(1)
    base = place + torch.rand(40, generator=generator).mul(16).round() / 16
    q = torch.cat([base, base + torch.arange(40) % 5 / 32, base.flip(0) - 1 / 64])
    case = exact_case(q, torch.randint(0, 2, (120,), generator=generator).float(), [40] * 3, device)
    case["outcomes"] = torch.tensor([1.0, 0.0, 1.0], device=device)
    options = {"loss": loss, "temperature": 0.7}
    found, expected = run(case, backend=backend, needs=("hidden",), **options), define(case, **options)
    assert_close(found, expected | {"terms": {}}, 1e-5)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", OF_QUESTIONS)
def test_tiny_losses_between_solutions(device, backend, loss):
    """A gap of 40 between right and wrong."""
    q, labels = torch.tensor([20.0, 20.5, -20.0, 20.25, -24.5, -25.0]), torch.tensor([1.0, 1, 0, 1, 0, 0])
    case = exact_case(q, labels, [2, 2, 2], device)
    case |= {"parent": torch.zeros(6, dtype=torch.int64, device=device), "outcomes": None}
    found = run(case, backend=backend, needs=("hidden",), loss=loss, zeta=0.3)
    expected = define(case, loss=loss, zeta=0.3)
    assert loss == "group-rank" or 0 < expected["loss"] < 1e-6
    assert_close(found, expected | {"terms": {}}, 1e-5)


def copies(case, of_steps, of_solutions):
    """The case in which each step and each solution is there that often, instead of weighing it."""
    ends, groups = case["cu_steps"].tolist(), case["cu_groups"].tolist()
    steps, lengths, sizes, outcomes = [], [], [], []
    for first, last in itertools.pairwise(groups):
        solutions = [b for b in range(first, last) for _ in range(int(of_solutions[b]))]
        sizes.append(len(solutions))
        for b in solutions:
            repeated = [t for t in range(ends[b], ends[b + 1]) for _ in range(int(of_steps[t]))]
            steps += repeated
            lengths.append(len(repeated))
            outcomes.append(case["outcomes"][b])
    device = case["labels"].device
    index = torch.tensor(steps, device=device)
    copied = {name: case[name][index] for name in ("step_index", "labels", "parent")}
    copied |= {"cu_steps": cu_steps_of(lengths, device), "cu_groups": groups_of(sizes, device)}
    return case | copied | {"outcomes": torch.stack(outcomes)}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("loss", "compare"), [*ALONE_AND_PAIRS, ("mse", None), ("first-error", None), ("crm", "listwise")]
)
def test_a_weight_counts_copies(device, backend, loss, compare):
    case = case_of(device, [3, 2, 4, 5, 2, 3], [3, 1, 2], seed=1)
    case["outcomes"] = torch.tensor([1.0, 0, 1, 0, 0, 1], device=device)
    of_solutions = torch.tensor([2.0, 0, 1, 3, 1, 2], device=device)
    of_steps = torch.ones(19, device=device)
    weighted = case | {"trajectory_weights": of_solutions}
    if LOSSES[loss].weighs_steps and (compare is None or LOSSES[compare].weighs_steps):
        of_steps = torch.tensor([1.0, 2, 0, 1, 3] * 3 + [2.0, 1, 0, 1], device=device)
        if loss == "first-error":  # a copy of the first wrong step would not be read
            of_steps = torch.where(case["labels"] > 0.5, of_steps, 1.0)
        weighted["step_weights"] = of_steps
    options = {"loss": loss, "compare": compare, "normalizer": 5, "backend": backend}
    found = assert_defined(weighted, **options)
    if backend == "eager":
        expected = run(copies(case, of_steps, of_solutions), **options)
        del expected["q"], found["q"], options["backend"]
        assert_close(found, expected | {"terms": define(weighted, **options)["terms"]}, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", OF_QUESTIONS)
def test_wrong_solutions_of_no_weight(device, backend, loss):
    """They add nothing, and have gradient 0 however large their scores are."""
    q = torch.tensor([1.0, 0.5, 90.0, -90.0, 1e30, 0.25])
    case = exact_case(q, torch.tensor([1.0, 1, 0, 0, 0, 1]), [2, 2, 1, 1], device)
    case |= {"cu_groups": groups_of([4], device), "parent": torch.zeros(6, dtype=torch.int64, device=device)}
    case["outcomes"] = torch.tensor([1.0, 0, 0, 1], device=device)
    case["trajectory_weights"] = torch.tensor([1.0, 0, 0, 1], device=device)
    kept = run(case, backend=backend, needs=("hidden",), loss=loss, normalizer=1.0)
    assert kept["loss"].isfinite()
    assert not kept["hidden"][2:5].any()
    without = {"parent": case["parent"][:3], "outcomes": case["outcomes"][[0, 3]], "trajectory_weights": None}
    rows = [0, 1, 5]
    alone = case | without | {"cu_groups": groups_of([2], device), "cu_steps": cu_steps_of([2, 1], device)}
    alone |= {name: case[name][rows] for name in ("step_index", "labels")}
    expected = run(alone, backend=backend, needs=("hidden",), loss=loss, normalizer=1.0)
    torch.testing.assert_close(kept["hidden"], expected["hidden"], rtol=1e-6, atol=0)
    torch.testing.assert_close(kept["loss"], expected["loss"], rtol=1e-6, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", ["sibling", "group-rank", "group-contrastive", "listwise"])
def test_weights_below_one_with_large_scores(device, backend, loss):
    """Where 1 + N, with N of little weight, is not a rounded logarithm away from a chain."""
    generator = torch.Generator().manual_seed(2)
    q = 1e4 + torch.rand(12, generator=generator)
    case = exact_case(q, torch.tensor([0.0, 1, 1, 0, 1, 1, 0, 1, 1, 1, 1, 0]), [4, 4, 4], device)
    case |= {"trajectory_weights": torch.tensor([0.01, 0.3, 0.002], device=device)}
    found = run(case, backend=backend, needs=("hidden",), loss=loss)
    assert_close(found, define(case, loss=loss) | {"terms": {}}, 1e-5)


@pytest.mark.gpu  # elsewhere each call gets new counters
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("loss", "compare"), [("sibling", None), *PAIRS])
def test_a_bad_score_leaves_the_next_call_alone(device, backend, loss, compare):
    case = case_of(device, [3, 70, 4, 2, 5], [3, 2], rows=90)
    clean = run(case, backend=backend, loss=loss, compare=compare)
    for bad in (math.nan, math.inf):
        broken = case | {"hidden": case["hidden"].clone()}
        broken["hidden"][case["step_index"][5]] = bad
        assert run(broken, backend=backend, loss=loss, compare=compare)["loss"].isnan()
    after = run(case, backend=backend, loss=loss, compare=compare)
    assert all(after[name].equal(clean[name]) for name in clean)


@pytest.mark.parametrize("backend", BACKENDS)
def test_siblings_made_ahead(device, backend):
    case = case_of(device, [3, 20, 0, 2, 5], [3, 2])
    ahead = siblings(case["parent"], case["cu_steps"], case["cu_groups"])
    assert all(part.dtype == torch.int32 for part in ahead)
    for position, step in enumerate(ahead.order.tolist()):
        question = int(step >= case["cu_steps"][3])
        first_step, end = (int(case["cu_steps"][b]) for b in ((0, 3), (3, 5))[question])
        alike = [t for t in range(first_step, end) if case["parent"][t] == case["parent"][step]]
        assert ahead.order[ahead.first[position] : ahead.end[position]].tolist() == alike
    made = run(case, backend=backend, loss="sibling")
    for given in ({}, {"parent": None}):
        found = run(case | given, backend=backend, loss="sibling", siblings=ahead)
        assert all(found[name].equal(made[name]) for name in made)


def test_question_losses_sum_to_the_loss():
    case = case_of("cpu", [3, 2, 4, 0, 5], [2, 0, 3])
    out = step_loss(**case, loss="sibling", normalizer=1.0)
    losses = question_losses(out.q, case["labels"], case["cu_steps"], case["cu_groups"], parent=case["parent"])
    assert losses.shape == (3,)
    assert losses[1] == 0
    assert losses.sum() == pytest.approx(out.loss.item(), rel=1e-6)
    with pytest.raises(ValueError, match="'bce' is a loss of trajectories: call trajectory_losses"):
        question_losses(out.q, case["labels"], case["cu_steps"], case["cu_groups"], "bce")
    for temperature in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match="temperature must be"):
            question_losses(
                out.q, case["labels"], case["cu_steps"], case["cu_groups"], "listwise-softmin", temperature=temperature
            )


def test_the_latent_first_error_without_noise_is_the_first_error():
    labels = torch.tensor([1.0, 1, 0, 0, 1, 1, 1, 0, 1])
    q, cu_steps = torch.linspace(-3, 4, 9, dtype=torch.float64), torch.tensor([0, 4, 7, 8, 9])
    found = trajectory_losses(q, labels, cu_steps, "first-error-noisy", noise=(0.0, 0.0))
    torch.testing.assert_close(found, trajectory_losses(q, labels, cu_steps, "first-error"), rtol=1e-9, atol=1e-9)


def test_the_latent_first_error_without_noise_in_triton(device):
    labels, lengths = torch.tensor([1.0, 1, 0, 0, 1, 1, 1, 0, 1]), [4, 3, 1, 1]
    case = exact_case(torch.linspace(-3, 4, 9), labels, lengths, device)
    found = run(case, backend="triton", needs=("hidden",), loss="first-error-noisy", noise=(0.0, 0.0))
    assert_close(found, define(case, loss="first-error"))


@pytest.mark.parametrize("num_steps", [1, 3, 6])
def test_probabilities_of_all_labels_sum_to_one(num_steps):
    every = torch.tensor(list(itertools.product((0.0, 1.0), repeat=num_steps)))
    q = torch.linspace(-2, 1.5, num_steps, dtype=torch.float64).repeat(len(every))
    cu_steps = torch.arange(len(every) + 1) * num_steps
    losses = trajectory_losses(q, every.flatten(), cu_steps, "first-error-noisy", noise=(0.05, 0.3))
    assert torch.exp(-losses).sum().item() == pytest.approx(1.0, rel=1e-12)
