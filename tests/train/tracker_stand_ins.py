"""Modules with the names and signatures of the libraries that `--track` sends figures to. They keep what they get."""

import sys
from types import ModuleType
from typing import Any

import pytest


class Tracked:
    """What a library got: the arguments of each start, (step, scalars) in order, and how each start ended."""

    def __init__(self) -> None:
        self.starts: list[dict[str, Any]] = []
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.ended: list[Any] = []
        self.fails_at: int | None = None
        """The step from which on the library fails."""
        self.fails_to_start = False

    def start(self, **arguments: Any) -> None:
        if self.fails_to_start:
            raise ConnectionError("no route\nto host")
        self.starts.append(arguments)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        if self.fails_at is not None and step >= self.fails_at:
            raise ConnectionError("no route\nto host")
        self.logged.append((step, scalars))


def stand_in(name: str, patch: pytest.MonkeyPatch) -> Tracked:
    """Puts a stand-in of the tracker's library in its place."""
    tracked = Tracked()
    for module, contents in MODULES[name](tracked).items():
        library = ModuleType(module)
        vars(library).update(contents)
        patch.setitem(sys.modules, module, library)
    return tracked


def _tensorboard(tracked: Tracked) -> dict[str, dict[str, Any]]:
    class FileWriter:
        def add_summary(self, summary, global_step=None, walltime=None):
            tracked.starts[-1].setdefault("summaries", []).append(summary)

    class SummaryWriter:
        def __init__(self, log_dir=None, comment="", purge_step=None, max_queue=10, flush_secs=120, filename_suffix=""):
            tracked.start(log_dir=log_dir, purge_step=purge_step)
            self.file_writer = FileWriter()

        def add_scalar(self, tag, scalar_value, global_step=None, walltime=None, new_style=False):
            tracked.log(global_step, {tag: scalar_value})

        def close(self):
            tracked.ended.append(None)

    def hparams(hparam_dict=None, metric_dict=None, hparam_domain_discrete=None):
        assert all(isinstance(value, int | float | str) for value in hparam_dict.values())
        return hparam_dict, "start", "end"

    return {
        "torch.utils.tensorboard": {"SummaryWriter": SummaryWriter},
        "torch.utils.tensorboard.summary": {"hparams": hparams},
    }


def _wandb(tracked: Tracked) -> dict[str, dict[str, Any]]:
    class Run:
        def __init__(self):
            self.step_metrics = {}

        def define_metric(self, name, step_metric=None, step_sync=None, hidden=None, summary=None, overwrite=None):
            self.step_metrics[name] = step_metric

        def log(self, data, step=None, commit=None):
            assert step is None
            assert self.step_metrics == {"step": None, "train/*": "step", "eval/*": "step"}
            tracked.log(data["step"], {name: value for name, value in data.items() if name != "step"})

        def finish(self, exit_code=None, quiet=None):
            tracked.ended.append(exit_code)

    def init(
        entity=None, project=None, dir=None, id=None, name=None, config=None, allow_val_change=None, resume=None
    ):  # those that are used here, in their order
        tracked.start(project=project, dir=dir, id=id, name=name, config=config, resume=resume)
        assert allow_val_change
        return Run()

    return {"wandb": {"init": init}}


def _trackio(tracked: Tracked) -> dict[str, dict[str, Any]]:
    class Run:
        def log(self, metrics, step=None):
            tracked.log(step, metrics)

    def init(project, name=None, config=None, resume="never", embed=True):
        tracked.start(project=project, name=name, config=config, resume=resume)
        assert not embed
        return Run()

    return {"trackio": {"init": init, "finish": lambda: tracked.ended.append(None)}}


MODULES = {"tensorboard": _tensorboard, "wandb": _wandb, "trackio": _trackio}
