"""What a step of AdamW does to weights, against its definition in float64 and PyTorch's own in float32."""

import math

import pytest
import torch
from cases import BACKENDS
from pqm_kernels import AdamW
from pqm_kernels.adamw import optimizer as adamw

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of NaN and inf
HALF, FULL = torch.bfloat16, torch.float32
DTYPES = [(HALF, HALF), (HALF, FULL), (FULL, HALF), (FULL, FULL)]  # of weight and gradient
SIZE = 1537  # one block of the kernel and a half


def make_param(weight, gradient_dtype=None):
    """A parameter of its own memory."""
    param = torch.nn.Parameter(weight.clone())
    if gradient_dtype is not None:
        param.grad_dtype = gradient_dtype
    return param


def normal(*shape, seed=0, scale=0.02):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * scale


def gradients_of(steps, shape, dtype, device):
    """Of sizes that differ from weight to weight, some of them 0."""
    scale = normal(*shape, seed=1).abs() * (normal(*shape, seed=2) > -0.03)
    return [(normal(*shape, seed=10 + step) * scale).to(device, dtype) for step in range(steps)]


def define(weight, gradients, rates, *, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2):
    """Float64 (weights, the largest absolute value that each of them took, the sum of how far it moved)."""
    w = weight.double()
    m, v, largest, moved = torch.zeros_like(w), torch.zeros_like(w), w.abs(), torch.zeros_like(w)
    for step, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), 1):
        m = betas[0] * m + (1 - betas[0]) * gradient.double()
        v = betas[1] * v + (1 - betas[1]) * gradient.double() ** 2
        move = rate * (m / (1 - betas[0] ** step)) / ((v / (1 - betas[1] ** step)).sqrt() + eps)
        move += rate * weight_decay * w
        w = w - move
        largest, moved = torch.maximum(largest, w.abs()), moved + move.abs()
    return w, largest, moved


def ulp(x):
    """Between float32 numbers of this size."""
    return torch.exp2(torch.frexp(x)[1].double() - 24)


def run(optimizer, param, gradients):
    for gradient in gradients:
        param.grad = gradient.clone()
        optimizer.step()


def bits(tensor):
    return tensor.detach().cpu().view(torch.int32)


@pytest.mark.parametrize(
    ("weight_dtype", "gradient_dtype", "options", "backend"),  # both backends give the same bits: see below
    [
        (HALF, FULL, {"lr": 1e-6, "weight_decay": 0.0}, "eager"),
        (HALF, HALF, {"lr": 1e-6, "weight_decay": 0.1}, "triton"),
        (FULL, HALF, {"lr": 1e-3, "weight_decay": 0.01, "betas": (0.9, 0.95)}, "eager"),
        (HALF, FULL, {"lr": 1e-2, "weight_decay": 0.5, "betas": (0.0, 0.5), "eps": 1e-3}, "eager"),
        (FULL, FULL, {"lr": 1e-6, "weight_decay": 0.1}, "triton"),
    ],
)
def test_agrees_with_the_definition(device, backend, weight_dtype, gradient_dtype, options):
    steps = 60
    weight = normal(SIZE).to(device, weight_dtype)
    gradients = gradients_of(steps, [SIZE], gradient_dtype, device)
    rates = [options["lr"]] * steps
    expected, largest, moved = define(weight, gradients, rates, **{k: v for k, v in options.items() if k != "lr"})

    param = make_param(weight, gradient_dtype)
    optimizer = AdamW([param], **options, backend=backend)
    run(optimizer, param, gradients)
    master = optimizer.master(param)
    error = (master.double() - expected).abs()
    # Each step rounds the weight once, and what it subtracts to a few units in the last place of that.
    assert (error <= steps / 2 * ulp(largest) + 1e-6 * moved).all(), (error / ulp(largest)).max()

    of_torch = make_param(weight.float())
    run(torch.optim.AdamW([of_torch], **options), of_torch, [gradient.float() for gradient in gradients])
    error_of_torch = (of_torch.detach().double() - expected).abs()
    assert error.mean() <= 1.1 * error_of_torch.mean()
    if weight_dtype == HALF:
        apart = (param.double() - master.double()).abs()
        assert (apart <= ulp(master.double()) * 2**15).all()  # half a step of bfloat16
    else:
        assert param.equal(master)


