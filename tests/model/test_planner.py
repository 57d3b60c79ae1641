"""The plan of a batch: its contents, where it may be made, and how it reaches the device."""

import pickle
from dataclasses import fields, is_dataclass

import numpy as np
import pytest
import torch
from layouts import BATCHES, forest, plain, random_tree
from torch.utils.data import DataLoader

from pqm_fast.model.attention import BACKENDS, Planner, kernels
from pqm_fast.model.attention.sdpa import PaddedAttention
from pqm_fast.model.attention.varlen import VarlenAttention


def tensors(x):
    """All tensors of a plan."""
    if torch.is_tensor(x):
        return [x]
    if is_dataclass(x):
        x = [getattr(x, field.name) for field in fields(x)]
    elif isinstance(x, dict):
        x = list(x.values())
    return [t for part in x for t in tensors(part)] if isinstance(x, list | tuple) else []


def test_a_plan_lists_each_row_once():
    batch, _ = forest([(1, 2, 3), (1, 2, 4), (5, 6)], step_tokens=(1, 2, 1, 3, 5))
    plan = Planner("sdpa", step_rows_only=True)(batch)
    assert plan.head.tokens.tolist() == [1, 2, 3, 5]
    assert plan.head.tokens[plan.head.step_index].tolist() == batch.step_tokens.tolist()
    assert Planner("sdpa")(batch).head.tokens is None
    assert Planner("sdpa")(batch).head.step_index is batch.step_tokens


@pytest.mark.parametrize(("steps", "padded"), [(1, 16), (16, 16), (17, 32)])
def test_rows_are_padded_to_a_multiple_of_16(steps, padded):
    rows = list(range(3, 3 + steps))
    batch, _ = plain((40,), 12, step_tokens=rows)
    plan = Planner("sdpa", step_rows_only=True, row_multiple=16)(batch)
    assert plan.head.tokens.tolist() == rows + rows[-1:] * (padded - steps)
    assert plan.head.tokens[plan.head.step_index].tolist() == rows


def test_each_backend_has_its_attention():
    tree, _ = forest([(1, 2, 3), (1, 2, 4)], step_tokens=(2,))
    straight, _ = plain((4, 5), step_tokens=(2,))
    for backend in BACKENDS:
        for batch in (tree, straight):
            attention = Planner(backend)(batch).attention
            assert type(attention) is (PaddedAttention if backend == "sdpa" else VarlenAttention)
            assert backend == "sdpa" or (attention.gather_paths is None) == (batch is straight)


@pytest.fixture
def any_kernel(monkeypatch):
    """A stand-in for a GPU kernel that depends on all of its arguments, so that equal calls give equal results."""
    monkeypatch.setattr(kernels, "HALF", (torch.float32,))

    def called(q, k, v, *, cu_queries, cu_keys, longest_query, longest_key, **options):
        return q * cu_queries.sum() + cu_keys.sum() + longest_query * longest_key * k.sum()

    monkeypatch.setattr(kernels, "find", lambda *args, **kwargs: called)


@pytest.mark.parametrize("name", ["tree", "plain"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_plan_can_be_pickled(any_kernel, backend, name):
    batch, sees = BATCHES[name]()
    planner = pickle.loads(pickle.dumps(Planner(backend, step_rows_only=True)))
    plan = planner(batch)
    copy = pickle.loads(pickle.dumps(plan))
    q = torch.randn(1, 2, len(sees), 16)
    outputs = [p.to("cpu").attention.attend(q, q, q, scaling=None, window=2) for p in (plan, copy)]
    assert torch.equal(*outputs)
    assert torch.equal(copy.head.tokens, plan.head.tokens)


class Layer(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.project = torch.nn.Linear(8, 8)

    def forward(self, x, plan):
        heads = self.project(x).view(1, -1, 1, 8).transpose(1, 2)
        return self.project(plan.attention.attend(heads, heads, heads, scaling=0.3).flatten(2)) + x


@pytest.mark.parametrize("name", ["tree", "plain"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_is_not_compiled_with_its_layer(any_kernel, backend, name):
    """There is one graph before it and one after it, which serve batches of every layout."""
    torch._dynamo.reset()
    layer, graphs = Layer(), []
    compiled = torch.compile(layer, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    for seed in range(9):  # one more than the recompile limit of torch.compile
        rng = np.random.default_rng(seed)
        batch, sees = forest(random_tree(rng, 5, 20, 3)) if name == "tree" else plain(rng.integers(1, 9, seed + 1), 2)
        x = torch.randn(1, 200, 8)[:, : len(sees)]
        with torch.no_grad():
            plan = Planner(backend)(batch).to("cpu")
            assert torch.allclose(compiled(x, plan), layer(x, plan), atol=1e-5)
    assert len(graphs) <= 4  # two, and two more once the number of tokens is known to vary
    assert all(sum("linear" in str(n.target) for n in g.graph.nodes) == 1 for g in graphs)
    torch._dynamo.reset()


class Collate:
    """A batch and its plan, made in a worker."""

    def __init__(self, planner):
        self.planner = planner

    def __call__(self, names):
        batch, _ = BATCHES[names[0]]()
        assert not torch.cuda.is_initialized()
        plan = self.planner(batch)
        assert not torch.cuda.is_initialized()
        assert all(t.device.type == "cpu" for t in tensors(plan))
        return plan


@pytest.mark.parametrize("backend", BACKENDS)
def test_it_plans_in_the_workers_of_a_loader(backend):
    planner = Planner(backend, step_rows_only=True)
    names = ["plain", "tree"]
    loader = DataLoader(names, batch_size=1, num_workers=1, collate_fn=Collate(planner))
    for name, plan in zip(names, loader, strict=True):
        here = planner(BATCHES[name]()[0])
        assert type(plan.attention) is type(here.attention)
        assert len(tensors(plan)) == len(tensors(here)) > 3
        assert all(map(torch.equal, tensors(plan), tensors(here)))


@pytest.mark.parametrize("name", ["tree", "plain"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_every_tensor_is_pinned(monkeypatch, backend, name):
    plan = Planner(backend, step_rows_only=True)(BATCHES[name]()[0])
    before = tensors(plan)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: pinned.append(x) or x.clone())
    after = plan.pin_memory()
    assert sorted(map(id, pinned)) == sorted(map(id, before))
    assert all(map(torch.equal, tensors(after), before))


@pytest.mark.gpu
@pytest.mark.parametrize("name", ["tree", "plain"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_loader_pins_it_and_nothing_waits(backend, name):
    planner = Planner(backend, step_rows_only=True)
    [plan] = DataLoader([name], batch_size=1, pin_memory=True, collate_fn=lambda names: planner(BATCHES[name]()[0]))
    assert all(t.is_pinned() for t in tensors(plan) if t.numel())  # an empty tensor has no memory to pin
    torch.cuda.set_sync_debug_mode("error")
    try:
        moved = plan.to("cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert all(t.is_cuda for t in tensors(moved))
