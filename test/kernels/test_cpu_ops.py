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
"""The CPU kernels of rows and of linears that are not quantized, against the reference."""

from cpu_memory import DTYPES, Result, rms_norm
import pytest
import torch
from torch.testing import assert_close

from tinychat_ros.kernels import extension, reference

kernels = extension.load()
if kernels is None:
    pytest.skip(extension.why_absent(), allow_module_level=True)

SIZES = (1, 7, 8, 15, 16, 17, 64, 100, 1000)
ACTIVATIONS = list(reference.ACTIVATIONS)

every_isa = pytest.mark.parametrize('isa', kernels.cpu_isas())
every_activation = pytest.mark.parametrize('activation', ACTIVATIONS)
every_dtype = pytest.mark.parametrize('dtype', DTYPES, ids=['fp16', 'bf16', 'fp32'])


def embedding(token_ids, table, isa, num_threads=1, scale=1.0):
    tokens, (vocab, hidden) = len(token_ids), table.shape
    x = Result(tokens, hidden)
    kernels.cpu_embedding(
        token_ids=token_ids.data_ptr(), table=table.data_ptr(), x=x.address, tokens=tokens,
        vocab=vocab, hidden=hidden, dtype=DTYPES.index(table.dtype), scale=scale,
        num_threads=num_threads, isa=isa)
    return x.read()


def layer_norm(x, weight, bias, isa, eps=1e-5, num_threads=1):
    y = Result(*x.shape)
    kernels.cpu_layer_norm(
        x=x.data_ptr(), weight=weight.data_ptr(), bias=0 if bias is None else bias.data_ptr(),
        y=y.address, tokens=x.shape[0], hidden=x.shape[1], eps=eps,
        dtype=DTYPES.index(weight.dtype), num_threads=num_threads, isa=isa)
    return y.read()


def gate_mul(gate_up, activation, isa, num_threads=1):
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = Result(tokens, size)
    kernels.cpu_gate_mul(gate_up=gate_up.data_ptr(), out=out.address, tokens=tokens, size=size,
                         activation=ACTIVATIONS.index(activation), num_threads=num_threads,
                         isa=isa)
    return out.read()


def activate(x, activation, scales, isa, num_threads=1):
    out = Result(*x.shape)
    scaled = {} if scales is None else {'scales': scales.data_ptr(),
                                        'dtype': DTYPES.index(scales.dtype)}
    kernels.cpu_activate(
        x=x.data_ptr(), out=out.address, tokens=x.shape[0], size=x.shape[1],
        activation=ACTIVATIONS.index(activation), num_threads=num_threads, isa=isa, **scaled)
    return out.read()


def bounded(kernel, x, limit, isa, num_threads=1):
    """Return what cpu_clip or cpu_softcap makes of x."""
    out = Result(*x.shape)
    values = out.read().copy_(x)
    name = {'clip': 'limit', 'softcap': 'cap'}[kernel]
    getattr(kernels, f'cpu_{kernel}')(x=out.address, count=values.numel(), **{name: limit},
                                      num_threads=num_threads, isa=isa)
    return out.read()


def dense(x, weight, isa, scales=None, num_threads=1):
    (m, k), n = x.shape, weight.shape[0]
    out = Result(m, n)
    kind = {'dtype': DTYPES.index(weight.dtype)} if scales is None else {
        'scales': scales.data_ptr(), 'dtype': 2}
    kernels.cpu_dense_gemm(
        x=x.data_ptr(), weight=weight.data_ptr(), out=out.address, m=m, n=n, k=k, **kind,
        num_threads=num_threads, isa=isa)
    return out.read()


def same_for_all_threads(run):
    """Three threads have work; the caller's shapes see to it."""
    assert torch.equal(run(num_threads=1), run(num_threads=3))


@every_isa
@every_dtype
@pytest.mark.parametrize('hidden', SIZES)
def test_an_embedding_is_the_row_of_its_token_and_zeros_without_one(hidden, dtype, isa):
    table = torch.randn(5, hidden).to(dtype)
    x = embedding(torch.tensor([4, 0, 5, -1, 2], dtype=torch.int32), table, isa)
    assert torch.equal(x[[0, 1, 4]], table[[4, 0, 2]].float())
    assert (x[2:4] == 0).all()
    scaled = embedding(torch.tensor([4], dtype=torch.int32), table, isa, scale=1.7)
    assert torch.equal(scaled, table[4:].float() * 1.7)


@every_isa
def test_every_half_is_widened_to_its_value(isa):
    table = torch.arange(-2**15, 2**15, dtype=torch.int16).view(1, -1)
    ids = torch.zeros(1, dtype=torch.int32)
    for dtype in DTYPES[:2]:
        halves = table.view(dtype)
        assert_close(embedding(ids, halves, isa), halves.float(), rtol=0, atol=0, equal_nan=True)


