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

from backend import address, Backend, w4_input
import pytest
import torch
from torch import Tensor
from w4_cases import (
    assert_near, check_linear, Products, random_activations, random_weight)

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.packing import (
    gate_up_order, natural_order, pack_cuda_tiles, QuantizedWeight, record_group, rotary_order)

HALVES = (torch.float16, torch.bfloat16)

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
    {'bias': True}, {'norm': True}, {'residual': True}, {'residual': True, 'in_place': True},
    {'bias': True, 'norm': True, 'residual': True, 'following': True},
], ids='-'.join)
def test_a_linear_takes_what_goes_before_and_behind_it(kernels, options, dtype):
    check_linear(kernels, 3, 40, 200, -1, dtype, gemv=True, **options)


def test_a_norm_of_one_token_agrees_with_the_reference(kernels):
    check_linear(kernels, 1, 24, 2176, 128, torch.float16, gemv=True, norm=True)


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('m, intermediate', [(1, 8), (2, 24), (1, 64)])
def test_gate_and_up_become_their_activation(kernels, m, intermediate, dtype):
    weight = random_weight(2 * intermediate, 128, 64)
    x = kernels.put(random_activations(m, 128, dtype=dtype))
    records = kernels.put(pack_cuda_tiles(weight, gate_up_order(intermediate).rows))
    y = kernels.empty(m, intermediate, dtype=dtype)
    kernels.module.w4_gate_up(w4_input(kernels, x, records, 2 * intermediate, 64), gemv=True,
                              y=address(y))
    products = Products.of(x, weight)
    gate, up = products.sums.chunk(2, -1)
    of_gate, of_up = products.slack.chunk(2, -1)
    # No step of silu is longer than 1.1 times that of the gate.
    slack = 1.1 * of_gate * up.abs() + of_up * gate.abs()
    assert_near(y, reference.silu_mul(products.sums), slack)


