"""AdamW as an optimizer: groups, gradients as autograd leaves them, state, copies, and what it refuses."""

import copy
import io
import math

import pytest
import torch
from cases import BACKENDS
from pqm_kernels import AdamW
from test_adamw import DTYPES, FULL, HALF, bits, define, gradients_of, make_param, normal, run, ulp


def saved_and_loaded(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("backend", BACKENDS)
def test_groups_and_parameters_without_a_gradient(device, backend):
    weight, gradients = normal(60).to(device, HALF), gradients_of(3, [60], HALF, device)
    params = [make_param(weight) for _ in range(4)]
    groups = [
        {"params": params[:1], "lr": 1e-3, "weight_decay": 0.0},
        {"params": params[1:2], "betas": (0.5, 0.7), "eps": 1e-4},
        {"params": params[2:]},
    ]
    optimizer = AdamW(groups, lr=1e-2, weight_decay=0.1, backend=backend)
    for gradient in gradients:
        for param in params[:3]:
            param.grad = gradient.clone()
        optimizer.step()
    expected = (
        define(weight, gradients, [1e-3] * 3, weight_decay=0.0),
        define(weight, gradients, [1e-2] * 3, weight_decay=0.1, betas=(0.5, 0.7), eps=1e-4),
        define(weight, gradients, [1e-2] * 3, weight_decay=0.1),
    )
    for param, (right, largest, moved) in zip(params[:3], expected, strict=True):
        error = (optimizer.master(param).double() - right).abs()
        assert (error <= 1.5 * ulp(largest) + 1e-6 * moved).all()
    assert params[3].equal(weight)
    assert params[3] not in optimizer.state
    assert optimizer.master(params[3]).equal(weight.float())


@pytest.mark.parametrize("backend", BACKENDS)
def test_learning_rate_that_changes(device, backend):
    weight, gradients = normal(60).to(device, HALF), gradients_of(4, [60], HALF, device)
    param = make_param(weight)
    optimizer = AdamW([param], lr=8e-3, backend=backend)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5)
    for gradient in gradients:
        run(optimizer, param, [gradient])
        schedule.step()
    expected, largest, moved = define(weight, gradients, [8e-3, 4e-3, 2e-3, 1e-3])
    assert ((optimizer.master(param).double() - expected).abs() <= 2 * ulp(largest) + 1e-6 * moved).all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_that_add_up_in_float32(device, backend):
    """1 + 1/1024 is 1 in bfloat16."""
    param, exact = make_param(normal(8).to(device, HALF), FULL), make_param(normal(8).to(device, HALF), FULL)
    for factor in (1.0, 2.0**-10):
        (param * factor).sum().backward()
    assert param.grad.tolist() == [1 + 2.0**-10] * 8
    optimizer, other = AdamW([param], backend=backend), AdamW([exact], backend=backend)
    optimizer.step()
    run(other, exact, [torch.full_like(param.grad, 1 + 2.0**-10)])
    assert optimizer.state[param]["exp_avg_sq"].equal(other.state[exact]["exp_avg_sq"])
    assert optimizer.state[param]["exp_avg"].tolist() == pytest.approx([0.1 * (1 + 2.0**-10)] * 8, rel=1e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradients_of_any_strides(device, backend):
    gradient = normal(24, 40).to(device, HALF)
    found = []
    for layout in (gradient, gradient.t().contiguous().t(), gradient.repeat_interleave(2, 1)[:, ::2]):
        param = make_param(normal(24, 40).to(device, HALF))
        optimizer = AdamW([param], backend=backend)
        param.grad = layout
        optimizer.step()
        found.append(optimizer.master(param))
    assert found[1].equal(found[0])
    assert found[2].equal(found[0])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [HALF, FULL])
def test_autograd_sees_that_weights_have_changed(device, backend, dtype):
    param = make_param(normal(8).to(device, dtype))
    loss = param.square().sum()
    param.grad = torch.ones_like(param)
    AdamW([param], backend=backend).step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_closure():
    param = make_param(normal(8))

    def closure():
        loss = param.square().sum()
        loss.backward()
        return loss

    expected = param.detach().square().sum()
    assert AdamW([param]).step(closure).equal(expected)
    assert param.grad is not None


