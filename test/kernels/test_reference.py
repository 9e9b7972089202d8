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
"""The oracle against torch's own layers, complex numbers and plain loops."""

import pytest
import torch
import torch.nn.functional as F

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.packing import Int8Weight
from tinychat_ros.kernels.rtn import quantize_rtn

_HALF = (torch.float16, torch.bfloat16)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_rms_norm_is_that_of_torch():
    x, weight = _random(5, 48), _random(48, seed=1)
    torch.testing.assert_close(reference.rms_norm(x, weight, 1e-3),
                               F.rms_norm(x, [48], weight, 1e-3))


@pytest.mark.parametrize('dtype', _HALF)
def test_rms_norm_of_large_halves_sums_in_fp32(dtype):
    x = torch.full((1, 64), 300.0, dtype=dtype)
    out = reference.rms_norm(x, torch.ones(64, dtype=dtype), 1e-5)
    assert out.dtype == dtype
    torch.testing.assert_close(out, torch.ones(1, 64, dtype=dtype))


@pytest.mark.parametrize('biased', [False, True])
@pytest.mark.parametrize('dtype', _HALF)
def test_layer_norm_of_halves_is_rounded_once(dtype, biased):
    x, weight, bias = (_random(*shape, seed=i).to(dtype) for i, shape in enumerate(
        [(5, 48), (48,), (48,)]))
    bias = bias if biased else None
    exact = F.layer_norm(x.double(), [48], weight.double(), bias.double() if biased else None)
    assert torch.equal(reference.layer_norm(x, weight, bias, 1e-5), exact.to(dtype))


def test_rotation_is_a_product_of_complex_numbers():
    x, angles = _random(6, 3, 8), _random(6, 4, seed=1)
    out = reference.rotate(x, angles.cos(), angles.sin())
    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(6, 4), angles)[:, None]
    torch.testing.assert_close(out, torch.cat((turned.real, turned.imag), -1))


@pytest.mark.parametrize('tokens, length', [(1, 1), (1, 9), (4, 9), (9, 9)])
@pytest.mark.parametrize('heads, kv_heads', [(8, 2), (4, 4), (6, 1)])
def test_attention_is_that_of_each_query_alone(tokens, length, heads, kv_heads):
    q = _random(tokens, heads, 8)
    k, v = (_random(kv_heads, length, 8, seed=i) for i in (1, 2))
    out = reference.attention(q, k, v)
    for t in range(tokens):
        seen = length - tokens + t + 1
        for h in range(heads):
            kv = h * kv_heads // heads
            weights = torch.softmax(k[kv, :seen] @ q[t, h] / 8 ** 0.5, 0)
            torch.testing.assert_close(out[t, h], weights @ v[kv, :seen])


@pytest.mark.parametrize('dtype', _HALF)
def test_attention_of_halves_is_summed_in_fp32(dtype):
    q, k, v = (_random(2, 2, 8, seed=i).to(dtype) * 8 for i in range(3))
    exact = reference.attention(q.float(), k.float(), v.float())
    out = reference.attention(q, k, v)
    assert out.dtype == dtype
    torch.testing.assert_close(out, exact.to(dtype))


def test_gate_mul_takes_the_gate_first():
    gate, up = _random(3, 5), _random(3, 5, seed=1)
    out = reference.gate_mul(torch.cat((gate, up), -1), 'silu')
    torch.testing.assert_close(out, F.silu(gate) * up)


@pytest.mark.parametrize('dtype', [torch.float32, *_HALF])
def test_a_quantized_linear_is_a_plain_one_of_the_dequantized_weight(dtype):
    weight, x = quantize_rtn(_random(12, 64), 32), _random(3, 64, seed=1).to(dtype)
    out = reference.linear(x, weight)
    assert out.dtype == dtype
    torch.testing.assert_close(out, F.linear(x, weight.dequantize(dtype)))


def test_tokens_are_quantized_by_their_largest_magnitude_half_to_even():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -2.5, -126.6], [0.25, -0.5, 0.0, 0.0, 0.0, 0.0]])
    q, scale = reference.quantize_per_token(x)
    assert q.dtype == torch.int8 and scale.dtype == torch.float32
    assert q.tolist() == [[127, 0, 2, 2, -2, -127], [64, -127, 0, 0, 0, 0]]
    assert scale.tolist() == [1.0, float(torch.tensor(0.5) / 127)]


@pytest.mark.parametrize('dtype', [torch.float32, *_HALF])
def test_a_quantized_token_is_within_half_a_step_of_itself(dtype):
    x = _random(50, 33).to(dtype)
    q, scale = reference.quantize_per_token(x)
    error = (q.double() * scale.double()[:, None] - x.double()).abs()
    assert (error <= scale.double()[:, None] * 0.5000001).all()
    assert (q.abs().amax(-1) == 127).all()


@pytest.mark.parametrize('largest', [0.0, 1e-45, 1e-40, 1e-36])
def test_a_token_too_small_for_a_scale_is_one_of_zeros(largest):
    q, scale = reference.quantize_per_token(torch.tensor([[largest, -largest]]))
    assert (q == 0).all() and scale.tolist() == [0.0]


