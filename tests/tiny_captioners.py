"""Tiny captioners with random weights, in folders of the layout of transformers: config, weights, processor, tokenizer.

Their weights are drawn wide, so that pictures of different colours have different captions.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

SIDE = 32  # of the pictures that they see, in pixels
WORDS = (
    *("a", "the", "red", "green", "blue", "cat", "dog", "tree", "car", "sun", "on", "in", "of", "with", "big", "old"),
    *("new", "sky", "sea", "road", "house", "bird", "stone", "cloud", "grass", "light", "Describe", "picture", "user"),
    *("man", "'", "s", "t", "-", "shirt"),
)
_BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_TEXT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
_EYE = {**_TEXT, "num_hidden_layers": 1, "image_size": SIDE, "patch_size": 16, "initializer_range": 0.6}
_QWEN = (
    *("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"),
    "<|video_pad|>",
)
_QWEN_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }} {% for c in m['content'] %}{% if c['type'] == 'image' %}"
    "<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ c['text'] }}{% endif %}{% endfor %}<|im_end|>{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>a {% endif %}"
)
_LLAVA_TEMPLATE = (
    "{% for m in messages %}user {% for c in m['content'] %}{% if c['type'] == 'image' %}<image> {% else %}"
    "{{ c['text'] }}{% endif %}{% endfor %}{% endfor %} a"
)


def build_blip(folder: Path) -> Path:
    """A BLIP; its tokenizer has [DEC], which begins every caption and is no part of it.

    Tokens that are no words are never likely, so that no caption is empty.
    """
    import torch
    from transformers import BlipConfig, BlipForConditionalGeneration, BlipImageProcessor, BlipProcessor

    tokenizer = _bert(folder, ("[DEC]",))
    ids = tokenizer.convert_tokens_to_ids
    ends = {"bos_token_id": ids("[DEC]"), "eos_token_id": ids("[SEP]"), "sep_token_id": ids("[SEP]"), "pad_token_id": 0}
    text = {**_TEXT, "encoder_hidden_size": 32, "vocab_size": len(tokenizer), "max_position_embeddings": 96, **ends}
    config = BlipConfig(text_config={**text, "initializer_range": 0.6}, vision_config=_EYE, projection_dim=32)
    pictures = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    _saved(folder, BlipForConditionalGeneration, config, BlipProcessor(pictures, tokenizer))
    model = BlipForConditionalGeneration.from_pretrained(folder)
    with torch.no_grad():
        model.text_decoder.cls.predictions.bias[ids(["[PAD]", "[UNK]", "[CLS]", "[MASK]", "[DEC]"])] = -100.0
    model.save_pretrained(folder)
    return folder


def build_git(folder: Path) -> Path:
    """A Git. Tokens that are no words are never likely."""
    import torch
    from transformers import GitConfig, GitForCausalLM, GitProcessor

    tokenizer = _bert(folder, ())
    ids = tokenizer.convert_tokens_to_ids
    ends = {"bos_token_id": ids("[CLS]"), "eos_token_id": ids("[SEP]"), "pad_token_id": 0}
    config = GitConfig(
        **_TEXT,
        vocab_size=len(tokenizer),
        max_position_embeddings=96,
        vision_config=_EYE,
        initializer_range=0.6,
        **ends,
    )
    _saved(folder, GitForCausalLM, config, GitProcessor(_clip_pictures(), tokenizer))
    model = GitForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.output.bias[ids(["[PAD]", "[UNK]", "[CLS]", "[MASK]"])] = -100.0
    model.save_pretrained(folder)
    return folder


def build_florence(folder: Path) -> Path:
    """A Florence-2."""
    from transformers import Florence2Config, Florence2ForConditionalGeneration, Florence2Processor

    questions = ("What", "does", "image", "describe?", "detail", "what", "is", "shown", "image.")
    special = ("<s>", "<pad>", "</s>", "<unk>", "<image>")
    image = {"extra_special_tokens": {"image_token": "<image>"}}
    tokenizer = _words(special, questions, bos_token="<s>", eos_token="</s>", pad_token="<pad>", **image)
    pictures = _clip_pictures(size={"height": SIDE, "width": SIDE}, do_center_crop=False)
    pictures.image_seq_length = 17  # 4 x 4 places and their mean
    text = {
        **{"model_type": "bart", "vocab_size": len(tokenizer), "d_model": 32, "max_position_embeddings": 96},
        **{f"{part}_layers": 1 for part in ("encoder", "decoder")},
        **{f"{part}_attention_heads": 2 for part in ("encoder", "decoder")},
        **{f"{part}_ffn_dim": 64 for part in ("encoder", "decoder")},
        **{"pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 2, "init_std": 0.6},
    }
    stages = {"depths": (1, 1), "patch_size": (7, 3), "patch_stride": (4, 2), "patch_padding": (3, 1)}
    heads = {"embed_dim": (16, 32), "num_heads": (2, 2), "num_groups": (2, 2), "patch_prenorm": (False, True)}
    places = {"window_size": 2, "projection_dim": 32, "max_temporal_embeddings": 4, "max_position_embeddings": 10}
    config = Florence2Config(
        image_token_id=tokenizer.image_token_id, text_config=text, vision_config={**stages, **heads, **places}
    )
    return _saved(folder, Florence2ForConditionalGeneration, config, Florence2Processor(pictures, tokenizer))


def build_llava(folder: Path) -> Path:
    """A Llava, which chats."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor

    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = _words(("<pad>", "<s>", "</s>", "<unk>", "<image>"), (), **names)
    image = tokenizer.convert_tokens_to_ids("<image>")
    rest = {"patch_size": 16, "vision_feature_select_strategy": "default", "num_additional_image_tokens": 1}
    processor = LlavaProcessor(_clip_pictures(), tokenizer, chat_template=_LLAVA_TEMPLATE, **rest)
    eye = {**_EYE, "num_hidden_layers": 2, "model_type": "clip_vision_model", "projection_dim": 32}
    ends = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.6}
    text = {**_TEXT, "model_type": "llama", "vocab_size": len(tokenizer), "max_position_embeddings": 256, **ends}
    config = LlavaConfig(vision_config=eye, text_config=text, image_token_index=image)
    return _saved(folder, LlavaForConditionalGeneration, config, processor)


