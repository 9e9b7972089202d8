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
"""The sums over calibration tokens, and what follows from them for a layer's outputs."""

import pytest
import torch

from tinychat_ros.errors import CheckpointError
from tinychat_ros.quantization.statistics import gather

N, K = 12, 40


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _inputs(lengths=(30, 1, 50), noise=0.1):
    """Sequences as they will be and as they were: dependent channels, and noise on them."""
    mix = _random(K, K, seed=9) / K ** 0.5
    originals = [_random(length, K, seed=length) @ mix for length in lengths]
    return [(x + noise * _random(*x.shape, seed=3), x) for x in originals]


def _weights():
    return [_random(N, K, seed=1), _random(N + 4, K, seed=2)]


def _joined(pairs):
    return [torch.cat(side).double() for side in zip(*pairs)]


def test_sums_are_those_of_all_tokens_together():
    pairs = _inputs()
    sums = gather('layer', iter(pairs), _weights(), shifted=False)
    x, _ = _joined(pairs)
    torch.testing.assert_close(sums.hessian, (x.t() @ x).float())
    torch.testing.assert_close(sums.magnitude, x.abs().sum(0).float())
    assert sums.count == 81 and sums.shifts == [] and sums.shift_energies == []


def test_shifts_are_what_the_outputs_lack_for_each_layer():
    pairs = _inputs()
    sums = gather('layer', pairs, _weights(), shifted=True)
    x, original = _joined(pairs)
    torch.testing.assert_close(sums.hessian, (x.t() @ x).float())
    for weight, shift, energy in zip(_weights(), sums.shifts, sums.shift_energies):
        lacking = (original - x) @ weight.double().t()
        torch.testing.assert_close(shift, (lacking.t() @ x).float(), rtol=1e-4, atol=1e-4)
        assert energy == pytest.approx(float(lacking.pow(2).sum()), rel=1e-4)


@pytest.mark.parametrize('lengths', [(30, 1, 50), (7,)])
def test_the_target_solves_the_ridge_problem(lengths):
    """The gradient of |X T^T - X0 W^T|^2 + ridge |T - W|^2 is zero there."""
    pairs, weights = _inputs(lengths), _weights()
    sums = gather('layer', pairs, weights, shifted=True)
    x, original = _joined(pairs)
    ridge = sums.ridge * sums.hessian.diagonal().mean().double()
    for index, (weight, target) in enumerate(zip(weights, sums.targets(weights))):
        target = target.double()
        outputs = (x @ target.t() - original @ weight.double().t()).t() @ x
        gradient = outputs + ridge * (target - weight)
        assert gradient.norm() < 1e-3 * sums.shifts[index].norm()
        assert sums.loss(index, target.float(), weight) < sums.loss(index, weight, weight)


def test_the_target_without_a_shift_is_the_weight_itself():
    weight = _weights()[0]
    assert gather('layer', _inputs(), [weight], shifted=False).targets([weight]) == [weight]
    same = [(x, x) for x, _ in _inputs()]
    assert torch.equal(gather('layer', same, [weight], shifted=True).targets([weight])[0], weight)


def test_few_tokens_move_a_weight_less():
    weight = _weights()[0]
    moved = []
    for repeats in (1, 50):
        sums = gather('layer', _inputs() * repeats, [weight], shifted=True)
        moved.append(float((sums.targets([weight])[0] - weight).norm()))
    assert moved[0] < 0.8 * moved[1]


@pytest.mark.parametrize('shifted', [False, True])
@pytest.mark.parametrize('change', [0.0, 0.01, 0.5])
def test_the_loss_is_the_mean_squared_error_of_the_outputs(shifted, change):
    pairs, weights = _inputs(), _weights()
    sums = gather('layer', pairs, weights, shifted)
    x, original = _joined(pairs)
    for index, weight in enumerate(weights):
        changed = weight + change * _random(*weight.shape, seed=4)
        wanted = (original if shifted else x) @ weight.double().t()
        direct = (x @ changed.double().t() - wanted).pow(2).mean()
        assert sums.loss(index, changed, weight) == pytest.approx(float(direct), rel=1e-3)


def test_the_loss_is_never_negative():
    """Where the target is exact, three large terms cancel."""
    pairs = [(x * 100, x * 99) for x, _ in _inputs((5, 6))]
    weight = _weights()[0]
    sums = gather('layer', pairs, [weight], shifted=True)
    for scale in (0.99, 0.98999995, 0.99000007):
        assert 0 <= sums.loss(0, weight * scale, weight) < 1e-2 * sums.loss(0, weight, weight)


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
@pytest.mark.parametrize('side', [0, 1])
def test_inputs_that_are_not_finite_are_refused_by_name(value, side):
    pairs = _inputs()
    pairs[1][side][0, 3] = value
    with pytest.raises(CheckpointError, match=r'layers.0.q_proj: expected finite inputs'):
        gather('layers.0.q_proj', pairs, _weights(), shifted=True)
