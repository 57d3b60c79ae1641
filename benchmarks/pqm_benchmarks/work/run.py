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

from pqm_benchmarks.shared.shapes import SHAPES, ShapeName
from pqm_fast.errors import PQMError

if TYPE_CHECKING:
    from pqm_fast.data.trajectory import Trajectory

WAYS = {
    "reference": "published",
    "packed": "plain packing",
    "tree": "tree",
    "tree_step_rows": "tree + step rows",
}
PARTS = ("layers", "attention", "heads", "recomputation")
# Of query with key and of scores with value: two products forward, the gradient of either factor of both backward.
FORWARD_PRODUCTS, PRODUCTS = 2, 6
TILE = 128, 64  # queries and keys that attention kernels take at a time


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
    """Rows of the last layer's output projection and MLP."""
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
    """The last layer's output projection and MLP: what is needed at rows that are read, and there only."""
    value: int
    logits: int
    """Forward only."""
    pair: int
    """One product of attention, one (token, token) pair of one layer, all heads."""
    key_value: int
    """No FLOPs: numbers of the key and the value of a token, all layers and heads."""
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
        from pqm_benchmarks.work.picture import draw

        draw(results, Path(config.out))
    return results


def count(config: WorkBench) -> dict[str, Any]:
    """{"config", "workload": {"trajectories", "tokens", "tree_ratio", "layouts"}, "shapes": {name: {"source",
    "parameters", "non_embedding", "flops_per_trajectory": {way: FLOPs}, "parts": {way: {part: FLOPs}}, "floor",
    "gathered_bytes_per_trajectory"}}}, and in "workload" "attention": {"packed" or "tree": what AttentionWork says}.

    `floor` is 6 x non-embedding parameters x distinct prefixes, per trajectory; the ways are those of WAYS. What a tree
    gathers is the keys and values of all layers in bfloat16.

    Raises:
        PQMError: an option that makes no sense.
    """
    from pqm_benchmarks.shared.workload import make_workload

    if not config.shapes:
        raise PQMError(f"shapes: give at least one of {', '.join(SHAPES)}")
    groups = make_workload(config.questions, config.seed, config.tree_ratio)
    ways, attention = layouts(groups, config.seed), attention_work(groups)
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
            "gathered_bytes_per_trajectory": 2 * products.key_value * attention["tree"].gathered / trajectories,
        }
    workload = {
        "trajectories": trajectories,
        "tokens": ways["packed"].tokens,
        "tree_ratio": ways["packed"].tokens / ways["tree"].tokens,
        "layouts": {way: asdict(layout) for way, layout in ways.items()},
        "attention": {way: asdict(own) for way, own in attention.items()},
    }
    return {"config": asdict(config), "workload": workload, "shapes": shapes}


def layouts(groups: list[list["Trajectory"]], seed: int) -> dict[str, Layout]:
    """The rows and pairs of each way. A tree holds one question's solutions, whatever the token budget."""
    from pqm_benchmarks.shared.workload import published_batches

    lengths = np.array([len(t.input_ids) for group in groups for t in group])
    steps = sum(len(t.step_tokens) for group in groups for t in group)
    widths = np.concatenate([np.full(len(b), lengths[b].max()) for b in published_batches(lengths, seed)])
    padded = int(widths.sum())
    total, pairs = int(lengths.sum()), _causal_pairs(lengths)
    tree = [prefix_tree(group) for group in groups]
    unique, tree_pairs, rows = (sum(column) for column in zip(*tree, strict=True))
    return {
        # flash-attn, which the published trainer loads its models with, leaves padding out of attention
        "reference": Layout(padded, pairs, padded, padded, logits=True, recomputes=True),
        "packed": Layout(total, pairs, total, steps),
        "tree": Layout(unique, tree_pairs, unique, steps),
        "tree_step_rows": Layout(unique, tree_pairs, rows, steps),
    }


