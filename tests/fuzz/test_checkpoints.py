"""Nothing but the project's own errors leaves the loaders of checkpoints, and nothing damaged is used."""

import pytest
from fuzz.checkpoints import Victim


@pytest.fixture(scope="module")
def victim(tmp_path_factory):
    return Victim(tmp_path_factory.mktemp("victim"))


def test_damaged_checkpoints(victim):
    for seed in range(300):
        victim.attack(seed)


def test_a_tokenizer_that_fails_at_its_first_text(victim):
    victim.attack(2623)  # `"model_max_length": {}`


@pytest.mark.slow
@pytest.mark.parametrize("first", range(1000, 26_000, 1000))
def test_many_damaged_checkpoints(victim, first):
    for seed in range(first, first + 1000):
        victim.attack(seed)