def build_qwen(folder: Path) -> Path:
    """A Qwen2.5-VL, which chats and sees pictures at sizes of their own, so prompts differ in length.

    Its processor needs torchvision for videos, so only its parts are saved, as published folders have them.
    """
    import json

    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration, Qwen2VLImageProcessor

    tokenizer = _words(_QWEN, (), eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.chat_template = _QWEN_TEMPLATE
    ids = tokenizer.convert_tokens_to_ids
    names = {"image_token_id": "<|image_pad|>", "video_token_id": "<|video_pad|>"}
    names |= {"vision_start_token_id": "<|vision_start|>", "vision_end_token_id": "<|vision_end|>"}
    turns = {"num_key_value_heads": 2, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]}}
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.6}
    eye = {"depth": 2, "hidden_size": 32, "out_hidden_size": 32, "intermediate_size": 64, "num_heads": 2}
    config = Qwen2_5_VLConfig(
        **{key: ids(token) for key, token in names.items()},
        text_config={**_TEXT, **turns, "vocab_size": len(tokenizer), "max_position_embeddings": 256, **ends},
        vision_config={**eye, "fullatt_block_indexes": [1], "window_size": 56, "initializer_range": 0.6},
    )
    _saved(folder, Qwen2_5_VLForConditionalGeneration, config, tokenizer)
    Qwen2VLImageProcessor(min_pixels=28 * 28, max_pixels=28 * 28 * 8).save_pretrained(folder)
    path = folder / "preprocessor_config.json"
    settings = json.loads(path.read_text(encoding="utf-8")) | {"processor_class": "Qwen2_5_VLProcessor"}
    path.write_text(json.dumps(settings), encoding="utf-8")
    return folder


def build_blip2(folder: Path) -> Path:
    """A BLIP-2 with an OPT, which is told what to do."""
    from transformers import Blip2Config, Blip2ForConditionalGeneration, Blip2Processor, BlipImageProcessor

    names = {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = _words(("<s>", "<pad>", "</s>", "<unk>", "<image>"), (), **names)
    image = tokenizer.convert_tokens_to_ids("<image>")
    ends = {"bos_token_id": 2, "eos_token_id": 2, "pad_token_id": 1, "init_std": 0.6}
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "ffn_dim": 64,
        "word_embed_proj_dim": 32,
    }
    text = {**sizes, **ends, "model_type": "opt", "vocab_size": len(tokenizer), "max_position_embeddings": 96}
    config = Blip2Config(
        vision_config={**_EYE, "initializer_range": 0.6},
        qformer_config={**_TEXT, "encoder_hidden_size": 32, "vocab_size": 8, "initializer_range": 0.6},
        text_config=text,
        num_query_tokens=4,
        image_token_index=image,
    )
    pictures = BlipImageProcessor(size={"height": SIDE, "width": SIDE})
    processor = Blip2Processor(pictures, tokenizer, num_query_tokens=4)
    return _saved(folder, Blip2ForConditionalGeneration, config, processor)


def build_pair(folder: Path) -> Path:
    """A ViT and a GPT-2 as one model, which takes no words."""
    from transformers import (
        GPT2Config,
        VisionEncoderDecoderConfig,
        VisionEncoderDecoderModel,
        ViTConfig,
        ViTImageProcessor,
    )

    tokenizer = _words(("<s>", "<pad>", "</s>", "<unk>"), (), bos_token="<s>", eos_token="</s>", pad_token="<pad>")
    ends = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "initializer_range": 0.6}
    words = GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=96, **ends)
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(**_EYE), words)
    config.decoder_start_token_id, config.eos_token_id, config.pad_token_id = 0, 2, 1
    ViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    return _saved(folder, VisionEncoderDecoderModel, config, tokenizer)


def _bert(folder: Path, further: Sequence[str]) -> Any:
    """A tokenizer whose tokens are words, as BLIP and Git have it. Its vocabulary is written to the folder."""
    from transformers import AutoTokenizer

    (folder / "vocab.txt").write_text("\n".join((*_BERT, *WORDS, *further)), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "BertTokenizer", "do_lower_case": false}')
    return AutoTokenizer.from_pretrained(folder, additional_special_tokens=list(further))


def _words(special: Sequence[str], further: Sequence[str], **names: Any) -> Any:
    """A tokenizer whose tokens are words."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = dict.fromkeys((*special, *WORDS, *further))
    own = Tokenizer(models.WordLevel({word: place for place, word in enumerate(words)}, unk_token="<unk>"))
    own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"additional_special_tokens": list(special), **names}
    if "extra_special_tokens" in names:
        del names["additional_special_tokens"]
    inputs = ["input_ids", "attention_mask"]
    return PreTrainedTokenizerFast(tokenizer_object=own, unk_token="<unk>", model_input_names=inputs, **names)


def _clip_pictures(**changes: Any) -> Any:
    from transformers import CLIPImageProcessor

    settings = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}, **changes}
    return CLIPImageProcessor(**settings)


def _saved(folder: Path, model_class: Any, config: Any, processor: Any) -> Path:
    import torch

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = model_class(config)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder
