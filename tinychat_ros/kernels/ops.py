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
The fused ops that model files are written in: checks, then the kernel or the reference.

T = tokens, H = hidden size, Hq / Hkv = query / key-value heads, D = head size, I = MLP size. The
cut between the ops is where a GPU kernel will end, so that each can be replaced by one launch.
"""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
from torch import Tensor

from tinychat_ros.errors import KernelError
from tinychat_ros.kernels import extension, reference
from tinychat_ros.kernels.linear import Linear, why_reference
from tinychat_ros.kernels.packing import CpuTiles, Int8Weight


class Norm(NamedTuple):
    """The RMSNorm in front of a linear: weight [H] and epsilon."""

    weight: Tensor
    eps: float


class LayerCache(NamedTuple):
    """One layer's keys and values of one slot, each [Hkv, max_seq_len, D]."""

    k: Tensor
    v: Tensor


class RotaryTable(NamedTuple):
    """Cosines and sines of every position, each fp32 [max_seq_len, D/2]."""

    cos: Tensor
    sin: Tensor


def embedding(token_ids: Tensor, weight: Tensor) -> Tensor:
    """Return the rows token_ids int64 [T] of weight [V, H]: [T, H]."""
    return weight[token_ids]


def linear(x: Tensor, layer: Linear) -> Tensor:
    """
    Return x [T, K] times the transposed weight, plus the bias: [T, N] in the dtype of x.

    :raises KernelError: when K of x and of the weight differ.
    """
    _check_features(x, layer.weight.shape[1])
    if layer.activation_group:
        x = reference.fake_quantize_activations(x, layer.activation_group)
    if isinstance(layer.weight, CpuTiles):
        out = _wna16_cpu(x, layer.weight)
    elif isinstance(layer.weight, Int8Weight) and why_reference(layer.weight) is None:
        out = _w8a8_cpu(x, layer.weight)
    else:
        out = reference.linear(x, layer.weight)
    return out if layer.bias is None else out + layer.bias


def qkv_rope_append(x: Tensor, norm: Norm, qkv: Sequence[Linear], rope: RotaryTable,
                    cache: LayerCache, start: int) -> Tensor:
    """
    Norm, QKV projection and rotary embedding; keys and values go to the cache at ``start``.

    :param x: [T, H].
    :param qkv: linears whose outputs, concatenated, are Hq query, Hkv key and Hkv value heads.
    :returns: the rotated queries [T, Hq, D].
    """
    tokens, kv_heads, head_dim = x.shape[0], cache.k.shape[0], cache.k.shape[2]
    end = start + tokens
    if end > cache.k.shape[1]:
        raise KernelError(f'KV cache: expected room for {end} positions, got {cache.k.shape[1]}')
    heads = _linears(reference.rms_norm(x, *norm), qkv).view(tokens, -1, head_dim)
    q, k, v = heads.split([heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    cos, sin = rope.cos[start:end], rope.sin[start:end]
    cache.k[:, start:end] = reference.rotate(k, cos, sin).transpose(0, 1)
    cache.v[:, start:end] = v.transpose(0, 1)
    return reference.rotate(q, cos, sin)


def attention(q: Tensor, cache: LayerCache, length: int) -> Tensor:
    """Attend causally from q [T, Hq, D], the last T of ``length`` positions: [T, Hq * D]."""
    out = reference.attention(q, cache.k[:, :length], cache.v[:, :length])
    return out.flatten(1)


def linear_residual(x: Tensor, layer: Linear, residual: Tensor) -> Tensor:
    """Return residual [T, N] plus the linear of x [T, K]."""
    return residual + linear(x, layer)


def norm_gate_up(x: Tensor, norm: Norm, gate_up: Sequence[Linear]) -> Tensor:
    """Norm, gate and up projections, silu(gate) * up: x [T, H] to [T, I]."""
    return reference.silu_mul(_linears(reference.rms_norm(x, *norm), gate_up))


def lm_head(x: Tensor, norm: Norm, head: Linear) -> Tensor:
    """Apply the final norm and the LM head: x [T, H] to logits fp32 [T, V]."""
    return linear(reference.rms_norm(x, *norm), head).float()


def _linears(x: Tensor, layers: Sequence[Linear]) -> Tensor:
    outputs = [linear(x, layer) for layer in layers]
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs, dim=-1)


def _wna16_cpu(x: Tensor, tiles: CpuTiles) -> Tensor:
    # The kernel's activations are fp32: fp16 and bf16 widen exactly.
    x32 = x.float().contiguous()
    out = torch.empty(x.shape[0], tiles.n, dtype=torch.float32)
    extension.load().wna16_gemm(
        x32.data_ptr(), tiles.data.data_ptr(), out.data_ptr(),
        x.shape[0], tiles.n, tiles.k, tiles.bits, tiles.block, torch.get_num_threads())
    return out.to(x.dtype)


def _w8a8_cpu(x: Tensor, weight: Int8Weight) -> Tensor:
    n, k = weight.shape
    x32 = x.float().contiguous()
    qweight, scales = weight.qweight.contiguous(), weight.scales.contiguous()
    out = torch.empty(x.shape[0], n, dtype=torch.float32)
    extension.load().w8a8_gemm(
        x32.data_ptr(), qweight.data_ptr(), scales.data_ptr(), out.data_ptr(),
        x.shape[0], n, k, torch.get_num_threads())
    return out.to(x.dtype)


def _check_features(x: Tensor, features: int) -> None:
    if x.dim() != 2 or x.shape[1] != features:
        raise KernelError(f'linear: expected x [T, {features}], got {list(x.shape)}')
