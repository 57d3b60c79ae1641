"""Rows gathered by index, and their gradients against the definition in float64."""

import math

import pytest
import torch
from cases import BACKENDS
from pqm_kernels import StepsByRow, gather_rows, steps_by_row
from pqm_kernels.gather.kernel import TILE_WIDTH

WIDE = TILE_WIDTH // 4 + 1  # in float32 one column more than a tile
CASES = {  # rows, index
    "a permutation": (5, [3, 0, 4, 1, 2]),
    "paths of a tree": (7, [0, 1, 2, 0, 1, 3, 4, 0, 1, 3, 5, 6]),
    "one row, many copies": (3, [1] * 301),
    "some left out": (60, [59, 7, 7, 0]),
    "nothing": (4, []),
}


def upstream_of(shape, dtype):
    """Of sizes that differ: sums in half precision would show."""
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(shape, generator=generator) * torch.exp2(2 * torch.randn(shape, generator=generator))).to(dtype)


@pytest.mark.parametrize(
    ("case", "dtype", "shape"),
    [
        ("a permutation", torch.float32, (2, 8)),
        ("a permutation", torch.bfloat16, (WIDE,)),
        ("paths of a tree", torch.float16, (3,)),
        ("paths of a tree", torch.float32, (WIDE,)),
        ("one row, many copies", torch.float32, (2, 8)),
        ("one row, many copies", torch.bfloat16, (3,)),
        ("one row, many copies", torch.float16, (1,)),
        ("some left out", torch.bfloat16, (2, 8)),
        ("nothing", torch.float16, (3,)),
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_copies_and_their_summed_gradients(device, backend, case, dtype, shape):
    """Summed in float32 and rounded once: within half a unit in the last place of the sum in float64, but for what
    float32 sums lose."""
    rows, index = CASES[case]
    index = torch.tensor(index, dtype=torch.int64)
    x = torch.arange(rows * math.prod(shape), dtype=dtype).view(rows, *shape).to(device).requires_grad_()
    upstream = upstream_of((len(index), *shape), dtype)
    by_row = StepsByRow(*(part.to(device) for part in steps_by_row(index, rows)))
    got = gather_rows(x, index.to(device), by_row, backend=backend)
    assert torch.equal(got, x.detach()[index.to(device)])
    gradients = [torch.autograd.grad(got, x, upstream.to(device), retain_graph=True)[0].cpu() for _ in range(2)]
    assert torch.equal(*gradients)  # bit for bit
    exact, size = (
        torch.zeros(rows, *shape, dtype=torch.float64).index_add_(0, index, part.double())
        for part in (upstream, upstream.abs())
    )
    truncated = backend == "triton" and dtype == torch.bfloat16 and device == "cpu"  # by the interpreter
    limit = torch.finfo(dtype).eps * (1 if truncated else 0.5) * exact.abs() + len(index) * 2**-24 * size
    assert gradients[0].dtype == dtype
    assert gradients[0].shape == x.shape
    assert (gradients[0].double() - exact).abs().le(limit).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_is_left_out_of_the_inverse_passes_nothing_back(device, backend):
    index = torch.tensor([2, 0, 0, 2], device=device)
    by_row = StepsByRow(*(torch.tensor(part, dtype=torch.int32, device=device) for part in ([1, 2, 0], [0, 2, 2, 3])))
    x = torch.zeros(3, 4, device=device, requires_grad=True)
    upstream = torch.tensor([1.0, 2.0, 4.0, math.nan], device=device)[:, None].expand(4, 4)
    gradient = torch.autograd.grad(gather_rows(x, index, by_row, backend=backend), x, upstream)[0]
    assert gradient[:, 0].tolist() == [6.0, 0.0, 1.0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_any_strides(device, backend):
    index = torch.tensor([1, 0, 1], device=device)
    by_row = steps_by_row(index, 2)
    x = torch.randn(4, 6, 2, device=device).permute(2, 1, 0).requires_grad_()
    upstream = torch.randn(4, 3, 6, device=device).permute(1, 2, 0)
    got = gather_rows(x, index, by_row, backend=backend)
    assert torch.equal(got, x[index])
    gradient = torch.autograd.grad(got, x, upstream)[0]
    assert torch.equal(gradient, torch.stack([upstream[1], upstream[0] + upstream[2]]))


def test_float64_is_summed_in_float64(device):
    index = torch.tensor([1, 0, 1, 1], device=device)
    x = torch.randn(2, 3, dtype=torch.float64, device=device, requires_grad=True)
    torch.autograd.gradcheck(lambda x: gather_rows(x, index, steps_by_row(index, 2)), x)
    with pytest.raises(ValueError, match=r"triton backend does not take torch\.float64; use 'eager'"):
        gather_rows(x, index, steps_by_row(index, 2), backend="triton")
    long = StepsByRow(*(part.long() for part in steps_by_row(index, 2)))
    for wrong, inverse in ((x, long), (x, steps_by_row(index, 3)), (x[:, 0], steps_by_row(index, 2))):
        with pytest.raises(ValueError, match=r"by_row must be int32, its first \[T \+ 1\]"):
            gather_rows(wrong, index, inverse)
    with pytest.raises(ValueError, match="unknown backend 'fused'"):
        gather_rows(x, index, steps_by_row(index, 2), backend="fused")
    gradient = torch.autograd.grad(gather_rows(x, index, steps_by_row(index, 2)).sum(), x, create_graph=True)[0]
    with pytest.raises(RuntimeError, match="does not require grad"):
        gradient.sum().backward()
