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
"""The attention of one token for CUDA gives what the reference gives."""

from attention_cases import (
    BF16, check_decode, decode, decode_workspace, filled_cache, FP16, HEAD_DIMS, scores_of, SLOT,
    TYPES)
import pytest
import torch

LENGTHS = (1, 15, 16, 17, 127, 128, 129, 300)
HEADS = ((1, 1), (3, 3), (4, 2), (7, 1), (9, 1), (17, 1), (32, 8), (71, 1))
# Less and more than a tile, than a split, and than there is.
WINDOWS = (1, 2, 15, 16, 17, 63, 64, 65, 145, 299, 300, 301)


@TYPES
@pytest.mark.parametrize('head_dim', HEAD_DIMS)
def test_any_head_dim_agrees_with_the_reference(one_order, head_dim, dtype, int8):
    cache = filled_cache(one_order, 1, 149, head_dim, dtype, int8, 140)
    check_decode(one_order, cache, 2, 140, dtype)


@pytest.mark.parametrize('int8', [False, True], ids=['fp16', 'int8'])
@pytest.mark.parametrize('length', LENGTHS)
def test_any_length_agrees_with_the_reference(kernels, length, int8):
    cache = filled_cache(kernels, 2, 301, 16, FP16, int8, length)
    check_decode(kernels, cache, 4, length, FP16)


@pytest.mark.parametrize('int8', [False, True], ids=['bf16', 'int8'])
@pytest.mark.parametrize('heads, kv_heads', HEADS)
def test_any_number_of_heads_agrees_with_the_reference(kernels, heads, kv_heads, int8):
    cache = filled_cache(kernels, kv_heads, 141, 8, BF16, int8, 130)
    check_decode(kernels, cache, heads, 130, BF16)


def test_a_cache_may_be_full(kernels):
    cache = filled_cache(kernels, 1, 139, 16, FP16, True, 139)
    check_decode(kernels, cache, 2, 139, FP16)


def test_a_position_behind_the_cache_reads_nothing_behind_it(kernels):
    cache = filled_cache(kernels, 1, 139, 16, FP16, False, 139)
    check_decode(kernels, cache, 2, 1000, FP16)


def test_large_scores_do_not_overflow(kernels):
    cache = filled_cache(kernels, 1, 200, 16, FP16, False, 190)
    check_decode(kernels, cache, 2, 190, FP16, sharpness=3000.0)


def test_equal_scores_give_the_mean(kernels):
    cache = filled_cache(kernels, 1, 200, 16, FP16, False, 190)
    out = check_decode(kernels, cache, 2, 190, FP16, sharpness=0.0)
    mean = cache.rows(190)[1].mean(1)
    torch.testing.assert_close(out.float(), mean.expand(2, -1), rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize('int8', [False, True], ids=['fp16', 'int8'])
@pytest.mark.parametrize('window', WINDOWS)
def test_a_window_agrees_with_the_reference(kernels, window, int8):
    cache = filled_cache(kernels, 2, 333, 16, FP16, int8, 300)
    for length in (300, 289, 1):
        check_decode(kernels, cache, 4, length, FP16, window=window)


@TYPES
@pytest.mark.parametrize('head_dim', HEAD_DIMS)
def test_all_rules_at_once_agree_with_the_reference(one_order, head_dim, dtype, int8):
    cache = filled_cache(one_order, 1, 149, head_dim, dtype, int8, 140)
    check_decode(one_order, cache, 2, 140, dtype, window=77, softcap=2.0, slopes=True)


@pytest.mark.parametrize('int8', [False, True], ids=['fp16', 'int8'])
def test_tiles_in_front_of_the_window_are_not_read(kernels, int8):
    cache = filled_cache(kernels, 1, 301, 24, FP16, int8, 300)
    for tensor in (cache.k, cache.v) if cache.k_scale is None else (cache.k_scale, cache.v_scale):
        tensor[SLOT, :, :192] = float('nan')
    q = kernels.put(torch.randn(2, 24).half())
    assert decode(kernels, cache, q, 300, scores_of(kernels, 2, 24, window=101)).isfinite().all()


@pytest.mark.parametrize('sharpness', [0.1, 30.0, 3000.0])
def test_a_softcap_bounds_scores_of_any_size(kernels, sharpness):
    cache = filled_cache(kernels, 1, 200, 16, BF16, False, 190)
    check_decode(kernels, cache, 2, 190, BF16, sharpness, softcap=50.0)


@pytest.mark.parametrize('heads, kv_heads', [(1, 1), (4, 4), (9, 3), (17, 1), (71, 1)])
def test_every_head_has_its_slope(kernels, heads, kv_heads):
    cache = filled_cache(kernels, kv_heads, 141, 8, FP16, False, 130)
    check_decode(kernels, cache, heads, 130, FP16, slopes=True)


def test_a_nan_in_the_keys_is_not_hidden(kernels):
    cache = filled_cache(kernels, 1, 200, 16, FP16, False, 190)
    cache.k[1, 0, 100, 3] = float('nan')
    q = kernels.put(torch.randn(1, 16).half())
    out = decode(kernels, cache, q, 190, scores_of(kernels, 1, 16))
    assert out.isnan().all() and out.view(torch.int16).ne(-1).all()


def test_a_workspace_serves_every_length_in_turn(kernels):
    cache = filled_cache(kernels, 1, 300, 16, FP16, False, 300)
    workspace = decode_workspace(kernels, 17, cache)
    for length in (300, 65, 1, 129, 300):
        check_decode(kernels, cache, 17, length, FP16, workspace=workspace)


def test_every_run_gives_the_same_bits(one_order):
    cache = filled_cache(one_order, 1, 300, 16, FP16, False, 300)
    workspace = decode_workspace(one_order, 2, cache)
    runs = []
    for order in range(5):
        one_order.shuffle(order)
        torch.manual_seed(0)
        runs.append(check_decode(one_order, cache, 2, 300, FP16, workspace=workspace))
    assert all(torch.equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize('head_dim', [4, 12, 264])
def test_a_head_dim_that_it_cannot_take_is_refused(one_order, head_dim):
    cache = filled_cache(one_order, 1, 16, head_dim, FP16, False, 1)
    with pytest.raises(ValueError, match=f'multiple of 8 up to 256, got {head_dim}'):
        check_decode(one_order, cache, 1, 1, FP16)
