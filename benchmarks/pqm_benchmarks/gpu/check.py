"""Checks the results and the rates of this card: one case each of the op, AdamW and attention against float64.

Our error may be at most twice that of plain PyTorch at the same precision. The stage takes seconds.
"""

from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from pqm_kernels import AdamW, step_loss
from torch import Tensor

from pqm_benchmarks.gpu.job import Job
from pqm_benchmarks.kernels.implementations import NORM_EPS, ZETA, fused
from pqm_benchmarks.kernels.inputs import SIZES, Inputs, make_inputs
from pqm_benchmarks.shared.devices import copy_rate, matrix_rate, peak_of
from pqm_benchmarks.shared.workload import flat, make_workload
from pqm_fast.common.environment import describe
from pqm_fast.data.pack import PackedBatch, pack
from pqm_fast.errors import PQMError
from pqm_fast.model.attention import Planner, choose_backend
from pqm_fast.model.attention.paths import AttentionPaths

TIMES = 2.0  # our error may be this many times that of plain PyTorch
NEGLIGIBLE = 1e-5  # an error of this size is always allowed: that of float32
HEADS, KEY_VALUE_HEADS, HEAD_DIM = 14, 2, 64  # as in Qwen2.5-0.5B

Compared = Iterator[tuple[str, Tensor, Tensor, Tensor]]
"""(name of the result, ours, plain PyTorch at the same precision, float64)."""


def check(job: Job) -> None:
    """Stores rates and errors.

    Raises:
        PQMError: an error is too large.
    """
    device = torch.device(job.device)
    dtype = torch.bfloat16 if job.on_gpu else torch.float32
    environment = describe()
    job.store(environment=environment, device=job.device)
    copy, matrix = copy_rate(device), matrix_rate(device, dtype)
    rates = {"copy_gb_s": copy, "matrix_tflops": matrix, "peak": peak_of(environment["device"])}
    if job.on_gpu:
        rates["memory_gib"] = torch.cuda.get_device_properties(device).total_memory / 2**30
    headline = f"copy {copy:,.0f} GB/s, matrix product {matrix:,.0f} TFLOP/s" if job.on_gpu else "on a CPU"
    job.store(headline=headline, rates=rates)

    errors: dict[str, dict[str, float]] = {}
    wrong: list[str] = []
    comparisons: dict[str, Callable[[torch.device, torch.dtype], Compared]] = {
        "op": _op,
        "op with siblings": _siblings,
        "AdamW": _adamw,
        "attention": _attention,
        "attention in trees": _attention_in_trees,
    }
    for name, compare in comparisons.items():
        for output, ours, plain, exact in compare(device, dtype):
            error, allowed = _error(ours, exact), TIMES * _error(plain, exact) + NEGLIGIBLE
            errors[f"{name}, {output}"] = {"error": error, "allowed": allowed}
            print(f"{name}, {output}: error {error:.2g}, allowed {allowed:.2g}", flush=True)
            if not error <= allowed:  # NaN is wrong too
                wrong.append(f"{name}, {output}: error {error:.2g}, allowed {allowed:.2g}")
        right = f"{len(errors) - len(wrong)} of {len(errors)} results right"
        job.store(headline=f"{headline}; {right}", errors=errors)
    if wrong:
        raise PQMError("; ".join(wrong))


def _error(output: Tensor, exact: Tensor) -> float:
    """|output - exact| / |exact|, Euclidean."""
    return float(torch.linalg.vector_norm(output.double() - exact) / torch.linalg.vector_norm(exact))


def _op(device: torch.device, dtype: torch.dtype) -> Compared:
    """The op (gather, norm, head and loss), forward and backward."""
    size, width = (SIZES["training"], 1536) if device.type == "cuda" else (SIZES["tiny"], 64)
    inputs = make_inputs(size, width, dtype, device, 0, 0)
    exact = _op_in_pytorch(inputs, torch.float64)
    plain = _op_in_pytorch(inputs, torch.float32)
    names = ("loss", "scores", "gradient of hidden", "of weight", "of bias", "of norm weight")
    yield from zip(names, fused(inputs, "rank", True).forward_backward(), plain, exact, strict=True)


def _siblings(device: torch.device, dtype: torch.dtype) -> Compared:
    """The op with bce, and steps that continue one prefix compared."""
    size, width = (SIZES["training"], 1536) if device.type == "cuda" else (SIZES["tiny"], 64)
    inputs = make_inputs(size, width, dtype, device, 0, 0)

    def run(hidden: torch.dtype, weight: torch.dtype, backend: str) -> tuple[Tensor, ...]:
        leaves = [
            inputs.hidden.detach().to(hidden).requires_grad_(),
            inputs.weight.detach().to(weight).requires_grad_(),
        ]
        out = step_loss(
            leaves[0], inputs.step_index, inputs.labels, inputs.cu_steps, leaves[1], loss="bce", compare="sibling",
            compare_weight=3.0, cu_groups=inputs.cu_groups, parent=inputs.parent, backend=backend,
        )  # fmt: skip
        of_hidden, of_weight = torch.autograd.grad(out.loss, leaves)
        return out.loss.detach(), out.q, of_hidden, of_weight

    ours, exact = run(dtype, torch.float32, "triton"), run(torch.float64, torch.float64, "eager")
    loss, q, of_hidden, of_weight = run(torch.float32, torch.float32, "eager")
    names = ("loss", "scores", "gradient of hidden", "of weight")
    yield from zip(names, ours, (loss, q, of_hidden.to(dtype), of_weight), exact, strict=True)


