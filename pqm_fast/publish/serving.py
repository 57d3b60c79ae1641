"""What a program needs to serve a checkpoint: the template, the step token's id, the commands."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import transformers

from pqm_fast.data.encode import Encoder
from pqm_fast.errors import PQMError
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.tokenizer import load_tokenizer

SGLANG_POOLS_AT_STEPS = ("qwen2", "qwen3")
"""The architectures whose head SGLang 0.5.23 evaluates at every step token of a solution."""


@dataclass(frozen=True)
class Served:
    """A checkpoint as a server sees it."""

    model: str
    """As it stands in the commands: a folder or a hub id."""
    model_type: str
    architecture: str
    """The first entry of `architectures` in config.json, such as LlamaForTokenClassification."""
    dtype: str
    """Of the stored weights."""
    recipe: Recipe
    step_id: int | None
    """The id of the step token; None if Q-values are read at the last token of each step."""
    bos: list[int]
    """The ids before the question: one or none."""

    @property
    def in_transformers(self) -> bool:
        """Whether programs other than pqm-fast can load it."""
        return hasattr(transformers, self.architecture)

    @property
    def pqm_fast(self) -> str:
        return shlex.join(["pqm-fast", "serve", "--model", self.model])

    @property
    def vllm(self) -> str | None:
        """Without a step token, vLLM returns a value for every token."""
        if not self.in_transformers:
            return None
        pooler = json.dumps({"tok_pooling_type": "STEP", "step_tag_id": self.step_id})
        options = [] if self.step_id is None else ["--pooler-config", pooler]
        return shlex.join(["vllm", "serve", self.model, *options])

    @property
    def sglang(self) -> str | None:
        """None if SGLang cannot return the Q-values of all steps of a solution at once."""
        if self.step_id is None or self.model_type not in SGLANG_POOLS_AT_STEPS:
            return None
        head = self.architecture.replace("ForTokenClassification", "ForSequenceClassification")
        options = ["--json-model-override-args", json.dumps({"architectures": [head]})]
        options += ["--disable-radix-cache", "--chunked-prefill-size", "-1"]
        return shlex.join(["python", "-m", "sglang.launch_server", "--model-path", self.model, *options])

    @property
    def commands(self) -> list[str]:
        """Each serves the checkpoint."""
        return [command for command in (self.pqm_fast, self.vllm, self.sglang) if command]


def served(folder: Path, model: str | None = None) -> Served:
    """Reads the checkpoint `folder`. `model`: its name in the commands, if it is another.

    Raises PQMError if the folder is not a checkpoint of pqm-fast.
    """
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        recipe = Recipe.from_config(SimpleNamespace(**config), str(folder))
        model_type, architecture, dtype = config["model_type"], config["architectures"][0], config["dtype"]
    except FileNotFoundError:
        raise PQMError(
            f"{folder}: no config.json in this folder, so it holds no finished model; check the path"
        ) from None
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise PQMError(f"{folder}: config.json is damaged ({error!r}); write the folder again") from error
    encoder = Encoder(load_tokenizer(str(folder)), recipe.template, max_length=1)
    return Served(model or str(folder), model_type, architecture, dtype, recipe, encoder.step_id, encoder.bos)
