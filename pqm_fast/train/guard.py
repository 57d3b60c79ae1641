"""Decides, on the device, whether an optimizer step is taken or left out. The host does not wait for the answer."""

import torch

WINDOW = 128  # norms of gradients that a new one is compared with
FEWEST = 32  # until there are so many of them, no norm counts as a spike


class StepGuard:
    """Leaves out steps whose loss or gradient is not finite, and with `deviations` above 0 those whose gradient norm is
    more than that many standard deviations above the mean of the last `WINDOW` steps that were taken.

    A norm that was left out never enters the window, so neither a NaN nor a spike changes what counts as one. Its state
    is one tensor on the device, `norms` [WINDOW + 1] float32: the norms as a ring, and how many there were in all.
    """

    def __init__(self, deviations: float, device: torch.device | str):
        self.deviations = deviations
        self.norms = torch.zeros(WINDOW + 1, device=device)
        self._slots = torch.arange(WINDOW, device=device)

    @torch.no_grad()
    def leave_out(self, loss: torch.Tensor, norm: torch.Tensor) -> torch.Tensor:
        """1.0 if the step with this loss and gradient norm (scalars, float32) is to be left out, otherwise 0.0."""
        window, seen = self.norms[:WINDOW], self.norms[WINDOW]
        fits = torch.isfinite(loss) & torch.isfinite(norm)
        if self.deviations:
            known = self._slots < seen
            count = known.sum().clamp(min=1)
            mean = torch.where(known, window, 0).sum() / count
            variance = torch.where(known, (window - mean).square(), 0).sum() / count
            fits &= (seen < FEWEST) | (norm <= mean + self.deviations * variance.sqrt())
        newest = self._slots == seen.long() % WINDOW
        window.copy_(torch.where(newest & fits, norm, window))
        seen += fits
        return (~fits).float()
