"""Nothing but the project's own errors leaves the readers, and no record vanishes in them."""

import pytest
from fuzz.readers import hostile


def test_hostile_files(tmp_path):
    for seed in range(400):
        hostile(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 51_000, 1000))
def test_many_hostile_files(first, tmp_path):
    for seed in range(first, first + 1000):
        hostile(seed, tmp_path)
