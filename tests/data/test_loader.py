"""The loader: worker processes make the same batches as this process would, and no process is left behind."""

import json
import multiprocessing
import os
import pickle
import signal
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing
from dataclasses import dataclass, fields
from multiprocessing import forkserver
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from pqm_fast.data.batches import PackingUnits
from pqm_fast.data.dataset import COLUMNS, TrajectoryDataset
from pqm_fast.data.flat_buffer import Flattened
from pqm_fast.data.loader import MOST_WORKERS, default_workers, load_steps
from pqm_fast.data.pack import PackedBatch, pack
from pqm_fast.errors import PQMError, RecordError

BUDGET = 400


@pytest.fixture(scope="module", autouse=True)
def found_by_the_server():
    """The server that forks the workers imports this file once; otherwise each of them would."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        yield


@pytest.fixture
def dataset(tmp_path):
    """40 trajectories on disk, four to a question; those of a question share half of their tokens or more."""
    rng = np.random.default_rng(0)
    question = np.repeat(np.arange(10), 4)
    stems = rng.integers(1, 99, (10, 40))
    ids = [np.concatenate([stems[q], rng.integers(1, 99, rng.integers(1, 40))]) for q in question]
    rows = [np.sort(rng.choice(len(i), 3, replace=False)) for i in ids]
    columns = {
        "ids": np.concatenate(ids),
        "ids_end": np.cumsum([len(i) for i in ids]),
        "rows": np.concatenate(rows),
        "labels": rng.choice([0, 1, np.nan], 3 * len(ids)),
        "steps_end": 3 * np.arange(1, len(ids) + 1),
        "steps_cut": np.zeros(len(ids)),
        "question": question,
        "outcome": rng.choice([0, 1, np.nan], len(ids)),
        "names": np.frombuffer(b"".join(b"%02d" % i for i in range(len(ids))), np.uint8),
        "names_end": 2 * np.arange(1, len(ids) + 1),
    }
    for name, dtype in COLUMNS.items():
        columns[name].astype(dtype).tofile(tmp_path / name)
    (tmp_path / "info.json").write_text(json.dumps({"notes": [], "digest": "of these"}))
    return TrajectoryDataset(tmp_path)


@dataclass
class Make:
    dataset: TrajectoryDataset
    trees: bool = False

    def __call__(self, members: np.ndarray) -> PackedBatch:
        pairs = [(int(i), self.dataset[i]) for i in members]
        return pack(pairs, question=self.dataset.question[members] if self.trees else None, pad_to=BUDGET)


@dataclass
class Plan:
    """In place of an attention plan, whose type the loader does not depend on; records where it was made."""

    tokens: torch.Tensor
    kept: dict[int | None, tuple[torch.Tensor, ...]]
    process: int
    threads: int
    cuda: bool


def make_plan(batch: PackedBatch) -> Plan:
    kept = {None: (batch.step_tokens.flip(0), torch.tensor(3.5)), 7: ()}
    return Plan(batch.input_ids.bool(), kept, os.getpid(), torch.get_num_threads(), torch.cuda.is_initialized())


def steps_of(dataset, trees):
    """Optimizer steps of three micro-batches, with an empty step after the first and at the end."""
    everything = np.arange(len(dataset))
    if trees:
        units = PackingUnits.questions(everything, dataset.question, lambda i: dataset[i].input_ids, BUDGET, share=True)
    else:
        units = PackingUnits.single(everything, dataset.lengths)
    batches = units.batches(BUDGET, seed=1)
    assert len(batches) >= 4
    return [batches[:3], [], *(batches[i : i + 3] for i in range(3, len(batches), 3)), []]


def assert_equal_batches(got, expected):
    for field in fields(PackedBatch):
        a, b = getattr(got, field.name), getattr(expected, field.name)
        if torch.is_tensor(b) or field.name == "siblings":
            torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)
        else:
            assert a == b


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("trees", [False, True])
def test_all_batches_in_order_as_this_process_makes_them(dataset, trees, workers):
    make, steps = Make(dataset, trees), steps_of(dataset, trees)
    state = torch.get_rng_state()
    got = list(load_steps(iter(steps), make, make_plan, workers=workers, pin=False))
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(step) for step in got] == [len(step) for step in steps]
    for loaded, step in zip(got, steps, strict=True):
        for (batch, plan), members in zip(loaded, step, strict=True):
            expected = make(members)
            assert_equal_batches(batch, expected)
            assert (batch.paths is not None) == (batch.siblings is not None) == trees
            assert torch.equal(plan.tokens, expected.input_ids.bool())
            assert torch.equal(plan.kept[None][0], expected.step_tokens.flip(0))
            assert plan.kept[None][1] == 3.5
            assert plan.kept[7] == ()
        processes = {plan.process for _, plan in loaded}
        assert len(processes) == min(len(step), max(1, workers))
        assert (os.getpid() in processes) == (not workers and len(step) > 0)
        assert all(plan.threads == 1 and not plan.cuda for _, plan in loaded if workers)


def test_no_steps(dataset):
    assert list(load_steps([], Make(dataset), make_plan, workers=2, pin=False)) == []


@pytest.mark.parametrize("kept", [[], [torch.zeros(0)]])
def test_an_object_with_nothing_to_send(kept):
    assert len(Flattened.of(kept).share().restore()) == len(kept)


def test_flat_tensors_are_views_of_one_buffer():
    made = [
        torch.arange(5, dtype=torch.uint8),
        torch.arange(12, dtype=torch.int64).view(3, 4).T,
        torch.tensor(2.5, dtype=torch.float64),
        torch.tensor([True, False, True]),
        torch.zeros(3, 0, 2, dtype=torch.bfloat16),
        torch.randn(7).bfloat16(),
        torch.arange(10, dtype=torch.int32)[::3],
    ]
    flat = Flattened.of({"nested": [made, "text", np.arange(3)]})
    got, text, array = flat.restore()["nested"]
    assert (text, array.tolist()) == ("text", [0, 1, 2])
    for a, b in zip(got, made, strict=True):
        assert (a.dtype, a.shape) == (b.dtype, b.shape)
        assert torch.equal(a, b)
        assert a.untyped_storage().data_ptr() == flat.buffer.untyped_storage().data_ptr()


def refuse(members):
    raise RecordError(f"record {members[0]}: what was found; what to do", kind="bad")


def fail(members):
    raise ValueError(f"no batch of {members[0]}")


def die(members):
    os.kill(os.getpid(), signal.SIGKILL)


def unsendable(batch):
    return lambda: None


def assert_no_children(processes=()):
    assert multiprocessing.active_children() == []
    until = time.monotonic() + 10  # the server that forked them takes a moment to collect them
    for process in processes:
        while True:
            try:
                os.kill(process, 0)
            except ProcessLookupError:
                break
            assert time.monotonic() < until, f"process {process} is still there"
            time.sleep(0.02)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize(
    ("make", "plan", "error", "message"),
    [
        (refuse, make_plan, PQMError, "^record 4: what was found; what to do$"),
        (fail, make_plan, ValueError, "no batch of 4"),
        (pack, unsendable, (AttributeError, pickle.PicklingError), "unsendable"),
    ],
)
def test_errors_of_a_worker_surface(make, plan, error, message, workers):
    steps = [[np.array([4])], [np.array([5])]] if make is not pack else [[()]]
    with pytest.raises(error, match=message) as caught:
        next(load_steps(steps, make, plan, workers=workers, pin=False))
    assert_no_children()  # though `caught` keeps every frame
    del caught


@pytest.mark.processes
def test_a_killed_worker_is_an_error_not_a_wait(monkeypatch):
    """It is noticed when DataLoader looks after its workers, here 50 times as often as usual."""
    monkeypatch.setattr(_MultiProcessingDataLoaderIter._try_get_data, "__defaults__", (0.1,))
    with pytest.raises(PQMError, match=r"worker process \d+ ended with exit code -9 .*set fewer workers"):
        next(load_steps([[np.array([1])]] * 4, die, make_plan, workers=2, pin=False))
    assert_no_children()


def endless(dataset):
    while True:
        yield from steps_of(dataset, trees=False)


def stop_in_the_middle(dataset, processes):
    with closing(load_steps(endless(dataset), Make(dataset), make_plan, workers=2, pin=False)) as steps:
        processes.update(plan.process for _, plan in next(steps))
        assert len(multiprocessing.active_children()) == 2
        raise KeyboardInterrupt


def test_stopping_early_leaves_no_process(dataset):
    processes = set()
    with pytest.raises(KeyboardInterrupt):
        stop_in_the_middle(dataset, processes)
    assert len(processes) == 2
    assert_no_children(processes)


def test_a_loader_that_is_dropped_leaves_no_process(dataset):
    steps = load_steps(endless(dataset), Make(dataset), make_plan, workers=2, pin=False)
    processes = {plan.process for _, plan in next(steps)}
    del steps
    assert_no_children(processes)


def killed_itself(dataset, said):
    forkserver._forkserver.ensure_running = lambda: None  # it shares the server of its parent, which goes on
    steps = load_steps(endless(dataset), Make(dataset), make_plan, workers=2, pin=False)
    said.write_text(" ".join({str(plan.process) for _, plan in next(steps)}))
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.processes
def test_workers_of_a_killed_process_end_too(dataset, tmp_path):
    forkserver.ensure_running()
    process = multiprocessing.get_context("fork").Process(target=killed_itself, args=(dataset, tmp_path / "said"))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    processes = [int(number) for number in (tmp_path / "said").read_text().split()]
    assert len(processes) == 2
    assert_no_children(processes)


def test_steps_are_read_only_a_little_ahead(dataset):
    read = []

    def counted():
        for number, step in enumerate(endless(dataset)):
            read.append(number)
            yield step

    with closing(load_steps(counted(), Make(dataset), make_plan, workers=2, pin=False)) as steps:
        for _ in range(3):
            next(steps)
        assert len(read) < 10


def test_full_shared_memory_says_what_to_do(file_size_limit):
    flat, message = Flattened.of(torch.zeros(2**20)), r"4\.2 MB cannot be put into shared memory .*--shm-size"
    try:
        with file_size_limit(2**16), pytest.raises(PQMError, match=message):
            flat.share()
    finally:
        for path in Path("/dev/shm").glob(f"torch_{os.getpid()}_*"):  # torch leaves its empty file there
            path.unlink()


def test_a_pickled_data_set_opens_its_files_again(dataset):
    sent = pickle.dumps(dataset)
    assert len(sent) < 1000
    again = pickle.loads(sent)
    assert (len(again), again.notes, again.digest) == (len(dataset), dataset.notes, dataset.digest)
    for name in COLUMNS:
        np.testing.assert_array_equal(again.columns[name], dataset.columns[name])
    members = np.array([3, 1, 2])
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as pool:
        flat = pool.submit(made_there, Make(dataset, trees=True), members).result()
    assert_equal_batches(pickle.loads(flat).restore(), Make(dataset, trees=True)(members))


def made_there(make, members):
    return pickle.dumps(Flattened.of(make(members)))


def test_a_data_set_named_by_a_relative_path_is_found_from_elsewhere(dataset, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path.parent)
    sent = pickle.dumps(TrajectoryDataset(dataset.folder.relative_to(tmp_path.parent)))
    monkeypatch.chdir("/")
    assert len(pickle.loads(sent)) == len(dataset)


@pytest.mark.parametrize(
    ("cores", "processes", "expected"), [(1, 1, 1), (2, 1, 1), (4, 1, 3), (64, 1, MOST_WORKERS), (16, 8, 1), (4, 8, 1)]
)
def test_default_number_of_workers(monkeypatch, cores, processes, expected):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(cores)), raising=False)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", str(processes))
    assert default_workers(torch.device("cuda")) == expected
    assert default_workers(torch.device("cpu")) == 0


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
def test_everything_is_pinned(dataset, workers):
    make, steps = Make(dataset, trees=True), steps_of(dataset, trees=True)
    for loaded, step in zip(load_steps(steps, make, make_plan, workers=workers, pin=True), steps, strict=True):
        for (batch, plan), members in zip(loaded, step, strict=True):
            tensors = [value for value in vars(batch).values() if torch.is_tensor(value)]
            assert all(tensor.is_pinned() for tensor in [*tensors, plan.tokens, *plan.kept[None]])
            assert_equal_batches(batch.to("cuda").to("cpu"), make(members))
