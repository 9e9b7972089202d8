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
"""The fused ops against the same steps one by one, with plain, quantized and mixed weights."""

from functools import partial
from typing import Any, Callable, Optional

import pytest
import torch

from tinychat_ros.errors import KernelError
from tinychat_ros.kernels import cpu, extension, ops, reference
from tinychat_ros.kernels.linear import Linear, prepare
from tinychat_ros.kernels.packing import CpuTiles, Int8Weight, QuantizedWeight
from tinychat_ros.kernels.rtn import quantize_rtn

_HIDDEN, _HEADS, _KV_HEADS, _HEAD_DIM = 64, 4, 2, 8
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
_SCORES = ops.Scores(_HEAD_DIM ** -0.5)


def _random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _norm() -> ops.Norm:
    return ops.Norm(_random(_HIDDEN, seed=9) + 1, 1e-5)


def _prepared(weight: QuantizedWeight) -> CpuTiles:
    return prepare(weight).weight


def _cache(length: int = 16) -> ops.LayerCache:
    return ops.LayerCache(*(torch.full((_KV_HEADS, length, _HEAD_DIM), 7.0) for _ in range(2)))


def _rope(length: int = 16) -> ops.RotaryTable:
    angles = _random(length, _HEAD_DIM // 2, seed=5)
    return ops.RotaryTable(angles.cos(), angles.sin())


def _qkv(kinds: str) -> list[Linear]:
    """Return q, k and v, each plain (p) or quantized (q), with biases."""
    sizes = [h * _HEAD_DIM for h in (_HEADS, _KV_HEADS, _KV_HEADS)]
    weights = [_random(n, _HIDDEN, seed=i) for i, n in enumerate(sizes)]
    return [Linear(_prepared(quantize_rtn(w, 32)) if kind == 'q' else w, _random(len(w), seed=8))
            for kind, w in zip(kinds, weights)]


@pytest.mark.parametrize('kinds', ['ppp', 'qqq', 'qpp'])
@pytest.mark.parametrize('tokens, start', [(1, 0), (5, 0), (3, 11), (5, 11)])
def test_qkv_rope_append_is_norm_projection_rotation_and_a_store(kinds, tokens, start):
    x, rope, cache, layers = _random(tokens, _HIDDEN), _rope(), _cache(), _qkv(kinds)
    out = ops.qkv_rope_append(x, _norm(), layers, rope, cache, start)

    normed = reference.rms_norm(x, *_norm())
    q, k, v = (ops.linear(normed, layer).view(tokens, -1, _HEAD_DIM) for layer in layers)
    end = start + tokens
    cos, sin = rope.cos[start:end], rope.sin[start:end]
    torch.testing.assert_close(out, reference.rotate(q, cos, sin))
    torch.testing.assert_close(cache.k[:, start:end],
                               reference.rotate(k, cos, sin).transpose(0, 1))
    torch.testing.assert_close(cache.v[:, start:end], v.transpose(0, 1))
    for untouched in (cache.k, cache.v):
        assert (untouched[:, :start] == 7).all() and (untouched[:, end:] == 7).all()


def test_joined_qkv_gives_what_three_linears_give():
    x, rope, layers = _random(3, _HIDDEN), _rope(), _qkv('ppp')
    joined = Linear(torch.cat([layer.weight for layer in layers]),
                    torch.cat([layer.bias for layer in layers]))
    one, three = _cache(), _cache()
    out = ops.qkv_rope_append(x, _norm(), [joined], rope, one, 2)
    torch.testing.assert_close(out, ops.qkv_rope_append(x, _norm(), layers, rope, three, 2))
    torch.testing.assert_close(one, three)


def test_a_full_cache_is_refused_before_anything_is_written():
    cache = _cache(4)
    with pytest.raises(KernelError, match='room for 5 positions, got 4'):
        ops.qkv_rope_append(_random(3, _HIDDEN), _norm(), _qkv('ppp'), _rope(), cache, 2)
    assert (cache.k == 7).all()


def test_attention_reads_no_further_than_its_length():
    q, cache = _random(2, _HEADS, _HEAD_DIM), _cache()
    cache.k.copy_(_random(*cache.k.shape, seed=1))
    cache.v.copy_(_random(*cache.v.shape, seed=2))
    cache.k[:, 9:] = cache.v[:, 9:] = float('nan')
    out = ops.attention(q, cache, 7, _SCORES)
    assert out.shape == (2, _HEADS * _HEAD_DIM) and torch.isfinite(out).all()
    torch.testing.assert_close(
        out, reference.attention(q, cache.k[:, :9], cache.v[:, :9]).flatten(1))


def test_an_int8_cache_holds_each_row_by_its_scale():
    x, layers, plain = _random(3, _HIDDEN), _qkv('ppp'), _cache()
    shape = plain.k.shape
    int8 = ops.LayerCache(*(torch.zeros(shape, dtype=torch.int8) for _ in range(2)),
                          *(torch.zeros(shape[:2], dtype=torch.float16) for _ in range(2)))
    q = ops.qkv_rope_append(x, _norm(), layers, _rope(), plain, 2)
    assert torch.equal(q, ops.qkv_rope_append(x, _norm(), layers, _rope(), int8, 2))
    for values, codes, scales in ((plain.k, int8.k, int8.k_scale),
                                  (plain.v, int8.v, int8.v_scale)):
        error = (reference.dequantize_kv(codes, scales) - values)[:, 2:5].abs()
        assert (error <= 0.51 * scales[:, 2:5, None]).all() and not codes[:, 5:].any()
    exact = ops.attention(q, ops.LayerCache(reference.dequantize_kv(int8.k, int8.k_scale),
                                            reference.dequantize_kv(int8.v, int8.v_scale)), 2,
                          _SCORES)
    torch.testing.assert_close(ops.attention(q, int8, 2, _SCORES), exact)


def test_a_position_that_only_the_device_knows_is_refused_by_the_reference():
    state = ops.StepState(torch.zeros(4, dtype=torch.int32))
    with pytest.raises(KernelError, match='position: expected a number'):
        ops.attention(_random(1, _HEADS, _HEAD_DIM).half(), _cache(), state, _SCORES)


def test_candidates_are_the_best_of_each_16_logits_and_the_first_of_equals():
    head = Linear(_random(40, _HIDDEN))
    head.weight[20:24] = head.weight[18]
    logits = ops.lm_head(_random(1, _HIDDEN, seed=3), _norm(), head)[0]
    best = reference.candidates(logits).best
    for tile, (bits, token) in enumerate(best):
        part = logits[16 * tile:16 * tile + 16]
        assert bits.view(torch.float32) == part.max() and token == 16 * tile + part.argmax()


def test_norm_gate_up_joined_and_apart_is_the_gated_product():
    x, gate, up = _random(3, _HIDDEN), _random(20, _HIDDEN, seed=1), _random(20, _HIDDEN, seed=2)
    normed = reference.rms_norm(x, *_norm())
    expected = torch.nn.functional.silu(normed @ gate.t()) * (normed @ up.t())
    for layers in ([Linear(torch.cat((gate, up)))], [Linear(gate), Linear(up)]):
        torch.testing.assert_close(ops.norm_gate_up(x, _norm(), layers), expected)


def test_linear_residual_adds_product_bias_and_residual():
    x, weight, bias, residual = (_random(*s, seed=i) for i, s in enumerate(
        [(3, 64), (10, 64), (10,), (3, 10)]))
    torch.testing.assert_close(ops.linear_residual(x, Linear(weight, bias), residual),
                               residual + x @ weight.t() + bias)


@pytest.mark.parametrize('dtype', _DTYPES)
def test_logits_are_fp32_whatever_the_dtype(dtype):
    norm = ops.Norm(*(_norm()[0].to(dtype), 1e-5))
    out = ops.lm_head(_random(2, _HIDDEN).to(dtype), norm, Linear(_random(30, _HIDDEN).to(dtype)))
    assert out.dtype == torch.float32 and out.shape == (2, 30)


def _layer_norm(dtype: torch.dtype = torch.float32) -> ops.LayerNorm:
    weight, bias = (_random(_HIDDEN, seed=seed).to(dtype) for seed in (9, 10))
    return ops.LayerNorm(weight + 1, bias, 1e-5)


def _qkv_step(norm: ops.AnyNorm, rope: Optional[ops.RotaryTable] = None,
              **flags: Any) -> Callable[..., torch.Tensor]:
    return partial(ops.qkv_rope_append, _random(1, _HIDDEN), norm, [Linear(_random(64, _HIDDEN))],
                   rope, start=ops.StepState.at(9, torch.device('cpu')), **flags)


def _attention_step(**flags: Any) -> Callable[..., torch.Tensor]:
    return partial(ops.attention, _random(1, _HEADS, _HEAD_DIM), scores=ops.Scores(0.3, **flags),
                   start=ops.StepState.at(9, torch.device('cpu')))


_HEAD_NORM = ops.HeadNorm(_random(_HEAD_DIM, seed=6).half(), _random(_HEAD_DIM).half(), 1e-6)
_STEPS_OF_A_CACHE = {
    'RMSNorm and rotation': _qkv_step(_norm(), _rope()),
    'LayerNorm without rotation': _qkv_step(_layer_norm()),
    'LayerNorm of halves and a clip': _qkv_step(_layer_norm(torch.float16), clip=0.5),
    'norms of heads': _qkv_step(_norm(), _rope(), head_norm=_HEAD_NORM),
    'attention': _attention_step(),
    'a window': _attention_step(window=4),
    'capped scores': _attention_step(softcap=2.0),
    'slopes': _attention_step(slopes=torch.arange(4) / 10),
}
_X, _UP = _random(1, _HIDDEN, seed=4), Linear(_random(40, _HIDDEN), _random(40))
_STEPS = {
    'a scaled embedding': partial(ops.embedding, torch.tensor([3], dtype=torch.int32),
                                  _random(9, _HIDDEN), torch.float32, 8.0),
    'a norm behind a linear': partial(ops.linear_residual, _X, Linear(_random(_HIDDEN, _HIDDEN)),
                                      _random(1, _HIDDEN), _layer_norm()),
    **{f'a gate of {name}': partial(ops.norm_gate_up, _X, _norm(), [_UP], name)
       for name in reference.ACTIVATIONS},
    **{f'{name} alone': partial(ops.norm_up, _X, _layer_norm(), _UP, name)
       for name in reference.ACTIVATIONS},
    'scales of an activation': partial(ops.norm_up, _X, _norm(), _UP, 'gelu',
                                       _random(40).exp().half()),
    'capped logits': partial(ops.lm_head, _X, _norm(), _UP, 3.0),
}


def _recorded(step: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return what a step gives that was recorded and replayed."""
    found = []
    assert cpu.record(lambda: found.append(step()))()
    return found[0]


@pytest.fixture
def compiled() -> None:
    if extension.load() is None:
        pytest.skip(extension.why_absent())


@pytest.mark.parametrize('name', _STEPS)
def test_an_op_gives_the_same_by_kernels_recorded_and_by_the_reference(
        name, compiled, monkeypatch):
    by_kernels = _STEPS[name]()
    assert torch.equal(_recorded(_STEPS[name]), by_kernels)
    monkeypatch.setattr(extension, 'load', lambda: None)
    torch.testing.assert_close(by_kernels, _STEPS[name](), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize('name', _STEPS_OF_A_CACHE)
def test_an_op_of_a_cache_gives_the_same_by_kernels_recorded_and_by_the_reference(
        name, compiled, monkeypatch):
    caches = [ops.LayerCache(*(_random(_KV_HEADS, 16, _HEAD_DIM, seed=s) for s in (1, 2)))
              for _ in range(3)]
    steps = [partial(_STEPS_OF_A_CACHE[name], cache=cache) for cache in caches]
    by_kernels = steps[0]()
    assert torch.equal(_recorded(steps[1]), by_kernels)
    monkeypatch.setattr(extension, 'load', lambda: None)
    torch.testing.assert_close(by_kernels, steps[2](), rtol=1e-5, atol=1e-5)
    for values, recorded, expected in zip(*(cache[:2] for cache in caches)):
        assert torch.equal(recorded, values)
        torch.testing.assert_close(values, expected, rtol=1e-5, atol=1e-5)


def test_embedding_picks_rows():
    table = _random(10, 4)
    found = ops.embedding(torch.tensor([3, 3, 9]), table, torch.float32)
    assert torch.equal(found, table[[3, 3, 9]])


@pytest.mark.parametrize('weight', [_random(8, 64), quantize_rtn(_random(8, 64), 32),
                                    _prepared(quantize_rtn(_random(8, 64), 32)),
                                    Int8Weight(torch.ones(8, 64).to(torch.int8), torch.ones(8))],
                         ids=['plain', 'quantized', 'prepared', 'int8'])
@pytest.mark.parametrize('shape', [(3, 60), (64,), (1, 3, 64)])
def test_an_input_of_another_shape_is_refused_with_both(weight, shape):
    with pytest.raises(KernelError, match=r'expected x \[T, 64\], got \['):
        ops.linear(_random(*shape), Linear(weight))


@pytest.mark.parametrize('dtype', _DTYPES)
@pytest.mark.parametrize('tokens', [1, 2, 7, 33])
@pytest.mark.parametrize('n, k, group', [(8, 64, 32), (40, 128, 64), (24, 384, 128), (16, 96, 96)])
def test_the_compiled_linear_agrees_with_the_oracle(n, k, group, tokens, dtype):
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    weight, x = quantize_rtn(_random(n, k), group), _random(tokens, k, seed=1).to(dtype)
    tiles = _prepared(weight)
    assert isinstance(tiles, CpuTiles)
    out, exact = ops.linear(x, Linear(tiles)), reference.linear(x.double(), weight)
    assert out.dtype == dtype
    rounding = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    assert (out.double() - exact).abs().max() <= rounding * exact.abs().max()


def _int8(n: int, k: int) -> Int8Weight:
    return Int8Weight((_random(n, k) * 40).clamp(-127, 127).to(torch.int8), _random(n).abs())


@pytest.mark.parametrize('dtype', _DTYPES)
@pytest.mark.parametrize('tokens', [1, 7])
def test_the_compiled_int8_linear_is_the_oracle_to_the_bit(tokens, dtype):
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    weight, x = _int8(9, 100), _random(tokens, 100, seed=1).to(dtype)
    out = ops.linear(x, Linear(weight, torch.ones(9, dtype=dtype)))
    assert out.dtype == dtype
    assert torch.equal(out, reference.linear(x, weight) + 1)


def test_an_int8_weight_that_is_not_contiguous_is_read_by_its_values():
    weight, x = _int8(64, 64), _random(3, 64)
    turned = Int8Weight(weight.qweight.t(), weight.scales.repeat_interleave(2)[::2])
    assert torch.equal(ops.linear(x, Linear(turned)),
                       ops.linear(x, Linear(Int8Weight(weight.qweight.t().contiguous(),
                                                       weight.scales))))


def test_without_the_compiled_module_int8_weights_run_on_the_oracle(monkeypatch):
    monkeypatch.setattr(extension, 'load', lambda: None)
    weight, x = _int8(9, 100), _random(3, 100)
    assert torch.equal(ops.linear(x, Linear(weight)), reference.linear(x, weight))


@pytest.mark.parametrize('weight', [_prepared(quantize_rtn(_random(16, 64), 32)), _int8(16, 64)],
                         ids=['4-bit', 'int8'])
def test_an_input_that_is_not_contiguous_is_read_by_its_values(weight):
    wide = _random(4, 128)
    torch.testing.assert_close(ops.linear(wide[:, ::2], Linear(weight)),
                               ops.linear(wide[:, ::2].contiguous(), Linear(weight)))


@pytest.mark.parametrize('make', [lambda w: w, _prepared], ids=['oracle', 'prepared'])
def test_a_linear_rounds_its_input_where_it_should(make):
    weight, bias, x = make(quantize_rtn(_random(16, 64), 32)), _random(16, seed=1), _random(3, 64)
    rounded = reference.fake_quantize_activations(x, 32)
    out = ops.linear(x, Linear(weight, bias, activation_group=32))
    torch.testing.assert_close(out, ops.linear(rounded, Linear(weight, bias)))
    assert not torch.allclose(out, ops.linear(x, Linear(weight, bias)), rtol=1e-3)
    with pytest.raises(KernelError, match=r'expected x \[T, 64\], got \[3, 60\]'):
        ops.linear(x[:, :60], Linear(weight, bias, activation_group=32))
