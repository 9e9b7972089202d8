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
The orders of 4-bit values in AutoAWQ's and llm-awq's tensors, each defined here and nowhere else.

N = output features, K = input features, R = any number of rows; nibble 0 = the lowest four bits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tinychat_ros.kernels.packing import pack_codes, unpack_codes

# AutoAWQ gemm: output channel 8c + j sits in this nibble of column c.
AWQ_NIBBLES = (0, 4, 1, 5, 2, 6, 3, 7)


def unpack_awq(packed: Tensor) -> Tensor:
    """Unpack int32 [R, N/8] in AutoAWQ's order into uint8 [R, N]."""
    as_bytes = packed.contiguous().view(torch.uint8)
    return unpack_codes(as_bytes, 4).view(-1, 8)[:, list(AWQ_NIBBLES)].view(packed.shape[0], -1)


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
        low, high = AWQ_NIBBLES.index(2 * byte), AWQ_NIBBLES.index(2 * byte + 1)
        channels[:, low], channels[:, high] = _join_nibbles(even, odd)
    return channels.view(-1, k // 2)


def pack_awq(q: Tensor) -> Tensor:
    """Pack uint8 [R, N] of values 0..15 into int32 [R, N/8], the inverse of :func:`unpack_awq`."""
    channels = [AWQ_NIBBLES.index(nibble) for nibble in range(8)]
    ordered = q.reshape(-1, 8)[:, channels].view(q.shape[0], -1)
    return pack_codes(ordered, 4).view(torch.int32)


def rows_of_gemv_fast(packed: Tensor) -> Tensor:
    """
    Turn int16 [N/4, K] in AutoAWQ's ``gemv_fast`` order into uint8 [N, K/2], sequential along K.

    Row n/4 holds, for each 64 inputs, 16 words of each of its 4 outputs: 8 for either half of 32
    inputs. Word w of such 8 holds the inputs w, 8 + w, 16 + w and 24 + w, the lowest bits first.
    """
    quarter, k = packed.shape
    words = packed.contiguous().view(torch.uint8).view(quarter, k // 64, 4, 2, 8, 2)
    words = words.transpose(1, 2)
    rows = torch.empty(quarter, 4, k // 64, 2, 4, 4, dtype=torch.uint8)
    for byte in range(2):
        even, odd = words[..., 0::2, byte].contiguous(), words[..., 1::2, byte].contiguous()
        rows[..., 2 * byte, :], rows[..., 2 * byte + 1, :] = _join_nibbles(even, odd)
    return rows.view(-1, k // 2)


def _join_nibbles(even: Tensor, odd: Tensor) -> tuple[Tensor, Tensor]:
    """Return the bytes of two neighbours along K: of their low nibbles, of their high ones."""
    return (even & 15) | (odd << 4), (even >> 4) | (odd & 0xF0)
