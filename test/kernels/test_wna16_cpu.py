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
"""The compiled WNA16 kernels for the CPU, against the dequantized weight in fp64."""

import os
import signal
from threading import Thread
import time

from cpu_problems import assert_matches_wna16, random_weight, random_x
import pytest
import torch

from tinychat_ros.kernels import extension
from tinychat_ros.kernels.packing import pack_cpu_tiles

kernels = extension.load()
if kernels is None:
    pytest.skip(extension.why_absent(), allow_module_level=True)

ROWS_OF_X = (1, 2, 3, 5, 7, 8, 17, 64)
SHAPES = [(n, k) for n in (8, 16, 24, 40) for k in (32, 64, 96, 128, 160, 384, 4096)]
SHAPES += [(4096, 32), (4096, 160), (4096, 4096)]
PROBLEMS = [(n, k, group) for n, k in SHAPES for group in (32, 64, 128, -1) if k % group == 0]
# Enough work for five threads or more; three rows of tiles.
FEW_TILES = (40, 4096)

every_isa = pytest.mark.parametrize('isa', kernels.cpu_isas())
both_widths = pytest.mark.parametrize('bits', [3, 4])


def gemm(x, tiles, isa='auto', num_threads=0):
    out = torch.full((x.shape[0], tiles.n), float('nan'))
    kernels.wna16_gemm(x.data_ptr(), tiles.data.data_ptr(), out.data_ptr(), x.shape[0], tiles.n,
                       tiles.k, tiles.bits, tiles.block, num_threads, isa)
    return out


@every_isa
@both_widths
@pytest.mark.parametrize(('n', 'k', 'group_size'), PROBLEMS)
def test_every_shape_matches_the_oracle_and_m_does_not_change_a_bit(n, k, group_size, bits, isa):
    weight = random_weight(n, k, group_size, bits)
    tiles = pack_cpu_tiles(weight)
    x = random_x(max(ROWS_OF_X), k)
    out = gemm(x, tiles, isa)
    assert_matches_wna16(out, x, weight)
    for m in ROWS_OF_X:
        assert torch.equal(gemm(x[:m], tiles, isa), out[:m]), f'{m} rows of x'


@every_isa
@both_widths
@pytest.mark.parametrize(('n', 'k', 'm'), [(*FEW_TILES, 64), (*FEW_TILES, 51), (4096, 4096, 1)])
def test_the_number_of_threads_does_not_change_a_bit(n, k, m, bits, isa):
    tiles = pack_cpu_tiles(random_weight(n, k, 128, bits))
    x = random_x(m, k)
    alone = gemm(x, tiles, isa, num_threads=1)
    for num_threads in (0, 2, 3, 7):
        assert torch.equal(gemm(x, tiles, isa, num_threads), alone), f'{num_threads} threads'


@every_isa
@pytest.mark.parametrize(('bits', 'q', 'zero'), [
    (bits, q, zero) for bits in (3, 4)
    for q in (None, 0, 2**bits - 1) for zero in (0, 2**bits - 1)])
@pytest.mark.parametrize('offset', [0.0, 1e4])
def test_extreme_codes_and_zero_points_match_the_oracle(bits, q, zero, offset, isa):
    weight = random_weight(24, 384, 128, bits, q=q, zero=zero)
    x = random_x(5, 384) + offset
    assert_matches_wna16(gemm(x, pack_cpu_tiles(weight), isa), x, weight)


@every_isa
@both_widths
@pytest.mark.parametrize('scale', [2.0**-24, -2.0**-15, 2.0**-14, 0.0, 65504.0])
def test_subnormal_and_large_scales_match_the_oracle(scale, bits, isa):
    weight = random_weight(24, 160, 32, bits, scale=scale)
    x = random_x(5, 160)
    assert_matches_wna16(gemm(x, pack_cpu_tiles(weight), isa), x, weight)


@every_isa
@both_widths
def test_a_row_of_zeros_gives_zeros_and_a_nan_stays_in_its_row(bits, isa):
    weight = random_weight(24, 128, bits=bits)
    tiles = pack_cpu_tiles(weight)
    x = random_x(8, 128)
    x[2] = 0
    expected = gemm(x, tiles, isa)
    assert (expected[2] == 0).all()
    x[5, 77] = float('nan')
    out = gemm(x, tiles, isa)
    assert out[5].isnan().all()
    assert torch.equal(out[[0, 1, 2, 3, 4, 6, 7]], expected[[0, 1, 2, 3, 4, 6, 7]])


