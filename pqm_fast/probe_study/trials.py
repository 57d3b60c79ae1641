"""The heads of a study: for each loss and kind of labels the layer first, then the other options, then the seeds."""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

from tqdm import tqdm

from pqm_fast.common.combination import parse_loss
from pqm_fast.common.journal import Journal
from pqm_fast.data.source_key import source_key
from pqm_fast.errors import PQMError
from pqm_fast.model.device import dtype_name
from pqm_fast.probe.best import SELECT
from pqm_fast.probe.frozen import FrozenDecoder
from pqm_fast.probe.heads import Head, HeadSpec, choose, points
from pqm_fast.probe.splits import Sides, needs_outcomes
from pqm_fast.probe.trainer import HeadTrainer
from pqm_fast.probe_study.options import ProbeStudyConfig
from pqm_fast.probe_study.shared_data import split_file, training_file

TRIALS = "trials.jsonl"
# options that change no head
WITHOUT_EFFECT = {"out", "cache_dir", "progress", "pools", "processbench"}
WITHOUT_EFFECT |= {"baseline", "losses", "labels", "seeds", "zetas", "compare_weights", "learning_rates"}


@dataclass(frozen=True)
class Cell:
    """A loss with a kind of labels: the heads that were tried with the first seed, and the chosen one in each seed."""

    loss: str
    labels: str
    layers: list[Head]
    """At every layer, with the options in the middle of `_points`."""
    tried: list[Head]
    """At the chosen layer, with every margin, weight and rate."""
    seeds: list[Head]


def run_trials(config: ProbeStudyConfig, decoder: FrozenDecoder, notes: list[str]) -> list[Cell]:
    """Trains the heads that are not trained yet; they are kept in the folder of the study.

    Of another kind of labels than the first, only the layer that the loss chose with the first kind is tried. Raises
    PQMError for data that a loss cannot use.
    """
    journal = Journal(config.folder / TRIALS, _inputs(config, decoder))
    done: dict[tuple[str, str], Head] = {}

    def take(_: int, row: dict[str, Any]) -> None:
        head = Head.from_store(row)
        done[row["labels"], head.spec.name] = head

    journal.replay(take)
    cells: list[Cell] = []
    with ExitStack() as stack:
        stack.enter_context(journal.writing())
        bar = tqdm(total=_count(config, decoder), unit="head", disable=not config.progress, dynamic_ncols=True)
        stack.callback(bar.close)
        for labels in config.labels:
            trainer: HeadTrainer | None = None

            def trained(specs: Iterable[HeadSpec], labels: str = labels) -> Iterator[Head]:
                nonlocal trainer
                for spec in specs:
                    if (labels, spec.name) not in done:
                        trainer = trainer or _trainer(config, decoder, labels, notes)
                        head = trainer.train(spec)
                        journal.append(head.to_store() | {"labels": labels})
                        done[labels, spec.name] = head
                        bar.set_postfix_str(f"{labels}, {spec.name}")
                    bar.update()
                    yield done[labels, spec.name]

            for loss in config.losses:
                first = next((cell for cell in cells if cell.loss == loss), None)
                cells.append(_cell(config, decoder, loss, labels, first, trained))
    return cells


def _cell(
    config: ProbeStudyConfig,
    decoder: FrozenDecoder,
    loss: str,
    labels: str,
    first: Cell | None,
    trained: Callable[[Iterable[HeadSpec]], Iterator[Head]],
) -> Cell:
    """`first`: the cell of the same loss with the first kind of labels, if that is another one."""
    settings = _points(config, loss)
    seed = config.seeds[0]
    layers: list[Head] = []
    if first is None:
        middle = settings[len(settings) // 2]
        layers = list(trained(HeadSpec(layer, loss, *middle, seed) for layer in decoder.layers))
        layer = _best(layers).spec.layer
    else:
        layer = first.seeds[0].spec.layer
    tried = list(trained(HeadSpec(layer, loss, *setting, seed) for setting in settings))
    chosen = _best(tried).spec
    return Cell(loss, labels, layers, tried, list(trained(replace(chosen, seed=seed) for seed in config.seeds)))


def _points(config: ProbeStudyConfig, loss: str) -> list[tuple[float | None, float | None, float]]:
    return points(loss, config.zetas, config.compare_weights, config.learning_rates)


def _best(heads: list[Head]) -> Head:
    """The first of those with the best AUROC on the tuning questions."""
    best = choose(heads, SELECT)
    if best is None:
        raise PQMError(f"{heads[0].spec.loss}: no head has an AUROC on the tuning questions; lower the learning rates")
    return best


def _trainer(config: ProbeStudyConfig, decoder: FrozenDecoder, labels: str, notes: list[str]) -> HeadTrainer:
    training, tuning = (str(training_file(config, labels)),), (str(split_file(config, "tuning")),)
    probe = config.probe(training, tuning)
    outcomes = needs_outcomes(probe, [parse_loss(loss) for loss in config.losses])
    sides = Sides(decoder.probed(training, outcomes=outcomes), decoder.probed(tuning, outcomes=outcomes))
    return HeadTrainer(probe, decoder, sides, notes)


def _count(config: ProbeStudyConfig, decoder: FrozenDecoder) -> int:
    """Heads of a study, counting one that is asked for twice twice."""
    settings = sum(len(_points(config, loss)) for loss in config.losses)
    seeds = len(config.losses) * len(config.seeds)
    return len(config.labels) * (settings + seeds) + len(config.losses) * len(decoder.layers)


def _inputs(config: ProbeStudyConfig, decoder: FrozenDecoder) -> dict[str, Any]:
    options = {name: value for name, value in asdict(config).items() if name not in WITHOUT_EFFECT}
    data = [source_key(path) for path in config.data]
    depends_on = {"data": data, "layers": decoder.layers, "dtype": dtype_name(decoder.dtype), "model": decoder.identity}
    depends_on |= {"template": decoder.template.to_dict()}
    return json.loads(json.dumps(options | depends_on))
