"""Loads configs and weights through transformers. What it cannot load gives one clear message."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any, Literal, NamedTuple

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    PreTrainedModel,
)
from transformers.modeling_layers import GenericForTokenClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from pqm_fast.common.names import check_model_name, loading_error
from pqm_fast.errors import PQMError

# Tensors of a head that gives one value for each token, and beginnings of those of other heads
_HEAD = {f"{name}.{part}" for name in ("score", "classifier") for part in ("weight", "bias")}
_OTHER_HEADS = ("score.", "classifier.", "v_head.")


def load_config(path: str) -> Any:
    """Loads the config of a decoder, set up for one raw value per token. Raises PQMError for anything else."""
    check_model_name(path)
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise PQMError(f"{path}: no config.json in this folder, so it holds no model; check the path")
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path)
    except Exception as error:
        raise loading_error(path, "model config", short_reason(error)) from error
    if getattr(config, "is_encoder_decoder", False) or not _is_decoder(config):
        raise PQMError(f"{path}: {config.model_type} is not a decoder (causal) architecture")
    if getattr(config.get_text_config(), "attention_chunk_size", None):
        raise PQMError(f"{path}: {config.model_type} attends in chunks, which packed attention does not support")
    config.num_labels, config.problem_type = 1, "regression"
    config.classifier_dropout = 0.0  # the default of the classes is 0.1
    return config


@dataclass(frozen=True)
class LoadReport:
    """Where the weights of a classifier come from, as `load_classifier` found them at `path`."""

    path: str
    head: Literal["loaded", "new", "replaced"] = "loaded"
    """Replaced: the folder holds another head, which is left out."""
    random_weights: bool = False

    @property
    def complete(self) -> bool:
        """Whether every weight was loaded."""
        return self.head == "loaded" and not self.random_weights

    @property
    def notes(self) -> list[str]:
        """What a user should know about it; empty if every weight was loaded."""
        if self.random_weights:
            return [f"{self.path} holds a config but no weights: starting from random ones"]
        if self.head == "replaced":
            return ["its own head, which does not give one value, is left out: the Q-value head is new"]
        return ["the Q-value head is new"] if self.head == "new" else []


def load_classifier(
    path: str, config: Any, dtype: torch.dtype, device: torch.device | str
) -> tuple[PreTrainedModel, LoadReport]:
    """Loads the `*ForTokenClassification` of a folder or hub id on the CPU. A folder without weights gives random ones,
    drawn on `device`.

    Raises PQMError for a model that transformers cannot load, or whose weights do not fit its config.
    """
    try:
        if _has_weights(path):
            return _load_weights(path, config, dtype)
        config.dtype = dtype
        with torch.device(device):
            classifier = classification_class(type(config))._from_config(config, dtype=dtype)
    except PQMError:
        raise
    except Exception as error:
        raise PQMError(f"{path}: this model cannot be loaded: {short_reason(error)}") from error
    return classifier, LoadReport(path, head="new", random_weights=True)


def head_name(classifier: Any) -> str:
    """The attribute of a `*ForTokenClassification` that holds its head."""
    # `classifier` in GPT-2, GPT-NeoX and a few other old classes
    return "score" if hasattr(classifier, "score") else "classifier"


class WeightMismatch(NamedTuple):
    """Names of the tensors that differ between a folder of weights and a model."""

    missing: set[str]
    wrong_shape: set[str]
    unexpected: set[str]


def read_weights(path: str, kind: Any, config: Any, dtype: torch.dtype) -> tuple[PreTrainedModel, WeightMismatch]:
    """Loads a model of class `kind` on the CPU. Tensors that are missing or have another shape are random."""
    with quiet_transformers():
        model, info = kind.from_pretrained(
            path, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    # some versions of transformers list (name, shape, shape)
    mismatched = {str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ())}
    return model, WeightMismatch(set(info["missing_keys"]), mismatched, set(info["unexpected_keys"]))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silences warnings and progress bars of transformers: one line of ours replaces twenty of its own."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def short_reason(error: Exception) -> str:
    """The text of a foreign error, short enough to be part of one of ours."""
    return shorten(str(error), 300) or type(error).__name__


def _has_weights(path: str) -> bool:
    folder = Path(path)
    return not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _load_weights(path: str, config: Any, dtype: torch.dtype) -> tuple[PreTrainedModel, LoadReport]:
    classifier, mismatch = read_weights(path, classification_class(type(config)), config, dtype)
    missing, wrong_shape = sorted(mismatch.missing - _HEAD), sorted(mismatch.wrong_shape - _HEAD)
    if tensors := missing or wrong_shape:
        raise PQMError(
            f"{path}: the weights do not fit the architecture {config.model_type} that its config.json names: "
            f"{len(tensors)} tensors are {'missing' if missing else 'of another shape'}, such as {tensors[0]}"
        )
    if mismatch.wrong_shape & _HEAD or any(key.startswith(_OTHER_HEADS) for key in mismatch.unexpected):
        return classifier, LoadReport(path, head="replaced")
    return classifier, LoadReport(path, head="new" if mismatch.missing & _HEAD else "loaded")


def _is_decoder(config: Any) -> bool:
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    # BERT and similar models are listed as causal LMs too, because of `is_decoder=True`
    return causal and (
        config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_decoder", False)
    )


def classification_class(kind: type) -> Any:
    """The `*ForTokenClassification` class of a config class, built from transformers' generic one if it has none.

    Raises PQMError if transformers has no model for the config class.
    """
    if kind in AutoModelForTokenClassification._model_mapping:
        return AutoModelForTokenClassification._model_mapping[kind]
    if kind not in AutoModel._model_mapping:
        raise PQMError(f"transformers has no base model for {kind.__name__}")
    base: Any = AutoModel._model_mapping[kind]
    parent = next(c for c in base.__mro__ if c.__name__.endswith("PreTrainedModel"))
    name = base.__name__.removesuffix("Model") + "ForTokenClassification"
    return type(name, (GenericForTokenClassification, parent), {"config_class": kind, "__module__": __name__})