@pytest.mark.parametrize("backend", BACKENDS)
def test_is_torch_adamw_to_the_bit_for_most_weights(device, backend):
    """Where nothing is decayed and steps are small; the others are a few bits apart, of 60 roundings."""
    weight, gradients = normal(SIZE).to(device, HALF), gradients_of(60, [SIZE], FULL, device)
    options = {"lr": 1e-6, "weight_decay": 0.0}
    param, of_torch = make_param(weight, FULL), make_param(weight.float())
    optimizer = AdamW([param], **options, backend=backend)
    run(optimizer, param, gradients)
    run(torch.optim.AdamW([of_torch], **options), of_torch, gradients)
    master, expected = optimizer.master(param), of_torch.detach()
    assert not expected.equal(weight.float())
    assert (master == expected).double().mean() > 0.98
    assert ((master.double() - expected.double()).abs() <= 4 * ulp(torch.maximum(expected, weight).double())).all()


@pytest.mark.parametrize(
    ("weight_dtype", "gradient_dtype", "shape"),
    [
        *((*dtypes, [1025]) for dtypes in DTYPES),
        *((HALF, FULL, shape) for shape in ([0], [], [1], [15], [1024], [3, 5, 7])),
    ],
)
def test_backends_give_the_same_bits(device, weight_dtype, gradient_dtype, shape):
    weight = normal(*shape).to(device, weight_dtype)
    gradients = gradients_of(5, shape, gradient_dtype, device)
    states = []
    for backend in BACKENDS:
        param = make_param(weight, gradient_dtype)
        optimizer = AdamW([param], backend=backend)
        run(optimizer, param, gradients)
        states.append([optimizer.master(param), *optimizer.state[param].values()])
        assert param.numel() < 15 or not param.equal(weight)
    for one, other in zip(*states, strict=True):
        assert one.equal(other) if isinstance(one, torch.Tensor) else one == other


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [HALF, FULL])
def test_gradients_of_any_size(device, backend, dtype):
    """From subnormal to those with an infinite square, to the bits of plain PyTorch on the CPU."""
    smallest = -126.0 if dtype == HALF and device == "cpu" else -149.0  # the interpreter has no subnormal bfloat16
    sizes = torch.exp2(torch.arange(smallest, 128.0)).to(dtype)
    gradients = [torch.cat([sizes, -sizes, torch.zeros(9, dtype=dtype)]) * sign for sign in (1, 0, -1)]
    weight, found = normal(len(gradients[0])).to(HALF), []
    for on, how in ((device, backend), ("cpu", "eager")):
        param = make_param(weight.to(on), dtype)
        optimizer = AdamW([param], backend=how)
        run(optimizer, param, [gradient.to(on) for gradient in gradients])
        state = optimizer.state[param]
        found.append([optimizer.master(param).cpu(), state["exp_avg"].cpu(), state["exp_avg_sq"].cpu()])
    for one, other in zip(*found, strict=True):
        assert one.nan_to_num(1.25).equal(other.nan_to_num(1.25))
        assert bits(one)[~one.isnan()].equal(bits(other)[~other.isnan()])
    assert 0.5 < found[0][0].isfinite().double().mean() < 1  # 2^64 squared is infinite


def every_upper_half():
    """Float32 bits: each upper half with the lower ones around a tie, and any bits. Subnormals, zeros, infinities."""
    low = torch.tensor([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF])
    edges = (torch.arange(2**16)[:, None] * 2**16 + low).flatten()
    anything = torch.randint(2**32, (2**18,), generator=torch.Generator().manual_seed(0))
    return torch.cat([edges, anything]).to(torch.int32).view(FULL)  # which keeps the lower 32 bits


def test_split_is_a_bijection():
    master = every_upper_half()
    weight, low = adamw.split(master)
    number = ~master.isnan()
    assert bits(adamw.join(weight, low))[number].equal(bits(master)[number])
    assert weight[~number].isnan().all()
    assert adamw.join(weight, low)[~number].isnan().all()
    tie = (bits(master) & 0xFFFF) == 0x8000
    rounded = master.bfloat16()  # to nearest, ties to even
    assert weight[number & ~tie].view(torch.int16).equal(rounded[number & ~tie].view(torch.int16))
    away = (bits(master)[number & tie] + 0x8000).view(FULL)
    assert weight[number & tie].float().equal(away)
    assert (away.abs() > master[number & tie].abs()).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_step_of_nothing_keeps_every_bit(device, backend):
    master = every_upper_half()
    master = master[adamw.split(master)[0].isfinite()].to(device)
    master = master[:: 1 if device == "cuda" else 121]  # which the interpreter has time for
    weight, low = adamw.split(master)
    param = make_param(weight)
    optimizer = AdamW([param], lr=0.0, backend=backend)
    run(optimizer, param, [torch.zeros_like(param)])
    optimizer.state[param]["low"].copy_(low)
    run(optimizer, param, [torch.zeros_like(param)])
    assert bits(optimizer.master(param)).equal(bits(master))
    assert param.detach().view(torch.int16).equal(weight.view(torch.int16))


@pytest.mark.parametrize("backend", BACKENDS)
def test_steps_below_the_precision_of_the_weight_add_up(device, backend):
    """Between bfloat16 numbers next to 0.02 lie 122 steps of 1e-6."""
    param = make_param(torch.tensor([0.02, -0.02], device=device).to(HALF))
    start = param.detach().clone()
    optimizer = AdamW([param], lr=1e-6, weight_decay=0.0, backend=backend)
    gradient = torch.ones_like(param)
    run(optimizer, param, [gradient] * 50)
    assert param.equal(start)
    assert torch.allclose(start.float() - optimizer.master(param), torch.tensor(50e-6, device=device), rtol=1e-3)
    run(optimizer, param, [gradient] * 20)
    assert (start.double() - param.double()).allclose(torch.tensor(2.0**-13, device=device).double(), rtol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weight_dtype", [HALF, FULL])
def test_a_gradient_that_is_not_finite_shows(device, backend, weight_dtype):
    bad = torch.tensor([0x7FC00000, 0x7FFFFFFF, 0xFFFFFFFF, 0x7F800000, 0xFF800000])  # three NaNs, inf, -inf
    bad = bad.to(torch.int32).view(FULL).to(device)
    for start in (0.5, -0.5):
        param = make_param(torch.full((7,), start, device=device).to(weight_dtype), FULL)
        optimizer = AdamW([param], lr=1e-2, backend=backend)
        gradient = torch.ones(7, device=device)
        gradient[1:6] = bad
        run(optimizer, param, [gradient, torch.ones_like(gradient)])
        for weights in (param, optimizer.master(param)):
            assert weights.isnan().tolist() == [False, *[True] * 5, False]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_weight_beyond_bfloat16_is_infinite_and_its_master_exact(device, backend):
    start = torch.tensor([3.389e38, -3.389e38], device=device).to(HALF)  # the largest
    param = make_param(start)
    optimizer = AdamW([param], lr=1e36, weight_decay=0.0, backend=backend)
    run(optimizer, param, [torch.tensor([-1.0, 1.0], device=device).to(HALF)])
    assert param.tolist() == [math.inf, -math.inf]
    assert optimizer.master(param).allclose(start.float() + torch.tensor([1e36, -1e36], device=device), rtol=1e-6)


def test_parts_of_a_large_parameter(monkeypatch):
    weight, gradients = normal(40, 25).to(HALF), gradients_of(3, [40, 25], HALF, "cpu")
    masters = []
    for chunk in (2**18, 64, 1):
        monkeypatch.setattr(adamw, "CHUNK", chunk)
        param = make_param(weight)
        optimizer = AdamW([param], lr=1e-2, backend="eager")
        run(optimizer, param, gradients)
        masters.append(optimizer.master(param))
    assert masters[0].equal(masters[1])
    assert masters[0].equal(masters[2])


@pytest.mark.gpu
def test_more_than_int32_elements(device):
    """30 GB: 2^31 weights and a block more."""
    size = 2**31 + 1024
    param = torch.nn.Parameter(torch.zeros(size, dtype=HALF, device=device))
    param.grad = torch.zeros_like(param)
    part = normal(2048, seed=1).to(device, HALF)
    param.grad[:1024], param.grad[-1024:] = part[:1024], part[1024:]
    optimizer = AdamW([param], lr=1e-2, backend="triton")
    optimizer.step()
    small = make_param(torch.zeros(2048, dtype=HALF, device=device))
    other = AdamW([small], lr=1e-2, backend="eager")
    run(other, small, [part])
    ends = torch.cat([param.detach()[:1024], param.detach()[-1024:]])
    assert ends.equal(small)
    assert not param.detach()[1024:-1024].any()


@pytest.mark.gpu
def test_does_not_synchronise_the_device(device):
    params = [make_param(normal(SIZE).to(device, dtype)) for dtype in (HALF, FULL)]
    optimizer = AdamW(params)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
