"""Starts a run from the head of another checkpoint (`--init-head`).

PURE (arXiv 2504.15275) trains the head alone first, and then all weights.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from pqm_kernels import LOSSES
from safetensors import SafetensorError, safe_open

from pqm_fast.common.options import escape
from pqm_fast.data.encode import Template
from pqm_fast.errors import PQMError
from pqm_fast.model.loading import load_config
from pqm_fast.model.recipe import CONFIG_KEY, Recipe
from pqm_fast.model.saving import check_files
from pqm_fast.model.step_q_model import StepQModel

HEADS = ("score", "classifier")


def take_head(model: StepQModel, path: str, template: Template) -> list[str]:
    """Gives `model` the head of the checkpoint in the folder `path`, in float32. Returns what to tell the user, with a
    warning if its backbone has other weights than `model`.

    Raises PQMError if `path` is not a checkpoint of pqm-fast, if its head does not fit the model or reads other tokens
    than those of `template`, and if the model has a trained head itself.
    """
    if model.load_report.head == "loaded":
        raise PQMError(
            f"init_head: {model.load_report.path} has a trained head itself; leave out --init-head to go on with that "
            f"one, or name its backbone with --model to start from the head of {path}"
        )
    config = load_config(path) if (Path(path) / "config.json").is_file() else None
    if getattr(config, CONFIG_KEY, None) is None:
        raise PQMError(f"init_head: {path} is not a checkpoint of pqm-fast; name the folder of a finished run")
    recipe = Recipe.from_config(config, path)
    _check_backbone(model, config, path)
    _check_template(recipe.template, template, path)
    check_files(Path(path))
    head = {
        name.partition(".")[2]: tensor
        for name, tensor in _read(Path(path), lambda name: name.partition(".")[0] in HEADS).items()
    }
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name not in head or head[name].shape != parameter.shape:
                raise PQMError(f"init_head: {path}: the {name} of its head is missing or has another shape")
            parameter.copy_(head[name])
    model.load_report = replace(model.load_report, head="loaded")
    zeta = f", zeta {recipe.zeta:g}" if recipe.loss in LOSSES and LOSSES[recipe.loss].uses_zeta else ""
    notes = [f"head from {path} (loss {recipe.loss}{zeta})"]
    if other := _other_weights(model, Path(path)):
        notes.append(
            f"warning: the backbone of {path} has other weights than {model.load_report.path}, such as {other}, so its "
            "head was trained on other hidden states; --model should be the backbone that it was trained on"
        )
    return notes


def _other_weights(model: StepQModel, folder: Path) -> str | None:
    """The first tensor of the embedding and of the first and the last layer that the checkpoint in `folder` has with
    other values; None if they are the same. Rows of added tokens are left out."""
    last = model.config.get_text_config().num_hidden_layers - 1
    own = {
        name: parameter.detach()
        for name, parameter in model.classifier.named_parameters()
        if parameter is model.embedding or re.search(rf"\.(0|{last})\.", name)
    }
    for name, its in _read(folder, own.__contains__).items():
        ours = own[name]
        rows = min(len(ours), len(its))
        dtype = torch.bfloat16 if torch.bfloat16 in (ours.dtype, its.dtype) else torch.float32
        if not torch.equal(ours[:rows].to("cpu", dtype), its[:rows].to(dtype)):
            return name
    return None


def _check_backbone(model: StepQModel, config: Any, path: str) -> None:
    own, its = model.config.get_text_config(), config.get_text_config()
    if own.model_type != its.model_type or own.hidden_size != its.hidden_size:
        raise PQMError(
            f"init_head: {path} is a {its.model_type} of width {its.hidden_size}, and {model.load_report.path} a "
            f"{own.model_type} of width {own.hidden_size}; a head fits the backbone that it was trained on"
        )
    if own.num_hidden_layers != its.num_hidden_layers:
        raise PQMError(
            f"init_head: {path} has {its.num_hidden_layers} layers, and {model.load_report.path} has "
            f"{own.num_hidden_layers}; the head of one layer does not fit another. Pass --model {path}, which is the "
            "backbone with its head, and leave out --init-head"
        )


def _check_template(trained: Template, template: Template, path: str) -> None:
    theirs, ours = trained.to_dict(), template.to_dict()
    other = [name for name in ours if ours[name] != theirs[name]]
    if other:
        values = ", ".join(f"{name} ({theirs[name]!r} there, {ours[name]!r} here)" for name in other)
        options = " ".join(f"--{name.replace('_', '-')} {shlex.quote(escape(theirs[name]))}" for name in other)
        raise PQMError(
            f"init_head: {path} was trained with another template, so its head reads other tokens: {values}; "
            f"pass {options}"
        )


def _read(folder: Path, wanted: Callable[[str], bool]) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint whose names are wanted."""
    found = {}
    try:
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (it is not a dict)
                    if wanted(name):
                        found[name] = tensors.get_tensor(name)
    except SafetensorError as error:
        raise PQMError(f"init_head: {file} cannot be read: {error}") from error
    return found
