"""The losses in plain PyTorch against their definitions, term by term in 50-digit arithmetic."""

import itertools
import math

import mpmath
import pytest
import torch
from pqm_kernels import LOSSES, reference, trajectory_losses

mpmath.mp.dps = 50
TRAJECTORY_LABELS = [
    [],
    [1],
    [0],
    [1, 1, 1, 1],
    [0, 0, 0],
    [1, 1, 0, 0],
    [0, 1],
    [1, 0, 1, 1, 0, 1, 0],
    [0, 0, 1, 0, 1, 1, 1, 1],
]


def exp(x):
    return mpmath.exp(x)


def log(x):
    return mpmath.log(x)


def softplus(x):
    return mpmath.log1p(mpmath.exp(x))


def mean(terms):
    return sum(terms) / len(terms) if terms else mpmath.mpf(0)


def split(y):
    return [t for t, label in enumerate(y) if label], [t for t, label in enumerate(y) if not label]


def rank_terms(q, correct, negatives):
    terms = [log(1 + sum(exp(q[k]) for k in correct if k <= c) + negatives) - q[c] for c in correct]
    return terms + ([log(1 + negatives)] if negatives else [])


def define_rank(q, y, zeta):
    correct, wrong = split(y)
    return mean(rank_terms(q, correct, sum(exp(q[w] + zeta) for w in wrong)))


def define_rank_theory(q, y, zeta):
    correct, wrong = split(y)
    terms = rank_terms(q, correct, sum(exp(q[w] + zeta) for w in wrong))
    terms += [log(sum(exp(q[k]) for k in wrong if k >= w)) - q[w] for w in wrong[:-1]]
    return mean(terms)


def define_rank_first_error(q, y, zeta):
    correct, wrong = split(y)
    return mean(rank_terms(q, correct, exp(q[wrong[0]]) if wrong else 0))


def define_pairwise(q, y, zeta):
    correct, wrong = split(y)
    terms = [softplus(q[a] - q[b]) for a, b in itertools.combinations(correct, 2)]  # later above earlier
    terms += [softplus(0 - q[c]) for c in correct]
    terms += [softplus(q[w] + zeta - 0) for w in wrong]
    terms += [softplus(q[w] + zeta - q[c]) for c in correct for w in wrong]
    terms += [softplus(q[b] - q[a]) for a, b in itertools.combinations(wrong, 2)]  # earlier above later
    return mean(terms)


def define_crm(q, y, zeta):
    hazard = [softplus(-score) for score in q]
    if all(y):
        return sum(hazard, mpmath.mpf(0))
    z = y.index(0)
    return -log(-mpmath.expm1(-sum(hazard))) + softplus(q[z]) + sum(hazard[:z])


def cross_entropy(score, label):
    return label * softplus(-score) + (1 - label) * softplus(score)


def define_bce(q, y, zeta):
    return sum((cross_entropy(*pair) for pair in zip(q, y, strict=True)), mpmath.mpf(0))


def define_mse(q, y, zeta):
    return sum(((1 / (1 + exp(-score)) - label) ** 2 for score, label in zip(q, y, strict=True)), mpmath.mpf(0))


def define_orm(q, y, zeta):
    return cross_entropy(q[-1], int(all(y))) if q else mpmath.mpf(0)


DEFINITIONS = {
    "rank": define_rank,
    "rank-theory": define_rank_theory,
    "rank-first-error": define_rank_first_error,
    "pairwise": define_pairwise,
    "crm": define_crm,
    "bce": define_bce,
    "mse": define_mse,
    "orm": define_orm,
}


def define(loss, q, labels, cu_steps, zeta):
    """The definition of each trajectory, [B] float64."""
    bounds = list(itertools.pairwise(cu_steps.tolist()))
    q, labels = [mpmath.mpf(score) for score in q.tolist()], labels.tolist()
    values = [float(DEFINITIONS[loss](q[a:b], labels[a:b], mpmath.mpf(zeta))) for a, b in bounds]
    return torch.tensor(values, dtype=torch.float64)


