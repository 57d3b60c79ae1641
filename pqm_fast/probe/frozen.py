"""A frozen decoder, and the data sets whose hidden states it has computed or found in the cache."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pqm_fast.common.journal import stored_inputs
from pqm_fast.common.lock import locked
from pqm_fast.data.dataset import TrajectoryDataset
from pqm_fast.data.encode import Encoder
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.token_cache import cache_root, load_dataset
from pqm_fast.data.tokenise import Wanted
from pqm_fast.errors import PQMError
from pqm_fast.evaluate.outcomes import outcome
from pqm_fast.model.cut import cut_backbone, final_norm
from pqm_fast.model.device import dtype_name, pick_device, pick_dtype
from pqm_fast.model.identity import identify_model
from pqm_fast.model.loading import load_classifier, load_config
from pqm_fast.model.saving import check_files
from pqm_fast.model.step_q_model import StepQModel
from pqm_fast.model.tokenizer import load_tokenizer
from pqm_fast.probe.compute_states import check_layers, compute_states, tokens_digest
from pqm_fast.probe.options import ProbeConfig
from pqm_fast.probe.state_files import StateFiles

LAYOUT = 1  # raise it when the stored states change: older ones are then ignored
DEFAULT_LENGTH = 4096  # longest trajectory in tokens, where the model has a longer context


def with_dtype(config: ProbeConfig, out: Path) -> ProbeConfig:
    """The options with the dtype of the interrupted run whose journal is for `out`, if they leave it open: what auto
    means on a CPU is measured, and may change."""
    stored = (stored_inputs(out) or {}).get("dtype", "auto")
    return replace(config, dtype=stored) if config.dtype == "auto" else config


@dataclass(frozen=True)
class Probed:
    """A data set with the states of its steps."""

    dataset: TrajectoryDataset
    files: StateFiles

    @cached_property
    def row_of_step(self) -> np.ndarray:
        """[S] int64: the row of each step of the data set, flat."""
        return self.files.row_of_step()

    def rows(self, layer: int) -> torch.Tensor:
        """The states [R, D] of a layer, on the host."""
        return self.files.rows(layer)


class FrozenDecoder:
    """The decoder that `config` names, as far as the highest layer that is probed.

    Raises PQMError for a model that cannot be used. `notes` gets what a user should know.
    """

    def __init__(self, config: ProbeConfig, notes: list[str]):
        self.config, self.notes = config, notes
        self.device = pick_device(config.device)
        model_config = load_config(config.model)
        self.depth: int = model_config.get_text_config().num_hidden_layers
        self.layers = check_layers(config.layers, self.depth, config.model)
        self.dtype = pick_dtype(config.dtype, self.device, config.model, notes)
        self.identity = identify_model(config.model, model_config) | {
            "revision": getattr(model_config, "_commit_hash", None)  # of weights from the hub
        }
        self.tokenizer = load_tokenizer(config.model, notes)
        self.template = config.template.resolve(self.tokenizer)
        self.model = self._load(max(self.layers))
        self.width: int = self.model.config.get_text_config().hidden_size
        norm = final_norm(self.model.backbone)
        self.norm = None if norm is None else (norm[0].to(self.device), norm[1])
        """(weight [D] float32 on the device, eps) of the final RMSNorm, which heads compute; None if states are those
        after a norm of another kind."""
        context = self.model.context
        length = config.max_length or min(context, DEFAULT_LENGTH)
        if length > context:
            raise PQMError(f"max_length: {length} is more than the model's context of {context} tokens")
        self.encoder = Encoder(self.tokenizer, self.template, length)
        self._intact: set[Path] = set()  # folders of states that need not be read through again

    def _load(self, layer: int) -> StepQModel:
        """The decoder up to `layer`, with a head that is not trained, on the device."""
        config = self.config
        check_files(Path(config.model))
        torch.manual_seed(0)  # of the head, and of random weights
        classifier, report = load_classifier(config.model, load_config(config.model), self.dtype, self.device)
        cut_backbone(classifier, layer)
        model = StepQModel.of(classifier, config.model, device=self.device, attention=config.attention)
        self.notes += report.notes if report.random_weights else []
        if added := model.fit_vocabulary(self.tokenizer, self.template.step_token):
            self.notes.append(added)
        return model

    def probed(self, data: Sequence[str], *, outcomes: bool, read: ReadOptions | None = None) -> Probed:
        """The records of `data` with the states of all layers, computed as far as they are not in the cache.

        `outcomes`: also reads whether solutions are right. `read`: how, if not as the options say. Raises PQMError for
        records that cannot be used.
        """
        config, names = self.config, ", ".join(data)
        wanted = Wanted(outcome if outcomes else None, labels=False)
        dataset = load_dataset(data, read or config.read, self.encoder, config.cache_dir, wanted)
        self.notes += dataset.notes
        folder = cache_root(config.cache_dir) / "states" / self._key(dataset)
        files = StateFiles(folder)
        if folder not in self._intact and self._missing(files, []):
            with locked(folder, "probe", folder=True):
                # decided again: another process may have computed them meanwhile
                if missing := self._missing(files, self.notes):
                    compute_states(
                        self.model,
                        dataset,
                        missing,
                        files,
                        max_tokens=config.max_tokens,
                        progress=config.progress,
                        name=names,
                    )
        self._intact.add(folder)
        return Probed(dataset, files)

    def _missing(self, files: StateFiles, notes: list[str]) -> list[int]:
        """The layers whose states have to be computed. `notes` gets what is damaged."""
        damage = {None: files.damage_of_steps()} | {layer: files.damage(layer) for layer in self.layers}
        notes += [f"{problem}: the states are computed again" for problem in damage.values() if problem]
        return [layer for layer in self.layers if damage[layer] is not None or damage[None] is not None]

    def _key(self, dataset: TrajectoryDataset) -> str:
        """A digest of all that the states depend on."""
        parts: list[Any] = [
            LAYOUT, tokens_digest(dataset), self.identity, dtype_name(self.dtype), self.device.type,
            self.config.max_tokens, self.template.to_dict(),
            *([self.config.attention] if self.device.type == "cuda" else []),  # on a CPU there is one kind
        ]  # fmt: skip
        return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).hexdigest()
