"""Long trajectories, many trajectories, and inputs whose offsets do not fit 32 bits."""

import mmap
import sys

import pytest
import torch
from cases import BACKENDS, OF_QUESTIONS, UNEVEN, assert_close, define, make_case, run
from pqm_kernels import LOSSES, question_losses, step_loss, trajectory_losses

MAP_NORESERVE = 0x4000  # of Linux; the module mmap has it from Python 3.13 on


# Long ones from the first step of a part and from the middle of one, and that end with a part.
LONG = (64, 128, 62, 194, 70)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("loss", "lengths"), [("rank", UNEVEN), ("bce", LONG)])
def test_long_trajectories(device, backend, loss, lengths):
    case = make_case(device, rows=300, width=3, lengths=lengths, seed=2)
    assert_close(run(case, backend=backend, loss=loss), define(case, loss=loss))


@pytest.mark.parametrize("loss", ["rank-theory", "crm", "first-error-noisy", "listwise-softmin"])
def test_many_sweeps(device, loss):
    case = make_case(device, rows=200, width=3, lengths=[3, 170], seed=3)
    assert_close(run(case, backend="triton", loss=loss), define(case, loss=loss))


@pytest.mark.slow  # all pairs: minutes in the interpreter
@pytest.mark.parametrize("loss", ["pairwise", "sibling"])
def test_a_thousand_steps_in_pairs(device, loss):
    case = make_case(device, rows=200, width=3, lengths=[1000, 3], seed=2)
    assert_close(run(case, backend="triton", loss=loss), define(case, loss=loss))


def assert_close_to_reference(case, loss):
    """For sizes where the definitions would take hours: the losses in plain PyTorch, in float64.

    The gradients of the head are sums of so many terms that these are what they are judged by.
    """

    def total(q, case, loss):
        if loss in OF_QUESTIONS:
            given = {name: case[name] for name in ("cu_groups", "parent", "outcomes")}
            return question_losses(q, case["labels"], case["cu_steps"], loss=loss, **given).sum()
        return trajectory_losses(q, case["labels"], case["cu_steps"], loss).sum()

    assert_close(run(case, backend="triton", loss=loss), define(case, loss=loss, total=total), share=1.0)


def test_as_large_as_the_interpreter_allows(device):
    assert_close_to_reference(make_case(device, rows=400, width=2, lengths=[400, 7], seed=5), "rank")


@pytest.mark.gpu
@pytest.mark.parametrize("loss", [loss for loss in LOSSES if loss != "pairwise"])  # which looks at 5e9 pairs
def test_a_hundred_thousand_steps(device, loss):
    case = make_case(device, rows=30_000, width=64, lengths=[5, 100_000, 7], seed=6)
    assert_close_to_reference(case, loss)


@pytest.mark.gpu
@pytest.mark.parametrize("loss", LOSSES)
def test_a_hundred_thousand_trajectories(device, loss):
    lengths = torch.randint(0, 9, (100_000,), generator=torch.Generator().manual_seed(0)).tolist()
    assert_close_to_reference(make_case(device, rows=50_000, width=64, lengths=lengths, seed=7), loss)


@pytest.mark.gpu
def test_three_thousand_steps_in_pairs(device):
    case = make_case(device, rows=3000, width=64, lengths=[5, 3000, 7], seed=8)
    assert_close_to_reference(case, "pairwise")


@pytest.mark.skipif(sys.platform != "linux", reason="needs memory that is not reserved")
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("far", ["rows", "columns"])
def test_hidden_past_int32(backend, far):
    """Rows, or columns, 2^26 elements apart in memory of which only the pages that hold them exist. On the CPU."""
    pytest.importorskip("triton")
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("triton compiles for the GPU here; test_gradient_past_int32 is its test")
    apart = 2**26
    rows, width = (36, 5) if far == "rows" else (5, 36)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_NORESERVE
    memory = torch.frombuffer(mmap.mmap(-1, 2 * 36 * apart, flags=flags), dtype=torch.float16)
    case = make_case("cpu", rows=rows, width=width, dtype=torch.float16)
    hidden = memory.as_strided((rows, width), (apart, 1) if far == "rows" else (1, apart))
    hidden.copy_(case["hidden"])
    assert 35 * apart > 2**31
    near, distant = run(case, backend=backend), run(case | {"hidden": hidden}, backend=backend)
    assert all(distant[name].equal(near[name]) for name in near)


@pytest.mark.gpu
def test_gradient_past_int32(device):
    """Offsets of rows of hidden and of its gradient beyond 2^31 elements."""
    case = make_case(device, rows=64, width=4096, dtype=torch.bfloat16, lengths=[5, 3])
    small = run(case, backend="triton", needs=("weight", "hidden"))
    hidden = torch.zeros(2**19 + 128, 4096, dtype=torch.bfloat16, device=device)
    hidden[-64:] = case["hidden"]
    case |= {"hidden": hidden, "step_index": case["step_index"] + len(hidden) - 64}
    large = run(case, backend="triton", needs=("weight",))
    assert_close(large, small)
    # Its own gradient on the device: in float64 on the CPU it would be 17 GB.
    case["hidden"].requires_grad_()
    (gradient,) = torch.autograd.grad(step_loss(**case, backend="triton").loss, case["hidden"])
    assert not gradient[:-64].any()
    assert gradient[-64:].double().cpu().equal(small["hidden"])
