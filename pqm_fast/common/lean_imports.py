"""Keeps transformers and peft from importing torchao until it is needed. Where torchao is installed, they import it for
every model, which takes a second and prints messages on many machines."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# Imports one function of torchao, for saving weights that torchao quantised; loading such weights uses other modules.
QUANTIZER = "transformers.quantizers.quantizer_torchao"


@contextmanager
def without_torchao(available: Any) -> Iterator[None]:
    """Hides torchao inside the block, unless it is loaded already. `available` is the cached function that the library
    calls to look for torchao."""
    if "torchao" in sys.modules:
        yield
        return
    available.cache_clear()
    sys.modules["torchao"] = None  # type: ignore[assignment]  # Python treats None as "not found"
    try:
        yield
    finally:
        del sys.modules["torchao"]
        available.cache_clear()


class _WithoutTorchao(Loader):
    def __init__(self, loader: Loader):
        self.loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        from transformers.utils.import_utils import is_torchao_available

        with without_torchao(is_torchao_available):
            self.loader.exec_module(module)


class _Finder(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != QUANTIZER:
            return None
        spec = PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _WithoutTorchao(spec.loader)
        return spec


def install() -> None:
    """Call it before transformers is imported; afterwards it has no effect."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