@pytest.mark.parametrize("weight_dtype", [HALF, FULL])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("other_backend", BACKENDS)
def test_goes_on_from_a_saved_state(device, weight_dtype, backend, other_backend):
    gradients = gradients_of(8, [70], weight_dtype, device)
    param = make_param(normal(70).to(device, weight_dtype))
    optimizer = AdamW([{"params": [param], "lr": 1e-3}], betas=(0.8, 0.9), backend=backend)
    run(optimizer, param, gradients[:4])
    weight, state = param.detach().clone(), saved_and_loaded(optimizer.state_dict())
    at_save = optimizer.master(param)
    run(optimizer, param, gradients[4:])

    resumed = make_param(weight)
    other = AdamW([resumed], lr=5.0, backend=other_backend)
    other.load_state_dict(state)
    assert bits(other.master(resumed)).equal(bits(at_save))
    run(other, resumed, gradients[4:])
    assert bits(other.master(resumed)).equal(bits(optimizer.master(param)))
    assert resumed.equal(param)
    for name, value in optimizer.state[param].items():
        found = other.state[resumed][name]
        assert found == value if name == "step" else (found.dtype == value.dtype and found.equal(value))
    assert other.param_groups[0]["lr"] == 1e-3


def test_bytes_of_a_parameter():
    """2 of the weight, 2 of its gradient and 10 of state."""
    param = make_param(normal(100).to(HALF))
    optimizer = AdamW([param])
    run(optimizer, param, [torch.ones_like(param)])
    tensors = [param, param.grad, *(value for value in optimizer.state[param].values() if torch.is_tensor(value))]
    assert sum(tensor.element_size() for tensor in tensors) == 14


def test_float32_weights_go_on_from_torch_adamw():
    gradients = gradients_of(6, [70], FULL, "cpu")
    param = make_param(normal(70))
    optimizer = torch.optim.AdamW([param], lr=1e-3)
    run(optimizer, param, gradients[:3])
    resumed = make_param(param.detach())
    other = AdamW([resumed], lr=1e-3)
    other.load_state_dict(saved_and_loaded(optimizer.state_dict()))
    run(other, resumed, gradients[3:])
    expected, largest, moved = define(normal(70), gradients, [1e-3] * 6)
    assert ((resumed.double() - expected).abs() <= 9 * ulp(largest) + 1e-6 * moved).all()  # 1.5 a step of PyTorch's


def test_state_that_does_not_fit():
    param = make_param(normal(6).to(HALF))
    optimizer = AdamW([param])
    run(optimizer, param, [torch.ones_like(param)])
    before = copy.deepcopy(optimizer.state_dict())
    of_torch = torch.optim.AdamW([make_param(param.detach())])
    run(of_torch, of_torch.param_groups[0]["params"][0], [torch.ones_like(param)])
    larger = AdamW([make_param(normal(7).to(HALF))])
    run(larger, larger.param_groups[0]["params"][0], [torch.ones(7, dtype=HALF)])
    for state_dict in (of_torch.state_dict(), larger.state_dict()):
        with pytest.raises(ValueError, match=r"state of parameter 0 \(torch.bfloat16\) must be .*'low': .*, found {"):
            optimizer.load_state_dict(state_dict)
    with pytest.raises(ValueError, match="doesn't match the size"):
        optimizer.load_state_dict(AdamW([make_param(normal(6)), make_param(normal(6))]).state_dict())
    after = optimizer.state_dict()
    assert after["param_groups"] == before["param_groups"]
    assert after["state"][0].keys() == before["state"][0].keys()
    assert after["state"][0]["low"].equal(before["state"][0]["low"])


def test_a_copy_keeps_its_backend():
    param = make_param(normal(6))
    assert copy.deepcopy(AdamW([param], backend="triton")).backend == "triton"
    optimizer = AdamW([param], backend="eager")
    optimizer.load_state_dict(AdamW([param], backend="triton").state_dict())
    assert optimizer.backend == "eager"


@pytest.mark.parametrize("dtype", [HALF, FULL])
def test_master_is_a_copy_of_a_parameter_of_this_optimizer(dtype):
    param = make_param(normal(3, 2).to(dtype))
    optimizer = AdamW([param])
    for _ in range(2):
        before = param.detach().clone()
        optimizer.master(param).zero_()
        assert optimizer.master(param).shape == param.shape
        assert optimizer.master(param).dtype == FULL
        assert param.equal(before)
        run(optimizer, param, [torch.ones_like(param)])
    with pytest.raises(ValueError, match=r"not a parameter of this optimizer: torch.float32 \[4\]"):
        optimizer.master(make_param(normal(4)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, r"lr must be a Python number in \[0, inf\), found -1.0"),
        ({"lr": torch.tensor(1e-3)}, "lr must be a Python number"),
        ({"eps": math.inf}, "eps must be a Python number"),
        ({"weight_decay": -0.1}, "weight_decay must be a Python number"),
        ({"betas": (0.9, 1.0)}, r"betas\[1\] must be a Python number in \[0, 1.0\), found 1.0"),
        ({"betas": (-0.1, 0.9)}, r"betas\[0\] must be a Python number"),
        ({"backend": "cuda"}, "unknown backend 'cuda'; known: auto, eager, triton"),
    ],
)
def test_bad_numbers(options, message):
    with pytest.raises(ValueError, match=message):
        AdamW([make_param(normal(3))], **options)


