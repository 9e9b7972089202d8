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
"""What a checkpoint holds, from its headers alone."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
import re
from typing import NamedTuple, Optional, Sequence

import torch
from torch import Tensor

from tinychat_ros.checkpoint import formats
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.kernels import cpu, cuda, extension
from tinychat_ros.kernels.linear import StoredWeight, why_not_on_cuda, why_reference
from tinychat_ros.kernels.packing import Int8Weight, QuantizedWeight
from tinychat_ros.models.config import ModelConfig
from tinychat_ros.models.kv_cache import kv_bytes_per_position


@dataclass(frozen=True)
class LayerSummary:
    """
    One linear: N output and K input features.

    :param group_size: None where a scale covers a whole row (w8a8), and for a plain weight.
    :param reference_reason: why a quantized weight runs on the torch reference of this machine's
        CPU; None where a kernel takes it, and for plain weights, which are torch's own.
    :param cpu: what reads it on this machine's CPU, with the reason where that is the reference.
    :param cuda: likewise on a GPU that the extension was built for.
    """

    name: str
    format: str
    n: int
    k: int
    group_size: Optional[int]
    reference_reason: Optional[str]
    cpu: str
    cuda: str


class LayerGroup(NamedTuple):
    """Layers that are alike in all blocks; their name has a star for the number of the block."""

    name: str
    count: int
    layer: LayerSummary


def summarize_layers(reader: CheckpointReader) -> list[LayerSummary]:
    """Describe every linear of a checkpoint, in the order of the names."""
    tables, vision = {reader.config.names.embedding}, reader.config.vision
    if vision is not None:
        tables.add(f'{vision.tower}.embeddings.position_embedding')
    names = formats.layer_names(reader) - tables
    return [_summarize(reader, name) for name in sorted(names, key=_natural)]


def weight_bytes_per_token(reader: CheckpointReader) -> int:
    """Return the bytes of weights that decoding one token reads, as stored."""
    # An embedding is read one row at a time, unless it is the LM head as well.
    names, vision = reader.config.names, reader.config.vision
    skipped = [names.lm_head if reader.config.tie_word_embeddings else names.embedding]
    if vision is not None:
        skipped += [vision.tower, vision.projector]
    return sum(reader.num_bytes(name) for name in reader.names
               if not name.startswith(tuple(f'{each}.' for each in skipped)))


def kv_bytes_fp16(reader: CheckpointReader) -> int:
    """Return the bytes that one position takes in an fp16 KV cache."""
    return kv_bytes_per_position(reader.config, torch.float16)


def kv_bytes_read(config: ModelConfig, context: int) -> int:
    """Return the bytes of an fp16 KV cache that a token behind so many others reads."""
    layers = len(config.sliding_windows)
    seen = sum(min(window or context, context) for window in config.sliding_windows)
    return kv_bytes_per_position(config, torch.float16) // layers * seen


def grouped(layers: Sequence[LayerSummary]) -> list[LayerGroup]:
    """Put together what is alike in all blocks, in the order of the first ones."""
    def alike(layer: LayerSummary) -> tuple:
        return (re.sub(r'\.\d+\.', '.*.', layer.name), layer.format, layer.n, layer.k,
                layer.group_size, layer.cpu, layer.cuda)

    order = {key: place for place, key in reversed(list(enumerate(map(alike, layers))))}
    groups = groupby(sorted(layers, key=lambda layer: order[alike(layer)]), alike)
    members = [(key[0], list(group)) for key, group in groups]
    return [LayerGroup(name, len(group), group[0]) for name, group in members]


def why_not_recorded(config: ModelConfig,
                     layers: Sequence[LayerSummary]) -> dict[str, Optional[str]]:
    """
    Return why a decode step cannot be recorded and runs op by op, for 'cpu' and 'cuda'.

    :returns: None where it can be; a GPU's graph also holds what runs on the reference.
    """
    refused = cpu_attention_refusal(config.head_dim)
    reasons = [f'{layer.name}: {layer.reference_reason}' for layer in layers
               if layer.reference_reason is not None]
    reasons += [f'{names}: not all of one kind' for names in _apart(config, layers)]
    return {'cpu': refused or next(iter(reasons), None),
            'cuda': cuda.attention_refusal(config.head_dim) or None}


def cpu_attention_refusal(head_dim: int) -> Optional[str]:
    """Return why this machine's CPU has no attention kernel for a shape, or None where it has."""
    if extension.load() is None:
        return extension.why_absent()
    return cpu.attention_refusal(head_dim) or None


def _apart(config: ModelConfig, layers: Sequence[LayerSummary]) -> list[str]:
    """Return the linears that share an input and cannot be joined."""
    kinds = {layer.name: (layer.cpu, layer.group_size) for layer in layers}
    joined = (tuple(f'{config.names.blocks}.{i}.{name}' for name in names)
              for i in range(config.num_hidden_layers)
              for names in (config.names.qkv, config.names.gate_up))
    return [' + '.join(names) for names in joined
            if len({kinds.get(name) for name in names}) > 1]


def _summarize(reader: CheckpointReader, name: str) -> LayerSummary:
    weight_format = formats.detect(reader, name)
    n, k, group_size = weight_format.shape(reader, name)
    weight = _stand_in(weight_format.bits, n, k, group_size)
    reason = why_reference(weight)
    on_cuda = None if isinstance(weight, Tensor) else why_not_on_cuda(weight)
    return LayerSummary(name, weight_format.name, n, k, group_size, reason,
                        _kernel(weight_format.bits, 8, reason),
                        _kernel(weight_format.bits, 16, on_cuda))


def _kernel(bits: int, activation_bits: int, refusal: Optional[str]) -> str:
    if refusal is not None:
        return f'reference: {refusal}'
    return 'plain' if bits == 16 else f'W{bits}A{activation_bits}'


def _stand_in(bits: int, n: int, k: int, group_size: Optional[int]) -> StoredWeight:
    """Return a weight of this shape without its numbers, so that the file need not be read."""
    if bits == 16:
        return torch.empty(1).expand(n, k)
    if bits == 8:
        return Int8Weight(torch.empty(1, dtype=torch.int8).expand(n, k), torch.empty(0))
    qweight = torch.empty(1, dtype=torch.uint8).expand(n, k * bits // 8)
    return QuantizedWeight(qweight, torch.empty(0), torch.empty(0), group_size, bits)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), '') if part.isdigit() else (-1, part) for part in name.split('.')]
