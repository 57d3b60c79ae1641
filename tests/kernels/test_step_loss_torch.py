"""What PyTorch asks of an op: torch.library, torch.compile, CUDA graphs, autocast, repeatability, no surprises."""

import contextlib
import math
import subprocess
import sys

import pytest
import torch
from cases import BACKENDS, INPUTS, UNEVEN, assert_close, define, make_case, run
from pqm_kernels import LOSSES, step_loss, steps_by_row
from pqm_kernels.backends import pick_backend
from pqm_kernels.fused_step_loss import api, op
from torch._dynamo.testing import CompileCounterWithBackend


@pytest.fixture
def opcheck(device, monkeypatch):
    """Checks both ops with the arguments that a call of `step_loss` gives them."""

    def check(*, needs=INPUTS, ahead=False, norm=True, bias=True, dtype=torch.float32, **options):
        case = make_case(device, rows=7, width=5, lengths=[3, 0, 2], norm=norm, bias=bias, dtype=dtype)
        arguments = {}

        def recorded(name, operator):
            return lambda *values: (arguments.setdefault(name, values), operator(*values))[1]

        with monkeypatch.context() as patch:
            patch.setattr(op, "_is_watched", lambda tensor: True)  # else no operator is called
            for name in ("step_loss", "step_loss_backward"):
                patch.setattr(op, name, recorded(name, getattr(op, name)))
            given = {"steps_by_row": steps_by_row(case["step_index"], 7)} if ahead else {}
            run(case, needs=needs, backend="triton", **given, **options)
        torch.library.opcheck(op.step_loss, arguments["step_loss"])
        constant = [value.detach() if isinstance(value, torch.Tensor) else value for value in arguments.popitem()[1]]
        torch.library.opcheck(op.step_loss_backward, constant)

    return check


@pytest.mark.parametrize(
    "given",
    [
        {"loss": "bce", "norm": False, "normalizer": 3.0},
        {"loss": "group-rank", "bias": False, "dtype": torch.float16, "needs": ("hidden",)},
        {"loss": "sibling", "norm": False, "bias": False},
        {"loss": "rank", "compare": "listwise", "needs": ("weight", "norm_weight")},
    ],
    ids=str,
)
def test_opcheck(opcheck, given):
    opcheck(**given)


def test_opcheck_with_a_normalizer_on_the_device(opcheck, device):
    opcheck(normalizer=torch.tensor(3.0, device=device), ahead=True)


@pytest.mark.parametrize("kernel", ["forward_kernel", "rows_kernel", "head_kernel"])
def test_the_poison_works(device, kernel, monkeypatch):
    """With a kernel that does nothing, all that it should have written is NaN."""
    from pqm_kernels.fused_step_loss import backward, forward

    module = forward if kernel == "forward_kernel" else backward
    monkeypatch.setattr(getattr(module, kernel), "launch", lambda *arguments, **options: None)
    found = run(make_case(device, lengths=[3, 2]), backend="triton")
    written = {"forward_kernel": {"loss", "q"}, "rows_kernel": {"hidden"}, "head_kernel": set(INPUTS) - {"hidden"}}
    assert all(found[name].isnan().all() for name in written[kernel])


def compiled(backend, **options):
    """`step_loss` in one graph: hidden, weight, bias and norm_weight come from a layer before, as in a model."""

    def layer(case, loss="rank", zeta=4.0, normalizer=None):
        case = case | {name: case[name] * 2 for name in INPUTS}
        return step_loss(**case, loss=loss, zeta=zeta, normalizer=normalizer, backend="triton").loss * 3

    torch._dynamo.reset()
    return torch.compile(layer, fullgraph=True, backend=backend, **options), layer


def loss_and_gradients(function, case, *options):
    leaves = {name: case[name].detach().clone().requires_grad_() for name in INPUTS}
    total = function(case | leaves, *options)
    return total.detach(), *torch.autograd.grad(total, leaves.values())


def assert_compiled_is_equal(function, layer, case, *options):
    pairs = zip(loss_and_gradients(function, case, *options), loss_and_gradients(layer, case, *options), strict=True)
    assert all(found.equal(expected) for found, expected in pairs)


def test_compiled_in_one_graph(device):
    function, layer = compiled("aot_eager")
    case = make_case(device, rows=9, width=5, lengths=[4, 2])
    for zeta in (4.0, 0.3):
        assert_compiled_is_equal(function, layer, case, "sibling", zeta)


@pytest.mark.parametrize("normalizer", [None, 3.0])
def test_compiled_once_for_all_shapes(device, normalizer):
    """Rows, steps and trajectories change from batch to batch; the graph does not."""
    counter = CompileCounterWithBackend("aot_eager")
    function, layer = compiled(counter, dynamic=True)
    frames = []
    # torch.compile takes sizes that are equal in the first batch to be one size, so none are
    for lengths, rows in (([4, 2, 0, 1], 9), ([3, 0, 70], 30), ([5, 3, 2, 2, 1], 15)):
        case = make_case(device, rows=rows, width=11, lengths=lengths)
        assert_compiled_is_equal(function, layer, case, "bce", 4.0, normalizer)
        frames.append(counter.frame_count)
    assert len(set(frames)) == 1


