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
"""A block on its way to quantized weights: what folds into what, and what is lost."""

from dataclasses import dataclass, replace

import pytest
from tiny_blocks import (
    block_of, pairs, parts_of, PREFIX, run_block, sequences, tiny_block, TOKENS, walk)
import torch
from torch import Tensor

from tinychat_ros.kernels import reference
from tinychat_ros.kernels.ops import Norm
from tinychat_ros.kernels.packing import QuantizedWeight
from tinychat_ros.kernels.rtn import rounded, WeightSpec
from tinychat_ros.quantization.block import BlockQuantizer
from tinychat_ros.quantization.method import Method, METHODS
from tinychat_ros.quantization.recipes import recipe, Scratch

SPEC = WeightSpec(4, 32)
HEADS = [(4, 4), (4, 2), (4, 1), (8, 2)]
ALL = Method(scales=True, clip=True, inputs='corrected', feedback=True, act_order=True,
             clip_all=True, alpha_one=True, weight_magnitude=True)


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _block(heads=(4, 2), **changes):
    return tiny_block(num_attention_heads=heads[0], num_key_value_heads=heads[1],
                      head_dim=64 // heads[0], **changes)


def _quantizer(block, config, scratch, method=ALL, spec=SPEC):
    return BlockQuantizer(block, PREFIX, spec, method, scratch)


def _quantized(method, block, config, scratch, xs, entering=None, spec=SPEC):
    worker = _quantizer(block, config, scratch, method, spec)
    walk(worker, block, config, scratch, xs, entering)
    return worker


def _error(worker, block, scratch, xs):
    wanted = run_block(block, scratch, xs)
    return float((run_block(worker.current, scratch, xs) - wanted).pow(2).mean())


@dataclass(frozen=True)
class _Unrounded(QuantizedWeight):
    """A weight as it would be rounded, and a scale for each of its rows."""

    weight: Tensor = None

    def dequantize(self, dtype=torch.float32):
        return self.weight * self.scales.float()


def _unrounded(self, weight, sums, factors, clip):
    n, k = weight.shape
    return _Unrounded(torch.zeros(n, k // 2, dtype=torch.uint8), torch.ones(n, 1).half(),
                      torch.zeros(n, 1, dtype=torch.uint8), k, 4, weight)


@pytest.mark.parametrize('heads', HEADS)
@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('inputs', ['original', 'corrected'])
def test_scales_alone_do_not_change_what_a_block_computes(heads, bias, inputs, monkeypatch):
    block, config, scratch = _block(heads, attention_bias=bias, mlp_bias=bias)
    xs = sequences(64, outliers=20)
    monkeypatch.setattr(BlockQuantizer, '_codes', _unrounded)
    monkeypatch.setattr('tinychat_ros.quantization.block.best_scale',
                        lambda scales, loss: list(scales)[-1])
    worker = _quantized(replace(ALL, inputs=inputs), block, config, scratch, xs)
    wanted = run_block(block, scratch, xs)
    found = run_block(worker.current, scratch, xs)
    # Norms are exact; the scales of value and up projections are rounded to fp16.
    assert (found - wanted).norm() < 1e-3 * wanted.norm()
    assert [result.alpha for result in worker.results] == [1] * 7
    for part in parts_of(config):
        before, after = getattr(block, part.last).weight, getattr(worker.current, part.last).weight
        assert (after / before).nanmedian(0).values.max() > 1.5
        norm = worker.tensors[f'{PREFIX}{part.norm_name}.weight'].float()
        assert (norm / getattr(block, part.norm).weight - 1).abs().max() > 0.3


@pytest.mark.parametrize('heads', HEADS)
@pytest.mark.parametrize('index', [0, 1], ids=['attention', 'mlp'])
def test_a_scale_in_the_rows_of_the_source_is_undone_by_the_columns_behind(heads, index):
    """Powers of two are folded without rounding, but for weights below the range of fp16."""
    block, config, scratch = _block(heads, attention_bias=True, mlp_bias=True)
    worker, part = _quantizer(block, config, scratch), parts_of(config)[index]
    last = getattr(block, part.last)
    k = last.weight.shape[1]
    wanted = 2.0 ** (_random(k) * 2).round()
    by_head = wanted.view(*part.heads, -1)
    factors = worker._fold_into_source(part, by_head[:, :1].expand_as(by_head).reshape(-1))
    assert len(factors) == k and len(factors.unique()) > 4
    folded = replace(worker.current, **{part.last: replace(last, weight=last.weight * factors)})
    xs = sequences(64)
    torch.testing.assert_close(run_block(folded, scratch, xs), run_block(block, scratch, xs),
                               rtol=1e-5, atol=1e-5)
    name = f'{PREFIX}{part.first_names[-1]}'
    source = getattr(folded, part.first)[-1]
    assert torch.equal(worker.tensors[f'{name}.weight'].float(), source.weight)
    assert torch.equal(worker.tensors[f'{name}.bias'].float(), source.bias)


@pytest.mark.parametrize('quantized', [False, True])
def test_a_channel_that_fp16_could_not_hold_keeps_factor_1(quantized):
    block, config, scratch = _block(mlp_bias=True)
    worker = _quantizer(block, config, scratch, METHODS['rtn'])
    if quantized:
        worker.quantize(recipe(config)[1], None, None)
    before = worker.current.gate_up[1]
    wanted = torch.ones(128)
    wanted[:4] = torch.tensor([1e8, 1e-8, 4.0, 1e-20])
    factors = worker._fold_into_source(parts_of(config)[1], wanted)
    assert factors[:5].tolist() == [1, 1, 4, 1, 1]
    after = worker.current.gate_up[1]
    torch.testing.assert_close(after.weight * factors[:, None], before.weight, rtol=0, atol=1e-6)
    torch.testing.assert_close(after.bias * factors, before.bias, rtol=0, atol=1e-6)


def test_the_bias_of_the_source_must_fit_fp16_as_well():
    block, config, scratch = _block(mlp_bias=True)
    worker = _quantizer(block, config, scratch)
    up = block.gate_up[1]
    worker.current = replace(block, gate_up=(block.gate_up[0],
                                             replace(up, bias=torch.full((128,), 100.0))))
    wanted = torch.ones(128)
    wanted[:2] = torch.tensor([2.0**-10, 2.0**-9])
    assert worker._fold_into_source(parts_of(config)[1], wanted)[:2].tolist() == [1, 2.0**-9]


def test_a_scale_behind_the_activation_multiplies_the_one_that_is_there():
    block, config, scratch = _block()
    block = replace(block, mlp_scales=torch.full((128,), 4.0))
    worker = _quantizer(block, config, scratch)
    part = replace(parts_of(config)[1], scales_name='mlp.act.scales')
    wanted = torch.ones(128)
    wanted[:4] = torch.tensor([2.0, 0.125, 1e8, 1e-9])  # fp16 holds 4 times the first two.
    factors = worker._fold_into_scales(part, wanted)
    stored = worker.tensors[f'{PREFIX}mlp.act.scales']
    assert stored[:5].tolist() == [8, 0.5, 1, 1, 4] and stored.dtype == torch.float16
    assert torch.equal(worker.current.mlp_scales, stored.float())
    assert factors[:5].tolist() == [2, 0.125, 0.25, 0.25, 1]


@pytest.mark.parametrize('method', [*METHODS.values(), ALL], ids=[*METHODS, 'all'])
@pytest.mark.parametrize('spec', [SPEC, WeightSpec(3, -1)], ids=['4 bits', '3 bits'])
def test_what_is_stored_is_what_the_next_part_sees(method, spec):
    """A block made of the stored tensors gives the very outputs of the quantizer's."""
    block, config, scratch = _block(attention_bias=True, mlp_bias=True)
    xs = sequences(64, outliers=5)
    worker = _quantized(method, block, config, scratch, xs,
                        [x + 0.02 * _random(*x.shape) for x in xs], spec)
    stored = {(f'{name}.weight' if isinstance(value, QuantizedWeight) else name):
              (value.dequantize() if isinstance(value, QuantizedWeight) else value)
              for name, value in worker.tensors.items()}
    assert all(value.dtype == torch.float16 for value in worker.tensors.values()
               if isinstance(value, Tensor))
    assert torch.equal(run_block(block_of(stored, config, scratch), scratch, xs),
                       run_block(worker.current, scratch, xs))
    assert [result.name for result in worker.results] == [
        f'{PREFIX}{name}' for part in parts_of(config)
        for name in (*part.first_names, part.last_name)]


def test_norms_are_seen_as_fp16_stores_them():
    block, config, scratch = _block()
    weight = 1 + _random(64) * 0.1
    block = replace(block, attention_norm=Norm(weight, 1e-5))
    worker = _quantized(METHODS['gptq'], block, config, scratch, sequences(64))
    assert torch.equal(worker.current.attention_norm.weight, weight.half().float())


# Measured: block 10.5 to 20 and 4.3 to 6.0, linears 30 to 45 and 6.5 to 10.2.
@pytest.mark.parametrize('name, of_block, of_linears', [('awq', 5, 15), ('awq-paper', 2.5, 4)])
@pytest.mark.parametrize('heads', HEADS)
def test_awq_loses_several_times_less_than_rounding_where_channels_are_large(
        heads, name, of_block, of_linears):
    block, config, scratch = _block(heads)
    block.attention_norm.weight[[5, 33]] *= 60
    xs = sequences(64, count=6)
    plain = _quantized(METHODS['rtn'], block, config, scratch, xs)
    worker = _quantized(METHODS[name], block, config, scratch, xs)
    assert _error(worker, block, scratch, xs) < _error(plain, block, scratch, xs) / of_block
    for result in worker.results[:3]:
        assert 0 < result.loss < result.loss_rtn / of_linears


@pytest.mark.parametrize('name', ['gptq', 'awq', 'awq-paper'])
def test_losses_are_those_of_the_layers_outputs(name):
    block, config, scratch = _block()
    xs = sequences(64, outliers=3)
    entering = [x + 0.05 * _random(*x.shape) for x in xs]
    method = METHODS[name]
    worker = _quantized(method, block, config, scratch, xs, entering)
    x, x0 = (reference.rms_norm(torch.cat(side), *block.attention_norm)
             for side in (entering, xs))
    found = reference.rms_norm(torch.cat(entering), *worker.current.attention_norm)
    for index in (0, 1):  # The scale of the value projection went into the next linear.
        weight = block.qkv[index].weight
        wanted = (x0 if method.inputs == 'corrected' else x) @ weight.t()
        result = worker.results[index]
        plain = x @ rounded(weight, SPEC).t()
        assert result.loss_rtn == pytest.approx(float((plain - wanted).pow(2).mean()), rel=1e-3)
        out = found @ worker.current.qkv[index].weight.t()
        assert result.loss == pytest.approx(float((out - wanted).pow(2).mean()), rel=1e-3)


def test_the_last_linear_is_held_against_what_the_original_block_made_of_its_inputs():
    block, config, scratch = _block()
    xs = sequences(64)
    entering = [x + 0.05 * _random(*x.shape) for x in xs]
    worker = _quantized(METHODS['awq'], block, config, scratch, xs, entering)
    part = parts_of(config)[0]
    wanted, found = (torch.cat([reference.linear(part.hidden(one, x, scratch), one.o_proj.weight)
                                for x in side])
                     for one, side in ((block, xs), (worker.current, entering)))
    # The loss was taken before the scale went into the value projection's fp16 scales.
    assert worker.results[3].loss == pytest.approx(float((found - wanted).pow(2).mean()), rel=1e-2)


@pytest.mark.parametrize('method', [*METHODS.values(), ALL], ids=[*METHODS, 'all'])
@pytest.mark.parametrize('count', [1, 3])
def test_every_loss_is_finite(method, count):
    block, config, scratch = _block(intermediate_size=256)
    for layer in (*block.qkv, block.o_proj):
        layer.weight[:, 7] = 0
    block.qkv[2].weight[3] = 0  # A value channel that is always zero.
    xs = sequences(64, outliers=1000, count=count)
    worker = _quantized(method, block, config, scratch, xs)
    assert len(worker.results) == 7
    for result in worker.results:
        assert 0 <= result.loss < 1e3 and 0 <= result.loss_rtn < 1e3
    assert torch.isfinite(run_block(worker.current, scratch, xs)).all()


def test_plain_rounding_needs_no_inputs():
    block, config, scratch = _block()
    worker = _quantizer(block, config, scratch, METHODS['rtn'])
    for part in parts_of(config):
        worker.quantize((part,), None, None)
    for layer, name in zip(block.qkv, parts_of(config)[0].first_names):
        assert torch.equal(worker.tensors[PREFIX + name].dequantize(),
                           rounded(layer.weight, SPEC))
    assert all(result.loss is None and result.alpha is None for result in worker.results)
    assert torch.equal(worker.tensors[f'{PREFIX}input_layernorm.weight'],
                       block.attention_norm.weight.half())


@pytest.mark.parametrize('changes, group, left, note', [
    ({'num_key_value_heads': 1, 'head_dim': 12, 'num_attention_heads': 8}, 32, 'qkv',
     'N = 12 is not a multiple of 8'),
    ({'intermediate_size': 100}, 32, 'gate_up, down_proj', 'is not a multiple of'),
    ({'intermediate_size': 96}, 64, 'down_proj',
     'K = 96 is not a multiple of the group size 64')])
@pytest.mark.parametrize('method', [METHODS['rtn'], ALL], ids=['rtn', 'all'])
def test_linears_that_do_not_fit_stay_in_fp16_with_all_that_share_their_input(
        changes, group, left, note, method):
    block, config, scratch = tiny_block(**changes)
    xs = sequences(64)
    worker = _quantized(method, block, config, scratch, xs, spec=WeightSpec(4, group))
    fields = {'q_proj': 'qkv', 'k_proj': 'qkv', 'v_proj': 'qkv', 'gate_proj': 'gate_up',
              'up_proj': 'gate_up'}
    for result in worker.results:
        name = result.name.rpartition('.')[2]
        plain = fields.get(name, name) in left.split(', ')
        assert (result.bits, note in result.note) == ((16, True) if plain else (4, False))
        assert (f'{result.name}.weight' in worker.tensors) == plain
        assert (result.name in worker.tensors) != plain
        assert not plain or (result.alpha is None and result.bytes_after == result.bytes_before)
    assert _error(worker, block, scratch, xs) < 0.05 * float(run_block(
        block, scratch, xs).pow(2).mean())


def test_a_source_left_in_fp16_takes_the_scale_of_the_linear_behind_it():
    block, config, scratch = tiny_block(num_key_value_heads=1, head_dim=12,
                                        num_attention_heads=8)
    worker = _quantized(ALL, block, config, scratch, sequences(64, outliers=20))
    assert worker.results[3].alpha > 0 and worker.results[3].bits == 4
    value = worker.tensors[f'{PREFIX}self_attn.v_proj.weight'].float()
    assert torch.equal(worker.current.qkv[2].weight, value)
    assert (value / block.qkv[2].weight - 1).abs().amax() > 0.1


def test_query_and_key_projections_are_cut_only_on_request():
    block, config, scratch = _block()
    xs = sequences(64)
    scales = {}
    for cut in (False, True):
        worker = _quantized(Method(clip=True, clip_all=cut), block, config, scratch, xs)
        scales[cut] = [worker.tensors[f'{PREFIX}self_attn.{name}_proj'].scales for name in 'qkv']
    assert all(torch.equal(scales[False][i], _rtn_scales(block.qkv[i])) for i in (0, 1))
    assert not any(torch.equal(scales[True][i], _rtn_scales(block.qkv[i])) for i in range(3))
    assert torch.equal(scales[False][2], scales[True][2])


def _rtn_scales(layer):
    groups = layer.weight.view(len(layer.weight), -1, 32)
    return ((groups.amax(2).clamp(min=0) - groups.amin(2).clamp(max=0)) / 15).half()


def test_search_reads_only_the_samples_given_for_it():
    block, config, scratch = _block()
    xs, read = sequences(64), []

    def search():
        read.append(True)
        return iter(pairs(xs[:1], xs[:1])())
    worker = _quantizer(block, config, scratch)
    worker.quantize(recipe(config)[0], pairs(xs, xs), search)
    assert read == [True]
    plain = _quantizer(block, config, scratch, METHODS['gptq'])
    plain.quantize(recipe(config)[0], pairs(xs, xs), search)
    assert read == [True]


def test_scratch_has_room_for_the_tokens_asked_for():
    _, config, _ = _block()
    scratch = Scratch(config, TOKENS, torch.device('cpu'))
    assert scratch.cache.k.shape == (2, TOKENS, 16)
    assert scratch.positions.rope.cos.shape == (TOKENS, 8)
