"""How the losses in plain PyTorch behave; test_reference_precision.py has their values and gradients."""

import math

import pytest
import torch
from cases import OF_TRAJECTORIES
from pqm_kernels import trajectory_losses
from pqm_kernels.fused_step_loss import reference

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


def make_batch(seed, scale, trajectories=TRAJECTORY_LABELS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.tensor([label for trajectory in trajectories for label in trajectory], dtype=dtype)
    cu_steps = torch.tensor([0] + [len(t) for t in trajectories], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    q = scale * torch.randn(len(labels), generator=generator, dtype=dtype)
    return q.clamp(-1e4, 1e4), labels, cu_steps


@pytest.mark.parametrize(("num_correct", "num_wrong"), [(1, 3), (20, 0)])
def test_flat_floor_of_rank(num_correct, num_wrong):
    """Correct steps all alike and far above the wrong ones: log(C!) over the number of terms."""
    q = torch.tensor([30.0] * num_correct + [-30.0] * num_wrong, dtype=torch.float64)
    labels = (q > 0).int()
    loss = trajectory_losses(q, labels, torch.tensor([0, len(q)]), "rank")
    floor = math.lgamma(num_correct + 1) / (num_correct + bool(num_wrong))
    assert loss.item() == pytest.approx(floor, abs=1e-9)


@pytest.mark.parametrize("loss", OF_TRAJECTORIES)
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


@pytest.mark.parametrize("loss", OF_TRAJECTORIES)
def test_uneven_trajectories(loss, monkeypatch):
    """Padded in groups of like length or all together: the same losses and gradients, in the same order."""
    generator = torch.Generator().manual_seed(11)
    lengths = [*torch.randint(0, 18, (9,), generator=generator).tolist(), 130, 0, 1, 2, 3, 4, 5, 8, 9, 16]
    trajectories = [torch.randint(0, 2, (length,), generator=generator).tolist() for length in lengths]
    q, labels, cu_steps = make_batch(12, 2, trajectories)
    results, widths = [], []
    padded_losses = reference._padded_losses

    def recorded(q, labels, weights, lengths, longest, *rest):
        widths.append(longest)
        return padded_losses(q, labels, weights, lengths, longest, *rest)

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


@pytest.mark.parametrize("loss", OF_TRAJECTORIES)
@pytest.mark.parametrize(("bad", "small_batch"), [(math.nan, 2**12), (math.inf, 0), (-math.inf, 0)])
def test_a_bad_score_stays_in_its_trajectory(loss, bad, small_batch, monkeypatch):
    """Padded all together, or in groups of like length."""
    monkeypatch.setattr(reference, "SMALL_BATCH", small_batch)
    q, labels, cu_steps = make_batch(7, 1, [*TRAJECTORY_LABELS, [1, 0] * 65])
    clean = q.clone().requires_grad_()
    expected = trajectory_losses(clean, labels, cu_steps, loss)
    expected.sum().backward()
    step = int(cu_steps[6])  # the first step of trajectory 6, which has as many as trajectory 3
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


@pytest.mark.parametrize("loss", OF_TRAJECTORIES)
def test_no_steps_no_loss(loss):
    for num_trajectories in (0, 3):
        q = torch.empty(0, requires_grad=True)
        cu_steps = torch.zeros(num_trajectories + 1, dtype=torch.int32)
        with torch.autograd.set_detect_anomaly(True):
            losses = trajectory_losses(q, torch.empty(0), cu_steps, loss)
            losses.sum().backward()
        assert losses.tolist() == [0.0] * num_trajectories
        assert q.grad.shape == (0,)


@pytest.mark.parametrize("loss", OF_TRAJECTORIES)
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


@pytest.mark.parametrize("loss", OF_TRAJECTORIES)
def test_dtypes(loss):
    q, labels, cu_steps = make_batch(10, 1, dtype=torch.float32)
    expected = trajectory_losses(q, labels, cu_steps, loss)
    for dtype in (torch.bool, torch.int64, torch.uint8, torch.bfloat16, torch.float64):
        torch.testing.assert_close(trajectory_losses(q, labels.to(dtype), cu_steps.long(), loss), expected)
    for dtype in (torch.float16, torch.bfloat16):
        half = q.to(dtype).requires_grad_()
        losses = trajectory_losses(half, labels.to(dtype), cu_steps, loss)
        assert losses.equal(trajectory_losses(half.detach().float(), labels, cu_steps, loss))
        (gradient,) = torch.autograd.grad(losses.sum(), half)
        assert gradient.dtype == dtype


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": "ranking"}, "unknown loss 'ranking'; known: rank, "),
        ({"loss": "sibling"}, "'sibling' is a loss of questions: call question_losses"),
        ({"labels": [1.0, 0.5, 0.0]}, "labels for 'rank' must be 0 or 1.*bce, mse"),
        ({"labels": [1.0, -0.1, 0.0], "loss": "bce"}, r"labels for 'bce' must lie in \[0, 1\]"),
        ({"labels": [1.0, math.nan, 0.0], "loss": "mse"}, r"must lie in \[0, 1\]"),
        ({"labels": [1.0, 0.0]}, r"labels must be \[3\], one per step, found \[2\]"),
        ({"cu_steps": []}, r"cu_steps must be int32 or int64 \[B \+ 1\]"),
        ({"cu_steps": [0.0, 3.0]}, "cu_steps must be int32 or int64.*found torch.float32"),
        ({"cu_steps": [0, 2]}, r"cu_steps must rise from 0 to 3, the number of steps, found cu_steps\[1\] = 2 after 0"),
        ({"cu_steps": [0]}, r"rise from 0 to 3, the number of steps, found cu_steps\[0\] = 0$"),
        ({"cu_steps": [1, 0, 3]}, r"rise from 0 to 3, the number of steps, found cu_steps\[0\] = 1$"),
        ({"cu_steps": [-1, 3]}, r"found cu_steps\[0\] = -1$"),
        ({"cu_steps": [0, 2, 1, 2, 1, 3]}, r"found cu_steps\[2\] = 1 after 2"),
        ({"cu_steps": [0, 1, 4, 3]}, r"found cu_steps\[2\] = 4 after 1"),
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


def test_checks_do_not_break_a_compiled_graph():
    """Reading a value would; so under torch.compile these are not looked at."""

    @torch.compile(fullgraph=True, backend="eager")
    def checked(q, labels, cu_steps):
        reference.check_steps(len(q), labels, cu_steps, "rank")
        return q + 1

    right, wrong = torch.tensor([0, 3]), torch.tensor([0, 2])
    assert checked(torch.zeros(3), torch.ones(3), right).tolist() == [1.0] * 3
    assert checked(torch.zeros(3), torch.ones(3), wrong).tolist() == [1.0] * 3
    with pytest.raises(ValueError, match="rise from 0 to 3"):
        reference.check_steps(3, torch.ones(3), wrong, "rank")