def make_batch(seed, scale, trajectories=TRAJECTORY_LABELS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([label for trajectory in trajectories for label in trajectory], dtype=dtype)
    cu_steps = torch.tensor([0] + [len(t) for t in trajectories], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    q = scale * torch.randn(len(labels), generator=generator, dtype=dtype)
    return q.clamp(-1e4, 1e4), labels, cu_steps


def test_definitions_cover_the_table():
    assert list(DEFINITIONS) == list(LOSSES)
    assert {name for name in LOSSES if LOSSES[name].soft_labels} == {"bce", "mse"}
    assert {name for name in LOSSES if LOSSES[name].normalised_by == "steps"} == {"bce", "mse"}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("scale", "zeta"), [(1, 4.0), (1, 0.0), (30, 4.0), (3, 1e3), (1e4, 4.0), (1e4, 1e3)])
def test_matches_the_definition(loss, scale, zeta):
    q, labels, cu_steps = make_batch(0, scale)
    expected = define(loss, q, labels, cu_steps, zeta)
    # The ranking losses keep small terms; the others round them to the 1 or the score that they are added to.
    tiny = 1e-30 if loss.startswith("rank") or loss == "pairwise" else 0.0
    found = trajectory_losses(q, labels, cu_steps, loss, zeta)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=tiny or 1e-12)
    single = trajectory_losses(q.float(), labels, cu_steps, loss, zeta)
    assert single.dtype == torch.float32
    expected = define(loss, q.float(), labels, cu_steps, zeta)
    torch.testing.assert_close(single.double(), expected, rtol=2e-6, atol=tiny or 1e-6)


