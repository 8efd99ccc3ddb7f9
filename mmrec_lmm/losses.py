"""Loss terms that several models share: pure functions of tensors. Each cites its equation.

Shapes: B rows of a batch, D embedding.
"""

import torch
from torch import Tensor


def bpr(positive: Tensor, negative: Tensor, *, gamma: float = 1e-10) -> Tensor:
    """-mean log(gamma + sigmoid(positive - negative)) over scores (B,).

    Rendle et al., UAI 2009; `gamma` keeps the logarithm finite where the sigmoid underflows, as MMRec has it.
    """
    return -(gamma + torch.sigmoid(positive - negative)).log().mean()


def batch_norms(*rows: Tensor) -> Tensor:
    """The sum of the Frobenius norms of the batch's matrices (B, D), divided by B.

    MMRec's regulariser of BPR and VBPR: the norms are *not* squared, so a larger batch is regularised less.
    """
    return sum((torch.linalg.vector_norm(matrix) for matrix in rows), start=rows[0].new_zeros(())) / len(rows[-1])
