"""The options of `pqm-fast sample` and `pqm-fast annotate`."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from pqm_fast.common.options import DType, Text
from pqm_fast.data.formats import ReadOptions
from pqm_fast.errors import PQMError
from pqm_fast.sample.prefix_search import Label, Search


@dataclass(frozen=True)
class PolicyOptions:
    """How policies write."""

    prompt_format: Text = "{prompt}\n"
    """Text around the question, which replaces {prompt}. `chat`: the chat template of the policy's tokenizer."""
    system: Text = ""
    """System message, with `--prompt-format chat`."""
    step_separator: Text = "\n"
    """Text between steps: completions are split there, and each step of a prefix ends with it."""
    temperature: float = 0.7
    """Sampling temperature; 0 always takes the most likely token."""
    top_p: float = 1.0
    """Sample from the most likely tokens, up to this total probability."""
    max_new_tokens: int = 1024
    """Maximum length of a completion in tokens; longer ones are cut off there."""
    stop: tuple[Text, ...] = ()
    """Texts that end a completion; they are removed from it."""
    parallel: int = 64
    """Completions written at once: the batch size of a local model, or the requests in flight to a server (of all ranks
    together, under torchrun)."""
    tokenizer: str | None = None
    """Folder or hub id of the tokenizer whose chat template formats a server's prompts. Default: the model's name."""
    timeout: float = 600.0
    """Seconds that a server may take for a whole reply, including the time it takes to write the completion."""
    retries: int = 8
    """How often a failed request to a server is repeated, after 1, 2, 4, ... seconds (at most 60), before giving up."""
    device: str = "auto"
    """Device of a local model: by default cuda if there is one, otherwise cpu."""
    dtype: DType = "auto"
    """Precision of a local model: by default bfloat16 on a GPU, float32 on a CPU."""
    kv_cache: Literal["dynamic", "static"] = "dynamic"
    """Cache of keys and values of a local model: with static, transformers compiles the decoding on a GPU."""

    def __post_init__(self) -> None:
        if self.prompt_format != "chat" and self.prompt_format.count("{prompt}") != 1:
            raise PQMError(f"prompt_format {self.prompt_format!r}: it must contain {{prompt}} exactly once")
        if self.system and self.prompt_format != "chat":
            raise PQMError("system: is for --prompt-format chat; write it into the prompt format instead")
        if not self.step_separator:
            raise PQMError("step_separator: empty; set the text between two steps")
        if "" in self.stop:
            raise PQMError("stop: an empty text would end every completion at once; leave it out")
        limits = {
            "temperature": (self.temperature >= 0, "0 or more"),
            "top_p": (0 < self.top_p <= 1, "above 0 and at most 1"),
            "timeout": (self.timeout > 0, "above 0"),
            "max_new_tokens": (self.max_new_tokens >= 1, "at least 1"),
            "parallel": (self.parallel >= 1, "at least 1"),
            "retries": (self.retries >= 0, "0 or more"),
        }
        for name, (fits, range_text) in limits.items():
            if not fits or not math.isfinite(getattr(self, name)):
                raise PQMError(f"{name}: {getattr(self, name)} was given; it must be {range_text}")

    def identity(self) -> dict[str, Any]:
        """The options that completions depend on (by more than rounding)."""
        names = ("prompt_format", "system", "step_separator", "temperature", "top_p", "max_new_tokens", "stop")
        return {name: getattr(self, name) for name in (*names, "tokenizer", "dtype")}


@dataclass(frozen=True)
class SampleConfig:
    """Sample solutions of questions from one or more policies, for `score`, `annotate` and `evaluate`."""

    policy: tuple[str, ...]
    """Policies that write the solutions: model folders or hub ids, http://HOST:PORT/v1#MODEL (a server such as vLLM),
    arithmetic:NAME."""
    data: tuple[str, ...]
    """Questions: files (JSON lines, JSON, Parquet), folders or patterns of them, hub data set names; each record has
    the question as `question`, `problem` or `prompt`, and its `answer` (or `solution`)."""
    out: str
    """JSON lines to write: a Best-of-N pool. Until it is complete, the solutions are kept in OUT.part, and the same
    command resumes from there."""
    n: int = 16
    """Solutions of each question by each policy."""
    seed: int = 0
    """Random seed. A solution depends only on it, the policy's name, the question and its own number."""
    skip_refused: bool = False
    """Leave out questions that a policy cannot take (longer than its context, say) and count them at the end, instead
    of stopping at the first."""
    writing: PolicyOptions = field(default_factory=PolicyOptions)
    progress: bool = True
    """Show the progress bar."""


@dataclass(frozen=True)
class AnnotateConfig:
    """Label each step by Monte Carlo: by the share of solutions continued from it that end right."""

    policy: str
    """Policy that continues each prefix: a model folder or hub id, http://HOST:PORT/v1#MODEL (a server such as vLLM),
    or arithmetic:NAME."""
    data: tuple[str, ...]
    """Solutions with the right `answer` to their question, with or without labels: the output of `sample`, or any other
    records (files, folders or patterns of them, hub data set names)."""
    out: str
    """JSON lines to write: labelled records. Until they are complete, the rollouts are kept in OUT.part, and the same
    command resumes from there."""
    rollouts: int = 8
    """Solutions written from each prefix that is measured."""
    label: Label = "hard"
    """hard: 1 if any rollout ends right, otherwise 0. soft: the share that does."""
    search: Search = "full"
    """full: measure every prefix. binary: find the first step from which no rollout ends right, in fewer rollouts,
    assuming that no later prefix is better; steps after it get no label."""
    seed: int = 0
    """Random seed. A rollout depends only on it, the policy's name, the question, the prefix and its own number."""
    read: ReadOptions = field(default_factory=ReadOptions)
    writing: PolicyOptions = field(default_factory=PolicyOptions)
    progress: bool = True
    """Show the progress bar."""

    def __post_init__(self) -> None:
        if self.rollouts < 1:
            raise PQMError(f"rollouts: {self.rollouts} was given; it must be at least 1")
        if self.search == "binary" and self.label == "soft":
            raise PQMError("label soft: binary search measures too few prefixes for it; use --search full")
