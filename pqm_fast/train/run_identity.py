"""What must not change between the start of a run and its resumption: the model, the data and the sizes."""

from collections.abc import Iterator
from typing import Any

from pqm_fast.data.encode import Template
from pqm_fast.errors import PQMError
from pqm_fast.train.checkpoint import Checkpoint
from pqm_fast.train.memory import Sizes

LISTED = 8  # differences that a message names


def run_identity(
    *,
    model: dict[str, Any],
    data: str,
    outcomes: str | None,
    excluded: str | None,
    trajectories: int,
    total_steps: int,
    sizes: Sizes,
    template: Template,
) -> dict[str, Any]:
    """The part of a checkpoint's state that identifies the run, in JSON types.

    `model` is the result of `identify_model` before the first step; `data` is the digest of the training data, and
    `outcomes` that of its outcomes, if the loss reads them; `excluded` that of the ids to leave out, if there are any.
    """
    return {
        **({} if outcomes is None else {"outcomes": outcomes}),
        **({} if excluded is None else {"excluded": excluded}),
        "model": model,
        "data": data,
        "trajectories": trajectories,
        "total_steps": total_steps,
        "micro_batch_tokens": sizes.micro_batch_tokens,
        "micro_batches": sizes.micro_batches,
        "template": template.to_dict(),
    }


def check_identity(checkpoint: Checkpoint, identity: dict[str, Any], model_name: str) -> None:
    """Raises PQMError if the model or the data are not those that the run was started with."""
    stored_state = checkpoint.state
    differences = [
        # another version of transformers has more config values, or fewer
        *_differences(stored_state["model"]["config"], identity["model"]["config"], "config.json", only_shared=True),
        *_differences(stored_state["model"]["weights"], identity["model"]["weights"], "weights"),
    ]
    if differences:
        raise PQMError(
            f"{model_name}: is not the model that the run was started with: {_listed(differences)}; put it back to "
            "resume, or start a new run with it"
        )
    other_names = [name for name in identity if name not in ("model", "total_steps")]
    differences = [line for name in other_names for line in _differences(stored_state.get(name), identity[name], name)]
    if differences:
        raise PQMError(
            f"{checkpoint.path}: the run was started with other data: {_listed(differences)}; put it back to resume"
        )


def _differences(stored: Any, current: Any, name: str, *, only_shared: bool = False) -> Iterator[str]:
    """A description of each value that differs; `only_shared` compares only the keys that both dicts have."""
    if isinstance(stored, dict) and isinstance(current, dict):
        for key in stored.keys() & current.keys() if only_shared else stored.keys() | current.keys():
            yield from _differences(stored.get(key), current.get(key), f"{name}: {key}", only_shared=only_shared)
    elif stored != current:
        yield f"{name} ({_short(stored)} then, {_short(current)} now)"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 70 else f"{text[:60]}..."


def _listed(differences: list[str]) -> str:
    more = f" and {len(differences) - LISTED} more" if len(differences) > LISTED else ""
    return ", ".join(sorted(differences)[:LISTED]) + more
