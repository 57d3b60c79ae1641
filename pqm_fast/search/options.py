"""The options of `pqm-fast search`."""

from dataclasses import dataclass, field
from typing import Literal

from pqm_fast.common.options import DType
from pqm_fast.errors import PQMError
from pqm_fast.sample.options import PolicyOptions
from pqm_fast.scoring.third_party import Preset

Method = Literal["beam", "dvts"]
Aggregator = Literal["min", "last", "mean", "softmin", "prod"]


@dataclass(frozen=True)
class SearchConfig:
    """Let a model choose which partial solutions a policy continues, step by step."""

    policy: str
    """Policy that writes the steps: a model folder or hub id, http://HOST:PORT/v1#MODEL (a server such as vLLM), or
    arithmetic:NAME."""
    model: str
    """Model that scores them: folder or hub id of a pqm-fast checkpoint (with --preset, of a third-party PRM), or
    http://HOST:PORT of a `pqm-fast serve`."""
    data: tuple[str, ...]
    """Questions: files (JSON lines, JSON, Parquet), folders or patterns of them, hub data set names; each record has
    the question as `question`, `problem` or `prompt`, and its `answer` (or `solution`)."""
    out: str
    """JSON lines to write: a Best-of-N pool with scores. Until it is complete, what is done is kept in OUT.part, and
    the same command resumes from there."""
    method: Method = "beam"
    """beam: the best N/M of all N partial solutions are continued. dvts: N/M trees that do not compete; each continues
    the best of its M."""
    n: int = 16
    """N: continuations written in each round of a question."""
    beam_width: int = 4
    """M: continuations of each solution that is kept. (The name is that of Snell et al.)"""
    budget_tokens: int | None = None
    """Tokens that the policy may write for a question. One plain solution is written first, to see how long they are;
    then a round has no more continuations than can be written to their end. Default: no limit."""
    max_steps: int = 40
    """Rounds of a question. The last one writes the solutions to their end."""
    aggregate: Aggregator = "min"
    """How to compute the score of a solution, partial or whole, from the Q-values of its steps."""
    distinct: bool = False
    """With beam, of partial solutions with the same steps keep one, so that the others that are kept differ from it."""
    compare: bool = False
    """Also write plain samples of each question until they have at least as many tokens as its search, score them, and
    print both ways of using these tokens side by side."""
    result: str | None = None
    """JSON file for the figures that are printed."""
    seed: int = 0
    """Random seed. The plain samples are those of `pqm-fast sample` with this seed."""
    together: int = 32
    """Questions searched together: each round of all of them is one batch for the policy and one for the model."""
    skip_refused: bool = False
    """Leave out questions that the policy or the model cannot take (longer than its context, say) and count them at the
    end, instead of stopping at the first."""
    preset: Preset = "none"
    """The third-party PRM that the model is, as for `pqm-fast score`; none: a pqm-fast checkpoint."""
    max_tokens: int = 16384
    """Tokens of one forward pass of the model that scores."""
    model_dtype: DType = "auto"
    """Precision of the model that scores: by default bfloat16 on a GPU, and on a CPU on which it is measured to be
    clearly faster; otherwise float32."""
    writing: PolicyOptions = field(default_factory=PolicyOptions)
    progress: bool = True
    """Show the progress bar."""

    def __post_init__(self) -> None:
        for name in ("n", "beam_width", "budget_tokens", "max_steps", "together", "max_tokens"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise PQMError(f"{name}: {getattr(self, name)} was given; it must be at least 1")
        if self.distinct and self.method == "dvts":
            raise PQMError("distinct: is for --method beam; dvts keeps one solution of each tree")
        if self.n % self.beam_width:
            raise PQMError(
                f"n: {self.n} is not a multiple of beam_width, {self.beam_width}: the best n / beam_width are kept"
            )
