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
"""The compiled W8A8 kernels for the CPU, against the oracle, to the bit."""

from cpu_problems import random_int8_weight, random_x
import pytest
import torch

from tinychat_ros.kernels import extension, reference
from tinychat_ros.kernels.packing import Int8Weight, INT8_MAX_K

kernels = extension.load()
if kernels is None:
    pytest.skip(extension.why_absent(), allow_module_level=True)

ROWS_OF_X = (1, 2, 3, 4, 5, 7, 8, 33)

every_isa = pytest.mark.parametrize('isa', kernels.cpu_isas())


def gemm(x, weight, isa='auto', num_threads=0):
    (n, k), m = weight.shape, x.shape[0]
    out = torch.full((m, n), -7.0)
    kernels.w8a8_gemm(x.data_ptr(), weight.qweight.data_ptr(), weight.scales.data_ptr(),
                      out.data_ptr(), m, n, k, num_threads, isa)
    return out


@every_isa
@pytest.mark.parametrize('k', [1, 7, 31, 32, 33, 64, 172, 1000])
@pytest.mark.parametrize('n', [1, 8, 17, 64])
def test_every_shape_gives_the_bits_of_the_oracle_whatever_m_is(n, k, isa):
    weight, x = random_int8_weight(n, k), random_x(max(ROWS_OF_X), k)
    expected = reference.linear(x, weight)
    for m in ROWS_OF_X:
        assert torch.equal(gemm(x[:m], weight, isa), expected[:m]), f'{m} rows of x'


@every_isa
def test_more_rows_than_a_block_of_the_weight_holds(isa):
    weight, x = random_int8_weight(101, 65), random_x(5, 65)
    assert torch.equal(gemm(x, weight, isa), reference.linear(x, weight))


@every_isa
@pytest.mark.parametrize('m', [1, 330])
def test_the_number_of_threads_does_not_change_a_bit(m, isa):
    """Both shapes hold work for five threads, and 330 rows are quantized by three."""
    weight = random_int8_weight(64 if m > 1 else 21000, 1000)
    x = random_x(m, 1000)
    expected = reference.linear(x, weight)
    for num_threads in (0, 1, 2, 5):
        assert torch.equal(gemm(x, weight, isa, num_threads), expected), f'{num_threads} threads'


@every_isa
@pytest.mark.parametrize('m', [1, 5])
@pytest.mark.parametrize('w', [-128, -127, 127])
@pytest.mark.parametrize('x', [-1.0, 1.0])
def test_the_largest_products_neither_saturate_nor_overflow(x, w, m, isa):
    weight = Int8Weight(torch.full((3, INT8_MAX_K), w, dtype=torch.int8), torch.ones(3))
    out = gemm(torch.full((m, INT8_MAX_K), 127 * x), weight, isa)
    assert (out == float(torch.tensor(127 * x * w * INT8_MAX_K))).all()


@every_isa
def test_a_tie_is_rounded_to_even(isa):
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 126.5]])
    identity = Int8Weight(torch.eye(8, dtype=torch.int8), torch.ones(8))
    assert gemm(x, identity, isa).tolist() == [[127, 0, 2, 2, 0, -2, -2, 126]]


@every_isa
@pytest.mark.parametrize('magnitude', [1e-45, 1e-40, 1e-36, 2e-36, 1e-20, 1e-3, 1e4, 1e20, 1e30])
def test_tiny_and_huge_tokens_give_the_bits_of_the_oracle(magnitude, isa):
    weight, x = random_int8_weight(17, 172), random_x(5, 172) * magnitude
    assert torch.equal(gemm(x, weight, isa), reference.linear(x, weight))


@every_isa
def test_an_outlier_and_a_row_of_zeros_give_the_bits_of_the_oracle(isa):
    weight, x = random_int8_weight(17, 172), random_x(6, 172)
    x[1], x[3, 100], x[4] = 0, -1e6, x[4].abs()
    weight.qweight[5], weight.scales[6] = 0, 0
    out = gemm(x, weight, isa)
    assert (out[1] == 0).all() and (out[:, 5:7] == 0).all()
    assert torch.equal(out, reference.linear(x, weight))


@every_isa
@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_a_value_that_is_no_number_makes_nan_of_its_row_alone(value, isa):
    weight, x = random_int8_weight(17, 100), random_x(8, 100)
    expected = gemm(x, weight, isa)
    x[5, 77] = value
    out = gemm(x, weight, isa)
    assert out[5].isnan().all()
    others = [0, 1, 2, 3, 4, 6, 7]
    assert torch.equal(out[others], expected[others])


@every_isa
@pytest.mark.parametrize('m', [1, 5])
def test_nothing_beside_the_result_is_written_and_no_alignment_is_needed(m, isa):
    weight, x = random_int8_weight(9, 45), random_x(m, 45)
    shifted_x = torch.cat((torch.zeros(1), x.flatten()))
    shifted_q = torch.cat((torch.zeros(1, dtype=torch.int8), weight.qweight.flatten()))
    shifted_scales = torch.cat((torch.zeros(1), weight.scales))
    out = torch.full((1 + m * 9 + 16,), -7.0)
    kernels.w8a8_gemm(shifted_x.data_ptr() + 4, shifted_q.data_ptr() + 1,
                      shifted_scales.data_ptr() + 4, out.data_ptr() + 4, m, 9, 45, 1, isa)
    assert torch.equal(out[1:1 + m * 9].view(m, 9), gemm(x, weight, isa))
    assert out[0] == -7 and (out[1 + m * 9:] == -7).all()


@pytest.mark.parametrize(('argument', 'value', 'expected'), [
    ('x', 0, 'an address, got null'),
    ('qweight', 0, 'an address, got null'),
    ('scales', 0, 'an address, got null'),
    ('out', 0, 'an address, got null'),
    ('m', 0, 'at least 1, got 0'),
    ('n', 0, 'at least 1, got 0'),
    ('k', 0, f'1 to {INT8_MAX_K}, got 0'),
    ('k', INT8_MAX_K + 1, f'1 to {INT8_MAX_K}, got {INT8_MAX_K + 1}'),
    ('num_threads', -1, '0 .all processors. or more, got -1'),
    ('isa', 'abacus', "'auto' or .*'generic', got 'abacus'"),
])
def test_a_wrong_argument_is_refused_by_name(argument, value, expected):
    memory = torch.zeros(1024)
    address = memory.data_ptr()
    arguments = {'x': address, 'qweight': address, 'scales': address, 'out': address, 'm': 1,
                 'n': 8, 'k': 32, 'num_threads': 1, 'isa': 'auto', argument: value}
    with pytest.raises(ValueError, match=f'w8a8_gemm: {argument}: expected {expected}'):
        kernels.w8a8_gemm(**arguments)