class QkvCase:
    """A QKV product of m tokens from a position of slot 1 of 2, and what it is to write."""

    def __init__(self, kernels: Backend, m: int, heads: int, kv_heads: int, head_dim: int, k: int,
                 position: int, dtype: torch.dtype, max_seq_len: int = 9) -> None:
        self.kernels, self.heads, self.head_dim = kernels, heads, head_dim
        self.rotated, self.n = heads + kv_heads, (heads + 2 * kv_heads) * head_dim
        self.weight = random_weight(self.n, k, 32)
        rows = rotary_order(self.rotated, kv_heads, head_dim).rows
        self.records = kernels.put(pack_cuda_tiles(self.weight, rows))
        self.bias = torch.randn(self.n).to(dtype)
        self.packed_bias = kernels.put(self.bias[rows.long()])
        self.x = kernels.put(random_activations(m, k, dtype=dtype))
        self.q = kernels.empty(m, heads, head_dim, dtype=dtype)
        shape = 2, kv_heads, max_seq_len, head_dim
        self.before = torch.randn(2, *shape).to(dtype)
        self.k, self.v = (kernels.put(cache) for cache in self.before)
        angles = torch.rand(max_seq_len, head_dim // 2) * 6
        self.cos, self.sin = kernels.put(angles.cos()), kernels.put(angles.sin())
        self.state = kernels.state(slot=1, position=position)
        self.written = slice(position, position + m)

    def run(self) -> None:
        module = self.kernels.module
        slots, kv_heads, max_seq_len, head_dim = self.k.shape
        module.w4_qkv(
            w4_input(self.kernels, self.x, self.records, self.n, 32, self.packed_bias),
            module.KvCache(k=address(self.k), v=address(self.v), kv_heads=kv_heads,
                           max_seq_len=max_seq_len, head_dim=head_dim, state=address(self.state)),
            module.Rotary(cos=address(self.cos), sin=address(self.sin)),
            gemv=True, q=address(self.q), heads=self.heads)

    def check(self) -> None:
        products = Products.of(self.x, self.weight, self.bias.to(self.x.device))
        sums = products.sums.unflatten(-1, (-1, self.head_dim))
        cos, sin = self.cos[self.written], self.sin[self.written]
        rotated = reference.rotate(sums[:, :self.rotated], cos, sin)
        slack = 2 * products.slack.max().item()
        assert_near(self.q, rotated[:, :self.heads], slack)
        assert_near(self.written_of(self.k), rotated[:, self.heads:], slack)
        assert_near(self.written_of(self.v), sums[:, self.rotated:], slack)
        for cache, before in zip((self.k, self.v), self.before.to(self.k.device)):
            before[1, :, self.written] = cache[1, :, self.written]
            assert torch.equal(cache, before)

    def written_of(self, cache: Tensor) -> Tensor:
        return cache[1, :, self.written].transpose(0, 1)


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('m, heads, kv_heads, head_dim, position', [
    (1, 3, 1, 16, 0), (3, 2, 2, 64, 5), (2, 3, 1, 80, 7), (1, 1, 1, 96, 8), (1, 3, 1, 128, 5)])
def test_queries_keys_and_values_are_rotated_and_put_where_they_go(
        kernels, m, heads, kv_heads, head_dim, position, dtype):
    case = QkvCase(kernels, m, heads, kv_heads, head_dim, 64, position, dtype)
    case.run()
    case.check()


def test_tokens_whose_activations_do_not_fit_together_take_several_launches(one_order):
    case = QkvCase(one_order, 8, 1, 1, 16, 7680, 1, torch.float16)
    case.run()
    case.check()


def run_logits(kernels: Backend, weight: QuantizedWeight, x: Tensor) -> tuple[Tensor, ...]:
    """Return the logits [n], and the logit and the token of each tile's best, on the CPU."""
    n = weight.shape[0]
    x = kernels.put(x)
    records = kernels.put(pack_cuda_tiles(weight, natural_order(n).rows))
    logits = kernels.empty(n, dtype=torch.float32)
    best = kernels.empty(-(-n // 16), 2, dtype=torch.int32)
    kernels.module.w4_logits(w4_input(kernels, x, records, n, record_group(weight)),
                             logits=address(logits), best=address(best))
    best = best.cpu()
    return logits.cpu(), best[:, :1].contiguous().view(torch.float32)[:, 0], best[:, 1]


@pytest.mark.parametrize('dtype', HALVES, ids=str)
@pytest.mark.parametrize('n', [8, 16, 72])
def test_logits_come_with_the_best_of_each_tile(kernels, n, dtype):
    weight = random_weight(n, 256, 128)
    x = random_activations(1, 256, dtype=dtype)
    logits, best, tokens = run_logits(kernels, weight, x)
    products = Products.of(x, weight)
    assert_near(logits, products.sums[0], products.slack[0])
    tiles = logits.split(16)
    assert torch.equal(best, torch.stack([tile.max() for tile in tiles]))
    assert tokens.tolist() == [16 * i + int(tile.argmax()) for i, tile in enumerate(tiles)]


def test_of_equal_logits_the_first_is_the_best(kernels):
    weight = random_weight(24, 64, 64)
    for tensor in (weight.qweight, weight.scales, weight.zeros):
        tensor[:] = tensor[0].clone()
    weight.scales[::2] = weight.scales[1] * 0.5
    for sign in (-1, 1):
        x = torch.full((1, 64), sign).half()
        logits, best, tokens = run_logits(kernels, weight, x)
        assert torch.equal(logits[::2], logits[0].expand(12))
        first = int(logits[:2].argmax())
        assert (best == logits.max()).all() and tokens.tolist() == [first, 16 + first]


@pytest.mark.parametrize('row', [0, 7, 8, 13])
def test_a_logit_that_is_no_number_is_seen_in_the_best_of_its_tile(kernels, row):
    weight = random_weight(32, 64, 64)
    weight.scales[row] = float('nan')
    logits, best, tokens = run_logits(kernels, weight, random_activations(1, 64, dtype=HALVES[0]))
    assert logits.isnan().tolist() == [i == row for i in range(32)]
    assert best.isnan().tolist() == [True, False]
    assert tokens[0] == row


def test_results_are_equal_to_the_bit_from_run_to_run(one_order):
    weight = random_weight(72, 1152, 64)
    x = random_activations(1, 1152, dtype=torch.float16)
    runs = []
    for seed in range(5):
        if hasattr(one_order.module, 'set_seed'):
            one_order.module.set_seed(seed)
        runs.append(torch.cat([part.double() for part in run_logits(one_order, weight, x)]))
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


def test_logits_of_more_than_one_token_are_refused(one_order):
    x = one_order.put(torch.zeros(2, 32).half())
    with pytest.raises(ValueError, match='w4_gemv: expected an m of 1, got 2'):
        one_order.module.w4_logits(w4_input(one_order, x, x, 8, 32), logits=0, best=0)
