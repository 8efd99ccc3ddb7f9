"""Loss terms that several models share: pure functions of tensors. Each cites its equation.

Shapes: B rows of a batch, C candidates, D embedding.
"""

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from .distributed import all_gather, local_slice

MAX_LOG_SCALE = math.log(100)  # CLIP's bound on the learned scale of contrastive logits, as its logarithm
FIRST_LOG_SCALE = math.log(1 / 0.07)  # CLIP's initial value of it
_BLOCK_ROWS = 256  # of similarities at once: they stay in a processor's cache between product and exponential
_BLOCK_BYTES = 2**28  # of similarities at once elsewhere: a GPU starts fewer operations on larger blocks
_LEAST_LOGIT = -60.0  # below the row's largest: e^-60 doesn't change a float32 sum, and far smaller terms are denormal


def bpr(positive: Tensor, negative: Tensor, *, gamma: float = 1e-10) -> Tensor:
    """-mean log(gamma + sigmoid(positive - negative)) over scores (B,).

    Rendle et al., UAI 2009; `gamma` keeps the logarithm finite where the sigmoid underflows, as MMRec has it. Without
    it (0) the logarithm of the sigmoid is computed as one function, which doesn't underflow.
    """
    if gamma == 0:
        return -torch.nn.functional.logsigmoid(positive - negative).mean()
    return -(gamma + torch.sigmoid(positive - negative)).log().mean()


def batch_norms(*rows: Tensor) -> Tensor:
    """The sum of the Frobenius norms of the batch's matrices (B, D), divided by B.

    MMRec's regularizer of BPR and VBPR: the norms are *not* squared, so a larger batch is regularized less.
    """
    return sum((torch.linalg.vector_norm(matrix) for matrix in rows), start=rows[0].new_zeros(())) / len(rows[-1])


def contrastive_scale(log_scale: Tensor, *, least: float | None = None) -> Tensor:
    """exp(log_scale), for a learned `log_scale` (), which is first clamped in place to [least, MAX_LOG_SCALE].

    If autograd recorded the clamp, a value beyond a bound would have no gradient, and stay there.
    """
    with torch.no_grad():
        log_scale.clamp_(least, MAX_LOG_SCALE)
    return log_scale.exp()


def info_nce(
    anchors: Tensor,
    candidates: Tensor,
    *,
    temperature: float,
    positives: Tensor | None = None,
    repeats: Tensor | None = None,
    counts: Tensor | None = None,
) -> Tensor:
    """-mean_i log( exp(a_i.c_i / t) / sum_j exp(a_i.c_j / t) ) for anchors (B, D) and candidates (C, D), C >= B.

    van den Oord et al., 2018, arXiv:1807.03748: candidate i is anchor i's positive, every other one a negative.
    Rows aren't normalized here; for cosine similarity, normalize them first. The B x C similarities are never kept:
    loss and gradient are computed together, block by block.

    Rows that occur several times can be given once: `repeats` (B,) is how many times each anchor occurs, `counts` (C,)
    how many times each candidate. `positives` (B,) has the place of each anchor's positive, where that isn't its own.
    """
    return _InfoNCE.apply(anchors, candidates, temperature, positives, repeats, counts)


def symmetric_info_nce(first: Tensor, second: Tensor, *, scale: Tensor) -> Tensor:
    """The mean of InfoNCE from `first` to `second` and back, for unit rows (B, D) and a learned `scale` = 1 / t ().

    Radford et al., ICML 2021, arXiv:2103.00020: row i of `first` matches row i of `second` (ITC). It is computed in
    float32 even under autocast: bfloat16 would round similarities times 100 to halves. Where processes share a batch,
    it is this process's share: its own rows against all rows.
    """
    with torch.autocast(first.device.type, enabled=False):
        first, second = (rows.to(torch.promote_types(rows.dtype, torch.float32)) for rows in (first, second))
        all_first, all_second = all_gather(first), all_gather(second)  # (B, D)
        count = len(all_first)
        own = torch.arange(count, device=first.device)[local_slice(count)]  # (b,)
        ways = scale * first @ all_second.T, scale * second @ all_first.T  # (b, B)
        total = torch.stack([torch.nn.functional.cross_entropy(way, own, reduction="sum") for way in ways]).sum()
    return total / (2 * count)


