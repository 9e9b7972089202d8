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
"""SmoothQuant: what is folded, what int8 keeps, and which alpha is chosen."""

from dataclasses import replace
import math

import pytest
from tiny_blocks import pairs, parts_of, PREFIX, run_block, sequences, tiny_block, walk
import torch

from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels import reference
from tinychat_ros.kernels.packing import Int8Weight
from tinychat_ros.quantization.folding import fold_into_norm
from tinychat_ros.quantization.recipes import recipe
from tinychat_ros.quantization.smoothquant import (
    ALPHAS, best_alpha, PLAIN, quantize_int8, smoothing, SmoothQuantizer, survey, Survey, Surveyor)


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def _with_outliers(**changes):
    """Return a block whose norms make a few channels large, as those of large models do."""
    block, config, scratch = tiny_block(**changes)
    for norm in (block.attention_norm, block.mlp_norm):
        norm.weight[[5, 33]] *= 50
    return block, config, scratch


def _surveys(block, config, scratch, xs, alpha=None):
    surveyor = Surveyor(block, scratch, alpha)
    walk(surveyor, block, config, scratch, xs)
    return {part: Survey.from_json(found) for part, found in surveyor.as_json().items()}


@pytest.mark.parametrize('size', [1e-6, 1.0, 1e6])
def test_int8_keeps_every_weight_within_half_a_step_of_its_row(size):
    w = _random(16, 48) * size * torch.logspace(-3, 3, 16)[:, None]
    weight = quantize_int8(w)
    assert weight.qweight.dtype == torch.int8 and weight.scales.dtype == torch.float32
    torch.testing.assert_close(weight.scales, w.abs().amax(1) / 127)
    assert ((weight.dequantize() - w).abs() <= weight.scales[:, None] * 0.50001).all()
    assert (weight.qweight.abs().amax(1) == 127).all()


def test_a_row_of_zeros_stays_one():
    w = _random(4, 16)
    w[2] = 0
    weight = quantize_int8(w)
    assert weight.scales[2] == 0 and (weight.qweight[2] == 0).all()
    assert (weight.dequantize()[2] == 0).all()


def test_a_factor_balances_activations_and_weights():
    largest, weights = _random(32).exp(), [_random(8, 32), _random(12, 32, seed=1)]
    columns = torch.maximum(weights[0].abs().amax(0), weights[1].abs().amax(0))
    factors = smoothing(largest, weights, 0.5)
    torch.testing.assert_close(largest / factors, columns * factors)
    torch.testing.assert_close(smoothing(largest, weights, 1.0), largest)
    torch.testing.assert_close(smoothing(largest, weights, 0.0), 1 / columns)


@pytest.mark.parametrize('alpha', [0.0, 0.3, 0.9, 1.0])
def test_a_channel_that_is_dead_on_either_side_keeps_factor_1(alpha):
    largest, weight = _random(8).exp(), _random(4, 8)
    largest[2], weight[:, 5] = 0, 0
    factors = smoothing(largest, [weight], alpha)
    assert factors[2] == factors[5] == 1
    assert torch.isfinite(factors).all() and (factors > 0).all()


@pytest.mark.parametrize('heads', [4, 2, 1])
@pytest.mark.parametrize('alpha', [0.3, 0.8])
def test_smoothing_does_not_change_what_a_block_computes(heads, alpha):
    block, config, scratch = _with_outliers(num_key_value_heads=heads, attention_bias=True)
    xs = sequences(64)
    folded = block
    for part in parts_of(config):
        norm, first = getattr(block, part.norm), getattr(block, part.first)
        found = survey((part,), block, scratch, pairs(xs, xs), pairs(xs, xs), [alpha])
        norm, factors = fold_into_norm(
            norm, smoothing(found.largest, [layer.weight for layer in first], alpha))
        folded = replace(folded, **{part.norm: norm, part.first: tuple(
            replace(layer, weight=layer.weight * factors) for layer in first)})
    assert not torch.equal(folded.attention_norm.weight, block.attention_norm.weight)
    wanted = run_block(block, scratch, xs)
    assert (run_block(folded, scratch, xs) - wanted).norm() < 1e-5 * wanted.norm()


def test_what_is_stored_computes_what_the_block_did():
    block, config, scratch = _with_outliers(attention_bias=True, mlp_bias=True)
    xs = sequences(64)
    worker = SmoothQuantizer(block, PREFIX, 0.8, _surveys(block, config, scratch, xs))
    for part in parts_of(config):
        worker.quantize((part,), None, None)
    for part in parts_of(config):
        norm = worker.tensors[f'{PREFIX}{part.norm_name}.weight']
        assert norm.dtype == torch.float16
        before, after = getattr(block, part.norm), norm.float()
        for name, layer in zip(part.first_names, getattr(block, part.first)):
            stored = worker.tensors[PREFIX + name]
            assert isinstance(stored, Int8Weight)
            # With the factors undone, each weight is within half a step of its row.
            error = (stored.dequantize() * after - layer.weight * before.weight).abs()
            assert (error <= stored.scales[:, None] * after.abs() * 0.501).all()
            assert torch.equal(worker.tensors[f'{PREFIX}{name}.bias'].float(), layer.bias)
        last = getattr(block, part.last)
        stored = worker.tensors[PREFIX + part.last_name]
        assert torch.equal(stored.qweight, quantize_int8(last.weight).qweight)


