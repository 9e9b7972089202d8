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
"""The W4 GEMV gives what the weights in fp32 give, in each of its outputs."""

from __future__ import annotations

from backend import address, Backend, HALVES, w4_input
import pytest
import torch
from torch import Tensor
from w4_cases import (
    assert_near, check_gate_up, check_linear, check_qkv, check_up, Product, random_weight)

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.packing import natural_order

INF = float('inf')

# Tokens, N, K, group size: half a tile, more tiles than blocks, records that pad, groups that end
# with the columns, fewer records than warps, more, and a number that is no multiple of theirs.
SHAPES = ((1, 8, 32, 32), (1, 272, 128, 128), (2, 24, 64, 64), (3, 40, 96, 32), (5, 16, 192, 64),
          (8, 40, 200, -1), (1, 40, 1152, 128), (8, 16, 1152, 32), (2, 8, 96, -1))


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('m, n, k, group_size', SHAPES)
def test_a_linear_agrees_with_the_reference(kernels, m, n, k, group_size, dtype):
    check_linear(kernels, m, n, k, group_size, dtype, gemv=True)


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('options', [
    {'bias': True}, {'norm': True}, {'residual': 'beside'}, {'residual': 'in place'},
    {'bias': True, 'norm': True, 'residual': 'beside', 'following': True},
], ids=['bias', 'norm', 'residual', 'residual-in_place', 'bias-norm-residual-following'])
def test_a_linear_takes_what_goes_before_and_behind_it(kernels, options, dtype):
    check_linear(kernels, 3, 40, 200, -1, dtype, gemv=True, **options)


def test_a_norm_of_one_token_agrees_with_the_reference(kernels):
    check_linear(kernels, 1, 24, 2176, 128, torch.float16, gemv=True, norm=True)


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('m, intermediate', [(1, 8), (2, 24), (1, 64)])
@pytest.mark.parametrize('activation', reference.ACTIVATIONS)
def test_gate_and_up_become_their_activation(kernels, m, intermediate, dtype, activation):
    check_gate_up(kernels, m, 2 * intermediate, 128, 64, dtype, gemv=True, activation=activation)


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('activation', reference.ACTIVATIONS)
@pytest.mark.parametrize('scaled', [False, True], ids=['', 'scaled'])
def test_up_alone_becomes_its_activation(kernels, scaled, activation, dtype):
    check_up(kernels, 3, 40, 200, -1, dtype, True, activation, bias=True, scaled=scaled)


def only_bias(bias: Tensor) -> Product:
    """Return a product that is a bias [n], in bf16."""
    x, weight = torch.zeros(1, 64), random_weight(len(bias), 64, 64)
    return Product(True, x.bfloat16(), weight, bias.bfloat16())


@pytest.mark.parametrize('activation', reference.ACTIVATIONS)
def test_an_activation_takes_any_number(one_order, activation):
    y = one_order.empty(1, 8, dtype=torch.bfloat16)
    x = torch.tensor([-1e30, -1e4, -100, 0, 1e4, 1e30, INF, float('nan')]).bfloat16()
    only_bias(x).run(one_order, natural_order(8).rows, 'w4_up', gemv=True, activation=activation,
                     y=address(y))
    expected = torch.cat([torch.zeros(3), x[3:]])
    torch.testing.assert_close(y[0].cpu().float(), expected, equal_nan=True, rtol=0, atol=1e-6)


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('m, heads, kv_heads, head_dim, position', [
    (1, 3, 1, 16, 0), (3, 2, 2, 64, 5), (2, 3, 1, 80, 7), (1, 1, 1, 96, 8), (1, 3, 1, 128, 5)])
def test_queries_keys_and_values_are_rotated_and_put_where_they_go(
        kernels, m, heads, kv_heads, head_dim, position, dtype):
    check_qkv(kernels, m, heads, kv_heads, head_dim, 64, position, dtype, gemv=True)


def test_tokens_whose_activations_do_not_fit_together_take_several_launches(one_order):
    check_qkv(one_order, 8, 1, 1, 16, 7680, 1, torch.float16, gemv=True)


