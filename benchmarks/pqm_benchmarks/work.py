"""`pqm-fast bench work`: the operations of a training step, counted, for the published computation and for ours.

Matrix products are counted by torch.utils.flop_counter over transformers' own models at their real sizes, on the meta
device: nothing is computed and no weights are needed. A dense mask would be counted as a full square, so attention is
counted from the pairs (token, token it sees) of each layout. These are operations, not times.
"""

import json
from collections.abc import Callable
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from pqm_benchmarks.shapes import SHAPES, ShapeName
from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    from pqm_fast.data.pack import Trajectory

WAYS = {
    "reference": "published",
    "packed": "plain packing",
    "tree": "tree",
    "tree_step_rows": "tree + step rows",
}
PARTS = ("layers", "attention", "heads", "recomputation")
# Of query with key and of scores with value: two products forward, the gradient of either factor of both backward.
FORWARD_PRODUCTS, PRODUCTS = 2, 6


@dataclass(frozen=True)
class WorkBench:
    """Count the floating-point operations of training, for the published computation and for each of ours."""

    questions: int = 200
    """Of the made-up workload, with 22 solutions each."""
    seed: int = 0
    """Of the made-up workload."""
    tree_ratio: float = 1.6
    """Tokens of all solutions over distinct prefixes of them."""
    shapes: tuple[ShapeName, ...] = get_args(ShapeName)
    """Models to count for."""
    json: bool = False
    """Print JSON, and nothing else."""
    out: str | None = None
    """Folder for a picture of it, work_counted.png. Default: none is drawn."""


@dataclass(frozen=True)
class Layout:
    """What one way computes for the whole workload, whatever the model."""

    tokens: int
    """Rows of every layer."""
    pairs: int
    """(token, token that it sees) in a layer."""
    last_tokens: int
    """Rows of the last layer's query, output projection and MLP."""
    last_pairs: int
    """Pairs in the last layer."""
    scored: int
    """Rows of the value head."""
    logits: bool = False
    """Vocabulary logits of all tokens, which no loss reads: forward only."""
    recomputes: bool = False
    """The layers' forward once more in the backward."""


@dataclass(frozen=True)
class Products:
    """FLOPs of a model's matrix products, attention left out: forward + backward of one row, if not said otherwise."""

    layers: int
    layers_again: int
    """Of the forward that full recomputation repeats."""
    last_rows: int
    """The last layer's query, output projection and MLP: what is needed at rows that are read, and there only."""
    value: int
    logits: int
    """Forward only."""
    pair: int
    """One product of attention, one (token, token) pair of one layer, all heads."""
    depth: int
    """Layers."""
    parameters: int
    non_embedding: int
    """Parameters of the layers and the final norm."""


def run(config: WorkBench) -> dict[str, Any]:
    """Counts and prints a table, or JSON. Returns what the JSON says."""
    results = count(config)
    print(json.dumps(results, indent=2) if config.json else table(results))
    if config.out is not None:
        from pqm_benchmarks.work_picture import draw

        draw(results, Path(config.out))
    return results


def count(config: WorkBench) -> dict[str, Any]:
    """{"config", "workload": {"trajectories", "tokens", "tree_ratio", "layouts"}, "shapes": {name: {"source",
    "parameters", "non_embedding", "flops_per_trajectory": {way: FLOPs}, "parts": {way: {part: FLOPs}}, "floor"}}}.

    `floor` is 6 x non-embedding parameters x distinct prefixes, per trajectory; the ways are those of WAYS.

    Raises:
        PQMError: an option that makes no sense.
    """
    from pqm_benchmarks.workload import make_workload

    if not config.shapes:
        raise PQMError(f"shapes: give at least one of {', '.join(SHAPES)}")
    groups = make_workload(config.questions, config.seed, config.tree_ratio)
    ways = layouts(groups, config.seed)
    trajectories = sum(map(len, groups))
    shapes = {}
    for name in config.shapes:
        products = count_products(SHAPES[name].config())
        parts = {
            way: {part: flops / trajectories for part, flops in work(layout, products).items()}
            for way, layout in ways.items()
        }
        shapes[name] = {
            "source": SHAPES[name].source,
            "parameters": products.parameters,
            "non_embedding": products.non_embedding,
            "flops_per_trajectory": {way: sum(own.values()) for way, own in parts.items()},
            "parts": parts,
            "floor": 6 * products.non_embedding * ways["tree"].tokens / trajectories,
        }
    workload = {
        "trajectories": trajectories,
        "tokens": ways["packed"].tokens,
        "tree_ratio": ways["packed"].tokens / ways["tree"].tokens,
        "layouts": {way: asdict(layout) for way, layout in ways.items()},
    }
    return {"config": asdict(config), "workload": workload, "shapes": shapes}


