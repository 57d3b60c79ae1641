"""Every loss over the step scores of a trajectory, in plain PyTorch. All other implementations are tested against it.

reference_questions.py has those that compare the solutions of a question.

Each loss is one short function `(q, y, valid, options) -> [...]` that reduces the last dimension: scores `q`
[..., L], labels `y` [..., L] (1 correct, 0 wrong) and `valid` [..., L], False where a row is padded. One
trajectory is [L], a batch [B, L]. Q_0 = 0 is the value of the question; C and W are the correct and the wrong
steps in order; N is the sum of e^(q_w + zeta) over W. Scores may be as large as 1e4. Time is linear in L, except for
`pairwise`, which computes every pair. A loss near 0 and its gradient keep their precision, because no small term is
the difference of large ones.

Sources: PQM, "Process Reward Model with Q-Value Rankings" (ICLR 2025, arXiv 2410.11287), and CRM, "Linking
Process to Outcome: Conditional Reward Modeling for LLM Reasoning" (ICLR 2026, arXiv 2509.26578).
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from pqm_kernels.fused_step_loss.checks import check_steps, check_weights, loss_options
from pqm_kernels.losses import LOSSES, LossOptions

# This value leaves an element out of a log-sum-exp: its exp is exactly 0 beside any score. Unlike -inf, it never gives
# the gradient 0 * inf = NaN in a row without any element.
ABSENT = -1e30
# Pairs of scores that `pairwise` holds in memory at a time.
PAIRS_AT_ONCE = 2**22
# A batch with at most this many scores after padding is padded as a whole, however uneven its lengths.
SMALL_BATCH = 2**12

# The emission probability of a label that its place rules out: it keeps logarithms finite if a rate is 0.
LEAST_PROBABILITY = 1e-12

Function = Callable[..., Tensor]
FUNCTIONS: dict[str, Function] = {}
"""The function `(q, y, valid, options) -> [...]` of each loss of a trajectory in `LOSSES`. A loss that `weighs_steps`
takes the weight of each step, in the shape of q, as a fifth argument."""


def _computes(loss: str) -> Callable[[Function], Function]:
    """Registers the decorated function in `FUNCTIONS`."""

    def register(function: Function) -> Function:
        FUNCTIONS[loss] = function
        return function

    return register


@_computes("rank")
def rank(q: Tensor, y: Tensor, valid: Tensor, options: LossOptions) -> Tensor:
    """PQM Eq. 10: mean of log(1 + sum_{c' <= c} e^q_c' + N) - q_c over c in C and, if W is not empty, log(1 + N)."""
    correct, wrong = _split(y, valid)
    return _rank_terms(q, correct, wrong, options.zeta) / (correct.sum(-1) + wrong.any(-1)).clamp(min=1)


@_computes("rank-theory")
def rank_theory(q: Tensor, y: Tensor, valid: Tensor, options: LossOptions) -> Tensor:
    """PQM Eq. 9: mean of the terms of `rank` and log(sum_{w' >= w} e^q_w') - q_w over all w in W except the last."""
    correct, wrong = _split(y, valid)
    # No step ranks below the last wrong one, so its term is softplus(ABSENT - q_w) = 0. It can stay in the sum, and
    # so there are as many terms as steps.
    later = F.pad(torch.where(wrong, q, ABSENT), (0, 1), value=ABSENT).flip(-1).logcumsumexp(-1).flip(-1)[..., 1:]
    total = _rank_terms(q, correct, wrong, options.zeta) + torch.where(wrong, -F.logsigmoid(q - later), 0.0).sum(-1)
    return total / valid.sum(-1).clamp(min=1)


@_computes("rank-first-error")
def rank_first_error(q: Tensor, y: Tensor, valid: Tensor, options: LossOptions) -> Tensor:
    """PQM Eq. 12: `rank` with N = e^q_w of the first wrong step alone."""
    correct, wrong = _split(y, valid)
    first = wrong & (wrong.cumsum(-1) == 1)
    return _rank_terms(q, correct, first, 0.0) / (correct.sum(-1) + wrong.any(-1)).clamp(min=1)


@_computes("pairwise")
def pairwise(q: Tensor, y: Tensor, valid: Tensor, options: LossOptions) -> Tensor:
    """Mean of softplus(lower + margin - higher) over every ordered pair that PQM's theorem implies.

    The theorem puts the scores in one chain: last correct > ... > first correct > Q_0 > first wrong > ... >
    last wrong. The margin zeta of a wrong step, below Q_0 or below a correct step, is a shift of all wrong scores.
    So the loss is the mean of softplus(x_j - x_i) over i < j in the chain x.
    """
    correct, wrong = _split(y, valid)
    step = torch.arange(1, q.shape[-1] + 1, device=q.device)
    position = torch.where(correct, -step, torch.where(wrong, step, len(step) + 1))
    scores = torch.where(correct, q, q + options.zeta)
    chain = F.pad(scores, (1, 0)).gather(-1, F.pad(position, (1, 0)).argsort(-1))
    steps = valid.sum(-1)

    def pairs_below(begin: int, end: int) -> Tensor:
        higher, lower = chain[..., begin:end, None], chain[..., None, begin + 1 :]
        i = torch.arange(begin, begin + higher.shape[-2], device=q.device)[:, None]
        j = torch.arange(begin + 1, chain.shape[-1], device=q.device)
        kept = (j > i) & (j <= steps[..., None, None])
        return torch.where(kept, -F.logsigmoid(higher - lower), 0.0).sum((-2, -1))

    block = max(1, PAIRS_AT_ONCE // max(chain.numel(), 1))
    if block >= len(step):
        total = pairs_below(0, len(step))
    else:  # each block is computed again in the backward, so that memory holds one block at a time
        total = torch.zeros_like(chain[..., 0])
        for begin in range(0, len(step), block):
            total = total + checkpoint(pairs_below, begin, begin + block, use_reentrant=False)
    return total / (steps * (steps + 1) // 2).clamp(min=1)


@_computes("crm")
def crm(q: Tensor, y: Tensor, valid: Tensor, options: LossOptions) -> Tensor:
    """CRM: with h = softplus(-q) = -log sigmoid(q) and H its sum over all steps, H if every step is correct;
    else, with z the first wrong step, -log(1 - e^-H) + softplus(q_z) + sum_{k<z} h_k."""
    _, wrong = _split(y, valid)
    errors = wrong.cumsum(-1)
    survived = torch.where(valid & (errors == 0), -F.logsigmoid(q), 0.0).sum(-1)
    erred = torch.where(wrong & (errors == 1), -F.logsigmoid(-q), 0.0).sum(-1)
    # If every score is large, H underflows but log H does not: then log h = -q - e^-q / 2 + ...
    large = -q - torch.exp(-q.clamp(min=16.0)) / 2
    log_h = torch.where(q > 16.0, large, torch.log(-F.logsigmoid(q.clamp(max=16.0))))
    failed = -_log1mexp(torch.where(valid, log_h, ABSENT).logsumexp(-1))
    return survived + erred + torch.where(wrong.any(-1), failed, 0.0)


@_computes("bce")
def bce(q: Tensor, y: Tensor, valid: Tensor, options: LossOptions, weights: Tensor | None = None) -> Tensor:
    """Sum over the steps of binary cross entropy with logits, hard or soft labels."""
    return _sum(_cross_entropy(q, y), valid, weights)


@_computes("mse")
def mse(q: Tensor, y: Tensor, valid: Tensor, options: LossOptions, weights: Tensor | None = None) -> Tensor:
    """Sum over the steps of (sigmoid(q) - y)^2, hard or soft labels."""
    # sigmoid(q) - y; autograd's derivative p (1 - p) of sigmoid would lose the digits of 1 - p
    error = (1 - y) * F.logsigmoid(q).exp() - y * F.logsigmoid(-q).exp()
    return _sum(error.square(), valid, weights)


@_computes("orm")
def orm(q: Tensor, y: Tensor, valid: Tensor, options: LossOptions) -> Tensor:
    """Binary cross entropy with logits of the last step against "no step is wrong"."""
    _, wrong = _split(y, valid)
    steps = valid.sum(-1, keepdim=True)
    last = q.gather(-1, (steps - 1).clamp(min=0))
    loss = -F.logsigmoid(torch.where(wrong.any(-1, keepdim=True), -last, last))
    return torch.where(steps > 0, loss, 0.0).squeeze(-1)


@_computes("first-error")
def first_error(q: Tensor, y: Tensor, valid: Tensor, options: LossOptions, weights: Tensor | None = None) -> Tensor:
    """Sum of binary cross entropy with logits over the steps up to and including the first wrong one."""
    _, wrong = _split(y, valid)
    return _sum(_cross_entropy(q, y), valid & (wrong.cumsum(-1) - wrong.long() == 0), weights)


@_computes("first-error-noisy")
def first_error_noisy(q: Tensor, y: Tensor, valid: Tensor, options: LossOptions) -> Tensor:
    """-log P(y), where the place z of the first error is not known and labels are wrong at known rates; ours.

    P(y) = sum_z P_q(z) prod_{t<z} right(y_t) prod_{t>=z} wrong(y_t), with P_q(z) = prod_{k<z} sigmoid(q_k)
    (1 - sigmoid(q_z)), or the product over all steps for no error. right(1) = 1 - noise_before and wrong(0) =
    1 - noise_after; a soft label mixes both. Without noise and with labels that never rise it is `first-error`, up to a
    loss of -log LEAST_PROBABILITY, 27.6, where it stops growing.
    """
    a, b = options.noise_before, options.noise_after
    log_right = torch.log((y * (1 - a) + (1 - y) * a).clamp(min=LEAST_PROBABILITY))
    log_wrong = torch.log((y * b + (1 - y) * (1 - b)).clamp(min=LEAST_PROBABILITY))
    right = torch.where(valid, log_right + F.logsigmoid(q), 0.0).cumsum(-1)  # all steps up to here, no error
    wrong = torch.where(valid, log_wrong, 0.0)
    wrong = wrong.flip(-1).cumsum(-1).flip(-1)  # all steps from here on, after the error
    error_here = F.pad(right, (1, 0))[..., :-1] + F.logsigmoid(-q) + wrong
    paths = torch.cat([torch.where(valid, error_here, ABSENT), right[..., -1:]], -1)
    return -paths.logsumexp(-1)


def trajectory_losses(
    q: Tensor,
    labels: Tensor,
    cu_steps: Tensor,
    loss: str = "rank",
    zeta: float = 4.0,
    *,
    noise: tuple[float, float] = (0.1, 0.1),
    step_weights: Tensor | None = None,
    trajectory_weights: Tensor | None = None,
) -> Tensor:
    """The loss of each trajectory: `FUNCTIONS[loss]` over the steps cu_steps[b]:cu_steps[b + 1].

    Args:
        q: [S] step scores, any float dtype. Arithmetic is float64 (float32 on "mps", which has no float64): in
            float32 a log-sum-exp near 1e4 is exact only to 1e-3.
        labels: [S] of any dtype: 1 correct, 0 wrong, or between them for a loss with `soft_labels`.
        cu_steps: [B + 1] int32 or int64, rising from 0 to S; a trajectory may have no steps.
        loss: a key of `LOSSES` whose unit is a trajectory.
        zeta: margin between correct and wrong steps, for the losses that have one.
        noise: `noise_before` and `noise_after` of `LossOptions`, for the losses that read them.
        step_weights: [S] of any float dtype, factors of the terms of a loss that `weighs_steps`.
        trajectory_weights: [B] of any float dtype, factors of the losses.

    Returns:
        [B] in the dtype of `q` (float32 for half precision). A trajectory without a term has loss 0 and no
        gradient; a score that is not finite makes the loss of its own trajectory NaN. For a loss normalised by steps a
        trajectory's loss is the sum over its steps: a batch divides by S.

    Raises:
        ValueError: an unknown loss; shapes that do not fit; on the CPU, values of labels or cu_steps that do
            not. On other devices and under torch.compile values are not checked, though lengths are read back.
    """
    if q.dim() != 1 or not q.is_floating_point():
        raise ValueError(f"q must be floating point [S], found {q.dtype} {list(q.shape)}")
    check_steps(len(q), labels, cu_steps, loss)
    if LOSSES[loss].unit != "trajectory":
        raise ValueError(f"{loss!r} is a loss of questions: call question_losses")
    check_weights(len(q), len(cu_steps) - 1, loss, step_weights, trajectory_weights)
    options = loss_options(zeta, 1.0, noise)
    out_dtype = torch.promote_types(q.dtype, torch.float32)
    q = q.to(torch.float32 if q.device.type == "mps" else torch.float64)
    lengths = cu_steps.diff()
    longest = int(lengths.max()) if len(lengths) else 0
    if len(lengths) * longest <= max(4 * len(q), SMALL_BATCH):
        losses = _padded_losses(q, labels, step_weights, lengths, longest, loss, options)
    else:
        # One long trajectory among many short ones: pad trajectories of 2^(n-1) < steps <= 2^n together.
        size = lengths.clamp(min=1).log2().ceil()
        size_of_step = size.repeat_interleave(lengths)
        losses = q.new_zeros(len(lengths))
        for n in size.unique():
            members, steps = size == n, size_of_step == n
            member_lengths = lengths[members]
            weights = None if step_weights is None else step_weights[steps]
            part = _padded_losses(
                q[steps], labels[steps], weights, member_lengths, int(member_lengths.max()), loss, options
            )
            losses = losses.masked_scatter(members, part)
    if trajectory_weights is not None:
        losses = losses * trajectory_weights.to(losses.dtype)
    return losses.to(out_dtype)


def _padded_losses(
    q: Tensor, labels: Tensor, weights: Tensor | None, lengths: Tensor, longest: int, loss: str, options: LossOptions
) -> Tensor:
    """The losses of consecutive trajectories, all padded to the longest, in the dtype of q."""
    valid = torch.arange(max(longest, 1), device=q.device) < lengths[:, None]

    def padded(values: Tensor) -> Tensor:
        return q.new_zeros(valid.shape).masked_scatter(valid, values.to(q.dtype))

    padded_q = padded(q)
    arguments = () if weights is None else (padded(weights),)
    # Some losses do not depend on an infinite score; adding 0 * inf makes them NaN.
    return FUNCTIONS[loss](padded_q, padded(labels), valid, options, *arguments) + (padded_q.detach() * 0.0).sum(-1)


def _split(y: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The masks of the correct and of the wrong steps."""
    return valid & (y > 0.5), valid & (y <= 0.5)


def _cross_entropy(q: Tensor, y: Tensor) -> Tensor:
    return -y * F.logsigmoid(q) - (1 - y) * F.logsigmoid(-q)


def _sum(terms: Tensor, mask: Tensor, weights: Tensor | None) -> Tensor:
    return torch.where(mask, terms if weights is None else terms * weights, 0.0).sum(-1)


def _rank_terms(q: Tensor, correct: Tensor, wrong: Tensor, zeta: float) -> Tensor:
    """Sum of the terms of `rank`: S_0 = log(1 + N), and the terms of the chain from there."""
    s_0 = -F.logsigmoid(-torch.where(wrong, q + zeta, ABSENT).logsumexp(-1))  # 0 if W is empty
    return s_0 + chain_terms(q, correct, s_0)


def chain_terms(q: Tensor, correct: Tensor, s_0: Tensor) -> Tensor:
    """Sum over the correct steps of S_i - q_ci, S_i = log(e^S_0 + sum_{k<=i} e^q_ck), for q [..., L] and S_0 [...].

    S_i - q_ci is small where q_ci is large, so it is not computed as a difference but as softplus(S_{i-1} - q_ci).
    """
    s_before = torch.cat([s_0[..., None], torch.where(correct, q, ABSENT)[..., :-1]], -1).logcumsumexp(-1)
    return torch.where(correct, -F.logsigmoid(q - s_before), 0.0).sum(-1)


def _log1mexp(log_x: Tensor) -> Tensor:
    """log(1 - exp(-x)) for x > 0 of any size, from log(x): where x is small, log(x) - x/2 + x^2/24 - ..."""
    x = log_x.exp()
    rest = x.clamp(min=1e-3)
    # below log 2 the difference 1 - e^-x is small, above it e^-x is
    usual = torch.where(rest < 0.6931, torch.log(-torch.expm1(-rest)), torch.log1p(-torch.exp(-rest)))
    return torch.where(x < 1e-3, log_x - x / 2 + x.square() / 24, usual)
