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
"""A KV cache and rotary tables on the device, and attention against the reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Optional

from backend import address, Backend, dtype_index
import pytest
import torch
from torch import Tensor

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.operands import Scores

SLOTS = 2
SLOT = 1

FP16 = torch.float16
BF16 = torch.bfloat16
HEAD_DIMS = (8, 16, 24, 64, 80, 96, 128, 256)
TYPES = pytest.mark.parametrize('dtype, int8', [(FP16, False), (BF16, False), (FP16, True),
                                                (BF16, True)],
                                ids=['fp16', 'bf16', 'fp16-int8', 'bf16-int8'])


@dataclass(frozen=True)
class Cache:
    """
    A layer's cache of two slots. All but the first positions of slot 1 is NaN.

    :param k: [slots, kv_heads, max_seq_len, head_dim], in int8 the codes, likewise ``v``.
    :param k_scale: [slots, kv_heads, max_seq_len] with int8 codes, likewise ``v_scale``.
    """

    k: Tensor
    v: Tensor
    k_scale: Optional[Tensor]
    v_scale: Optional[Tensor]

    def launcher_argument(self, kernels: Backend, state: Tensor) -> Any:
        """Return the KvCache of launchers.h; the tensors must outlive it."""
        _, kv_heads, max_seq_len, head_dim = self.k.shape
        return kernels.module.KvCache(
            k=address(self.k), v=address(self.v), k_scale=address(self.k_scale),
            v_scale=address(self.v_scale), kv_heads=kv_heads, max_seq_len=max_seq_len,
            head_dim=head_dim, state=address(state))

    def rows(self, length: int) -> tuple[Tensor, Tensor]:
        """Return the first keys and values of slot 1, fp32 [kv_heads, length, head_dim]."""
        return (_dequantized(self.k, self.k_scale)[SLOT, :, :length],
                _dequantized(self.v, self.v_scale)[SLOT, :, :length])


@dataclass(frozen=True)
class RotaryTables:
    """
    Cosines and sines of random angles.

    :param cos: fp32 [max_seq_len, head_dim / 2], likewise ``sin``.
    """

    cos: Tensor
    sin: Tensor

    @staticmethod
    def random(kernels: Backend, max_seq_len: int, head_dim: int) -> RotaryTables:
        """Return tables on the device."""
        angles = torch.rand(max_seq_len, head_dim // 2) * 6.28
        return RotaryTables(kernels.put(angles.cos()), kernels.put(angles.sin()))

    def launcher_argument(self, kernels: Backend) -> Any:
        """Return the Rotary of launchers.h; the tensors must outlive it."""
        return kernels.module.Rotary(cos=address(self.cos), sin=address(self.sin))

    def rotate(self, x: Tensor, start: int) -> Tensor:
        """Return x [tokens, heads, head_dim] rotated as tokens from position ``start`` on are."""
        at = slice(start, start + x.shape[0])
        return reference.rotate(x, self.cos[at], self.sin[at])


def empty_cache(kernels: Backend, kv_heads: int, max_seq_len: int, head_dim: int,
                dtype: torch.dtype, int8: bool) -> Cache:
    """Return a cache that holds nothing but NaN; int8 codes are all -1."""
    shape = (SLOTS, kv_heads, max_seq_len)
    values = [kernels.empty(*shape, head_dim, dtype=torch.int8 if int8 else dtype)
              for _ in range(2)]
    scales = [kernels.empty(*shape, dtype=torch.float16) if int8 else None for _ in range(2)]
    return Cache(*values, *scales)


def filled_cache(kernels: Backend, kv_heads: int, max_seq_len: int, head_dim: int,
                 dtype: torch.dtype, int8: bool, length: int) -> Cache:
    """Return a cache whose slot 1 has ``length`` positions of random numbers."""
    cache = empty_cache(kernels, kv_heads, max_seq_len, head_dim, dtype, int8)
    for values, scales in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)):
        x = torch.randn(kv_heads, length, head_dim).to(dtype)
        if int8:
            x, scale = reference.quantize_kv(x)
            scales[SLOT, :, :length] = scale.to(scales.device)
        values[SLOT, :, :length] = x.to(values.device)
    return cache


def scores_of(kernels: Backend, heads: int, head_dim: int, window: int = 0, softcap: float = 0.0,
              slopes: bool = False) -> Scores:
    """Return what ops.attention is given; slopes are random."""
    return Scores(head_dim ** -0.5, window, softcap,
                  kernels.put(torch.rand(heads)) if slopes else None)


def check_decode(kernels: Backend, cache: Cache, heads: int, length: int, dtype: torch.dtype,
                 sharpness: float = 3.0, workspace: Optional[Tensor] = None,
                 **rules: Any) -> Tensor:
    """Compare the attention of a token at the last of ``length`` positions; return it."""
    head_dim = cache.k.shape[-1]
    q = kernels.put((torch.randn(heads, head_dim) * sharpness).to(dtype))
    scores = scores_of(kernels, heads, head_dim, **rules)
    out = decode(kernels, cache, q, length, scores, workspace)
    rows = cache.rows(min(length, cache.k.shape[2]))
    assert_close(out, reference.attention(q[None].float(), *rows, scores)[0])
    return out


def decode(kernels: Backend, cache: Cache, q: Tensor, length: int, scores: Scores,
           workspace: Optional[Tensor] = None) -> Tensor:
    """Return the attention of q [heads, head_dim] at the last of ``length`` positions."""
    out = kernels.empty(*q.shape, dtype=q.dtype)
    if workspace is None:
        workspace = decode_workspace(kernels, q.shape[0], cache)
    state = kernels.state(SLOT, length - 1)
    kernels.module.decode_attention(
        cache.launcher_argument(kernels, state), _launcher_scores(kernels, scores), q=address(q),
        out=address(out), workspace=address(workspace), heads=q.shape[0],
        dtype=dtype_index(q.dtype), stream=kernels.stream)
    return out


def decode_workspace(kernels: Backend, heads: int, cache: Cache) -> Tensor:
    """Return a workspace of zeros."""
    _, kv_heads, max_seq_len, head_dim = cache.k.shape
    size = kernels.module.decode_attention_workspace(
        heads=heads, kv_heads=kv_heads, head_dim=head_dim, max_seq_len=max_seq_len)
    return kernels.put(torch.zeros(size, dtype=torch.uint8))


def check_prefill(kernels: Backend, cache: Cache, heads: int, start: int, tokens: int,
                  dtype: torch.dtype, sharpness: float = 3.0, **rules: Any) -> Tensor:
    """Compare the attention of tokens that stand from position ``start`` on; return it."""
    head_dim = cache.k.shape[-1]
    q = kernels.put((torch.randn(tokens, heads, head_dim) * sharpness).to(dtype))
    scores = scores_of(kernels, heads, head_dim, **rules)
    out = prefill(kernels, cache, q, start, scores)
    assert_close(out, reference.attention(q.float(), *cache.rows(start + tokens), scores))
    return out


def prefill(kernels: Backend, cache: Cache, q: Tensor, start: int, scores: Scores) -> Tensor:
    """Return the attention of q [tokens, heads, head_dim] from position ``start`` on."""
    tokens, heads, _ = q.shape
    out = kernels.empty(*q.shape, dtype=q.dtype)
    state = kernels.state(SLOT, start)
    kernels.module.prefill_attention(
        cache.launcher_argument(kernels, state), _launcher_scores(kernels, scores), q=address(q),
        out=address(out), tokens=tokens, heads=heads, dtype=dtype_index(q.dtype),
        stream=kernels.stream)
    return out


def _launcher_scores(kernels: Backend, scores: Scores) -> Any:
    return kernels.module.Scores(scale=scores.scale, window=scores.window, softcap=scores.softcap,
                                 slopes=address(scores.slopes))


def assert_close(out: Tensor, expected: Tensor) -> None:
    """Compare with what fp32 gives; probabilities and results are rounded to their dtype."""
    eps = torch.finfo(out.dtype).eps
    torch.testing.assert_close(out.float(), expected, rtol=2 * eps, atol=2 * eps)


def _dequantized(values: Tensor, scales: Optional[Tensor]) -> Tensor:
    return values.float() if scales is None else reference.dequantize_kv(values, scales)
