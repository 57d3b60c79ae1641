"""Values of options that several commands have."""

from typing import Literal

DType = Literal["auto", "float32", "bfloat16"]
Layers = Literal["auto", "eager", "compile", "liger"]
Attention = Literal["auto", "flash", "varlen", "flex", "sdpa"]
