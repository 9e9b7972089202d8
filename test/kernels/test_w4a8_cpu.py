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
"""The compiled W4A8 and W3A8 kernels for the CPU, against the oracle and each other."""

from cpu_problems import (
    assert_matches_w4a8, fused_w4a8, random_weight, random_x, with_outliers)
import pytest
import torch

from tinychat_ros.kernels import extension, ops, reference
from tinychat_ros.kernels.linear import Linear
from tinychat_ros.kernels.packing import pack_codes, pack_cpu_tiles, QuantizedWeight

kernels = extension.load()
if kernels is None:
    pytest.skip(extension.why_absent(), allow_module_level=True)

# From 24 tokens on the widest body takes them in several strips.
TOKENS = (1, 2, 3, 4, 5, 6, 7, 13, 24, 25, 33, 64)
PROBLEMS = [(n, blocks * group, group) for n in (8, 16, 24, 40) for group in (32, 64, 128, 256)
            for blocks in (1, 2, 5)]

every_isa = pytest.mark.parametrize('isa', kernels.cpu_isas())
both_widths = pytest.mark.parametrize('bits', [3, 4])


def gemm(x, tiles, isa='auto', num_threads=0):
    out = torch.full((x.shape[0], tiles.n), -7.0)
    kernels.w4a8_gemm(x.data_ptr(), tiles.data.data_ptr(), out.data_ptr(), x.shape[0], tiles.n,
                      tiles.k, tiles.bits, tiles.block, num_threads, isa)
    return out


@every_isa
@both_widths
@pytest.mark.parametrize(('n', 'k', 'group'), PROBLEMS)
def test_every_shape_matches_the_oracle_and_m_does_not_change_a_bit(n, k, group, bits, isa):
    weight, x = random_weight(n, k, group, bits), random_x(max(TOKENS), k)
    tiles = pack_cpu_tiles(weight)
    out = gemm(x, tiles, isa)
    assert_matches_w4a8(out, x, weight, tiles.block)
    for m in TOKENS:
        assert torch.equal(gemm(x[:m], tiles, isa), out[:m]), f'{m} tokens'


@every_isa
@both_widths
@pytest.mark.parametrize(('n', 'k', 'group'), PROBLEMS)
def test_blocks_with_outliers_match_the_oracle_and_m_does_not_change_a_bit(
        n, k, group, bits, isa):
    weight = random_weight(n, k, group, bits)
    tiles = pack_cpu_tiles(weight)
    x = with_outliers(random_x(max(TOKENS), k), tiles.block)
    x[3:9, 5::tiles.block] = -300
    out = gemm(x, tiles, isa)
    assert_matches_w4a8(out, x, weight, tiles.block)
    for m in TOKENS:
        assert torch.equal(gemm(x[:m], tiles, isa), out[:m]), f'{m} tokens'


@every_isa
def test_the_other_values_of_a_block_with_an_outlier_keep_their_accuracy(isa):
    weight, x = random_weight(24, 1280, 128), random_x(5, 1280)
    outliers = x.clone()
    outliers[:, 7::128] = 1000
    columns = weight.dequantize(torch.float64)
    alone = reference.linear(x.double(), columns)
    beside = reference.linear(outliers.double(), columns)
    error = gemm(outliers, pack_cpu_tiles(weight), isa).double() - beside
    assert error.norm() < 0.01 * alone.norm()


@both_widths
@pytest.mark.parametrize('group', [32, 64, 128])
@pytest.mark.parametrize('m', [*range(1, 25), 33])
def test_every_instruction_set_of_fused_additions_gives_the_same_bits(m, group, bits):
    weight, x = random_weight(40, 640, group, bits), with_outliers(random_x(m, 640), group)
    tiles, expected = pack_cpu_tiles(weight), fused_w4a8(x, weight, group)
    for isa in kernels.cpu_isas():
        assert isa == 'generic' or torch.equal(gemm(x, tiles, isa), expected), isa


@every_isa
@both_widths
@pytest.mark.parametrize(('m', 'n', 'k'), [(1, 4096, 4096), (330, 56, 2048)])
def test_the_number_of_threads_does_not_change_a_bit(m, n, k, bits, isa):
    """Both shapes hold work for several threads, and 330 tokens are quantized by three."""
    tiles, x = pack_cpu_tiles(random_weight(n, k, 128, bits)), random_x(m, k)
    alone = gemm(x, tiles, isa, num_threads=1)
    for num_threads in (0, 2, 3):
        assert torch.equal(gemm(x, tiles, isa, num_threads), alone), f'{num_threads} threads'


@every_isa
def test_more_tokens_than_a_cache_holds_match_the_oracle(isa):
    weight, x = random_weight(24, 8192, 128), random_x(150, 8192)
    assert_matches_w4a8(gemm(x, pack_cpu_tiles(weight), isa), x, weight, 128)


@every_isa
@pytest.mark.parametrize('m', [1, 5, 24])
@pytest.mark.parametrize('x', [-1.0, 1.0])
@pytest.mark.parametrize(('bits', 'q', 'zero'), [
    (bits, q, zero) for bits, top in ((3, 7), (4, 15))
    for q, zero in ((0, top), (top, 0), (top, top), (0, 0), (None, top))])
