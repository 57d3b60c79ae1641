"""Sends the figures of a run to TensorBoard, Weights & Biases or Trackio as well. Their libraries are optional, and are
imported only for the trackers that `--track` names."""

import importlib
import json
import re
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, cast

from pqm_fast.common.files import write_json
from pqm_fast.errors import PQMError

IDENTITY_FILE = "tracking.json"
TRACKED_KINDS = ("train", "eval")


@dataclass(frozen=True)
class TrackedRun:
    """What a tracker needs to know before the first figures."""

    folder: Path
    id: str
    """The same for every start of the run."""
    project: str
    options: dict[str, Any]
    """Flat: `template.step_token` for an option in a group."""
    resumed_at: int | None
    """Steps done before this start, if the run is resumed."""


class Tracker(Protocol):
    def log(self, step: int, scalars: dict[str, float]) -> None: ...

    def close(self, complete: bool) -> None:
        """`complete`: the run has reached its end."""


class TensorBoard:
    """Event files in RUN/tensorboard: `tensorboard --logdir RUN`."""

    def __init__(self, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        # what an earlier start wrote about steps that are repeated is hidden
        purge = None if run.resumed_at is None else run.resumed_at + 1
        self.writer = SummaryWriter(str(run.folder / "tensorboard"), purge_step=purge, flush_secs=30)
        plain = {name: value if isinstance(value, int | float) else str(value) for name, value in run.options.items()}
        events = cast(Any, self.writer.file_writer)  # annotated as None, which it is only once closed
        for summary in hparams(plain, {}):  # SummaryWriter.add_hparams would write them into a run of their own
            events.add_summary(summary)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)

    def close(self, complete: bool) -> None:
        self.writer.close()


class WandB:
    """A run of Weights & Biases; its files are in RUN/wandb. WANDB_MODE=offline and the other variables of the library
    count."""

    def __init__(self, run: TrackedRun) -> None:
        import wandb

        self.run = wandb.init(
            project=run.project,
            id=run.id,
            name=run.folder.resolve().name,
            dir=str(run.folder),
            config=run.options,
            allow_val_change=True,  # a run may be resumed with more steps
            resume="allow",
        )
        # The step is a figure of its own: wandb's own count never goes back, and a resumed run repeats steps.
        self.run.define_metric("step")
        for kind in TRACKED_KINDS:
            self.run.define_metric(f"{kind}/*", step_metric="step")

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self.run.log({"step": step, **scalars})

    def close(self, complete: bool) -> None:
        self.run.finish(exit_code=0 if complete else 1)


class Trackio:
    """A run of Trackio, which keeps it where TRACKIO_DIR, TRACKIO_SPACE_ID or TRACKIO_SERVER_URL say."""

    def __init__(self, run: TrackedRun) -> None:
        import trackio

        self.library = trackio
        self.run = trackio.init(project=run.project, name=run.id, config=run.options, resume="allow", embed=False)

    def log(self, step: int, scalars: dict[str, float]) -> None:
        self.run.log(scalars, step=step)

    def close(self, complete: bool) -> None:
        self.library.finish()


TRACKERS: dict[str, Callable[[TrackedRun], Tracker]] = {"tensorboard": TensorBoard, "wandb": WandB, "trackio": Trackio}
LIBRARIES = {"tensorboard": "torch.utils.tensorboard", "wandb": "wandb", "trackio": "trackio"}


def check_libraries(names: Sequence[str]) -> None:
    """Raises PQMError if the library of a tracker cannot be imported."""
    for name in names:
        try:
            importlib.import_module(LIBRARIES[name])
        except ImportError as error:
            raise PQMError(
                f"track: {name} cannot be imported ({error}); install it with: pip install {name}"
            ) from error


class Trackers:
    """The trackers of a run. One that fails is reported once, and the run goes on without it."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self.say = say
        self.open: dict[str, Tracker] = {}

    def start(self, names: Sequence[str], run: TrackedRun) -> None:
        """Raises PQMError if a tracker cannot be started for a new run. A run that is resumed, perhaps by a scheduler
        at night, goes on without it."""
        for name in dict.fromkeys(names):
            try:
                self.open[name] = TRACKERS[name](run)
            except Exception as error:  # whatever the library raises; its exceptions have no common class
                if run.resumed_at is None:
                    raise PQMError(
                        f"track: {name} could not be started ({_reason(error)}); correct this, or leave {name} out of "
                        "--track, and pass --resume: the run folder is there already"
                    ) from error
                self._report(name, "could not be started", error)

    def log(self, kind: str, step: int, figures: dict[str, Any]) -> None:
        """Sends the numbers among the `figures` of a row of metrics.jsonl, as KIND/NAME."""
        if kind in TRACKED_KINDS:
            numbers = {n: v for n, v in figures.items() if isinstance(v, int | float) and not isinstance(v, bool)}
            scalars = {f"{kind}/{name}": float(value) for name, value in numbers.items()}
            self._each(f"failed at step {step:,}", lambda tracker: tracker.log(step, scalars))

    def close(self, complete: bool) -> None:
        self._each("failed at the end", lambda tracker: tracker.close(complete))
        self.open.clear()

    def _each(self, failed: str, act: Callable[[Tracker], None]) -> None:
        for name, tracker in list(self.open.items()):
            try:
                act(tracker)
            except Exception as error:  # as in `start`
                del self.open[name]
                self._report(name, failed, error)

    def _report(self, name: str, failed: str, error: Exception) -> None:
        self.say(f"{name} {failed} ({_reason(error)}): the run goes on without it; metrics.jsonl has every figure")


def tracking_id(folder: Path, say: Callable[[str], None]) -> str:
    """The id under which the run in `folder` is tracked, also when it is resumed: the name of the folder and a random
    part, stored in the folder. A damaged file is named, and replaced."""
    path = folder / IDENTITY_FILE
    if path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))["id"]
            if re.fullmatch(r"[\w.-]{1,100}", stored):
                return stored
        except (ValueError, LookupError, TypeError):
            pass
        say(f"{path}: damaged, so trackers show what follows as a new run")
    name = re.sub(r"[^A-Za-z0-9_.-]+", "-", folder.resolve().name)[:60]
    new_id = f"{name}-{secrets.token_hex(4)}"
    write_json(path, {"id": new_id})
    return new_id


def _reason(error: Exception) -> str:
    """The error in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]
