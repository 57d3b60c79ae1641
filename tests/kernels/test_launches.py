"""How the kernels are launched: how often, with which code, and with counters that each launch leaves as it found."""

import contextlib
from types import SimpleNamespace

import pytest
import torch
from cases import UNEVEN, assert_close, define, make_case, run
from pqm_kernels import siblings, step_loss, steps_by_row

pytest.importorskip("triton")

from pqm_kernels import launch
from pqm_kernels.fused_step_loss import counters, forward
from triton import knobs

# A long trajectory, and none.
SHAPES = ([3, 0], [130])


@pytest.mark.parametrize(("lengths", "dtype"), [([3, 0, 70], torch.bool), ([], torch.int64), ([0, 0], torch.float32)])
def test_one_launch_forward_and_two_backward(device, lengths, dtype, monkeypatch):
    case = make_case(device, rows=9, lengths=lengths)
    case["labels"] = case["labels"].to(dtype)
    launched = []
    original = launch.Launcher.launch

    def counted(self, *arguments, **options):
        launched.append(self.kernel.__name__)
        original(self, *arguments, **options)

    monkeypatch.setattr(launch.Launcher, "launch", counted)
    normalizer = torch.tensor(2, dtype=torch.int32, device=device)
    found = run(case, backend="triton", normalizer=normalizer, steps_by_row=steps_by_row(case["step_index"], 9))
    assert launched == ["forward_kernel", "rows_kernel", "head_kernel"]
    assert_close(found, define(case, normalizer=2))


@pytest.mark.parametrize(("loss", "compare"), [("sibling", None), ("bce", "sibling"), ("rank", "group-rank")])
def test_one_launch_with_questions(device, loss, compare, monkeypatch):
    """Nothing sorts, if that has been done in advance."""
    case = make_case(device, rows=9, lengths=[3, 0, 70, 2, 5])
    case["siblings"] = siblings(case["parent"], case["cu_steps"], case["cu_groups"])
    launched = []
    original = launch.Launcher.launch

    def counted(self, *arguments, **options):
        launched.append(self.kernel.__name__)
        original(self, *arguments, **options)

    monkeypatch.setattr(launch.Launcher, "launch", counted)
    if not case["parent"].is_cpu:  # there the order is checked
        monkeypatch.setattr(torch.Tensor, "sort", None)
    by_row = steps_by_row(case["step_index"], 9)
    found = run(case, backend="triton", steps_by_row=by_row, loss=loss, compare=compare)
    assert launched == ["forward_kernel", "rows_kernel", "head_kernel"]
    del case["siblings"]
    assert_close(found, define(case, loss=loss, compare=compare))


def test_counters_are_left_zero(device, monkeypatch):
    """One buffer for all calls, as on a stream of a GPU."""
    cases = [make_case(device, rows=50, width=3, lengths=lengths, seed=7) for lengths in SHAPES]

    def losses():
        return [
            step_loss(**case, loss=loss, compare=compare, backend="triton").loss.item()
            for case in cases
            for loss, compare in (("rank", None), ("bce", "sibling"))
        ]

    expected = losses()
    kept = torch.zeros(64, dtype=torch.int32, device=device)
    monkeypatch.setattr(forward, "zeroed", lambda count, beside: kept)
    assert losses() == losses() == expected
    assert not kept.any()


def test_losses_are_added_in_sweeps(device, monkeypatch):
    monkeypatch.setattr(forward, "LOSSES_PER_SWEEP", 8)
    case = make_case(device, width=2, lengths=[1, 0, 2] * 3)
    assert_close(run(case, backend="triton"), define(case))


def test_many_programs(device, monkeypatch):
    """Which other tests, for want of time, do not have."""
    monkeypatch.setattr(forward, "FEW_PROGRAMS", 0)
    case = make_case(device, rows=60, width=150, lengths=[66])
    assert_close(run(case, backend="triton", loss="rank-theory"), define(case, loss="rank-theory"))


class Kernel:
    """Stands in for one of triton's, and for the code that it compiles: writes down how it is started."""

    def __init__(self):
        self.log = []

    def __getitem__(self, grid):
        def compile_and_run(*arguments, **options):
            self.log.append(("triton", grid, arguments, options))
            return Compiled(self.log, f"code {len(self.log)}")

        return compile_and_run


class Compiled:
    function, packed_metadata = "function", "metadata"

    def __init__(self, log, name):
        self.log, self.name = log, name

    def __getitem__(self, grid):
        return lambda *arguments: self.log.append((f"hooked {self.name}", grid, arguments))

    def run(self, x, y, z, stream, function, metadata, launch_metadata, enter_hook, exit_hook, *arguments):
        assert (stream, function, metadata) == ("stream", "function", "metadata")
        assert launch_metadata is enter_hook is exit_hook is None
        self.log.append((self.name, (x, y, z), arguments))


@pytest.fixture
def kernel(monkeypatch):
    monkeypatch.setattr(torch._C, "_cuda_getCurrentRawStream", lambda device: "stream", raising=False)
    return Kernel()


