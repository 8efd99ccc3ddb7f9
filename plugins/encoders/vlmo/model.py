"""VLMo's transformer (Bao et al., NeurIPS 2022, arXiv:2111.02358): attention is shared, feed-forward is by expert.

x += gamma_1 attention(norm1(x));  x += gamma_2 mlp_e(norm2_e(x)), e = the position's expert: text, imag or vl

image    patches behind a CLS, expert imag in all blocks             text    word-pieces, expert text in all blocks
joint    [text ; image]: below block `first_vl` each position has its modality's expert, from there on all have vl
vl       one modality alone through its own expert below `first_vl`, and through vl from there on

Fidelity: modules and parameters are named as in the official checkpoints; tests compare all passes and heads of
Base-Plus with the original's values to 1e-4. Attention is torch's fused one: in float32 equal to the original up to
rounding; under autocast the original computes logits in float32, while the fused kernels take half-precision operands
and accumulate in float32. Base and Large add relative position biases and LayerScale instead of absolute positions.
Their parameters' shapes follow the published table of 1126 rows, but which row belongs to which pair of positions
(`relative_index`) was built from the papers of BEiT and VLMo and is not tested against the original.
Shapes: B batch, T tokens or patches, S side in pixels, P patches per side, D width, H heads, L blocks, V vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, linear, normalize, pad, scaled_dot_product_attention

from mmrec_lmm.losses import FIRST_LOG_SCALE

PAD, CLS, SEP, MASK = 0, 101, 102, 103  # ids of BERT's uncased vocabulary
RELATIVE_TEXT = 196  # tokens for which the official tables of relative positions have rows

Experts = Sequence[tuple[str, int]]
"""Which expert serves how many positions, in order: [("text", 40), ("imag", 197)]."""


@dataclass(frozen=True)
class Size:
    """The sizes of a variant."""

    depth: int  # L
    width: int  # D
    heads: int
    first_vl: int  # the block from which on vl experts exist
    side: int = 224  # pixels; trained image size
    patch: int = 16  # pixels
    vocabulary: int = 30522  # V
    max_tokens: int = 40  # including [CLS] and [SEP]; in the joint pass the image starts at this position
    relative: bool = False  # relative position biases and LayerScale, instead of absolute positions
    dropout: float = 0.1  # of the text's embeddings
    drop_path: float = 0.1  # of the last block; linear from 0 in the first
    deviation: float = 0.02  # of new weights

    @property
    def patches(self) -> int:
        """P, per side."""
        return self.side // self.patch


SIZES = {
    "base_plus": Size(depth=24, width=544, heads=16, first_vl=21),
    "base": Size(depth=12, width=768, heads=12, first_vl=10, relative=True),
    "large": Size(depth=24, width=1024, heads=16, first_vl=21, relative=True),
    "tiny": Size(depth=3, width=64, heads=4, first_vl=2, side=64, vocabulary=4096, deviation=0.125),
}  # tiny's deviation is larger, as its random vectors would otherwise hardly differ between items


class VLMo(nn.Module):
    """All passes and heads; new weights are drawn as the authors draw them."""

    relative_position_index: Tensor  # (T, T) of a joint sequence

    def __init__(self, size: Size) -> None:
        super().__init__()
        width = size.width
        self.size = size
        self.transformer = Transformer(size)
        self.text_embeddings = TextEmbeddings(size)
        self.token_type_embeddings = nn.Embedding(2, width)  # text, image
        if size.relative:
            index = relative_index(size.patches, size.max_tokens)
            self.register_buffer("relative_position_index", index, persistent=False)
            table = torch.zeros(relative_rows(size.patches), size.depth * size.heads)
            self.relative_position_bias_table = nn.Parameter(table)
        self.pooler = Pooler(width)
        self.mlm_score = MLMHead(width, size.vocabulary)
        self.itm_score = Head(width, 2)
        self.itc_text_proj = Head(width, width, bias=False)
        self.itc_image_proj = Head(width, width, bias=False)
        self.itc_vl_text_proj = Head(width, width, bias=False)
        self.itc_vl_image_proj = Head(width, width, bias=False)
        self.logit_scale = nn.Parameter(torch.tensor(FIRST_LOG_SCALE))
        self.logit_vl_scale = nn.Parameter(torch.tensor(FIRST_LOG_SCALE))
        self.apply(partial(_initialize, deviation=size.deviation))

    def image(self, pixels: Tensor, *tops: str) -> list[Tensor]:
        """The image's CLS (B, D) for each expert of the last blocks that is named: "imag" or "vl"."""
        return self._alone(self._embed_image(pixels), "imag", tops)

    def text(self, ids: Tensor, *tops: str) -> list[Tensor]:
        """The text's CLS (B, D) for each expert of the last blocks that is named: "text" or "vl".

        `ids` (B, T) are padded with PAD to any length up to `max_tokens`.
        """
        return self._alone(self._embed_text(ids), "text", tops, known=ids != PAD)

    def joint(self, pixels: Tensor, ids: Tensor) -> Tensor:
        """The states (B, T, D) of text and image together, after the final norm.

        The text's CLS is the first, the image's the one at `max_tokens`.
        """
        length = self.size.max_tokens
        ids = pad(ids, (0, length - ids.shape[1]), value=PAD)  # (B, max_tokens): the split between experts is fixed
        image = self._embed_image(pixels)  # (B, 1 + P^2, D)
        x = torch.cat([self._embed_text(ids), image], dim=1)
        known = torch.cat([ids != PAD, ids.new_ones(image.shape[:2], dtype=torch.bool)], dim=1)
        biases = self._biases(slice(0, x.shape[1]), known)
        x = self._run(x, [("text", length), ("imag", image.shape[1])], biases, 0, self.size.first_vl)
        x = self._run(x, [("vl", x.shape[1])], biases, self.size.first_vl, self.size.depth)
        return self.transformer.norm(x)

    def project(self, cls: Tensor, head: str) -> Tensor:
        """The unit vector (B, D) of a CLS for contrast; `head` is "image", "text", "vl_image" or "vl_text"."""
        return normalize(getattr(self, f"itc_{head}_proj")(cls), dim=1)

    def _alone(self, x: Tensor, expert: str, tops: Sequence[str], known: Tensor | None = None) -> list[Tensor]:
        start = 0 if expert == "text" else self.size.max_tokens  # within the joint sequence
        biases, length = self._biases(slice(start, start + x.shape[1]), known), x.shape[1]
        x = self._run(x, [(expert, length)], biases, 0, self.size.first_vl)
        ends = [self._run(x, [(top, length)], biases, self.size.first_vl, self.size.depth) for top in tops]
        return [self.transformer.norm(end[:, 0]) for end in ends]

    def _run(self, x: Tensor, experts: Experts, biases: "Biases", start: int, stop: int) -> Tensor:
        for layer in range(start, stop):
            x = self.transformer.blocks[layer](x, experts, biases[layer])
        return x

    def _biases(self, part: slice, known: Tensor | None) -> "Biases":
        mask = None if known is None else known[:, None, None]  # (B, 1, 1, T): which keys may be seen
        if not self.size.relative:
            return Biases(mask)
        table = embedding(self.relative_position_index[part, part], self.relative_position_bias_table)  # (T, T, L H)
        return Biases(mask, table.permute(2, 0, 1).unflatten(0, (self.size.depth, self.size.heads)))

    def _embed_image(self, pixels: Tensor) -> Tensor:
        return self.transformer.embed(pixels) + self.token_type_embeddings.weight[1]

    def _embed_text(self, ids: Tensor) -> Tensor:
        return self.text_embeddings(ids) + self.token_type_embeddings.weight[0]


