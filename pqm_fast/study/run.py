"""`pqm-fast study`: all trials of the grid, several at a time, resumable; then tables and pictures."""

import multiprocessing
import os
from collections import deque
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict
from threading import Thread
from typing import Any

from tqdm import tqdm

from pqm_fast.common.files import atomic_file, write_json
from pqm_fast.common.lock import locked
from pqm_fast.common.signals import Stopped
from pqm_fast.errors import PQMError
from pqm_fast.study.analyse import Result, analyse, chosen, read_result
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.data import Materials, prepare
from pqm_fast.study.grid import Cell, Trial, cells
from pqm_fast.study.pools import read_pool
from pqm_fast.study.tables import document
from pqm_fast.study.trial import run_trial


def study(config: StudyConfig) -> dict[str, Any]:
    """Runs what is not done yet, and returns what is in results.json: options, device, `pool` and `cells` (`analyse`).

    Raises:
        PQMError: data or a folder that cannot be used, or a trial that failed otherwise than by diverging.
    """
    with locked(config.folder, "study", folder=True):
        return _study(config)


def _study(config: StudyConfig) -> dict[str, Any]:
    from pqm_fast.common.environment import describe
    from pqm_fast.study.pictures import draw

    materials = prepare(config)
    for reason in materials.left_out:
        print(reason)
    grid = cells(config)
    results = _run(config, materials, grid)
    found = analyse(config, grid, results, read_pool(materials.test))
    options = {k: v for k, v in asdict(config).items() if k not in ("progress", "workers")}
    found = {"config": options, **describe(), "trials": len(results), "left_out": materials.left_out, **found}
    write_json(config.folder / "results.json", found)
    draw(found, config.folder)
    text = document(found)
    with atomic_file(config.folder / "study.md") as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(text)
    return found


def _run(config: StudyConfig, materials: Materials, grid: list[Cell]) -> dict[Trial, Result]:
    """Every trial that the figures need. A cell's other seeds follow when all its rates are known."""
    results: dict[Trial, Result] = {}
    tuned: set[Cell] = set()
    queue = deque(Trial(cell, rate, config.seeds[0]) for cell in grid for rate in config.learning_rates)
    running: dict[Future[None], Trial] = {}
    total = len(grid) * (len(config.learning_rates) + len(config.seeds) - 1)
    count = _workers(config)
    others = set(multiprocessing.active_children())  # of whoever calls this
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start, (count,))
    with executor, tqdm(total=total, unit="trial", disable=not config.progress) as bar:

        def take(trial: Trial) -> None:
            results[trial] = read_result(materials.result(trial))
            bar.update()
            cell = trial.cell
            first = {rate: results.get(Trial(cell, rate, config.seeds[0])) for rate in config.learning_rates}
            known = {rate: result for rate, result in first.items() if result is not None}
            if cell in tuned or len(known) < len(first):
                return
            tuned.add(cell)
            choice = chosen(known)
            if choice is None:
                bar.update(len(config.seeds) - 1)
            else:
                queue.extendleft(Trial(cell, choice[0], seed) for seed in config.seeds[1:])

        try:
            while queue or running:
                while queue and len(running) < count:
                    trial = queue.popleft()
                    if materials.result(trial).exists():
                        take(trial)
                    else:
                        running[executor.submit(_trial, config, materials, trial)] = trial
                done = wait(running, return_when=FIRST_COMPLETED).done if running else ()
                for future in done:
                    future.result()
                    take(running.pop(future))
        except BrokenProcessPool as error:
            raise PQMError(
                f"{config.out}: a worker was killed, perhaps for want of memory; with fewer --workers the same command "
                "goes on"
            ) from error
        except BaseException as error:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()  # a training saves a checkpoint first; what else it was at is done again
            if isinstance(error, Stopped):
                raise Stopped(error.number, "the same command goes on") from None
            raise
    return results


def _trial(config: StudyConfig, materials: Materials, trial: Trial) -> None:
    """In a worker, which a signal ends: as a mere error it would leave the worker waiting for the next trial."""
    try:
        run_trial(config, materials, trial)
    except Stopped as stop:
        os._exit(128 + stop.number)


def _workers(config: StudyConfig) -> int:
    import torch

    on_gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    return config.workers or (1 if on_gpu else os.cpu_count() or 1)


def _start(workers: int) -> None:
    """In each worker, which ends with the process that it works for, however that ends."""
    import torch

    Thread(target=_end_with_parent, daemon=True).start()

    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
