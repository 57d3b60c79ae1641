"""All ways to score, in the order in which they are timed and shown."""

from pqm_benchmarks.score.ways import ours, padded
from pqm_benchmarks.score.ways.way import ScoringWay

WAYS: dict[str, ScoringWay] = {
    "published": padded.PUBLISHED,
    "padded": padded.BY_LENGTH,
    **ours.LADDER,
}