@dataclass(frozen=True)
class Biases:
    """Terms that layers add to attention logits: a mask of keys (B, 1, 1, T), relative biases (L, H, T, T), or both."""

    mask: Tensor | None
    relative: Tensor | None = None

    def __getitem__(self, layer: int) -> Tensor | None:
        if self.relative is None:
            return self.mask
        bias = self.relative[layer]  # (H, T, T)
        return bias[None] if self.mask is None else bias.masked_fill(~self.mask, -math.inf)


class Transformer(nn.Module):
    """The image's embedding, the blocks and the final norm."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, size.width, size.patch, stride=size.patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, size.width))
        positions = torch.zeros(1, 1 + size.patches**2, size.width)
        self.pos_embed = None if size.relative else nn.Parameter(positions)
        self.blocks = nn.ModuleList(Block(size, layer) for layer in range(size.depth))
        self.norm = nn.LayerNorm(size.width, eps=1e-6)
        for table in (self.cls_token, self.pos_embed):
            if table is not None:
                nn.init.normal_(table, std=0.02)

    def embed(self, pixels: Tensor) -> Tensor:
        """Pixels (B, 3, S, S) as a CLS and its patches, row by row: (B, 1 + P^2, D)."""
        patches = self.patch_embed["proj"](pixels).flatten(2).transpose(1, 2)  # (B, P^2, D)
        x = torch.cat([self.cls_token.expand(len(pixels), -1, -1), patches], dim=1)
        return x if self.pos_embed is None else x + self.pos_embed


class Block(nn.Module):
    """Attention over all positions, then a feed-forward expert for each; the last blocks have a third, vl."""

    def __init__(self, size: Size, layer: int) -> None:
        super().__init__()
        self.drop_path = size.drop_path * layer / (size.depth - 1)
        self.norm1 = nn.LayerNorm(size.width, eps=1e-6)
        self.attn = Attention(size.width, size.heads)
        for expert in ("text", "imag", "vl") if layer >= size.first_vl else ("text", "imag"):
            self.add_module(f"norm2_{expert}", nn.LayerNorm(size.width, eps=1e-6))
            self.add_module(f"mlp_{expert}", FeedForward(size.width))
        self.gamma_1 = nn.Parameter(torch.full((size.width,), 0.1)) if size.relative else None
        self.gamma_2 = nn.Parameter(torch.full((size.width,), 0.1)) if size.relative else None

    def forward(self, x: Tensor, experts: Experts, bias: Tensor | None) -> Tensor:
        x = x + self._branch(self.attn(self.norm1(x), bias), self.gamma_1)
        parts = x.split([length for _, length in experts], dim=1)
        return torch.cat([self._expert(name, part) for (name, _), part in zip(experts, parts, strict=True)], dim=1)

    def _expert(self, name: str, x: Tensor) -> Tensor:
        norm, mlp = getattr(self, f"norm2_{name}"), getattr(self, f"mlp_{name}")
        return x + self._branch(mlp(norm(x)), self.gamma_2)

    def _branch(self, x: Tensor, gamma: Tensor | None) -> Tensor:
        """LayerScale, and in training stochastic depth: some rows of the batch skip the branch."""
        x = x if gamma is None else gamma * x
        if not self.training or not self.drop_path:
            return x
        kept = x.new_empty(len(x), 1, 1).bernoulli_(1 - self.drop_path)
        return x * kept / (1 - self.drop_path)


class Attention(nn.Module):
    """Multi-head self-attention; queries and values have a bias, keys have none."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_bias = nn.Parameter(torch.zeros(width))
        self.v_bias = nn.Parameter(torch.zeros(width))
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor, bias: Tensor | None) -> Tensor:
        biases = torch.cat([self.q_bias, torch.zeros_like(self.q_bias), self.v_bias])
        qkv = linear(x, self.qkv.weight, biases).unflatten(2, (3, self.heads, -1))  # (B, T, 3, H, D / H)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        mixed = scaled_dot_product_attention(q, k, v, attn_mask=bias)  # (B, H, T, D / H)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class FeedForward(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, 4 * width)
        self.fc2 = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(nn.functional.gelu(self.fc1(x)))


