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
"""A small random checkpoint of every family, with what makes it hard to quantize."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
import torch
from torch import nn, Tensor
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

VOCABULARY = 96

_SIZES = {'hidden_size': 64, 'intermediate_size': 128, 'num_hidden_layers': 2,
          'num_attention_heads': 4, 'num_key_value_heads': 2, 'max_position_embeddings': 64}
_LONG = {'rope_scaling': {'type': 'longrope', 'short_factor': [1.1] * 8,
                          'long_factor': [float(i + 1) for i in range(8)]},
         'original_max_position_embeddings': 32}
_MPT = {'d_model': 64, 'n_heads': 4, 'n_layers': 2, 'max_seq_len': 64}
_FALCON = {'hidden_size': 64, 'num_hidden_layers': 2, 'num_attention_heads': 4,
           'max_position_embeddings': 64}
_GROUPED = {**_FALCON, 'num_attention_heads': 8, 'num_kv_heads': 2,
            'new_decoder_architecture': True}
_ALTERNATING = {'head_dim': 32, 'sliding_window': 6, 'query_pre_attn_scalar': 24,
                'layer_types': ['sliding_attention', 'full_attention']}

# By what is hard in it: the model_type, and the configuration that transformers takes.
SOURCES: dict[str, tuple[str, dict[str, Any]]] = {
    'llama': ('llama', _SIZES),
    'mistral with a window': ('mistral', {**_SIZES, 'sliding_window': 7}),
    'qwen2 with biases': ('qwen2', _SIZES),
    'qwen3 with head norms': ('qwen3', {**_SIZES, 'head_dim': 32}),
    'phi3 with merged matrices': ('phi3', {**_SIZES, 'pad_token_id': 0}),
    'phi3 with partial rotation': ('phi3', {
        **_SIZES, 'pad_token_id': 0, 'partial_rotary_factor': 0.75}),
    'phi3 of a long context': ('phi3', {**_SIZES, **_LONG, 'pad_token_id': 0}),
    'gemma2 with post norms': ('gemma2', {**_SIZES, **_ALTERNATING}),
    'gemma3 with every norm': ('gemma3_text', {**_SIZES, **_ALTERNATING}),
    'mpt': ('mpt', _MPT),
    'mpt with scales': ('mpt', _MPT),
    'mpt with bounded values': ('mpt', {
        **_MPT, 'd_model': 96, 'n_heads': 6, 'attn_config': {'clip_qkv': 0.6}}),
    'falcon with one norm': ('falcon', {
        **_FALCON, 'hidden_size': 96, 'num_attention_heads': 3, 'multi_query': True}),
    'falcon with two norms': ('falcon', _GROUPED),
    'falcon with groups and one norm': ('falcon', {**_GROUPED, 'num_ln_in_parallel_attn': 1}),
    'falcon in sequence with biases': ('falcon', {
        **_FALCON, 'multi_query': False, 'parallel_attn': False, 'bias': True}),
    'llava': ('llava', {'image_token_index': VOCABULARY - 1, 'text_config': {
        **_SIZES, 'model_type': 'llama', 'vocab_size': VOCABULARY}, 'vision_config': {
        'model_type': 'clip_vision_model', 'hidden_size': 16, 'intermediate_size': 32,
        'num_hidden_layers': 2, 'num_attention_heads': 2, 'image_size': 12, 'patch_size': 4}}),
}


def write_source(path: Path, name: str) -> Path:
    """Write one of SOURCES in values that fp16 holds exactly, and return the folder."""
    model_type, sizes = SOURCES[name]
    config = AutoConfig.for_model(model_type, vocab_size=VOCABULARY, **sizes)
    model = auto_class(name).from_config(config, attn_implementation='eager')
    generator = torch.Generator().manual_seed(len(name))
    for parameter in model.parameters():
        _randomize(parameter, generator)
    model.save_pretrained(path)
    if name == 'mpt with scales':
        add_scales(path, generator)
    return path


def auto_class(name: str) -> type:
    """Return the class of transformers that loads one of SOURCES."""
    return AutoModelForImageTextToText if name == 'llava' else AutoModelForCausalLM


def _randomize(parameter: nn.Parameter, generator: torch.Generator) -> None:
    """Spread a parameter, the norms' by channel, so that there is something to scale."""
    values = torch.randn(parameter.shape, generator=generator)
    if parameter.dim() > 1:
        parameter.data = (values * 0.15).half().float()
    else:
        parameter.data = (parameter.data + values * 0.4).half().float()


def add_scales(path: Path, generator: torch.Generator) -> None:
    """Give a checkpoint of MPT the tensors that another quantizer left behind its activations."""
    file = path / 'model.safetensors'
    tensors = load_file(file)
    for index in range(_MPT['n_layers']):
        scales = 2.0 ** torch.randint(-2, 3, (4 * _MPT['d_model'],), generator=generator)
        tensors[scales_name(index)] = scales
    save_file(tensors, file, metadata={'format': 'pt'})


def scales_name(index: int) -> str:
    """Return where AutoAWQ keeps the scales of MPT's activation."""
    return f'transformer.blocks.{index}.ffn.act.scales'


def samples() -> list[Tensor]:
    """Return calibration sequences, int64 [24] each."""
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(VOCABULARY, (24,), generator=generator) for _ in range(4)]
