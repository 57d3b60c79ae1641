"""FlexAttention: which blocks it computes, and that it is compiled once for batches of every shape."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from layouts import BATCHES, dense, forest, plain, random_tree, seen
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.fx.experimental.symbolic_shapes import statically_known_true
from torch.nn.attention.flex_attention import create_block_mask

from pqm_fast.attention import Planner, flex
from pqm_fast.attention.flex import BLOCK, Flex
from pqm_fast.attention.rule import Rule
from pqm_fast.attention.sdpa import Grouped


def tables(mask):
    """Which [query block, key block] a BlockMask computes under its mask, and which without."""
    found = []
    for count, indices in ((mask.kv_num_blocks, mask.kv_indices), (mask.full_kv_num_blocks, mask.full_kv_indices)):
        table = torch.zeros(indices.shape[-2:], dtype=torch.bool)
        for i, n in enumerate(count[0, 0].tolist()):
            table[i, indices[0, 0, i, :n].long()] = True
        found.append(table)
    return found


@pytest.mark.parametrize("window", [None, 40, 200])
@pytest.mark.parametrize("share", [1.0, 0.4, 0.01])
@pytest.mark.parametrize("name", ["tree", "blocks", "long", "all but one"])
def test_blocks_are_those_that_pytorch_finds(name, share, window):
    """create_block_mask evaluates every pair; ours must be the same blocks, or safe ones under a window."""
    batch, sees = BATCHES[name]()
    rng = np.random.default_rng(0)
    rows = np.flatnonzero(rng.random(len(sees)) < share) if share < 1 else np.arange(len(sees))
    allowed = seen(batch, sees, window)[torch.from_numpy(rows)]
    reference = create_block_mask(lambda b, h, q, kv: allowed[q, kv], None, None, *allowed.shape, device="cpu")
    mask = Flex.of(replace(Rule.of(batch), rows=rows), (window,)).to("cpu").masks[window]
    assert mask.shape == reference.shape
    partial, full = tables(mask)
    blocks = tuple(slice(n) for n in reference.kv_indices.shape[-2:])
    assert all(n == max(2, b.stop) for n, b in zip(partial.shape, blocks, strict=True))
    expected_partial, expected_full = (
        torch.zeros_like(partial),
        torch.zeros_like(full),
    )  # an empty block is added to one
    expected_partial[blocks], expected_full[blocks] = tables(reference)
    if window is None:
        assert torch.equal(partial, expected_partial)
        assert torch.equal(full, expected_full)
    else:
        assert not (partial & full).any()
        assert not (full & ~expected_full).any()  # whole only where it is
        assert not ((expected_partial | expected_full) & ~(partial | full)).any()  # nothing left out
    q, kv = torch.arange(len(rows))[:, None], torch.arange(len(sees))
    assert torch.equal(mask.mask_mod(0, 0, q, kv), allowed)
    again = tables_of_queries(mask)
    assert all(torch.equal(a, b.T) for a, b in zip(again, (partial, full), strict=True))


def tables_of_queries(mask):
    """The same tables as the backward pass reads them, by key block."""
    swapped = type("", (), {})()
    swapped.kv_num_blocks, swapped.kv_indices = mask.q_num_blocks, mask.q_indices
    swapped.full_kv_num_blocks, swapped.full_kv_indices = mask.full_q_num_blocks, mask.full_q_indices
    return tables(swapped)


def test_blocks_leave_work_out():
    """The test above would pass with every block partial if windows were all it tried."""
    partial, full = tables(Flex.of(Rule.of(plain((1024,))[0]), (None,)).to("cpu").masks[None])
    assert torch.equal(partial, torch.eye(8, dtype=torch.bool))
    assert torch.equal(full, torch.ones(8, 8).tril(-1).bool())
    partial, full = tables(Flex.of(Rule.of(plain((1024,))[0]), (256,)).to("cpu").masks[256])
    assert (partial | full).sum() == 8 + 7 + 6  # beside the diagonal two blocks back
    assert full.sum() == 7


def attend_both(batch, sees, *, step_rows=False, window=None, softcap=None, dtype=torch.float32):
    """What Flex gives and what the definition gives, at rows that are no padding, without gradients."""
    packing = Planner("flex", step_rows=step_rows, windows=(None, window))(batch).to("cpu")
    plan, rows = (packing.steps, packing.rows) if step_rows else (packing.tokens, torch.arange(batch.num_tokens))
    index = rows if step_rows else torch.arange(len(sees))
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, h, len(sees), 16, generator=generator, dtype=dtype) for h in (4, 2, 2))
    got = plan.attend(q.index_select(2, index), k, v, scaling=0.3, window=window, softcap=softcap)
    expected = dense(q, k, v, seen(batch, sees, window), 0.3, softcap).index_select(1, rows)
    return got[:, : len(rows)], expected


@pytest.fixture
def compiled(monkeypatch):
    """FlexAttention as on a GPU, compiled, up to the kernel itself. A list of the graphs that were compiled."""
    graphs = []

    def count(graph, inputs):
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(flex, "_compiled", torch.compile(flex._attention, dynamic=True, backend=count))
    monkeypatch.setattr(flex, "_attention", flex.run_compiled)
    yield graphs
    torch._dynamo.reset()


def shapes():
    """Batches of a fixed budget, of other budgets, of no whole blocks, and of fewer tokens than a block."""
    rng = np.random.default_rng(5)
    for total in (512, 512, 512, 1024, 256, 1024, 300, 700, 100, 60, 512):
        sequences = random_tree(rng, int(rng.integers(1, 9)), min(40, total // 9), 3)
        tokens = len({tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)})
        steps = rng.integers(0, tokens, int(rng.integers(1, 400)))
        yield forest(sequences, total - tokens, tuple(steps.tolist()))


@torch.no_grad()
def test_one_kernel_for_batches_of_every_shape(compiled):
    """Fixed budgets (whole blocks) have one, for all layers, windows and numbers of step rows; others have theirs."""
    sizes, counts = set(), []
    for batch, sees in shapes():
        for step_rows in (False, True):
            for window in (None, 7, 33):
                got, expected = attend_both(batch, sees, step_rows=step_rows, window=window)
                assert tiny.relative_error(got, expected) <= 1e-6
                sizes.add((len(sees), got.shape[1]))
        counts.append(len(compiled))
    assert len(sizes) > 12
    assert counts[:6] == [1] * 6  # 512, 1024, 256: whole blocks
    assert counts[-1] == 3  # and then all rows, or whole blocks of them, over keys that are none
    for softcap in (2.0, 5.0):  # one more, whatever the cap is
        got, expected = attend_both(*BATCHES["tree"](), softcap=softcap)
        assert tiny.relative_error(got, expected) <= 1e-6
    assert len(compiled) == 4


@torch.no_grad()
@pytest.mark.parametrize(("pad", "whole"), [(312, True), (99, False)])
def test_what_the_kernel_takes_as_constant(compiled, pad, whole):
    """Not the number of tokens; but the scale, the size of blocks, and that there are only whole ones."""
    attend_both(*plain((200,), pad))
    [graph] = compiled
    inputs = {n.name: n.meta["example_value"] for n in graph.graph.nodes if n.op == "placeholder"}
    assert all(isinstance(inputs[name].shape[2], torch.SymInt) for name in ("l_query_", "l_key_"))
    assert not any("scale" in name for name in inputs)
    assert all(statically_known_true(x == BLOCK) for name, x in inputs.items() if "block_size" in name)
    [options] = [arg for node in kernels_of(graph) for arg in node.args if isinstance(arg, dict)]
    assert options.get("IS_DIVISIBLE", False) == whole


def kernels_of(graph):
    return [node for node in graph.graph.nodes if "flex_attention" in str(node.target)]


@torch.no_grad()
def test_without_a_kernel_it_does_not_go_on(compiled, monkeypatch):
    """torch.compile would fall back to computing every score, without a word."""
    monkeypatch.setattr(flex, "RECOMPILE_LIMIT", 1)
    attend_both(*BATCHES["tree"]())
    with pytest.raises(FailOnRecompileLimitHit):
        attend_both(*BATCHES["tree"](), dtype=torch.float64)


@torch.no_grad()
def test_it_is_compiled_from_within_a_compiled_layer(compiled):
    """The layer's graphs end before the call and begin after it; the kernel is compiled inside all the same."""

    class Layer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.project = torch.nn.Linear(8, 8)

        def forward(self, x, packing):
            q, k, v = (self.project(x).view(1, -1, 1, 8).transpose(1, 2) for _ in range(3))
            return self.project(packing.tokens.attend(q, k, v, scaling=0.3).flatten(2)) + x

    layer, graphs = Layer(), []
    whole = torch.compile(layer, backend=lambda graph, inputs: graphs.append(graph) or graph.forward)
    for sequences in ([(1, 2, 3), (1, 2, 4)], [(5, 6), (5, 6, 7, 8)], [(1,) * 30]):
        batch, _ = forest(sequences, 512 - len({tuple(s[:n]) for s in sequences for n in range(1, len(s) + 1)}))
        packing = Planner("flex")(batch).to("cpu")
        x = torch.randn(1, 512, 8)
        assert torch.allclose(whole(x, packing), layer(x, packing), atol=1e-6)
    assert len(graphs) == 2
    assert not any(map(kernels_of, graphs))
    [graph] = compiled
    assert kernels_of(graph)


