"""All ways to train, in the order in which they are timed and shown."""

from pqm_benchmarks.train.ways import openrlhf, ours, reference, trl
from pqm_benchmarks.train.ways.way import TrainingWay

WAYS: dict[str, TrainingWay] = {
    "reference": reference.WAY,
    "trl": trl.WAY,
    "openrlhf": openrlhf.WAY,
    **ours.LADDER,
}
