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
"""The CPU kernels of rotation and attention give what the reference gives."""

from __future__ import annotations

from cpu_memory import (
    between_halves, Cache, DTYPES, FP16, FP32, INT8, Result, rms_norm, SLOT, state_of)
import pytest
import torch
from torch.testing import assert_close

from tinychat_ros.kernels import extension, reference
from tinychat_ros.kernels.operands import Scores

kernels = extension.load()
if kernels is None:
    pytest.skip(extension.why_absent(), allow_module_level=True)

HEAD_DIMS = (2, 8, 16, 24, 64, 80, 96, 128, 256)
LENGTHS = (1, 15, 16, 17, 255, 256, 257, 600)
HEADS = ((1, 1), (3, 3), (4, 2), (7, 1))
WINDOWS = (1, 2, 5, 100, 255, 256, 257, 300, 1000)

every_isa = pytest.mark.parametrize('isa', kernels.cpu_isas())
every_kind = pytest.mark.parametrize('kind', [FP32, FP16, INT8], ids=['fp32', 'fp16', 'int8'])


def kv_cache(cache, state):
    """Return the CpuKvCache; the tensors must outlive it."""
    arguments = {name: value.data_ptr() if torch.is_tensor(value) else value or 0
                 for name, value in cache.arguments().items()}
    return kernels.CpuKvCache(**arguments, state=state.data_ptr())


def attention(q, cache, start, isa, num_threads=1, scores=None):
    tokens, heads, head_dim = q.shape
    state, out = state_of(SLOT, start), Result(*q.shape)
    scale, window, softcap, slopes = scores or Scores(head_dim ** -0.5)
    kernels.cpu_attention(
        kv_cache(cache, state), q=q.data_ptr(), out=out.address, tokens=tokens, heads=heads,
        scale=scale, window=window, softcap=softcap,
        slopes=0 if slopes is None else slopes.data_ptr(), num_threads=num_threads, isa=isa)
    return out.read()


def check(cache, heads, start, tokens, isa, sharpness=3.0, scores=None):
    """Compare with the reference; return the result."""
    q = torch.randn(tokens, heads, cache.k.shape[3]) * sharpness
    out = attention(q, cache, start, isa, scores=scores)
    expected = reference.attention(q.double(), *(
        x.double() for x in cache.rows(start + tokens)), scores).float()
    assert_close(out, expected, rtol=1e-5, atol=1e-5)
    return out


def all_of_scores(heads, head_dim, window=37):
    return Scores(0.8 * head_dim ** -0.5, window, 5.0, torch.rand(heads))


@every_isa
@every_kind
@pytest.mark.parametrize('head_dim', HEAD_DIMS)
def test_any_head_dim_agrees_with_the_reference(head_dim, kind, isa):
    cache = Cache(2, 280, head_dim, kind).fill(260)
    check(cache, 4, 259, 1, isa)
    check(cache, 4, 243, 17, isa)


@every_isa
@every_kind
@pytest.mark.parametrize('length', LENGTHS)
def test_any_length_agrees_with_the_reference(length, kind, isa):
    check(Cache(2, length + 3, 16, kind).fill(length), 6, length - 1, 1, isa)


@every_isa
@every_kind
@pytest.mark.parametrize('heads, kv_heads', HEADS)
def test_any_number_of_heads_agrees_with_the_reference(heads, kv_heads, kind, isa):
    cache = Cache(kv_heads, 90, 24, kind).fill(80)
    for tokens in (1, 2, 17, 70):
        for start in (0, 5):
            check(cache, heads, start, tokens, isa)


@every_isa
def test_a_prefill_of_several_blocks_agrees_with_the_reference(isa):
    check(Cache(1, 600, 16, FP16).fill(600), 3, 0, 600, isa)


@every_isa
def test_a_position_behind_the_cache_sees_all_of_it(isa):
    cache = Cache(1, 139, 16, FP16).fill(139)
    q = torch.randn(1, 2, 16)
    assert torch.equal(attention(q, cache, 1000, isa), attention(q, cache, 138, isa))


@every_isa
@every_kind
@pytest.mark.parametrize('window', WINDOWS)
def test_a_window_of_any_size_agrees_with_the_reference(window, kind, isa):
    cache = Cache(2, 600, 16, kind).fill(600)
    for heads in (2, 6):
        for start, tokens in ((0, 1), (0, 70), (254, 1), (255, 1), (256, 1), (500, 17), (599, 1)):
            check(cache, heads, start, tokens, isa, scores=Scores(0.25, window))


