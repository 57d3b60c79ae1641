"""What a run that goes on must find as it was, for the same steps to follow."""

import shutil
from collections.abc import Iterator
from typing import Any

import torch

from pqm_fast.common.files import remove_leftovers
from pqm_fast.errors import PQMError
from pqm_fast.train.checkpoint import complete_checkpoints, load_checkpoint
from pqm_fast.train.resume import check_length
from pqm_fast.train.setup import Run


def begin(run: Run, optimizer: torch.optim.Optimizer) -> int:
    """Puts a run that goes on back to where it was, and returns how many steps it has done; 0 for a new one.

    Raises PQMError if it is not the same run, is complete, or its checkpoint does not fit.
    """
    config = run.config
    if not config.resume:
        return 0
    if run.begun is not None:
        _check_unchanged(run)
        note = check_length(config, run.begun, run.total_steps, evaluates=bool(len(run.held_out)))
        load_checkpoint(run.begun, run.model, optimizer)
        if note:
            run.notes.append(note)
    folder = config.folder / "checkpoints"
    run.notes += [f"{name} was interrupted while being written: removed" for name in remove_leftovers(folder)]
    if run.begun is None:
        run.notes.append("no complete checkpoint yet: starting from the first step")
        return 0
    for path in complete_checkpoints(folder):
        if path > run.begun.path:  # damaged, as was said
            shutil.rmtree(path)
    if run.begun.state["step"] < run.total_steps:
        for name in ("config.json", "metrics.json", "training.png"):  # of weights that are not the run's last any more
            (config.folder / name).unlink(missing_ok=True)
    run.notes.append(f"resuming from {run.begun.path}")
    return run.begun.state["step"]


def identify(run: Run) -> dict[str, Any]:
    """For the state of a checkpoint, as JSON holds it."""
    return {
        "model": run.model_identity,
        "data": run.training.dataset.digest,
        "trajectories": len(run.training),
        "total_steps": run.total_steps,
        "micro_batch_tokens": run.sizes.micro_batch_tokens,
        "accumulation": run.sizes.accumulation,
        "template": run.recipe.template.to_dict(),
    }


def _check_unchanged(run: Run) -> None:
    assert run.begun is not None
    then, now = run.begun.state, identify(run)
    changed = [
        # another version of transformers has more names, or fewer
        *_differences(then["model"]["config"], now["model"]["config"], "config.json", shared=True),
        *_differences(then["model"]["weights"], now["model"]["weights"], "weights"),
    ]
    if changed:
        raise PQMError(
            f"{run.config.model}: is not the model that the run was started with: {_listed(changed)}; put it back to "
            "resume, or start a new run with it"
        )
    rest = [name for name in now if name not in ("model", "total_steps")]
    changed = [line for name in rest for line in _differences(then.get(name), now[name], name)]
    if changed:
        raise PQMError(
            f"{run.begun.path}: the run was started with other data: {_listed(changed)}; put it back to resume"
        )


def _differences(then: Any, now: Any, name: str, *, shared: bool = False) -> Iterator[str]:
    """Each value that is not the same, by its name; with `shared` those alone that both have."""
    if isinstance(then, dict) and isinstance(now, dict):
        for key in then.keys() & now.keys() if shared else then.keys() | now.keys():
            yield from _differences(then.get(key), now.get(key), f"{name}: {key}", shared=shared)
    elif then != now:
        yield f"{name} ({_short(then)} then, {_short(now)} now)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 70 else f"{text[:60]}..."


def _listed(changed: list[str]) -> str:
    more = f" and {len(changed) - 8} more" if len(changed) > 8 else ""
    return ", ".join(sorted(changed)[:8]) + more
