"""The stages that run on a GPU, their order, and how long each may take."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """One stage, which runs in a separate process."""

    name: str
    what: str
    """A line for the help and the log."""
    work: str
    """module:function, which takes a `Job`."""
    seconds: int
    """The limit on a GPU, if the whole list has the minutes in MINUTES."""
    cpu_seconds: int
    """The limit on a CPU, where sizes are tiny."""


def _stage(name: str, what: str, work: str, seconds: int, cpu_seconds: int) -> Stage:
    return Stage(name, what, f"pqm_benchmarks.gpu.{work}", seconds, cpu_seconds)


CHECK = _stage("check", "rates of the card; op, AdamW and attention against float64", "check:check", 60, 24)

LISTS: dict[str, tuple[Stage, ...]] = {
    "first": (
        CHECK,
        _stage("tests", "the tests of the kernels, and those that need a GPU", "tests:everything", 115, 20),
        _stage("kernels", "the fused op against published code and torch.compile", "speed:kernels", 85, 10),
        _stage("train-0.5B", "training steps: published, TRL, packed, all", "speed:train_half", 60, 22),
        _stage("run", "train, save and score at the 0.5B shape, plain and in trees", "whole_run:whole_run", 60, 22),
        _stage("train-1.5B", "training steps: published, TRL, all", "speed:train_one_and_a_half", 50, 1),
        _stage("score-7B", "scoring: published, packed, trees", "speed:score", 50, 20),
    ),
    "second": (
        CHECK,
        _stage("failures", "the tests that failed in --earlier", "tests:again", 25, 10),
        _stage("train-7B", "training steps at 7B, 8 layers where the whole does not fit", "speed:train_seven", 40, 1),
        _stage("profile", "idle share, longest kernels, share of attention in a step", "profile:profile_steps", 40, 22),
        _stage("counters", "ncu on the kernels of the op", "counters:counters", 15, 6),
        _stage("tiles", "the kernels with other tiles", "tiles:tiles", 20, 20),
        _stage("probe", "training a head on stored states: epochs a second", "speed:probe", 20, 10),
    ),
}
MINUTES = {"first": {"cuda": 9.0, "cpu": 2.0}, "second": {"cuda": 3.8, "cpu": 1.6}}
"""The minutes of the whole list that the limits above belong to. Time that a stage leaves goes to the next ones."""