def test_code_is_looked_up_by_its_key(kernel):
    """The first launch of a key is triton's; later ones, with other arguments, start what it compiled."""
    launcher = launch.Launcher(kernel, maxnreg=128)
    memory = torch.zeros(64)
    even, odd, other = memory[4:], memory[1:], memory[32:]
    for tensor, num_warps in ((even, 4), (odd, 4), (other, 4), (even, 2), (odd, 4)):
        key = (launch.aligned_key(tensor), num_warps)
        launcher.launch(tensor, key, (5, 1, 1), (tensor, 3), num_warps=num_warps)
    assert [entry[0] for entry in kernel.log] == ["triton", "triton", "code 1", "triton", "code 2"]
    assert kernel.log[0][3] == {"num_warps": 4, "maxnreg": 128}
    assert kernel.log[2][1:] == ((5, 1, 1), (other, 3))
    keys = [
        of(tensor) for of in (launch.aligned_key, launch.dtype_key) for tensor in (even, even.half(), even.int(), None)
    ]
    assert len(set(keys)) == len(keys) - 1  # None is None


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_of_triton_are_called(kernel, hook, monkeypatch):
    """Those of a profiler: by triton, as only it knows what to tell them."""
    launcher = launch.Launcher(kernel)
    tensor = torch.zeros(1)
    chain = knobs.HookChain()
    monkeypatch.setattr(knobs.runtime, hook, chain)
    for of_chain in ([], [], [print], []):
        chain.calls[:] = of_chain
        launcher.launch(tensor, (), (1, 1, 1), (tensor,))
    monkeypatch.setattr(knobs.runtime, hook, None)
    launcher.launch(tensor, (), (1, 1, 1), (tensor,))
    assert [entry[0] for entry in kernel.log] == ["triton", "code 1", "hooked code 1", "code 1", "code 1"]


@pytest.fixture
def current(monkeypatch):
    """[the device that is current], of two that need not be there."""
    current = [0]

    @contextlib.contextmanager
    def device(index):
        before, current[0] = current[0], index
        yield
        current[0] = before

    monkeypatch.setattr(torch.cuda, "current_device", lambda: current[0])
    monkeypatch.setattr(torch.cuda, "device", device)
    return current


def test_launches_on_the_device_of_the_tensor(kernel, current):
    """Code is loaded on each device, and triton launches on the current one."""

    class Arguments:
        def __iter__(self):  # at the launch
            yield current[0]

    launcher = launch.Launcher(kernel)
    for number in (0, 1, 0, 1):
        on = SimpleNamespace(get_device=lambda number=number: number)
        launcher.launch(on, (), (1, 1, 1), Arguments())
    found = [(entry[0], *entry[2]) for entry in kernel.log]
    assert found == [("triton", 0), ("triton", 1), ("code 1", 0), ("code 2", 1)]
    assert current == [0]


def test_counters_are_made_anew_while_the_device_of_the_tensor_captures(kernel, current, monkeypatch):
    """The device, that is, which need not be the current one."""
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: current[0] == 1)
    monkeypatch.setattr(counters, "_in_private_pool", lambda tensor: False)
    monkeypatch.setattr(counters, "_kept", {})
    kept = []
    for number in (0, 1):
        beside = SimpleNamespace(get_device=lambda number=number: number, new_zeros=torch.zeros)
        first, second = counters.zeroed(5, beside), counters.zeroed(5, beside)
        kept.append(first.data_ptr() == second.data_ptr())
    assert kept == [True, False]


@pytest.mark.gpu
def test_counters_of_streams():
    """Kept for each stream; made anew within a CUDA graph and in a pool of somebody else."""
    beside = torch.empty(0, device="cuda")
    kept = counters.zeroed(5, beside)
    assert counters.zeroed(1000, beside).data_ptr() == kept.data_ptr()
    assert len(counters.zeroed(5000, beside)) >= 5000
    with torch.cuda.stream(torch.cuda.Stream()) as stream:
        assert counters.zeroed(5, beside).data_ptr() == counters.zeroed(6, beside).data_ptr()
    assert len({made.data_ptr() for made in counters._kept.values()}) == len(counters._kept)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        first, second = counters.zeroed(5, beside), counters.zeroed(5, beside)
    assert first.data_ptr() != second.data_ptr()
    with torch.cuda.use_mem_pool(torch.cuda.MemPool()), torch.cuda.stream(torch.cuda.Stream()):
        first, second = counters.zeroed(5, beside), counters.zeroed(5, beside)
    assert first.data_ptr() != second.data_ptr()


@pytest.mark.gpu
def test_calls_on_two_streams_at_a_time(device):
    """With a graph that is replayed beside them: none counts the programs of another."""
    cases = [make_case(device, rows=700, width=512, lengths=UNEVEN * 20, seed=seed) for seed in range(3)]
    expected = [run(case, backend="triton") for case in cases]
    for case in cases:
        case["hidden"].requires_grad_()

    def gradient(case):
        return torch.autograd.grad(step_loss(**case, backend="triton").loss, case["hidden"])[0]

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        of_graph = gradient(cases[2])
    streams = [torch.cuda.Stream() for _ in range(3)]
    torch.cuda.synchronize()
    found = [[], [], [of_graph]]
    for _ in range(20):
        for number, stream in enumerate(streams):
            with torch.cuda.stream(stream):
                if number == 2:
                    graph.replay()
                else:
                    found[number].append(gradient(cases[number]))
    torch.cuda.synchronize()
    for results, right in zip(found, expected, strict=True):
        assert all(result.double().cpu().equal(right["hidden"]) for result in results)
