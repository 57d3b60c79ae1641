"""`pqm-fast probe-study`: split, heads, tests, then results.json, pictures and study.md."""

from dataclasses import asdict
from functools import cache
from typing import Any

from pqm_fast.common.lock import locked
from pqm_fast.common.signals import stop_raises
from pqm_fast.data.formats import ReadOptions
from pqm_fast.data.read import SkipSummary, read_all
from pqm_fast.data.records import Record
from pqm_fast.errors import PQMError
from pqm_fast.model.device import dtype_name
from pqm_fast.probe.frozen import FrozenDecoder, Probed, with_dtype
from pqm_fast.probe.heads import Head
from pqm_fast.probe.scores import step_scores
from pqm_fast.probe_study.analyse import Data, Scored, analyse
from pqm_fast.probe_study.options import ProbeStudyConfig
from pqm_fast.probe_study.pool_test import PoolTest
from pqm_fast.probe_study.shared_data import group_of, prepare, split_file, training_file
from pqm_fast.probe_study.trials import TRIALS, run_trials
from pqm_fast.scoring.stored import Scores
from pqm_fast.study.output import write_study


def probe_study(config: ProbeStudyConfig) -> dict[str, Any]:
    """Trains the heads that are not trained yet, and tests them.

    Returns the contents of results.json: the options, the machine, the numbers of records, and what `analyse` returns.
    Raises PQMError for data, a model or a folder that cannot be used.
    """
    with locked(config.folder, "probe-study", folder=True), stop_raises():
        return _probe_study(config)


def _probe_study(config: ProbeStudyConfig) -> dict[str, Any]:
    from pqm_fast.common.environment import describe
    from pqm_fast.probe_study.document import document
    from pqm_fast.probe_study.pictures import draw

    notes = prepare(config)
    training, tuning = (str(training_file(config, config.labels[0])),), (str(split_file(config, "tuning")),)
    decoder = FrozenDecoder(with_dtype(config.probe(training, tuning), config.folder / TRIALS), notes)
    sources = {"test": (str(split_file(config, "test")),), "processbench": config.processbench, "pool": config.pools}
    probed = {
        name: decoder.probed(files, outcomes=False, read=None if name == "test" else config.read)
        for name, files in sources.items()
        if files
    }
    probed["tuning"] = decoder.probed(tuning, outcomes=False)
    data = _data(config, probed)
    cells = run_trials(config, decoder, notes)
    for note in dict.fromkeys(notes):
        print(note)
    results = {
        "config": {name: value for name, value in asdict(config).items() if name != "progress"},
        **describe(),
        "dtype": dtype_name(decoder.dtype),
        "decoder_layers": decoder.depth,
        "data": {
            "training": len(decoder.probed(training, outcomes=False).dataset),
            **{name: len(one.dataset) for name, one in probed.items()},
            "test_groups": len(set(data.groups)),
        },
        **analyse(config, cells, data, lambda head: _scored(decoder, probed, data, head)),
    }
    write_study(config.folder, results, draw, document)
    return results


def _data(config: ProbeStudyConfig, probed: dict[str, Probed]) -> Data:
    """The records of the data sets, in the order of their files, without those that no head scores."""

    def records(files: tuple[str, ...], name: str, read: ReadOptions) -> list[Record]:
        if not files:
            return []
        dataset = probed[name].dataset
        scored = {dataset.name(i) for i in range(len(dataset))}
        return [record for record in read_all(files, read, SkipSummary()) if record.id in scored]

    test = records((str(split_file(config, "test")),), "test", config.read_own)
    processbench = records(config.processbench, "processbench", config.read)
    pool = records(config.pools, "pool", config.read)
    if bad := [record.id for record in processbench if record.labels is None]:
        raise PQMError(f"{', '.join(config.processbench)}: record {bad[0]} has no labels, nor the place of an error")
    return Data(
        tuning=records((str(split_file(config, "tuning")),), "tuning", config.read_own),
        test=test,
        groups=[group_of(record, config.group_by) for record in test],
        processbench=processbench,
        pool_records=pool,
        pool=PoolTest.of(pool, ", ".join(config.pools), config.split_seed) if pool else None,
    )


def _scored(decoder: FrozenDecoder, probed: dict[str, Probed], data: Data, head: Head) -> Scored:
    @cache
    def scores(which: str) -> list[Scores]:
        by_id = step_scores(probed[which], decoder, head)
        return [by_id[record.id] for record in data.records(which)]

    return scores