@dataclass(frozen=True)
class AttentionWork:
    """What the kernels of one layer do for the whole workload."""

    sequences: int
    """Runs of queries, each with the keys of its path."""
    pairs: int
    """(token, token that it sees)."""
    computed_pairs: int
    """In the tiles that hold any of these."""
    gathered: int
    """Tokens whose key and value are copied for it."""


def attention_work(groups: list[list["Trajectory"]]) -> dict[str, AttentionWork]:
    """Plain packing and the trees of `pqm_fast.data.tree`."""
    from pqm_fast.data.tree import prefix_order

    lengths = np.array([len(t.input_ids) for group in groups for t in group])
    queries, keys = [], []
    for group in groups:
        order, shared = prefix_order([t.input_ids for t in group])
        own = np.array([len(group[i].input_ids) for i in order])
        adds = own > shared
        queries.append((own - shared)[adds])
        keys.append(own[adds])
    ways = {"packed": (lengths, lengths), "tree": (np.concatenate(queries), np.concatenate(keys))}
    return {
        way: AttentionWork(
            sequences=len(q),
            pairs=int((q * (2 * k - q + 1) // 2).sum()),
            computed_pairs=int(sum(map(_pairs_in_tiles, q.tolist(), k.tolist()))),
            gathered=int(k.sum()) if way == "tree" else 0,
        )
        for way, (q, k) in ways.items()
    }


def _pairs_in_tiles(queries: int, keys: int) -> int:
    """Those of the tiles that a sequence computes: whole ones, up to the last key that the tile's last query sees."""
    rows, columns = TILE
    last = np.minimum(np.arange(0, queries, rows) + rows, queries) + keys - queries
    return rows * columns * int((-(-last // columns)).sum())


def prefix_tree(trajectories: list["Trajectory"]) -> tuple[int, int, int]:
    """(distinct prefixes, their pairs, those at which a step ends); a prefix sees its own prefixes."""
    nodes: dict[tuple[int, int], int] = {}  # (the prefix without its last token, that token) -> number
    read: set[int] = set()  # prefixes at which a step ends
    pairs = 0
    for t in trajectories:
        path, node = [], -1
        for length, token in enumerate(t.input_ids.tolist(), 1):
            new = len(nodes)
            node = nodes.setdefault((node, token), new)
            pairs += length if node == new else 0
            path.append(node)
        read |= {path[row] for row in t.step_tokens.tolist()}
    return len(nodes), pairs, len(read)


def _causal_pairs(lengths: np.ndarray) -> int:
    """Half a square each, the diagonal included."""
    return int((lengths * (lengths + 1) // 2).sum())


def work(layout: Layout, products: Products) -> dict[str, int]:
    """FLOPs of the whole workload, forward + backward, by part."""
    pairs = products.depth * layout.pairs
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
        last_rows=_per_row(lambda: last.mlp(last.self_attn.o_proj(rows)).sum().backward()),
        value=_per_row(lambda: value(rows).sum().backward()),
        logits=_per_row(lambda: model.lm_head(rows)),
        pair=2 * config.num_attention_heads * last.self_attn.head_dim,
        key_value=2 * config.num_key_value_heads * last.self_attn.head_dim * len(backbone.layers),
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
    lines += [
        "",
        f"attention of a layer in tiles of {TILE[0]} queries x {TILE[1]} keys; per trajectory:",
        _line("", "sequences", "pairs", "computed", "times", "keys gathered"),
    ]
    for way, own in workload["attention"].items():
        sequences, pairs, computed, gathered = (own[k] / trajectories for k in own)
        cells = f"{sequences:.2f}", f"{pairs:,.0f}", f"{computed:,.0f}", f"{computed / pairs:.2f}", f"{gathered:,.1f}"
        lines.append(_line(WAYS[way], *cells))
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
        lines.append(f"keys and values gathered in trees: {shape['gathered_bytes_per_trajectory'] / 1e6:,.1f} MB")
    return "\n".join(lines)


def _line(name: str, *cells: str) -> str:
    return f"{name:16}" + "".join(f"{cell:>17}" for cell in cells)
