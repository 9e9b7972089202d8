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
"""W4 products for CUDA, of GEMV and GEMM, against the weights in fp32."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from attention_cases import empty_cache, RotaryTables, SLOT
from backend import address, Backend, w4_input
import torch
from torch import Tensor

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.packing import (
    gate_up_order, natural_order, pack_codes, pack_cuda_tiles, QuantizedWeight, record_group,
    rotary_order)

EPS = 1e-5

# No step of an activation is so many times as long as that of what it is of.
_STEP = 1.13


def random_weight(n: int, k: int, group_size: int) -> QuantizedWeight:
    """
    Return a W4 weight [n, k] in groups of group_size; -1 is one per row.

    Its product with normal activations has about the variance 1.
    """
    group_size = k if group_size == -1 else group_size
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8)
    zeros = torch.randint(0, 16, (n, k // group_size), dtype=torch.uint8)
    scales = (torch.rand(n, k // group_size) + 0.5) / (6.5 * k ** 0.5)
    return QuantizedWeight(pack_codes(codes, 4), scales.half(), zeros, group_size)


@dataclass
class Product:
    """
    A product of activations and a weight, and what it should be. All tensors are on the CPU.

    :param x: [m, k], after ``norm``, which is the weight [k] of an RMSNorm and its eps.
    :param bias: [n] in the order of the weight's rows.
    """

    gemv: bool
    x: Tensor
    weight: QuantizedWeight
    bias: Optional[Tensor] = None
    norm: Optional[tuple[Tensor, float]] = None

    @staticmethod
    def random(m: int, n: int, k: int, group_size: int, dtype: torch.dtype, gemv: bool,
               bias: bool = False, norm: bool = False) -> Product:
        """Return one that a GEMV or a GEMM is to compute."""
        # A GEMV takes zeros off sums of activations, which have to be large for that.
        x = torch.randn(m, k) + (0.5 if gemv else 0.0)
        return Product(gemv, x.to(dtype), random_weight(n, k, group_size),
                       torch.randn(n).to(dtype) if bias else None,
                       (torch.rand(k).to(dtype), EPS) if norm else None)

    @property
    def sums(self) -> Tensor:
        """Return the product [m, n] in fp32."""
        sums = self._operand().double() @ self.weight.dequantize().double().t()
        return (sums if self.bias is None else sums + self.bias.double()).float()

    @property
    def slack(self) -> Tensor:
        """Return how far off the sums [m, n] may be."""
        x, weight = self._operand().float(), self.weight.dequantize()
        eps = torch.finfo(self.x.dtype).eps
        if not self.gemv:  # It rounds each weight, and in bf16 each scale.
            squares = x.square() @ weight.square().t()
            return 2 * eps * squares.max().sqrt().expand_as(squares)
        # With a norm one of the activations may be rounded the other way.
        return x.abs() @ weight.abs().t() * eps / (128 if self.norm is None else 8)

    def run(self, kernels: Backend, rows: Tensor, launcher: str, *arguments: Any,
            following: bool = False, **outputs: Any) -> None:
        """Call a launcher of kernels.module; ``rows`` is the order of the records' rows."""
        x = kernels.put(self.x)
        records = kernels.put(pack_cuda_tiles(self.weight, rows))
        bias = None if self.bias is None else kernels.put(self.bias[rows[rows >= 0].long()])
        norm = None if self.norm is None else (kernels.put(self.norm[0]), self.norm[1])
        given = w4_input(kernels, x, records, self.weight.shape[0], record_group(self.weight),
                         bias, norm, records if following else None)
        getattr(kernels.module, launcher)(given, *arguments, **outputs)

    def _operand(self) -> Tensor:
        return self.x if self.norm is None else reference.rms_norm(self.x, *self.norm)


def assert_near(actual: Tensor, expected: Tensor, slack: Tensor) -> None:
    """Compare within a rounding of the dtype of ``actual`` and a slack of the same shape."""
    error = (actual.cpu().float() - expected).abs()
    limit = torch.finfo(actual.dtype).eps * expected.abs() + slack
    assert (error <= limit).all(), f'off by {(error / limit).nan_to_num(1e9).max():.3g} limits'


