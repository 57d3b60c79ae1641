"""For every test of the op: the device it runs on, fresh memory that shows what a kernel fails to write, sums of plain
PyTorch in one order, and a faster interpreter."""

import math

import pytest
import torch

# `with torch.device(...)` remembers for good which functions make tensors when it is first used: not those of `poison`.
with torch.device("cpu"):
    torch.empty(0)


@pytest.fixture(scope="session")
def device():
    """CUDA where there is one; else the CPU, with Triton in its interpreter (see tests/conftest.py)."""
    pytest.importorskip("triton")
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Fresh memory holds NaN."""

    def poisoned(make):
        def empty(*args, **kwargs):
            tensor = make(*args, **kwargs)
            if tensor.is_floating_point():
                with torch.no_grad():
                    tensor.fill_(math.nan)
            return tensor

        return empty

    for name in ("empty", "empty_like", "empty_strided"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))
    monkeypatch.setattr(torch.Tensor, "new_empty", poisoned(torch.Tensor.new_empty))


@pytest.fixture(autouse=True)
def one_order():
    """On a GPU plain PyTorch adds up the gradients of a row's steps in any order by itself, but tests compare bits."""
    torch.use_deterministic_algorithms(torch.cuda.is_available(), warn_only=True)  # some it calls have no fixed order
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def language_is_patched_once():
    """Triton's interpreter patches triton.language when a kernel starts, and again at every call of a device function.
    Once for each module of device functions is enough, and saves a third of the time."""
    if torch.cuda.is_available():
        yield
        return
    interpreted = pytest.importorskip("triton.runtime.interpreter").InterpretedFunction
    patching, patched = interpreted.__call__, set()

    def call(self, *args, **kwargs):
        if self.fn.__module__ in patched:
            return self.rewrite()(*args, **kwargs)
        patched.add(self.fn.__module__)
        return patching(self, *args, **kwargs)

    interpreted.__call__ = call
    yield
    interpreted.__call__ = patching
