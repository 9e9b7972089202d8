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
The CPU kernels on ARM processors, as far as they have bodies of their own there.

The tests need what Debian and Ubuntu call g++-aarch64-linux-gnu and qemu-user.
"""

from __future__ import annotations

import shutil
from typing import Callable, Iterator

from arm_processor import build_driver, COMPILER, EMULATOR, known_processors, Processor
from cpu_memory import between_halves, Cache, DTYPES, FP16, FP32, INT8, SLOT, state_of
from cpu_problems import (assert_matches_w4a8, assert_matches_wna16, fused_w4a8,
                          random_int8_weight, random_weight, random_x, with_outliers)
import pytest
from sampler_oracle import packed
import torch
from torch.testing import assert_close

from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.kernels import reference
from tinychat_ros.kernels.operands import HeadNorm, Scores
from tinychat_ros.kernels.packing import (CpuTiles, Int8Weight, INT8_MAX_K, pack_codes,
                                          pack_cpu_tiles, QuantizedWeight)

for needed in (COMPILER, EMULATOR):
    if shutil.which(needed) is None:
        pytest.skip(f'there is no {needed}', allow_module_level=True)

# The second has what a Jetson Orin has, the last what every 64-bit ARM processor has.
PROCESSORS = {'max': ['i8mm', 'dotprod', 'generic'], 'cortex-a76': ['dotprod', 'generic'],
              'cortex-a57': ['generic']}
TOKENS = (1, 2, 3, 4, 5, 6, 7, 8, 16, 23)
NAN, INFINITY = float('nan'), float('inf')

every_activation = pytest.mark.parametrize('kind, activation',
                                           list(enumerate(reference.ACTIVATIONS)))
every_kind = pytest.mark.parametrize('kind', [FP32, FP16, INT8], ids=['fp32', 'fp16', 'int8'])


@pytest.fixture(scope='module')
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Processor]]:
    """Return what starts a processor, or hands out the one of that name that runs."""
    driver, running = build_driver(tmp_path_factory.mktemp('arm')), {}

    def started(name: str) -> Processor:
        if name not in running:
            if name not in known_processors():
                pytest.skip(f'{EMULATOR} does not know {name}')
            running[name] = Processor(driver, name)
        return running[name]

    yield started
    for processor in running.values():
        processor.stop()


@pytest.fixture(params=PROCESSORS)
def arm(start: Callable[[str], Processor], request: pytest.FixtureRequest) -> Processor:
    """Return each processor in turn."""
    return start(request.param)


@pytest.fixture
def weakest(start: Callable[[str], Processor]) -> Processor:
    """Return a processor for what has one body on all of them."""
    return start('cortex-a57')


@pytest.mark.parametrize('name', PROCESSORS)
def test_the_instruction_sets_of_a_processor_are_found(name, start):
    assert start(name).isas == PROCESSORS[name]


# ---- quantized linears -------------------------------------------------------------------------


def w4a8(arm, x, tiles, num_threads=1):
    out = torch.full((len(x), tiles.n), -7.0)
    arm.run('w4a8_gemm', x, tiles.data, out, len(x), tiles.n, tiles.k, tiles.bits, tiles.block,
            num_threads=num_threads)
    return out


def check_w4a8(arm, weight, x):
    """Compare with the oracle, to the bit where the bits are the same everywhere."""
    tiles = pack_cpu_tiles(weight)
    out = w4a8(arm, x, tiles)
    if arm.isas[0] == 'generic' or tiles.bits == 3:
        assert_matches_w4a8(out, x, weight, tiles.block)
    else:
        assert_close(out, fused_w4a8(x, weight, tiles.block), rtol=0, atol=0, equal_nan=True)
    return out


@pytest.mark.parametrize('group', [32, 64, 128, 256])
@pytest.mark.parametrize('blocks', [1, 3])
@pytest.mark.parametrize(('n', 'bits'), [(8, 4), (16, 4), (24, 4), (40, 4), (24, 3)])
def test_w4a8_matches_the_oracle_and_m_does_not_change_a_bit(n, bits, blocks, group, arm):
    weight = random_weight(n, blocks * group, group, bits)
    x = with_outliers(random_x(max(TOKENS), blocks * group), group)
    out = check_w4a8(arm, weight, x)
    for m in TOKENS:
        assert torch.equal(w4a8(arm, x[:m], pack_cpu_tiles(weight)), out[:m]), f'{m} tokens'


@pytest.mark.parametrize('m', [1, 6])
@pytest.mark.parametrize('x', [-1.0, 1.0])
@pytest.mark.parametrize(('q', 'zero'), [(0, 15), (15, 0), (15, 15), (None, 15)])
def test_the_largest_products_of_w4a8_neither_saturate_nor_overflow(q, zero, x, m, arm):
    check_w4a8(arm, random_weight(24, 384, 128, q=q, zero=zero), torch.full((m, 384), x))


@pytest.mark.parametrize('scale', [2.0**-24, -2.0**-15, 0.0, 65504.0])
def test_w4a8_takes_subnormal_and_large_scales(scale, arm):
    check_w4a8(arm, random_weight(24, 160, 32, scale=scale), random_x(5, 160))


def test_w4a8_rounds_a_tie_to_even(arm):
    x = torch.full((1, 32), 50.0)
    x[0, :8] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5])
    identity = QuantizedWeight(pack_codes(torch.eye(32, dtype=torch.uint8), 4),
                               torch.ones(32, 1).half(), torch.zeros(32, 1, dtype=torch.uint8), 32)
    assert w4a8(arm, x, pack_cpu_tiles(identity))[0, :8].tolist() == [
        127, 0, 2, 2, 0, -2, -2, 126]


@pytest.mark.parametrize('value', [NAN, INFINITY, 0.0, 1e-40, -1e6], ids=str)
def test_one_value_of_w4a8_changes_its_token_alone(value, arm):
    weight, x = random_weight(24, 160, 32), random_x(8, 160)
    expected = check_w4a8(arm, weight, x)
    x[5, 64:96] = value
    out = w4a8(arm, x, pack_cpu_tiles(weight))
    assert out[5].isfinite().all() == (abs(value) < INFINITY)
    others = [0, 1, 2, 3, 4, 6, 7]
    assert torch.equal(out[others], expected[others])
    check_w4a8(arm, weight, x[[5]] if abs(value) < INFINITY else x[others])


def test_three_threads_give_the_bits_of_one(arm):
    weight, x = random_weight(520, 1024, 128), with_outliers(random_x(7, 1024), 128)
    tiles = pack_cpu_tiles(weight)
    assert torch.equal(w4a8(arm, x, tiles, num_threads=3), w4a8(arm, x, tiles))


def w8a8(arm, x, weight):
    (n, k), m = weight.shape, len(x)
    out = torch.full((m, n), -7.0)
    arm.run('w8a8_gemm', x, weight.qweight, weight.scales, out, m, n, k)
    return out


@pytest.mark.parametrize('k', [1, 7, 15, 16, 17, 31, 32, 33, 172])
@pytest.mark.parametrize('n', [1, 8, 17, 64])
def test_w8a8_gives_the_bits_of_the_oracle(n, k, arm):
    weight, x = random_int8_weight(n, k), random_x(max(TOKENS), k)
    expected = reference.linear(x, weight)
    for m in TOKENS:
        assert torch.equal(w8a8(arm, x[:m], weight), expected[:m]), f'{m} tokens'


@pytest.mark.parametrize('m', [1, 4])
@pytest.mark.parametrize('w', [-128, 127])
def test_the_largest_products_of_w8a8_neither_saturate_nor_overflow(w, m, arm):
    weight = Int8Weight(torch.full((3, INT8_MAX_K), w, dtype=torch.int8), torch.ones(3))
    out = w8a8(arm, torch.full((m, INT8_MAX_K), -127.0), weight)
    assert (out == float(torch.tensor(-127.0 * w * INT8_MAX_K))).all()


def test_a_token_of_w8a8_that_is_no_number_is_nan_alone(arm):
    weight, x = random_int8_weight(9, 100), random_x(5, 100)
    x[1], x[2, 77], x[3, 5] = 0, NAN, INFINITY
    assert_close(w8a8(arm, x, weight), reference.linear(x, weight), rtol=0, atol=0,
                 equal_nan=True)


def wna16(arm, x, tiles: CpuTiles):
    out = torch.full((len(x), tiles.n), -7.0)
    arm.run('wna16_gemm', x, tiles.data, out, len(x), tiles.n, tiles.k, tiles.bits, tiles.block)
    return out


@pytest.mark.parametrize('bits', [3, 4])
@pytest.mark.parametrize('group', [32, 64, 128, -1])
@pytest.mark.parametrize(('n', 'k'), [(8, 128), (16, 384), (24, 128), (40, 384)])
def test_wna16_matches_the_oracle_and_m_does_not_change_a_bit(n, k, group, bits, arm):
    weight, x = random_weight(n, k, group, bits), random_x(max(TOKENS), k)
    tiles = pack_cpu_tiles(weight)
    out = wna16(arm, x, tiles)
    assert_matches_wna16(out, x, weight)
    for m in TOKENS:
        assert torch.equal(wna16(arm, x[:m], tiles), out[:m]), f'{m} tokens'


@pytest.mark.parametrize('bits', [3, 4])
@pytest.mark.parametrize(('q', 'zero'), [(0, 7), (7, 0), (7, 7), (None, 7)])
@pytest.mark.parametrize('scale', [None, 2.0**-24, 65504.0])
def test_wna16_takes_extreme_codes_and_scales(scale, q, zero, bits, arm):
    weight, x = random_weight(24, 160, 32, bits, q=q, zero=zero, scale=scale), random_x(5, 160)
    assert_matches_wna16(wna16(arm, x + 1e4, pack_cpu_tiles(weight)), x + 1e4, weight)


@pytest.mark.parametrize('bits', [3, 4])
def test_a_row_of_zeros_gives_zeros_and_a_nan_stays_in_its_row(bits, arm):
    x = random_x(8, 128)
    x[2], x[5, 77] = 0, NAN
    out = wna16(arm, x, pack_cpu_tiles(random_weight(24, 128, bits=bits)))
    assert (out[2] == 0).all() and out[5].isnan().all()
    assert out[[0, 1, 3, 4, 6, 7]].isfinite().all()


# ---- the other ops -----------------------------------------------------------------------------


@pytest.mark.parametrize('dtype', DTYPES, ids=['fp16', 'bf16', 'fp32'])
@pytest.mark.parametrize('hidden', [1, 7, 16, 17, 100])
def test_norms_agree_with_the_reference(hidden, dtype, weakest):
    x, y = torch.randn(3, hidden) * 4 + 2, torch.empty(3, hidden)
    weight, bias = torch.randn(hidden).to(dtype), torch.randn(hidden).to(dtype)
    kind = DTYPES.index(dtype)
    weakest.run('rms_norm', x, weight, y, 3, hidden, 1e-5, kind)
    assert_close(y, reference.rms_norm(x, weight, 1e-5))
    for given in (bias, None):
        weakest.run('layer_norm', x, weight, given, y, 3, hidden, 1e-5, kind)
        expected = reference.layer_norm(x, weight, given, 1e-5)
        assert_close(y, expected, rtol=1e-5, atol=2e-5)


def test_every_half_is_widened_to_its_value(weakest):
    table, x = torch.arange(-2**15, 2**15, dtype=torch.int16), torch.empty(2**16)
    for kind, dtype in enumerate(DTYPES[:2]):
        halves = table.view(dtype)
        ids = torch.zeros(1, dtype=torch.int32)
        weakest.run('embedding', ids, halves, x, 1, 1, 2**16, kind, 1.0)
        assert_close(x, halves.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('size', [1, 7, 16, 17, 100])
def test_what_is_taken_element_by_element_agrees_with_the_reference(size, weakest):
    x, residual = torch.randn(2, size)
    expected = x + residual
    weakest.run('add', x, residual, size)
    assert torch.equal(x, expected)
    expected = x.clamp(-0.7, 0.7)
    weakest.run('clip', x, size, 0.7)
    assert torch.equal(x, expected)
    expected = reference.softcap(residual, 0.7)
    weakest.run('softcap', residual, size, 0.7)
    assert_close(residual, expected)


@every_activation
@pytest.mark.parametrize('size', [1, 7, 16, 17, 100, 4003])
def test_activations_agree_with_the_reference(size, kind, activation, weakest):
    gate_up, out = torch.randn(3, 2 * size) * 5, torch.empty(3, size)
    weakest.run('gate_mul', gate_up, out, 3, size, kind)
    assert_close(out, reference.gate_mul(gate_up, activation), rtol=1e-6, atol=1e-5)
    for scales in (None, (torch.rand(2 * size) + 0.5).half()):
        out = torch.empty_like(gate_up)
        weakest.run('activate', gate_up, scales, out, 3, 2 * size, kind, 0)
        assert_close(out, reference.activate(gate_up, activation, scales), rtol=1e-6, atol=2e-6)


def test_the_relative_error_of_exp_is_below_a_millionth(weakest):
    """Where x is far below 0, silu(x) is x * exp(x)."""
    gate = torch.linspace(-87.3, -17, 100003)
    out = torch.empty_like(gate)
    weakest.run('activate', gate, None, out, 1, len(gate), 0, 2)
    error = out.double() / (gate.double() / (1 + torch.exp(-gate.double()))) - 1
    assert error.abs().max() < 1e-6


@pytest.mark.parametrize('dtype', [*DTYPES, INT8], ids=['fp16', 'bf16', 'fp32', 'int8'])
@pytest.mark.parametrize('m', [1, 2, 3, 4, 7])
@pytest.mark.parametrize('n, k', [(1, 1), (3, 17), (9, 100), (33, 1100)])
def test_a_plain_linear_agrees_with_the_reference(n, k, m, dtype, weakest):
    x, out = torch.randn(m, k), torch.empty(m, n)
    scales = torch.rand(n) * 0.01 if dtype == INT8 else None
    weight = (torch.randint(-128, 128, (n, k), dtype=dtype) if dtype == INT8
              else (torch.randn(n, k) * k ** -0.5).to(dtype))
    kind = DTYPES.index(FP32 if dtype == INT8 else dtype)
    weakest.run('dense_gemm', x, weight, scales, out, m, n, k, kind)
    expected = x.double() @ weight.double().t() * (1 if scales is None else scales)
    assert_close(out, expected.float(), rtol=1e-5, atol=2e-5)


@every_kind
@pytest.mark.parametrize('head_dim', [2, 24, 64, 80, 256])
@pytest.mark.parametrize('tokens', [1, 17])
@pytest.mark.parametrize('heads, kv_heads', [(4, 2), (3, 3), (7, 1)])
@pytest.mark.parametrize('window, softcap, slope', [(0, 0.0, 0.0), (100, 0.0, 0.0),
                                                    (7, 5.0, 0.1)])
def test_attention_agrees_with_the_reference(window, softcap, slope, heads, kv_heads, tokens,
                                             head_dim, kind, weakest):
    cache, start = Cache(kv_heads, 280, head_dim, kind).fill(260), 260 - tokens
    q, out = torch.randn(tokens, heads, head_dim) * 3, torch.empty(tokens, heads, head_dim)
    scores = Scores(head_dim ** -0.5, window, softcap, torch.rand(heads) * slope)
    weakest.run('attention', q, *cache.arguments().values(), state_of(SLOT, start), out, tokens,
                heads, *scores)
    rows = (x.double() for x in cache.rows(260))
    expected = reference.attention(q.double(), *rows, scores).float()
    assert_close(out, expected, rtol=1e-5, atol=1e-5)


def rope_append(processor, qkv, cache, heads, start, tables, norm=(None, None, 2, 0.0)):
    """Return the rotated queries; the rest goes into the cache."""
    tokens, _, head_dim = qkv.shape
    q, arguments = torch.full((tokens, heads, head_dim), -7.0), cache.arguments()
    processor.run('rope_append', qkv, q, *arguments.values(), state_of(SLOT, start), *tables,
                  *norm, tokens, heads)
    return q


@every_kind
@pytest.mark.parametrize('head_dim', [2, 24, 64, 80, 256])
@pytest.mark.parametrize('scale', [1e-7, 1.0, 1e30], ids=str)
def test_what_is_appended_has_the_bits_of_the_reference(scale, head_dim, kind, weakest):
    """Of five tokens two do not fit."""
    angles = torch.rand(8, head_dim // 2) * 6.28
    tables, qkv = (angles.cos(), angles.sin()), torch.randn(5, 8, head_dim) * scale
    cache, expected = (Cache(2, 8, head_dim, kind) for _ in range(2))
    q = rope_append(weakest, qkv, cache, 4, 5, tables)
    rotated = reference.rotate(qkv[:3, :6], *(table[5:] for table in tables))
    expected.put(5, rotated[:, 4:], qkv[:3, 6:])
    assert torch.equal(q[:3], rotated[:, :4]) and (q[3:] == -7).all()
    for got, wanted in zip(cache.tensors(), expected.tensors()):
        assert torch.equal(got.view(torch.uint8), wanted.view(torch.uint8))


@every_kind
@pytest.mark.parametrize('head_dim', [2, 24, 80])
def test_heads_are_normalized_and_need_no_rotation(head_dim, kind, weakest):
    qkv, (q_norm, k_norm) = torch.randn(3, 8, head_dim), torch.rand(2, head_dim) + 0.5
    cache, expected = (Cache(2, 8, head_dim, kind) for _ in range(2))
    q = rope_append(weakest, qkv, cache, 4, 5, (None, None), (q_norm, k_norm, 2, 1e-5))
    normed = reference.normalize_heads(qkv, 2, HeadNorm(q_norm, k_norm, 1e-5))
    expected.put(5, normed[:, 4:6], normed[:, 6:])
    assert_close(q, normed[:, :4])
    for got, wanted in zip(cache.rows(8), expected.rows(8)):
        assert_close(got[:, 5:], wanted[:, 5:], rtol=1e-3, atol=0.03 if kind == INT8 else 1e-5)


def test_what_lies_between_two_halves_is_rounded_to_the_nearest_or_to_even(weakest):
    x = between_halves(256)
    qkv = torch.cat([torch.zeros(len(x), 2, 256), x], dim=1)
    cache, tables = Cache(1, len(x), 256, FP16), (torch.zeros(len(x), 128),) * 2
    rope_append(weakest, qkv, cache, 1, 0, tables)
    assert torch.equal(cache.v[SLOT, 0], x[:, 0].half())


@pytest.mark.parametrize('vocab', [1, 16, 512])
@pytest.mark.parametrize('best', [9.0, NAN], ids=str)
def test_greedy_takes_the_first_of_the_best_or_none(best, vocab, weakest):
    logits = torch.randn(vocab)
    logits[[vocab // 2, vocab - 1]] = best
    state, ring = state_of(position=70, step=5), torch.zeros(4, dtype=torch.int64)
    weakest.call('sample', logits, packed(SamplingParams()),
                 torch.zeros(vocab, dtype=torch.uint8), state, ring, 4, vocab)
    token = vocab // 2 if best == 9.0 else -1
    assert state.tolist() == [0, 71, token, 6]
    assert ring.tolist() == [0, 6 << 32 | token & 2**32 - 1, 0, 0]
