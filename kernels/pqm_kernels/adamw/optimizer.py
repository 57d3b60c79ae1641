"""AdamW that trains bfloat16 weights with float32 precision, in 14 bytes per parameter including its gradient.

A step of 1e-6 is far below the resolution of a bfloat16 weight. So each weight has a float32 master. The parameter
holds the upper half of the master, rounded to nearest, and the optimizer holds the 16 missing bits ("low"):

    master bits = (weight bits << 16) + low,  weight bits = (master bits + 0x8000) >> 16,  -2^15 <= low < 2^15

Nothing is stored twice, and nothing has to be cast for the forward: the weights of the model are the bfloat16 ones.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# For each dtype of a parameter: the tensors in its `state`, which have its shape. The number of steps is there too.
MOMENTS = {"exp_avg": torch.float32, "exp_avg_sq": torch.float32}
STATE = {torch.float32: MOMENTS, torch.bfloat16: MOMENTS | {"low": torch.int16}}
# Plain PyTorch updates at most this many elements at a time, which limits the temporary memory of a large parameter.
CHUNK = 2**18


class AdamW(torch.optim.Optimizer):
    """`torch.optim.AdamW` on float32 masters of bfloat16 weights; float32 weights are their own masters.

    Per step t, with gradient g: m += (1 - beta1) (g - m), v += (1 - beta2) (g^2 - v) and
    master -= lr m / (1 - beta1^t) / (sqrt(v / (1 - beta2^t)) + eps) + lr weight_decay master,
    in float32, with each operation rounded once, so that both backends give the same bits, on the CPU and on CUDA.
    Nothing synchronises the device. A gradient that is not finite makes the weight NaN, and a weight beyond the range
    of bfloat16 becomes infinite.

    A step is left out if the attribute `found_inf`, a float32 scalar on the device of the parameters that the caller
    may set, is not 0, as in the fused optimizers of PyTorch. t counts such a step too, because only the device knows
    of it. (The eager backend waits for the device to read the flag.)

    The low halves belong to the weights that they were split from. Code that replaces weights between steps must also
    `del optimizer.state[param]`, or load a state that was saved with the new weights.

    Args:
        params: parameters or groups of them, as for any optimizer: bfloat16 or float32, contiguous. Gradients are
            bfloat16 or float32, independently of the weight, and may have any strides (with `param.grad_dtype =
            torch.float32` PyTorch accumulates several backward passes in float32). Parameters without a gradient are
            left unchanged.
        lr: learning rate. All numbers are Python numbers; a group may have its own, and a schedule may change them.
        betas: decay rates of m and v, in [0, 1).
        eps: added to sqrt(v).
        weight_decay: decoupled weight decay.
        backend: "eager" (plain PyTorch, any device), "triton" (one launch per parameter), or "auto": triton on CUDA.

    Raises:
        ValueError: an unknown backend; a number, parameter or gradient that does not fit.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        *,
        backend: str = "auto",
    ):
        if backend not in ("auto", "eager", "triton"):
            raise ValueError(f"unknown backend {backend!r}; known: auto, eager, triton")
        self.backend = backend
        self.found_inf: Tensor | None = None
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    def __getstate__(self) -> dict[str, Any]:  # for copies and pickles
        return super().__getstate__() | {"backend": self.backend, "found_inf": None}

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Adds a group, as in any optimizer, and checks its numbers and parameters."""
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except ValueError:
            del self.param_groups[-1]
            raise

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Updates every parameter that has a gradient. Returns the result of `closure`, if given."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is not None:
                    self._update(param, param.grad, group)
        return loss

    def _update(self, param: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        if gradient.layout != torch.strided or gradient.dtype not in STATE:
            kind = f"{gradient.dtype}, {gradient.layout}"
            raise ValueError(f"gradients must be bfloat16 or float32 and dense, found {kind}")
        state = self.state[param]
        if not state:
            state["step"] = 0
            for name, dtype in STATE[param.dtype].items():
                state[name] = torch.zeros_like(param, dtype=dtype)
        state["step"] += 1
        beta1, beta2 = group["betas"]
        numbers = (
            1 - beta1,
            1 - beta2,
            1 / math.sqrt(1 - beta2 ** state["step"]),
            group["eps"],
            group["lr"] / (1 - beta1 ** state["step"]),
            group["lr"] * group["weight_decay"],
        )
        low = state["low"].view(-1) if "low" in state else None
        moments = state["exp_avg"].view(-1), state["exp_avg_sq"].view(-1)
        arguments = (param.detach().view(-1), low, gradient.contiguous().view(-1), *moments, *map(float, numbers))
        if self.backend == "triton" or (self.backend == "auto" and param.device.type == "cuda"):
            from pqm_kernels.adamw import kernel as adamw_kernel  # needs triton, which not every platform has

            adamw_kernel.update(*arguments, skip=self.found_inf)
        elif self.found_inf is None or not self.found_inf.item():
            update(*arguments)

    @torch.no_grad()
    def master(self, param: Tensor) -> Tensor:
        """The float32 master of a parameter of this optimizer, as a new tensor of its shape."""
        if all(param is not known for group in self.param_groups for known in group["params"]):
            raise ValueError(f"not a parameter of this optimizer: {param.dtype} {list(param.shape)}")
        low = self.state.get(param, {}).get("low")
        return param.detach().to(torch.float32, copy=True) if low is None else join(param.detach(), low)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Loads the result of `state_dict` bit for bit. As usual, tensors that are on the right device are not copied.

        Raises ValueError if it does not fit the parameters. Hooks do not see the state, because `Optimizer`, which
        calls them, would cast all of it to the dtype of the weights.
        """
        saved = [number for group in state_dict["param_groups"] for number in group["params"]]
        params = [param for group in self.param_groups for param in group["params"]]
        state = {}
        for number, param in zip(saved, params, strict=False):  # Optimizer compares the lengths, group by group
            if number in state_dict["state"]:
                state[param] = _loaded(state_dict["state"][number], param, number)
        super().load_state_dict({**state_dict, "state": {}})
        self.state.update(state)


