"""Probes that take seconds: tiny models with random weights, and records of a few steps."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tiny import model_folder, write_data
from transformers import AutoConfig, AutoModel

from pqm_fast.common.journal import Journal
from pqm_fast.data.encode import Template
from pqm_fast.probe.options import ProbeConfig


def saved_model(path: Path, architecture: str = "llama", **changes: Any) -> str:
    """A tiny model with weights and a tokenizer. Its final norm is not all ones."""
    folder = model_folder(path, architecture, **changes)
    torch.manual_seed(1)
    model = AutoModel.from_config(AutoConfig.from_pretrained(folder))
    for name, parameter in model.named_parameters():
        if "norm" in name or "ln_f" in name:
            torch.nn.init.normal_(parameter, 1.0, 0.3)
    model.save_pretrained(folder)
    return str(folder)


def config_in(folder: Path, out: str = "run", **changes: Any) -> ProbeConfig:
    """A probe of `folder / "model"` on `folder / "data.jsonl"`, both made if they are missing."""
    if not (folder / "model").exists():
        saved_model(folder / "model")
    if not (folder / "data.jsonl").exists():
        write_data(folder / "data.jsonl")
    options: dict[str, Any] = {
        "model": str(folder / "model"),
        "data": (str(folder / "data.jsonl"),),
        "out": str(folder / out),
        "cache_dir": str(folder / "cache"),
        "layers": (1, 3),
        "learning_rates": (0.03,),
        "epochs": 4,
        "patience": 2,
        "batch_steps": 60,
        "max_tokens": 128,
        "max_length": 64,
        "device": "cpu",
        "dtype": "float32",
        "progress": False,
        "template": Template(step_token="last"),
    }
    return ProbeConfig(**(options | changes))


def killed_at_row(number: int, act: Callable[[], object]) -> None:
    """Runs `act` in a child process, which is killed as it would append this row to a journal."""
    child = os.fork()
    if not child:
        real, calls = Journal.append, []

        def append(journal: Journal, row: dict[str, Any]) -> int:
            calls.append(row)
            if len(calls) == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(journal, row)

        Journal.append = append  # type: ignore[method-assign]
        act()
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
