"""Runs the trials of the grid in worker processes, several at a time, and skips those that have a result."""

import multiprocessing
import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import replace
from threading import Thread

from tqdm import tqdm

from pqm_fast.common.signals import Stopped
from pqm_fast.errors import PQMError
from pqm_fast.study.choice import choose
from pqm_fast.study.config import StudyConfig
from pqm_fast.study.grid import Cell, Trial, tuning_trials
from pqm_fast.study.shared_data import SharedData
from pqm_fast.study.trial import run_trial
from pqm_fast.study.trial_result import Result, read_result, result_file


def run_trials(config: StudyConfig, shared: SharedData, grid: Sequence[Cell]) -> dict[Trial, Result]:
    """Runs the trials without a result and returns the results of all that the analysis needs.

    At each cell every learning rate, and for combinations every weight, is tried with the first seed. The other seeds
    follow, with the chosen rate and weight, once all these results are known; there are none where all diverged.

    Raises:
        PQMError: a trial failed for a reason other than divergence, or a worker was killed.
    """
    results: dict[Trial, Result] = {}
    tuned: set[Cell] = set()
    to_try = {cell: tuning_trials(config, cell) for cell in grid}
    queue = deque(trial for trials in to_try.values() for trial in trials)
    running: dict[Future[None], Trial] = {}
    total = len(queue) + len(grid) * (len(config.seeds) - 1)
    workers = _worker_count(config)
    callers_children = set(multiprocessing.active_children())
    executor = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _start_worker, (workers,))
    with executor, tqdm(total=total, unit="trial", disable=not config.progress) as bar:

        def take(trial: Trial) -> None:
            results[trial] = read_result(result_file(config, trial))
            bar.update()
            cell = trial.cell
            known_results = {trial: results[trial] for trial in to_try[cell] if trial in results}
            if cell in tuned or len(known_results) < len(to_try[cell]):
                return
            tuned.add(cell)
            choice = choose(known_results)
            if choice is None:
                bar.update(len(config.seeds) - 1)
            else:
                queue.extendleft(replace(choice[0], seed=seed) for seed in config.seeds[1:])

        try:
            while queue or running:
                while queue and len(running) < workers:
                    trial = queue.popleft()
                    if result_file(config, trial).exists():
                        take(trial)
                    else:
                        running[executor.submit(_run_in_worker, config, shared, trial)] = trial
                finished = wait(running, return_when=FIRST_COMPLETED).done if running else ()
                for future in finished:
                    future.result()
                    take(running.pop(future))
        except BrokenProcessPool as error:
            raise PQMError(
                f"{config.out}: a worker was killed, perhaps because memory ran out; run the same command again to "
                "continue, with fewer --workers"
            ) from error
        except BaseException as error:
            executor.shutdown(wait=False, cancel_futures=True)
            for process in set(multiprocessing.active_children()) - callers_children:
                process.terminate()  # a training saves a checkpoint first; other work is done again by the next call
            if isinstance(error, Stopped):
                raise Stopped(error.number, "run the same command again to continue") from None
            raise
    return results


def _run_in_worker(config: StudyConfig, shared: SharedData, trial: Trial) -> None:
    """Runs a trial, and ends the worker on a signal: after an exception it would wait for the next trial instead."""
    try:
        run_trial(config, shared, trial)
    except Stopped as stop:
        os._exit(128 + stop.number)


def _worker_count(config: StudyConfig) -> int:
    import torch

    on_gpu = config.device.startswith("cuda") or (config.device == "auto" and torch.cuda.is_available())
    return config.workers or (1 if on_gpu else os.cpu_count() or 1)


def _start_worker(workers: int) -> None:
    """Prepares a worker: it ends when its parent process ends, for whatever reason, and uses its share of the cores."""
    import torch

    Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // workers))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
