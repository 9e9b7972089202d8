# Copyright 2026 tinychat_ros developers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.
"""Small LLaVA checkpoints of random weights and bytes as tokens, as transformers saves them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Callable

import tokenizers
import torch
from tiny_models import SPECIAL_TOKENS
from transformers import (
    CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration)

from tinychat_ros.engine.image import Image

IMAGE_SIZE, PATCH_SIZE = 12, 4
IMAGE_TOKENS = (IMAGE_SIZE // PATCH_SIZE) ** 2
IMAGE_TOKEN = '<image>'
IMAGE_TOKEN_ID = 256 + len(SPECIAL_TOKENS)
# That of the hub's llava-1.5 in short: contents are lists of parts, images come first.
LLAVA_TEMPLATE = (
    "{% for m in messages %}{{ m['role'].upper() + ': ' }}"
    "{% for p in m['content'] if p['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}"
    "{% for p in m['content'] if p['type'] == 'text' %}{{ p['text'] + ' ' }}{% endfor %}"
    '{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}')


def llava_config(text: Callable[..., Any] = LlamaConfig, **changes: Any) -> LlavaConfig:
    """Return a config; changes are those of its own keys, and text makes that of its decoder."""
    return LlavaConfig(**{
        'vision_config': CLIPVisionConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            image_size=IMAGE_SIZE, patch_size=PATCH_SIZE),
        'text_config': text(
            vocab_size=IMAGE_TOKEN_ID + 3, hidden_size=64, intermediate_size=128,
            num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
            max_position_embeddings=512, bos_token_id=256, eos_token_id=257),
        'image_token_index': IMAGE_TOKEN_ID, 'image_seq_length': IMAGE_TOKENS, **changes})


def llava_model(config: LlavaConfig, seed: int = 0) -> LlavaForConditionalGeneration:
    """Return a model whose weights, biases and norms are random, and large enough to say much."""
    generator = torch.Generator().manual_seed(seed)
    model = LlavaForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1 and name.endswith('weight'):
                parameter.copy_(1 + 0.1 * noise)
            else:
                parameter.copy_(noise * (1.0 if 'embed' in name else 0.2))
    return model


def write_llava_model(path: Path, template: str = LLAVA_TEMPLATE, **changes: Any) -> Path:
    """Write a whole checkpoint that an engine can load, and that sees; return the folder."""
    llava_model(llava_config(**changes)).save_pretrained(path)
    write_processor(path, template)
    return path


def write_processor(path: Path, template: str = LLAVA_TEMPLATE) -> None:
    """Write a tokenizer of 256 bytes, SPECIAL_TOKENS and <image>, and how images are resized."""
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[])
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single='<s> $A', special_tokens=[('<s>', 256)])
    tokenizer.add_special_tokens([*SPECIAL_TOKENS, IMAGE_TOKEN])
    tokenizer.save(str(path / 'tokenizer.json'))
    (path / 'tokenizer_config.json').write_text(json.dumps({
        'bos_token': '<s>', 'eos_token': '</s>', 'chat_template': template,
        'tokenizer_class': 'PreTrainedTokenizerFast'}))
    (path / 'preprocessor_config.json').write_text(json.dumps({
        'image_processor_type': 'CLIPImageProcessor', 'size': {'shortest_edge': IMAGE_SIZE},
        'crop_size': {'height': IMAGE_SIZE, 'width': IMAGE_SIZE}}))


def random_image(seed: int = 0, height: int = 23, width: int = 37) -> Image:
    """Return an image of noise."""
    generator = torch.Generator().manual_seed(seed)
    return Image(torch.randint(256, (height, width, 3), generator=generator, dtype=torch.uint8))
