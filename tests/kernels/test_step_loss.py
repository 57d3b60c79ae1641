"""The fused op in both backends against plain float64 loops: values, every gradient, and the odd cases."""

import importlib
import itertools
import math
import subprocess
import sys

import pytest
import torch
from pqm_kernels import LOSSES, StepLoss, step_loss, trajectory_losses

step_loss_module = importlib.import_module("pqm_kernels.step_loss")  # the package has the function by this name
INPUTS = ("hidden", "weight", "bias", "norm_weight")
BACKENDS = ["eager", "triton"]
LENGTHS = [3, 0, 1, 17, 2, 5]


@pytest.fixture(scope="module")
def device():
    """CUDA where there is one; else the CPU, with Triton in its interpreter (see tests/conftest.py)."""
    pytest.importorskip("triton")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fresh memory holds NaN: an element that a kernel fails to write shows."""

    def poisoned(make):
        def empty(*args, **kwargs):
            tensor = make(*args, **kwargs)
            return tensor.fill_(math.nan) if tensor.is_floating_point() else tensor

        return empty

    monkeypatch.setattr(torch, "empty", poisoned(torch.empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(torch.empty_like))


def make_case(device, *, rows=40, width=24, lengths=LENGTHS, dtype=torch.float32, seed=0, scale=1.0):
    """Inputs of step_loss: any row may be read by several steps or none."""
    generator = torch.Generator().manual_seed(seed)
    steps = sum(lengths)
    case = {
        "hidden": torch.randn(rows, width, generator=generator).to(dtype),
        "step_index": torch.randint(rows, (steps,), generator=generator),
        "labels": torch.randint(0, 2, (steps,), generator=generator).float(),
        "cu_steps": torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32),
        "weight": scale * torch.randn(width, generator=generator) * 2 / width**0.5,
        "bias": torch.randn(1, generator=generator),
        "norm_weight": torch.rand(width, generator=generator) + 0.5,
    }
    return {name: tensor.to(device) for name, tensor in case.items()}


def run(case, *, upstream=1.0, needs=INPUTS, dtype=None, **options):
    """Loss, scores and gradients by name; all in float64 on the CPU."""
    case = {
        name: tensor.detach().to(dtype or tensor.dtype) if name in INPUTS and tensor is not None else tensor
        for name, tensor in case.items()
    }
    leaves = {name: case[name].requires_grad_() for name in needs if case[name] is not None}
    out = step_loss(**case, **options)
    gradients = torch.autograd.grad(out.loss, leaves.values(), torch.full_like(out.loss, upstream))
    results = {"loss": out.loss, "q": out.q, **dict(zip(leaves, gradients, strict=True))}
    return {name: tensor.detach().double().cpu() for name, tensor in results.items()}


def run_naive(case, *, zeta=4.0, norm_eps=1e-6, normalizer=None, upstream=1.0):
    """`rank` in float64, a loop over trajectories and terms with plain exponentials."""
    case = {name: None if tensor is None else tensor.detach().cpu() for name, tensor in case.items()}
    leaves = {name: case[name].double().requires_grad_() for name in INPUTS if case[name] is not None}
    rows = [leaves["hidden"][row] for row in case["step_index"].tolist()]
    if "norm_weight" in leaves:
        rows = [row / (row.square().mean() + norm_eps).sqrt() * leaves["norm_weight"] for row in rows]
    q = [row @ leaves["weight"] + (leaves["bias"].squeeze() if "bias" in leaves else 0) for row in rows]
    labels = case["labels"].tolist()
    total = leaves["weight"].sum() * 0.0
    for begin, end in itertools.pairwise(case["cu_steps"].tolist()):
        negatives = sum((q[t] + zeta).exp() for t in range(begin, end) if labels[t] == 0)
        terms, positives = [], 0.0
        for t in range(begin, end):
            if labels[t] == 1:
                positives = positives + q[t].exp()
                terms.append((1 + positives + negatives).log() - q[t])
        if isinstance(negatives, torch.Tensor):
            terms.append((1 + negatives).log())
        total = total + sum(terms) / max(len(terms), 1)
    loss = total / (normalizer or max(len(case["cu_steps"]) - 1, 1))
    gradients = torch.autograd.grad(loss * upstream, leaves.values(), allow_unused=True, materialize_grads=True)
    scores = torch.stack(q).detach() if q else torch.zeros(0).double()
    return {"loss": loss.detach(), "q": scores, **dict(zip(leaves, gradients, strict=True))}


def errors(found, expected):
    """Largest error of each result, relative to its largest element."""
    assert found.keys() == expected.keys()
    result = {}
    for name, value in expected.items():
        assert found[name].shape == value.shape
        # The bias gradient is a sum of terms of order 1 that may cancel: judge it against them.
        smallest = 0.1 if name == "bias" else 1e-30
        scale = value.abs().max().clamp(min=smallest) if value.numel() else 1.0
        result[name] = float((found[name] - value).abs().max() / scale) if value.numel() else 0.0
    return result


def assert_close(found, expected, tolerance=1e-5):
    found_errors = errors(found, expected)
    wrong = {name: error for name, error in found_errors.items() if not error <= tolerance}
    assert not wrong, wrong


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("width", [1, 24, 37, 300])
def test_matches_float64(device, backend, norm, bias, width):
    case = make_case(device, width=width)
    case |= {} if norm else {"norm_weight": None}
    case |= {} if bias else {"bias": None}
    needs = [name for name in INPUTS if case[name] is not None]
    found = run(case, backend=backend, needs=needs, zeta=2.5, norm_eps=1e-3, upstream=-3.0)
    assert_close(found, run_naive(case, zeta=2.5, norm_eps=1e-3, upstream=-3.0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("lengths", "label"),
    [
        ([4], None),  # one trajectory
        ([1], 1.0),
        ([1], 0.0),
        ([16, 128, 129, 0], None),  # as long as a tile, a sweep and one more
        ([300], None),
        ([3, 150], 0.0),
        ([3, 150], 1.0),
        ([0, 0, 2, 0], None),
    ],
)
def test_lengths(device, backend, lengths, label):
    case = make_case(device, width=8, lengths=lengths, seed=1)
    if label is not None:
        case["labels"].fill_(label)
    assert_close(run(case, backend=backend), run_naive(case))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_thousand_steps(device, backend):
    case = make_case(device, rows=200, width=4, lengths=[1000, 3], seed=2)
    assert_close(run(case, backend=backend), run_naive(case), 2e-5)


@pytest.mark.gpu
def test_twenty_thousand_steps(device):
    case = make_case(device, rows=30000, width=64, lengths=[20000, 7], seed=2)
    assert_close(run(case, backend="triton"), run(case, backend="eager", dtype=torch.float64), 5e-5)


@pytest.mark.gpu
def test_rows_past_int32(device):
    """Offsets of rows beyond 2^31 elements."""
    case = make_case(device, rows=64, width=4096, dtype=torch.bfloat16, lengths=[5, 3])
    small = run(case, backend="triton", needs=("weight", "hidden"))
    hidden = torch.zeros(2**19 + 128, 4096, dtype=torch.bfloat16, device=device)
    hidden[-64:] = case["hidden"]
    case |= {"hidden": hidden, "step_index": case["step_index"] + len(hidden) - 64}
    large = run(case, backend="triton", needs=("weight",))
    assert_close(large, {name: small[name] for name in large}, 1e-5)
    # Its own gradient on the device: in float64 on the CPU it would be 17 GB.
    case["hidden"].requires_grad_()
    (gradient,) = torch.autograd.grad(step_loss(**case, backend="triton").loss, case["hidden"])
    assert not gradient[:-64].any()
    torch.testing.assert_close(gradient[-64:].double().cpu(), small["hidden"], rtol=0, atol=0)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("label", [None, 0.0, 1.0])
def test_extreme_scores(device, backend, label):
    """Scores of +-1e4, exact in float32, so that the float64 loss can judge."""
    case = make_case(device, rows=30, width=1, lengths=[30, 4, 9])
    case["hidden"] = case["hidden"].sign() * torch.tensor([1e4, 100.0, 1.0], device=device).repeat(10)[:, None]
    case |= {"weight": torch.ones_like(case["weight"]), "bias": None, "norm_weight": None}
    if label is not None:
        case["labels"].fill_(label)
    needs = ("hidden", "weight")
    found = run(case, backend=backend, needs=needs)
    expected = run(case, backend="eager", dtype=torch.float64, needs=needs)
    # PyTorch's scans keep log-sum-exps of 1e4 as one float32, known to 1e-3.
    assert_close(found, expected, 1e-6 if backend == "triton" else 1e-3)


@pytest.mark.parametrize(
    "dtype",  # the interpreter truncates where a GPU rounds to bfloat16
    [torch.float16, pytest.param(torch.bfloat16, marks=pytest.mark.gpu)],
)
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("head", ["float32", "half"])
def test_half_precision_is_as_exact_as_eager(device, dtype, norm, head):
    case = make_case(device, width=72, dtype=dtype, seed=3)
    if head == "half":
        case |= {name: case[name].to(dtype) for name in ("weight", "bias", "norm_weight")}
    case |= {} if norm else {"norm_weight": None}
    needs = [name for name in INPUTS if case[name] is not None]
    expected = run_naive(case)
    fused = errors(run(case, backend="triton", needs=needs), expected)
    eager = errors(run(case, backend="eager", needs=needs), expected)
    assert all(fused[name] <= 2 * eager[name] + 1e-6 for name in expected), (fused, eager)
    assert max(fused["loss"], fused["q"], eager["loss"], eager["q"]) < 2e-6  # float32 arithmetic


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_eager_has_every_loss(loss, dtype):
    case = make_case("cpu")
    case["hidden"] = case["hidden"].to(dtype)
    out = step_loss(**case, loss=loss, backend="eager")
    rows = case["hidden"][case["step_index"]].double()
    normed = rows / (rows.square().mean(1, keepdim=True) + 1e-6).sqrt() * case["norm_weight"].double()
    q = normed @ case["weight"].double() + case["bias"].double()
    divisor = sum(LENGTHS) if loss in ("bce", "mse") else len(LENGTHS)
    expected = trajectory_losses(q, case["labels"], case["cu_steps"], loss).sum() / divisor
    assert isinstance(out, StepLoss)
    assert out.loss.dtype == out.q.dtype == dtype
    tolerance = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(out.q.double(), q, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(out.loss.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("loss", LOSSES)
def test_eager_gradcheck(loss):
    case = make_case("cpu", rows=6, width=3, lengths=[3, 0, 4, 1])
    constant = {name: tensor for name, tensor in case.items() if name not in INPUTS}
    leaves = tuple(case[name].double().requires_grad_() for name in INPUTS)

    def total(*tensors):
        named = dict(zip(INPUTS, tensors, strict=True))
        return step_loss(**named, **constant, loss=loss, backend="eager").loss

    assert torch.autograd.gradcheck(total, leaves)


@pytest.mark.parametrize("needs", [s for n in range(1, 5) for s in itertools.combinations(INPUTS, n)])
def test_every_subset_of_gradients(device, needs):
    case = make_case(device, lengths=[4, 2])
    expected = run_naive(case)
    assert_close(run(case, backend="triton", needs=needs), {n: expected[n] for n in ("loss", "q", *needs)})


@pytest.mark.parametrize("backend", BACKENDS)
def test_without_gradients(device, backend):
    case = make_case(device)
    with torch.no_grad():
        out = step_loss(**case, backend=backend)
    assert not out.loss.requires_grad
    assert not out.q.requires_grad
    assert out.q.dtype == out.loss.dtype == torch.float32
    found = {"loss": out.loss.double().cpu(), "q": out.q.double().cpu()}
    expected = run_naive(case)
    assert_close(found, {name: expected[name] for name in found})


@pytest.mark.parametrize("backend", BACKENDS)
def test_scores_are_detached(device, backend):
    case = make_case(device)
    case["weight"].requires_grad_()
    out = step_loss(**case, backend=backend)
    assert out.loss.requires_grad
    assert not out.q.requires_grad


@pytest.mark.parametrize("backend", BACKENDS)
def test_duplicates(device, backend):
    """Sixty steps on two rows: the rows collect sixty gradients, all others get exact zeros."""
    case = make_case(device, rows=35, lengths=[20, 40], seed=4)
    case["step_index"] = torch.where(case["step_index"] < 17, 3, 31)
    found = run(case, backend=backend)
    assert_close(found, run_naive(case))
    others = [row for row in range(35) if row not in (3, 31)]
    assert (found["hidden"][others] == 0).all()


def test_runs_repeat_bit_for_bit(device):
    case = make_case(device, rows=50, lengths=[7, 30, 1, 12], dtype=torch.float16)
    first, second = run(case, backend="triton"), run(case, backend="triton")
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.gpu
def test_nothing_synchronises(device):
    case = make_case(device)
    run(case, backend="triton")  # compiles
    leaves = [case[name].requires_grad_() for name in INPUTS]
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(step_loss(**case, backend="triton").loss, leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("groups", [1, 2])
def test_a_group_has_many_rows(device, groups, monkeypatch):
    from pqm_kernels import ranking

    monkeypatch.setattr(ranking, "ROW_GROUPS", groups)
    case = make_case(device, rows=100)
    assert_close(run(case, backend="triton"), run_naive(case))


def test_trajectories_may_move(device):
    """A trajectory's scores and rows have the same gradient bits wherever it stands in the batch."""
    case = make_case(device, lengths=[3, 0, 9, 5])
    case["step_index"] = torch.randperm(40, generator=torch.Generator().manual_seed(0))[:17].to(device)
    moved = dict(case)
    order = torch.tensor([*range(12, 17), *range(3), *range(3, 12)], device=device)
    moved |= {"step_index": case["step_index"][order], "labels": case["labels"][order]}
    moved["cu_steps"] = torch.tensor([0, 5, 8, 8, 17], dtype=torch.int32, device=device)
    first, second = run(case, backend="triton"), run(moved, backend="triton")
    assert first["hidden"].equal(second["hidden"])
    assert first["q"][order.cpu()].equal(second["q"])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", ["float", "int", "float32", "float64", "int64"])
def test_normalizer(device, backend, kind):
    case = make_case(device)
    make = {
        "float": lambda: 12.0,
        "int": lambda: 12,
        "float32": lambda: torch.tensor(12.0, device=device),
        "float64": lambda: torch.tensor(12.0, dtype=torch.float64, device=device),
        "int64": lambda: torch.tensor(12, device=device),
    }
    assert step_loss(**case, normalizer=make[kind](), backend=backend).loss.dtype == torch.float32
    assert_close(run(case, normalizer=make[kind](), backend=backend), run_naive(case, normalizer=12))


def test_accumulation_is_exact(device):
    """Micro-batches normalised over the whole step add up to the gradient of the one batch."""
    case = make_case(device, lengths=[4, 6, 3])
    whole = run(case, backend="triton")
    parts = []
    for begin, end, cu_steps in ((0, 4, [0, 4]), (4, 13, [0, 6, 9])):
        part = case | {name: case[name][begin:end] for name in ("step_index", "labels")}
        part["cu_steps"] = torch.tensor(cu_steps, dtype=torch.int32, device=device)
        parts.append(run(part, normalizer=3, backend="triton"))
    names = ("loss", *INPUTS)
    assert_close({name: parts[0][name] + parts[1][name] for name in names}, {name: whole[name] for name in names}, 1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_dtypes_of_the_inputs(device, backend):
    plain = make_case(device, rows=20, width=10)
    expected = run_naive(plain)
    wide = torch.full((40, 33), math.nan, device=device)
    wide[::2, 3:33:3] = plain["hidden"]
    twice = {name: torch.stack([plain[name]] * 2, 1)[:, 0] for name in ("labels", "weight", "norm_weight")}
    for hidden in (wide[::2, 3:33:3], plain["hidden"].t().contiguous().t()):
        assert not hidden.is_contiguous()
        case = plain | twice | {"hidden": hidden}
        case |= {"step_index": torch.stack([plain["step_index"]] * 2, 1)[:, 0], "cu_steps": plain["cu_steps"].long()}
        assert_close(run(case, backend=backend), expected)
    for labels in (plain["labels"].bool(), plain["labels"].int(), plain["labels"].double()):
        case = plain | {"labels": labels, "step_index": plain["step_index"].int()}
        assert_close(run(case, backend=backend), expected)
    expanded = plain | {"hidden": plain["hidden"][:1].expand(20, 10)}
    assert_close(run(expanded, backend=backend), run_naive(expanded))


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # from the interpreter
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_row_stays_in_its_trajectory(device, backend, bad):
    case = make_case(device, lengths=[3, 4, 2])
    case["step_index"] = torch.arange(9, device=device)
    clean = run(case, backend=backend)
    case["hidden"][4, 5] = bad
    found = run(case, backend=backend)
    assert found["loss"].isnan()
    rows = [row for row in range(40) if not 3 <= row < 7]
    assert found["hidden"][rows].equal(clean["hidden"][rows])
    steps = [step for step in range(9) if step != 4]
    assert found["q"][steps].equal(clean["q"][steps])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("label", [0.0, 1.0])
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_a_bad_row_reaches_the_loss(device, backend, label, bad):
    case = make_case(device, width=1, lengths=[2]) | {"bias": None, "norm_weight": None}
    case["labels"].fill_(label)
    case["hidden"][case["step_index"][1]] = bad
    assert step_loss(**case, backend=backend).loss.isnan()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("rows", "lengths"), [(5, []), (5, [0, 0]), (0, []), (0, [0])])
