"""The table of losses agrees with the reference, the Triton code, the definitions and docs/method.md."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from definitions import DEFINITIONS
from pqm_kernels.fused_step_loss import reference
from pqm_kernels.losses import LOSSES

DEVICE_LOSSES = Path(reference.__file__).with_name("device_losses.py")
METHOD = Path(__file__).parents[2] / "docs" / "method.md"


def triton_branches():
    """{loss: the arguments that its branch of `trajectory_loss` passes to its device function}"""
    [dispatch] = (
        node
        for node in ast.parse(DEVICE_LOSSES.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "trajectory_loss"
    )
    branches = {}
    for node in ast.walk(dispatch):
        if not isinstance(node, ast.If):
            continue
        bodies = [(node.test, node.body)]
        if node.orelse and not isinstance(node.orelse[0], ast.If):  # the last branch asserts its name
            bodies.append((node.orelse[0], node.orelse[1:]))
        for names, [assignment] in bodies:
            [loss] = (part.value for part in ast.walk(names) if isinstance(part, ast.Constant))
            branches[loss] = {argument.id for argument in assignment.value.args}
    return branches


def documented():
    """{loss: the other cells of its row in the table of docs/method.md}"""
    table = METHOD.read_text().split("| loss | labels |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {loss.strip("`"): cells for loss, *cells in rows}


def test_every_place_has_the_same_losses():
    assert list(reference.FUNCTIONS) == list(LOSSES)
    assert list(DEFINITIONS) == list(LOSSES)
    assert list(triton_branches()) == list(LOSSES)
    assert list(documented()) == list(LOSSES)


def test_the_documented_table():
    assert documented() == {
        name: [
            "from 0 to 1" if loss.soft_labels else "0 or 1",
            loss.normalised_by,
            "yes" if loss.uses_zeta else "no",
            "yes" if loss.has_flat_floor else "no",
        ]
        for name, loss in LOSSES.items()
    }


def test_chained_losses_are_those_whose_kernel_gets_a_scratch_value_a_step():
    chained = {name for name, arguments in triton_branches().items() if "x_ptr" in arguments}
    assert chained == {name for name, loss in LOSSES.items() if loss.chained}


@pytest.fixture
def trajectory():
    """Scores, labels and the mask of four steps, the last two of them wrong."""
    q = torch.tensor([[0.3, -1.2, 0.8, 2.0]], dtype=torch.float64, requires_grad=True)
    y, valid = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool)
    return q, y, valid


@pytest.mark.parametrize("loss", LOSSES)
def test_zeta_does_nothing_for_the_losses_without_a_margin(loss, trajectory):
    function = reference.FUNCTIONS[loss]
    depends = bool(function(*trajectory, 1.0) != function(*trajectory, 5.0))
    assert depends == LOSSES[loss].uses_zeta == (loss in ("rank", "rank-theory", "pairwise"))


@pytest.mark.parametrize("loss", LOSSES)
def test_the_gradient_of_the_steps_before_the_last(loss, trajectory):
    q, y, valid = trajectory
    (gradient,) = torch.autograd.grad(reference.FUNCTIONS[loss](q, y, valid, 4.0).sum(), q)
    assert (not gradient[0, :-1].any()) == LOSSES[loss].last_step_only


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("num_wrong", [0, 1])
def test_the_flat_floor(loss, num_wrong):
    """The value where correct steps are alike and far above 0, wrong ones far below it."""
    q = torch.tensor([[30.0] * 5 + [-30.0] * num_wrong], dtype=torch.float64)
    value = reference.FUNCTIONS[loss](q, (q > 0).double(), torch.ones_like(q, dtype=torch.bool), 4.0).item()
    if LOSSES[loss].has_flat_floor:
        assert value == pytest.approx(math.log(120) / (5 + num_wrong), abs=1e-9)


def test_the_table_needs_no_torch():
    code = (
        "import sys; from pqm_kernels.losses import LOSSES; from pqm_kernels import LOSSES as public\n"
        "assert public is LOSSES\n"
        "sys.exit('torch' in sys.modules or 'triton' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_public_names():
    """Whatever has been imported, a public name is what `__all__` says, not a module that has its name."""
    import pqm_kernels

    assert {name: type(getattr(pqm_kernels, name)).__name__ for name in pqm_kernels.__all__} == {
        "LOSSES": "dict",
        "AdamW": "type",
        "StepLoss": "type",
        "StepsByRow": "type",
        "gather_rows": "function",
        "step_loss": "function",
        "steps_by_row": "function",
        "trajectory_losses": "function",
    }
    with pytest.raises(AttributeError, match="no attribute 'step_losses'"):
        _ = pqm_kernels.step_losses