def layouts(groups: list[list["Trajectory"]], seed: int) -> dict[str, Layout]:
    """The rows and pairs of each way. A tree holds one question's solutions, whatever the token budget."""
    from pqm_benchmarks.workload import published_batches

    lengths = np.array([len(t.input_ids) for group in groups for t in group])
    steps = sum(len(t.step_index) for group in groups for t in group)
    widths = np.concatenate([np.full(len(b), lengths[b].max()) for b in published_batches(lengths, seed)])
    padded = int(widths.sum())
    total, pairs = int(lengths.sum()), _causal_pairs(lengths)
    tree = [prefix_tree(group) for group in groups]
    unique, tree_pairs, rows, row_pairs = (sum(column) for column in zip(*tree, strict=True))
    return {
        # flash-attn, which the published trainer loads its models with, leaves padding out of attention
        "reference": Layout(padded, pairs, padded, pairs, padded, logits=True, recomputes=True),
        "packed": Layout(total, pairs, total, pairs, steps),
        "tree": Layout(unique, tree_pairs, unique, tree_pairs, steps),
        "tree_step_rows": Layout(unique, tree_pairs, rows, row_pairs, steps),
    }


def prefix_tree(trajectories: list["Trajectory"]) -> tuple[int, int, int, int]:
    """(distinct prefixes, their pairs, those at which a step ends, their pairs); a prefix sees its own prefixes."""
    nodes: dict[tuple[int, int], int] = {}  # (the prefix without its last token, that token) -> number
    sees: dict[int, int] = {}  # prefix at which a step ends -> its pairs
    pairs = 0
    for t in trajectories:
        path, node = [], -1
        for length, token in enumerate(t.input_ids.tolist(), 1):
            new = len(nodes)
            node = nodes.setdefault((node, token), new)
            pairs += length if node == new else 0
            path.append(node)
        sees |= {path[row]: row + 1 for row in t.step_index.tolist()}
    return len(nodes), pairs, len(sees), sum(sees.values())