def test_nothing_to_learn(device, backend, rows, lengths):
    case = make_case(device, rows=5, lengths=lengths)
    case["hidden"] = case["hidden"][:rows]
    found = run(case, backend=backend)
    assert found["q"].shape == (0,)
    assert all((tensor == 0).all() for tensor in found.values())
    assert found["hidden"].shape == (rows, 24)


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_to_learn_with_any_loss(loss):
    for lengths in ([], [0, 0]):
        found = run(make_case("cpu", lengths=lengths), loss=loss, backend="eager")
        assert all((tensor == 0).all() for tensor in found.values())


def test_autocast_does_not_round(device):
    case = make_case(device)
    with torch.autocast(device, dtype=torch.bfloat16):
        found = {backend: run(case, backend=backend) for backend in BACKENDS}
    for backend in BACKENDS:
        assert_close(found[backend], run_naive(case))


@pytest.mark.parametrize(
    ("device_type", "dtypes", "loss", "best"),
    [
        ("cpu", [torch.float32], "rank", "eager"),
        ("cuda", [torch.float32], "rank", "triton"),
        ("cuda", [torch.bfloat16, torch.float32], "rank", "triton"),
        ("cuda", [torch.float32], "crm", "eager"),
        ("cuda", [torch.float64], "rank", "eager"),
        ("cuda", [torch.float16, torch.float64], "rank", "eager"),
    ],
)
def test_best_backend(device_type, dtypes, loss, best):
    assert step_loss_module._best_backend(torch.device(device_type), dtypes, loss) == best