def join(weight: Tensor, low: Tensor) -> Tensor:
    """The float32 masters of bfloat16 weights and their int16 low halves, in any shape."""
    return weight.view(torch.int16).to(torch.int32).bitwise_left_shift_(16).add_(low).view(torch.float32)


def split(master: Tensor) -> tuple[Tensor, Tensor]:
    """The inverse of `join`: (weight, low). Halves round away from zero; every NaN becomes the same one."""
    # A NaN with all bits set, as GPUs make them, would be rounded to a zero.
    bits = torch.where(master.isnan(), 0x7FC00000, master.view(torch.int32))
    high = (bits + 0x8000) >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def update(
    weight: Tensor, low: Tensor | None, gradient: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor,
    to_mean: float, to_square: float, correction: float, eps: float, rate: float, decay: float,
) -> None:  # fmt: skip
    """One step in place, in plain PyTorch. All tensors are [N]; `low` is None for float32 weights.

    The moments move towards g and g^2 by the fractions `to_mean` and `to_square`; sqrt(v) is multiplied by
    `correction`, the direction by `rate` and the weight by `decay`. No operation here is one that PyTorch might fuse,
    because its rounding would then depend on the device.
    """
    for first in range(0, len(weight), CHUNK):
        chunk = slice(first, first + CHUNK)
        g, m, v = gradient[chunk].float(), exp_avg[chunk], exp_avg_sq[chunk]
        m += (g - m) * to_mean
        v += (g * g - v) * to_square
        direction = m / (_sqrt(v) * correction + eps)
        # Decay and step are added first and subtracted from the weight together: alone, a decay of 1e-8 would be lost.
        master = weight[chunk] if low is None else join(weight[chunk], low[chunk])
        master -= direction * rate + master * decay
        if low is not None:
            weight[chunk], low[chunk] = split(master)


def _sqrt(x: Tensor) -> Tensor:
    """The correctly rounded root, as a GPU computes it. PyTorch on the CPU rounds one root in five the other way."""
    return x.double().sqrt().float() if x.device.type == "cpu" else x.sqrt()


def _check_group(group: dict[str, Any]) -> None:
    bounds = {name: (group[name], math.inf) for name in ("lr", "eps", "weight_decay")}
    bounds |= {f"betas[{i}]": (beta, 1.0) for i, beta in enumerate(group["betas"])}
    for name, (value, bound) in bounds.items():
        if not isinstance(value, (int, float)) or not 0 <= value < bound:
            raise ValueError(f"{name} must be a Python number in [0, {bound}), found {value!r}")
    for param in group["params"]:
        if param.dtype not in STATE or not param.is_contiguous() or type(param).__name__ == "DTensor":
            kind = f"{type(param).__name__} {param.dtype} {list(param.shape)} with strides {param.stride()}"
            raise ValueError(f"parameters must be bfloat16 or float32, contiguous and not a DTensor, found {kind}")


def _loaded(saved: dict[str, Any], param: Tensor, number: int) -> dict[str, Any]:
    """The state of one parameter, on its device."""
    tensors = {name: value for name, value in saved.items() if name != "step"}
    actual = {name: (value.dtype, tuple(value.shape)) for name, value in tensors.items()}
    expected = {name: (dtype, tuple(param.shape)) for name, dtype in STATE[param.dtype].items()}
    if actual != expected or "step" not in saved:
        raise ValueError(f"state of parameter {number} ({param.dtype}) must be step and {expected}, found {actual}")
    on_device = {name: value.to(param.device).contiguous() for name, value in tensors.items()}
    return {"step": int(saved["step"]), **on_device}
