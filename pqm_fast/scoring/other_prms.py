r"""Process reward models that others trained, with two labels a step: how their text is written, where a step is read.

The presets are what the authors' own code does:

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


@dataclass(frozen=True)
class OtherPRM:
    """For a PRM of others, with two labels a step: Q is the logit of the good one minus that of the bad one. What is
    not given is as in the preset."""

    preset: Preset = "none"
    """How the model reads a solution: as TRL's PRMTrainer, Qwen2.5-Math-PRM, Math-Shepherd or RLHFlow have it. none:
    the model is a checkpoint of pqm-fast, which knows by itself."""
    head: Head | None = None
    """linear: a token classifier with two labels, the second is good. mlp: the same with a hidden layer, as in
    Qwen2.5-Math-PRM. tokens: a causal language model, by its logits of --good-token and --bad-token."""
    prompt_format: Text | None = None
    """Text of the question; {prompt} stands for it. `chat`: the tokenizer's chat template; `turns`: the same with a
    user's turn for each step, answered by --good-token."""
    step_format: Text | None = None
    """Text of one step; {step} stands for it."""
    step_token: Text | None = None
    """What stands after each step, and where its Q-value is read. `last`: nothing, read at the step's last token."""
    step_separator: Text | None = None
    """What stands between a step that was read and the next one."""
    good_token: Text | None = None
    """Token of a right step, for --head tokens."""
    bad_token: Text | None = None
    """Token of a wrong step, for --head tokens."""

    def __post_init__(self) -> None:
        for name, allowed in (("preset", get_args(Preset)), ("head", (None, *get_args(Head)))):
            if (value := getattr(self, name)) not in allowed:
                raise PQMError(f"{name}: {show(value)} was given; give one of {', '.join(filter(None, allowed))}")
        for name in ("prompt_format", "step_format", "step_token", "step_separator", "good_token", "bad_token"):
            if not isinstance(value := getattr(self, name), (str, type(None))):
                raise PQMError(f"{name}: {show(value)} ({type(value).__name__}) was given; give a text")
        if self.given:
            self.settled()

    @property
    def given(self) -> bool:
        return any(getattr(self, field.name) != field.default for field in fields(self))

    def settled(self) -> "Settled":
        """With everything that was left to the preset. Raises PQMError if that does not settle it."""
        base = PRESETS.get(self.preset)
        if base is None:
            if self.head is None or self.prompt_format is None:
                raise PQMError(
                    "the model's head and template: give --preset, or at least --head and --prompt-format; "
                    f"presets are {', '.join(PRESETS)}"
                )
            base = Settled(self.head, TextLayout(self.prompt_format))
        names = ("prompt_format", "step_format", "step_token", "step_separator")
        changes = {name: value for name in names if (value := getattr(self, name)) is not None}
        return Settled(
            self.head or base.head,
            replace(base.layout, **changes),
            base.good_token if self.good_token is None else self.good_token,
            base.bad_token if self.bad_token is None else self.bad_token,
        )


@dataclass(frozen=True)
class Settled:
    """`OtherPRM` with nothing left open."""

    head: Head
    layout: TextLayout
    good_token: str = "+"
    bad_token: str = "-"

    def __post_init__(self) -> None:
        if self.good_token == self.bad_token:
            raise PQMError(f"good_token and bad_token are both {self.good_token!r}; give the tokens of the two labels")

    def layout_for(self, tokenizer: "PreTrainedTokenizerBase") -> TextLayout:
        """The layout with the tokenizer's chat template written out, where it asks for it. Raises PQMError."""
        if self.layout.prompt_format not in ("chat", "turns"):
            return self.layout
        option = f"prompt-format {self.layout.prompt_format}"
        question, step, following = "{prompt}", "{step}", "{following}"
        turns = [("user", question), ("assistant", step)]
        if self.layout.prompt_format == "turns":
            turns = [("user", f"{question} {step}"), ("assistant", self.good_token), ("user", following)]
        messages = [{"role": role, "content": content} for role, content in turns]
        text = chat_text(tokenizer, messages, option, answer_follows=False)
        if any(text.count(content) != 1 for content in (question, step)):
            raise PQMError(f"{option}: the chat template does not repeat what it is given once")
        before, after = text.split(step)
        if self.layout.prompt_format == "chat":
            return replace(self.layout, prompt_format=before)
        to_answer, answer, rest = after.partition(self.good_token)
        separator, found, _ = rest.partition(following)
        if not answer or not found:
            raise PQMError(f"{option}: the chat template does not repeat the turns in their order")
        return replace(
            self.layout, prompt_format=before, step_format=step + to_answer, step_separator=answer + separator
        )


_QWEN = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
)
PRESETS: dict[str, Settled] = {
    "trl": Settled("linear", TextLayout("{prompt}", step_token="\n", in_pieces=True)),
    "qwen2.5-math-prm": Settled("mlp", TextLayout(_QWEN, step_token="<extra_0>")),
    "math-shepherd": Settled(
        "tokens", TextLayout("{prompt} ", step_format="{step} ", step_token="ки", step_separator="\n")
    ),
    "rlhflow": Settled("tokens", TextLayout("turns")),
}
