"""A small CLIP of transformers with random weights: the tiny variant of the encoders that take any model."""

from pathlib import Path

from .hub import library, quiet_transformers

SIDE = 64  # of an image, in pixels
WIDTH = 32  # of both towers and of the features


def save_tiny_clip(folder: Path) -> None:
    """Write the model into a folder: towers of two layers, and a tokenizer whose tokens are the bytes of a text.

    Its weights are drawn from torch's default generator.
    """
    transformers = library("transformers", encoder="hf", extra="hf")
    from tokenizers.pre_tokenizers import ByteLevel

    quiet_transformers()
    signs = sorted(ByteLevel.alphabet())
    tokens = [*signs, *(f"{sign}</w>" for sign in signs), "<|startoftext|>", "<|endoftext|>"]
    start, end = len(tokens) - 2, len(tokens) - 1
    tower = {"hidden_size": WIDTH, "intermediate_size": 2 * WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2}
    special = {"bos_token_id": start, "eos_token_id": end, "pad_token_id": end}
    config = transformers.CLIPConfig(
        text_config={**tower, **special, "vocab_size": len(tokens)},
        vision_config={**tower, "image_size": SIDE, "patch_size": 16},
        projection_dim=WIDTH,
    )
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = transformers.CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=77)
    size = {"height": SIDE, "width": SIDE}
    images = transformers.CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=size)
    transformers.CLIPModel(config).save_pretrained(folder)
    transformers.CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)