@every_isa
@every_dtype
@pytest.mark.parametrize('hidden', SIZES)
def test_norms_agree_with_the_reference(hidden, dtype, isa):
    x = torch.randn(3, hidden) * 4 + 2
    weight, bias = torch.randn(hidden).to(dtype), torch.randn(hidden).to(dtype)
    assert_close(rms_norm(x, weight, isa), reference.rms_norm(x, weight, 1e-5))
    for given in (bias, None):
        expected = reference.layer_norm(x, weight, given, 1e-5)
        # With few values the variance may be no larger than epsilon.
        assert_close(layer_norm(x, weight, given, isa), expected, rtol=1e-5, atol=2e-5)


@every_isa
def test_a_norm_may_overwrite_what_it_reads(isa):
    x, weight = torch.randn(2, 100), torch.randn(100)
    for norm, arguments in ((rms_norm, (weight,)), (layer_norm, (weight, None))):
        expected, y = norm(x, *arguments, isa), x.clone()
        bias = {} if norm is rms_norm else {'bias': 0}
        getattr(kernels, f'cpu_{norm.__name__}')(
            x=y.data_ptr(), weight=weight.data_ptr(), **bias, y=y.data_ptr(), tokens=2,
            hidden=100, eps=1e-5, dtype=2, num_threads=1, isa=isa)
        assert torch.equal(y, expected)


@every_isa
@pytest.mark.parametrize('count', SIZES)
def test_a_residual_is_added_in_place(count, isa):
    memory, residual = torch.randn(count + 16), torch.randn(count)
    expected = memory.clone()
    expected[:count] += residual
    kernels.cpu_add(x=memory.data_ptr(), residual=residual.data_ptr(), count=count, num_threads=1,
                    isa=isa)
    assert torch.equal(memory, expected)


@every_isa
@every_activation
@pytest.mark.parametrize('size', SIZES)
def test_a_gate_times_up_agrees_with_the_reference(size, activation, isa):
    gate_up = torch.randn(3, 2 * size) * 5
    assert_close(gate_mul(gate_up, activation, isa), reference.gate_mul(gate_up, activation),
                 rtol=1e-6, atol=1e-5)


@every_isa
@every_dtype
@every_activation
@pytest.mark.parametrize('size', SIZES)
def test_an_activation_over_scales_agrees_with_the_reference(size, activation, dtype, isa):
    x = torch.randn(3, size) * 5
    for scales in (None, (torch.rand(size) + 0.5).to(dtype)):
        assert_close(activate(x, activation, scales, isa),
                     reference.activate(x, activation, scales), rtol=1e-6, atol=2e-6)


@every_isa
@every_activation
def test_the_error_of_an_activation_is_below_a_millionth(activation, isa):
    x = torch.linspace(-40, 40, 400003)
    exact = reference.activate(x.double(), activation, None)
    error = activate(x[None], activation, None, isa)[0].double() - exact
    assert (error.abs() / exact.abs().clamp(min=1)).max() < 1e-6


@every_isa
def test_the_relative_error_of_exp_is_below_a_millionth(isa):
    """Where x is far below 0, silu(x) is x * exp(x)."""
    gate = torch.linspace(-87.3, -17, 100003)
    expected = gate.double() / (1 + torch.exp(-gate.double()))
    error = activate(gate[None], 'silu', None, isa)[0].double() / expected - 1
    assert error.abs().max() < 1e-6


@every_isa
@every_activation
def test_an_activation_takes_any_number(activation, isa):
    x = torch.tensor([-1e30, -1e4, -100, 100, 1e4, 1e30, float('inf'), float('nan'), 0])
    out = activate(x[None], activation, None, isa)[0]
    assert out[:3].abs().max() < 1e-6
    assert torch.equal(out[3:7], x[3:7])
    assert out[7].isnan() and out[8] == 0
    infinite = activate(torch.tensor([[float('-inf')]]), activation, None, isa)
    assert not infinite.isfinite().any()


@every_isa
@pytest.mark.parametrize('count', SIZES)
def test_values_are_clipped_at_both_limits(count, isa):
    x = torch.randn(count) * 3
    assert torch.equal(bounded('clip', x, 2.5, isa), x.clamp(-2.5, 2.5))
    ends = torch.tensor([float('nan'), float('inf'), float('-inf'), 2.5])
    assert_close(bounded('clip', ends, 2.5, isa), ends.clamp(-2.5, 2.5), equal_nan=True)


