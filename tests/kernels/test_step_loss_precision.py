"""Hard scores, exact in float32: tiny losses, large margins, scores of 1e4. And half precision."""

import itertools

import pytest
import torch
from cases import BACKENDS, INPUTS, define, errors, exact_case, make_case, run
from pqm_kernels import LOSSES

# Eager computes losses in float64, so that only the result is rounded.
TOLERANCE = {"eager": 1e-6, "triton": 1e-5}
SHORT = [[1], [0], [1, 1, 1], [0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1, 1], [1, 0], [0, 1]]
# With equal rates two places of the first error can explain labels equally well: then a gradient is exactly 0.
NOISE = (0.05, 0.2)
TINY = torch.finfo(torch.float32).tiny

pytestmark = [
    pytest.mark.parametrize("backend", BACKENDS),
    pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning"),  # the interpreter's, in lanes that are not taken
]


def losses_with(*margins):
    """Each loss with each zeta that it looks at."""
    pairs = [(loss, zeta) for loss in LOSSES for zeta in (margins if LOSSES[loss].uses_zeta else margins[:1])]
    return pytest.mark.parametrize(("loss", "zeta"), pairs)


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


@losses_with(0.0, 0.3, 4.0, 1e3)
@pytest.mark.parametrize("scale", [0.1, 10, 1000])
def test_scales(device, backend, loss, zeta, scale):
    generator = torch.Generator().manual_seed(0)
    labels, lengths = labels_of([*random_labels(generator, [2, 66]), [1] * 9, [0] * 9])
    q = scale * torch.randn(len(labels), generator=generator)
    assert_exact(q, labels, lengths, loss, zeta, device, backend)


@pytest.mark.parametrize("loss", [loss for loss in LOSSES if LOSSES[loss].soft_labels])
@pytest.mark.parametrize("scale", [0.1, 3, 30, 1000])
def test_soft_labels(device, backend, loss, scale):
    generator = torch.Generator().manual_seed(1)
    labels = torch.rand(93, generator=generator)
    q = scale * torch.randn(93, generator=generator)
    assert_exact(q, labels, [0, 1, 2, 20, 70], loss, 4.0, device, backend)


@losses_with(0.3, 1e3)
def test_tiny_losses(device, backend, loss, zeta):
    """Scores in the right order and 20 apart, wrong ones by zeta more."""
    for trajectory in SHORT:
        scores = []
        for t, label in enumerate(trajectory):
            place = 20.0 * (1 + trajectory[:t].count(label))
            scores.append(place if label else -place - zeta)
        labels, lengths = labels_of([trajectory])
        expected = assert_exact(torch.tensor(scores), labels, lengths, loss, zeta, device, backend)
        # orm counts a solution that ends with a correct step after a wrong one as wrong. Noise explains any label.
        recovers = 0 in trajectory and trajectory[-1] == 1
        assert (expected["loss"] < 1e-8) == (loss != "first-error-noisy" and not (loss == "orm" and recovers))


@pytest.mark.parametrize("loss", LOSSES)
def test_confident_and_wrong(device, backend, loss):
    """Far on the wrong side, where the gradient of mse is e^-|q|."""
    labels, lengths = labels_of(SHORT)
    q = torch.linspace(20, 40, len(labels)) * (1 - 2 * labels)
    assert_exact(q, labels, lengths, loss, 4.0, device, backend)


@losses_with(0.3, 1e3)
@pytest.mark.parametrize("sign", [1, -1, 0])
@pytest.mark.parametrize("spread", [0, 1])
def test_extreme_scores(device, backend, loss, zeta, sign, spread):
    """Around 1e4, -1e4 or both, all alike or so close that each counts in a log-sum-exp; labels alike or mixed."""
    generator = torch.Generator().manual_seed(2)
    labels, lengths = labels_of([[1] * 9, [0] * 9, *random_labels(generator, (2, 40))])
    signs = torch.full_like(labels, sign) if sign else torch.randint(0, 2, labels.shape, generator=generator) * 2 - 1
    q = signs * (1e4 - spread * torch.rand(labels.shape, generator=generator))
    assert_exact(q, labels, lengths, loss, zeta, device, backend)


def test_crm_is_smooth_where_its_series_begin(device, backend):
    """One wrong step, scores close together: the thresholds inside log(1 - e^-H) are crossed."""
    q = torch.linspace(-20, 40, 121)
    assert_exact(q, torch.zeros(121), [1] * 121, "crm", 0.0, device, backend)


@pytest.mark.parametrize(
    "dtype",  # the interpreter truncates where a GPU rounds to bfloat16
    [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("head", ["float32", "half"])
@pytest.mark.parametrize("loss", LOSSES)
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
