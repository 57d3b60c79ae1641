"""The op in both backends against the definitions in float64: loss, scores, every gradient, odd shapes.

test_step_loss_precision.py has the hard scores, test_step_loss_large.py the long and large inputs,
test_step_loss_properties.py random ones, and test_step_loss_torch.py what PyTorch asks of an op.
"""

import itertools
import math

import pytest
import torch
from cases import BACKENDS, INPUTS, assert_close, define, exact_case, make_case, run
from pqm_kernels import LOSSES, StepLoss, step_loss, steps_by_row
from test_reference import TRAJECTORY_LABELS, make_batch

pytestmark = pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # the interpreter's, of NaN and inf


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_losses(device, backend, loss):
    case = make_case(device)
    options = {"loss": loss, "zeta": 2.5, "norm_eps": 1e-3, "upstream": -3.0}
    assert_close(run(case, backend=backend, **options), define(case, **options))
    if LOSSES[loss].soft_labels:
        case["labels"] = torch.rand(len(case["labels"]), generator=torch.Generator().manual_seed(0)).to(device)
        assert_close(run(case, backend=backend, **options), define(case, **options))


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


@pytest.mark.parametrize("backend", BACKENDS)
def test_rank_agrees_with_the_published_loss(device, backend):
    """Which adds 1e-5 inside its logarithms."""
    q, labels, cu_steps = make_batch(5, 1, [y for y in TRAJECTORY_LABELS if y], dtype=torch.float32)
    lengths = cu_steps.diff().tolist()
    leaf = q.double().requires_grad_()
    rewards = torch.nn.utils.rnn.pad_sequence(leaf.split(lengths), batch_first=True)
    padded = torch.nn.utils.rnn.pad_sequence(labels.split(lengths), batch_first=True, padding_value=-100)
    expected = published_rank_loss(rewards, padded, 4)
    (gradient,) = torch.autograd.grad(expected, leaf)
    found = run(exact_case(q, labels, lengths, device), backend=backend, needs=("hidden",))
    assert_close(found, {"loss": expected.detach(), "q": q, "hidden": gradient[:, None]}, 1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("width", "norm", "bias"),
    [
        (1, True, False),
        (1, False, True),
        (37, False, False),
        (300, True, True),
        (64, True, False),
        (512, False, True),
    ],
)
def test_heads(device, backend, norm, bias, width):
    case = make_case(device, width=width, norm=norm, bias=bias)
    assert_close(run(case, backend=backend, norm_eps=1e-3), define(case, norm_eps=1e-3))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
def test_lengths(device, backend, loss):
    """Of none at the start of the batch, and of several sweeps; labels mixed, and all alike."""
    case = make_case(device, width=3, lengths=[0, 40, 34, 34], seed=1)
    case["labels"][40:74] = 0
    case["labels"][74:] = 1
    assert_close(run(case, backend=backend, loss=loss), define(case, loss=loss))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize(("rows", "lengths"), [(0, []), (5, [0, 0])])
def test_nothing_to_learn(device, backend, loss, rows, lengths):
    case = make_case(device, rows=5, lengths=lengths)
    case["hidden"] = case["hidden"][:rows]
    found = run(case, backend=backend, loss=loss)
    assert found["q"].shape == (0,)
    assert all((tensor == 0).all() for tensor in found.values())
    assert found["hidden"].shape == (rows, 24)