@every_isa
def test_the_relative_error_of_a_softcap_is_below_a_millionth(isa):
    x = torch.cat([torch.logspace(-30, 4, 100003), torch.linspace(1, 1000, 100003)])
    out = bounded('softcap', torch.cat([x, -x]), 30.0, isa).double()
    exact = 30 * torch.tanh(torch.cat([x, -x]).double() / 30)
    assert (out / exact - 1).abs().max() < 1e-6
    ends = torch.tensor([float('nan'), float('inf'), float('-inf'), 0.0])
    assert_close(bounded('softcap', ends, 30.0, isa), torch.tensor([float('nan'), 30, -30, 0]),
                 equal_nan=True)


@every_isa
@every_dtype
@pytest.mark.parametrize('m', [1, 2, 3, 4, 5, 130])
@pytest.mark.parametrize('n, k', [(1, 1), (3, 17), (4, 64), (9, 100), (33, 1100)])
def test_a_linear_agrees_with_the_reference(n, k, m, dtype, isa):
    x, weight = torch.randn(m, k), (torch.randn(n, k) * k ** -0.5).to(dtype)
    expected = x.double() @ weight.double().t()
    assert_close(dense(x, weight, isa), expected.float(), rtol=1e-5, atol=1e-5)


@every_isa
@pytest.mark.parametrize('m', [1, 2, 7])
@pytest.mark.parametrize('n, k', [(1, 1), (9, 100), (33, 1100)])
def test_a_linear_of_int8_rows_agrees_with_the_reference(n, k, m, isa):
    x, scales = torch.randn(m, k), torch.rand(n) * 0.01
    weight = torch.randint(-128, 128, (n, k), dtype=torch.int8)
    expected = (x.double() @ weight.double().t() * scales).float()
    assert_close(dense(x, weight, isa, scales), expected, rtol=1e-5, atol=2e-5)


@every_isa
@pytest.mark.parametrize('m', [1, 6])
def test_a_row_of_a_linear_that_is_nan_is_the_only_one(m, isa):
    x, weight = torch.randn(m, 40), torch.randn(7, 40)
    weight[6, 3] = float('nan')
    out = dense(x, weight, isa)
    assert out[:, 6].isnan().all() and out[:, :6].isfinite().all()


@every_isa
def test_the_number_of_threads_does_not_change_a_bit(isa):
    x, weight = torch.randn(70, 12000), torch.randn(12000)
    same_for_all_threads(lambda **n: rms_norm(x, weight, isa, **n))
    same_for_all_threads(lambda **n: layer_norm(x, weight, weight, isa, **n))
    for activation in ACTIVATIONS:
        same_for_all_threads(lambda **n: gate_mul(x.view(35, -1), activation, isa, **n))
        same_for_all_threads(lambda **n: activate(x, activation, weight, isa, **n))
    for kernel in ('clip', 'softcap'):
        same_for_all_threads(lambda **n: bounded(kernel, x, 2.0, isa, **n))
    same_for_all_threads(lambda **n: embedding(torch.arange(70, dtype=torch.int32), x, isa, **n))
    head = torch.randn(3001, 1000).half()
    for m in (1, 5):
        same_for_all_threads(lambda **n: dense(x.view(-1, 1000)[:m].clone(), head, isa, **n))


@pytest.mark.parametrize('argument, value, expected', [
    ('x', 0, 'an address, got null'),
    ('weight', 0, 'an address, got null'),
    ('out', 0, 'an address, got null'),
    ('m', 0, 'at least 1, got 0'),
    ('n', -1, 'at least 1, got -1'),
    ('k', 0, 'at least 1, got 0'),
    ('dtype', 3, '0 .fp16., 1 .bf16. or 2 .fp32., got 3'),
    ('num_threads', -1, '0 .all processors. or more, got -1'),
    ('isa', 'abacus', "'auto' or .*'generic', got 'abacus'"),
])
def test_a_wrong_argument_is_refused_by_name(argument, value, expected):
    address = torch.zeros(8).data_ptr()
    arguments = {'x': address, 'weight': address, 'out': address, 'm': 1, 'n': 1, 'k': 1,
                 'dtype': 2, 'num_threads': 1, argument: value}
    with pytest.raises(ValueError, match=f'cpu_dense_gemm: {argument}: expected {expected}'):
        kernels.cpu_dense_gemm(**arguments)


@pytest.mark.parametrize('activation', [-1, 3])
def test_an_activation_that_there_is_not_is_refused(activation):
    address = torch.zeros(8).data_ptr()
    with pytest.raises(ValueError, match=f'activation: expected .* .GELU., got {activation}'):
        kernels.cpu_activate(x=address, out=address, tokens=1, size=1, activation=activation,
                             num_threads=1)