@pytest.mark.parametrize("best", BACKENDS)
def test_auto_takes_the_best_backend(device, best, monkeypatch):
    ran = []

    def recorded(name, function):
        return lambda *arguments: (ran.append(name), function(*arguments))[1]

    monkeypatch.setattr(step_loss_module._TritonRank, "apply", recorded("triton", step_loss_module._TritonRank.apply))
    monkeypatch.setattr(step_loss_module, "_scores", recorded("eager", step_loss_module._scores))
    monkeypatch.setattr(step_loss_module, "_best_backend", lambda *arguments: best)
    step_loss(**make_case(device))
    assert ran == [best]


def test_second_derivatives(device):
    """The eager backend has them; the triton backend says that it does not, instead of losing them."""
    case = make_case(device, lengths=[4, 2]) | {"norm_weight": None}
    case["weight"].requires_grad_()
    loss = step_loss(**case, backend="eager").loss
    (gradient,) = torch.autograd.grad(loss, case["weight"], create_graph=True)
    assert gradient.requires_grad
    loss = step_loss(**case, backend="triton").loss
    with pytest.raises(RuntimeError, match="triton backend has no second derivative"):
        torch.autograd.grad(loss, case["weight"], create_graph=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(4)}, r"hidden must be floating point \[T, D\], found torch.float32 \[4\]"),
        ({"hidden": torch.zeros(4, 2, dtype=torch.int32)}, "hidden must be floating point"),
        ({"step_index": torch.tensor([0.0, 1.0, 2.0])}, "step_index must be int32 or int64"),
        ({"step_index": torch.tensor([0, 1, 4])}, r"step_index must lie in 0..3, found 0..4"),
        ({"step_index": torch.tensor([-1, 1, 2])}, r"step_index must lie in 0..3, found -1..2"),
        ({"labels": torch.tensor([1.0, 0.0])}, r"labels must be \[3\]"),
        ({"labels": torch.tensor([1.0, 0.5, 0.0])}, "labels for 'rank' must be 0 or 1"),
        ({"cu_steps": torch.tensor([0, 2])}, "cu_steps must rise from 0 to 3"),
        ({"weight": torch.zeros(1, 2)}, r"weight must be floating point \[2\], found torch.float32 \[1, 2\]"),
        ({"weight": torch.zeros(3)}, r"weight must be floating point \[2\]"),
        ({"bias": torch.zeros(())}, r"bias must be floating point \[1\]"),
        ({"norm_weight": torch.zeros(1)}, r"norm_weight must be floating point \[2\]"),
        ({"weight": torch.zeros(2, device="meta")}, "must be on one device, found cpu and meta"),
        ({"loss": "hinge"}, "unknown loss 'hinge'"),
        ({"hidden": torch.zeros(4, 0), "weight": torch.zeros(0)}, r"at least one column, found \[4, 0\]"),
        ({"zeta": torch.tensor(4.0)}, r"zeta must be a finite Python number, found tensor\(4.\)"),
        ({"zeta": math.inf}, "zeta must be a finite Python number, found inf"),
        ({"zeta": "4"}, "zeta must be a finite Python number"),
        ({"norm_eps": math.nan}, "norm_eps must be a finite Python number"),
        ({"norm_eps": None}, "norm_eps must be a finite Python number"),
        ({"normalizer": 0}, "normalizer must be positive, found 0"),
        ({"normalizer": -1.0}, "normalizer must be positive"),
        ({"normalizer": math.inf}, "normalizer must be a finite Python number"),
        ({"normalizer": torch.ones(1)}, r"normalizer must be a number or a 0-dim tensor, found \[1\]"),
    ],
)
def test_bad_input(backend, change, message):
    case = {
        "hidden": torch.zeros(4, 2),
        "step_index": torch.tensor([0, 1, 2]),
        "labels": torch.tensor([1.0, 0.0, 1.0]),
        "cu_steps": torch.tensor([0, 3]),
        "weight": torch.zeros(2),
    }
    with pytest.raises(ValueError, match=message):
        step_loss(**(case | change), backend=backend)


def test_backends_say_what_they_lack(device):
    case = make_case(device)
    with pytest.raises(ValueError, match="unknown backend 'cuda'; known: auto, eager, triton"):
        step_loss(**case, backend="cuda")
    with pytest.raises(ValueError, match=r"triton backend has the losses .*'rank'.*, not 'crm'"):
        step_loss(**case, loss="crm", backend="triton")
    with pytest.raises(ValueError, match="triton backend does not take"):
        step_loss(**(case | {"hidden": case["hidden"].double()}), backend="triton")
    for name in ("weight", "bias", "norm_weight"):
        with pytest.raises(ValueError, match=r"triton backend does not take torch.float64; use 'eager'"):
            step_loss(**(case | {name: case[name].double()}), backend="triton")


def test_import_does_not_need_triton():
    """Triton is on Linux only: the package and its eager backend work without it."""
    code = (
        "import sys; sys.modules['triton'] = None\n"  # `import triton` raises ImportError
        "import torch, pqm_kernels as k\n"
        "a = torch.tensor\n"
        "print(k.step_loss(torch.ones(1, 2), a([0]), a([1.0]), a([0, 1]), torch.zeros(2)).loss.item())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) == pytest.approx(math.log(2))
