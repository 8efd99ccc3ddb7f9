"""Small models of transformers with random weights, saved as the hub has them; tokenizers are built here."""

import json
from pathlib import Path
from typing import Any

WIDTH = 32
TOWER = {"hidden_size": WIDTH, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxyz.,", "red", "box", "blue", "##s"]
WORDS += [f"##{letter}" for letter in "abcdefghijklmnopqrstuvwxyz"]
SIDE = 32


def save(family: str, folder: Path) -> Any:
    """Write a model of a family with all of its files; returns it, in eval mode."""
    import torch
    import transformers as tf

    torch.manual_seed(0)
    model, processor = _FAMILIES[family](tf)
    for parameter in model.parameters():  # biases and scales that begin alike would hide a mistake
        parameter.data += 0.02 * torch.randn_like(parameter)
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)
    return model


def bert_tokenizer(tf: Any) -> Any:
    return tf.BertTokenizer(vocab={word: number for number, word in enumerate(WORDS)}, model_max_length=48)


def letters(tf: Any, *, kind: str = "fast", names: tuple[str, ...] = ("input_ids",)) -> Any:
    """A tokenizer of letters that ends a text with </s>, and gives no mask, as SigLIP's."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    tokens = ["<pad>", "</s>", "<unk>", *"abcdefghijklmnopqrstuvwxyz ,."]
    made = Tokenizer(models.WordLevel({token: number for number, token in enumerate(tokens)}, unk_token="<unk>"))
    made.normalizer = normalizers.Lowercase()
    made.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    made.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=made, **special, model_max_length=16, model_input_names=[*names])


def _clip(tf: Any) -> tuple[Any, Any]:
    from tokenizers.pre_tokenizers import ByteLevel

    signs = sorted(ByteLevel.alphabet())
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    ids = {"bos_token_id": len(tokens) - 2, "eos_token_id": len(tokens) - 1, "pad_token_id": len(tokens) - 1}
    text = {**TOWER, **ids, "vocab_size": len(tokens), "max_position_embeddings": 20}
    config = tf.CLIPConfig(
        text_config=text, vision_config={**TOWER, "image_size": SIDE, "patch_size": 16}, projection_dim=24
    )
    tokenizer = tf.CLIPTokenizer(vocab={token: number for number, token in enumerate(tokens)}, merges=[])
    images = tf.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})
    return tf.CLIPModel(config), tf.CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def _siglip(tf: Any) -> tuple[Any, Any]:
    text = {**TOWER, "vocab_size": 40, "max_position_embeddings": 16, "projection_size": WIDTH}
    config = tf.SiglipConfig(text_config=text, vision_config={**TOWER, "image_size": SIDE, "patch_size": 16})
    images = tf.SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    return tf.SiglipModel(config), tf.SiglipProcessor(image_processor=images, tokenizer=letters(tf))


def _siglip2(tf: Any) -> tuple[Any, Any]:
    text = {**TOWER, "vocab_size": 40, "max_position_embeddings": 64, "projection_size": WIDTH}
    config = tf.Siglip2Config(text_config=text, vision_config={**TOWER, "num_patches": 16, "patch_size": 16})
    images = tf.Siglip2ImageProcessor(patch_size=16, max_num_patches=16)
    tokenizer = letters(tf, names=("input_ids", "attention_mask"))
    return tf.Siglip2Model(config), tf.Siglip2Processor(image_processor=images, tokenizer=tokenizer)


def _align(tf: Any) -> tuple[Any, Any]:
    text = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 64}
    vision = {
        "image_size": SIDE, "width_coefficient": 1.0, "depth_coefficient": 1.0, "hidden_dim": 24,
        "kernel_sizes": [3, 3], "in_channels": [32, 16], "out_channels": [16, 24], "depthwise_padding": [],
        "strides": [1, 2], "num_block_repeats": [1, 1], "expand_ratios": [1, 6],
    }  # fmt: skip
    config = tf.AlignConfig(text_config=text, vision_config=vision, projection_dim=24)
    size = {"height": SIDE, "width": SIDE}
    images = tf.EfficientNetImageProcessor(size=size, crop_size=size, do_center_crop=False)
    return tf.AlignModel(config), tf.AlignProcessor(image_processor=images, tokenizer=bert_tokenizer(tf))


def _chinese_clip(tf: Any) -> tuple[Any, Any]:
    text = {**TOWER, "vocab_size": len(WORDS), "max_position_embeddings": 48}
    config = tf.ChineseCLIPConfig(
        text_config=text, vision_config={**TOWER, "image_size": SIDE, "patch_size": 16}, projection_dim=24
    )
    size = {"height": SIDE, "width": SIDE}
    images = tf.ChineseCLIPImageProcessor(size=size, crop_size=size)
    processor = tf.ChineseCLIPProcessor(image_processor=images, tokenizer=bert_tokenizer(tf))
    return tf.ChineseCLIPModel(config), processor


def _clip_text(tf: Any) -> tuple[Any, Any]:
    model, processor = _clip(tf)
    text = model.config.text_config
    text.projection_dim = 24
    return tf.CLIPTextModelWithProjection(text), processor.tokenizer


def _dinov2(tf: Any) -> tuple[Any, Any]:
    config = tf.Dinov2Config(**TOWER, mlp_ratio=2, image_size=SIDE, patch_size=16)
    size = {"height": SIDE, "width": SIDE}
    return tf.Dinov2Model(config), tf.BitImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)


def _bert(tf: Any) -> tuple[Any, Any]:
    config = tf.BertConfig(**TOWER, vocab_size=len(WORDS), max_position_embeddings=48)
    return tf.BertModel(config), bert_tokenizer(tf)


_FAMILIES = {
    "clip": _clip, "siglip": _siglip, "siglip2": _siglip2, "align": _align, "chinese_clip": _chinese_clip,
    "clip_text": _clip_text, "dinov2": _dinov2, "bert": _bert,
}  # fmt: skip


def edit(file: Path, **changes: Any) -> None:
    """Change the keys of a JSON object in a file."""
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
