"""Configs and weights as transformers loads them, with one clear message for whatever it cannot load."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple

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

from pqm_fast.common.names import check_model_name, not_loaded
from pqm_fast.errors import PQMError


def load_config(path: str) -> Any:
    """The config of a decoder, set up for one raw value per token. Raises PQMError for anything else."""
    check_model_name(path)
    if Path(path).is_dir() and not (Path(path) / "config.json").is_file():
        raise PQMError(f"{path}: no config.json in this folder, so it holds no model; check the path")
    try:
        with quiet_transformers():
            config = AutoConfig.from_pretrained(path)
    except Exception as error:
        raise not_loaded(path, "model config", reason(error)) from error
    if getattr(config, "is_encoder_decoder", False) or not _is_decoder(config):
        raise PQMError(f"{path}: {config.model_type} is not a decoder (causal) architecture")
    if getattr(config.get_text_config(), "attention_chunk_size", None):
        raise PQMError(f"{path}: {config.model_type} attends in chunks, which packed attention does not support")
    config.num_labels, config.problem_type = 1, "regression"
    config.classifier_dropout = 0.0  # the class's own default is 0.1
    return config


def load_classifier(
    path: str, config: Any, dtype: torch.dtype, device: torch.device | str, notes: list[str]
) -> PreTrainedModel:
    """The `*ForTokenClassification` of a folder or hub id, on the CPU; where the folder holds no weights, with random
    ones that are drawn on `device`.

    What a user should know of how the weights came about is appended to `notes`. Raises PQMError.
    """
    try:
        if _has_weights(path):
            return _load_weights(path, config, dtype, notes)
        config.dtype = dtype
        with torch.device(device):
            classifier = classification_class(type(config))._from_config(config, dtype=dtype)
    except PQMError:
        raise
    except Exception as error:
        raise PQMError(f"{path}: this model cannot be loaded: {reason(error)}") from error
    notes.append(f"{path} holds a config but no weights: starting from random ones")
    return classifier


def head_name(classifier: Any) -> str:
    """What a `*ForTokenClassification` calls its head."""
    # GPT-2, GPT-NeoX and a few other old classes call it `classifier`
    return "score" if hasattr(classifier, "score") else "classifier"


class Unfit(NamedTuple):
    """Names of tensors that a folder of weights and a model do not have in common."""

    missing: set[str]
    of_other_shape: set[str]
    unexpected: set[str]


def read_weights(path: str, kind: Any, config: Any, dtype: torch.dtype) -> tuple[PreTrainedModel, Unfit]:
    """A model of class `kind` on the CPU, in which what is missing or of another shape is random."""
    with quiet_transformers():
        model, info = kind.from_pretrained(
            path, config=config, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        )
    # some versions of transformers give the shapes too
    mismatched = {str(key[0] if isinstance(key, tuple) else key) for key in info.get("mismatched_keys", ())}
    return model, Unfit(set(info["missing_keys"]), mismatched, set(info["unexpected_keys"]))


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No warnings and progress bars from transformers: we say in one line what it says in twenty."""
    level, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()
    hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def reason(error: Exception) -> str:
    """The text of an error that is not ours, short enough to stand in one that is."""
    return shorten(str(error), 300) or type(error).__name__


def _has_weights(path: str) -> bool:
    folder = Path(path)
    return not folder.is_dir() or any(folder.glob("*.safetensors")) or any(folder.glob("*.bin"))


def _load_weights(path: str, config: Any, dtype: torch.dtype, notes: list[str]) -> PreTrainedModel:
    classifier, unfit = read_weights(path, classification_class(type(config)), config, dtype)
    head = {f"{name}.{part}" for name in ("score", "classifier") for part in ("weight", "bias")}
    missing, mismatched = sorted(unfit.missing - head), sorted(unfit.of_other_shape - head)
    if missing or mismatched:
        wrong = missing or mismatched
        raise PQMError(
            f"{path}: the weights do not fit the architecture {config.model_type} that its config.json names: "
            f"{len(wrong)} tensors are {'missing' if missing else 'of another shape'}, such as {wrong[0]}"
        )
    other = any(key.startswith(("score.", "classifier.", "v_head.")) for key in unfit.unexpected)
    if unfit.of_other_shape & head or other:
        notes.append("its own head, which does not give one value, is left out: the Q-value head is new")
    elif unfit.missing & head:
        notes.append("the Q-value head is new")
    return classifier


def _is_decoder(config: Any) -> bool:
    causal = config.model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    # BERT and the like are listed as causal LMs too, for `is_decoder=True`
    return causal and (
        config.model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES or getattr(config, "is_decoder", False)
    )


def classification_class(kind: type) -> Any:
    """The `*ForTokenClassification` class of a config class; from transformers' generic one where it has none."""
    if kind in AutoModelForTokenClassification._model_mapping:
        return AutoModelForTokenClassification._model_mapping[kind]
    if kind not in AutoModel._model_mapping:
        raise PQMError(f"transformers has no base model for {kind.__name__}")
    base: Any = AutoModel._model_mapping[kind]
    parent = next(c for c in base.__mro__ if c.__name__.endswith("PreTrainedModel"))
    name = base.__name__.removesuffix("Model") + "ForTokenClassification"
    return type(name, (GenericForTokenClassification, parent), {"config_class": kind, "__module__": __name__})
