"""Writes the files that the trials of a study share, each once: labelled records, models, judged pools."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path

from pqm_fast.common.files import atomic_file, write_json
from pqm_fast.common.names import check_model_name
from pqm_fast.data.read import SkipSummary, read_all, read_records
from pqm_fast.errors import PQMError
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.judged_pool import write_judged_pool
from pqm_fast.study.relabel import parse_label_kind, write_relabelled


@dataclass(frozen=True)
class SharedData:
    train: dict[str, str]
    """{kind of labels: file of training records}."""
    models: dict[str, str]
    """{name in the grid: folder or hub id}."""
    tuning: Path
    """Judged pool on which rates and aggregators are chosen."""
    test: Path
    """Judged pool on which the losses are compared."""
    left_out: list[str]
    """Messages about candidates that are in neither pool."""


def prepare(config: StudyConfig) -> SharedData:
    """Writes the files that do not exist yet.

    Raises:
        PQMError: data that cannot be used, or a question that is in more than one of training, tuning and test data.
    """
    data = config.folder / "data"
    sources = _user_sources(config) if config.data else _world_sources(config, data)
    pools = {"tuning": data / "tuning.jsonl", "test": data / "test.jsonl"}
    left_out = data / "left_out.json"  # written last: where it exists, the pools are complete and are not written again
    if not left_out.exists():
        messages = write_judged_pool(sources.tuning, config.read, config.n, pools["tuning"])
        messages += write_judged_pool(sources.test, config.read, config.n, pools["test"])
        _check_disjoint(config, sources.train, pools)
        write_json(left_out, messages)
    return SharedData(
        train={labels: _labelled_file(config, sources.train, data, labels) for labels in config.labels},
        models=sources.models,
        tuning=pools["tuning"],
        test=pools["test"],
        left_out=json.loads(left_out.read_text(encoding="utf-8")),
    )


Files = tuple[str, ...]


@dataclass(frozen=True)
class _Sources:
    """Training records and pools before they are relabelled and judged, and {name: folder or hub id} of the models."""

    train: Files
    tuning: Files
    test: Files
    models: dict[str, str]


def _user_sources(config: StudyConfig) -> _Sources:
    for name in config.models:
        check_model_name(name)
    return _Sources(config.data, config.tuning, config.test, models={name: name for name in config.models})


def _world_sources(config: StudyConfig, data: Path) -> _Sources:
    """The arithmetic world in `data`/world, its pool cut into tuning and test questions, and models without weights."""
    from pqm_fast.arithmetic.models import write_model
    from pqm_fast.arithmetic.world import write_world

    world = data / "world"
    if not (world / "tuning.jsonl").exists():
        new_world = write_world(
            world,
            problems=config.problems,
            test_problems=config.tuning_problems + config.test_problems,
            candidates=config.n,
            seed=config.world_seed,
        )
        questions = new_world.pool.read_text(encoding="utf-8").splitlines(keepends=True)
        for name, lines in (
            ("test.jsonl", questions[: config.test_problems]),
            ("tuning.jsonl", questions[config.test_problems :]),
        ):
            with atomic_file(world / name) as temporary:
                temporary.write_text("".join(lines), encoding="utf-8")
    models = {}
    for family in config.models:
        models[family] = str(data / "models" / family)
        write_model(Path(models[family]), family)
    train, tuning, test = ((str(world / f"{name}.jsonl"),) for name in ("train", "tuning", "test"))
    return _Sources(train, tuning, test, models)


def _labelled_file(config: StudyConfig, train: Files, data: Path, labels: str) -> str:
    """The file of the training records with this kind of labels."""
    kind, out = parse_label_kind(labels), data / f"train-{labels.replace(':', '')}.jsonl"
    if out.exists():
        return str(out)
    if kind.name == "monte-carlo":
        from pqm_fast.sample.annotate import annotate
        from pqm_fast.sample.options import AnnotateConfig

        policy = f"arithmetic:{config.completer}:{config.world_seed}"
        annotated = str(data / "annotated.jsonl")
        annotate(AnnotateConfig(policy, train, annotated, rollouts=config.rollouts, progress=config.progress))
        train = (annotated,)
    write_relabelled(train, config.read, kind, out)
    return str(out)


def _check_disjoint(config: StudyConfig, train: Files, pools: Mapping[str, Path]) -> None:
    """Rates must be chosen, and losses compared, on questions that no model was trained on."""
    questions = {name: {record.prompt for record in read_records(path)} for name, path in pools.items()}
    questions["data"] = {record.prompt for record in read_all(train, config.read, SkipSummary())}
    for first, second in combinations(questions, 2):
        if shared := questions[first] & questions[second]:
            raise PQMError(
                f"{first}, {second}: {len(shared)} questions are in both, such as {min(shared)[:80]!r}; training, the "
                "choice of rates and the test each need questions that the others do not have"
            )