def test_the_largest_products_neither_saturate_nor_overflow(bits, q, zero, x, m, isa):
    weight = random_weight(24, 384, 128, bits, q=q, zero=zero)
    x = torch.full((m, 384), x)
    assert_matches_w4a8(gemm(x, pack_cpu_tiles(weight), isa), x, weight, 128)


@every_isa
@pytest.mark.parametrize('scale', [2.0**-24, -2.0**-15, 2.0**-14, 0.0, 65504.0])
def test_subnormal_and_large_scales_match_the_oracle(scale, isa):
    weight, x = random_weight(24, 160, 32, scale=scale), random_x(5, 160)
    assert_matches_w4a8(gemm(x, pack_cpu_tiles(weight), isa), x, weight, 32)


@every_isa
def test_a_tie_is_rounded_to_even(isa):
    x = torch.full((1, 32), 50.0)
    x[0, :8] = torch.tensor([127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5])
    identity = QuantizedWeight(pack_codes(torch.eye(32, dtype=torch.uint8), 4),
                               torch.ones(32, 1).half(), torch.zeros(32, 1, dtype=torch.uint8), 32)
    out = gemm(x, pack_cpu_tiles(identity), isa)
    assert out[0, :8].tolist() == [127, 0, 2, 2, 0, -2, -2, 126]


@every_isa
@pytest.mark.parametrize('magnitude', [1e-45, 1e-40, 1e-36, 2e-36, 1e-20, 1e-3, 1e4, 1e20, 1e28])
def test_tiny_and_huge_activations_match_the_oracle(magnitude, isa):
    weight, x = random_weight(24, 160, 32), random_x(5, 160) * magnitude
    rounded = reference.fake_quantize_activations(x, 32)
    expected = reference.linear(rounded.double(), weight.dequantize(torch.float64))
    torch.testing.assert_close(gemm(x, pack_cpu_tiles(weight), isa).double(), expected,
                               rtol=1e-4, atol=1e-5 * expected.abs().max().item())


@every_isa
def test_a_block_of_zeros_adds_nothing_and_an_outlier_stays_in_its_block(isa):
    weight, x = random_weight(24, 160, 32), random_x(6, 160)
    x[1], x[2, 32:64], x[3, 100] = 0, 0, -1e6
    out = gemm(x, pack_cpu_tiles(weight), isa)
    assert (out[1] == 0).all()
    assert_matches_w4a8(out, x, weight, 32)


@every_isa
@both_widths
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_a_value_that_is_no_number_makes_nan_of_its_token_alone(value, bits, isa):
    weight, x = random_weight(24, 160, 32, bits), random_x(8, 160)
    tiles = pack_cpu_tiles(weight)
    expected = gemm(x, tiles, isa)
    x[5, 77] = value
    out = gemm(x, tiles, isa)
    assert out[5].isnan().all()
    others = [0, 1, 2, 3, 4, 6, 7]
    assert torch.equal(out[others], expected[others])


@every_isa
@both_widths
@pytest.mark.parametrize('m', [1, 5])
def test_nothing_beside_the_result_is_written_and_no_alignment_is_needed(m, bits, isa):
    weight, x = random_weight(24, 96, 32, bits), random_x(m, 96)
    tiles = pack_cpu_tiles(weight)
    shifted_x = torch.cat((torch.zeros(1), x.flatten()))
    shifted_tiles = torch.cat((torch.zeros(1, dtype=torch.uint8), tiles.data.flatten()))
    out = torch.full((1 + m * 24 + 16,), -7.0)
    kernels.w4a8_gemm(shifted_x.data_ptr() + 4, shifted_tiles.data_ptr() + 1, out.data_ptr() + 4,
                      m, 24, 96, bits, 32, 1, isa)
    assert torch.equal(out[1:1 + m * 24].view(m, 24), gemm(x, tiles, isa))
    assert out[0] == -7 and (out[1 + m * 24:] == -7).all()


@both_widths
@pytest.mark.parametrize('group', [32, 256])
@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_the_op_takes_the_kernel_where_activations_share_the_blocks_of_tiles(dtype, group, bits):
    tiles, bias = pack_cpu_tiles(random_weight(24, 512, group, bits)), random_x(1, 24)[0].to(dtype)
    x = random_x(5, 1024).to(dtype)[:, ::2]
    out = ops.linear(x, Linear(tiles, bias, tiles.block))
    assert torch.equal(out, gemm(x.float().contiguous(), tiles).to(dtype) + bias)


@pytest.mark.parametrize('group', [32, 64, 256])
def test_the_op_matches_the_oracle(group):
    weight, x = random_weight(24, 512, 256), random_x(5, 512)
    out = ops.linear(x, Linear(pack_cpu_tiles(weight), activation_group=group))
    assert_matches_w4a8(out, x, weight, group)


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
    with pytest.raises(ValueError, match=f'w4a8_gemm: {argument}: expected {expected}'):
        kernels.w4a8_gemm(**arguments)
