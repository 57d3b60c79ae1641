"""Ranks meet in a store that may hold what an earlier attempt left there: torchrun keeps it when it starts them anew.

Rank 0 writes a name that nobody has used before. Each other rank answers with one of its own, and rank 0 lists the
answers. A rank that finds its answer in the list has met the rank 0 that is alive, and all of them use its name. With
its name, each tells the others what they must know to watch it.
"""

import json
import time
import uuid
from typing import Any

from pqm_fast.errors import PQMError

SECONDS = 1800.0  # to wait for the others; loading libraries may take minutes from a slow disk
POLL_SECONDS = 0.05


def meet(store: Any, rank: int, world: int, about: Any) -> tuple[str, list[Any]]:
    """A name that all ranks of this attempt have, and no other; and what each rank gave as `about`, which is stored as
    JSON. `store`: of torch.distributed. Raises PQMError if a rank does not come."""
    mine = uuid.uuid4().hex
    answer = json.dumps([mine, about])
    until = time.monotonic() + SECONDS
    if rank == 0:
        answers = [f"pqm-fast/{mine}/{other}" for other in range(1, world)]
        store.set("pqm-fast/name", mine)
        while not store.check(answers):
            _wait(until, lambda: [other for other in range(1, world) if not store.check([answers[other - 1]])])
        everyone = [json.loads(text) for text in (answer, *map(store.get, answers))]
        store.set(f"pqm-fast/{mine}", json.dumps(everyone))
        return mine, [about for _, about in everyone]
    answered = ""
    while True:
        if store.check(["pqm-fast/name"]):
            name = store.get("pqm-fast/name").decode()
            if name != answered:
                store.set(f"pqm-fast/{name}/{rank}", answer)
                answered = name
            everyone = json.loads(store.get(f"pqm-fast/{name}")) if store.check([f"pqm-fast/{name}"]) else []
            if mine in (own for own, _ in everyone):
                return name, [about for _, about in everyone]
        _wait(until, lambda: [0])


def _wait(until: float, missing: Any) -> None:
    if time.monotonic() > until:
        ranks = ", ".join(map(str, missing()))
        raise PQMError(f"waited {SECONDS / 60:.0f} minutes for rank {ranks}: see its own messages, and the network")
    time.sleep(POLL_SECONDS)
