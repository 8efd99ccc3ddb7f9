"""BEiT-3, the network: one Transformer over patches and sub-words (Wang et al., CVPR 2023, arXiv:2208.10442).

x = [image ; text];  x <- x + Wo LN(attention(Wq y, Wk y, Wv y)),  x <- x + W2 LN(GELU(W1 y)),  y = LN(x) in each

Multiway: every projection, norm and feed-forward network exists twice, A for the image's positions and B for the
text's; only attention is over both. An image alone uses A, a text alone B; together, they are fused in all layers.
Names of parameters are those of the published checkpoints.
Fidelity: the sub-LN architecture as released. Padded positions are zeroed once, before the first layer, and never
attended to. GELU in half precision is exact enough: torch computes it in float32 and rounds the result.
Shapes: B batch, P patches and the CLS before them, T tokens, L = P + T positions, D width, H heads, S side in pixels.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from mmrec_lmm.losses import FIRST_LOG_SCALE

from .. import words
from . import PATCH

TEXT_POSITIONS = 1024
OFFSET = 2  # unused first rows of both tables of positions
PAD = 1  # token id


@dataclass(frozen=True)
class Size:
    """The sizes of a variant; feed-forward networks are four times as wide."""

    layers: int
    width: int
    heads: int
    vocabulary: int = 64_010  # 64,002 ids, rounded up


SIZES = {"base": Size(12, 768, 12), "large": Size(24, 1024, 16), "tiny": Size(3, 64, 4, vocabulary=words.SIZE)}


class Multiway(nn.Module):
    """Two modules of one kind: A for the image's positions, which come first, and B for the text's."""

    def __init__(self, make: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.A, self.B = make(), make()

    def forward(self, x: Tensor, split: int) -> Tensor:
        """A of the first `split` positions of x (B, L, D), B of the others; a module without positions isn't called."""
        if split == x.shape[1]:
            return self.A(x)
        if split == 0:
            return self.B(x)
        return torch.cat([self.A(x[:, :split]), self.B(x[:, split:])], dim=1)


class Attention(nn.Module):
    """Multi-head attention over all positions, with a norm before its output projection (sub-LN)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.heads = size.heads
        self.q_proj = Multiway(lambda: nn.Linear(size.width, size.width))
        self.k_proj = Multiway(lambda: nn.Linear(size.width, size.width))
        self.v_proj = Multiway(lambda: nn.Linear(size.width, size.width))
        self.inner_attn_ln = Multiway(lambda: nn.LayerNorm(size.width))
        self.out_proj = Multiway(lambda: nn.Linear(size.width, size.width))

    def forward(self, x: Tensor, split: int, mask: Tensor | None) -> Tensor:
        projections = (projection(x, split) for projection in (self.q_proj, self.k_proj, self.v_proj))  # (B, L, D)
        q, k, v = (rows.unflatten(-1, (self.heads, -1)).transpose(1, 2) for rows in projections)  # (B, H, L, D / H)
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out_proj(self.inner_attn_ln(mixed.transpose(1, 2).flatten(2), split), split)  # (B, L, D)


class FeedForward(nn.Module):
    """Two layers, four times as wide between them, with a norm before the second (sub-LN)."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.fc1 = nn.Linear(size.width, 4 * size.width)
        self.ffn_layernorm = nn.LayerNorm(4 * size.width)
        self.fc2 = nn.Linear(4 * size.width, size.width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.ffn_layernorm(F.gelu(self.fc1(x))))


class DropPath(nn.Module):
    """In training, a branch is left out of whole rows at random, and weighs more in the others (stochastic depth)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        kept = torch.rand(len(x), 1, 1, device=x.device) >= self.rate
        return x * kept / (1 - self.rate)


class Layer(nn.Module):
    """Attention and feed-forward network, each behind a norm and beside a residual connection."""

    def __init__(self, size: Size, drop_path: float) -> None:
        super().__init__()
        self.self_attn_layer_norm = Multiway(lambda: nn.LayerNorm(size.width))
        self.self_attn = Attention(size)
        self.final_layer_norm = Multiway(lambda: nn.LayerNorm(size.width))
        self.ffn = Multiway(lambda: FeedForward(size))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor, split: int, mask: Tensor | None) -> Tensor:
        x = x + self.drop_path(self.self_attn(self.self_attn_layer_norm(x, split), split, mask))
        return x + self.drop_path(self.ffn(self.final_layer_norm(x, split), split))


class VisionEmbedding(nn.Module):
    """The CLS and the patches of an image, without positions. Only pre-training uses `mask_token`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.empty(1, 1, width))
        self.mask_token = nn.Parameter(torch.empty(1, 1, width))
        self.proj = nn.Conv2d(3, width, PATCH, stride=PATCH)

    def forward(self, pixels: Tensor) -> Tensor:
        patches = self.proj(pixels).flatten(2).transpose(1, 2)  # (B, P - 1, D)
        return torch.cat([self.cls_token.expand(len(pixels), -1, -1).to(patches.dtype), patches], dim=1)  # (B, P, D)