def check_linear(kernels: Backend, m: int, n: int, k: int, group_size: int, dtype: torch.dtype,
                 gemv: bool, bias: bool = False, norm: bool = False,
                 residual: Optional[str] = None, following: bool = False) -> None:
    """Compare y; the residual is None, 'beside' y or 'in place' of it."""
    product = Product.random(m, n, k, group_size, dtype, gemv, bias, norm)
    added = torch.randn(m, n).to(dtype)
    beside = kernels.put(added)
    y = beside if residual == 'in place' else kernels.empty(m, n, dtype=dtype)
    product.run(kernels, natural_order(n).rows, 'w4_linear', following=following, gemv=gemv,
                residual=address(beside if residual else None), y=address(y))
    expected = product.sums + added.float() if residual else product.sums
    assert_near(y, expected, product.slack)


def check_gate_up(kernels: Backend, m: int, n: int, k: int, group_size: int, dtype: torch.dtype,
                  gemv: bool, bias: bool = False, activation: str = 'silu') -> None:
    """Compare activation(gate) * up, of which there are n / 2 each."""
    product = Product.random(m, n, k, group_size, dtype, gemv, bias)
    y = kernels.empty(m, n // 2, dtype=dtype)
    product.run(kernels, gate_up_order(n // 2).rows, 'w4_gate_up', gemv=gemv,
                activation=activation, y=address(y))
    (gate, up), (of_gate, of_up) = (t.abs().chunk(2, -1) for t in (product.sums, product.slack))
    slack = _STEP * of_gate * (up + of_up) + gate * of_up
    assert_near(y, reference.gate_mul(product.sums, activation), slack)


def check_up(kernels: Backend, m: int, n: int, k: int, group_size: int, dtype: torch.dtype,
             gemv: bool, activation: str, bias: bool = False, scaled: bool = False) -> None:
    """Compare activation(up), divided by scales or not."""
    product = Product.random(m, n, k, group_size, dtype, gemv, bias)
    scales = kernels.put((torch.rand(n) + 0.5).to(dtype)) if scaled else None
    y = kernels.empty(m, n, dtype=dtype)
    product.run(kernels, natural_order(n).rows, 'w4_up', gemv=gemv,
                activation=activation, scales=address(scales),
                y=address(y))
    scales = scales.cpu().float() if scaled else None
    expected = reference.activate(product.sums, activation, scales)
    assert_near(y, expected, _STEP * product.slack / (scales.min() if scaled else 1.0))


def check_qkv(kernels: Backend, m: int, heads: int, kv_heads: int, head_dim: int, k: int,
              position: int, dtype: torch.dtype, gemv: bool, bias: bool = True) -> None:
    """Compare the queries and both slots of the cache, of which only the tokens' rows change."""
    product = Product.random(m, (heads + 2 * kv_heads) * head_dim, k, 32, dtype, gemv, bias)
    max_seq_len = max(9, position + m)
    rotary = RotaryTables.random(kernels, max_seq_len, head_dim)
    cache = empty_cache(kernels, kv_heads, max_seq_len, head_dim, dtype, int8=False)
    q = kernels.empty(m, heads, head_dim, dtype=dtype)
    state = kernels.state(SLOT, position)
    product.run(kernels, rotary_order(heads + kv_heads, kv_heads, head_dim).rows, 'w4_qkv',
                cache.launcher_argument(kernels, state), rotary.launcher_argument(kernels),
                gemv=gemv, q=address(q), heads=heads)
    sums = product.sums.unflatten(1, (-1, head_dim))
    rotated = rotary.rotate(sums[:, :heads + kv_heads].to(kernels.device), position).cpu()
    slack = 2 * product.slack.max()
    assert_near(q, rotated[:, :heads], slack)
    for values, expected in ((cache.k, rotated[:, heads:]), (cache.v, sums[:, heads + kv_heads:])):
        tokens = values[SLOT, :, position:position + m]
        assert_near(tokens, expected.transpose(0, 1), slack)
        tokens.fill_(float('nan'))
        assert values.isnan().all()
