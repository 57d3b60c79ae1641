"""Hard scores, exact in float32: tiny losses, large margins, scores of 1e4. And half precision.

test_reference_precision.py has the same for the losses of trajectories in plain PyTorch, and so in the eager backend.
"""

import itertools

import pytest
import torch
from cases import BACKENDS, INPUTS, OF_QUESTIONS, OF_TRAJECTORIES, define, errors, exact_case, make_case, run
from pqm_kernels import LOSSES

# Eager computes losses in float64, so that only the result is rounded.
TOLERANCE = {"eager": 1e-6, "triton": 1e-5}
SHORT = [[1], [0], [1, 1, 1], [0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1, 1]]
# With equal rates two places of the first error can explain labels equally well: then a gradient is exactly 0.
NOISE = (0.05, 0.2)
TINY = torch.finfo(torch.float32).tiny

# The interpreter's, in lanes that are not taken.
pytestmark = pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning")

EVERY_LOSS = [*(("triton", loss) for loss in LOSSES), *(("eager", loss) for loss in OF_QUESTIONS)]
every_loss = pytest.mark.parametrize(("backend", "loss"), EVERY_LOSS)


def labels_of(trajectories):
    return torch.tensor(list(itertools.chain(*trajectories)), dtype=torch.float32), [len(y) for y in trajectories]


def random_labels(generator, lengths):
    return [torch.randint(0, 2, (length,), generator=generator).tolist() for length in lengths]


def assert_exact(q, labels, lengths, loss, zeta, device, backend):
    """The loss, relative to itself, and the gradient by each score, relative to the largest of its trajectory, or
    question."""
    case = exact_case(q, labels, lengths, device)
    options = {"loss": loss, "zeta": zeta, "normalizer": 1, "noise": NOISE}
    expected, found = define(case, **options), run(case, backend=backend, needs=("hidden",), **options)
    tolerance = TOLERANCE[backend]
    assert (found["loss"] - expected["loss"]).abs() <= tolerance * expected["loss"].abs() + TINY, (found, expected)
    assert found["q"].equal(q.float().double())
    ends = case["cu_steps"] if LOSSES[loss].unit == "trajectory" else case["cu_steps"][case["cu_groups"].long()]
    for b, steps in enumerate(itertools.pairwise(ends.tolist())):
        if steps[0] < steps[1]:
            of_b, here = found["hidden"][slice(*steps)], expected["hidden"][slice(*steps)]
            assert (of_b - here).abs().max() <= tolerance * here.abs().max() + TINY, (b, of_b, here)
    return expected


@pytest.mark.parametrize(
    ("backend", "loss", "scale", "zeta"),
    [
        (backend, loss, scale, zeta)
        for backend, loss in EVERY_LOSS
        for scale, zeta in [(0.1, 1e3), (1000, 0.3), *([(10, 0.0)] if loss == "rank" else [])]
    ],
)
def test_scales(device, backend, loss, zeta, scale):
    generator = torch.Generator().manual_seed(0)
    labels, lengths = labels_of([*random_labels(generator, [2, 40]), [1] * 4, [0] * 4])
    q = scale * torch.randn(len(labels), generator=generator)
    assert_exact(q, labels, lengths, loss, zeta, device, backend)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if LOSSES[loss].soft_labels])
@pytest.mark.parametrize("scale", [0.1, 30, 1000])
def test_soft_labels(device, loss, scale):
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(43, generator=generator)
    q = scale * torch.randn(43, generator=generator)
    assert_exact(q, labels, [0, 1, 2, 40], loss, 4.0, device, "triton")


@pytest.mark.parametrize(
    ("loss", "zeta"),
    [(loss, zeta) for loss in OF_TRAJECTORIES for zeta in ((0.3, 1e3) if LOSSES[loss].uses_zeta else (4.0,))],
)
def test_tiny_losses(device, loss, zeta):
    """Scores in the right order and 20 apart, wrong ones by zeta more. (Between solutions: test_questions.py.)"""
    # orm counts a solution that ends with a correct step after a wrong one as wrong. Noise explains any label.
    trajectories = [y for y in SHORT if loss != "orm" or y[-1] == min(y)]
    scores = []
    for trajectory in trajectories:
        for t, label in enumerate(trajectory):
            place = 20.0 * (1 + trajectory[:t].count(label))
            scores.append(place if label else -place - zeta)
    labels, lengths = labels_of(trajectories)
    expected = assert_exact(torch.tensor(scores), labels, lengths, loss, zeta, device, "triton")
    assert (expected["loss"] < 1e-8 * len(trajectories)) == (loss != "first-error-noisy")


@pytest.mark.parametrize("loss", ["rank", "crm", "bce", "mse", "first-error-noisy"])
def test_confident_and_wrong(device, loss):
    """Far on the wrong side, where the gradient of mse is e^-|q|."""
    labels, lengths = labels_of(SHORT)
    q = torch.linspace(20, 40, len(labels)) * (1 - 2 * labels)
    assert_exact(q, labels, lengths, loss, 4.0, device, "triton")


@every_loss
@pytest.mark.parametrize(("sign", "spread", "zeta"), [(1, 1, 0.3), (-1, 0, 1e3)])
def test_extreme_scores(device, backend, loss, zeta, sign, spread):
    """Around 1e4 or -1e4, all alike or so close that each counts in a log-sum-exp; labels alike or mixed."""
    generator = torch.Generator().manual_seed(2)
    labels, lengths = labels_of([[1] * 4, [0] * 4, *random_labels(generator, (36,))])
    q = sign * (1e4 - spread * torch.rand(labels.shape, generator=generator))
    assert_exact(q, labels, lengths, loss, zeta, device, backend)


def test_crm_is_smooth_where_its_series_begin(device):
    """One wrong step, scores close together: the thresholds inside log(1 - e^-H) are crossed."""
    q = torch.linspace(-20, 40, 61)
    assert_exact(q, torch.zeros(61), [1] * 61, "crm", 0.0, device, "triton")


@pytest.mark.parametrize(
    "dtype",  # the interpreter truncates where a GPU rounds to bfloat16
    [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("loss", "norm", "head"),
    [(loss, number % 2 > 0, ("float32", "half")[number // 2 % 2]) for number, loss in enumerate(LOSSES)],
)
def test_half_precision(device, backend, dtype, norm, head, loss):
    """Loss and scores are as good as in float32; a gradient errs by its rounding, and at most twice what eager does."""
    case = make_case(device, width=72, dtype=dtype, seed=3, norm=norm)
    if head == "half":
        case |= {name: case[name].to(dtype) for name in INPUTS if case[name] is not None}
    expected = define(case, loss=loss)
    found = errors(run(case, backend=backend, loss=loss), expected)
    eager = errors(run(case, backend="eager", loss=loss), expected)
    # Eager computes its losses in float64; what float32 may cost there is held to 1e-5, as without half precision.
    assert all(found[name] <= 2 * eager[name] + 1e-5 for name in found), (found, eager)
    for name, error in found.items():
        assert error <= 1e-5 + (torch.finfo(case[name].dtype).eps if name in INPUTS else 0.0), name