@pytest.mark.parametrize("loss", ["rank", "rank-theory", "rank-first-error"])
def test_small_terms_are_exact(loss):
    """Scores far apart in the right order: terms and gradients near 1e-8 keep all their digits in float32."""
    labels, cu_steps = torch.tensor([1, 0, 0, 1, 0]), torch.tensor([0, 2, 5])
    q = torch.tensor([17.5, -22.0, -20.0, 18.0, -41.0], requires_grad=True)
    losses = trajectory_losses(q, labels, cu_steps, loss)
    expected = define(loss, q.detach(), labels, cu_steps, 4.0)
    torch.testing.assert_close(losses.double(), expected, rtol=2e-6, atol=0.0)
    (gradient,) = torch.autograd.grad(losses.sum(), q)
    exact = q.detach().double().requires_grad_()
    (expected,) = torch.autograd.grad(trajectory_losses(exact, labels, cu_steps, loss).sum(), exact)
    torch.testing.assert_close(gradient.double(), expected, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("seed", range(5))
def test_matches_the_definition_on_random_labels(loss, seed):
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(0, 13, (12,), generator=generator).tolist()
    trajectories = [torch.randint(0, 2, (length,), generator=generator).tolist() for length in lengths]
    q, labels, cu_steps = make_batch(seed, 2, trajectories)
    torch.testing.assert_close(
        trajectory_losses(q, labels, cu_steps, loss, 2.5),
        define(loss, q, labels, cu_steps, 2.5),
        rtol=1e-12,
        atol=1e-12,
    )


@pytest.mark.parametrize("loss", ["bce", "mse"])
def test_soft_labels(loss):
    q, labels, cu_steps = make_batch(1, 3)
    labels = torch.rand(len(labels), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    torch.testing.assert_close(
        trajectory_losses(q, labels, cu_steps, loss), define(loss, q, labels, cu_steps, 4.0), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("scale", "zeta"), [(1, 4.0), (1, 0.0), (6, 4.0)])
def test_gradcheck(loss, scale, zeta):
    q, labels, cu_steps = make_batch(2, scale)
    q.requires_grad_()
    assert torch.autograd.gradcheck(lambda q: trajectory_losses(q, labels, cu_steps, loss, zeta), q)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("signs", ["all up", "all down", "mixed"])
def test_gradients_of_extreme_scores_are_finite(loss, dtype, signs):
    q, labels, cu_steps = make_batch(3, 1, dtype=dtype)
    q = 1e4 * {"all up": q.abs().sign(), "all down": -q.abs().sign(), "mixed": q.sign()}[signs]
    q.requires_grad_()
    losses = trajectory_losses(q, labels, cu_steps, loss)
    losses.sum().backward()
    assert losses.isfinite().all()
    assert q.grad.isfinite().all()


def test_crm_is_smooth_where_its_series_begin():
    """One wrong step, scores close together: both thresholds inside log(1 - e^-H) are crossed."""
    q = torch.linspace(-20, 40, 601, dtype=torch.float64)
    labels, cu_steps = torch.zeros(601), torch.arange(602)
    expected = define("crm", q, labels, cu_steps, 0.0)
    torch.testing.assert_close(trajectory_losses(q, labels, cu_steps, "crm"), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("scores", [[14.0], [18.0], [25.0], [40.0, 300.0], [700.0]])
def test_gradient_of_crm(scores):
    """Through log H on either side of its series, and where H is tiny."""
    q = torch.tensor(scores, dtype=torch.float64, requires_grad=True)
    labels = [0] * len(scores)
    trajectory_losses(q, torch.tensor(labels), torch.tensor([0, len(q)]), "crm").sum().backward()
    for t, score in enumerate(scores):
        others = [mpmath.mpf(other) for other in scores]
        with mpmath.workdps(400):  # 1 - e^-H cancels 300 digits
            value = mpmath.diff(lambda x, t=t, o=others: define_crm([*o[:t], x, *o[t + 1 :]], labels, 0), score)
        assert q.grad[t].item() == pytest.approx(float(value), rel=1e-9, abs=1e-100)


def test_crm_where_the_outcome_underflows():
    # The hazards are e^-1e4: their sum is 0 in any dtype, the loss is 1e4 - log 2 + 1e4.
    q = torch.full((2,), 1e4, requires_grad=True)
    loss = trajectory_losses(q, torch.tensor([1, 0]), torch.tensor([0, 2]), "crm")
    loss.sum().backward()
    assert loss.item() == pytest.approx(2e4 - math.log(2), rel=1e-7)
    # float32 knows 1e4 to 1e-3
    torch.testing.assert_close(q.grad, torch.tensor([0.5, 1.5]), rtol=1e-3, atol=1e-3)


def closed_form_rank_gradient(q, y, zeta):
    """dL/dq of `rank`, the sum over the terms differentiated by hand."""
    correct, wrong = split(y)
    negatives = sum(exp(q[w] + zeta) for w in wrong)
    denominators = [1 + negatives + sum(exp(q[k]) for k in correct[:i]) for i in range(len(correct) + 1)]
    count = max(len(correct) + bool(wrong), 1)
    gradient = [mpmath.mpf(0)] * len(q)
    for i, c in enumerate(correct, start=1):
        gradient[c] = (sum(exp(q[c]) / s for s in denominators[i:]) - 1) / count
    for w in wrong:
        gradient[w] = sum(exp(q[w] + zeta) / s for s in denominators) / count
    return gradient


@pytest.mark.parametrize(("scale", "zeta"), [(1, 4.0), (20, 0.0), (1e4, 1e3)])
def test_gradient_of_rank_has_the_closed_form(scale, zeta):
    q, labels, cu_steps = make_batch(4, scale)
    q.requires_grad_()
    trajectory_losses(q, labels, cu_steps, "rank", zeta).sum().backward()
    expected = []
    for a, b in itertools.pairwise(cu_steps.tolist()):
        scores = [mpmath.mpf(score) for score in q[a:b].tolist()]
        expected += [float(g) for g in closed_form_rank_gradient(scores, labels[a:b].tolist(), mpmath.mpf(zeta))]
    # The score itself, near 1e4, is only known to 1e-12.
    torch.testing.assert_close(q.grad, torch.tensor(expected, dtype=torch.float64), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("num_wrong", [0, 3])
@pytest.mark.parametrize("num_correct", [1, 5, 20])
def test_flat_floor_of_rank(num_correct, num_wrong):
    """Correct steps all alike and far above the wrong ones: log(C!) over the number of terms."""
    q = torch.tensor([30.0] * num_correct + [-30.0] * num_wrong, dtype=torch.float64)
    labels = (q > 0).int()
    loss = trajectory_losses(q, labels, torch.tensor([0, len(q)]), "rank")
    floor = math.lgamma(num_correct + 1) / (num_correct + bool(num_wrong))
    assert loss.item() == pytest.approx(floor, abs=1e-9)


def published_rank_loss(rewards, labels, zeta):
    """The loss of the PQM code, written anew: padded [B, L], label -100 for padding, plain exp, + 1e-5."""
    ours = torch.where(labels == 1, rewards.exp(), 0.0)
    negatives = torch.where(labels == 0, (rewards + zeta).exp(), 0.0).sum(-1, keepdim=True)
    start = torch.ones(len(rewards), 1, dtype=rewards.dtype)
    current = torch.cat([start, torch.where(labels == 1, ours, 1.0)], -1)
    earlier = torch.cat([torch.zeros_like(start), torch.cat([start, ours], -1).cumsum(-1)[:, :-1]], -1)
    terms = -torch.log(current / (current + earlier + negatives + 1e-5))
    counted = torch.cat([(labels == 0).any(-1, keepdim=True), labels == 1], -1)
    return (torch.where(counted, terms, 0.0).sum(-1) / counted.sum(-1)).mean()


def test_rank_agrees_with_the_published_loss():
    q, labels, cu_steps = make_batch(5, 1, [t for t in TRAJECTORY_LABELS if t])
    lengths = cu_steps.diff().tolist()
    rewards = torch.nn.utils.rnn.pad_sequence(q.split(lengths), batch_first=True)
    padded = torch.nn.utils.rnn.pad_sequence(labels.split(lengths), batch_first=True, padding_value=-100)
    ours = trajectory_losses(q, labels, cu_steps, "rank", 4.0).mean()
    torch.testing.assert_close(ours, published_rank_loss(rewards, padded, 4), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_trajectories_do_not_touch_each_other(loss):
    q, labels, cu_steps = make_batch(6, 2)
    together = trajectory_losses(q, labels, cu_steps, loss)
    pieces = list(zip(q.split(cu_steps.diff().tolist()), labels.split(cu_steps.diff().tolist()), strict=True))
    alone = [trajectory_losses(a, y, torch.tensor([0, len(a)]), loss) for a, y in pieces]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-14, atol=1e-14)

    order = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0)).tolist()
    shuffled = [pieces[i] for i in order]
    lengths = torch.tensor([0] + [len(a) for a, _ in shuffled])
    permuted = trajectory_losses(
        torch.cat([a for a, _ in shuffled]), torch.cat([y for _, y in shuffled]), lengths.cumsum(0), loss
    )
    torch.testing.assert_close(permuted, together[order], rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize("loss", LOSSES)
def test_uneven_trajectories(loss, monkeypatch):
    """Padded in groups of like length or all together: the same losses and gradients, in the same order."""
    generator = torch.Generator().manual_seed(11)
    lengths = [*torch.randint(0, 18, (40,), generator=generator).tolist(), 130, 0, 1, 2, 3, 4, 5, 8, 9, 16]
    trajectories = [torch.randint(0, 2, (length,), generator=generator).tolist() for length in lengths]
    q, labels, cu_steps = make_batch(12, 2, trajectories)
    results, widths = [], []
    padded_losses = reference._padded_losses

    def recorded(q, labels, lengths, longest, *rest):
        widths.append(longest)
        return padded_losses(q, labels, lengths, longest, *rest)

    monkeypatch.setattr(reference, "_padded_losses", recorded)
    for limit in (2**20, 0):
        monkeypatch.setattr(reference, "SMALL_BATCH", limit)
        leaf = q.clone().requires_grad_()
        losses = trajectory_losses(leaf, labels, cu_steps, loss)
        losses.mul(torch.arange(1.0, len(losses) + 1)).sum().backward()
        results.append((losses.detach(), leaf.grad))
    assert widths[:2] == [130, 1]
    assert widths[-1] == 130
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("loss", ["rank", "bce"])
def test_one_long_trajectory_among_many(loss):
    """Padded together these would be 1e9 scores."""
    lengths = torch.tensor([3] * 5000 + [20_000] + [3] * 5000)
    cu_steps = torch.cat([torch.zeros(1, dtype=torch.long), lengths.cumsum(0)])
    q = torch.zeros(int(lengths.sum()))
    losses = trajectory_losses(q, torch.ones(len(q)), cu_steps, loss)
    few = trajectory_losses(q[:20_003], torch.ones(20_003), torch.tensor([0, 3, 20_003]), loss)
    torch.testing.assert_close(losses[[0, 5000]], few)
    assert losses[5001:].eq(losses[0]).all()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_score_stays_in_its_trajectory(loss, bad):
    q, labels, cu_steps = make_batch(7, 1)
    clean = q.clone().requires_grad_()
    expected = trajectory_losses(clean, labels, cu_steps, loss)
    expected.sum().backward()
    step = int(cu_steps[6])  # the first step of trajectory 6
    broken = q.clone()
    broken[step] = bad
    broken.requires_grad_()
    losses = trajectory_losses(broken, labels, cu_steps, loss)
    losses.sum().backward()
    others = torch.arange(len(losses)) != 6
    assert losses[6].isnan()
    torch.testing.assert_close(losses[others], expected[others], rtol=0, atol=0)
    elsewhere = torch.repeat_interleave(others, cu_steps.diff())
    torch.testing.assert_close(broken.grad[elsewhere], clean.grad[elsewhere], rtol=0, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("num_trajectories", [0, 1, 3])
def test_no_steps_no_loss(loss, num_trajectories):
    q = torch.empty(0, requires_grad=True)
    cu_steps = torch.zeros(num_trajectories + 1, dtype=torch.int32)
    with torch.autograd.set_detect_anomaly(True):
        losses = trajectory_losses(q, torch.empty(0), cu_steps, loss)
        losses.sum().backward()
    assert losses.tolist() == [0.0] * num_trajectories
    assert q.grad.shape == (0,)


@pytest.mark.parametrize("loss", LOSSES)
def test_no_nan_on_the_way_back(loss):
    """Anomaly mode raises on a NaN in any step of the backward, also one that a mask would hide in the end."""
    q, labels, cu_steps = make_batch(8, 1e3, dtype=torch.float32)
    q.requires_grad_()
    with torch.autograd.set_detect_anomaly(True):
        trajectory_losses(q, labels, cu_steps, loss).sum().backward()


def test_pairwise_in_blocks(monkeypatch):
    """A long trajectory goes through memory in blocks of pairs, with the same loss and gradient."""
    trajectories = [*TRAJECTORY_LABELS, [1, 0, 1] * 13]
    results = []
    for limit in (2**22, 500):
        monkeypatch.setattr(reference, "PAIRS_AT_ONCE", limit)
        q, labels, cu_steps = make_batch(9, 2, trajectories)
        q.requires_grad_()
        losses = trajectory_losses(q, labels, cu_steps, "pairwise")
        losses.sum().backward()
        results.append((losses.detach(), q.grad))
    torch.testing.assert_close(results[0], results[1], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("loss", LOSSES)
def test_dtypes(loss):
    q, labels, cu_steps = make_batch(10, 1, dtype=torch.float32)
    expected = trajectory_losses(q, labels, cu_steps, loss)
    for dtype in (torch.bool, torch.int64, torch.uint8, torch.bfloat16, torch.float64):
        torch.testing.assert_close(trajectory_losses(q, labels.to(dtype), cu_steps.long(), loss), expected)
    half = trajectory_losses(q.half(), labels.half(), cu_steps, loss)
    torch.testing.assert_close(half, trajectory_losses(q.half().float(), labels, cu_steps, loss), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "ranking"}, "unknown loss 'ranking'; known: rank, "),
        ({"labels": [1.0, 0.5, 0.0]}, "labels for 'rank' must be 0 or 1.*bce, mse"),
        ({"labels": [1.0, math.nan, 0.0]}, "must be 0 or 1"),
        ({"labels": [1.0, -0.1, 0.0], "loss": "bce"}, r"labels for 'bce' must lie in \[0, 1\]"),
        ({"labels": [1.0, math.nan, 0.0], "loss": "mse"}, r"must lie in \[0, 1\]"),
        ({"labels": [1.0, 0.0]}, r"labels must be \[3\], one per step, found \[2\]"),
        ({"cu_steps": []}, r"cu_steps must be int32 or int64 \[B \+ 1\]"),
        ({"cu_steps": [0.0, 3.0]}, "cu_steps must be int32 or int64.*found torch.float32"),
        ({"cu_steps": [0, 2]}, r"rise from 0 to 3, the number of steps, found \[0, 2\]"),
        ({"cu_steps": [1, 3]}, "rise from 0 to 3"),
        ({"cu_steps": [0, 2, 1, 3]}, "rise from 0 to 3"),
        ({"q": [[0.0, 0.0, 0.0]]}, r"q must be floating point \[S\], found torch.float32 \[1, 3\]"),
        ({"q": [0, 1, 2]}, "q must be floating point"),
    ],
)
def test_bad_input(change, message):
    arguments = {"q": [0.0, 1.0, 2.0], "labels": [1.0, 0.0, 1.0], "cu_steps": [0, 3], "loss": "rank"} | change
    tensors = {name: value if name == "loss" else torch.tensor(value) for name, value in arguments.items()}
    if not change.get("cu_steps", True):
        tensors["cu_steps"] = torch.tensor([], dtype=torch.int32)
    with pytest.raises(ValueError, match=message):
        trajectory_losses(**tensors)
