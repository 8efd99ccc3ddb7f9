"""The losses that VLMo is trained with (Bao et al., NeurIPS 2022, arXiv:2111.02358, section 3.2).

itc = [InfoNCE(image, text; s) + InfoNCE(vl_image, vl_text; s_vl)] / 2, both ways each, from passes of one modality
itm = cross-entropy of "do they belong together" over n pairs, n with another image and n with another text
mlm = cross-entropy of the masked word-pieces, seen with the image

Fidelity: a negative of itm is drawn from the softmax over the scaled itc logits of the same batch. The original
excludes only the row's own pair; here all pairs of the batch are excluded (catalogs hold equal images and texts under
several items), and rows without a negative are left out. The scales stay within [1, 100], a bound that the
original has commented out. Words are drawn in random order until 15 % of a text's pieces are reached, at least one.
Where processes share a batch, each computes its share of each mean, and all draw the same words and negatives; the
original draws negatives, and takes means, within a process.
Shapes: B batch, b rows of it that this process has (all, if it is alone), n rows that have negatives, T tokens, S side
in pixels, M masked pieces, D width, V vocabulary.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mmrec_lmm.api import all_gather, common_generator, local_slice
from mmrec_lmm.losses import contrastive_scale, symmetric_info_nce

from .model import CLS, MASK, PAD, SEP, VLMo

MLM_WEIGHT = 0.25  # of mlm in the sum that is minimized
MLM_RATE = 0.15  # of a text's word-pieces


def tuning_losses(model: VLMo, pixels: Tensor, ids: Tensor, continues: Tensor) -> dict[str, Tensor]:
    """The three terms, already weighted, for images (b, 3, S, S) and their texts (b, T); their sum is the objective."""
    generator = common_generator(ids.device)
    itc, similarities = itc_loss(model, pixels, ids)
    masked, chosen = mask_words(all_gather(ids), continues, generator=generator)
    return {
        "itc": itc,
        "itm": itm_loss(model, pixels, ids, similarities, generator=generator),
        "mlm": MLM_WEIGHT * mlm_loss(model, pixels, ids, masked=masked, chosen=chosen),
    }


def itc_loss(model: VLMo, pixels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """The contrastive loss, and the scaled similarities of all images with all texts (B, B), detached."""
    image_cls, vl_image_cls = model.image(pixels, "imag", "vl")
    text_cls, vl_text_cls = model.text(ids, "text", "vl")
    image, text = model.project(image_cls, "image"), model.project(text_cls, "text")  # (b, D)
    vl_image, vl_text = model.project(vl_image_cls, "vl_image"), model.project(vl_text_cls, "vl_text")
    scale, vl_scale = (contrastive_scale(each, least=0) for each in (model.logit_scale, model.logit_vl_scale))
    loss = symmetric_info_nce(image, text, scale=scale) + symmetric_info_nce(vl_image, vl_text, scale=vl_scale)
    return loss / 2, (scale * all_gather(image) @ all_gather(text).T).detach()


def itm_loss(
    model: VLMo, pixels: Tensor, ids: Tensor, similarities: Tensor, *, generator: torch.Generator | None = None
) -> Tensor:
    """The matching loss, its negatives drawn by the scaled similarities of images with texts (B, B); 0 without any."""
    pixels, ids = all_gather(pixels), all_gather(ids)  # (B, 3, S, S), (B, T): a negative may be of any process
    paired = _alike(pixels) @ _alike(ids) > 0  # (B, B): which images belong to which texts
    rows = (~paired.all(dim=0) & ~paired.all(dim=1)).nonzero()[:, 0]  # (n,)
    if not len(rows):
        return similarities.new_zeros(())
    images = _draw(similarities.T[rows], excluded=paired.T[rows], generator=generator)
    texts = _draw(similarities[rows], excluded=paired[rows], generator=generator)
    count, own = len(rows), torch.isin(rows, torch.arange(len(ids), device=rows.device)[local_slice(len(ids))])
    rows, images, texts = rows[own], images[own], texts[own]
    if not len(rows):
        return similarities.new_zeros(())
    states = model.joint(pixels[torch.cat([rows, images, rows])], ids[torch.cat([rows, rows, texts])])  # (3b, T, D)
    labels = torch.arange(3, device=rows.device).eq(0).long().repeat_interleave(len(rows))  # 1 for the true pairs
    return cross_entropy(model.itm_score(model.pooler(states[:, 0])), labels, reduction="sum") / (3 * count)


def _alike(rows: Tensor) -> Tensor:
    """1 where two rows of (B, ...) are equal, 0 elsewhere: (B, B) float32."""
    groups = rows.flatten(1).unique(dim=0, return_inverse=True)[1]  # (B,)
    return (groups[:, None] == groups).float()


def _draw(logits: Tensor, *, excluded: Tensor, generator: torch.Generator | None) -> Tensor:
    """A column for each row, by the softmax over those of its logits that aren't excluded.

    Where tuning has diverged and a logit is NaN, the draw is anyone's: the loss is NaN too, and says so.
    """
    odds = logits.float().masked_fill(excluded, -math.inf).softmax(dim=1)
    return odds.nan_to_num(nan=1.0).multinomial(1, generator=generator)[:, 0]


def mlm_loss(model: VLMo, pixels: Tensor, ids: Tensor, *, masked: Tensor, chosen: Tensor) -> Tensor:
    """The loss of predicting the pieces of `ids` (b, T) that are `chosen` (B, T), from the `masked` text (B, T) and the
    image; 0 if none is chosen."""
    own = local_slice(len(chosen))
    states = model.joint(pixels, masked[own])[:, : ids.shape[1]][chosen[own]]  # (M, D)
    return cross_entropy(model.mlm_score(states), ids[chosen[own]], reduction="sum") / chosen.sum().clamp(min=1)


def mask_words(ids: Tensor, continues: Tensor, *, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
    """Texts (B, T) of which some whole words are hidden, and which pieces those are (B, T).

    Of the chosen pieces 80 % become [MASK], 10 % a random piece, and 10 % stay. `continues` (V,) says which pieces
    continue a word.
    """
    pieces = ~torch.isin(ids, ids.new_tensor([PAD, CLS, SEP]))
    words = (~continues[ids]).cumsum(dim=1) - 1  # (B, T): each piece's word, counted from [CLS]
    places, fate = torch.rand(2, *ids.shape, generator=generator, device=ids.device)  # (B, T) each
    order = places.gather(1, words)  # (B, T): of words; equal within one
    earlier = ((order[:, None] < order[:, :, None]) & pieces[:, None]).sum(dim=2)  # (B, T): pieces of words before it
    wanted = (MLM_RATE * pieces.sum(dim=1, keepdim=True)).round().clamp(min=1)  # (B, 1)
    chosen = pieces & (earlier < wanted)
    random = torch.randint(MASK + 1, len(continues), ids.shape, generator=generator, device=ids.device)
    masked = ids.masked_fill(chosen & (fate < 0.8), MASK)
    return torch.where(chosen & (fate >= 0.9), random, masked), chosen