def test_what_flex_cannot_do_is_said():
    batch, _ = forest([(1, 2, 3), (1, 2, 4)])
    tokens = Planner("flex")(batch).to("cpu").tokens
    q = torch.randn(1, 2, 4, 16)
    with pytest.raises(ValueError, match="set attention_dropout to 0"):
        tokens.attend(q, q, q, scaling=None, dropout=0.1)
    with pytest.raises(ValueError, match="no block mask for a window of 2"):
        tokens.attend(q, q, q, scaling=None, window=2)


@pytest.mark.gpu
@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("window", [None, 150])
@pytest.mark.parametrize("name", ["blocks", "long"])
def test_compiled_flex_with_gradients(name, window, rows):
    """bfloat16: at most three times as far from float64 as SDPA with the same mask."""
    batch, sees = BATCHES[name]()
    chosen = np.sort(np.random.default_rng(0).choice(batch.num_tokens, 200, replace=False))
    rule = replace(Rule.of(batch), rows=chosen) if rows else Rule.of(batch)
    generator = torch.Generator().manual_seed(0)
    tensors = [
        torch.randn(1, h, n, 64, generator=generator).bfloat16().cuda().requires_grad_()
        for h, n in ((4, len(rule.rows)), (2, len(sees)), (2, len(sees)))
    ]
    upstream = torch.randn(1, len(rule.rows), 4, 64, generator=generator).cuda()
    upstream[:, torch.from_numpy(rule.rows >= batch.num_tokens)] = 0  # padding

    def run(attend):
        out = attend()
        return [out * (upstream != 0), *torch.autograd.grad((out * upstream).sum(), tensors)]

    flex = Flex.of(rule, (window,)).to("cuda")
    grouped = Grouped.of(rule, batch.lengths, causal=False).to("cuda")
    allowed = seen(batch, sees, window)[torch.from_numpy(rule.rows)].cuda()
    exact = run(lambda: dense(*tensors, allowed, 0.125))
    got = run(lambda: flex.attend(*tensors, scaling=0.125, window=window))
    plain_sdpa = run(lambda: grouped.attend(*tensors, scaling=0.125, window=window))
    for a, b, expected in zip(got, plain_sdpa, exact, strict=True):
        assert tiny.relative_error(a, expected) <= 3 * tiny.relative_error(b, expected)