def _op_in_pytorch(inputs: Inputs, dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Eq. 10 of the paper, trajectory by trajectory."""
    inputs_of_op = (inputs.hidden, inputs.weight, inputs.bias, inputs.norm_weight)
    leaves = [leaf.detach().to(dtype).requires_grad_() for leaf in inputs_of_op]
    hidden, weight, bias, norm_weight = leaves
    x = hidden[inputs.step_index]
    x = x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS) * norm_weight
    q = (x * weight).sum(-1) + bias
    losses = []
    counts = inputs.cu_steps.cpu().diff().tolist()
    for q_values, labels in zip(q.split(counts), inputs.labels.cpu().split(counts), strict=True):
        right, wrong = (q_values[labels.eq(value).nonzero().squeeze(-1).to(q.device)] for value in (1, 0))
        below = 1 + (wrong + ZETA).exp().sum()
        terms = list((below + right.exp().cumsum(0)).log() - right)
        terms += [below.log()] if len(wrong) else []
        losses.append(torch.stack(terms).mean())
    loss = torch.stack(losses).mean()
    of_hidden, *of_head = torch.autograd.grad(loss, leaves)
    if dtype == torch.float32:
        of_hidden = of_hidden.to(inputs.hidden.dtype)
    return loss.detach(), q.detach(), of_hidden, *of_head


def _adamw(device: torch.device, dtype: torch.dtype) -> Compared:
    """How far float32 master weights move in ten steps."""
    options: dict[str, Any] = {"lr": 1e-3, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.01}
    start = torch.randn(2**20 if device.type == "cuda" else 2**12, device=device).mul(0.02).to(dtype)
    gradients = [torch.randn(start.shape, device=device).mul(1e-3).to(dtype) for _ in range(10)]

    def run(optimizer: torch.optim.Optimizer, parameter: Tensor) -> None:
        for gradient in gradients:
            parameter.grad = gradient.to(parameter.dtype)
            optimizer.step()

    ours = torch.nn.Parameter(start.clone())
    update = AdamW([ours], backend="triton", **options)
    run(update, ours)

    def moved_by_torch(precision: torch.dtype) -> Tensor:
        weight = torch.nn.Parameter(start.to(precision, copy=True))
        run(torch.optim.AdamW([weight], foreach=False, **options), weight)
        return weight.detach().double() - start.double()

    moved = update.master(ours).double() - start.double()
    yield "moved", moved, moved_by_torch(torch.float32), moved_by_torch(torch.float64)


def _attention(device: torch.device, dtype: torch.dtype) -> Compared:
    """Solutions packed end to end."""
    yield from _attend(device, dtype, prefix_tree=False)


def _attention_in_trees(device: torch.device, dtype: torch.dtype) -> Compared:
    """Solutions that share prefixes."""
    yield from _attend(device, dtype, prefix_tree=True)


def _attend(device: torch.device, dtype: torch.dtype, prefix_tree: bool) -> Compared:
    questions = 4 if device.type == "cuda" else 1
    first_three = [solutions[:3] for solutions in make_workload(4, 0)[:questions]]
    pairs = list(enumerate(flat(first_three)))
    tokens = sum(len(trajectory.input_ids) for _, trajectory in pairs)
    numbers = np.repeat(np.arange(questions), 3) if prefix_tree else None
    batch = pack(pairs, question=numbers, pad_to=tokens + 100)
    config = SimpleNamespace(head_dim=HEAD_DIM)
    config.get_text_config = lambda: config
    planner = Planner(choose_backend("auto", device, dtype, config))
    plan = planner(batch).to(device)
    shape = len(batch.input_ids), HEAD_DIM
    query, upstream = (torch.randn(1, HEADS, *shape, device=device).to(dtype) for _ in range(2))
    key, value = (torch.randn(1, KEY_VALUE_HEADS, *shape, device=device).to(dtype) for _ in range(2))
    upstream = upstream.transpose(1, 2).clone()
    upstream[:, batch.num_tokens :] = 0  # nothing reads the padding
    sees = _sees(batch).to(device)

    def run(attend: Callable[..., Tensor], precision: torch.dtype) -> tuple[Tensor, ...]:
        leaves = [x.to(precision).requires_grad_() for x in (query, key, value)]
        out = attend(*leaves)
        gradients = torch.autograd.grad(out, leaves, upstream.to(precision))
        return out[:, : batch.num_tokens].detach(), *(g[:, :, : batch.num_tokens] for g in gradients)

    def ours(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return plan.attention.attend(q, k, v, scaling=None)

    def plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (x.repeat_interleave(HEADS // KEY_VALUE_HEADS, 1) for x in (k, v))
        scores = (q @ k.mT * HEAD_DIM**-0.5).masked_fill(~sees, float("-inf"))
        weights = scores.softmax(-1) if scores.dtype == torch.float64 else scores.float().softmax(-1).to(v.dtype)
        return (weights @ v).transpose(1, 2)

    names = ("output", "gradient of query", "of key", "of value")
    yield from zip(names, run(ours, dtype), run(plain, dtype), run(plain, torch.float64), strict=True)


def _sees(batch: PackedBatch) -> Tensor:
    """[T, T] bool: token i sees token j."""
    paths = AttentionPaths.of(batch)
    rows = np.arange(paths.keys.sum()) if paths.rows is None else paths.rows
    sees = np.zeros((len(batch.input_ids), len(batch.input_ids)), dtype=bool)
    for path, queries in zip(np.split(rows, np.cumsum(paths.keys)[:-1]), paths.queries, strict=True):
        for back in range(queries):
            sees[path[-1 - back], path[: len(path) - back]] = True
    return torch.from_numpy(sees)
