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
The format ``tinychat-w3``, our own: packed 3-bit weights, exactly as they lie in canonical form.

N = output features, K = input features, a multiple of 8, G = group size, even. A layer has the
tensors ``qweight3`` uint8 [N, 3K/8], where q[n, k] is in the bits [3k, 3k + 3) of row n, counted
from the lowest of its first byte, ``scales`` fp16 [N, K/G] and ``zeros`` uint8 [N, K/G], 0 to 7.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.scales import group_size_of
from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels.packing import QuantizedWeight


def shape_of_w3(reader: CheckpointReader, name: str) -> tuple[int, int, int]:
    """Return (N, K, G) of a layer."""
    n, row_bytes = reader.matrix_shape(f'{name}.qweight3')
    k = row_bytes * 8 // 3
    return n, k, group_size_of(reader, f'{name}.scales', 1, k)


def read_w3(reader: CheckpointReader, name: str, n: int, k: int) -> QuantizedWeight:
    """Read ``qweight3``, ``scales`` and ``zeros``."""
    if k % 8:
        raise CheckpointError(f'{name}.qweight3: expected K to be a multiple of 8, got {k}')
    group_size = group_size_of(reader, f'{name}.scales', 1, k)
    qweight = reader.raw(f'{name}.qweight3', [n, k * 3 // 8], torch.uint8)
    scales = reader.floats(f'{name}.scales', [n, k // group_size])
    if scales.dtype != torch.float16:
        raise CheckpointError(f'{name}.scales: expected torch.float16, got {scales.dtype}')
    zeros = reader.raw(f'{name}.zeros', [n, k // group_size], torch.uint8)
    if zeros.max() > 7:
        raise CheckpointError(f'{name}.zeros: expected 0 to 7, got {int(zeros.max())}')
    return QuantizedWeight(qweight, scales, zeros, group_size, bits=3)


def w3_tensors(name: str, weight: QuantizedWeight) -> dict[str, Tensor]:
    """Return the three tensors of one layer."""
    tensors = {'qweight3': weight.qweight, 'scales': weight.scales, 'zeros': weight.zeros}
    return {f'{name}.{suffix}': tensor.contiguous() for suffix, tensor in tensors.items()}
