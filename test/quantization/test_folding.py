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
"""What a norm makes of its input does not change when a scale is folded into it."""

import pytest
import torch

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.ops import LayerNorm, Norm
from tinychat_ros.quantization.folding import as_stored, fold_into_norm, norm_tensors


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_a_norm_and_its_factors_multiply_to_what_they_were():
    weight = torch.tensor([1.0, -0.7, 0.0, 3e-7, 60000.0, 1.0, 0.1, 2.0])
    wanted = torch.tensor([3.0, 0.123, 2.0, 100.0, 1e-3, 1e-9, 7.7, 1e9])
    norm, factors = fold_into_norm(Norm(weight, 1e-5), wanted)
    assert torch.equal(norm.weight[2:6], weight[2:6]) and norm.weight[7] == 2
    assert factors[[2, 3, 4, 5, 7]].tolist() == [1] * 5
    folded = [0, 1, 6]
    assert torch.equal(norm.weight, norm.weight.half().float()) or norm.weight[3] == weight[3]
    torch.testing.assert_close(factors[folded], wanted[folded], rtol=2e-3, atol=0)
    torch.testing.assert_close(norm.weight * factors, weight, rtol=1e-6, atol=0)
    assert norm.eps == 1e-5


@pytest.mark.parametrize('norm, offset', [
    (Norm(1 + 0.3 * _random(64), 1e-5), 0.0), (Norm(1 + 0.3 * _random(64), 1e-5), 1.0),
    (LayerNorm(1 + 0.3 * _random(64), None, 1e-5), 0.0),
    (LayerNorm(1 + 0.3 * _random(64), 0.5 * _random(64, seed=1), 1e-5), 0.0)])
def test_a_folded_norm_times_its_factors_gives_what_the_norm_gave(norm, offset):
    wanted = (_random(64, seed=2) * 1.5).exp()
    folded, factors = fold_into_norm(norm, wanted, offset)
    x = _random(8, 64, seed=3)
    torch.testing.assert_close(reference.normalize(x, folded) * factors,
                               reference.normalize(x, norm), rtol=1e-5, atol=1e-5)
    # fp16 has half as many steps for what is stored less 1 as for what is near 0.
    assert ((factors / wanted).log().abs() < (0.1 if offset else 1e-3)).all()


@pytest.mark.parametrize('offset', [0.0, 1.0])
def test_a_folded_norm_is_seen_as_it_is_stored(offset):
    norm = LayerNorm(1 + 0.3 * _random(64), 0.5 * _random(64, seed=1), 1e-5)
    folded, _ = fold_into_norm(norm, (_random(64, seed=2) * 1.5).exp(), offset)
    seen, tensors = as_stored(folded, offset), norm_tensors('norm', folded, offset)
    assert tensors.keys() == {'norm.weight', 'norm.bias'}
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert torch.equal(seen.weight, folded.weight)
    assert torch.equal(seen.weight, tensors['norm.weight'].float() + offset)
    assert torch.equal(seen.bias, tensors['norm.bias'].float())
    assert norm_tensors('norm', Norm(norm.weight, 1e-5), offset).keys() == {'norm.weight'}


def test_a_channel_whose_bias_fp16_could_not_hold_keeps_factor_1():
    norm = LayerNorm(torch.ones(3), torch.tensor([100.0, 100.0, 0.0]), 1e-5)
    folded, factors = fold_into_norm(norm, torch.tensor([2.0**-10, 2.0**-9, 2.0**-10]))
    assert factors.tolist() == [1, 2.0**-9, 2.0**-10]
    assert folded.weight.tolist() == [1, 2.0**9, 2.0**10]
    assert folded.bias.tolist() == [100, 51200, 0]
