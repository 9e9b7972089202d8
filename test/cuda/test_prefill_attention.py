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
"""The attention of many tokens for CUDA gives what the reference gives."""

from attention_cases import (
    assert_close, BF16, check_prefill, filled_cache, FP16, HEAD_DIMS, prefill, scores_of, SLOT,
    TYPES)
import pytest
import torch

from tinychat_ros.kernels import reference

TOKENS = (1, 2, 15, 16, 17, 63, 64, 65, 130)
STARTS = (0, 5, 64)
# Less and more than the queries of a warp, than a tile, and than there is.
WINDOWS = (1, 2, 15, 16, 17, 63, 64, 65, 100, 199, 200, 201)


@TYPES
@pytest.mark.parametrize('head_dim', HEAD_DIMS)
def test_any_head_dim_agrees_with_the_reference(one_order, head_dim, dtype, int8):
    cache = filled_cache(one_order, 1, 79, head_dim, dtype, int8, 70)
    check_prefill(one_order, cache, 1, 53, 17, dtype)


@pytest.mark.parametrize('start', STARTS)
@pytest.mark.parametrize('tokens', TOKENS)
def test_any_number_of_tokens_agrees_with_the_reference(one_order, tokens, start):
    cache = filled_cache(one_order, 1, 201, 16, FP16, False, start + tokens)
    check_prefill(one_order, cache, 1, start, tokens, FP16)


@pytest.mark.parametrize('int8', [False, True], ids=['fp16', 'int8'])
def test_blocks_and_threads_may_run_in_any_order(kernels, int8):
    cache = filled_cache(kernels, 1, 101, 8, FP16, int8, 75)
    check_prefill(kernels, cache, 1, 5, 70, FP16)


@pytest.mark.parametrize('heads, kv_heads', [(3, 3), (4, 2), (7, 1), (9, 3), (71, 1)])
def test_any_number_of_heads_agrees_with_the_reference(kernels, heads, kv_heads):
    cache = filled_cache(kernels, kv_heads, 23, 8, BF16, True, 20)
    check_prefill(kernels, cache, heads, 3, 17, BF16)


def test_a_cache_may_be_full(kernels):
    cache = filled_cache(kernels, 1, 69, 16, FP16, True, 69)
    check_prefill(kernels, cache, 2, 52, 17, FP16)


@pytest.mark.parametrize('window', [0, 9])
def test_tokens_behind_the_cache_see_what_its_last_does(one_order, window):
    cache = filled_cache(one_order, 1, 139, 16, FP16, False, 139)
    scores = scores_of(one_order, 2, 16, window=window)
    q = one_order.put(torch.randn(70, 2, 16).half())
    out = prefill(one_order, cache, q, 138, scores)
    for token in (0, 1, 63, 64, 69):
        expected = reference.attention(q[token, None].float(), *cache.rows(139), scores)
        assert_close(out[token, None], expected)


def test_large_scores_do_not_overflow(kernels):
    cache = filled_cache(kernels, 1, 90, 16, FP16, False, 80)
    check_prefill(kernels, cache, 1, 63, 17, FP16, sharpness=3000.0)


@pytest.mark.parametrize('int8', [False, True], ids=['fp16', 'int8'])
@pytest.mark.parametrize('window', WINDOWS)
def test_a_window_agrees_with_the_reference(one_order, window, int8):
    cache = filled_cache(one_order, 1, 203, 16, FP16, int8, 200)
    for start, tokens in ((0, 70), (130, 70), (190, 3)):
        check_prefill(one_order, cache, 1, start, tokens, FP16, window=window)


@TYPES
@pytest.mark.parametrize('head_dim', HEAD_DIMS)
def test_all_rules_at_once_agree_with_the_reference(one_order, head_dim, dtype, int8):
    cache = filled_cache(one_order, 1, 149, head_dim, dtype, int8, 140)
    check_prefill(one_order, cache, 2, 123, 17, dtype, window=77, softcap=2.0, slopes=True)


@pytest.mark.parametrize('int8', [False, True], ids=['fp16', 'int8'])
def test_tiles_in_front_of_the_window_are_not_read(kernels, int8):
    cache = filled_cache(kernels, 1, 301, 24, FP16, int8, 300)
    for tensor in (cache.k, cache.v) if cache.k_scale is None else (cache.k_scale, cache.v_scale):
        tensor[SLOT, :, :192] = float('nan')
    q = kernels.put(torch.randn(5, 2, 24).half())
    assert prefill(kernels, cache, q, 295, scores_of(kernels, 2, 24, window=101)).isfinite().all()


@pytest.mark.parametrize('sharpness', [0.1, 30.0, 3000.0])
def test_a_softcap_bounds_scores_of_any_size(kernels, sharpness):
    cache = filled_cache(kernels, 1, 90, 16, BF16, False, 80)
    check_prefill(kernels, cache, 1, 63, 17, BF16, sharpness, softcap=50.0)


@pytest.mark.parametrize('heads, kv_heads', [(4, 4), (9, 3), (71, 1)])
def test_every_head_has_its_slope(one_order, heads, kv_heads):
    cache = filled_cache(one_order, kv_heads, 90, 8, FP16, False, 80)
    check_prefill(one_order, cache, heads, 63, 17, FP16, slopes=True)


def test_every_run_gives_the_same_bits(one_order):
    cache = filled_cache(one_order, 1, 100, 16, FP16, False, 90)
    runs = []
    for order in range(3):
        one_order.shuffle(order)
        torch.manual_seed(0)
        runs.append(check_prefill(one_order, cache, 2, 20, 70, FP16))
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_a_negative_window_is_refused(one_order):
    cache = filled_cache(one_order, 1, 16, 8, FP16, False, 2)
    with pytest.raises(ValueError, match='Scores: window: expected 0 or more, got -1'):
        check_prefill(one_order, cache, 1, 0, 2, FP16, window=-1)


@pytest.mark.parametrize('head_dim', [4, 12, 264])
def test_a_head_dim_that_it_cannot_take_is_refused(one_order, head_dim):
    cache = filled_cache(one_order, 1, 16, head_dim, FP16, False, 1)
    with pytest.raises(ValueError, match=f'multiple of 8 up to 256, got {head_dim}'):
        check_prefill(one_order, cache, 1, 0, 1, FP16)
