"""What all calls that add to one reproduction have in common, stored as reproduction.json in its folder."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pqm_fast.common.conditions import keep_conditions
from pqm_fast.data.source_key import source_key
from pqm_fast.data.sources import is_pattern
from pqm_fast.reproduce.cost import FILE
from pqm_fast.reproduce.options import ReproduceConfig
from pqm_fast.reproduce.pools import POOLS

# options that may change from one call to the next: what is trained, and how
MAY_CHANGE = {"losses", "zetas", "baseline", "aggregate", "estimate_only"}
MAY_CHANGE |= {"out", "device", "save_every", "cache_dir", "score_tokens", "progress"}


def check_conditions(config: ReproduceConfig) -> None:
    """Stores the conditions in a new folder, and compares them with the stored ones in an old folder.

    Raises:
        PQMError: the folder holds something else, or a reproduction under other conditions.
    """
    keep_conditions(
        config.folder,
        "reproduction",
        conditions(config),
        conditions(ReproduceConfig(config.protocol)),
        results=("runs", "scores"),
        prepared=(POOLS, FILE),
        made_elsewhere=("runs",),
    )


def conditions(config: ReproduceConfig) -> dict[str, Any]:
    """The options that may not change, and the state of the files they name, JSON-ready. Nothing is looked up on the
    hub: a run that is resumed compares its data itself."""
    options = {k: v for k, v in json.loads(json.dumps(asdict(config))).items() if k not in MAY_CHANGE}
    names = (*config.data, *config.pools, *config.answers)
    return options | {"files": [source_key(n) if Path(n).exists() or is_pattern(n) else [n] for n in names]}
