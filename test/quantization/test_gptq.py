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
"""GPTQ against the paper's formula, taken column by column in fp64."""

import pytest
import torch

from tinychat_ros.kernels.rtn import fit_grid, nearest_codes, values, WeightSpec
from tinychat_ros.quantization.gptq import codes_with_feedback, DAMPING


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _hessian(k, tokens=700, seed=1):
    """X^T X of inputs that depend on each other, some channels larger than others."""
    x = _random(tokens, k, seed=seed) @ (_random(k, k, seed=seed + 1) / k ** 0.5 + torch.eye(k))
    x *= torch.linspace(0.3, 3, k)[torch.randperm(k, generator=torch.Generator().manual_seed(3))]
    return x.t() @ x


def _by_the_paper(weight, hessian, spec, grid, act_order, fitted):
    """
    Quantize the columns one by one, updating the inverse Hessian after each (equations 2 and 3).

    :param fitted: called with a group and the weights of its columns when the first is reached.
    :returns: the codes, and which rows met a weight so near to a tie that fp32 may decide it.
    """
    w, k = weight.double(), weight.shape[1]
    damping = DAMPING * hessian.diagonal().double().mean()
    inverse = torch.linalg.inv(hessian.double() + torch.eye(k) * damping)
    order = torch.argsort(hessian.diagonal(), descending=True) if act_order else torch.arange(k)
    codes, tied = torch.zeros(weight.shape), torch.zeros(len(weight), dtype=torch.bool)
    for column in order.tolist():
        group, first = divmod(column, spec.group(k))
        if not first:
            fitted(group, w[:, column:column + spec.group(k)].float())
        scale, zero = grid.scales[:, group].double(), grid.zeros[:, group].double()
        steps = w[:, column] / scale
        tied |= (steps - steps.floor() - 0.5).abs() < 1e-4
        code = (steps.round() + zero).clamp(0, spec.largest_code)
        codes[:, column] = code.float()
        error = (w[:, column] - (code - zero) * scale) / inverse[column, column]
        w = w - error[:, None] * inverse[column]
        inverse = inverse - (torch.outer(inverse[:, column], inverse[column])
                             / inverse[column, column])
    return codes, tied


@pytest.mark.parametrize('k, group, bits, symmetric', [
    (160, 32, 4, False), (192, 64, 4, False), (192, 64, 3, False), (288, 96, 4, True),
    (512, 256, 4, False), (200, -1, 4, False), (384, 128, 3, True)])
@pytest.mark.parametrize('mode', ['in order', 'in order, grid given', 'largest first',
                                  'largest first, grid given'])
def test_codes_are_those_of_the_formula(k, group, bits, symmetric, mode):
    spec = WeightSpec(bits, group, symmetric)
    weight, hessian = _random(24, k) * 0.05, _hessian(k)
    act_order = mode.startswith('largest first')
    given = fit_grid(weight, spec, 0.8) if mode.endswith('given') else None
    codes, grid = codes_with_feedback(weight, hessian, spec, given, act_order)

    def fitted(group, current):
        """Without a given grid, groups are fitted when reached, or all at first in act order."""
        if given is not None:
            assert torch.equal(grid.scales, given.scales) and torch.equal(grid.zeros, given.zeros)
            return
        own = (fit_grid(weight, spec) if act_order
               else fit_grid(current, WeightSpec(bits, -1, symmetric)))
        index = group if act_order else 0
        torch.testing.assert_close(grid.scales[:, group], own.scales[:, index], rtol=2**-10,
                                   atol=0)
        assert (grid.zeros[:, group] - own.zeros[:, index]).abs().max() <= 1
    expected, tied = _by_the_paper(weight, hessian, spec, grid, act_order, fitted)
    assert tied.sum() <= 10
    assert torch.equal(codes[~tied], expected[~tied])


@pytest.mark.parametrize('group', [32, 64, -1])
@pytest.mark.parametrize('act_order', [False, True])
def test_outputs_change_less_than_with_nearest_rounding(group, act_order):
    spec = WeightSpec(4, group)
    weight, hessian = _random(32, 192), _hessian(192)

    def loss(codes, grid):
        error = values(codes, grid, spec) - weight
        return float(((error @ hessian) * error).sum())
    nearest = fit_grid(weight, spec)
    plain = loss(nearest_codes(weight, nearest, spec), nearest)
    assert loss(*codes_with_feedback(weight, hessian, spec, None, act_order)) < 0.8 * plain


@pytest.mark.parametrize('hessian', [torch.eye(96), torch.eye(96) * 1e8, torch.zeros(96, 96),
                                     torch.diag(torch.linspace(0, 5, 96))])
@pytest.mark.parametrize('act_order', [False, True])
def test_inputs_that_do_not_depend_on_each_other_leave_nearest_rounding(hessian, act_order):
    spec = WeightSpec(4, 32)
    weight = _random(16, 96)
    codes, grid = codes_with_feedback(weight, hessian, spec, None, act_order)
    nearest = fit_grid(weight, spec)
    assert torch.equal(grid.scales, nearest.scales) and torch.equal(grid.zeros, nearest.zeros)
    assert torch.equal(codes, nearest_codes(weight, nearest, spec))


def test_a_dead_channel_is_rounded_and_moves_no_other():
    spec = WeightSpec(4, 32)
    weight, hessian = _random(16, 96), _hessian(96)
    hessian[40], hessian[:, 40] = 0, 0
    grid = fit_grid(weight, spec)
    codes, _ = codes_with_feedback(weight, hessian, spec, grid)
    assert torch.equal(codes[:, 40], nearest_codes(weight, grid, spec)[:, 40])
    weight[:, 40] += 0.3
    others = torch.arange(96) != 40
    assert torch.equal(codes_with_feedback(weight, hessian, spec, grid)[0][:, others],
                       codes[:, others])


@pytest.mark.parametrize('tokens, scale', [(1, 1.0), (20, 1e-6), (20, 1e6)])
def test_fewer_tokens_than_channels_are_enough(tokens, scale):
    """X^T X then has no inverse of its own, and one channel may be all of it."""
    spec = WeightSpec(4, 32)
    weight, x = _random(16, 96), _random(tokens, 96, seed=5) * scale
    x[:, 3] *= 1e4
    codes, grid = codes_with_feedback(weight, x.t() @ x, spec)
    assert torch.isfinite(grid.scales).all() and grid.scales.max() < 1
    assert codes.min() >= 0 and codes.max() <= 15 and torch.equal(codes, codes.round())


def test_neither_weight_nor_hessian_is_changed():
    weight, hessian = _random(8, 64), _hessian(64)
    before = weight.clone(), hessian.clone()
    codes_with_feedback(weight, hessian, WeightSpec(4, 32))
    assert torch.equal(weight, before[0]) and torch.equal(hessian, before[1])
