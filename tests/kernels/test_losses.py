"""The table of losses agrees with the reference, the Triton code, the definitions and docs/explanation/method.md."""

import ast
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import OF_QUESTIONS, OF_TRAJECTORIES
from definitions import DEFINITIONS
from pqm_kernels import trajectory_losses
from pqm_kernels.fused_step_loss import reference
from pqm_kernels.fused_step_loss.reference_questions import QUESTION_FUNCTIONS
from pqm_kernels.losses import LOSSES, LossOptions
from question_definitions import QUESTION_DEFINITIONS

OP = Path(reference.__file__).parent
METHOD = Path(__file__).parents[2] / "docs" / "explanation" / "method.md"


def triton_branches(file, function):
    """{loss: the arguments that its branch of the dispatching function passes to its device function}. None is a loss
    too; a branch that serves several passes on which of them it is."""
    [dispatch] = (
        node
        for node in ast.parse((OP / file).read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == function
    )
    branches = {}
    for node in ast.walk(dispatch):
        if not isinstance(node, ast.If):
            continue
        bodies = [(node.test, node.body)]
        if node.orelse and not isinstance(node.orelse[0], ast.If):  # the last branch asserts its names
            bodies.append((node.orelse[0], node.orelse[1:]))
        for names, [assignment] in bodies:
            arguments = {part.id for part in ast.walk(assignment.value) if isinstance(part, ast.Name)}
            branches |= {part.value: arguments for part in ast.walk(names) if isinstance(part, ast.Constant)}
    return branches


def branches_of_both():
    of_trajectories = triton_branches("device_losses.py", "trajectory_loss")
    assert "x_ptr" not in of_trajectories.pop(None)
    return of_trajectories, triton_branches("device_questions.py", "question_loss")


def documented():
    """{loss: the other cells of its row in the table of docs/explanation/method.md}"""
    table = METHOD.read_text().split("| loss | unit | labels |")[1].split("\n\n")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()[2:]]
    return {loss.strip("`"): cells for loss, *cells in rows}


def test_every_place_has_the_same_losses():
    for places, names in zip(
        ((reference.FUNCTIONS, DEFINITIONS), (QUESTION_FUNCTIONS, QUESTION_DEFINITIONS)),
        (OF_TRAJECTORIES, OF_QUESTIONS),
        strict=True,
    ):
        assert [list(place) for place in places] == [names] * 2
    assert [list(branches) for branches in branches_of_both()] == [OF_TRAJECTORIES, OF_QUESTIONS]
    assert list(documented()) == list(LOSSES)


def test_the_documented_table():
    def labels(loss):
        return "outcomes" if loss.uses_outcomes else "from 0 to 1" if loss.soft_labels else "0 or 1"

    assert documented() == {
        name: [
            loss.unit,
            labels(loss),
            loss.normalised_by,
            "yes" if loss.uses_zeta else "no",
            "yes" if loss.has_flat_floor else "no",
        ]
        for name, loss in LOSSES.items()
    }


@pytest.mark.parametrize(("argument", "flag"), [("x_ptr", "chained")])
def test_what_a_kernel_gets_is_what_the_table_says(argument, flag):
    """A scratch value for each step; weights of steps."""
    of_trajectories, of_questions = branches_of_both()
    given = {name for name, arguments in (of_trajectories | of_questions).items() if argument in arguments}
    assert given == {name for name, loss in LOSSES.items() if getattr(loss, flag)}


@pytest.fixture
def trajectory():
    """Scores, labels and the mask of four steps, the last two of them wrong."""
    q = torch.tensor([[0.3, -1.2, 0.8, 2.0]], dtype=torch.float64, requires_grad=True)
    y, valid = torch.tensor([[1.0, 1.0, 0.0, 0.0]], dtype=torch.float64), torch.ones(1, 4, dtype=torch.bool)
    return q, y, valid


@pytest.mark.parametrize("loss", OF_TRAJECTORIES)
def test_zeta_does_nothing_for_the_losses_without_a_margin(loss, trajectory):
    function = reference.FUNCTIONS[loss]
    depends = bool(function(*trajectory, LossOptions(1.0)) != function(*trajectory, LossOptions(5.0)))
    assert depends == LOSSES[loss].uses_zeta == (loss in ("rank", "rank-theory", "pairwise"))


@pytest.mark.parametrize("loss", OF_TRAJECTORIES)
def test_the_gradient_of_the_steps_before_the_last(loss, trajectory):
    q, y, valid = trajectory
    (gradient,) = torch.autograd.grad(reference.FUNCTIONS[loss](q, y, valid, LossOptions()).sum(), q)
    assert (not gradient[0, :-1].any()) == LOSSES[loss].last_step_only


@pytest.mark.parametrize("loss", OF_TRAJECTORIES)
@pytest.mark.parametrize("num_wrong", [0, 1])
def test_the_flat_floor(loss, num_wrong):
    """The value where correct steps are alike and far above 0, wrong ones far below it."""
    q = torch.tensor([30.0] * 5 + [-30.0] * num_wrong, dtype=torch.float64)
    value = trajectory_losses(q, (q > 0).double(), torch.tensor([0, len(q)]), loss).item()
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
        "Siblings": "type",
        "StepLoss": "type",
        "StepsByRow": "type",
        "gather_rows": "function",
        "question_losses": "function",
        "siblings": "function",
        "step_loss": "function",
        "steps_by_row": "function",
        "trajectory_losses": "function",
    }
    with pytest.raises(AttributeError, match="no attribute 'step_losses'"):
        _ = pqm_kernels.step_losses
