"""Every loss in plain PyTorch against its definition: values and gradients, of tiny losses and extreme scores too."""

import itertools
import math

import pytest
import torch
from cases import OF_TRAJECTORIES
from definitions import trajectory_definitions
from pqm_kernels import LOSSES, trajectory_losses
from pqm_kernels.fused_step_loss import reference

# Twice and more what rounding the result to float32 costs; in float64, what scores of 1e4 leave of 16 digits.
TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-10}
LOSS_AND_ZETA = [
    (loss, zeta) for loss in OF_TRAJECTORIES for zeta in ((0.3, 1e3) if LOSSES[loss].uses_zeta else (4.0,))
]
SHORT = [[1], [0], [1, 1, 1], [0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1, 1], [1, 0], [0, 1]]


@pytest.fixture
def device():
    return "cuda" if torch.cuda.is_available() else "cpu"


def evaluate(function, q, labels, cu_steps, loss, zeta):
    """Values [B] and the gradient of their sum by q."""
    leaf = q.detach().clone().requires_grad_()
    # With equal rates two places of the first error can explain labels equally well: then a gradient is exactly 0.
    values = function(leaf, labels, cu_steps, loss, zeta, noise=(0.05, 0.2))
    return values.detach(), torch.autograd.grad(values.sum(), leaf)[0]


def assert_exact(q, labels, cu_steps, loss, zeta, device):
    """In float32 and float64: values relative to themselves, gradients to the largest of their trajectory."""
    # The definition sees the same numbers: those of float32.
    expected, expected_gradient = evaluate(trajectory_definitions, q.float().double(), labels, cu_steps, loss, zeta)
    for dtype, tolerance in TOLERANCE.items():
        inputs = [tensor.to(device) for tensor in (q.float().to(dtype), labels, cu_steps)]
        found, gradient = evaluate(trajectory_losses, *inputs, loss, zeta)
        assert found.dtype == gradient.dtype == dtype
        tiny = torch.finfo(dtype).tiny
        torch.testing.assert_close(found.cpu().double(), expected, rtol=tolerance, atol=tiny)
        for b, (begin, end) in enumerate(itertools.pairwise(cu_steps.tolist())):
            if begin < end:
                here = expected_gradient[begin:end]
                error = (gradient[begin:end].cpu().double() - here).abs().max()
                assert error <= tolerance * here.abs().max() + tiny, (b, dtype, gradient[begin:end], here)
    return expected


def batch_of(trajectories):
    """Labels and cu_steps."""
    lengths = torch.tensor([0] + [len(labels) for labels in trajectories])
    return torch.tensor(list(itertools.chain(*trajectories)), dtype=torch.float32), lengths.cumsum(0)


def random_trajectories(generator):
    lengths = [0, 1, 2, 17, 70]
    mixed = [torch.randint(0, 2, (length,), generator=generator).tolist() for length in lengths]
    return [*mixed, [1] * 5, [0] * 5]


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        ("rank", 2.1076964609396853),
        ("rank-theory", 1.9865429850208227),
        ("rank-first-error", 1.0991216060056341),
        ("pairwise", 1.1795109294025137),
        ("crm", 0.8142924856322789),
        ("bce", 2.8770771087350453),
        ("mse", 1.006401904905454),
        ("orm", 0.38687100611489994),
        ("first-error", 0.78733867169832952),
        ("first-error-noisy", 5.4377153302273016),
    ],
)
def test_known_values(loss, value):
    """The formulas of docs/explanation/method.md as they stand there, with plain exponentials, to 50 digits."""
    q = torch.tensor([0.5, -1.0, 2.0, 0.25, -0.75], dtype=torch.float64)
    labels, cu_steps = torch.tensor([1, 0, 1, 0, 1]), torch.tensor([0, 5])
    for function in (trajectory_definitions, trajectory_losses):
        assert function(q, labels, cu_steps, loss, 1.5).item() == pytest.approx(value, rel=1e-14)