@pytest.mark.parametrize(
    "weight", [normal(3).half(), normal(3).double(), normal(3, 4).t(), normal(3, 4)[:, :1], normal(1).expand(3)]
)
def test_bad_parameters(weight):
    good = make_param(normal(3))
    optimizer = AdamW([good])
    bad = torch.nn.Parameter(weight)
    with pytest.raises(ValueError, match=r"parameters must be .* contiguous .*, found Parameter torch"):
        AdamW([good, bad])
    with pytest.raises(ValueError, match="contiguous"):
        optimizer.add_param_group({"params": [bad]})
    assert len(optimizer.param_groups) == 1


def test_bad_gradients():
    param = make_param(normal(3).to(HALF), torch.float16)
    optimizer = AdamW([param])
    param.grad = torch.ones(3, dtype=torch.float16)
    with pytest.raises(ValueError, match=r"gradients must be bfloat16 or float32 and dense, found torch.float16"):
        optimizer.step()
    table = torch.nn.Embedding(5, 2, sparse=True)
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(ValueError, match=r"found torch.float32, torch.sparse_coo"):
        AdamW(table.parameters()).step()
    assert not optimizer.state


@pytest.mark.gpu
@pytest.mark.parametrize(("weight_dtype", "gradient_dtype"), DTYPES)
def test_auto_is_triton_on_the_gpu_and_gives_the_bits_of_the_cpu(device, weight_dtype, gradient_dtype):
    found = []
    for on in (device, "cpu"):
        param = make_param(normal(100_003).to(on, weight_dtype), gradient_dtype)
        optimizer = AdamW([param], lr=1e-3)
        run(optimizer, param, gradients_of(20, [100_003], gradient_dtype, on))
        found.append(bits(optimizer.master(param)))
    assert found[0].equal(found[1])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_step_that_is_left_out_changes_nothing(device, backend, dtype):
    """Even one whose gradient is not finite; the steps around it are as if they counted it."""
    weight = torch.linspace(-1, 1, 1537).to(device, dtype)
    param = torch.nn.Parameter(weight.clone())
    optimizer = AdamW([param], lr=1e-2, backend=backend)
    param.grad = torch.full_like(param, 0.5)
    optimizer.step()

    def content():
        return [param.detach().clone(), *(v.clone() for v in optimizer.state[param].values() if torch.is_tensor(v))]

    before = content()
    optimizer.found_inf = torch.ones((), device=device)
    param.grad = torch.full_like(param, torch.nan)
    optimizer.step()
    assert all(torch.equal(old, new) for old, new in zip(before, content(), strict=True))
    assert optimizer.state[param]["step"] == 2
    optimizer.found_inf = torch.zeros((), device=device)
    param.grad = torch.full_like(param, 0.5)
    optimizer.step()
    assert not torch.equal(before[0], param)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_parts_of_a_parameter_get_the_bits_of_the_whole(device, backend, dtype):
    """As when weights are sharded: rows are divided unevenly, and one part has none."""
    generator = torch.Generator().manual_seed(0)
    whole = torch.nn.Parameter(torch.randn(5, 700, generator=generator).to(device, dtype))
    parts = [torch.nn.Parameter(part.clone()) for part in whole.detach().split([2, 2, 1, 0])]
    optimizers = [AdamW([whole], lr=1e-3, backend=backend), AdamW(parts, lr=1e-3, backend=backend)]
    for _ in range(3):
        whole.grad = torch.randn(whole.shape, generator=generator).to(device, dtype)
        for part, gradient in zip(parts, whole.grad.split([2, 2, 1, 0]), strict=True):
            part.grad = gradient.clone()
        for optimizer in optimizers:
            optimizer.step()
    masters = [optimizers[1].master(part) for part in parts]
    assert torch.equal(torch.cat(masters), optimizers[0].master(whole))