class Positions(nn.Module):
    """Learned positions: A of an image's CLS and patches, B of a text's tokens; both count from OFFSET."""

    def __init__(self, width: int, patches: int) -> None:
        super().__init__()
        self.A = nn.Embedding(OFFSET + patches, width)
        self.B = nn.Embedding(TEXT_POSITIONS, width)


class Encoder(nn.Module):
    """The layers, and the norm after them. It holds the positions because the checkpoints' names do."""

    def __init__(self, size: Size, patches: int, drop_path: float) -> None:
        super().__init__()
        self.embed_positions = Positions(size.width, patches)
        rates = [drop_path * depth / (size.layers - 1) for depth in range(size.layers)]  # from 0, linearly
        self.layers = nn.ModuleList(Layer(size, rate) for rate in rates)
        self.layer_norm = Multiway(lambda: nn.LayerNorm(size.width))

    def forward(self, x: Tensor, split: int, mask: Tensor | None) -> Tensor:
        for layer in self.layers:
            x = layer(x, split, mask)
        return self.layer_norm(x, split)


class Beit3(nn.Module):
    """The backbone: images, texts, or both, to one vector for each patch and token."""

    def __init__(self, size: Size, side: int, drop_path: float) -> None:
        super().__init__()
        self.patches = (side // PATCH) ** 2 + 1  # P
        self.text_embed = nn.Embedding(size.vocabulary, size.width)
        self.vision_embed = VisionEmbedding(size.width)
        self.encoder = Encoder(size, self.patches, drop_path)

    def forward(self, pixels: Tensor | None, tokens: Tensor | None) -> Tensor:
        """The last layer's rows, normalized (B, L, D), of pixels (B, 3, S, S), of tokens (B, T), or of both.

        Row 0 is the image's CLS, row P (0 without an image) the text's.
        """
        rows, split, mask = [], 0, None
        positions = self.encoder.embed_positions
        if pixels is not None:
            split = self.patches
            rows.append(self.vision_embed(pixels) + positions.A.weight[OFFSET:])  # (B, P, D)
        if tokens is not None:
            real = tokens != PAD  # (B, T)
            words = self.text_embed(tokens) + positions.B.weight[OFFSET : OFFSET + tokens.shape[1]]
            rows.append(words * real.unsqueeze(-1))  # (B, T, D)
            mask = F.pad(real, (split, 0), value=True)[:, None, None]  # (B, 1, 1, L)
        return self.encoder(torch.cat(rows, dim=1), split, mask)


class Beit3ForRetrieval(nn.Module):
    """The backbone and its retrieval heads, which map images and texts into one space. Its parameters are uninitialized
    until `initialize` (a minute at full size) or a checkpoint sets them."""

    def __init__(self, size: Size, side: int, drop_path: float) -> None:
        super().__init__()
        self.beit3 = Beit3(size, side, drop_path)
        self.vision_head = nn.Linear(size.width, size.width, bias=False)
        self.language_head = nn.Linear(size.width, size.width, bias=False)
        self.logit_scale = nn.Parameter(torch.empty(()))

    def image_vectors(self, pixels: Tensor, *, head: bool = True) -> Tensor:
        """The CLS (B, D) of images, each by itself; with `head` projected to unit vectors."""
        cls = self.beit3(pixels, None)[:, 0]
        return F.normalize(self.vision_head(cls).float(), dim=-1) if head else cls

    def text_vectors(self, tokens: Tensor, *, head: bool = True) -> Tensor:
        """The CLS (B, D) of texts, each by itself; with `head` projected to unit vectors."""
        cls = self.beit3(None, tokens)[:, 0]
        return F.normalize(self.language_head(cls).float(), dim=-1) if head else cls

    @torch.no_grad()
    def initialize(self, names: Collection[str]) -> None:
        """Draw the values of these parameters as the authors do: normal with deviation 0.02, cut at one deviation;
        norms start as the identity, biases at 0, and the scale of similarities at 1 / 0.07."""
        for name, parameter in self.named_parameters():
            if name not in names:
                continue
            if name == "logit_scale":
                parameter.fill_(FIRST_LOG_SCALE)
            elif parameter.ndim > 1:
                nn.init.trunc_normal_(parameter, std=0.02, a=-0.02, b=0.02)
            else:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
