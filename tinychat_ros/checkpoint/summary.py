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
from typing import Optional

import torch

from tinychat_ros.checkpoint import formats
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.kernels.linear import StoredWeight, why_reference
from tinychat_ros.kernels.packing import Int8Weight, QuantizedWeight
from tinychat_ros.models.kv_cache import kv_bytes_per_position


@dataclass(frozen=True)
class LayerSummary:
    """
    One linear: N output and K input features.

    :param group_size: None where a scale covers a whole row (w8a8), and for a plain weight.
    :param reference_reason: why a quantized weight runs on the torch reference of this machine's
        CPU; None where a kernel takes it, and for plain weights, which are torch's own.
    """

    name: str
    format: str
    n: int
    k: int
    group_size: Optional[int]
    reference_reason: Optional[str]


def summarize_layers(reader: CheckpointReader) -> list[LayerSummary]:
    """Describe every linear of a checkpoint, in the order of the names."""
    names = formats.layer_names(reader) - {reader.config.names.embedding}
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


def _summarize(reader: CheckpointReader, name: str) -> LayerSummary:
    weight_format = formats.detect(reader, name)
    n, k, group_size = weight_format.shape(reader, name)
    reason = why_reference(_stand_in(weight_format.bits, n, k, group_size))
    return LayerSummary(name, weight_format.name, n, k, group_size, reason)


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
