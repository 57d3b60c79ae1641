"""The models that are counted and timed: the sizes in their public config.json, without weights."""

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

ShapeName = Literal["Qwen2.5-0.5B", "Qwen2.5-1.5B", "Qwen2.5-7B", "deepseek-math-7b"]
AnyShape = ShapeName | Literal["Qwen2.5-7B-8L", "tiny"]


@dataclass(frozen=True)
class Shape:
    """The sizes of a transformers decoder. Everything else has the default of the model's config class."""

    source: str
    """The Hugging Face model with these sizes in its config.json."""
    model_type: str
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    intermediate_size: int
    vocab_size: int
    tie_word_embeddings: bool

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    def config(self) -> Any:
        """The transformers config, from which a model with random weights can be made."""
        from transformers import AutoConfig

        sizes = asdict(self)
        del sizes["source"]
        return AutoConfig.for_model(**sizes)


SHAPES: dict[str, Shape] = {
    "Qwen2.5-0.5B": Shape("Qwen/Qwen2.5-0.5B", "qwen2", 896, 24, 14, 2, 4864, 151936, True),
    "Qwen2.5-1.5B": Shape("Qwen/Qwen2.5-1.5B", "qwen2", 1536, 28, 12, 2, 8960, 151936, True),
    "Qwen2.5-7B": Shape("Qwen/Qwen2.5-7B", "qwen2", 3584, 28, 28, 4, 18944, 152064, False),
    "deepseek-math-7b": Shape("deepseek-ai/deepseek-math-7b-base", "llama", 4096, 30, 32, 32, 11008, 102400, False),
}

ALL_SHAPES: dict[str, Shape] = SHAPES | {
    # a full training step of 7B does not fit 80 GB: 8 of its 28 layers, with all of its embeddings
    "Qwen2.5-7B-8L": replace(SHAPES["Qwen2.5-7B"], source="Qwen/Qwen2.5-7B, 8 of 28 layers", num_hidden_layers=8),
    "tiny": Shape("nowhere: to see that it works", "qwen2", 64, 2, 4, 2, 128, 512, True),
}
"""SHAPES, and those that are timed but not counted."""

LARGE_SHAPES: dict[str, Shape] = {
    "Qwen2.5-14B": Shape("Qwen/Qwen2.5-14B", "qwen2", 5120, 48, 40, 8, 13824, 152064, False),
    "Qwen2.5-32B": Shape("Qwen/Qwen2.5-32B", "qwen2", 5120, 64, 40, 8, 27648, 152064, False),
    "Qwen2.5-72B": Shape("Qwen/Qwen2.5-72B", "qwen2", 8192, 80, 64, 8, 29568, 152064, False),
}
"""Those that need several GPUs: simulated only."""
