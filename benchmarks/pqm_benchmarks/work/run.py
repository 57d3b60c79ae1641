"""`python -m pqm_benchmarks work`: counts the operations of a training step, published and ours.

Matrix products are counted by torch.utils.flop_counter over transformers' own models at their real sizes, on the meta
device: nothing is computed and no weights are needed. A dense mask would be counted as a full square, so attention is
counted from the pairs (token, token it sees) of each way. These are operations, not times.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

from pqm_benchmarks.shared.shapes import SHAPES, ShapeName
from pqm_fast.errors import PQMError


@dataclass(frozen=True)
class WorkBench:
    """Count the floating-point operations of training, for the published computation and for each of ours."""

    questions: int = 200
    """Questions of the made-up workload, with 22 solutions each."""
    seed: int = 0
    """Seed of the made-up workload."""
    tree_ratio: float = 1.6
    """Tokens of all solutions over their distinct prefixes."""
    shapes: tuple[ShapeName, ...] = get_args(ShapeName)
    """Models to count for."""
    json: bool = False
    """Print JSON, and nothing else."""
    out: str | None = None
    """Folder for a picture, work_counted.png. Default: none is drawn."""


def run(config: WorkBench) -> dict[str, Any]:
    """Counts, prints a table or JSON, and draws the picture if asked to. Returns the content of the JSON."""
    from pqm_benchmarks.work.report import table

    results = count(config)
    print(json.dumps(results, indent=2) if config.json else table(results))
    if config.out is not None:
        from pqm_benchmarks.work.picture import draw

        draw(results, Path(config.out))
    return results


def count(config: WorkBench) -> dict[str, Any]:
    """{"config", "workload": {"trajectories", "tokens", "tree_ratio", "layouts": {way: fields of RowCounts},
    "attention": {"packed" or "tree": fields of AttentionWork}}, "shapes": {name: {"source", "parameters",
    "non_embedding", "flops_per_trajectory": {way: FLOPs}, "parts": {way: {part: FLOPs}}, "floor",
    "gathered_bytes_per_trajectory"}}}.

    `floor` is 6 x non-embedding parameters x distinct prefixes, per trajectory. A tree gathers the keys and values of
    all layers in bfloat16.

    Raises:
        PQMError: an option that makes no sense.
    """
    from pqm_benchmarks.shared.workload import make_workload
    from pqm_benchmarks.work.flops import training_flops
    from pqm_benchmarks.work.model_flops import count_model_flops
    from pqm_benchmarks.work.row_counts import attention_work, count_rows

    if not config.shapes:
        raise PQMError(f"shapes: give at least one of {', '.join(SHAPES)}")
    questions = make_workload(config.questions, config.seed, config.tree_ratio)
    rows_of_way, attention = count_rows(questions, config.seed), attention_work(questions)
    trajectories = sum(map(len, questions))
    shapes = {}
    for name in config.shapes:
        model = count_model_flops(SHAPES[name].config())
        parts = {
            way: {part: flops / trajectories for part, flops in training_flops(rows, model).items()}
            for way, rows in rows_of_way.items()
        }
        shapes[name] = {
            "source": SHAPES[name].source,
            "parameters": model.parameters,
            "non_embedding": model.non_embedding,
            "flops_per_trajectory": {way: sum(flops.values()) for way, flops in parts.items()},
            "parts": parts,
            "floor": 6 * model.non_embedding * rows_of_way["tree"].tokens / trajectories,
            "gathered_bytes_per_trajectory": 2 * model.key_value * attention["tree"].gathered / trajectories,
        }
    workload = {
        "trajectories": trajectories,
        "tokens": rows_of_way["packed"].tokens,
        "tree_ratio": rows_of_way["packed"].tokens / rows_of_way["tree"].tokens,
        "layouts": {way: asdict(rows) for way, rows in rows_of_way.items()},
        "attention": {way: asdict(work) for way, work in attention.items()},
    }
    return {"config": asdict(config), "workload": workload, "shapes": shapes}
