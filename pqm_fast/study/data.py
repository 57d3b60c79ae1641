"""What the trials of a study share, written once: records with each kind of labels, models, pools."""

import json
import shutil
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

from pqm_fast.common.files import atomic_file, write_json
from pqm_fast.common.lock import is_empty
from pqm_fast.common.names import check_model_name
from pqm_fast.data.read import SkipSummary, read_all, read_records
from pqm_fast.data.source_key import source_key
from pqm_fast.errors import PQMError
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.grid import Trial
from pqm_fast.study.labels import parse_labels, write_labelled
from pqm_fast.study.pools import write_judged


@dataclass(frozen=True)
class Materials:
    """Where everything is. `train` by kind of labels, `models` by name."""

    trials: Path
    train: dict[str, str]
    models: dict[str, str]
    tuning: Path
    test: Path
    left_out: list[str]

    def result(self, trial: Trial) -> Path:
        return self.trials / f"{trial.name}.json"


# what may change from one call to the next: more points of the same grid, and how fast they are computed
AXES = {"losses", "zetas", "labels", "models", "learning_rates", "seeds", "baseline"}
FREE = AXES | {"out", "workers", "progress", "device", "save_every", "keep_weights"}


def prepare(config: StudyConfig) -> Materials:
    """Writes what is not there yet.

    Raises:
        PQMError: a folder that holds something else or a study under other conditions; data that cannot be used.
    """
    _check_folder(config)
    data = config.folder / "data"
    given, tuning, test, models = _sources(config, data)
    judged = {"tuning": data / "tuning.jsonl", "test": data / "test.jsonl"}
    left_out = data / "left_out.json"  # written last: with it the pools are complete, and stay as they are
    if not left_out.exists():
        found = write_judged(tuning, config.read, config.n, judged["tuning"])
        found += write_judged(test, config.read, config.n, judged["test"])
        _check_apart(config, given, judged)
        write_json(left_out, found)
    return Materials(
        trials=config.folder / "trials",
        train={labels: _labelled(config, given, data, labels) for labels in config.labels},
        models=models,
        tuning=judged["tuning"],
        test=judged["test"],
        left_out=json.loads(left_out.read_text(encoding="utf-8")),
    )


def conditions(config: StudyConfig) -> dict[str, Any]:
    """The options that every trial has in common, and the state of the files they name, as they are stored."""
    options = {k: v for k, v in json.loads(json.dumps(asdict(config))).items() if k not in FREE}
    return options | {"files": [source_key(name) for name in (*config.data, *config.tuning, *config.test)]}


def _check_folder(config: StudyConfig) -> None:
    file = config.folder / "study.json"
    if not file.exists():
        if not is_empty(config.folder):
            raise PQMError(f"{config.out}: is not an empty folder; choose another --out")
        write_json(file, conditions(config))
        return
    # an option that is newer than the study had its default then
    before = conditions(StudyConfig()) | json.loads(file.read_text(encoding="utf-8"))
    now = conditions(config)
    if changed := [name for name in now if before.get(name) != now[name]]:
        if not any((config.folder / name).exists() for name in ("runs", "trials")):  # nothing to lose: a mistake mended
            shutil.rmtree(config.folder / "data", ignore_errors=True)
            write_json(file, now)
            return
        values = ", ".join(f"{name} ({before.get(name)!r} then, {now[name]!r} now)" for name in changed)
        raise PQMError(f"{config.out}: holds a study under other conditions: {values}; choose another --out")


Files = tuple[str, ...]


def _sources(config: StudyConfig, data: Path) -> tuple[Files, Files, Files, dict[str, str]]:
    """(records, tuning pools, test pools, {name: model folder})."""
    if config.data:
        for name in config.models:
            check_model_name(name)
        return config.data, config.tuning, config.test, {name: name for name in config.models}
    from pqm_fast.arithmetic.models import write_model
    from pqm_fast.arithmetic.world import write_world

    world = data / "world"
    if not (world / "tuning.jsonl").exists():
        written = write_world(
            world,
            problems=config.problems,
            test_problems=config.tuning_problems + config.test_problems,
            candidates=config.n,
            seed=config.world_seed,
        )
        questions = written.pool.read_text(encoding="utf-8").splitlines(keepends=True)
        for name, own in (
            ("test.jsonl", questions[: config.test_problems]),
            ("tuning.jsonl", questions[config.test_problems :]),
        ):
            with atomic_file(world / name) as temporary:
                temporary.write_text("".join(own), encoding="utf-8")
    models = {}
    for family in config.models:
        models[family] = str(data / "models" / family)
        write_model(Path(models[family]), family)
    return (str(world / "train.jsonl"),), (str(world / "tuning.jsonl"),), (str(world / "test.jsonl"),), models


def _labelled(config: StudyConfig, given: Files, data: Path, text: str) -> str:
    labels, out = parse_labels(text), data / f"train-{text.replace(':', '')}.jsonl"
    if out.exists():
        return str(out)
    if labels.kind == "monte-carlo":
        from pqm_fast.sample.annotate import annotate
        from pqm_fast.sample.options import AnnotateConfig

        policy = f"arithmetic:{config.completer}:{config.world_seed}"
        annotate(AnnotateConfig(policy, given, str(out), rollouts=config.rollouts, progress=config.progress))
    else:
        write_labelled(given, config.read, labels, out)
    return str(out)


def _check_apart(config: StudyConfig, given: Files, judged: dict[str, Path]) -> None:
    """Rates must be chosen, and losses judged, on questions that nothing was trained on."""
    asked = {name: {record.prompt for record in read_records(path)} for name, path in judged.items()}
    asked["data"] = {record.prompt for record in read_all(given, config.read, SkipSummary())}
    for one, other in combinations(asked, 2):
        if shared := asked[one] & asked[other]:
            raise PQMError(
                f"{one}, {other}: {len(shared)} questions are in both, such as {min(shared)[:80]!r}; training, the "
                "choice of rates and the test each need questions of their own"
            )