@pytest.mark.gpu
def test_compiled_by_inductor(device):
    function, layer = compiled("inductor")
    case = make_case(device, rows=9, width=5, lengths=[4, 2])
    found, expected = loss_and_gradients(function, case), loss_and_gradients(layer, case)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("ahead", [True, False])
def test_cuda_graph(device, loss, ahead):
    """Captured with one batch and replayed with another of the same shape, long trajectories included."""
    first, second = (make_case(device, rows=700, lengths=UNEVEN, seed=seed) for seed in (0, 1))
    static = {name: tensor.clone() for name, tensor in first.items()}
    given = {"steps_by_row": steps_by_row(static["step_index"], 700)} if ahead else {}

    def both():
        leaves = [static[name].requires_grad_() for name in INPUTS]
        out = step_loss(**static, loss=loss, backend="triton", **given)
        return out.loss, out.q, *torch.autograd.grad(out.loss, leaves)

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        both()  # compiles
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        results = both()
    for case in (second, first, second):
        with torch.no_grad():
            for name, tensor in case.items():
                static[name].copy_(tensor)
            if ahead:
                for part, value in zip(given["steps_by_row"], steps_by_row(case["step_index"], 700), strict=True):
                    part.copy_(value)
        graph.replay()
        expected = run(case, loss=loss, backend="triton")
        assert all(
            found.detach().double().cpu().equal(value) for found, value in zip(results, expected.values(), strict=True)
        )


@pytest.mark.gpu
@pytest.mark.parametrize("normalizer", [None, 3.0, "tensor"])
def test_nothing_synchronises(device, normalizer):
    case = make_case(device, lengths=UNEVEN)
    normalizer = torch.tensor(3.0, device=device) if normalizer == "tensor" else normalizer
    run(case, backend="triton", normalizer=normalizer)  # compiles
    leaves = [case[name].requires_grad_() for name in INPUTS]
    torch.cuda.set_sync_debug_mode("error")
    try:
        torch.autograd.grad(step_loss(**case, backend="triton", normalizer=normalizer).loss, leaves)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "loss",  # the interpreter runs one program after the other, so there one loss will do
    ["rank", *(pytest.param(loss, marks=pytest.mark.gpu) for loss in LOSSES if loss != "rank")],
)
def test_runs_repeat_bit_for_bit(device, loss):
    case = make_case(device, rows=50, width=4, lengths=[7, 130, 1, 70], dtype=torch.float16)
    first, second = (run(case, backend="triton", loss=loss) for _ in range(2))
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_round(device, backend):
    case = make_case(device)
    expected = run(case, backend=backend)
    with torch.autocast(device, dtype=torch.bfloat16):
        found = run(case, backend=backend)
    assert all(found[name].equal(expected[name]) for name in expected)


def test_second_derivatives(device):
    """The eager backend has them; the triton backend says that it does not, instead of losing them."""
    case = make_case(device, lengths=[4, 2], norm=False)
    case["weight"].requires_grad_()
    loss = step_loss(**case, backend="eager").loss
    (gradient,) = torch.autograd.grad(loss, case["weight"], create_graph=True)
    assert gradient.requires_grad
    loss = step_loss(**case, backend="triton").loss
    with pytest.raises(RuntimeError, match="triton backend has no second derivative"):
        torch.autograd.grad(loss, case["weight"], create_graph=True)


@contextlib.contextmanager
def a_world_of_one():
    store = torch.distributed.HashStore()
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        yield torch.distributed.init_device_mesh("cpu", (1,))
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
@pytest.mark.parametrize("backend", BACKENDS)
def test_dtensors_are_refused(backend):
    """Their shards would be taken for the whole."""
    from torch.distributed.tensor import Replicate, distribute_tensor

    case = make_case("cpu", lengths=[4, 2])
    with a_world_of_one() as mesh:
        for name in case:
            sharded = distribute_tensor(case[name], mesh, [Replicate()])
            with pytest.raises(ValueError, match=rf"^{name} is a DTensor; pass a plain tensor: {name}.to_local\(\)"):
                step_loss(**(case | {name: sharded}), backend=backend)


@pytest.mark.parametrize(
    ("device_type", "dtypes", "best"),
    [
        ("cpu", [torch.float32], "eager"),
        ("cuda", [torch.float32], "triton"),
        ("cuda", [torch.bfloat16, torch.float32], "triton"),
        ("cuda", [torch.float64], "eager"),
        ("cuda", [torch.float16, torch.float64], "eager"),
    ],
)
def test_best_backend(device_type, dtypes, best):
    assert pick_backend("auto", torch.device(device_type), dtypes) == best


@pytest.mark.parametrize("best", BACKENDS)
def test_auto_takes_the_best_backend(device, best, monkeypatch):
    ran = []

    def recorded(name, function):
        return lambda *arguments: (ran.append(name), function(*arguments))[1]

    monkeypatch.setattr(op, "call_step_loss", recorded("triton", op.call_step_loss))
    monkeypatch.setattr(api, "_scores", recorded("eager", api._scores))
    monkeypatch.setattr(api, "pick_backend", lambda *arguments: best)
    case = make_case(device)
    assert_close(run(case), define(case))
    assert set(ran) == {best}


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
