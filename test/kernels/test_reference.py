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
from tinychat_ros.quantization.rtn import quantize_rtn

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


def test_silu_mul_takes_the_gate_first():
    gate, up = _random(3, 5), _random(3, 5, seed=1)
    torch.testing.assert_close(reference.silu_mul(torch.cat((gate, up), -1)), F.silu(gate) * up)


@pytest.mark.parametrize('dtype', [torch.float32, *_HALF])
def test_a_quantized_linear_is_a_plain_one_of_the_dequantized_weight(dtype):
    weight, x = quantize_rtn(_random(12, 64), 32), _random(3, 64, seed=1).to(dtype)
    out = reference.linear(x, weight)
    assert out.dtype == dtype
    torch.testing.assert_close(out, F.linear(x, weight.dequantize(dtype)))
