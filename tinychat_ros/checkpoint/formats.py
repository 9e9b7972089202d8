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
"""
How weights lie in a checkpoint: one row per format, told apart by the tensors that are there.

N = output features, K = input features, G = group size. w = (q - zero) * scale, no offset of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable

import torch
from torch import Tensor

from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.errors import CheckpointError, UnsupportedModelError
from tinychat_ros.kernels.linear import StoredWeight
from tinychat_ros.kernels.packing import (
    Int8Weight, pack_nibbles, QuantizedWeight, unpack_nibbles)

# AutoAWQ gemm: output channel 8c + j sits in this nibble of column c.
AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class WeightFormat:
    """
    One way to store a linear's weight.

    :param suffixes: the tensors that follow the layer's name; all of them make the format.
    :param read: (reader, layer's name, N, K) to the weight in canonical form.
    """

    name: str
    suffixes: tuple[str, ...]
    read: Callable[[CheckpointReader, str, int, int], StoredWeight]


def read_plain(reader: CheckpointReader, name: str, n: int, k: int) -> Tensor:
    """Read an fp32, fp16 or bf16 ``weight`` [N, K]."""
    return reader.floats(f'{name}.weight', [n, k])


def read_awq_gemm(reader: CheckpointReader, name: str, n: int, k: int) -> QuantizedWeight:
    """Read ``qweight`` int32 [K, N/8], ``qzeros`` int32 [K/G, N/8], ``scales`` fp16 [K/G, N]."""
    shape = reader.shape(f'{name}.scales')
    groups = shape[0] if shape else 0
    if groups < 1 or k % groups or (k // groups) % 2:
        raise CheckpointError(f'{name}.scales: expected [K/G, {n}] with an even group size G that '
                              f'divides K = {k}, got {shape}')
    if n % 8:
        raise CheckpointError(f'{name}.qweight: expected N to be a multiple of 8, got {n}')
    qweight = reader.raw(f'{name}.qweight', [k, n // 8], torch.int32)
    qzeros = reader.raw(f'{name}.qzeros', [groups, n // 8], torch.int32)
    scales = reader.floats(f'{name}.scales', [groups, n]).half()
    if not torch.isfinite(scales).all():
        raise CheckpointError(f'{name}.scales: expected values that fp16 holds, got larger ones')
    return QuantizedWeight(
        qweight=transpose_awq(qweight),
        scales=scales.t().contiguous(),
        zeros=unpack_awq(qzeros).t().contiguous(),
        group_size=k // groups)


def read_w8a8(reader: CheckpointReader, name: str, n: int, k: int) -> Int8Weight:
    """Read compressed-tensors' int-quantized ``weight`` int8 [N, K], ``weight_scale`` [N, 1]."""
    zero_point = f'{name}.weight_zero_point'
    if zero_point in reader.names:
        raise UnsupportedModelError(f'{zero_point}: expected a symmetric int8 weight, without it')
    qweight = reader.raw(f'{name}.weight', [n, k], torch.int8)
    if (qweight == -128).any():
        raise CheckpointError(f'{name}.weight: expected -127 to 127, got -128')
    scales = reader.floats(f'{name}.weight_scale', [n, 1]).float().view(n)
    if (scales < 0).any():
        raise CheckpointError(f'{name}.weight_scale: expected values of 0 or more, '
                              f'got {float(scales.min()):g}')
    return Int8Weight(qweight, scales)


FORMATS = (
    WeightFormat('awq-gemm', ('qweight', 'qzeros', 'scales'), read_awq_gemm),
    WeightFormat('w8a8', ('weight', 'weight_scale'), read_w8a8),
    WeightFormat('plain', ('weight',), read_plain),
)


def detect(reader: CheckpointReader, name: str) -> WeightFormat:
    """
    Return the format of one layer.

    :raises CheckpointError: none of its tensors is there.
    :raises UnsupportedModelError: they belong to no format of the table.
    """
    for weight_format in FORMATS:
        if all(f'{name}.{suffix}' in reader.names for suffix in weight_format.suffixes):
            return weight_format
    found = sorted(n for n in reader.names if n.startswith(f'{name}.') and n != f'{name}.bias')
    if not found:
        raise CheckpointError(f'{reader.path}: expected a tensor {name}.weight or '
                              f'{name}.qweight, and there is neither')
    known = '; '.join(f"{f.name}: {', '.join(f.suffixes)}" for f in FORMATS)
    raise UnsupportedModelError(f"{name}: expected the tensors of one format ({known}), "
                                f"got {', '.join(found)}")


def unpack_awq(packed: Tensor) -> Tensor:
    """Unpack int32 [R, N/8] in AutoAWQ's order into uint8 [R, N]."""
    as_bytes = packed.contiguous().view(torch.uint8)
    return unpack_nibbles(as_bytes).view(-1, 8)[:, list(AWQ_NIBBLES)].view(packed.shape[0], -1)


def transpose_awq(packed: Tensor) -> Tensor:
    """
    Turn int32 [K, N/8] in AutoAWQ's order into uint8 [N, K/2], sequential along K.

    The same as unpacking, transposing and packing, but never unpacked as a whole: six times as
    fast, which decides how long a 7B model takes to load.
    """
    k, columns = packed.shape
    words = packed.t().contiguous().view(torch.uint8).view(columns, k, 4)
    channels = torch.empty(columns, 8, k // 2, dtype=torch.uint8)
    for byte in range(4):
        even, odd = words[:, 0::2, byte].contiguous(), words[:, 1::2, byte].contiguous()
        channels[:, AWQ_NIBBLES.index(2 * byte)] = (even & 15) | (odd << 4)
        channels[:, AWQ_NIBBLES.index(2 * byte + 1)] = (even >> 4) | (odd & 0xF0)
    return channels.view(-1, k // 2)


def pack_awq(q: Tensor) -> Tensor:
    """Pack uint8 [R, N] of values 0..15 into int32 [R, N/8], the inverse of :func:`unpack_awq`."""
    channels = [AWQ_NIBBLES.index(nibble) for nibble in range(8)]
    ordered = q.reshape(-1, 8)[:, channels].view(q.shape[0], -1)
    return pack_nibbles(ordered).view(torch.int32)