@every_isa
@every_kind
@pytest.mark.parametrize('heads', [1, 3, 8])
@pytest.mark.parametrize('window', WINDOWS[:-1])
def test_what_lies_behind_a_window_is_not_read(window, heads, kind, isa):
    """What is not a number at a position reaches the tokens that see it and no other."""
    cache = Cache(1, 600, 16, kind).fill(600)
    for values, scales in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)):
        (values if scales is None else scales)[SLOT, :, :250] = float('nan')
    scores = Scores(0.25, window)
    for start, tokens in ((250 + window - 1, 1), (249 + window - 1, 1), (240 + window, 25)):
        out = attention(torch.randn(tokens, heads, 16), cache, start, isa, scores=scores)
        sees = torch.arange(start, start + tokens) - window + 1 < 250
        assert torch.equal(out.isnan().any(-1).any(-1), sees)


@every_isa
@every_kind
@pytest.mark.parametrize('heads, kv_heads', [(1, 1), (2, 2), (4, 2), (71, 1)])
@pytest.mark.parametrize('head_dim', [2, 64, 80, 96, 128, 256])
def test_windows_caps_and_slopes_together_agree_with_the_reference(
        head_dim, heads, kv_heads, kind, isa):
    cache, scores = Cache(kv_heads, 60, head_dim, kind).fill(60), all_of_scores(heads, head_dim)
    check(cache, heads, 59, 1, isa, scores=scores)
    check(cache, heads, 47, 6, isa, scores=scores)


@every_isa
@every_kind
@pytest.mark.parametrize('length', LENGTHS)
def test_caps_and_slopes_agree_with_the_reference_at_any_length(length, kind, isa):
    cache = Cache(2, length + 3, 16, kind).fill(length)
    for scores in (Scores(0.25, softcap=2.0), Scores(0.25, slopes=torch.rand(6) * 0.1)):
        check(cache, 6, length - 1, 1, isa, scores=scores)
        check(cache, 6, 0, length, isa, scores=scores)


@every_isa
def test_a_position_behind_the_cache_sees_its_last_window(isa):
    cache, scores = Cache(1, 139, 16, FP16).fill(139), all_of_scores(2, 16)
    q = torch.randn(1, 2, 16)
    behind, last = (attention(q, cache, at, isa, scores=scores) for at in (1000, 138))
    assert torch.equal(behind, last)


@every_isa
def test_large_scores_do_not_overflow(isa):
    check(Cache(1, 300, 16, FP32).fill(290), 2, 289, 1, isa, sharpness=3000.0)


@every_isa
@every_kind
@pytest.mark.parametrize('heads', [1, 4])
def test_a_nan_reaches_no_token_before_it(heads, kind, isa):
    cache = Cache(1, 300, 16, kind).fill(280)
    out = check(cache, heads, 250, 30, isa)
    for values, scales in ((cache.k, cache.k_scale), (cache.v, cache.v_scale)):
        (values if scales is None else scales)[SLOT, :, 261] = float('nan')
        torch.manual_seed(1)
        q = torch.randn(30, heads, 16)
        out = attention(q, cache, 250, isa)
        assert out[:11].isfinite().all() and out[11:].isnan().any(-1).all()


@every_isa
def test_small_probabilities_have_a_small_relative_error(isa):
    """Keys are 0 and -1, values 0 and 1: what comes out is exp(-q) / (1 + exp(-q))."""
    cache = Cache(1, 2, 2, FP32)
    cache.put(0, k=torch.tensor([[[0.0, 0.0]], [[-1.0, 0.0]]]),
              v=torch.tensor([[[0.0, 0.0]], [[1.0, 1.0]]]))
    score = torch.linspace(0, 87, 4001)
    q = torch.stack([score, score], -1)[None] * 2 ** 0.5
    expected = 1 / (1 + torch.exp((q[0, :, 0] * torch.tensor(2 ** -0.5)).double()))
    error = attention(q, cache, 1, isa)[0].double() / expected[:, None] - 1
    assert error.abs().max() < 1e-6


@every_isa
@every_kind
def test_the_number_of_threads_does_not_change_a_bit(kind, isa):
    cache = Cache(8, 700, 128, kind).fill(700)
    for tokens, start in ((1, 699), (17, 601)):
        q = torch.randn(tokens, 32, 128)
        for scores in (None, all_of_scores(32, 128, window=500)):
            one, three = (attention(q, cache, start, isa, threads, scores) for threads in (1, 3))
            assert torch.equal(one, three)


