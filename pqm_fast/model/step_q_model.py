"""StepQModel: any Hugging Face decoder without its LM head, plus the Q-value head, on packed batches.

It wraps the architecture's own `*ForTokenClassification` class, so that a checkpoint is an ordinary Hugging Face
folder with one label per token: the Q-value.
"""

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pqm_kernels import StepLoss, step_loss
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pqm_fast.common import checksums
from pqm_fast.common.files import sync, temporary_beside, write_json
from pqm_fast.common.options import Attention
from pqm_fast.data.encode import LAST, ensure_step_token, single_id
from pqm_fast.data.pack import PackedBatch, pack, pack_trees
from pqm_fast.data.trajectory import Trajectory
from pqm_fast.errors import PQMError
from pqm_fast.model import last_layer
from pqm_fast.model.attention import NAME, BatchPlan, Planner, choose_backend
from pqm_fast.model.device import dtype_name
from pqm_fast.model.loading import head_name, load_classifier, load_config, quiet_transformers
from pqm_fast.model.recipe import CONFIG_KEY, Recipe


class StepQModel(nn.Module):
    """`classifier` is a `*ForTokenClassification` that gives one value a token; its head is kept in float32.

    `step_rows_only`: the last layer computes only the rows that steps read, the same values in less time. After
    construction the attribute says whether it does: architectures that are not supported compute all rows.
    `attention`: the backend, as `choose_backend` takes it.
    """

    def __init__(self, classifier: PreTrainedModel, *, step_rows_only: bool = True, attention: Attention = "auto"):
        super().__init__()
        self.classifier = classifier
        self.head.float()
        self.step_rows_only = step_rows_only and last_layer.narrow(self.backbone)
        self.attention = attention

    @property
    def config(self) -> Any:
        return self.classifier.config

    @property
    def head(self) -> nn.Module:
        return self.classifier.get_submodule(head_name(self.classifier))

    @property
    def backbone(self) -> nn.Module:
        return self.classifier.get_submodule(self.classifier.base_model_prefix)

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    @property
    def context(self) -> int:
        """The longest trajectory that the architecture takes, in tokens."""
        config = self.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        if rope.get("rope_type") == "longrope":  # beyond, the longest of a batch would change the others' positions
            return rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
        return getattr(config, "max_position_embeddings", None) or 32768

    def planner(self, *, step_rows: bool = True) -> Planner:
        """What says how a batch attends in this model; for the host, and for the workers of a loader.

        Raises PQMError for an attention that cannot serve the model.
        """
        backend = choose_backend(self.attention, self.device, self.classifier.dtype, self.config)
        # products in 8 bits, which only a GPU has, take rows in sixteens
        multiple_of = 16 if self.device.type == "cuda" else 1
        return Planner(backend, step_rows and self.step_rows_only, multiple_of)

    def hidden(self, batch: PackedBatch, plan: BatchPlan | None = None) -> torch.Tensor:
        """The final hidden states, after the final norm: [T, D], or with `plan` (on the device) the rows that it
        asks for, [R, D]."""
        if plan is None:
            plan = self.planner(step_rows=False)(batch).to(self.device)
        output = self.backbone(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            plan=plan,
        )
        return output.last_hidden_state[0]

    def forward(
        self,
        batch: PackedBatch,
        plan: BatchPlan | None = None,
        *,
        loss: str,
        zeta: float,
        normalizer: torch.Tensor | float | None = None,
    ) -> StepLoss:
        """`.loss` (scalar, float32) and `.q` [S] float32, detached, of the listed steps of a batch on the host.

        `plan` is what `planner()` makes of the batch, if it was made ahead.
        """
        batch, plan = self._on_device(batch, plan)
        head = self.head
        assert isinstance(head, nn.Linear)  # a PRM of others may have more, but is only scored
        return step_loss(
            self.hidden(batch, plan),
            plan.head.step_index,
            batch.labels,
            batch.cu_steps,
            head.weight.view(-1),
            head.bias,
            loss=loss,
            zeta=zeta,
            normalizer=normalizer,
            steps_by_row=plan.head.steps_by_row,
        )

    @torch.no_grad()
    def scores(self, batch: PackedBatch, plan: BatchPlan | None = None) -> torch.Tensor:
        """Q-values [S] float32 of the listed steps of a batch on the host; `plan` as in `forward`."""
        batch, plan = self._on_device(batch, plan)
        rows = self.hidden(batch, plan).index_select(0, plan.head.step_index).float()
        with torch.autocast(rows.device.type, enabled=False):
            return self.head(rows).squeeze(-1)

    def _on_device(self, batch: PackedBatch, plan: BatchPlan | None) -> tuple[PackedBatch, BatchPlan]:
        # planned before the batch is moved: a plan reads it on the host
        plan = self.planner()(batch) if plan is None else plan
        return batch.to(self.device), plan.to(self.device)

    # ---- loading and saving -------------------------------------------------------------------------------------

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        step_rows_only: bool = True,
        attention: Attention = "auto",
        notes: list[str] | None = None,
        config: Any = None,
    ):
        """Loads a backbone, a causal LM or a checkpoint of ours from a folder or hub id.

        `config`: what `load_config` gives, if it is known already. A folder with a config.json but no weights gives
        random ones. What a user should know of how the weights came about is appended to `notes`.

        Raises PQMError for what is no decoder or does not match its config, for files not as `save` wrote them, and for
        an attention backend that does not give the model's own hidden states on this device.
        """
        notes = [] if notes is None else notes
        config = load_config(path) if config is None else config
        _check_files(Path(path))
        classifier = load_classifier(path, config, dtype, device, notes)
        return cls.of(
            classifier,
            path,
            device=device,
            step_rows_only=step_rows_only,
            attention=attention,
        )

    @classmethod
    def of(
        cls,
        classifier: PreTrainedModel,
        path: str,
        *,
        device: torch.device | str = "cpu",
        step_rows_only: bool = True,
        attention: Attention = "auto",
    ) -> "StepQModel":
        """A loaded classifier of `path` on `device`, checked. Raises PQMError as `from_pretrained`."""
        try:
            classifier.set_attn_implementation(NAME)
            model = cls(classifier, step_rows_only=step_rows_only, attention=attention).to(device)
            check_packing(model)
        except PQMError as error:
            raise PQMError(f"{path}: {error}") from error
        except Exception as error:  # whatever the code of an architecture raises that does not take our attention
            raise PQMError(f"{path}: {classifier.config.model_type} cannot be used: {error}") from error
        return model

    def check_vocabulary(self, tokenizer: PreTrainedTokenizerBase, new: str = LAST) -> None:
        """Raises PQMError for a tokenizer that is not the model's; the token `new` may be without an embedding."""
        rows = self._embedding().shape[0]
        highest = max((id for token, id in tokenizer.get_vocab().items() if token != new), default=0)
        if highest >= rows:
            raise PQMError(
                f"{self.config.name_or_path}: the tokenizer has ids up to {highest} but the embedding only {rows} "
                "rows: they do not belong together; copy the model's own tokenizer into its folder"
            )

    def fit_vocabulary(self, tokenizer: PreTrainedTokenizerBase, step_token: str) -> str | None:
        """Makes the step token one id with an embedding. Returns what was done, None if nothing was.

        A new token's embedding starts at the mean of the others. The embedding only grows if the model has no spare
        row for it (Qwen2 has 290). Raises PQMError for a tokenizer that is not the model's.
        """
        self.check_vocabulary(tokenizer, step_token)
        if step_token == LAST:
            return None
        rows = self._embedding().shape[0]
        known = len(tokenizer)
        added = ensure_step_token(tokenizer, step_token)
        new_id = single_id(tokenizer, step_token)
        assert new_id is not None
        if not added and new_id < rows:
            return None
        if new_id >= rows:
            self.classifier.resize_token_embeddings(new_id + 1, pad_to_multiple_of=64, mean_resizing=False)
        with torch.no_grad():
            weight = self._embedding()
            weight[new_id] = weight[: min(known, rows)].mean(0)
        grown = f", the embedding grew from {rows} to {self._embedding().shape[0]} rows" if new_id >= rows else ""
        return f"step token {step_token!r} was added as id {new_id}{grown}"

    def _embedding(self) -> torch.Tensor:
        return self.classifier.get_input_embeddings().get_parameter("weight")

    def save(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        recipe: Recipe,
        dtype: torch.dtype = torch.bfloat16,
        state: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Writes a `*ForTokenClassification` folder with checksums into `folder`, weights cast to `dtype`, config.json
        last.

        `state` has the weights, of that dtype already, if they are not the classifier's own state dict (adapters merged
        in, masters).
        """
        with temporary_beside(folder / "model") as temporary:
            if state is None:
                state = {name: tensor.detach().to(dtype) for name, tensor in self.classifier.state_dict().items()}
            setattr(self.config, CONFIG_KEY, asdict(recipe))
            with quiet_transformers():
                self.classifier.save_pretrained(temporary, state_dict=state)
            tokenizer.save_pretrained(temporary)
            # transformers names the dtype of the model, which stays as it is, not that of the tensors it was given
            config = json.loads((temporary / "config.json").read_text(encoding="utf-8"))
            config["dtype"] = dtype_name(dtype)
            write_json(temporary / "config.json", config)
            checksums.write_sums(temporary)
            files = sorted(temporary.iterdir(), key=lambda file: file.name == "config.json")
            for file in files:
                os.replace(file, folder / file.name)
            sync(folder)


def _check_files(folder: Path) -> None:
    """Raises PQMError for a folder that `save` wrote, if its files are not what they were then."""
    if not checksums.has_sums(folder):
        return
    damage = checksums.find_damage(folder, [file.name for file in folder.glob("*.safetensors")])
    if damage is not None:
        again = f"pqm-fast train --config {folder / 'config.yaml'} --resume"
        mend = f"write it again from its last checkpoint (`{again}`), " if (folder / "checkpoints").is_dir() else ""
        raise PQMError(
            f"{folder}: {damage}; {mend}put back a copy, or delete {checksums.NAME} there if the change was made on "
            "purpose"
        )


@torch.no_grad()
def check_packing(model: StepQModel) -> None:
    """Holds packed hidden states against each sequence run alone through transformers' own attention: trajectories
    end to end and in prefix trees, every token and (where the model does that) step rows only.

    An architecture that carries state across tokens in another way than attention (Mamba, for one), or that our
    attention does not serve, would otherwise train on mixed-up trajectories without a sign.
    """
    vocabulary = model._embedding().shape[0]
    random = torch.randint(vocabulary, (13,), generator=torch.Generator().manual_seed(0)).numpy()
    alone: list[tuple[int, Trajectory]] = []
    for tokens in (random[:5], random[[0, 1, 2, 5, 6, 7, 8, 9, 10]], random[11:]):  # the first two begin alike
        steps = np.delete(np.arange(len(tokens), dtype=np.int32), 1)
        alone.append((len(alone), Trajectory(tokens, steps, np.full(len(steps), np.nan, dtype=np.float32))))
    pad_to = None if model.device.type == "cpu" else 256  # as in training
    how: dict[str, Any] = {"pad_to": pad_to, "labelled_only": False}
    batches = {
        "packed trajectories": pack(alone, **how),
        "prefix trees": pack_trees([alone[:2], alone[2:]], **how),
    }

    def one_by_one(implementation: str) -> list[torch.Tensor]:
        model.classifier.set_attn_implementation(implementation)
        ids = [torch.as_tensor(t.input_ids, device=model.device)[None].long() for _, t in alone]
        return [model.backbone(input_ids=i, use_cache=False).last_hidden_state[0].float() for i in ids]

    def at_steps(batch: PackedBatch, step_rows: bool) -> torch.Tensor:
        plan = model.planner(step_rows=step_rows)(batch).to(model.device)
        return model.hidden(batch.to(model.device), plan)[plan.head.step_index].float()

    training = model.training
    model.eval()
    ways = (False, True) if model.step_rows_only else (False,)
    packed = {(name, way): at_steps(batch, way) for name, batch in batches.items() for way in ways}
    limit = 1e-3
    try:
        expected = one_by_one("eager")
        if model.classifier.dtype != torch.float32:  # what rounding alone does in this model, between two of its own
            with suppress(ValueError):  # Gemma 2 has no sdpa
                limit = 3 * _relative_error(torch.cat(one_by_one("sdpa")), torch.cat(expected))
            limit = max(5e-2, limit)
    finally:
        model.classifier.set_attn_implementation(NAME)
        model.train(training)
    if not all(hidden.isfinite().all() for hidden in expected):
        raise PQMError("the hidden states are not finite: a weight is NaN or infinite; fetch or train the model again")
    for (name, way), got in packed.items():
        members = batches[name].members
        error = _relative_error(
            got, torch.cat([expected[m][torch.as_tensor(alone[m][1].step_tokens)] for m in members])
        )
        if not error <= limit:
            raise PQMError(
                f"{model.config.model_type}: {name} do not give the hidden states that trajectories give alone "
                f"(relative error {error:.2g}{', last layer at step rows only' if way else ''}); "
                "this architecture is not supported"
            )


def _relative_error(got: torch.Tensor, expected: torch.Tensor) -> float:
    """In float64: in float32 the norm of what is finite may be infinite. 0 where both are 0."""
    difference = (got.double() - expected.double()).norm()
    return float(difference / expected.double().norm()) if difference else 0.0