class TextEmbeddings(nn.Module):
    """BERT's: a word, its absolute position and a type that is always 0, normalized."""

    def __init__(self, size: Size) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(size.vocabulary, size.width)
        self.position_embeddings = None if size.relative else nn.Embedding(size.max_tokens, size.width)
        self.token_type_embeddings = nn.Embedding(2, size.width)
        self.LayerNorm = nn.LayerNorm(size.width, eps=1e-12)
        self.dropout = nn.Dropout(size.dropout)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.word_embeddings(ids) + self.token_type_embeddings.weight[0]  # (B, T, D)
        if self.position_embeddings is not None:
            x = x + self.position_embeddings.weight[: ids.shape[1]]
        return self.dropout(self.LayerNorm(x))


class Pooler(nn.Module):
    """tanh(W x + b) of the joint pass' first state (B, D)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, width)

    def forward(self, cls: Tensor) -> Tensor:
        return torch.tanh(self.dense(cls))


class Head(nn.Module):
    """A linear layer, called fc in the checkpoints."""

    def __init__(self, width: int, out: int, *, bias: bool = True) -> None:
        super().__init__()
        self.fc = nn.Linear(width, out, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


class MLMHead(nn.Module):
    """Logits (..., V) of the word-piece at a position; its decoder isn't tied to the word embeddings."""

    def __init__(self, width: int, vocabulary: int) -> None:
        super().__init__()
        norm = nn.LayerNorm(width, eps=1e-12)
        self.transform = nn.ModuleDict({"dense": nn.Linear(width, width), "LayerNorm": norm})
        self.decoder = nn.Linear(width, vocabulary, bias=False)
        self.bias = nn.Parameter(torch.zeros(vocabulary))

    def forward(self, states: Tensor) -> Tensor:
        x = nn.functional.gelu(self.transform["dense"](states))
        return self.decoder(self.transform["LayerNorm"](x)) + self.bias


