"""Starts a run from the head of another checkpoint (`--init-head`).

PURE (arXiv 2504.15275) trains the head alone first, and then all weights.
"""

import shlex
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


def take_head(model: StepQModel, path: str, template: Template) -> str:
    """Gives `model` the head of the checkpoint in the folder `path`, in float32. Returns what to tell the user.

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
    head = _read_head(Path(path))
    with torch.no_grad():
        for name, parameter in model.head.named_parameters():
            if name not in head or head[name].shape != parameter.shape:
                raise PQMError(f"init_head: {path}: the {name} of its head is missing or has another shape")
            parameter.copy_(head[name])
    model.load_report = replace(model.load_report, head="loaded")
    zeta = f", zeta {recipe.zeta:g}" if recipe.loss in LOSSES and LOSSES[recipe.loss].uses_zeta else ""
    return f"head from {path} (loss {recipe.loss}{zeta})"


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


def _read_head(folder: Path) -> dict[str, torch.Tensor]:
    """The tensors of the head by their name in it, such as weight; empty if there is none."""
    head = {}
    try:
        for file in folder.glob("*.safetensors"):
            with safe_open(file, framework="pt") as tensors:
                for name in tensors.keys():  # noqa: SIM118 (it is not a dict)
                    module, _, part = name.partition(".")
                    if module in HEADS:
                        head[part] = tensors.get_tensor(name)
    except SafetensorError as error:
        raise PQMError(f"init_head: {file} cannot be read: {error}") from error
    return head
