"""Whatever options are given, they are taken, or refused with an error of the project or of usage."""

import pytest
from fuzz.configs import hostile


def test_hostile_options(tmp_path):
    taken = [hostile(seed, tmp_path) for seed in range(60)]
    assert 0 < sum(config is not None for config in taken) < 60


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 26_000, 1000))
def test_many_hostile_options(first, tmp_path):
    for seed in range(first, first + 1000):
        hostile(seed, tmp_path)