def relative_rows(patches: int) -> int:
    """The length of the table of relative position biases, for P patches per side."""
    return (2 * patches - 1) ** 2 + 5 + 2 * RELATIVE_TEXT


def relative_index(patches: int, tokens: int) -> Tensor:
    """For each pair (i, j) of the joint sequence [text ; CLS, patches] (T, T), the row of its bias in the table.

    The rows, in order: (2 P - 1)^2 offsets between two patches (row offset first); image CLS to patch, patch to it, and
    it to itself; text to image; image to text; then 2 RELATIVE_TEXT for text, as many as the official tables have:
    offsets between two tokens from -(RELATIVE_TEXT - 2) on, and its CLS to token, token to it, and it to itself at the
    end. 14 patches a side make 1126.
    """
    span = 2 * patches - 1
    offsets, end = span**2, relative_rows(patches)
    row, column = torch.arange(patches**2).div(patches, rounding_mode="floor"), torch.arange(patches**2) % patches
    down, right = row[:, None] - row, column[:, None] - column  # (P^2, P^2) each, from -(P - 1)
    image = _with_cls((down + patches - 1) * span + right + patches - 1, offsets)
    token = torch.arange(tokens - 1)
    text = _with_cls(token - token[:, None] + RELATIVE_TEXT - 2 + offsets + 5, end - 3)
    across, back = torch.full((tokens, len(image)), offsets + 3), torch.full((len(image), tokens), offsets + 4)
    return torch.cat([torch.cat([text, across], dim=1), torch.cat([back, image], dim=1)])


def _with_cls(index: Tensor, first: int) -> Tensor:
    """The rows of n positions (n, n) behind a CLS, whose three rows start at `first`: (n + 1, n + 1)."""
    whole = pad(index, (1, 0, 1, 0), value=first)
    whole[1:, 0] = first + 1
    whole[0, 0] = first + 2
    return whole


def _initialize(module: nn.Module, *, deviation: float) -> None:
    """Normal matrices, zeros for their biases. The authors cut at 100 deviations, so not at all."""
    if isinstance(module, nn.Linear | nn.Conv2d | nn.Embedding):
        nn.init.normal_(module.weight, std=deviation)
        bias = getattr(module, "bias", None)
        if bias is not None:
            nn.init.zeros_(bias)
