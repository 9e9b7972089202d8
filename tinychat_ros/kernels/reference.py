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
Every op in plain torch: the oracle of the kernels, and the path for shapes they cannot take.

T = tokens, H = hidden size, Hq / Hkv = query / key-value heads, D = head size. All sums are fp32.
"""

from __future__ import annotations

from functools import partial
from typing import Optional

import torch
from torch import Tensor
import torch.nn.functional as F

from tinychat_ros.kernels.operands import AnyNorm, Candidates, HeadNorm, LayerNorm, Scores
from tinychat_ros.kernels.packing import Int8Weight, QuantizedWeight

# csrc/cpu/w4a8.h holds its twin, and says what it brings.
OTHERS_MEAN = 6

ACTIVATIONS = {'silu': F.silu, 'gelu': F.gelu, 'gelu_tanh': partial(F.gelu, approximate='tanh')}


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Normalize x [T, H] by its root mean square and scale it by weight [H]."""
    x32 = x.float()
    scale = torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + eps)
    return (x32 * scale).to(x.dtype) * weight


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor | None, eps: float) -> Tensor:
    """Bring x [T, H] to mean 0, variance 1; scale by weight [H], add bias [H]; round once."""
    bias32 = None if bias is None else bias.float()
    return F.layer_norm(x.float(), weight.shape, weight.float(), bias32, eps).to(x.dtype)


def normalize(x: Tensor, norm: AnyNorm) -> Tensor:
    """Apply a norm of either kind to x [T, H]."""
    return (layer_norm if isinstance(norm, LayerNorm) else rms_norm)(x, *norm)