@pytest.mark.parametrize("loss", OF_TRAJECTORIES)
@pytest.mark.parametrize(("scale", "zeta"), [(0.1, 1e3), (3, 0.0), (30, 0.3), (1000, 4.0)])
def test_random_labels(loss, zeta, scale, device, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    labels, cu_steps = batch_of(random_trajectories(generator))
    q = scale * torch.randn(len(labels), generator=generator, dtype=torch.float64)
    if scale > 1:
        monkeypatch.setattr(reference, "SMALL_BATCH", 0)  # padded in groups of like length
    assert_exact(q, labels, cu_steps, loss, zeta, device)


@pytest.mark.parametrize("loss", [loss for loss in OF_TRAJECTORIES if LOSSES[loss].soft_labels])
@pytest.mark.parametrize("scale", [0.1, 3, 30, 1000])
def test_soft_labels(loss, scale, device):
    generator = torch.Generator().manual_seed(1)
    labels, cu_steps = batch_of(random_trajectories(generator))
    labels = torch.rand(len(labels), generator=generator)
    q = scale * torch.randn(len(labels), generator=generator, dtype=torch.float64)
    assert_exact(q, labels, cu_steps, loss, 4.0, device)


@pytest.mark.parametrize(("loss", "zeta"), LOSS_AND_ZETA)
def test_tiny_losses(loss, zeta, device):
    """Scores in the right order and 20 apart, wrong ones by zeta more."""
    scores = []
    for trajectory in SHORT:
        for t, label in enumerate(trajectory):
            place = 20.0 * (1 + trajectory[:t].count(label))
            scores.append(place if label else -place - zeta)
    expected = assert_exact(torch.tensor(scores), *batch_of(SHORT), loss, zeta, device)
    # orm counts a solution that ends with a correct step after a wrong one as wrong, and two of these do. With noise no
    # labels are certain.
    assert (expected < 1e-8).sum() == {"orm": len(SHORT) - 2, "first-error-noisy": 0}.get(loss, len(SHORT))


@pytest.mark.parametrize("loss", OF_TRAJECTORIES)
def test_confident_and_wrong(loss, device):
    """Far on the wrong side, where the gradient of mse is e^-|q|."""
    labels, cu_steps = batch_of(SHORT)
    q = torch.linspace(20, 40, len(labels)) * (1 - 2 * labels)
    assert_exact(q, labels, cu_steps, loss, 4.0, device)


@pytest.mark.parametrize("loss", OF_TRAJECTORIES)
@pytest.mark.parametrize(
    ("sign", "spread", "zeta"), [(1, 0, 0.3), (1, 1, 4.0), (-1, 0, 1e3), (-1, 1, 0.0), (0, 0, 4.0), (0, 1, 0.3)]
)
def test_extreme_scores(loss, zeta, sign, spread, device):
    """Around 1e4, -1e4 or both, all alike or so close that each counts in a log-sum-exp; labels alike or mixed."""
    generator = torch.Generator().manual_seed(2)
    mixed = [torch.randint(0, 2, (length,), generator=generator).tolist() for length in (2, 3, 25)]
    labels, cu_steps = batch_of([[1], [0], [1] * 9, [0] * 9, *mixed])
    signs = torch.full_like(labels, sign) if sign else torch.randint(0, 2, labels.shape, generator=generator) * 2 - 1
    q = signs * (1e4 - spread * torch.rand(labels.shape, generator=generator))
    assert_exact(q, labels, cu_steps, loss, zeta, device)


def test_crm_is_smooth_where_its_series_begin(device):
    """One wrong step, scores close together: both thresholds inside log(1 - e^-H) are crossed."""
    q = torch.linspace(-20, 40, 301)
    assert_exact(q, torch.zeros(301), torch.arange(302), "crm", 0.0, device)


def test_crm_where_the_outcome_underflows():
    """The hazards are e^-1e4: their sum is 0 in any dtype, the loss is 1e4 - log 2 + 1e4."""
    loss, gradient = evaluate(
        trajectory_losses, torch.full((2,), 1e4), torch.tensor([1, 0]), torch.tensor([0, 2]), "crm", 0.0
    )
    assert loss.item() == pytest.approx(2e4 - math.log(2), rel=1e-7)
    torch.testing.assert_close(gradient, torch.tensor([0.5, 1.5]))