def sigmoid_loss(images: Tensor, texts: Tensor, *, scale: Tensor, bias: Tensor) -> Tensor:
    """-(1/B) sum_ij log sigmoid(z_ij (scale a_i.b_j + bias)) for unit rows (B, D); z is 1 for i = j, else -1.

    Zhai et al., ICCV 2023, arXiv:2303.15343 (SigLIP), which doesn't bound the scale. Where processes share a batch, it
    is this process's part of the sum: its own images against all texts.
    """
    texts = all_gather(texts)  # (B, D)
    logits = scale * images @ texts.T + bias  # (b, B)
    signs = 2 * torch.eye(len(texts), device=logits.device)[local_slice(len(texts))] - 1
    return -torch.nn.functional.logsigmoid(signs * logits).sum() / len(texts)


class _InfoNCE(torch.autograd.Function):
    """With P = softmax(A C' / t + log counts), the positives' rows C_+ and n anchors, each as often as it occurs:
    dA = repeats (P C - C_+) / (n t), dC = (P' (repeats A) - sums of repeats A by positive) / (n t)."""

    @staticmethod
    def forward(
        ctx: Any,
        anchors: Tensor,
        candidates: Tensor,
        temperature: float,
        positives: Tensor | None,
        repeats: Tensor | None,
        counts: Tensor | None,
    ) -> Tensor:
        scaled = anchors / temperature
        own = candidates[: len(anchors)] if positives is None else candidates.index_select(0, positives)  # C_+ (B, D)
        repeated = scaled if repeats is None else scaled * repeats.unsqueeze(1)
        shift = anchors.new_zeros(()) if counts is None else counts.to(anchors.dtype).log()  # () or (C,)
        of_anchors, of_candidates = torch.empty_like(anchors), torch.zeros_like(candidates)
        size = _block_rows(candidates)
        similarities = anchors.new_empty(min(len(anchors), size), len(candidates))
        logs = anchors.new_empty(len(anchors), 1)  # of the sums over candidates
        blocks = zip(*(rows.split(size) for rows in (scaled, repeated, of_anchors, logs)), strict=True)
        for rows, weighted, gradient, log in blocks:
            out = similarities[: len(rows)]
            block = torch.addmm(shift, rows, candidates.T, beta=0 if counts is None else 1, out=out)  # (block, C)
            largest = block.amax(dim=1, keepdim=True)
            sums = block.sub_(largest).clamp_(min=_LEAST_LOGIT).exp_().sum(dim=1, keepdim=True)
            torch.add(sums.log(), largest, out=log)
            torch.mm(block, candidates, out=gradient).div_(sums)
            of_candidates.addmm_(block.T, weighted / sums)
        of_anchors.sub_(own)
        total = -(repeated * own).sum()
        n: Tensor | int = len(anchors)
        if repeats is not None:
            of_anchors.mul_(repeats.unsqueeze(1))
            logs, n = logs * repeats.unsqueeze(1), repeats.sum()
        of_anchors.div_(n * temperature)
        if positives is None:
            of_candidates[: len(anchors)] -= repeated
        else:
            of_candidates.index_add_(0, positives, repeated, alpha=-1)
        ctx.save_for_backward(of_anchors, of_candidates.div_(n))
        return (total + logs.sum()) / n

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_anchors, of_candidates = ctx.saved_tensors
        return gradient * of_anchors, gradient * of_candidates, None, None, None, None


def _block_rows(candidates: Tensor) -> int:
    """How many anchors are compared with all `candidates` (C, D) at once."""
    if candidates.device.type == "cpu":
        return _BLOCK_ROWS
    return max(1, _BLOCK_BYTES // (len(candidates) * candidates.element_size()))
