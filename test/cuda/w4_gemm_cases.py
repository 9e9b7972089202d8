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
"""W4 GEMMs for CUDA against fp32 products; the planted faults use them too."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Optional

from backend import address, Backend, w4_input
import torch
from torch import Tensor
import torch.nn.functional as F

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.packing import (
    gate_up_order, natural_order, pack_codes, pack_cuda_tiles, QuantizedWeight, record_group,
    rotary_order)

# Of two, the second.
SLOT, POSITION, MAX_SEQ_LEN = 1, 5, 160


def random_weight(n: int, k: int, group_size: int) -> QuantizedWeight:
    """Return a weight whose product with normal activations has about the variance 1."""
    scales = (0.5 + torch.rand(n, k // group_size)) / (6.5 * k ** 0.5)
    zeros = torch.randint(0, 16, (n, k // group_size), dtype=torch.uint8)
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    return QuantizedWeight(pack_codes(codes, 4), scales.half(), zeros, group_size)


@dataclass
class Case:
    """
    A product, and what it should be.

    :param x: [m, k].
    :param bias: [n] in the order of the weight's rows, or None.
    """

    x: Tensor
    weight: QuantizedWeight
    bias: Optional[Tensor]

    @property
    def sums(self) -> Tensor:
        """Return the product in fp32 [m, n]."""
        return F.linear(self.x.float(), self.weight.dequantize(),
                        None if self.bias is None else self.bias.float())

    @property
    def tolerance(self) -> float:
        """Return what the sums may be off: each weight, and in bf16 each scale, is rounded."""
        squares = self.x.float().square() @ self.weight.dequantize().square().t()
        return 2 * torch.finfo(self.x.dtype).eps * squares.max().sqrt().item()

    def close(self, actual: Tensor, expected: Tensor, tolerance: float) -> None:
        """Compare, allowing for the rounding of the result too."""
        torch.testing.assert_close(actual.cpu().float(), expected, atol=tolerance,
                                   rtol=torch.finfo(self.x.dtype).eps)


def make_case(m: int, n: int, k: int, group_size: int, dtype: torch.dtype, bias: bool) -> Case:
    """Return a random product."""
    return Case(torch.randn(m, k).to(dtype), random_weight(n, k, group_size or k),
                torch.randn(n).to(dtype) if bias else None)


def run(kernels: Backend, case: Case, rows: Tensor, launcher: str, *arguments, **outputs) -> None:
    """Call a launcher of kernels.module."""
    x = kernels.put(case.x)
    records = kernels.put(pack_cuda_tiles(case.weight, rows))
    bias = None if case.bias is None else kernels.put(case.bias[rows[rows >= 0].long()])
    given = w4_input(kernels, x, records, case.weight.shape[0], record_group(case.weight), bias)
    getattr(kernels.module, launcher)(given, *arguments, gemv=False, **outputs)


def check_linear(kernels: Backend, m: int, n: int, k: int, group_size: int, dtype: torch.dtype,
                 bias: bool = False, residual: Optional[str] = None) -> None:
    """Compare y; the residual is None, 'beside' y or 'in place' of it."""
    case = make_case(m, n, k, group_size, dtype, bias)
    added = torch.randn(m, n).to(dtype)
    beside = kernels.put(added)
    y = beside if residual == 'in place' else kernels.empty(m, n, dtype=dtype)
    run(kernels, case, natural_order(n).rows, 'w4_linear',
        residual=address(beside if residual else None), y=address(y))
    case.close(y, case.sums + added.float() if residual else case.sums, case.tolerance)


def check_gate_up(kernels: Backend, m: int, n: int, k: int, group_size: int, dtype: torch.dtype,
                  bias: bool = False) -> None:
    """Compare silu(gate) * up."""
    case = make_case(m, n, k, group_size, dtype, bias)
    y = kernels.empty(m, n // 2, dtype=dtype)
    run(kernels, case, gate_up_order(n // 2).rows, 'w4_gate_up', y=address(y))
    # Neither factor's slope is more than 1.1 times the other factor.
    tolerance = case.tolerance * 2.2 * case.sums.abs().max().item()
    case.close(y, reference.silu_mul(case.sums), tolerance)


def check_qkv(kernels: Backend, m: int, heads: int, kv_heads: int, head_dim: int,
              dtype: torch.dtype, bias: bool = False) -> None:
    """Compare the queries and both slots of the cache, of which only the tokens' rows change."""
    case = make_case(m, (heads + 2 * kv_heads) * head_dim, 64, 64, dtype, bias)
    angles = torch.rand(MAX_SEQ_LEN, head_dim // 2) * 6.28
    cos, sin = kernels.put(angles.cos()), kernels.put(angles.sin())
    q = kernels.empty(m, heads, head_dim, dtype=dtype)
    k, v = (kernels.put(torch.zeros(2, kv_heads, MAX_SEQ_LEN, head_dim).to(dtype))
            for _ in range(2))
    state = kernels.state(SLOT, POSITION)
    run(kernels, case, rotary_order(heads + kv_heads, kv_heads, head_dim).rows, 'w4_qkv',
        kernels.module.KvCache(k=address(k), v=address(v), kv_heads=kv_heads,
                               max_seq_len=MAX_SEQ_LEN, head_dim=head_dim, state=address(state)),
        kernels.module.Rotary(cos=address(cos), sin=address(sin)), q=address(q), heads=heads)
    at = slice(POSITION, POSITION + m)
    parts = case.sums.unflatten(1, (-1, head_dim)).split((heads, kv_heads, kv_heads), dim=1)
    rotated = [reference.rotate(part, angles[at].cos(), angles[at].sin()) for part in parts[:2]]
    case.close(q, rotated[0], 2 * case.tolerance)
    for cache, tokens in ((k, rotated[1]), (v, parts[2])):
        expected = torch.zeros(cache.shape)
        expected[SLOT, :, at] = tokens.transpose(0, 1)
        case.close(cache, expected, 2 * case.tolerance)