def test_the_survey_holds_the_largest_inputs_and_the_errors_of_the_outputs():
    block, config, scratch = _with_outliers()
    xs = sequences(64)
    found = survey(recipe(config)[0], block, scratch, pairs(xs, xs), pairs(xs[:1], xs[:1]), [0.6])
    normed = [reference.rms_norm(x, *block.attention_norm) for x in xs]
    assert torch.equal(found.largest, torch.cat(normed).abs().amax(0))
    weights = [layer.weight for layer in block.qkv]
    _, factors = fold_into_norm(block.attention_norm, smoothing(found.largest, weights, 0.6))
    for name, weight in zip(parts_of(config)[0].first_names, weights):
        wanted = normed[0] @ weight.t()
        for key, scale in ((PLAIN, torch.ones(64)), ('0.6', factors)):
            out = reference.linear(normed[0] / scale, quantize_int8(weight * scale))
            loss = (out - wanted).pow(2).sum() / wanted.pow(2).sum()
            assert found.losses[name][key] == pytest.approx(float(loss), rel=1e-4)
    assert list(found.losses['self_attn.o_proj']) == [PLAIN]


def test_smoothing_loses_less_where_channels_are_large():
    block, config, scratch = _with_outliers()
    surveys = _surveys(block, config, scratch, sequences(64))
    for norm, part in zip(surveys.values(), parts_of(config)):
        for name in part.first_names:
            assert norm.losses[name]['0.5'] < norm.losses[name][PLAIN] / 1.5


def test_the_results_report_both_losses():
    block, config, scratch = _with_outliers()
    surveys = _surveys(block, config, scratch, sequences(64))
    worker = SmoothQuantizer(block, PREFIX, 0.5, surveys)
    for part in parts_of(config):
        worker.quantize((part,), None, None)
    assert [result.name for result in worker.results] == [
        f'{PREFIX}{name}' for part in parts_of(config)
        for name in (*part.first_names, part.last_name)]
    for result in worker.results:
        losses = surveys['attention_norm' if 'attn' in result.name else 'mlp_norm'].losses[
            result.name.removeprefix(PREFIX)]
        last = result.name.endswith(('o_proj', 'down_proj'))
        assert result.alpha is None if last else result.alpha == 0.5
        assert result.loss_rtn == losses[PLAIN]
        assert result.loss == losses[PLAIN if last else '0.5']
        assert math.isfinite(result.loss) and result.bits == 8


def test_the_alpha_with_the_smallest_error_of_the_whole_model_is_chosen():
    def found(better):
        return Survey(torch.ones(1), {
            'q': {PLAIN: 0.0, **{f'{alpha:g}': abs(alpha - better) for alpha in ALPHAS}},
            'o': {PLAIN: 5.0}})
    assert best_alpha([found(0.5)]) == 0.5
    assert best_alpha([found(0.4), found(0.8), found(0.8)]) == 0.8
    assert best_alpha([found(-1)]) == min(ALPHAS) == 0.3
    assert best_alpha([found(2)]) == max(ALPHAS) == 0.9


def test_the_chosen_alpha_loses_no_more_than_any_other():
    block, config, scratch = _with_outliers()
    surveys = list(_surveys(block, config, scratch, sequences(64)).values())
    totals = {alpha: sum(losses[f'{alpha:g}'] for found in surveys
                         for losses in found.losses.values() if len(losses) > 1)
              for alpha in ALPHAS}
    chosen = best_alpha(surveys)
    assert totals[chosen] == min(totals.values()) < max(totals.values()) / 1.5


@pytest.mark.parametrize('alpha', [0.25, 0.123456789])
def test_only_the_alpha_asked_for_is_tried(alpha):
    block, config, scratch = _with_outliers()
    surveys = _surveys(block, config, scratch, sequences(64), alpha)
    assert list(surveys['mlp_norm'].losses['mlp.up_proj']) == [PLAIN, f'{alpha:g}']
    worker = SmoothQuantizer(block, PREFIX, alpha, surveys)
    worker.quantize(recipe(config)[0], None, None)
    assert worker.results[0].alpha == alpha


@pytest.mark.parametrize('value', [math.nan, math.inf])
def test_inputs_that_are_not_finite_are_refused_by_name(value):
    block, config, scratch = _with_outliers()
    xs = sequences(64)
    xs[1][3, 4] = value
    worker = SmoothQuantizer(block, PREFIX, 0.5, _surveys(block, config, scratch, xs))
    with pytest.raises(CheckpointError, match=r'layers.0.self_attn.q_proj: expected finite inp'):
        worker.quantize(recipe(config)[0], None, None)


def test_a_dead_channel_and_a_row_of_zeros_lose_nothing():
    block, config, scratch = _with_outliers()
    block.attention_norm.weight[7] = 0
    block.qkv[0].weight[3] = 0
    block.gate_up[1].weight[:, 9] = 0
    xs = sequences(64)
    surveys = _surveys(block, config, scratch, xs)
    worker = SmoothQuantizer(block, PREFIX, 0.5, surveys)
    for part in parts_of(config):
        worker.quantize((part,), None, None)
    assert worker.tensors[f'{PREFIX}input_layernorm.weight'][7] == 0
    assert all(0 <= result.loss < 1e-3 for result in worker.results)
