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
"""Rotation and the append to the KV cache for CUDA give what the reference gives, to the bit."""

from attention_cases import (
    BF16, empty_cache, FP16, HEAD_DIMS, RotaryTables, SLOT, TYPES)
from backend import address, dtype_index
import pytest
import torch

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.operands import HeadNorm
from tinychat_ros.kernels.packing import rotary_order

MAX_SEQ_LEN = 21


def rope_append(kernels, qkv, cache, heads, start, permuted=False, norm=None, rotates=True):
    """Return q and the tables."""
    tokens, _, head_dim = qkv.shape
    rotary = RotaryTables.random(kernels, MAX_SEQ_LEN, head_dim)
    q = kernels.empty(tokens, heads, head_dim, dtype=qkv.dtype)
    state, module = kernels.state(SLOT, start), kernels.module
    module.rope_append(
        cache.launcher_argument(kernels, state),
        module.HeadNorm(q=address(norm.q), k=address(norm.k), eps=norm.eps) if norm
        else module.HeadNorm(),
        rotary.launcher_argument(kernels) if rotates else module.Rotary(),
        qkv=address(qkv), permuted=permuted, q=address(q), tokens=tokens, heads=heads,
        dtype=dtype_index(qkv.dtype), stream=kernels.stream)
    return q, rotary


def in_tiles(qkv, kv_heads):
    """Return [T, heads, D] with the dimensions of queries and keys as a W4 product has them."""
    tokens, heads, head_dim = qkv.shape
    rows = rotary_order(heads - kv_heads, kv_heads, head_dim).rows.long().to(qkv.device)
    return qkv.flatten(1)[:, rows].view(tokens, heads, head_dim)


def check(kernels, head_dim, dtype, int8, tokens=3, heads=4, kv_heads=2, start=5, scale=1.0,
          permuted=False, rotates=True):
    qkv = kernels.put((torch.randn(tokens, heads + 2 * kv_heads, head_dim) * scale).to(dtype))
    cache = empty_cache(kernels, kv_heads, MAX_SEQ_LEN, head_dim, dtype, int8)
    expected = empty_cache(kernels, kv_heads, MAX_SEQ_LEN, head_dim, dtype, int8)
    given = in_tiles(qkv, kv_heads) if permuted else qkv
    q, rotary = rope_append(kernels, given, cache, heads, start, permuted, rotates=rotates)
    fitting = min(tokens, MAX_SEQ_LEN - start)
    rotated = qkv[:fitting, :heads + kv_heads]
    if rotates:
        rotated = rotary.rotate(rotated, start)
    k, v = rotated[:, heads:], qkv[:fitting, heads + kv_heads:]
    assert torch.equal(q[:fitting], rotated[:, :heads])
    assert q[fitting:].isnan().all()
    for x, values, scales in ((k, expected.k, expected.k_scale),
                              (v, expected.v, expected.v_scale)):
        x = x.transpose(0, 1)
        if int8:
            x, scales[SLOT, :, start:start + fitting] = reference.quantize_kv(x)
        values[SLOT, :, start:start + fitting] = x
    for got, wanted in zip(vars(cache).values(), vars(expected).values()):
        assert got is wanted or torch.equal(got.view(torch.uint8), wanted.view(torch.uint8))


@TYPES
@pytest.mark.parametrize('head_dim', HEAD_DIMS)
def test_it_agrees_with_the_reference(kernels, head_dim, dtype, int8):
    check(kernels, head_dim, dtype, int8)


@pytest.mark.parametrize('head_dim', [16, 80, 128])
@pytest.mark.parametrize('int8', [False, True], ids=['fp16', 'int8'])
def test_heads_in_the_order_of_tiles_are_put_in_their_own(kernels, head_dim, int8):
    check(kernels, head_dim, FP16, int8, permuted=True)


@pytest.mark.parametrize('head_dim', [8, 80, 128])
@pytest.mark.parametrize('int8', [False, True], ids=['fp16', 'int8'])
@pytest.mark.parametrize('permuted', [False, True], ids=['', 'permuted'])
def test_without_angles_it_rotates_nothing(kernels, permuted, head_dim, int8):
    if head_dim % 16 == 0 or not permuted:
        check(kernels, head_dim, FP16, int8, permuted=permuted, rotates=False)


@pytest.mark.parametrize('head_dim', HEAD_DIMS)
@pytest.mark.parametrize('dtype', [FP16, BF16], ids=str)
@pytest.mark.parametrize('rotates', [False, True], ids=['', 'rotated'])
def test_queries_and_keys_are_normalized_first(kernels, rotates, dtype, head_dim):
    qkv = kernels.put(torch.randn(3, 8, head_dim).to(dtype))
    cache = empty_cache(kernels, 2, MAX_SEQ_LEN, head_dim, dtype, int8=False)
    norm = HeadNorm(*(kernels.put(torch.randn(head_dim).to(dtype)) for _ in range(2)), 1e-5)
    q, rotary = rope_append(kernels, qkv, cache, 4, 5, norm=norm, rotates=rotates)
    expected = reference.normalize_heads(qkv, 2, norm)
    if rotates:
        expected = torch.cat([rotary.rotate(expected[:, :6], 5), expected[:, 6:]], dim=1)
    k, v = (x[SLOT, :, 5:8].transpose(0, 1) for x in (cache.k, cache.v))
    eps = 8 * torch.finfo(dtype).eps  # Sums of squares in another order round another way.
    torch.testing.assert_close(torch.cat([q, k, v], dim=1), expected, rtol=eps, atol=eps)


@pytest.mark.parametrize('heads, kv_heads', [(1, 1), (7, 1), (3, 3)])
def test_any_number_of_heads_agrees_with_the_reference(kernels, heads, kv_heads):
    check(kernels, 16, FP16, True, heads=heads, kv_heads=kv_heads)


@pytest.mark.parametrize('int8', [False, True], ids=['fp16', 'int8'])
def test_what_does_not_fit_in_the_cache_is_not_written(kernels, int8):
    check(kernels, 16, FP16, int8, tokens=4, start=MAX_SEQ_LEN - 2)


@pytest.mark.parametrize('scale', [0.0, 1e-6, 1e-5, 1e-3, 1e3])
def test_scales_of_any_size_give_the_codes_of_the_reference(kernels, scale):
    check(kernels, 16, BF16, True, scale=scale)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e30])
def test_a_row_that_cannot_be_quantized_is_nan(kernels, value):
    qkv = torch.randn(1, 3, 16).to(BF16)
    qkv[0, 2, 7] = value
    cache = empty_cache(kernels, 1, MAX_SEQ_LEN, 16, BF16, int8=True)
    rope_append(kernels, kernels.put(qkv), cache, 1, 0)
    codes, scale = reference.quantize_kv(kernels.put(qkv[0, 2]))
    assert torch.equal(cache.v[SLOT, 0, 0], codes) and not codes.any()
    assert not scale.isfinite() and not cache.v_scale[SLOT, 0, 0].isfinite()


@pytest.mark.parametrize('head_dim', [12, 264])
def test_a_head_dim_that_it_cannot_take_is_refused(one_order, head_dim):
    with pytest.raises(ValueError, match=f'multiple of 8 up to 256, got {head_dim}'):
        check(one_order, head_dim, FP16, False)