def rope_append(qkv, cache, heads, start, tables, isa, num_threads=1, norm=None):
    tokens, _, head_dim = qkv.shape
    state, q = state_of(SLOT, start), Result(tokens, heads, head_dim)
    cos, sin = (0, 0) if tables is None else (table.data_ptr() for table in tables)
    norms = {} if norm is None else {'q_norm': norm[0].data_ptr(), 'k_norm': norm[1].data_ptr(),
                                     'norm_dtype': DTYPES.index(norm[0].dtype), 'eps': 1e-5}
    kernels.cpu_rope_append(
        kv_cache(cache, state), qkv=qkv.data_ptr(), q=q.address, cos=cos, sin=sin, **norms,
        tokens=tokens, heads=heads, num_threads=num_threads, isa=isa)
    return q.read()


def assert_same_bits(cache, expected):
    for got, wanted in zip(cache.tensors(), expected.tensors()):
        assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8))


def check_rope(head_dim, kind, isa, tokens=3, heads=4, kv_heads=2, start=5, scale=1.0, room=21,
               num_threads=1):
    """Compare with the reference to the bit; what does not fit may not be written."""
    angles = torch.rand(room, head_dim // 2) * 6.28
    tables = angles.cos(), angles.sin()
    qkv = torch.randn(tokens, heads + 2 * kv_heads, head_dim) * scale
    cache, expected = (Cache(kv_heads, room, head_dim, kind) for _ in range(2))
    q = rope_append(qkv, cache, heads, start, tables, isa, num_threads)
    fitting = min(tokens, room - start)
    rotated = reference.rotate(qkv[:fitting, :heads + kv_heads],
                               *(table[start:start + fitting] for table in tables))
    expected.put(start, rotated[:, heads:], qkv[:fitting, heads + kv_heads:])
    assert torch.equal(q[:fitting], rotated[:, :heads])
    assert (q[fitting:] == -7).all()
    assert_same_bits(cache, expected)


@every_isa
@every_kind
@pytest.mark.parametrize('head_dim', HEAD_DIMS)
def test_what_is_appended_has_the_bits_of_the_reference(head_dim, kind, isa):
    check_rope(head_dim, kind, isa)


@every_isa
@every_kind
@pytest.mark.parametrize('head_dim', HEAD_DIMS)
def test_without_a_rotation_queries_and_keys_are_as_they_were(head_dim, kind, isa):
    cache, expected = (Cache(2, 21, head_dim, kind) for _ in range(2))
    qkv = torch.randn(3, 8, head_dim)
    q = rope_append(qkv, cache, 4, 5, None, isa)
    expected.put(5, qkv[:, 4:6], qkv[:, 6:])
    assert torch.equal(q, qkv[:, :4])
    assert_same_bits(cache, expected)


@every_isa
@every_kind
@pytest.mark.parametrize('dtype', DTYPES, ids=['fp16', 'bf16', 'fp32'])
@pytest.mark.parametrize('head_dim', [2, 24, 64, 80, 256])
@pytest.mark.parametrize('rotated', [True, False], ids=['rotated', 'not rotated'])
def test_queries_and_keys_are_normalized_before_they_are_rotated(
        rotated, head_dim, dtype, kind, isa):
    angles, qkv = torch.rand(21, head_dim // 2) * 6.28, torch.randn(3, 8, head_dim)
    tables = (angles.cos(), angles.sin()) if rotated else None
    norm = [(torch.randn(head_dim) + 1).to(dtype) for _ in range(2)]
    normed = qkv.clone()
    for heads, weight in ((normed[:, :4], norm[0]), (normed[:, 4:6], norm[1])):
        heads.copy_(rms_norm(heads.reshape(-1, head_dim), weight, isa).view_as(heads))
    cache, expected = (Cache(2, 21, head_dim, kind) for _ in range(2))
    q = rope_append(qkv, cache, 4, 5, tables, isa, norm=norm)
    assert torch.equal(q, rope_append(normed, expected, 4, 5, tables, isa))
    assert_same_bits(cache, expected)


@every_isa
@every_kind
@pytest.mark.parametrize('heads, kv_heads', HEADS)
@pytest.mark.parametrize('tokens, start', [(1, 0), (1, 5), (17, 0), (70, 5)])
def test_any_heads_are_appended(heads, kv_heads, tokens, start, kind, isa):
    check_rope(16, kind, isa, tokens, heads, kv_heads, start, room=76)


@every_isa
@every_kind
@pytest.mark.parametrize('start', [19, 21, 40])
def test_tokens_that_do_not_fit_are_not_appended(start, kind, isa):
    check_rope(16, kind, isa, start=min(start, 21))


@every_isa
@every_kind
@pytest.mark.parametrize('scale', [1e-12, 1e-7, 3e-5, 1e-2, 1e4, 1e30], ids=str)
def test_rows_of_any_size_are_rounded_as_the_reference_does(scale, kind, isa):
    check_rope(80, kind, isa, scale=scale)


@every_isa
def test_what_lies_between_two_halves_is_rounded_to_the_nearest_or_to_even(isa):
    x = between_halves(256)
    qkv = torch.cat([torch.zeros(len(x), 2, 256), x], dim=1)
    cache, tables = Cache(1, len(x), 256, FP16), (torch.zeros(len(x), 128),) * 2
    rope_append(qkv, cache, 1, 0, tables, isa)
    assert torch.equal(cache.v[SLOT, 0], x[:, 0].half())


@every_isa
@pytest.mark.parametrize('value', [float('nan'), float('inf')], ids=str)
def test_a_value_that_is_no_number_makes_nan_of_its_row(value, isa):
    cache, qkv = Cache(1, 4, 16, INT8), torch.randn(1, 3, 16)
    qkv[0, 2, 9] = value
    tables = torch.ones(4, 8), torch.zeros(4, 8)
    rope_append(qkv, cache, 1, 2, tables, isa)
    k, v = cache.rows(3)
    assert k[0, 2].isfinite().all() and v[0, 2].isnan().all()


@every_isa
def test_three_threads_append_the_same(isa):
    check_rope(128, INT8, isa, tokens=70, heads=32, kv_heads=32, start=1, room=75, num_threads=3)


@pytest.mark.parametrize('argument, value, expected', [
    ('k', 0, 'an address, got null'),
    ('v', 0, 'an address, got null'),
    ('state', 0, 'an address, got null'),
    ('k_scale', 1, 'an address, got null'),
    ('v_scale', 1, 'null, got an address'),
    ('dtype', 1, '0 .fp16. or 2 .fp32., got 1'),
    ('kv_heads', 0, 'at least 1, got 0'),
    ('max_seq_len', 0, 'at least 1, got 0'),
    ('head_dim', 0, 'an even number, 2 to 256, got 0'),
    ('head_dim', 7, 'an even number, 2 to 256, got 7'),
    ('head_dim', 258, 'an even number, 2 to 256, got 258'),
])
def test_a_wrong_cache_is_refused_by_name(argument, value, expected):
    arguments = {'k': 1, 'v': 1, 'dtype': 2, 'kv_heads': 1, 'max_seq_len': 1, 'head_dim': 2,
                 'state': 1, argument: value}
    name = 'v_scale' if argument == 'k_scale' else argument
    with pytest.raises(ValueError, match=f'CpuKvCache: {name}: expected {expected}'):
        kernels.CpuKvCache(**arguments)


@pytest.mark.parametrize('heads', [0, 3])
def test_heads_that_do_not_share_evenly_are_refused(heads):
    state = state_of()
    cache = kv_cache(Cache(2, 4, 8, FP32), state)
    with pytest.raises(ValueError, match=f'heads: expected .* of kv_heads, 2, got {heads}'):
        kernels.cpu_attention(cache, q=1, out=1, tokens=1, heads=heads, scale=1.0, num_threads=1)


def test_a_negative_window_is_refused():
    state = state_of()
    cache = kv_cache(Cache(2, 4, 8, FP32), state)
    with pytest.raises(ValueError, match='cpu_attention: window: expected 0 or more, got -1'):
        kernels.cpu_attention(cache, q=1, out=1, tokens=1, heads=2, scale=1.0, window=-1,
                              num_threads=1)


@pytest.mark.parametrize('given, name', [('cos', 'sin'), ('sin', 'sin'), ('q_norm', 'k_norm')])
def test_one_table_or_weight_without_the_other_is_refused(given, name):
    state = state_of()
    cache = kv_cache(Cache(2, 4, 8, FP32), state)
    with pytest.raises(ValueError, match=f'cpu_rope_append: {name}: expected .*, got '):
        kernels.cpu_rope_append(cache, qkv=1, q=1, **{given: 1}, tokens=1, heads=2, num_threads=1)