@pytest.mark.parametrize('largest', [2e-36, 3e38])
def test_tiny_and_huge_tokens_keep_their_sign_and_ratio(largest):
    q, _ = reference.quantize_per_token(torch.tensor([[largest, -largest, largest / 127]]))
    assert q.tolist() == [[127, -127, 1]]


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
def test_a_value_that_is_no_number_makes_nan_of_its_token_alone(value):
    x = torch.tensor([[1.0, value], [1.0, 2.0]])
    weight = Int8Weight(torch.tensor([[1, 0], [0, 0]], dtype=torch.int8), torch.ones(2))
    out = reference.linear(x, weight)
    assert out[0].isnan().all() and out[1].isfinite().all()


@pytest.mark.parametrize('dtype', [torch.float32, *_HALF])
def test_quantized_keys_are_within_half_a_step_of_themselves(dtype):
    x = _random(4, 50, 32).to(dtype)
    q, scale = reference.quantize_kv(x)
    assert (q.dtype, scale.dtype, scale.shape) == (torch.int8, torch.float16, (4, 50))
    error = (reference.dequantize_kv(q, scale) - x.float()).abs()
    # The largest value is clamped to 127 steps, each of which rounding may have made shorter.
    assert (error <= scale.float()[..., None] * 0.57).all()
    assert (q.abs().amax(-1) >= 126).all()


@pytest.mark.parametrize('largest', [0.0, 1e-6])
def test_keys_too_small_for_a_scale_are_zeros(largest):
    q, scale = reference.quantize_kv(torch.tensor([largest, -largest]))
    assert q.tolist() == [0, 0] and scale.item() == 0.0


def test_the_scale_of_tiny_keys_may_be_so_short_that_codes_are_clamped():
    q, scale = reference.quantize_kv(torch.tensor([1.1e-5, -1.1e-5, 5.9e-6]))
    assert q.tolist() == [127, -127, 99] and scale.item() == 2.0 ** -24


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e30])
def test_keys_that_no_scale_fits_become_nan(value):
    x = torch.tensor([[1.0, value], [1.0, 2.0]])
    keys = reference.dequantize_kv(*reference.quantize_kv(x))
    assert keys[0].isnan().all() and keys[1].isfinite().all()


def test_an_int8_linear_sums_exact_integers():
    """At K = 2000, fp32 would round sums of products of 127."""
    q = torch.randint(-127, 128, (6, 2000), generator=torch.Generator().manual_seed(0))
    q[0] = 127
    weight = Int8Weight(q.to(torch.int8), torch.linspace(0.5, 1.0, 6))
    x = torch.full((1, 2000), 3.0)
    x[:, ::2] = 1.0
    x_q, scale = torch.where(x == 3, 127, 42), torch.tensor(3.0) / 127
    exact = (x_q * q).sum(-1)
    assert exact.abs().max() > 2**24
    assert torch.equal(reference.linear(x, weight), (exact.float() * scale * weight.scales)[None])


@pytest.mark.parametrize('dtype', [torch.float32, *_HALF])
def test_an_int8_linear_is_near_a_plain_one(dtype):
    w, x = _random(12, 64), _random(3, 64, seed=1).to(dtype)
    scales = w.abs().amax(1) / 127
    out = reference.linear(x, Int8Weight(torch.round(w / scales[:, None]).to(torch.int8), scales))
    exact = F.linear(x.float(), w)
    assert out.dtype == dtype
    assert (out.float() - exact).abs().max() <= 0.02 * exact.abs().max()


@pytest.mark.parametrize('dtype', [torch.float32, *_HALF])
def test_rounded_activations_have_a_scale_for_each_token_and_group(dtype):
    x = torch.tensor([[127.0, -23.4, 0.0, 0.0, 1270.0, 144.0],
                      [2.04, 12.7, 25.4, -5.11, -254.0, 51.3]]).to(dtype)
    out = reference.fake_quantize_activations(x, 2)
    expected = torch.tensor([[127.0, -23.0, 0.0, 0.0, 1270.0, 140.0],
                             [2.0, 12.7, 25.4, -5.2, -254.0, 52.0]])
    assert out.dtype == dtype
    torch.testing.assert_close(out, expected.to(dtype))


def test_what_rounding_leaves_of_a_group_with_an_outlier_is_rounded_again():
    """The others of the first take 19 steps together, those of the second 24, which is 6 * 4."""
    x = torch.tensor([[127.0, 8.4, -6.3, 5.1], [127.0, 8.4, -8.3, 8.1]])
    out = reference.fake_quantize_activations(x, 4)
    step = 0.4 / 127
    expected = torch.tensor([[127.0, 8 + 127 * step, -6 - 95 * step, 5 + 32 * step],
                             [127.0, 8.0, -8.0, 8.0]])
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize('weight_group, group', [(32, 32), (64, 64), (256, 128)])
def test_a_linear_of_rounded_activations_is_that_of_integers_with_the_zero_points_folded_in(
        weight_group, group):
    """For each group, its scales times (the dot of the codes - the zero times their sum)."""
    x, weight = _random(5, 256), quantize_rtn(_random(9, 256, seed=1), weight_group)
    codes, steps = reference.quantize_per_token(x.reshape(-1, group))
    a = codes.view(5, -1, group).double()
    scales, zeros = (t.double().repeat_interleave(weight_group // group, 1)
                     for t in (weight.scales, weight.zeros))
    w = weight.dequantize(torch.float64).view(9, -1, group)
    q = torch.round(w / scales[..., None]) + zeros[..., None]
    dots = torch.einsum('tgk,ngk->tng', a, q) - zeros * a.sum(-1)[:, None]
    expected = (dots * scales * steps.view(5, 1, -1)).sum(-1)
    out = reference.linear(reference.fake_quantize_activations(x, group), weight)
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=1e-5 * expected.abs().max())
