r"""Third-party process reward models, which have two labels per step: how they write a solution and where they read it.

The presets follow the authors' own code:

- TRL: `PRMTrainer.tokenize_row` (trl/trainer/prm_trainer.py): question, steps and separators are tokenised one by one.
- Qwen2.5-Math-PRM-7B and -72B: model card, and `Qwen2ForProcessRewardModel` in modeling_qwen2_rm.py.
- Math-Shepherd: model card of peiyi9979/math-shepherd-mistral-7b-prm (token ids 648, 387 and 12902).
- RLHFlow: math-rm/prm_evaluate.py of RLHFlow/RLHF-Reward-Modeling ("the +/- is predicted by the '-3' position").
"""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Literal, get_args

from pqm_fast.common.options import Text
from pqm_fast.data.chat import chat_text
from pqm_fast.data.checks import show
from pqm_fast.data.encode_text import TextLayout
from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Preset = Literal["none", "trl", "qwen2.5-math-prm", "math-shepherd", "rlhflow"]
Head = Literal["linear", "mlp", "tokens"]
_LAYOUT_OPTIONS = ("prompt_format", "step_format", "step_token", "step_separator")


@dataclass(frozen=True)
class ThirdPartyPRM:
    """For a third-party PRM, which has two labels per step: Q is the logit of the good label minus that of the bad one.
    Options that are not set are those of the preset."""

    preset: Preset = "none"
    """How the model reads a solution: as in TRL's PRMTrainer, Qwen2.5-Math-PRM, Math-Shepherd or RLHFlow. none: the
    model is a pqm-fast checkpoint, which stores this itself."""
    head: Head | None = None
    """linear: a token classifier with two labels, the second is good. mlp: the same with a hidden layer, as in
    Qwen2.5-Math-PRM. tokens: a causal language model, by its logits of --good-token and --bad-token."""
    prompt_format: Text | None = None
    """Text of the question, with {prompt} in its place. `chat`: the tokenizer's chat template; `turns`: the same with a
    user's turn for each step, answered by --good-token."""
    step_format: Text | None = None
    """Text of one step, with {step} in its place."""
    step_token: Text | None = None
    """Text after each step, at which its Q-value is read. `last`: no text, read at the step's last token."""
    step_separator: Text | None = None
    """Text between the place where a step is read and the next step."""
    good_token: Text | None = None
    """Token of a right step, for --head tokens."""
    bad_token: Text | None = None
    """Token of a wrong step, for --head tokens."""

    def __post_init__(self) -> None:
        for name, allowed in (("preset", get_args(Preset)), ("head", (None, *get_args(Head)))):
            if (value := getattr(self, name)) not in allowed:
                raise PQMError(f"{name}: {show(value)} was given; choose one of {', '.join(filter(None, allowed))}")
        for name in (*_LAYOUT_OPTIONS, "good_token", "bad_token"):
            if not isinstance(value := getattr(self, name), (str, type(None))):
                raise PQMError(f"{name}: {show(value)} ({type(value).__name__}) was given; pass a text")
        if self.is_set:
            self.resolve()

    @property
    def is_set(self) -> bool:
        """Whether any option is set, so that the model is a third-party PRM."""
        return any(getattr(self, field.name) != field.default for field in fields(self))

    def resolve(self) -> "PRMSpec":
        """These options, completed from the preset. Raises PQMError if that leaves something open."""
        base = PRESETS.get(self.preset)
        if base is None:
            if self.head is None or self.prompt_format is None:
                raise PQMError(
                    "the model's head and template: set --preset, or at least --head and --prompt-format; "
                    f"presets are {', '.join(PRESETS)}"
                )
            base = PRMSpec(self.head, TextLayout(self.prompt_format))
        changes = {name: value for name in _LAYOUT_OPTIONS if (value := getattr(self, name)) is not None}
        return PRMSpec(
            head=self.head or base.head,
            layout=replace(base.layout, **changes),
            good_token=base.good_token if self.good_token is None else self.good_token,
            bad_token=base.bad_token if self.bad_token is None else self.bad_token,
        )


@dataclass(frozen=True)
class PRMSpec:
    """All that is needed to read a third-party PRM: `ThirdPartyPRM` with nothing left to a preset."""

    head: Head
    layout: TextLayout
    good_token: str = "+"
    bad_token: str = "-"

    def __post_init__(self) -> None:
        if self.good_token == self.bad_token:
            raise PQMError(
                f"good_token and bad_token are both {self.good_token!r}; set them to the tokens of the two labels"
            )

    def layout_for(self, tokenizer: "PreTrainedTokenizerBase") -> TextLayout:
        """The layout, with the tokenizer's chat template written out if the layout uses it. Raises PQMError."""
        if self.layout.prompt_format not in ("chat", "turns"):
            return self.layout
        option = f"prompt-format {self.layout.prompt_format}"
        question, step, next_step = "{prompt}", "{step}", "{following}"
        turns = [("user", question), ("assistant", step)]
        if self.layout.prompt_format == "turns":
            turns = [("user", f"{question} {step}"), ("assistant", self.good_token), ("user", next_step)]
        messages = [{"role": role, "content": content} for role, content in turns]
        text = chat_text(tokenizer, messages, option, answer_follows=False)
        if any(text.count(content) != 1 for content in (question, step)):
            raise PQMError(f"{option}: the chat template does not repeat each message exactly once")
        before_step, after_step = text.split(step)
        if self.layout.prompt_format == "chat":
            return replace(self.layout, prompt_format=before_step)
        to_answer, answer, after_answer = after_step.partition(self.good_token)
        separator, repeated, _ = after_answer.partition(next_step)
        if not answer or not repeated:
            raise PQMError(f"{option}: the chat template does not repeat the turns in their order")
        return replace(
            self.layout, prompt_format=before_step, step_format=step + to_answer, step_separator=answer + separator
        )


_QWEN = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
)
PRESETS: dict[str, PRMSpec] = {
    "trl": PRMSpec("linear", TextLayout("{prompt}", step_token="\n", in_pieces=True)),
    "qwen2.5-math-prm": PRMSpec("mlp", TextLayout(_QWEN, step_token="<extra_0>")),
    "math-shepherd": PRMSpec(
        "tokens", TextLayout("{prompt} ", step_format="{step} ", step_token="ки", step_separator="\n")
    ),
    "rlhflow": PRMSpec("tokens", TextLayout("turns")),
}
