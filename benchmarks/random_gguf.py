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
"""Writes models of random weights as llama.cpp would quantize them, in its GGUF format."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple

import torch
from torch import Tensor

from tinychat_ros.models.config import ModelConfig

# What llama.cpp makes of most linears, by the name of the quantization.
QUANTIZATIONS: Mapping[str, str] = {'Q4_0': 'Q4_0', 'Q4_K_M': 'Q4_K'}
_FILE_TYPES = {'Q4_0': 'MOSTLY_Q4_0', 'Q4_K_M': 'MOSTLY_Q4_K_M'}
_FINE = 'Q6_K'
_PLAIN = 'F32'


class _Block(NamedTuple):
    """
    Values that are quantized together.

    :param factors: by the byte at which an fp16 factor stands, what it is for weights with a
        deviation of 1; all other bytes may be any.
    """

    values: int
    nbytes: int
    factors: Mapping[int, float]


# With random codes and scales, their factors 1: a Q4_0 has a deviation of 4.6, a Q4_K one of 258
# around 7.5 times its minimum, a Q6_K one of 1366.
_BLOCKS = {'Q4_0': _Block(32, 18, {0: 1 / 4.6}),
           'Q4_K': _Block(256, 144, {0: 1 / 258, 2: 7.5 / 258}),
           'Q6_K': _Block(256, 210, {208: 1 / 1366}), _PLAIN: _Block(1, 4, {})}


class StoredTensor(NamedTuple):
    """
    A tensor [n, k] of a file; a norm is one row.

    :param kind: F32, or what its blocks are.
    """

    name: str
    n: int
    k: int
    kind: str

    @property
    def nbytes(self) -> int:
        """Return the bytes of its data."""
        block = _BLOCKS[self.kind]
        return self.n * self.k // block.values * block.nbytes


def tensors(config: ModelConfig, quantization: str) -> Iterator[StoredTensor]:
    """Yield the tensors of a Llama; llama.cpp's llama-quant.cpp says which are finer."""
    hidden, vocab, usual = config.hidden_size, config.vocab_size, QUANTIZATIONS[quantization]
    yield StoredTensor('token_embd.weight', vocab, hidden, usual)
    for layer in range(config.num_hidden_layers):
        fine = quantization == 'Q4_K_M' and _gets_more_bits(layer, config.num_hidden_layers)
        yield from _layer(config, f'blk.{layer}', usual, _FINE if fine else usual)
    yield StoredTensor('output_norm.weight', 1, hidden, _PLAIN)
    yield StoredTensor('output.weight', vocab, hidden, _FINE)


def _gets_more_bits(layer: int, layers: int) -> bool:
    """Say whether a layer is in the first or last eighth, or every third one between them."""
    eighth = layers // 8
    return layer < eighth or layer >= 7 * layers // 8 or (layer - eighth) % 3 == 2


def _layer(config: ModelConfig, name: str, usual: str, sensitive: str) -> Iterator[StoredTensor]:
    hidden, inter = config.hidden_size, config.intermediate_size
    q_size, kv_size = (heads * config.head_dim for heads in (
        config.num_attention_heads, config.num_key_value_heads))
    for norm in ('attn_norm', 'ffn_norm'):
        yield StoredTensor(f'{name}.{norm}.weight', 1, hidden, _PLAIN)
    for linear, n, k, kind in (
            ('attn_q', q_size, hidden, usual), ('attn_k', kv_size, hidden, usual),
            ('attn_v', kv_size, hidden, sensitive), ('attn_output', hidden, q_size, usual),
            ('ffn_gate', inter, hidden, usual), ('ffn_up', inter, hidden, usual),
            ('ffn_down', hidden, inter, sensitive)):
        yield StoredTensor(f'{name}.{linear}.weight', n, k, kind)


def data(n: int, k: int, kind: str) -> Tensor:
    """Return ones for a norm, fp32 [k]; else blocks with random codes, uint8 [n, bytes of k]."""
    if kind == _PLAIN:
        return torch.ones(k)
    block = _BLOCKS[kind]
    blocks = torch.randint(0, 256, (n * k // block.values, block.nbytes), dtype=torch.uint8)
    for offset, factor in block.factors.items():
        half = torch.tensor([factor * k ** -0.5], dtype=torch.float16)
        blocks[:, offset:offset + 2] = half.view(torch.uint8)
    return blocks.view(n, -1)


def write(path: Path, config: ModelConfig, quantization: str) -> None:
    """
    Write a model; all layers have the same weights.

    :raises ImportError: the package gguf is missing.
    """
    import gguf
    writer = gguf.GGUFWriter(path, 'llama')
    writer.add_file_type(gguf.LlamaFileType[_FILE_TYPES[quantization]])
    _add_shape(writer, config)
    _add_tokens(writer, config.vocab_size)
    made = lru_cache(data)
    for tensor in tensors(config, quantization):
        writer.add_tensor(tensor.name, made(tensor.n, tensor.k, tensor.kind).numpy(),
                          raw_dtype=gguf.GGMLQuantizationType[tensor.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: Any, config: ModelConfig) -> None:
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokens(writer: Any, vocab_size: int) -> None:
    """Add a SentencePiece vocabulary: what marks the ends, all bytes, and made-up words."""
    special = ['<unk>', '<s>', '</s>']
    in_bytes = [f'<0x{byte:02X}>' for byte in range(256)]
    words = [f'w{i}' for i in range(vocab_size - len(special) - len(in_bytes))]
    writer.add_tokenizer_model('llama')
    writer.add_token_list([*special, *in_bytes, *words])
    writer.add_token_scores([0.0] * vocab_size)
    # As gguf.TokenType numbers them: unknown, control, byte and normal ones.
    writer.add_token_types([2, 3, 3] + [6] * len(in_bytes) + [1] * len(words))
