"""Properties of the op on random batches, in both backends: what it equals, and what must not matter to it."""

import math

import pytest
import torch
from cases import BACKENDS, INPUTS, OF_TRAJECTORIES, assert_close, cu_steps_of, define, exact_case, make_case, run
from pqm_kernels import LOSSES

pytest.importorskip("hypothesis")
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

# The same examples in every run; few, as the interpreter is slow, and a GPU's kernels are compiled for nearly each.
FEW = settings(
    max_examples=2,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

pytestmark = pytest.mark.parametrize("backend", BACKENDS)

losses = st.sampled_from(OF_TRAJECTORIES)
zetas = st.sampled_from([0.0, 0.3, 4.0, 1e3])
short = st.lists(st.integers(0, 6), max_size=6)
# Around the parts of 64 steps that a long trajectory is scored in.
long = st.lists(st.sampled_from([0, 1, 40, 65]), min_size=1, max_size=2)
narrow = st.integers(1, 20)
widths = st.one_of(st.integers(1, 300), st.sampled_from([1025]))
shapes = st.one_of(
    st.fixed_dictionaries({"lengths": short, "width": widths}),
    st.fixed_dictionaries({"lengths": long, "width": narrow}),
)


def strided(hidden, layout):
    """The same values with other strides; expanded, the first row everywhere."""
    if layout == "transposed":
        return hidden.t().contiguous().t()
    if layout == "expanded":
        return hidden[:1].expand(hidden.shape)
    every = {"contiguous": (1, 1), "rows": (2, 1), "columns": (1, 3)}[layout]
    wide = hidden.new_full((len(hidden) * every[0], hidden.shape[1] * every[1]), math.nan)
    wide[:: every[0], :: every[1]] = hidden
    return wide[:: every[0], :: every[1]]


@st.composite
def batches(draw, shapes=shapes):
    """A function of device and loss that makes a case: few rows mean many duplicates."""
    shape, seed, rows = draw(shapes), draw(st.integers(0, 99)), draw(st.integers(1, 40))
    norm, bias = draw(st.booleans()), draw(st.booleans())
    layout = draw(st.sampled_from(["contiguous", "rows", "columns", "transposed", "expanded"]))
    alike = draw(st.sampled_from([None, None, None, 0.0, 1.0]))
    index_dtype, label_dtype = draw(st.sampled_from([(torch.int64, torch.float32), (torch.int32, torch.float64)]))

    def make(device, loss):
        case = make_case(device, rows=rows, seed=seed, norm=norm, bias=bias, **shape)
        labels = case["labels"] if alike is None else torch.full_like(case["labels"], alike)
        if LOSSES[loss].soft_labels and seed % 2:
            labels = (labels + torch.arange(len(labels), device=device) % 3) / 3
        case |= {"labels": labels.to(label_dtype), "step_index": case["step_index"].to(index_dtype)}
        return case | {"hidden": strided(case["hidden"], layout), "cu_steps": case["cu_steps"].to(index_dtype)}

    return make


def trajectories_of(case):
    """(step_index, labels) of each."""
    lengths = case["cu_steps"].diff().tolist()
    return list(zip(case["step_index"].split(lengths), case["labels"].split(lengths), strict=True))


def joined(case, trajectories):
    """The case with these trajectories, which are of no question."""
    step_index, labels = (torch.cat(parts) for parts in zip(*trajectories, strict=True))
    cu_steps = cu_steps_of([len(labels) for _, labels in trajectories], labels.device)
    of_questions = dict.fromkeys(("cu_groups", "parent", "outcomes"))
    return case | {"step_index": step_index, "labels": labels, "cu_steps": cu_steps} | of_questions


def assert_same(found, expected, case, tolerance=1e-6, **options):
    """Two runs, but for rounding."""
    assert_close(found, expected | {"terms": define(case, **options)["terms"]}, tolerance)


@settings(FEW, max_examples=8)
@given(st.sampled_from(list(LOSSES)), batches(), zetas)
def test_agrees_with_the_definition(device, backend, loss, batch, zeta):
    case = batch(device, loss)
    # A norm of one column divides by its absolute value: not where that is tiny.
    options = {"loss": loss, "zeta": zeta, "norm_eps": 1e-3}
    assert_close(run(case, backend=backend, **options), define(case, **options))


@FEW
@given(batches(), losses, st.randoms(use_true_random=False))
def test_trajectories_in_any_order(device, backend, batch, loss, random):
    case = batch(device, loss)
    trajectories = [*trajectories_of(case), (case["step_index"][:0], case["labels"][:0])]
    shuffled = random.sample(range(len(trajectories)), len(trajectories))
    options = {"loss": loss, "normalizer": 7}
    before = run(case, backend=backend, **options)
    after = run(joined(case, [trajectories[b] for b in shuffled]), backend=backend, **options)
    q = before.pop("q").split([len(labels) for _, labels in trajectories])
    assert after.pop("q").equal(torch.cat([q[b] for b in shuffled]))
    assert_same(after, before, case, **options)


@FEW
@given(batches(), losses, st.integers(1, 40))
def test_rows_that_nobody_reads(device, backend, batch, loss, more):
    """Not even if they are NaN."""
    case = batch(device, loss)
    rows, width = case["hidden"].shape
    longer = case | {"hidden": torch.cat([case["hidden"], torch.full((more, width), math.nan, device=device)])}
    before, after = (run(inputs, backend=backend, loss=loss) for inputs in (case, longer))
    assert (after["hidden"][rows:] == 0).all()
    after["hidden"] = after["hidden"][:rows]
    assert_same(after, before, case, loss=loss)


@FEW
@given(batches(), losses, st.sampled_from([-1.0, 0.0, 2.0**-10, 2.0**12]))
def test_upstream_scales_gradients(device, backend, batch, loss, upstream):
    case = batch(device, loss)
    once, scaled = (run(case, backend=backend, loss=loss, upstream=factor) for factor in (1.0, upstream))
    for name in once:
        factor = upstream if name in INPUTS else 1.0
        torch.testing.assert_close(scaled[name], once[name] * factor, rtol=1e-6, atol=1e-30)


@st.composite
def exact_batches(draw):
    """Scores that are multiples of 1/8, labels and lengths: sums of them and of zeta are exact in float32."""
    lengths = draw(st.one_of(short, long))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 99)))
    q = torch.randint(-40, 41, (sum(lengths),), generator=generator) / 8
    return q, torch.randint(0, 2, (sum(lengths),), generator=generator).float(), lengths


def run_exact(q, labels, lengths, device, backend, **options):
    case = exact_case(q, labels, lengths, device)
    return run(case, backend=backend, needs=("hidden",), **options), case


@FEW
@given(exact_batches(), st.sampled_from(["rank", "rank-theory", "pairwise"]), st.sampled_from([0.25, 4.0, 1000.0]))
def test_zeta_is_a_shift_of_the_wrong_scores(device, backend, batch, loss, zeta):
    q, labels, lengths = batch
    options = {"loss": loss, "zeta": zeta}
    expected, case = run_exact(q, labels, lengths, device, backend, **options)
    found, _ = run_exact(q + zeta * (1 - labels), labels, lengths, device, backend, loss=loss, zeta=0.0)
    del expected["q"], found["q"]
    assert_same(found, expected, case, **options)
