"""The recipe that a checkpoint was trained with: the template, and the losses with their numbers."""

from dataclasses import dataclass
from typing import Any

from pqm_fast.data.encode import Template
from pqm_fast.errors import PQMError

CONFIG_KEY = "pqm_fast"


@dataclass(frozen=True)
class Recipe:
    """How a checkpoint was trained; stored under `pqm_fast` in its config.json."""

    template: Template
    loss: str = "rank"
    zeta: float = 4.0
    """The margin between correct and incorrect steps in the ranking loss (PQM, arXiv 2410.11287)."""
    compare: str | None = None
    """The loss that was added to compare the solutions of a question."""
    compare_weight: float = 1.0
    temperature: float = 1.0
    noise: tuple[float, float] = (0.1, 0.1)
    """The rates of wrong labels before the first error and from there on, as the loss took them."""

    @classmethod
    def from_config(cls, config: Any, path: str) -> "Recipe":
        """Reads the recipe of the checkpoint `path`. Raises PQMError if its `config` has none or a damaged one."""
        entry = getattr(config, CONFIG_KEY, None)
        if not isinstance(entry, dict):
            raise PQMError(
                f"{path}: config.json has no {CONFIG_KEY!r} entry, so it is not a checkpoint of pqm-fast; "
                f"train one with `pqm-fast train`, or score another PRM with --preset {_preset_of(config)}"
            )
        try:
            texts, loss, zeta = entry["template"], entry["loss"], entry["zeta"]
            compare = entry.get("compare", cls.compare)  # from here on, entries that earlier checkpoints do not have
            weight, temperature = entry.get("compare_weight", 1.0), entry.get("temperature", 1.0)
            before, after = entry.get("noise", cls.noise)
            if not all(isinstance(text, str) for text in (*texts.values(), loss, compare or "")) or not all(
                isinstance(number, int | float) for number in (zeta, weight, temperature, before, after)
            ):
                raise TypeError("a value has the wrong type")
            return cls(Template(**texts), loss, zeta, compare, weight, temperature, (before, after))
        except (KeyError, TypeError, ValueError, AttributeError, PQMError) as error:
            raise PQMError(f"{path}: the {CONFIG_KEY!r} entry of config.json is damaged ({error!r})") from error


def _preset_of(config: Any) -> str:
    """The preset that a third-party PRM probably needs, for a hint."""
    architecture = (getattr(config, "architectures", None) or [""])[0]
    likely = {"ProcessRewardModel": "qwen2.5-math-prm", "TokenClassification": "trl"}
    return next((preset for end, preset in likely.items() if architecture.endswith(end)), "NAME (see --help)")
