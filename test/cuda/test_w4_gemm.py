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
"""The W4 GEMMs for CUDA give what an fp32 product and the reference's ops give."""

from backend import address, w4_input
import pytest
import torch
from w4_cases import check_gate_up, check_linear, check_qkv, check_up

from tinychat_ros.kernels import reference

HALF, BFLOAT = torch.float16, torch.bfloat16


# A group_size of -1 is K. On the emulator's 3 multiprocessors the last three run in large blocks,
# and of each size of a block one goes round its ring of stages.
@pytest.mark.parametrize('m, n, k, group_size, dtype, bias, residual', [
    (1, 8, 32, 32, HALF, False, None),
    (9, 24, 96, 32, BFLOAT, True, 'beside'),
    (17, 128, 128, 64, HALF, False, 'in place'),
    (9, 8, 896, 128, BFLOAT, False, None),
    (33, 24, 512, 32, HALF, True, None),
    (64, 136, 384, 64, BFLOAT, False, 'in place'),
    (65, 24, 200, -1, HALF, True, 'beside'),
    (130, 136, 128, 128, BFLOAT, True, 'beside'),
    (130, 136, 96, 32, HALF, False, None),
    (66, 264, 256, 64, HALF, True, 'in place'),
], ids=str)
def test_a_product(kernels, m, n, k, group_size, dtype, bias, residual):
    check_linear(kernels, m, n, k, group_size, dtype, gemv=False, bias=bias, residual=residual)


@pytest.mark.parametrize('m, n, k, group_size, dtype, bias', [
    (9, 16, 96, 32, HALF, False),
    (17, 48, 128, 128, BFLOAT, True),
    (65, 128, 64, 64, HALF, True),
    (130, 272, 128, 32, BFLOAT, False),
], ids=str)
def test_silu_of_gate_times_up(kernels, m, n, k, group_size, dtype, bias):
    check_gate_up(kernels, m, n, k, group_size, dtype, gemv=False, bias=bias)


@pytest.mark.parametrize('activation', reference.ACTIVATIONS)
def test_an_activation_of_gate_times_up(kernels, activation):
    check_gate_up(kernels, 17, 48, 96, 32, HALF, gemv=False, bias=True, activation=activation)


@pytest.mark.parametrize('activation', reference.ACTIVATIONS)
@pytest.mark.parametrize('m, n, k, group_size, dtype, bias, scaled', [
    (9, 24, 96, 32, BFLOAT, True, False),
    (33, 24, 512, 32, HALF, False, True),
    (130, 136, 96, 32, HALF, True, True),
], ids=str)
def test_an_activation_of_up_alone(kernels, m, n, k, group_size, dtype, bias, scaled, activation):
    check_up(kernels, m, n, k, group_size, dtype, False, activation, bias, scaled)


@pytest.mark.parametrize('m, heads, kv_heads, head_dim, dtype, bias', [
    (1, 3, 1, 16, HALF, True),
    (17, 3, 1, 80, BFLOAT, True),
    (33, 1, 1, 64, HALF, False),
    (65, 3, 1, 128, HALF, True),
    (130, 5, 3, 80, BFLOAT, False),
], ids=str)
def test_queries_are_rotated_and_keys_and_values_appended(kernels, m, heads, kv_heads, head_dim,
                                                          dtype, bias):
    check_qkv(kernels, m, heads, kv_heads, head_dim, 64, 5, dtype, gemv=False, bias=bias)


@pytest.mark.parametrize('dtype', [HALF, BFLOAT], ids=str)
def test_a_product_that_occupies_a_gpu(one_order, dtype):
    if one_order.device.type != 'cuda':
        pytest.skip('too much for the emulator')
    check_linear(one_order, 1025, 8200, 4096, 128, dtype, gemv=False, bias=True,
                 residual='in place')


def test_a_norm_in_front_is_refused(one_order):
    x, weight = (one_order.put(torch.ones(shape, dtype=HALF)) for shape in ((9, 32), (32,)))
    given = w4_input(one_order, x, x, 8, 32, norm=(weight, 1e-5))
    with pytest.raises(ValueError, match='norm_weight: expected null'):
        one_order.module.w4_linear(given, gemv=False, y=address(x))
