"""What does not fit is refused by name, in both backends alike."""

import math

import pytest
import torch
from cases import BACKENDS, make_case
from pqm_kernels import Siblings, StepsByRow, step_loss, steps_by_row

ONE = torch.tensor([0, 1])
SIBLINGS = {"loss": "sibling", "cu_groups": ONE, "parent": torch.zeros(3, dtype=torch.int64)}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden": torch.zeros(4)}, r"hidden must be floating point \[T, D\], found torch.float32 \[4\]"),
        ({"step_index": torch.tensor([[0, 1, 2]])}, r"step_index must be int32 or int64 \[S\], found .* \[1, 3\]"),
        ({"step_index": torch.tensor([0, 1, 4])}, r"step_index must lie in 0..3, found 0..4"),
        ({"step_index": torch.tensor([-1, 1, 2])}, r"step_index must lie in 0..3, found -1..2"),
        ({"labels": torch.tensor([1.0, 0.0])}, r"labels must be \[3\]"),
        ({"labels": torch.tensor([1.0, 0.5, 0.0])}, "labels for 'rank' must be 0 or 1"),
        ({"labels": torch.tensor([1.0, math.nan, 0.0]), "loss": "mse"}, r"labels for 'mse' must lie in \[0, 1\]"),
        ({"cu_steps": torch.tensor([0, 2])}, "cu_steps must rise from 0 to 3"),
        ({"cu_steps": torch.tensor([0.0, 3.0])}, "cu_steps must be int32 or int64"),
        ({"weight": torch.zeros(1, 2)}, r"weight must be floating point \[2\], found torch.float32 \[1, 2\]"),
        ({"bias": torch.zeros(())}, r"bias must be floating point \[1\]"),
        (
            {"norm_weight": torch.zeros(2, dtype=torch.int64)},
            "norm_weight must .*, found torch.int64",
        ),
        ({"normalizer": torch.ones((), device="meta")}, "found hidden on cpu and normalizer on meta"),
        ({"weight": torch.zeros(2, device="meta")}, "must be on one device, found hidden on cpu and weight on meta"),
        ({"normalizer": torch.ones(1)}, r"normalizer must be a number or a 0-dim tensor, found torch.float32 \[1\]"),
        ({"loss": "hinge"}, "unknown loss 'hinge'; known: rank, "),
        ({"hidden": torch.zeros(4, 0), "weight": torch.zeros(0)}, r"at least one column, found \[4, 0\]"),
        ({"zeta": torch.tensor(4.0)}, r"zeta must be a finite Python number, found tensor\(4.\)"),
        ({"zeta": math.inf}, "zeta must be a finite Python number, found inf"),
        ({"zeta": True}, "zeta must be a finite Python number, found True"),
        ({"norm_eps": None}, "norm_eps must be a finite Python number"),
        ({"normalizer": 0}, "normalizer must be positive, found 0"),
        ({"normalizer": math.inf}, "normalizer must be a finite Python number"),
        ({"compare": "crm"}, r"compare adds a loss of questions \(sibling, .* of trajectories, found 'crm' and"),
        ({"loss": "sibling", "compare": "listwise"}, "compare adds .*found 'listwise' and 'sibling'"),
        ({"compare": "hinge"}, "unknown loss 'hinge'; known: rank, "),
        ({"loss": "group-rank"}, "'group-rank' compares the solutions of a question: pass cu_groups"),
        ({"compare": "listwise"}, "'listwise' compares the solutions of a question: pass cu_groups"),
        ({"loss": "sibling", "cu_groups": ONE}, "'sibling' compares steps that continue the same prefix: pass parent"),
        ({"cu_groups": torch.tensor([0, 2])}, r"cu_groups must rise from 0 to 1, the number of traj.*= 2"),
        ({"cu_groups": torch.tensor([0.0, 1.0])}, r"cu_groups must be int32 or int64 \[Q \+ 1\], found torch.float32"),
        ({"parent": torch.zeros(2, dtype=torch.int64)}, r"parent must be int32 or int64 \[3\], found .* \[2\]"),
        ({"outcomes": torch.zeros(3)}, r"outcomes must be floating point \[1\], found torch.float32 \[3\]"),
        (SIBLINGS | {"labels": torch.tensor([1.0, 0.5, 0.0])}, "labels for 'sibling' must be 0 or 1; losses that take"),
        (SIBLINGS | {"siblings": Siblings(*torch.zeros(3, 3, dtype=torch.int32))}, "siblings is not siblings"),
        (SIBLINGS | {"siblings": Siblings(*torch.zeros(3, 3))}, r"siblings.order must be int32 \[3\], found"),
        (
            {"loss": "bce", "labels": torch.tensor([1.0, 0.5, 0.0]), "compare": "group-rank", "cu_groups": ONE},
            "labels for 'group-rank' must be 0 or 1",
        ),
        ({"step_weights": torch.ones(3)}, "'rank' takes no step_weights; losses that do: bce, mse, first-error, s"),
        (
            {"loss": "bce", "compare": "listwise", "cu_groups": ONE, "step_weights": torch.ones(3)},
            "'listwise' takes no step_weights",
        ),
        ({"loss": "bce", "step_weights": torch.ones(2)}, r"step_weights must be floating point \[3\]"),
        ({"loss": "bce", "step_weights": torch.tensor([1.0, -1.0, 0.0])}, "step_weights must be finite and at least 0"),
        ({"trajectory_weights": torch.tensor([math.nan])}, "trajectory_weights must be finite and at least 0"),
        ({"trajectory_weights": torch.ones(1, dtype=torch.int64)}, r"trajectory_weights must be floating point \[1\]"),
        ({"trajectory_weights": torch.ones(1, device="meta")}, "hidden on cpu and trajectory_weights on meta"),
        ({"temperature": 0.0}, "temperature must be above 0, found 0.0"),
        ({"noise": (0.1, 1.5)}, r"noise must be two numbers from 0 to 1, found \(0.1, 1.5\)"),
        ({"compare_weight": math.inf}, "compare_weight must be a finite Python number"),
    ],
)
def test_bad_input(change, message):
    case = {
        "hidden": torch.zeros(4, 2),
        "step_index": torch.tensor([0, 1, 2]),
        "labels": torch.tensor([1.0, 0.0, 1.0]),
        "cu_steps": torch.tensor([0, 3]),
        "weight": torch.zeros(2),
    }
    for backend in BACKENDS:
        with pytest.raises(ValueError, match=message):
            step_loss(**(case | change), backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_bad_steps_by_row(backend):
    case = make_case("cpu", rows=4, lengths=[3])
    right = steps_by_row(case["step_index"], 4)
    others = steps_by_row((case["step_index"] + 1) % 4, 4)
    for wrong in (others, StepsByRow(right.order, others.first), StepsByRow(right.order.flip(0), right.first)):
        with pytest.raises(ValueError, match=r"steps_by_row is not steps_by_row\(step_index, len\(hidden\)\)"):
            step_loss(**case, steps_by_row=wrong, backend=backend)
    with pytest.raises(ValueError, match=r"steps_by_row.first must be int32 \[5\], found torch.int32 \[4\]"):
        step_loss(**case, steps_by_row=StepsByRow(right.order, right.first[:-1]), backend=backend)


def test_backends_say_what_they_lack(device):
    case = make_case(device)
    with pytest.raises(ValueError, match="unknown backend 'cuda'; known: auto, eager, triton"):
        step_loss(**case, backend="cuda")
    for name in ("hidden", "weight", "bias", "norm_weight"):
        with pytest.raises(ValueError, match=r"triton backend does not take torch.float64; use 'eager'"):
            step_loss(**(case | {name: case[name].double()}), backend="triton")
