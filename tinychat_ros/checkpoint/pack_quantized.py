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
The format ``pack-quantized`` of compressed-tensors with 4 bits, read into canonical form.

N = output features, K = input features, G = group size. Values are signed, stored plus 8.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.scales import group_size_of, to_fp16
from tinychat_ros.errors import CheckpointError, UnsupportedModelError
from tinychat_ros.kernels.packing import QuantizedWeight, unpack_codes

_SYMMETRIC_ZERO = 8


def shape_of_pack_quantized(reader: CheckpointReader, name: str) -> tuple[int, int, int]:
    """Return (N, K, G) of a layer."""
    n, k = reader.raw(f'{name}.weight_shape', [2], torch.int64).tolist()
    packed = reader.matrix_shape(f'{name}.weight_packed')
    if packed != (n, -(-k // 8)):
        raise CheckpointError(f'{name}.weight_packed: expected [N, K/8] for the weight_shape '
                              f'{[n, k]} in 4 bits, got {list(packed)}')
    return n, k, group_size_of(reader, f'{name}.weight_scale', 1, k)


def read_pack_quantized(reader: CheckpointReader, name: str, n: int, k: int) -> QuantizedWeight:
    """
    Read ``weight_packed`` int32 [N, K/8] and ``weight_scale`` [N, K/G].

    ``weight_zero_point`` int32 [N/8, K/G], packed along N, is absent when all are 8.

    :raises UnsupportedModelError: ``weight_g_idx`` says that the groups are not in order.
    """
    *shape, group_size = shape_of_pack_quantized(reader, name)
    if shape != [n, k]:
        raise CheckpointError(f'{name}.weight_shape: expected {[n, k]}, got {shape}')
    packed = reader.raw(f'{name}.weight_packed', [n, -(-k // 8)], torch.int32)
    scales = reader.floats(f'{name}.weight_scale', [n, k // group_size])
    if f'{name}.weight_g_idx' in reader.names:
        _check_order(f'{name}.weight_g_idx', reader, k, group_size)
    return QuantizedWeight(
        qweight=packed.view(torch.uint8)[:, :k // 2].contiguous(),
        scales=to_fp16(f'{name}.weight_scale', scales),
        zeros=_read_zeros(reader, f'{name}.weight_zero_point', n, k // group_size),
        group_size=group_size)


def _read_zeros(reader: CheckpointReader, name: str, n: int, groups: int) -> Tensor:
    if name not in reader.names:
        return torch.full((n, groups), _SYMMETRIC_ZERO, dtype=torch.uint8)
    packed = reader.raw(name, [-(-n // 8), groups], torch.int32)
    zeros = unpack_codes(packed.view(torch.uint8).view(-1, groups, 4), 4)
    return zeros.transpose(1, 2).flatten(0, 1)[:n].contiguous()


def _check_order(name: str, reader: CheckpointReader, k: int, group_size: int) -> None:
    g_idx = reader.raw(name, [k], torch.int32)
    wrong = (g_idx != torch.arange(k) // group_size).nonzero()
    if len(wrong):
        first = int(wrong[0])
        raise UnsupportedModelError(
            f'{name}: expected input k in group k // {group_size}, got input {first} in group '
            f'{int(g_idx[first])}')
