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

T = tokens, H = hidden size, Hq / Hkv = query / key-value heads, D = head size, I = MLP size. On a
GPU each op is one launch where a kernel takes its shapes. A position may be known to the device
only; such calls can be recorded as a CUDA graph.
"""

from __future__ import annotations

from typing import Optional, Sequence

import torch
from torch import Tensor
import torch.nn.functional as F

from tinychat_ros.errors import KernelError
from tinychat_ros.kernels import cpu, cuda, reference
from tinychat_ros.kernels.linear import Linear, why_reference
from tinychat_ros.kernels.operands import (
    AnyNorm, Candidates, HeadNorm, LayerCache, LayerNorm, Norm, on_device, on_host, RotaryTable,
    Scores, Start, StepState)
from tinychat_ros.kernels.packing import (
    CpuTiles, CudaTiles, GATE_UP, Int8Weight, NATURAL, ROTARY)

__all__ = ['AnyNorm', 'attention', 'candidates', 'embedding', 'HeadNorm', 'LayerCache',
           'LayerNorm', 'linear', 'linear_residual', 'lm_head', 'Norm', 'norm_gate_up', 'norm_up',
           'qkv_rope_append', 'RotaryTable', 'sample', 'Scores', 'Start', 'StepState']


def embedding(token_ids: Tensor, weight: Tensor, dtype: torch.dtype, scale: float = 1.0) -> Tensor:
    """Return the rows token_ids int32 or int64 [T] of weight [V, H], scaled, in a dtype."""
    if token_ids.dtype == torch.int32 and cuda.takes(weight) and weight.shape[1] % 8 == 0:
        return cuda.embedding(token_ids, weight, scale)
    if token_ids.dtype == torch.int32 and cpu.serves(dtype, weight.device):
        return cpu.embedding(token_ids, weight, scale)
    x = F.embedding(token_ids, weight).to(dtype)
    return x if scale == 1.0 else x * scale


def linear(x: Tensor, layer: Linear) -> Tensor:
    """
    Return x [T, K] times the transposed weight, plus the bias: [T, N] in the dtype of x.

    :raises KernelError: when K of x and of the weight differ.
    """
    return _linear(x, layer)


def qkv_rope_append(x: Tensor, norm: AnyNorm, qkv: Sequence[Linear],
                    rope: Optional[RotaryTable], cache: LayerCache, start: Start,
                    head_norm: Optional[HeadNorm] = None, clip: float = 0.0) -> Tensor:
    """
    Norm, QKV projection and rotary embedding; keys and values go to the cache at ``start``.

    :param x: [T, H].
    :param qkv: linears whose outputs, concatenated, are Hq query, Hkv key and Hkv value heads.
    :param rope: None leaves queries and keys as they are.
    :param clip: bounds what was projected from both sides; 0 leaves it.
    :returns: the rotated queries [T, Hq, D].
    """
    _check_room(x.shape[0], cache, start)
    kernel = _attention_kernel(x, cache)
    tiles = _tiles(qkv, ROTARY) if kernel else None
    fused = rope is not None and head_norm is None and not clip and cache.k_scale is None
    if tiles is not None and fused:
        state = on_device(start, x.device)
        return cuda.qkv(x, tiles, qkv[0].bias, norm, rope, cache, state)
    heads = _linears(x, qkv, norm).view(x.shape[0], -1, cache.k.shape[2])
    if clip:
        heads = cpu.clip(heads, clip) if cpu.takes(heads) else heads.clamp(-clip, clip)
    if kernel:
        return cuda.rope_append(heads, tiles is not None, rope, cache, on_device(start, x.device),
                                head_norm)
    if (cpu.takes(heads) and cpu.takes_cache(cache)
            and (head_norm is None or cpu.takes_norm(head_norm))):
        return cpu.rope_append(heads, rope, cache, on_device(start, x.device), head_norm)
    return _rope_append(heads, rope, cache, on_host(start), head_norm)


def attention(q: Tensor, cache: LayerCache, start: Start, scores: Scores) -> Tensor:
    """Attend causally from q [T, Hq, D] at ``start`` over the cache: [T, Hq * D]."""
    if _attention_kernel(q, cache):
        return cuda.attention(q, cache, on_device(start, q.device), scores).flatten(1)
    if cpu.takes(q) and cpu.takes_cache(cache):
        return cpu.attention(q, cache, on_device(start, q.device), scores).flatten(1)
    length = on_host(start) + q.shape[0]
    k, v = (values[:, :length] if scale is None
            else reference.dequantize_kv(values[:, :length], scale[:, :length])
            for values, scale in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)))
    return reference.attention(q, k, v, scores).flatten(1)


def linear_residual(x: Tensor, layer: Linear, residual: Tensor,
                    post_norm: Optional[AnyNorm] = None) -> Tensor:
    """Return residual [T, N] plus the linear of x [T, K], normalized where there is a norm."""
    tiles = _tiles([layer], NATURAL)
    if tiles is not None and cuda.takes(x) and post_norm is None:
        return cuda.linear(x, tiles, layer.bias, residual=residual)
    out = _norm(linear(x, layer), post_norm)
    return cpu.add(out, residual) if cpu.takes(x) else residual + out


def norm_gate_up(x: Tensor, norm: AnyNorm, gate_up: Sequence[Linear],
                 activation: str = 'silu') -> Tensor:
    """
    Norm, gate and up projections, activation(gate) * up: x [T, H] to [T, I].

    :param activation: a key of reference.ACTIVATIONS.
    """
    tiles = _tiles(gate_up, GATE_UP)
    if tiles is not None and cuda.takes(x):
        return cuda.gate_up(x, tiles, gate_up[0].bias, norm, activation)
    products = _linears(x, gate_up, norm)
    return (cpu if cpu.takes(products) else reference).gate_mul(products, activation)


def norm_up(x: Tensor, norm: AnyNorm, up: Linear, activation: str,
            scales: Optional[Tensor] = None) -> Tensor:
    """
    Norm, up projection, activation(up) / scales: x [T, H] to [T, I].

    :param scales: [I], which a quantizer has moved into the linear behind; or None.
    """
    tiles = _tiles([up], NATURAL)
    if tiles is not None and cuda.takes(x):
        return cuda.up(x, tiles, up.bias, norm, activation, scales)
    products = _linears(x, [up], norm)
    kernel = cpu.takes(products) and (scales is None or cpu.takes_weight(scales))
    return (cpu if kernel else reference).activate(products, activation, scales)


def lm_head(x: Tensor, norm: AnyNorm, head: Linear, softcap: float = 0.0) -> Tensor:
    """Apply the final norm and the LM head: x [T, H] to logits fp32 [T, V], softcapped."""
    logits = _linears(x, [head], norm).float()
    if not softcap:
        return logits
    return (cpu if cpu.takes(logits) else reference).softcap(logits, softcap)


def candidates(x: Tensor, norm: AnyNorm, head: Linear, softcap: float = 0.0) -> Candidates:
    """Apply the final norm and the LM head to x [1, H] for the sampler on the device."""
    tiles = _tiles([head], NATURAL)
    plain = isinstance(head.weight, (Tensor, Int8Weight)) and x.shape[1] % 16 == 0
    if cuda.takes(x) and head.bias is None and (tiles is not None or plain):
        return cuda.lm_head(x, tiles or head.weight, norm, softcap)
    logits = lm_head(x, norm, head, softcap)[0]
    return Candidates(logits, None) if cpu.takes(logits) else reference.candidates(logits)


def sample(state: Tensor, found: Candidates, params: Tensor, seen: Tensor, ring: Tensor) -> None:
    """See cuda.sample; on the CPU the ring may be any tensor."""
    if cpu.takes(found.logits):
        cpu.sample(state, found.logits, params, seen, ring)
    else:
        cuda.sample(state, found, params, seen, ring)


def _linear(x: Tensor, layer: Linear, norm: Optional[AnyNorm] = None) -> Tensor:
    """Return the linear of the normalized x."""
    _check_features(x, layer.weight.shape[1])
    tiles = _tiles([layer], None)
    if tiles is not None and cuda.takes(x):
        return cuda.linear(x, tiles, layer.bias, norm)
    x = _norm(x, norm)
    weight, w4a8 = layer.weight, _w4a8_kernel(layer)
    if layer.activation_group and not w4a8:
        cpu.refuse_recording('linear: activations in groups that are not the tiles\'')
        x = reference.fake_quantize_activations(x, layer.activation_group)
    if isinstance(weight, CpuTiles):
        # The kernels' activations are fp32: fp16 and bf16 widen exactly.
        out = (cpu.w4a8 if w4a8 else cpu.wna16)(x.float(), weight).to(x.dtype)
    elif isinstance(weight, CudaTiles):
        out = cuda.linear(x, weight)
    elif isinstance(weight, Int8Weight) and why_reference(weight) is None:
        out = cpu.w8a8(x.float(), weight).to(x.dtype)
    elif isinstance(weight, Tensor) and cpu.takes(x) and cpu.takes_weight(weight):
        out = cpu.dense(x, weight)
    else:
        cpu.refuse_recording(f'linear: {why_reference(weight)}')
        out = reference.linear(x, weight)
    return out if layer.bias is None else _add_bias(out, layer.bias)


def _add_bias(x: Tensor, bias: Tensor) -> Tensor:
    if cpu.takes(x) and x.shape[0] == 1:
        return cpu.add(x, bias)
    cpu.refuse_recording('linear: a bias of several tokens')
    return x + bias


def _linears(x: Tensor, layers: Sequence[Linear], norm: AnyNorm) -> Tensor:
    """Return the linears of the normalized x side by side."""
    if len(layers) == 1:
        return _linear(x, layers[0], norm)
    x = _norm(x, norm)
    cpu.refuse_recording('linears of several kinds side by side')
    return torch.cat([_linear(x, layer) for layer in layers], dim=-1)


def _norm(x: Tensor, norm: Optional[AnyNorm]) -> Tensor:
    if norm is None:
        return x
    if cuda.takes(x) and x.shape[1] % 8 == 0:
        return cuda.normalize(x, norm)
    if cpu.takes(x) and cpu.takes_norm(norm):
        return (cpu.layer_norm if isinstance(norm, LayerNorm) else cpu.rms_norm)(x, *norm)
    cpu.refuse_recording('norm: weights that are not of one dtype')
    return reference.normalize(x, norm)


def _tiles(layers: Sequence[Linear], order: Optional[str]) -> Optional[CudaTiles]:
    """Return the tiles of a linear that stands alone, in an order or in any; else None."""
    tiles = layers[0].weight
    if len(layers) > 1 or not isinstance(tiles, CudaTiles) or layers[0].activation_group:
        return None
    return tiles if order in (None, tiles.order) else None


def _w4a8_kernel(layer: Linear) -> bool:
    tiles = layer.weight
    return isinstance(tiles, CpuTiles) and layer.activation_group == tiles.block


def _attention_kernel(x: Tensor, cache: LayerCache) -> bool:
    return cache.workspace is not None and cuda.takes(x)


def _check_room(tokens: int, cache: LayerCache, start: Start) -> None:
    if isinstance(start, StepState) and start.start is None:
        return  # The kernels write nothing behind the end.
    end = on_host(start) + tokens
    if end > cache.k.shape[1]:
        raise KernelError(f'KV cache: expected room for {end} positions, got {cache.k.shape[1]}')


def _rope_append(heads: Tensor, rope: Optional[RotaryTable], cache: LayerCache, start: int,
                 head_norm: Optional[HeadNorm]) -> Tensor:
    kv_heads, end = cache.k.shape[0], start + heads.shape[0]
    if head_norm is not None:
        heads = reference.normalize_heads(heads, kv_heads, head_norm)
    q, k, v = heads.split([heads.shape[1] - 2 * kv_heads, kv_heads, kv_heads], dim=1)
    if rope is not None:
        q, k = (reference.rotate(x, rope.cos[start:end], rope.sin[start:end]) for x in (q, k))
    for new, values, scales in ((k, cache.k, cache.k_scale), (v, cache.v, cache.v_scale)):
        new = new.transpose(0, 1)
        if scales is not None:
            new, scales[:, start:end] = reference.quantize_kv(new)
        values[:, start:end] = new
    return q


def _check_features(x: Tensor, features: int) -> None:
    if x.dim() != 2 or x.shape[1] != features:
        raise KernelError(f'linear: expected x [T, {features}], got {list(x.shape)}')
