"""The text of a model card: metadata for the hub, what the model is, how it was trained and measured, how to use it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from string import Template
from typing import Any

from huggingface_hub import ModelCardData
from pqm_kernels.losses import LOSSES

from pqm_fast.common.names import is_hub_id
from pqm_fast.data.sources import base_and_split, is_hub_name
from pqm_fast.publish.serving import Served

NAME = "MODEL"  # in place of the checkpoint's folder or hub id: a card does not know where it will lie

ABOUT = Template("""\
# A process reward model from $base

This model scores every step of a solution. The score of a step, its Q-value, is a logit: how likely the solution is to
end right from there on. It is read at $where, and depends on the question, the steps before it and the step itself. The
model was trained with pqm-fast as a process Q-value model ([arXiv 2410.11287](https://arxiv.org/abs/2410.11287)).""")

FIGURES = {
    "auroc": (
        "AUROC",
        "share of (correct, wrong) pairs of steps in which the correct one scores higher; 0.5 is chance",
    ),
    "pair_accuracy": ("pair accuracy", "the same within a solution"),
    "balanced_accuracy_calibrated": (
        "balanced accuracy",
        "mean of the accuracies on correct and on wrong steps, at a threshold chosen on other questions",
    ),
    "first_error_accuracy_calibrated": (
        "first-error accuracy",
        "share of solutions whose first wrong step is found, or which are found to have none, at such a threshold",
    ),
    "loss": ("loss", "what the training minimised"),
}

USE = Template("""\
## Use

`MODEL` stands for the id of this repository, or for a folder with its files. With pqm-fast:

```python
from pqm_fast import Scorer

question, steps = "What is 7 - 2?", ["7 - 2 = 5"]
q = Scorer.from_pretrained("MODEL").score([(question, steps)])[0]  # one number for each step
```
$transformers
As a server, by $one:

```bash
$commands
```""")

TRANSFORMERS = Template("""
With transformers alone. The question and each step are tokenised by themselves, as in training:

```python
import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

question, steps = "What is 7 - 2?", ["7 - 2 = 5"]
model = AutoModelForTokenClassification.from_pretrained("MODEL")
tokenizer = AutoTokenizer.from_pretrained("MODEL")


def tokens(text):
    return tokenizer(text, add_special_tokens=False)["input_ids"]


ids, ends = ${bos}tokens($prompt.replace("{prompt}", question)), []
for step in steps:
    ids += tokens($step.replace("{step}", step))$step_token
    ends.append(len(ids) - 1)
with torch.no_grad():
    q = model(torch.tensor([ids])).logits[0, ends, 0].tolist()
```
""")

VLLM = Template("""\
vLLM must be 0.30 or later. Send it the ids, not the text: POST
`{"model": "MODEL", "task": "token_classify", "input": ids}` to `/pooling`. In the answer, `["data"][0]["data"]` is
$answer.""")

SGLANG = Template("""\
SGLang (tested: 0.5.23) takes the ids, too: POST `{"query": [], "items": [ids], "score_extraction_token": "$token"}` to
`/v1/score`. In the answer, `["scores"][0]` is one `[q]` for each step.""")

LOGITS = """\
Q-values are logits, not probabilities. A loss that compares steps, such as `rank`, trains their order and leaves their
  level free, so 0 is no threshold: choose one on labelled solutions that you do not report."""
ELSEWHERE = "The figures above are from solutions like those of the training. They say little about others."
PIPELINE = """\
`pipeline("token-classification")` gives 1.0 for every token: it takes the softmax over a single label. The Q-values are
  the logits."""


@dataclass(frozen=True)
class Training:
    """How a checkpoint was trained, as far as its folder does not say it. None: unknown."""

    base_model: str
    """Folder or hub id."""
    data: tuple[str, ...]
    """The sources, as `--data` named them."""
    trajectories: int | None
    questions: int | None
    steps: int | None
    """Those that the loss read."""
    optimizer_steps: int
    learning_rate: float
    dtype: str
    """Of the computation."""
    lora_rank: int
    held_out: Mapping[str, Any]
    """The figures of the last evaluation; empty if there was none."""
    init_head: str | None = None
    """Folder of the checkpoint that the head was taken from."""


def card_text(model: Served, training: Training) -> str:
    """The card of a checkpoint. Only names go into it, never the paths of folders; `model.model` must be `NAME`."""
    where = "the last token of each step" if model.step_id is None else "a token after each step"
    sections = [
        f"---\n{_metadata(model, training)}\n---",
        ABOUT.substitute(base=_public(training.base_model), where=where),
        _list("Training", _recipe(model, training)),
        _figures(training.held_out),
        _use(model),
        _list("Limits", _limits(model, training)),
    ]
    return "\n\n".join(filter(None, sections)) + "\n"


def _metadata(model: Served, training: Training) -> str:
    return ModelCardData(
        library_name="transformers" if model.in_transformers else "pqm-fast",
        pipeline_tag="token-classification",
        base_model=training.base_model if is_hub_id(training.base_model) else None,
        tags=["process-reward-model", "reward-model", "pqm-fast"],
    ).to_yaml()


def _list(title: str, lines: Iterator[str]) -> str:
    return "\n".join([f"## {title}\n", *(f"- {line}" for line in lines)])


def _recipe(model: Served, training: Training) -> Iterator[str]:
    recipe = model.recipe
    adapters = f", with LoRA adapters of rank {training.lora_rank}, merged" if training.lora_rank else ""
    head = f", starting from the head of `{Path(training.init_head).name}`" if training.init_head else ""
    yield f"base model: {_public(training.base_model)}{adapters}{head}"
    counts = {"solutions": training.trajectories, "questions": training.questions, "steps": training.steps}
    known = ", ".join(f"{count:,} {name}" for name, count in counts.items() if count is not None)
    yield f"data: {', '.join(map(_public_source, training.data))}" + (f" ({known})" if known else "")
    losses = [name for name in (recipe.loss, recipe.compare) if name]
    compared = f" plus {recipe.compare_weight:g} times `{recipe.compare}`" if recipe.compare else ""
    numbers = {
        "zeta": f"{recipe.zeta:g}" if any(LOSSES[name].uses_zeta for name in losses) else "",
        "noise": "{:g} and {:g}".format(*recipe.noise) if any(LOSSES[name].uses_noise for name in losses) else "",
        "temperature": f"{recipe.temperature:g}" if "listwise-softmin" in losses else "",
    }
    yield f"loss: `{recipe.loss}`{compared}" + "".join(f", {name} {text}" for name, text in numbers.items() if text)
    yield "step token: " + ("none" if model.step_id is None else f"`{recipe.template.step_token}`, id {model.step_id}")
    yield f"{training.optimizer_steps:,} optimizer steps, peak learning rate {training.learning_rate:g}"
    yield f"computed in {training.dtype}, stored in {model.dtype}, with pqm-fast {version('pqm-fast')}"


def _figures(figures: Mapping[str, Any]) -> str:
    rows = [
        f"| {name} | {figures[key]:.3f} | {text} |"
        for key, (name, text) in FIGURES.items()
        if figures.get(key) is not None
    ]
    if not rows:
        return ""
    measured = "Measured on held-out solutions, to questions that were not trained on"
    if figures.get("steps"):
        measured += (
            f": {figures['trajectories']:,} solutions, with {figures['steps']:,} labelled steps, of which "
            f"{figures['share_correct']:.1%} are correct"
        )
    return "\n".join(["## Figures\n", f"{measured}.\n", "| figure | value | what it is |", "|---|---|---|", *rows])


def _use(model: Served) -> str:
    template = model.recipe.template
    code = TRANSFORMERS.substitute(
        bos=f"{model.bos} + " if model.bos else "",
        prompt=repr(template.prompt_format),
        step=repr(template.step_format),
        step_token="" if model.step_id is None else f" + [{model.step_id}]",
    )
    one = "this command" if len(model.commands) == 1 else "one of these commands"
    use = USE.substitute(
        transformers=code if model.in_transformers else "", one=one, commands="\n".join(model.commands)
    )
    parts = [use]
    if model.vllm:
        every_token = "one `[q]` for each token; take those at `ends`"
        parts.append(VLLM.substitute(answer=every_token if model.step_id is None else "one `[q]` for each step"))
    if model.sglang:
        parts.append(SGLANG.substitute(token=template.step_token))
    return "\n\n".join(parts)


def _limits(model: Served, training: Training) -> Iterator[str]:
    yield LOGITS
    if training.held_out:
        yield ELSEWHERE
    yield PIPELINE if model.in_transformers else f"transformers has no {model.architecture}: only pqm-fast loads it."


def _public(model: str) -> str:
    """A hub id as a link, a folder by its name alone."""
    return f"[{model}](https://huggingface.co/{model})" if is_hub_id(model) else f"`{Path(model).resolve().name}`"


def _public_source(source: str) -> str:
    """A data set on the hub as it is, a file or a folder by its name alone."""
    base, _ = base_and_split(source)
    return f"`{source if is_hub_name(base) else Path(base).resolve().name}`"