def normalize_heads(heads: Tensor, kv_heads: int, norm: HeadNorm) -> Tensor:
    """Normalize the queries and keys of heads [T, Hq + 2 Hkv, D]."""
    q, k, v = heads.split([heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    return torch.cat([rms_norm(q, norm.q, norm.eps), rms_norm(k, norm.k, norm.eps), v], dim=1)


def linear(x: Tensor, weight: Tensor | QuantizedWeight | Int8Weight) -> Tensor:
    """Return x [T, K] times the transposed weight [N, K]: [T, N] in the dtype of x."""
    if isinstance(weight, Int8Weight):
        return _linear_int8(x, weight)
    if isinstance(weight, QuantizedWeight):
        weight = weight.dequantize(x.dtype)
    return F.linear(x, weight.to(x.dtype))


def quantize_per_token(x: Tensor) -> tuple[Tensor, Tensor]:
    """
    Quantize x [T, K] symmetrically, each token by its own scale: x = q * scale.

    A token whose scale would be subnormal, such as one of zeros, gets scale 0 and zeros. One that
    holds NaN or infinity gets zeros and a scale that makes NaN of every product.

    :returns: q int8 [T, K], rounded half to even, -127 to 127; scale fp32 [T], max |x| / 127.
    """
    x32 = x.float()
    scale = x32.abs().amax(-1) / 127
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 0, scale)
    usable = (scale > 0) & scale.isfinite()
    q = torch.where(usable[:, None], torch.round(x32 / scale[:, None]), 0)
    return q.to(torch.int8), scale


def fake_quantize_activations(x: Tensor, group: int) -> Tensor:
    """
    Round x [T, K] to int8 as :func:`quantize_per_token` does, each ``group`` values by one scale.

    Where the largest of a group leaves the others less than OTHERS_MEAN of its 127 steps on
    average, what rounding took away is rounded the same way and added. A linear of x in fp32 and a
    W4 weight then gives the sums of a W4A8 kernel.

    :returns: [T, K], dequantized, in the dtype of x.
    """
    (q, scale), (residual, its_scale) = quantize_groups(x, group)
    rounded = q * scale[:, None].double() + residual * its_scale[:, None].double()
    return rounded.to(x.dtype).view(x.shape)


def quantize_groups(x: Tensor, group: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """
    Quantize x [T, K] as :func:`fake_quantize_activations` says.

    :returns: q int8 [T * K / group, group] and scale fp32 [T * K / group] of the groups, then of
        what that took away, with scale 0 where it is not kept.
    """
    groups = x.reshape(-1, group).double()
    q, scale = quantize_per_token(groups)
    sums = q.abs().sum(-1)
    has_outlier = (sums > 0) & (sums < 127 + OTHERS_MEAN * group)
    residual, its_scale = quantize_per_token(groups - q * scale[:, None].double())
    return (q, scale), (residual, torch.where(has_outlier, its_scale, 0))


def _linear_int8(x: Tensor, weight: Int8Weight) -> Tensor:
    q, scale = quantize_per_token(x)
    # Every sum is an integer that fp64 holds, in whatever order a device adds.
    sums = q.double() @ weight.qweight.double().t()
    return (sums.float() * scale[:, None] * weight.scales).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """
    Apply the rotary embedding in the half-split layout of Hugging Face's Llama.

    :param x: [T, heads, D], any float dtype.
    :param cos: fp32 [T, D/2], likewise ``sin``.
    """
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos[:, None], sin[:, None]
    return torch.cat((first * cos - second * sin, second * cos + first * sin), -1).to(x.dtype)


def quantize_kv(x: Tensor) -> tuple[Tensor, Tensor]:
    """
    Quantize keys or values x [..., D] symmetrically, each row by its own scale: x = q * scale.

    A row whose scale rounds to zero gets zeros. One that holds NaN or infinity, or whose scale
    fp16 cannot hold, gets zeros and a scale that makes NaN of every product.

    :returns: q int8 [..., D], rounded half to even, -127 to 127; scale fp16 [...], max |x| / 127.
    """
    x32 = x.float()
    scale = (x32.abs().amax(-1) / 127).half()
    usable = (scale > 0) & scale.isfinite()
    q = torch.where(usable[..., None], torch.round(x32 / scale.float()[..., None]), 0)
    return q.clamp(-127, 127).to(torch.int8), scale


def attention(q: Tensor, k: Tensor, v: Tensor, scores: Optional[Scores] = None) -> Tensor:
    """
    Causal attention of the last T positions over all L of them.

    :param q: [T, Hq, D]; query head h reads key-value head h // (Hq / Hkv).
    :param k: [Hkv, L, D], likewise ``v``.
    :param scores: None scales by 1 / sqrt(D).
    :returns: [T, Hq, D] in the dtype of q.
    """
    tokens, heads, head_dim = q.shape
    kv_heads, length, _ = k.shape
    # [Hkv, queries per KV head * T, D]: one matrix product per KV head, which is read once.
    q32 = q.float().view(tokens, kv_heads, heads // kv_heads, head_dim).permute(1, 2, 0, 3)
    products = q32.reshape(kv_heads, -1, head_dim) @ k.float().transpose(1, 2)
    weights = _weights(products.view(heads, tokens, length), scores or Scores(head_dim ** -0.5))
    out = weights.view(kv_heads, -1, length) @ v.float()
    out = out.view(kv_heads, heads // kv_heads, tokens, head_dim).permute(2, 0, 1, 3)
    return out.reshape(tokens, heads, head_dim).to(q.dtype)


def _weights(products: Tensor, scores: Scores) -> Tensor:
    """Turn the products [Hq, T, L] of queries and keys into weights that add up to one."""
    _, tokens, length = products.shape
    products = products * scores.scale
    if scores.softcap:
        products = scores.softcap * torch.tanh(products / scores.softcap)
    positions = torch.arange(length, device=products.device)
    behind = positions[length - tokens:, None] - positions
    if scores.slopes is not None:
        products = products - scores.slopes[:, None, None] * behind
    hidden = behind < 0
    if scores.window:
        hidden = hidden | (behind >= scores.window)
    return torch.softmax(products.masked_fill(hidden, float('-inf')), dim=-1)


def dequantize_kv(q: Tensor, scale: Tensor) -> Tensor:
    """Return int8 keys or values [..., D] times their scales fp16 [...]: fp32."""
    return q * scale.float()[..., None]


def candidates(logits: Tensor) -> Candidates:
    """Return logits fp32 [V] with the best of each tile of 16."""
    tiles = F.pad(logits, (0, -len(logits) % 16), value=float('-inf')).view(-1, 16)
    best, index = tiles.max(-1)
    tokens = index.to(torch.int32) + torch.arange(0, tiles.numel(), 16, dtype=torch.int32,
                                                  device=logits.device)
    return Candidates(logits, torch.stack((best.view(torch.int32), tokens), dim=-1))


def gate_mul(gate_up: Tensor, activation: str) -> Tensor:
    """Return activation(gate) * up of gate_up [T, 2I], gate first: [T, I]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return ACTIVATIONS[activation](gate) * up


def activate(x: Tensor, activation: str, scales: Optional[Tensor]) -> Tensor:
    """Return activation(x) / scales of x [T, I], with scales [I] or None for ones."""
    activated = ACTIVATIONS[activation](x)
    return activated if scales is None else activated / scales


def softcap(logits: Tensor, cap: float) -> Tensor:
    """Return cap * tanh(logits / cap)."""
    return cap * torch.tanh(logits / cap)