@every_isa
@both_widths
@pytest.mark.parametrize('m', [1, 5])
def test_nothing_beside_the_result_is_written_and_no_alignment_is_needed(m, bits, isa):
    weight = random_weight(24, 96, 32, bits)
    tiles = pack_cpu_tiles(weight)
    x = random_x(m, 96)
    shifted_x = torch.cat((torch.zeros(1), x.flatten()))
    shifted_tiles = torch.cat((torch.zeros(1, dtype=torch.uint8), tiles.data.flatten()))
    out = torch.full((1 + m * 24 + 16,), -7.0)
    kernels.wna16_gemm(shifted_x.data_ptr() + 4, shifted_tiles.data_ptr() + 1, out.data_ptr() + 4,
                       m, 24, 96, bits, tiles.block, 1, isa)
    assert torch.equal(out[1:1 + m * 24].view(m, 24), gemm(x, tiles, isa))
    assert out[0] == -7 and (out[1 + m * 24:] == -7).all()


def test_auto_takes_the_best_isa_and_generic_is_always_there():
    isas = kernels.cpu_isas()
    assert isas[-1] == 'generic'
    tiles = pack_cpu_tiles(random_weight(16, 128))
    x = random_x(3, 128)
    assert torch.equal(gemm(x, tiles, 'auto'), gemm(x, tiles, isas[0]))


@pytest.mark.parametrize(('argument', 'value', 'expected'), [
    ('x', 0, 'an address, got null'),
    ('tiles', 0, 'an address, got null'),
    ('out', 0, 'an address, got null'),
    ('m', 0, 'at least 1, got 0'),
    ('n', 12, 'a positive multiple of 8, got 12'),
    ('n', 0, 'a positive multiple of 8, got 0'),
    ('k', 100, 'a positive multiple of the block, 32, got 100'),
    ('k', 0, 'a positive multiple of the block, 32, got 0'),
    ('bits', 2, '3 or 4, got 2'),
    ('bits', 5, '3 or 4, got 5'),
    ('block', 48, '32, 64 or 128, got 48'),
    ('num_threads', -1, '0 .all processors. or more, got -1'),
    ('isa', 'abacus', "'auto' or .*'generic', got 'abacus'"),
])
def test_a_wrong_argument_is_refused_by_name(argument, value, expected):
    memory = torch.zeros(1024)
    address = memory.data_ptr()
    arguments = {'x': address, 'tiles': address, 'out': address, 'm': 1, 'n': 8, 'k': 32,
                 'bits': 4, 'block': 32, 'num_threads': 1, 'isa': 'auto', argument: value}
    with pytest.raises(ValueError, match=f'wna16_gemm: {argument}: expected {expected}'):
        kernels.wna16_gemm(**arguments)


def test_other_python_threads_run_during_a_call():
    tiles = pack_cpu_tiles(random_weight(4096, 4096, 128))
    x = random_x(256, 4096)
    call = Thread(target=gemm, args=(x, tiles, 'generic', 1))
    begin = last = time.perf_counter()
    longest_pause = 0.0
    call.start()
    while call.is_alive():
        now = time.perf_counter()
        longest_pause = max(longest_pause, now - last)
        last = now
    assert longest_pause < (last - begin) / 2


def test_two_python_threads_may_call_at_once():
    problems = [(random_x(m, 4096), pack_cpu_tiles(random_weight(n, 4096, 128)))
                for m, n in ((64, 40), (33, 96))]
    expected = [gemm(x, tiles, num_threads=1) for x, tiles in problems]
    wrong = []

    def call_often(i):
        for _ in range(20):
            if not torch.equal(gemm(*problems[i], num_threads=3), expected[i]):
                wrong.append(i)

    threads = [Thread(target=call_often, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.filterwarnings('ignore:.*fork.*:DeprecationWarning')
def test_a_forked_child_computes_with_threads_of_its_own():
    x, tiles = random_x(64, 4096), pack_cpu_tiles(random_weight(*FEW_TILES, 128))
    expected = gemm(x, tiles, num_threads=3).numpy().tobytes()
    child = os.fork()
    if child == 0:
        # A child that waits for its parent's threads would wait for ever.
        signal.alarm(30)
        same = gemm(x, tiles, num_threads=3).numpy().tobytes() == expected
        os._exit(0 if same else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert gemm(x, tiles, num_threads=3).numpy().tobytes() == expected
