"""What transformers loads for us, with one clear message for whatever it cannot load."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from textwrap import shorten
from typing import Any, NamedTuple, get_args

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForTokenClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.modeling_layers import GenericForTokenClassification
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils import logging as hf_logging

from pqm_fast.errors import PQMError
from pqm_fast.names import check_model_name, not_loaded
from pqm_fast.options import DType

PROBE = "Step 1: Let x = 7 - 2.\nSo x^2 = 25, and a: 7 -2 =5."
# On a CPU, models less wide gain nothing from bfloat16.
LEAST_WIDTH = 256
# Products must be so many times as fast in bfloat16: all other work gains less from it, or nothing.
CLEARLY_FASTER = 1.5


def pick_device(name: str) -> torch.device:
    """`auto`: cuda if there is one, otherwise cpu. Raises PQMError for a device that cannot be used here."""
    if not isinstance(name, (str, torch.device)):
        raise PQMError(f"device: {name!r} ({type(name).__name__}) was given; give auto, cpu or cuda")
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise PQMError(f"device: {name} cannot be used here ({reason(error)}); give auto, cpu or cuda") from error
    return device


def pick_dtype(name: str, device: torch.device, path: str, notes: list[str] | None = None) -> torch.dtype:
    """A name of torch's, or `auto`: bfloat16 on a GPU, and on a CPU that is clearly faster in it at the size of the
    model of folder or hub id `path`; otherwise float32.

    `notes` is told what was measured. Raises PQMError for a model that is no decoder.
    """
    if name not in get_args(DType):
        raise PQMError(f"dtype: {name!r} was given; give {', '.join(get_args(DType))}")
    if name != "auto":
        return getattr(torch, name)
    if device.type == "cuda":
        return torch.bfloat16
    config = load_config(path).get_text_config()
    if device.type != "cpu" or config.hidden_size < LEAST_WIDTH:
        return torch.float32
    inner = getattr(config, "intermediate_size", None)  # GPT-2 has none, Gemma 3n one for each layer
    gain = bfloat16_gain(config.hidden_size, inner if isinstance(inner, int) else 4 * config.hidden_size)
    picked = torch.bfloat16 if gain >= CLEARLY_FASTER else torch.float32
    if notes is not None:
        notes.append(
            f"dtype {dtype_name(picked)}: this CPU multiplies {gain:.1f} times as fast in bfloat16 as in float32"
        )
    return picked


@cache
def bfloat16_gain(width: int, inner: int) -> float:
    """How many times as fast this CPU multiplies some rows by a [width, inner] matrix in bfloat16 as in float32."""
    best = {}
    for dtype in (torch.float32, torch.bfloat16):
        rows, weight = torch.ones(128, width, dtype=dtype), torch.ones(inner, width, dtype=dtype)
        seconds = []
        for _ in range(4):
            started = time.perf_counter()
            F.linear(rows, weight)
            seconds.append(time.perf_counter() - started)
        best[dtype] = min(seconds)
    return best[torch.float32] / best[torch.bfloat16]


def dtype_name(dtype: torch.dtype) -> str:
    """As in options and files."""
    return str(dtype).removeprefix("torch.")


def load_tokenizer(path: str, notes: list[str] | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub id; PQMError if there is none.

    For some architectures (qwen2 is one) transformers takes its own tokenizer class whatever tokenizer.json says;
    `notes` is told where that gives other tokens.
    """
    check_model_name(path)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(path)
            tokenizer([PROBE], add_special_tokens=False, verbose=False)  # what is wrong in its files may show only here
    except Exception as error:  # what transformers raises has no common class
        if Path(path).is_dir():
            raise _no_tokenizer(path, reason(error)) from error
        raise not_loaded(path, "tokenizer", reason(error)) from error
    # where an architecture has its own tokenizer class, transformers makes an empty one out of no files
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise _no_tokenizer(path, "its vocabulary is empty")
    file = Path(path) / "tokenizer.json"
    if notes is not None and file.is_file():
        stored = Tokenizer.from_file(str(file)).encode(PROBE, add_special_tokens=False).ids
        if stored != tokenizer.encode(PROBE, add_special_tokens=False):
            notes.append(
                f"tokenizer: transformers replaces the one in {file} by its {type(tokenizer).__name__}, which gives "
                "other tokens"
            )
    return tokenizer


def _no_tokenizer(path: str, reason: str) -> PQMError:
    return PQMError(
        f"{path}: no tokenizer could be loaded; copy the tokenizer's files into the model folder ({reason})"
    )


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
