"""The fused op in a training loop of your own: any backbone of transformers, any optimizer, padded batches.

    python examples/own_training_loop.py --model HuggingFaceTB/SmolLM2-135M-Instruct

`step_loss` needs the hidden states, the rows at which steps end, and where the steps of each trajectory begin. It reads
these rows only. On a GPU it is one Triton launch forward and two backward.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from pqm_kernels import step_loss
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer, PreTrainedTokenizerBase

DATA = Path(__file__).with_name("labelled.jsonl")


@dataclass
class Options:
    """Train a backbone and a Q-value head with the fused op."""

    model: str
    """Folder or hub id of a decoder."""
    data: Path = DATA
    """JSON lines with `question`, `solution` (a step a line) and `first_error` (its number, from 1; null: none)."""
    loss: str = "rank"
    """A key of `pqm_kernels.LOSSES` that takes solutions one by one."""
    batch: int = 6
    """Solutions in a batch."""
    epochs: int = 1
    """Passes over the data."""
    learning_rate: float = 2e-5
    """Of AdamW."""


def batches(options: Options, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[Tensor, ...]]:
    """input_ids [B, T] and attention_mask [B, T], padded on the right; step_index [S] into the B * T rows, labels [S],
    cu_steps [B + 1]. Every solution is taken whole, and in another order each time."""
    with open(options.data, encoding="utf-8") as file:
        lines = [json.loads(line) for line in file if line.strip()]
    random.shuffle(lines)
    for start in range(0, len(lines), options.batch):
        sequences, ends, labels = [], [], []
        for line in lines[start : start + options.batch]:
            ids = list(tokenizer(line["question"] + "\n")["input_ids"])
            ends.append([])
            steps = [step for step in line["solution"].split("\n") if step.strip()]
            error = line["first_error"]
            if error is not None and not 1 <= error <= len(steps):
                raise ValueError(
                    f"first_error is {error} in a solution of {len(steps)} steps: {line['question'][:60]!r}"
                )
            for number, step in enumerate(steps[:error], start=1):  # up to the first error, with it
                ids += tokenizer(step + "\n", add_special_tokens=False)["input_ids"]
                ends[-1].append(len(ids) - 1)  # the Q-value is read at the last token of a step
                labels.append(float(number != error))
            sequences.append(torch.tensor(ids))
        input_ids = nn.utils.rnn.pad_sequence(sequences, batch_first=True)
        lengths = torch.tensor([len(ids) for ids in sequences])
        mask = torch.arange(input_ids.shape[1])[None] < lengths[:, None]
        step_index = torch.tensor([row * input_ids.shape[1] + end for row, of_row in enumerate(ends) for end in of_row])
        cu_steps = torch.tensor([0, *(len(of_row) for of_row in ends)]).cumsum(0)
        yield input_ids, mask.long(), step_index, torch.tensor(labels), cu_steps


def mean(q: Tensor) -> str:
    return f"{q.mean():.2f}" if len(q) else "-"


def main(options: Options) -> list[float]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    backbone = AutoModel.from_pretrained(options.model, dtype=torch.float32).to(device)
    torch.manual_seed(0)
    random.seed(0)
    head = nn.Linear(backbone.config.hidden_size, 1).to(device)
    nn.init.zeros_(head.bias)
    parameters = [*backbone.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=options.learning_rate, weight_decay=0.0)
    losses = []
    for _ in range(options.epochs):
        for batch in batches(options, tokenizer):
            input_ids, mask, step_index, labels, cu_steps = (tensor.to(device) for tensor in batch)
            hidden = backbone(input_ids=input_ids, attention_mask=mask, use_cache=False).last_hidden_state
            out = step_loss(
                hidden.flatten(0, 1), step_index, labels, cu_steps, head.weight[0], head.bias, loss=options.loss
            )
            out.loss.backward()
            nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(out.loss.item())
            print(
                f"step {len(losses)}: loss {losses[-1]:.3f}, Q of right steps {mean(out.q[labels == 1])}, "
                f"of wrong ones {mean(out.q[labels == 0])}"
            )
    return losses


if __name__ == "__main__":
    main(tyro.cli(Options))