def run_logits(kernels: Backend, product: Product, softcap: float = 0.0) -> tuple[Tensor, ...]:
    """Return the logits [n], and the logit and the token of each tile's best, on the CPU."""
    n = product.weight.shape[0]
    logits = kernels.empty(n, dtype=torch.float32)
    best = kernels.empty(-(-n // 16), 2, dtype=torch.int32)
    product.run(kernels, natural_order(n).rows, 'w4_logits', logits=address(logits),
                best=address(best), softcap=softcap)
    best = best.cpu()
    return logits.cpu(), best[:, :1].contiguous().view(torch.float32)[:, 0], best[:, 1]


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('n', [8, 16, 72])
@pytest.mark.parametrize('softcap', [0.0, 0.7])
def test_logits_come_with_the_best_of_each_tile(kernels, softcap, n, dtype):
    product = Product.random(1, n, 256, 128, dtype, gemv=True)
    logits, best, tokens = run_logits(kernels, product, softcap)
    expected = reference.softcap(product.sums[0], softcap) if softcap else product.sums[0]
    assert_near(logits, expected, product.slack[0])
    tiles = logits.split(16)
    assert torch.equal(best, torch.stack([tile.max() for tile in tiles]))
    assert tokens.tolist() == [16 * i + int(tile.argmax()) for i, tile in enumerate(tiles)]


def test_a_softcap_takes_any_number(one_order):
    ends = torch.tensor([-INF, -1e30, -1e4, 1e4, 1e30, INF, float('nan'), 0.0])
    logits, _, _ = run_logits(one_order, only_bias(ends), 30.0)
    expected = torch.tensor([-30.0, -30, -30, 30, 30, 30, float('nan'), 0])
    torch.testing.assert_close(logits, expected, equal_nan=True, rtol=0, atol=3e-5)


def test_of_equal_logits_the_first_is_the_best(kernels):
    weight = random_weight(24, 64, 64)
    for tensor in (weight.qweight, weight.scales, weight.zeros):
        tensor[:] = tensor[0].clone()
    weight.scales[::2] = weight.scales[1] * 0.5
    for sign in (-1, 1):
        product = Product(True, torch.full((1, 64), sign).half(), weight)
        logits, best, tokens = run_logits(kernels, product)
        assert torch.equal(logits[::2], logits[0].expand(12))
        first = int(logits[:2].argmax())
        assert (best == logits.max()).all() and tokens.tolist() == [first, 16 + first]


@pytest.mark.parametrize('row', [0, 7, 8, 13])
@pytest.mark.parametrize('softcap', [0.0, 0.7])
def test_a_logit_that_is_no_number_is_seen_in_the_best_of_its_tile(kernels, softcap, row):
    product = Product.random(1, 32, 64, 64, torch.float16, gemv=True)
    product.weight.scales[row] = float('nan')
    logits, best, tokens = run_logits(kernels, product, softcap)
    assert logits.isnan().tolist() == [i == row for i in range(32)]
    assert best.isnan().tolist() == [True, False]
    assert tokens[0] == row


def test_results_are_equal_to_the_bit_from_run_to_run(one_order):
    product = Product.random(1, 72, 1152, 64, torch.float16, gemv=True)
    runs = []
    for order in range(5):
        one_order.shuffle(order)
        runs.append(torch.cat([part.double() for part in run_logits(one_order, product)]))
    assert all(torch.equal(run, runs[0]) for run in runs)


@pytest.mark.parametrize('m, group_size, dtype, message', [
    (1, 16, torch.float16, 'w4_gemv: expected a group_size of 32, 64 or 128, got 16'),
    (9, 32, torch.float16, 'w4_gemv: expected an m of 1 to 8, got 9'),
    (1, 32, torch.float32, 'w4_gemv: expected dtype 0 .fp16. or 1 .bf16., got 2'),
])
def test_what_it_cannot_take_is_refused(one_order, m, group_size, dtype, message):
    x = one_order.put(torch.zeros(m, 32, dtype=dtype))
    with pytest.raises(ValueError, match=message):
        one_order.module.w4_linear(w4_input(one_order, x, x, 8, group_size), gemv=True, y=0)


def test_an_activation_that_it_does_not_know_is_refused(one_order):
    x = one_order.put(torch.zeros(1, 32).half())
    with pytest.raises(ValueError, match='expected silu, gelu or gelu_tanh, got relu'):
        one_order.module.w4_gate_up(w4_input(one_order, x, x, 8, 32), gemv=True, y=0,
                                    activation='relu')


def test_logits_of_more_than_one_token_are_refused(one_order):
    x = one_order.put(torch.zeros(2, 32).half())
    with pytest.raises(ValueError, match='w4_gemv: expected an m of 1, got 2'):
        one_order.module.w4_logits(w4_input(one_order, x, x, 8, 32), logits=0, best=0)
