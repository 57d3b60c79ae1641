"""Training on several ranks takes the memory that was estimated."""

import ctypes
import re
from pathlib import Path

import pytest
import tiny
from rank_processes import in_ranks

from pqm_fast.train import loop
from pqm_fast.train.loop import train
from pqm_fast.train.run import prepare

pytestmark = pytest.mark.processes


def resident(name):
    """VmRSS or VmHWM, the most since it was reset, of this process in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def test_the_memory_of_a_rank_follows_its_estimate(make, world, tmp_path):
    """26 million parameters in float32 with AdamW: the peak of a step on each of 1 and 2 ranks.

    Freed memory goes back to the system at once here. By default glibc keeps blocks of this size for later, several
    times as much as a sharded step needs at a time.
    """
    model = tiny.model_folder(
        tmp_path / "wide", num_hidden_layers=8, hidden_size=512, intermediate_size=1408, num_attention_heads=8
    )
    options = {"model": str(model), "max_steps": 2, "eval_fraction": 0, "micro_batch_tokens": 128, "log_every": 2}

    def work(ranks):
        assert ctypes.CDLL(None).mallopt(-3, 65536) == 1  # M_MMAP_THRESHOLD
        before = resident("VmRSS")
        real = loop.train_step

        def step(*given, **named):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
            return real(*given, **named)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loop, "train_step", step)
            patch.setattr(loop, "_finish", lambda active: {})  # saving the weights takes longer than the steps
            notes = []
            patch.setattr(loop, "prepare", lambda *given: notes.append(prepare(*given)) or notes[0])
            train(make(str(ranks.world), **options), ranks)
        [note] = [note for note in notes[0].notes if note.startswith("memory, estimated: ")]
        return resident("VmHWM") - before, 1e9 * float(re.search(r"= ([\d.]+) GB", note)[1])

    peaks = {}
    for count in (1, 2):
        results = in_ranks(count, work)
        for peak, estimate in results:
            assert 0.7 * estimate - 5e7 <= peak <= 1.3 * estimate + 5e7, (count, peak, estimate)  # a tenth of a GB
        peaks[count] = max(peak for peak, _ in results)
    assert peaks[2] < 0.8 * peaks[1]
