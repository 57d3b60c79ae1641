"""Runs any Hugging Face decoder on packed batches, and returns the hidden states that the Q-value head reads."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from pqm_fast.common.options import Attention
from pqm_fast.data.pack import PackedBatch
from pqm_fast.model.attention import BatchPlan, Planner, choose_backend
from pqm_fast.model.last_layer import restrict_to_step_rows
from pqm_fast.model.loading import head_name

# 8-bit matrix products, which only GPUs have, need a multiple of 16 rows
GPU_ROW_MULTIPLE = 16
DEFAULT_CONTEXT = 32768


class PackedDecoder(nn.Module):
    """The backbone of a `*ForTokenClassification` on packed batches.

    `classifier` must use the attention implementation `PACKED_ATTENTION`. Its head is kept in float32.
    `step_rows_only`: the last layer computes only the rows that steps read, which gives the same values in less time.
    After construction the attribute says whether it does: unsupported architectures compute all rows.
    `attention`: the backend, as in `choose_backend`.
    """

    def __init__(self, classifier: PreTrainedModel, *, step_rows_only: bool = True, attention: Attention = "auto"):
        super().__init__()
        self.classifier = classifier
        self.head.float()
        self.step_rows_only = step_rows_only and restrict_to_step_rows(self.backbone)
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
    def embedding(self) -> torch.Tensor:
        """The input embedding, [vocabulary, D]."""
        return self.classifier.get_input_embeddings().get_parameter("weight")

    @property
    def device(self) -> torch.device:
        return next(self.head.parameters()).device

    @property
    def context(self) -> int:
        """The longest trajectory that the architecture supports, in tokens."""
        config = self.config.get_text_config()
        rope = getattr(config, "rope_parameters", None) or {}
        # beyond this length, the longest trajectory of a batch would change the positions of the others
        if rope.get("rope_type") == "longrope":
            return rope.get("original_max_position_embeddings") or config.original_max_position_embeddings
        return getattr(config, "max_position_embeddings", None) or DEFAULT_CONTEXT

    def planner(self, *, step_rows_only: bool = True) -> Planner:
        """Makes the plans of batches for this model. It runs on the host, also in the workers of a data loader.

        `step_rows_only=False` asks for all rows of the last layer, whatever the model does by default.
        Raises PQMError for an attention backend that cannot serve the model.
        """
        backend = choose_backend(self.attention, self.device, self.classifier.dtype, self.config)
        row_multiple = GPU_ROW_MULTIPLE if self.device.type == "cuda" else 1
        return Planner(backend, step_rows_only=step_rows_only and self.step_rows_only, row_multiple=row_multiple)

    def hidden(self, batch: PackedBatch, plan: BatchPlan | None = None) -> torch.Tensor:
        """The hidden states after the final norm, in the dtype of the model: [R, D] for the rows of `plan` (on the
        device), or [T, D] without a plan."""
        if plan is None:
            plan = self.planner(step_rows_only=False)(batch).to(self.device)
        output = self.backbone(
            input_ids=batch.input_ids[None],
            position_ids=batch.position_ids[None],
            use_cache=False,
            plan=plan,
        )
        return output.last_hidden_state[0]
