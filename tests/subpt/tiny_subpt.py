# SPDX-FileCopyrightText: 2026 The hf_methods authors
# SPDX-License-Identifier: Apache-2.0

"""Tiny random CLIP, SigLIP and open_clip models and a small CLIP tokenizer, all made in code."""

import copy
import functools

import torch
from peft import get_peft_model
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPTokenizer,
    MetaClip2Config,
    MetaClip2Model,
    Owlv2Config,
    Owlv2ForObjectDetection,
    OwlViTConfig,
    OwlViTForObjectDetection,
    Siglip2Config,
    Siglip2Model,
    SiglipConfig,
    SiglipModel,
)

from hf_methods.subpt import (
    SubPTConfig,
)


NAMES = ["cat", "dog", "blue jay", "sea_lion", "ox"]
OTHERS = ["bee", "yak", "pine tree"]
WIDTH, DIM, LENGTH = 32, 24, 40


def bytes_to_unicode():
    """The byte symbols of GPT-2's and CLIP's BPE, in the order of CLIP's vocabulary."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(byte) for byte in printable] + [chr(256 + number) for number in range(len(others))]


@functools.cache
def make_tokenizer():
    """A `CLIPTokenizer` with CLIP's 512 byte symbols, a few merges, and the two special tokens at its end."""
    symbols = bytes_to_unicode()
    merges = [("p", "h"), ("o", "t"), ("ot", "o</w>"), ("ph", "oto</w>"), ("o", "f</w>"), ("c", "a"), ("ca", "t</w>")]
    tokens = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    return CLIPTokenizer(vocab={token: index for index, token in enumerate(tokens)}, merges=merges)


def image_processor():
    """Images of 16 pixels, as the tiny towers take them."""
    return CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})


TEXT = dict(hidden_size=WIDTH, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4)
VISION = dict(hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16)


def spread(model, std=0.3):
    """Larger weights than a fresh model's, so that features differ between texts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, param in model.named_parameters():
            if param.ndim > 1:
                param.copy_(std * torch.randn(param.shape, generator=generator))
            elif name.endswith("bias") and "logit" not in name:
                param.zero_()
            elif "class_embedding" in name or "logit_bias" in name:
                param.fill_(0.1)
    return model.eval()


@functools.cache
def _clip(eos_token_id):
    size = len(make_tokenizer())
    text = dict(**TEXT, vocab_size=size, max_position_embeddings=LENGTH, eos_token_id=eos_token_id, bos_token_id=0)
    config = CLIPConfig(text_config=text, vision_config=dict(**VISION, patch_size=8), projection_dim=DIM)
    return spread(CLIPModel(config))


def make_clip(eos_token_id=2):
    """HF CLIP; 2 is what OpenAI's checkpoints say."""
    return copy.deepcopy(_clip(eos_token_id))


def make_siglip():
    """HF SigLIP with the same vocabulary."""
    size = len(make_tokenizer())
    text = dict(**TEXT, vocab_size=size, max_position_embeddings=LENGTH, projection_size=WIDTH)
    vision = dict(**{**VISION, "hidden_size": WIDTH, "num_attention_heads": 4}, patch_size=8)
    return spread(SiglipModel(SiglipConfig(text_config=text, vision_config=vision)))


def make_siglip2():
    """HF SigLIP 2 of variable resolution (NaFlex), with the same vocabulary."""
    size = len(make_tokenizer())
    text = dict(**TEXT, vocab_size=size, max_position_embeddings=LENGTH, projection_size=WIDTH)
    vision = dict(hidden_size=WIDTH, intermediate_size=32, num_hidden_layers=1, num_attention_heads=4)
    config = Siglip2Config(text_config=text, vision_config=dict(**vision, patch_size=8, num_patches=4))
    return spread(Siglip2Model(config))


def make_metaclip2(eos_token_id=None):
    """HF MetaCLIP 2 with the same vocabulary: pools at `eos_token_id`, also where that is 2 (XLM-R's)."""
    size = len(make_tokenizer())
    eos = size - 1 if eos_token_id is None else eos_token_id
    text = dict(**TEXT, vocab_size=size, max_position_embeddings=LENGTH, eos_token_id=eos, bos_token_id=0)
    config = MetaClip2Config(text_config=text, vision_config=dict(**VISION, patch_size=8), projection_dim=DIM)
    return spread(MetaClip2Model(config))


def make_open_clip(custom_text=False):
    """open_clip's CLIP or CustomTextCLIP with the same vocabulary."""
    import open_clip.model

    cls = open_clip.model.CustomTextCLIP if custom_text else open_clip.model.CLIP
    size = len(make_tokenizer())
    text = dict(context_length=LENGTH, vocab_size=size, width=WIDTH, heads=4, layers=2)
    vision = dict(image_size=16, patch_size=8, width=16, layers=1, head_width=8)
    return spread(cls(embed_dim=DIM, vision_cfg=vision, text_cfg=text))


def make_owlvit(owlv2=False):
    """HF OwlViT or Owlv2: pools text at the largest id."""
    config_class, model_class = (
        (Owlv2Config, Owlv2ForObjectDetection) if owlv2 else (OwlViTConfig, OwlViTForObjectDetection)
    )
    text = dict(**TEXT, vocab_size=len(make_tokenizer()), max_position_embeddings=24)
    config = config_class(text_config=text, vision_config=dict(**VISION, patch_size=8), projection_dim=WIDTH)
    return spread(model_class(config))


def make_owlv2():
    return make_owlvit(owlv2=True)


def make_clipseg():
    """HF CLIPSeg with a small decoder."""
    text = dict(**TEXT, vocab_size=len(make_tokenizer()), max_position_embeddings=24, eos_token_id=2)
    vision = dict(**{**VISION, "num_hidden_layers": 4}, patch_size=8)
    config = CLIPSegConfig(text_config=text, vision_config=vision, projection_dim=DIM, extract_layers=[1, 2, 3])
    config.reduce_dim, config.decoder_num_attention_heads, config.decoder_intermediate_size = 8, 2, 16
    return spread(CLIPSegForImageSegmentation(config))


def images(number=4, seed=0):
    return torch.randn(number, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def patches(number=4, seed=0):
    """SigLIP 2's inputs: 4 patches of 8 x 8 x 3 an image, the last two of each second image being padding."""
    pixel_values = torch.randn(number, 4, 192, generator=torch.Generator().manual_seed(seed))
    mask, shapes = torch.ones(number, 4, dtype=torch.int64), torch.tensor([[2, 2]] * number)
    mask[1::2, 2:], shapes[1::2] = 0, torch.tensor([1, 2])
    return dict(pixel_values=pixel_values, pixel_attention_mask=mask, spatial_shapes=shapes)


def embeddings(number=64, dim=DIM, seed=0):
    return torch.nn.functional.normalize(torch.randn(number, dim, generator=torch.Generator().manual_seed(seed)))


MAKERS = {
    "clip": make_clip,
    "clip with the real end of text": lambda: make_clip(eos_token_id=len(make_tokenizer()) - 1),
    "siglip": make_siglip,
    "open_clip": make_open_clip,
    "open_clip custom text": lambda: make_open_clip(custom_text=True),
}


def make_model(maker=make_clip, names=NAMES, seed=0, std=0.3, **config):
    base = maker()
    torch.manual_seed(seed)
    model = get_peft_model(base, SubPTConfig(init_std=std, **{"n_ctx": 4, **config}))
    model.set_classes(names, make_tokenizer())
    return model
