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
"""The scales that AWQ tries, the choice among them, and where it cuts ranges."""

import math

import pytest
import torch

from tinychat_ros.kernels.rtn import fit_grid, nearest_codes, values, WeightSpec
from tinychat_ros.quantization.awq import best_scale, candidates, fit_clipped_grid, Scale

SPEC = WeightSpec(4, 32)


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _magnitude(k=64):
    return _random(k, seed=2).exp()


def _candidates(magnitude, alpha_one=False, weight_magnitude=False):
    weights = [_random(8, len(magnitude)), _random(16, len(magnitude), seed=1)]
    return list(candidates(magnitude, weights, SPEC, alpha_one, weight_magnitude)), weights


@pytest.mark.parametrize('alpha_one, weight_magnitude, count', [
    (False, False, 20), (True, False, 21), (False, True, 40), (True, True, 42)])
def test_twenty_alphas_are_tried_and_more_on_request(alpha_one, weight_magnitude, count):
    scales, _ = _candidates(_magnitude(), alpha_one, weight_magnitude)
    alphas = [step / 20 for step in range(20 + alpha_one)]
    assert [scale.alpha for scale in scales] == alphas * (1 + weight_magnitude)
    assert len(scales) == count


def test_a_scale_is_a_power_of_the_magnitude_centred_around_one():
    magnitude = _magnitude()
    for scale in _candidates(magnitude, alpha_one=True)[0]:
        power = magnitude ** scale.alpha
        torch.testing.assert_close(scale.factors, power / (power.max() * power.min()).sqrt())
        assert float(scale.factors.max() * scale.factors.min()) == pytest.approx(1, rel=1e-4)


def test_the_first_scale_changes_nothing():
    assert torch.equal(_candidates(_magnitude())[0][0].factors, torch.ones(64))


def test_scales_may_divide_by_the_weights_magnitude_within_its_group():
    magnitude = _magnitude()
    scales, weights = _candidates(magnitude, weight_magnitude=True)
    w = torch.cat(weights).abs().view(24, 2, 32)
    relative = (w / w.amax(2, keepdim=True)).view(24, 64).mean(0)
    for scale in scales[20:]:
        power = magnitude ** scale.alpha / relative ** (1 - scale.alpha)
        torch.testing.assert_close(scale.factors, power / (power.max() * power.min()).sqrt())


def test_no_channel_counts_as_smaller_than_a_ten_thousandth():
    magnitude = torch.ones(64)
    magnitude[5] = 1e-30
    scale = _candidates(magnitude)[0][10]
    assert float(scale.factors[5]) == pytest.approx(1e-2)
    assert float(scale.factors[0]) == pytest.approx(1e2)


@pytest.mark.parametrize('weight_magnitude', [False, True])
def test_a_dead_channel_keeps_its_weight_and_has_no_say(weight_magnitude):
    magnitude = _magnitude()
    living = _candidates(magnitude[:63].clone())[0] if not weight_magnitude else None
    magnitude[63] = 0
    scales, _ = _candidates(magnitude, weight_magnitude=weight_magnitude)
    assert all(scale.factors[63] == 1 for scale in scales)
    assert all(torch.isfinite(scale.factors).all() for scale in scales)
    for index, scale in enumerate(living or ()):
        torch.testing.assert_close(scales[index].factors[:63], scale.factors)


def test_channels_that_are_all_dead_keep_their_weights():
    assert all(torch.equal(scale.factors, torch.ones(64))
               for scale in _candidates(torch.zeros(64), weight_magnitude=True)[0])


@pytest.mark.parametrize('losses, best', [
    ([3, 1, 2], 1), ([1, 1, 1], 0), ([math.nan, 2, 1], 2), ([1, math.nan, 2], 0),
    ([math.nan, math.inf, 5, math.nan], 2), ([math.inf, math.nan], 0),
    ([math.nan, math.nan, math.nan], 0), ([math.inf, 7, -math.inf], 2)])
def test_the_smallest_loss_wins_and_what_is_no_number_never_does(losses, best):
    scales = [Scale(torch.tensor([float(index)]), index / 20) for index in range(len(losses))]
    found = best_scale(iter(scales), lambda factors: losses[int(factors[0])])
    assert found is scales[best]


def _loss(weight, x, grid, spec):
    """[N, K/G]: squared error of each group's part of the outputs, from the outputs."""
    error = values(nearest_codes(weight, grid, spec), grid, spec) - weight
    size = spec.group(weight.shape[1])
    return torch.stack([(x[:, k:k + size].double() @ error[:, k:k + size].double().t())
                        .pow(2).sum(0) for k in range(0, weight.shape[1], size)], 1)


def _inputs(k):
    return _random(100, k, seed=7) @ (_random(k, k, seed=8) / k ** 0.5) * _magnitude(k)


@pytest.mark.parametrize('spec', [SPEC, WeightSpec(3, 32), WeightSpec(4, -1),
                                  WeightSpec(4, 32, symmetric=True)])
def test_the_cut_is_the_best_of_ten_for_every_group(spec):
    weight, x = _random(12, 96) ** 3, _inputs(96)
    grid = fit_clipped_grid(weight, x.t() @ x, spec)
    every = torch.stack([_loss(weight, x, fit_grid(weight, spec, 1 - step / 20), spec)
                         for step in range(10)])
    found = _loss(weight, x, grid, spec)
    torch.testing.assert_close(found, every.amin(0), rtol=1e-3, atol=0)
    assert (found <= every[0] * 1.001).all()
    assert (every.argmin(0) > 0).sum() > found.numel() // 2
    cuts = torch.stack([fit_grid(weight, spec, 1 - step / 20).scales for step in range(10)])
    assert (cuts == grid.scales).any(0).all()


def test_a_group_without_inputs_is_not_cut():
    weight, x = _random(12, 96), _inputs(96)
    x[:, 32:64] = 0
    grid, whole = fit_clipped_grid(weight, x.t() @ x, SPEC), fit_grid(weight, SPEC)
    assert torch.equal(grid.scales[:, 1], whole.scales[:, 1])
    assert not torch.equal(grid.scales[:, 0], whole.scales[:, 0])