@pytest.mark.parametrize("loss", LOSSES)
def test_eager_gradcheck(loss):
    case = make_case("cpu", rows=6, width=3, lengths=[3, 0, 4, 1])
    constant = {name: tensor for name, tensor in case.items() if name not in INPUTS}
    leaves = tuple(case[name].double().requires_grad_() for name in INPUTS)

    def total(*tensors):
        named = dict(zip(INPUTS, tensors, strict=True))
        return step_loss(**named, **constant, loss=loss, backend="eager").loss

    assert torch.autograd.gradcheck(total, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("full", [True, False])
def test_subsets_of_gradients(device, backend, full):
    case = make_case(device, rows=9, width=5, lengths=[4, 2], norm=full, bias=full)
    expected = define(case)
    names = [name for name in INPUTS if case[name] is not None]
    for needs in (subset for n in (1, 3) for subset in itertools.combinations(names, n)):
        found = run(case, backend=backend, needs=needs)
        assert set(found) == {"loss", "q", *needs}
        assert_close(found, expected)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize(("norm", "bias"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_head_on_fixed_states(device, backend, norm, bias, offset, monkeypatch):
    """A probe trains the head alone, on a slice of stored states: rows that begin anywhere in memory, some of which no
    step reads. Nothing of the size of the slice is allocated for its gradient."""
    rows, width = 48, 96  # larger than all else that the backward makes
    case = make_case(device, rows=rows, width=width, norm=norm, bias=bias, lengths=[9, 0, 5], seed=3)
    stored = torch.full((offset + 8 * width + rows * width + 7,), math.nan, device=device)
    hidden = stored[offset:][: 8 * width + rows * width].view(-1, width)[8:]
    hidden.copy_(case["hidden"])
    assert hidden.storage_offset() == 8 * width + offset
    assert (hidden.data_ptr() % 16 == 0) == (offset == 0)
    case["hidden"] = hidden
    assert len(case["step_index"].unique()) < rows
    sizes = []

    def watched(make):
        def making(*given, **named):
            tensor = make(*given, **named)
            sizes.append(tensor.numel())
            return tensor

        return making

    for name in ("new_empty", "new_zeros"):
        monkeypatch.setattr(torch.Tensor, name, watched(getattr(torch.Tensor, name)))
    names = ("weight", *(["bias"] if bias else []), *(["norm_weight"] if norm else []))
    found = run(case, backend=backend, needs=names, loss="rank", norm_eps=1e-3)
    if backend == "triton":
        assert sizes
        assert max(sizes) < rows * width
    assert set(found) == {"loss", "q", *names}
    assert_close(found, define(case, loss="rank", norm_eps=1e-3))


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients(device, backend):
    case = make_case(device)
    with torch.no_grad():
        out = step_loss(**case, backend=backend)
    assert isinstance(out, StepLoss)
    assert not out.loss.requires_grad
    assert out.q.dtype == out.loss.dtype == torch.float32
    found = {"loss": out.loss.double().cpu(), "q": out.q.double().cpu()}
    assert_close(found, define(case))


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_detached(device, backend):
    case = make_case(device)
    case["weight"].requires_grad_()
    out = step_loss(**case, backend=backend)
    assert out.loss.requires_grad
    assert not out.q.requires_grad
    out.q.zero_()  # the backward does not need it
    out.loss.backward()
    assert_close({"weight": case["weight"].grad.double().cpu()}, define(case))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", ["rank", "sibling"])
def test_duplicates(device, backend, loss):
    """Sixty steps of three trajectories on two rows: these collect sixty gradients, all others get exact zeros."""
    case = make_case(device, rows=35, lengths=[20, 15, 25], seed=4)
    case["step_index"] = torch.where(case["step_index"] < 17, 3, 31)
    case["labels"] = torch.where(case["step_index"] == 3, 1 - case["labels"], case["labels"])
    found = run(case, backend=backend, loss=loss)
    assert_close(found, define(case, loss=loss))
    others = [row for row in range(35) if row not in (3, 31)]
    assert (found["hidden"][others] == 0).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_by_row_made_ahead(device, backend):
    case = make_case(device, rows=20, lengths=[30, 3])
    for rows in (20, 33):
        ahead = steps_by_row(case["step_index"], rows)
        assert ahead.order.dtype == ahead.first.dtype == torch.int32
        longer = case | {"hidden": torch.cat([case["hidden"], torch.ones(rows - 20, 24, device=device)])}
        given, made = run(longer, backend=backend, steps_by_row=ahead), run(longer, backend=backend)
        assert all(given[name].equal(made[name]) for name in made)
    for row in range(20):
        steps = ahead.order[ahead.first[row] : ahead.first[row + 1]]
        assert steps.tolist() == (case["step_index"] == row).nonzero().flatten().tolist()


@pytest.mark.parametrize("groups", [1, 2])
def test_a_group_has_many_rows(device, groups, monkeypatch):
    from pqm_kernels.fused_step_loss import backward

    monkeypatch.setattr(backward, "MOST_GROUPS", groups)
    case = make_case(device, rows=100)
    assert_close(run(case, backend="triton"), define(case))


@pytest.mark.parametrize("loss", ["rank-theory", "first-error-noisy"])
def test_trajectories_may_move(device, loss):
    """A trajectory's scores and rows have the same gradient bits wherever it stands in the batch."""
    lengths = [3, 0, 40, 5]
    case = make_case(device, rows=48, width=9, lengths=lengths)
    case["step_index"] = torch.randperm(48, generator=torch.Generator().manual_seed(0)).to(device)
    moved = dict(case)
    order = torch.tensor([*range(43, 48), *range(3), *range(3, 43)], device=device)
    moved |= {name: case[name][order] for name in ("step_index", "labels", "parent")}
    moved["cu_steps"] = torch.tensor([0, 5, 8, 8, 48], dtype=torch.int32, device=device)
    first, second = (run(inputs, backend="triton", loss=loss) for inputs in (case, moved))
    assert first["hidden"].equal(second["hidden"])
    assert first["q"][order.cpu()].equal(second["q"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["float", "int", "float16", "bfloat16", "float32", "float64", "int64"])
def test_normalizer(device, backend, kind):
    case, loss = make_case(device, lengths=[3, 0, 4]), "bce" if kind.startswith("float") else "rank"
    numbers = {"float": 12.0, "int": 12}
    normalizer = numbers[kind] if kind in numbers else torch.tensor(12, dtype=getattr(torch, kind), device=device)
    assert step_loss(**case, loss=loss, normalizer=normalizer, backend=backend).loss.dtype == torch.float32
    found = run(case, loss=loss, normalizer=normalizer, backend=backend)
    assert_close(found, define(case, loss=loss, normalizer=12))


@pytest.mark.parametrize("backend", BACKENDS)
def test_normalizer_has_no_gradient(device, backend):
    case = make_case(device, lengths=[3])
    case["weight"].requires_grad_()
    normalizer = torch.tensor(2.0, device=device, requires_grad=True)
    step_loss(**case, normalizer=normalizer, backend=backend).loss.backward()
    assert normalizer.grad is None
    assert case["weight"].grad is not None


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", ["bce", "listwise"])
def test_accumulation_is_exact(device, backend, loss):
    """Micro-batches of whole questions, normalised over the whole step, add up to the gradient of the one batch."""
    case = make_case(device, width=6, lengths=[4, 6, 3, 2, 5])
    whole = define(case, loss=loss)
    normalizer = 20 if LOSSES[loss].normalised_by == "steps" else 5
    parts = []
    for begin, end, steps, ends in ((0, 3, slice(13), [0, 4, 10, 13]), (3, 5, slice(13, 20), [0, 2, 7])):
        part = case | {name: case[name][steps] for name in ("step_index", "labels", "parent")}
        part |= {"outcomes": case["outcomes"][begin:end], "cu_groups": torch.tensor([0, end - begin], device=device)}
        part["cu_steps"] = torch.tensor(ends, dtype=torch.int32, device=device)
        parts.append(run(part, normalizer=normalizer, loss=loss, backend=backend))
    assert_close({name: parts[0][name] + parts[1][name] for name in ("loss", *INPUTS)}, whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_dtypes_of_the_inputs(device, backend):
    plain = make_case(device, rows=20, width=10)
    expected = define(plain)
    wide = torch.full((40, 33), math.nan, device=device)
    wide[::2, 3:33:3] = plain["hidden"]
    names = ("labels", "weight", "norm_weight", "step_index", "cu_steps")
    twice = {name: torch.stack([plain[name]] * 2, 1)[:, 0] for name in names}
    assert not any(tensor.is_contiguous() for tensor in twice.values())
    for hidden in (wide[::2, 3:33:3], plain["hidden"].t().contiguous().t()):
        assert not hidden.is_contiguous()
        assert_close(run(plain | twice | {"hidden": hidden}, backend=backend), expected)
    for dtype in (torch.bool, torch.int32, torch.float16, torch.bfloat16, torch.float64):
        labels = plain["labels"].to(dtype)
        case = plain | {"labels": labels, "step_index": plain["step_index"].int(), "cu_steps": plain["cu_steps"].long()}
        assert_close(run(case, backend=backend), expected)
    expanded = plain | {"hidden": plain["hidden"][:1].expand(20, 10)}
    assert_close(run(expanded, backend=backend), define(expanded))


@pytest.mark.parametrize(
    ("backend", "loss"),
    [
        *(("eager", loss) for loss in LOSSES),
        # its gradient goes another way in each of these; orm reads one step of a trajectory
        *(("triton", loss) for loss in ("rank", "orm", "sibling", "group-rank", "listwise")),
    ],
)
def test_a_bad_row_stays_in_its_trajectory(device, backend, loss):
    """Or in its question, if the loss compares solutions. It makes the loss NaN, and other rows keep their gradient."""
    case = make_case(device, rows=9, width=2, lengths=[2, 3, 1, 2], norm=False)
    case["step_index"] = torch.arange(8, device=device)
    case |= {"cu_groups": torch.tensor([0, 2, 4], device=device), "parent": torch.full_like(case["step_index"], -1)}
    case["outcomes"] = torch.tensor([1.0, 0.0, 1.0, 0.0], device=device)
    whole = LOSSES[loss].unit == "question"
    rows, scores = ([5, 6, 7, 8], [5, 6, 7]) if whole else ([0, 1, 5, 6, 7, 8], [0, 1, 2, 4, 5, 6, 7])
    for bad, label in ((math.nan, 0.0), (math.inf, 1.0)):
        case["labels"] = torch.tensor([label] * 6 + [1.0, 0.0], device=device)
        clean = run(case, backend=backend, loss=loss)
        assert clean["loss"].isfinite()
        assert clean["hidden"][rows].any()
        broken = case | {"hidden": case["hidden"].clone()}
        broken["hidden"][3] = bad
        found = run(broken, backend=backend, loss=loss)
        assert found["loss"].isnan()
        assert found["hidden"][rows].equal(clean["hidden"][rows])
        assert found["q"][scores].equal(clean["q"][scores])


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_row_of_a_long_trajectory(device, backend):
    case = make_case(device, rows=75, width=3, lengths=[3, 70, 2])
    case["step_index"] = torch.arange(75, device=device)
    clean = run(case, backend=backend)
    case["hidden"][70] = math.inf
    found = run(case, backend=backend)
    assert found["loss"].isnan()
    for rows in (slice(0, 3), slice(73, None)):
        assert found["hidden"][rows].equal(clean["hidden"][rows])