def _causal_pairs(lengths: np.ndarray) -> int:
    """Half a square each, the diagonal included."""
    return int((lengths * (lengths + 1) // 2).sum())


def work(layout: Layout, products: Products) -> dict[str, int]:
    """FLOPs of the whole workload, forward + backward, by part."""
    above = products.depth - 1
    pairs = above * layout.pairs + layout.last_pairs
    return {
        "layers": layout.tokens * products.layers + (layout.last_tokens - layout.tokens) * products.last_rows,
        "attention": PRODUCTS * products.pair * pairs,
        "heads": layout.scored * products.value + (layout.tokens * products.logits if layout.logits else 0),
        "recomputation": layout.tokens * products.layers_again + FORWARD_PRODUCTS * products.pair * pairs
        if layout.recomputes
        else 0,
    }


ROWS = 64  # every product but attention's is linear in the rows


def count_products(config: Any) -> Products:
    """Counts the matrix products of the model that transformers makes from a config of the Llama family."""
    import torch
    from torch import nn
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        # a copy: the attention's name is written into the config
        model = AutoModelForCausalLM.from_config(deepcopy(config), attn_implementation=_without_attention())
        value = nn.Linear(config.hidden_size, 1)
        rows = torch.zeros(ROWS, config.hidden_size, requires_grad=True)
        ids, positions = torch.zeros(1, ROWS, dtype=torch.int64), torch.arange(ROWS)[None]
    model.train()
    backbone, last = model.model, model.model.layers[-1]

    def hidden() -> torch.Tensor:
        return backbone(input_ids=ids, use_cache=False).last_hidden_state

    # the angles of rotary embeddings are a product in some versions of transformers, one of so many thousands
    angles = _per_row(lambda: backbone.rotary_emb(rows[None], positions))
    layers = _per_row(lambda: hidden().sum().backward()) - angles
    # as the trainers of its time did it; nothing random is drawn, and the meta device has no state to keep
    enable = getattr(model, "activation_checkpointing_enable", None)  # the name in newer transformers
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": True, "preserve_rng_state": False})
    return Products(
        layers=layers,
        layers_again=_per_row(lambda: hidden().sum().backward()) - angles - layers,
        last_rows=_per_row(lambda: last.mlp(last.self_attn.o_proj(last.self_attn.q_proj(rows))).sum().backward()),
        value=_per_row(lambda: value(rows).sum().backward()),
        logits=_per_row(lambda: model.lm_head(rows)),
        pair=2 * config.num_attention_heads * last.self_attn.head_dim,
        depth=len(backbone.layers),
        parameters=sum(p.numel() for p in model.parameters()),
        non_embedding=sum(p.numel() for p in backbone.parameters()) - backbone.embed_tokens.weight.numel(),
    )


def _per_row(compute: Callable[[], Any]) -> int:
    """FLOPs, divided by the rows."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        compute()
    flops, rest = divmod(counter.get_total_flops(), ROWS)
    assert not rest, "a product that is not linear in the rows"
    return flops


def _without_attention() -> str:
    """Registers an attention that takes no product, under the name that it returns."""
    from transformers import AttentionInterface

    name = "pqm_counted_from_pairs"
    # key and value take part, so that their projections have a gradient
    AttentionInterface.register(
        name, lambda module, query, key, value, *_, **__: (query.transpose(1, 2) + key.sum() + value.sum(), None)
    )
    return name


def table(results: dict[str, Any]) -> str:
    """The workload, then for each model GFLOP per trajectory of each way and part, and the distance from the floor."""
    workload = results["workload"]
    trajectories, ways = workload["trajectories"], workload["layouts"]
    lines = [
        f"{results['config']['questions']} questions, {trajectories:,} trajectories, tree ratio "
        f"{workload['tree_ratio']:.3f}; per trajectory:",
        _line("", "tokens", "attention pairs", "last-layer rows"),
    ]
    for way, name in WAYS.items():
        tokens, pairs, rows = (ways[way][key] / trajectories for key in ("tokens", "pairs", "last_tokens"))
        lines.append(_line(name, f"{tokens:,.1f}", f"{pairs:,.0f}", f"{rows:,.1f}"))
    for model, shape in results["shapes"].items():
        whole = shape["flops_per_trajectory"]
        lines += ["", f"{model}: GFLOP per trajectory, forward + backward", _line("", *PARTS, "total", "times less")]
        for way, name in WAYS.items():
            own = [shape["parts"][way][part] for part in PARTS]
            figures = [f"{flops / 1e9:,.1f}" for flops in (*own, whole[way])]
            lines.append(_line(name, *figures, f"{whole['reference'] / whole[way]:.2f}"))
        lines.append(
            f"floor: 6 x {shape['non_embedding'] / 1e9:.3f}e9 parameters x "
            f"{ways['tree']['tokens'] / trajectories:,.1f} tokens = {shape['floor'] / 1e9:,.1f}; tree + step rows is "
            f"{whole['tree_step_rows'] / shape['floor']:.3f} of it"
        )
    return "\n".join(lines)


def _line(name: str, *cells: str) -> str:
    return f"{name:16}" + "".join(f"{cell:>17}" for cell in cells)
