"""StepQModel: any Hugging Face decoder without its LM head, plus the Q-value head, on packed batches.

It wraps the architecture's own `*ForTokenClassification` class, so that a checkpoint is an ordinary Hugging Face
folder with one label per token: the Q-value.
"""

from pathlib import Path
from typing import Any

import torch
from pqm_kernels import LOSSES, StepLoss, step_loss
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from pqm_fast.common.options import Attention
from pqm_fast.data.encode import LAST
from pqm_fast.data.pack import PackedBatch
from pqm_fast.errors import PQMError
from pqm_fast.model import vocabulary
from pqm_fast.model.attention import BatchPlan
from pqm_fast.model.attention.packed import PACKED_ATTENTION
from pqm_fast.model.check_packing import check_packing
from pqm_fast.model.loading import LoadReport, load_classifier, load_config
from pqm_fast.model.packed_decoder import PackedDecoder
from pqm_fast.model.recipe import Recipe
from pqm_fast.model.saving import check_files, save_checkpoint


class StepQModel(PackedDecoder):
    """A decoder on packed batches with a head that gives one Q-value for each step.

    `load_report` describes where the weights come from. Without `from_pretrained` those of the classifier count as
    loaded.
    """

    def __init__(self, classifier: PreTrainedModel, *, step_rows_only: bool = True, attention: Attention = "auto"):
        super().__init__(classifier, step_rows_only=step_rows_only, attention=attention)
        self.load_report = LoadReport(self.config.name_or_path)

    @classmethod
    def from_pretrained(
        cls,
        path: str,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        step_rows_only: bool = True,
        attention: Attention = "auto",
        config: Any = None,
    ) -> "StepQModel":
        """Loads a backbone, a causal LM or a checkpoint of pqm-fast from a folder or hub id.

        `config`: the result of `load_config`, if it is known already. A folder with a config.json but no weights gives
        random ones; `load_report` of the model says so.

        Raises PQMError for a model that is not a decoder or does not match its config, for files that have changed
        since `save` wrote them, and for an attention backend that does not give the model's own hidden states on this
        device.
        """
        config = load_config(path) if config is None else config
        check_files(Path(path))
        classifier, report = load_classifier(path, config, dtype, device)
        model = cls.of(classifier, path, device=device, step_rows_only=step_rows_only, attention=attention)
        model.load_report = report
        return model

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
        """Wraps a classifier that was loaded from `path`, moves it to `device` and checks it. Raises PQMError as
        `from_pretrained` does."""
        try:
            classifier.set_attn_implementation(PACKED_ATTENTION)
            model = cls(classifier, step_rows_only=step_rows_only, attention=attention).to(device)
            check_packing(model)
        except PQMError as error:
            raise PQMError(f"{path}: {error}") from error
        except Exception as error:  # an architecture that does not accept packed attention may raise anything
            raise PQMError(f"{path}: {classifier.config.model_type} cannot be used: {error}") from error
        return model

    def forward(
        self,
        batch: PackedBatch,
        plan: BatchPlan | None = None,
        *,
        loss: str,
        zeta: float,
        compare: str | None = None,
        compare_weight: float = 1.0,
        temperature: float = 1.0,
        noise: tuple[float, float] = (0.1, 0.1),
        normalizer: torch.Tensor | float | None = None,
    ) -> StepLoss:
        """Returns `.loss` (scalar, float32) and `.q` [S] (float32, detached) of the listed steps of a batch on the
        host.

        `plan`: the plan of the batch from `planner()`, if it was made in advance. The other options are those of
        `step_loss`; a loss that compares the solutions of a question needs a batch that was packed with `question`. A
        step without a label may be listed only if the loss does not read labels.
        """
        batch, plan = self._on_device(batch, plan)
        head = self.head
        assert isinstance(head, nn.Linear)  # a third-party PRM may have more layers, but is only scored
        of_questions: dict[str, Any] = {}
        if compare is not None or LOSSES[loss].unit == "question":
            of_questions = {name: getattr(batch, name) for name in ("cu_groups", "siblings", "outcomes")}
        return step_loss(
            self.hidden(batch, plan),
            plan.head.step_index,
            batch.labels.nan_to_num(0.0) if LOSSES[loss].uses_outcomes else batch.labels,
            batch.cu_steps,
            head.weight.view(-1),
            head.bias,
            loss=loss,
            zeta=zeta,
            compare=compare,
            compare_weight=compare_weight,
            temperature=temperature,
            noise=noise,
            **of_questions,
            normalizer=normalizer,
            steps_by_row=plan.head.steps_by_row,
        )

    @torch.no_grad()
    def scores(self, batch: PackedBatch, plan: BatchPlan | None = None) -> torch.Tensor:
        """Returns the Q-values [S] float32 of the listed steps of a batch on the host; `plan` as in `forward`."""
        batch, plan = self._on_device(batch, plan)
        rows = self.hidden(batch, plan).index_select(0, plan.head.step_index).float()
        with torch.autocast(rows.device.type, enabled=False):
            return self.head(rows).squeeze(-1)

    def _on_device(self, batch: PackedBatch, plan: BatchPlan | None) -> tuple[PackedBatch, BatchPlan]:
        # planned before the batch is moved, because a plan reads it on the host
        plan = self.planner()(batch) if plan is None else plan
        return batch.to(self.device), plan.to(self.device)

    def check_vocabulary(self, tokenizer: PreTrainedTokenizerBase, new: str = LAST) -> None:
        """Raises PQMError for a tokenizer that is not the model's; see `vocabulary.check_vocabulary`."""
        vocabulary.check_vocabulary(self, tokenizer, new)

    def fit_vocabulary(self, tokenizer: PreTrainedTokenizerBase, step_token: str) -> str | None:
        """Makes the step token one id with an embedding; see `vocabulary.fit_vocabulary`."""
        return vocabulary.fit_vocabulary(self, tokenizer, step_token)

    def save(
        self,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase,
        recipe: Recipe,
        dtype: torch.dtype = torch.bfloat16,
        state: dict[str, torch.Tensor] | None = None,
    ) -> None:
        """Writes a `*ForTokenClassification` folder with checksums; see `saving.save_checkpoint`."""
        save_checkpoint(self.classifier, folder, tokenizer, recipe, dtype, state)
