"""Small models, and packed batches compared with one trajectory at a time."""

import numpy as np
import tiny
import torch
from pqm_kernels import trajectory_losses

from pqm_fast.data.trajectory import Trajectory
from pqm_fast.model.attention.packed import PACKED_ATTENTION
from pqm_fast.model.step_q_model import StepQModel

STEP_ROWS = ("llama", "mistral", "qwen2", "qwen3")


def make_model(tmp_path, architecture="llama", step_rows_only=True, **changes):
    torch.manual_seed(0)
    folder = tiny.model_folder(tmp_path / architecture, architecture, **changes)
    return StepQModel.from_pretrained(str(folder), step_rows_only=step_rows_only)


def trajectories(seed=0, lengths=(9, 17, 3, 30, 12, 5)):
    rng = np.random.default_rng(seed)
    return [Trajectory(rng.integers(0, 97, length), *steps(rng, length)) for length in lengths]


def gradients(model):
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def solutions(seed=0):
    """Solutions of three questions, by question: some share a prefix, one is a prefix of another, two are equal."""
    rng = np.random.default_rng(seed)
    groups = []
    for sizes in ((9, 17, 3, 30, 12), (8, 8), (6,)):
        question = rng.integers(3, 97, 2)
        group = [np.concatenate([question, rng.integers(0, 97, n)]) for n in sizes]
        if len(sizes) > 2:
            group[1][:7] = group[0][:7]  # more than the question in common
            group += [group[3][:20], group[0]]
        groups.append([Trajectory(tokens, *steps(rng, len(tokens))) for tokens in group])
    numbers = iter(range(99))
    return [[(next(numbers), t) for t in group] for group in groups]


def steps(rng, length):
    rows = np.sort(rng.choice(length, int(rng.integers(1, min(6, length))), replace=False)).astype(np.int32)
    return rows, rng.integers(0, 2, len(rows)).astype(np.float32)


def one_by_one(model, made):
    """Scores, loss and gradients of each trajectory alone, through transformers' own attention and complete layers."""
    model.zero_grad()
    model.classifier.set_attn_implementation("eager")
    scores, losses = [], []
    for t in made:
        out = model.classifier(input_ids=torch.as_tensor(t.input_ids)[None].long(), use_cache=False)
        q = out.logits[0, torch.as_tensor(t.step_tokens).long(), 0]
        scores.append(q.detach())
        cu_steps = torch.tensor([0, len(q)], dtype=torch.int32)
        losses.append(trajectory_losses(q, torch.as_tensor(t.labels), cu_steps, "rank", 2.0))
    loss = torch.cat(losses).mean()
    loss.backward()
    model.classifier.set_attn_implementation(PACKED_ATTENTION)
    return scores, loss.detach(), gradients(model)


def assert_same(model, batches, expected, way=""):
    """Compares accumulated micro-batches with the result of `one_by_one`."""
    scores, loss, reference = expected
    model.zero_grad()
    got_loss = 0.0
    for batch in batches:
        out = model(batch, loss="rank", zeta=2.0, normalizer=float(len(scores)))
        out.loss.backward()
        got_loss += out.loss.detach()
        alone = [scores[m] for m in batch.members]
        assert (out.q - torch.cat(alone)).abs().max() <= 1e-5, way
    assert abs(got_loss - loss) <= 1e-5 * abs(loss), way
    got = gradients(model)
    assert got.keys() == reference.keys()
    assert len(got) >= 3 * 7  # every layer has one
    for name in got:
        # otherwise the gradient is rounding alone: the bias of keys, which softmax ignores
        if reference[name].norm() > 1e-6:
            assert tiny.relative_error(got[name], reference[name]) <= 1e-5, (name, way)
