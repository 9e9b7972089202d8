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
"""Round-to-nearest: its error bound, its edges, and what it does to trained models."""

import pytest
from tiny_models import data_path, load_folder, quantize_folder
import torch

from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import FinishReason, Request
from tinychat_ros.engine.tokenizer import Tokenizer
from tinychat_ros.errors import ConfigError
from tinychat_ros.kernels.packing import unpack_codes
from tinychat_ros.kernels.rtn import (
    fit_grid, nearest_codes, packed, quantize_rtn, rounded, values, WeightSpec)
from tinychat_ros.quantization.calibration import read_texts
from tinychat_ros.quantization.evaluate import perplexity, token_lists

SPECS = [WeightSpec(bits, group, symmetric)
         for bits in (4, 3) for group in (32, -1) for symmetric in (False, True)]


def _random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize('group', [32, 64, 128, -1])
@pytest.mark.parametrize('offset', [0.0, 3.0, -3.0])
def test_no_weight_moves_further_than_half_a_step(group, offset):
    w = _random(16, 256) + offset
    weight = quantize_rtn(w, group)
    assert weight.group_size == (256 if group == -1 else group)
    step = weight.scales.float().repeat_interleave(weight.group_size, 1)
    # Zero point and weight are rounded on one grid; fp16 scales may miss the ends by a little.
    assert ((weight.dequantize() - w).abs() <= step * 0.5 + 15 * step * 2**-11).all()


def test_a_weight_inside_its_range_takes_the_nearest_code_of_the_stored_scale():
    w = _random(64, 2048)
    weight = quantize_rtn(w, 64)
    q = unpack_codes(weight.qweight, 4)
    step = weight.scales.float().repeat_interleave(64, 1)
    inside = (q > 0) & (q < 15)
    assert ((weight.dequantize() - w).abs() <= step * 0.50001)[inside].all()


def test_codes_and_zero_points_of_a_row_by_hand():
    w = torch.tensor([[-1.0, 0.0, 0.5, 2.0] * 8, [0.0, 1.5, 0.1, 0.75] * 8])
    weight = quantize_rtn(w, 32)
    assert weight.scales[:, 0].tolist() == pytest.approx([0.2, 0.1], rel=1e-3)
    assert weight.zeros[:, 0].tolist() == [5, 0]
    q = unpack_codes(weight.qweight, 4)
    assert q[0, :4].tolist() == [0, 5, 8, 15] or q[0, :4].tolist() == [0, 5, 7, 15]
    assert q[1, :4].tolist()[:3] == [0, 15, 1]


@pytest.mark.parametrize('value', [0.0, 1.0, -1.0, 1e-3, -250.0])
def test_a_constant_row_keeps_its_value(value):
    weight = quantize_rtn(torch.full((8, 32), value), 32).dequantize()
    torch.testing.assert_close(weight, torch.full((8, 32), value), rtol=1e-3, atol=1e-5)


def test_zero_stays_zero():
    w = _random(8, 64).abs() + 1
    w[:, ::5] = 0
    assert (quantize_rtn(w, 32).dequantize()[:, ::5] == 0).all()


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_halves_give_the_codes_of_the_same_fp32_values(dtype):
    w = _random(8, 64).to(dtype)
    half, full = quantize_rtn(w, 32), quantize_rtn(w.float(), 32)
    assert torch.equal(half.qweight, full.qweight) and torch.equal(half.scales, full.scales)


@pytest.mark.parametrize('group', [0, -2, 48, 128])
def test_a_group_that_does_not_divide_the_input_is_refused(group):
    with pytest.raises(ValueError, match=f'divisor of K = 64 or -1, got {group}'):
        quantize_rtn(_random(8, 64), group)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), 1e7])
def test_a_weight_whose_scale_fp16_cannot_hold_is_refused(value):
    w = _random(8, 64)
    w[3, 3] = value
    with pytest.raises(ValueError, match='weight: expected'):
        quantize_rtn(w, 32)


def _steps(grid, weight):
    return grid.scales.repeat_interleave(weight.shape[1] // grid.scales.shape[1], 1)


@pytest.mark.parametrize('spec', SPECS)
@pytest.mark.parametrize('offset', [0.0, 3.0, -3.0])
def test_a_grid_spans_each_group_and_holds_zero(spec, offset):
    w = _random(16, 96) + offset
    grid = fit_grid(w, spec)
    assert grid.scales.shape == grid.zeros.shape == (16, 1 if spec.group_size == -1 else 3)
    assert torch.equal(grid.scales, grid.scales.half().float()) and (grid.scales > 0).all()
    assert torch.equal(grid.zeros, grid.zeros.round())
    assert grid.zeros.min() >= 0 and grid.zeros.max() <= 2**spec.bits - 1
    codes = nearest_codes(w, grid, spec)
    assert codes.min() >= 0 and codes.max() <= 2**spec.bits - 1
    zero = torch.zeros_like(w)
    assert torch.equal(values(nearest_codes(zero, grid, spec), grid, spec), zero)
    steps = _steps(grid, w)
    # Zero point and weight are rounded on one grid; fp16 scales may miss the ends by a little.
    assert ((rounded(w, spec) - w).abs() <= steps * (0.5 + 15 * 2**-11)).all()


@pytest.mark.parametrize('bits', [4, 3])
@pytest.mark.parametrize('group', [32, -1])
def test_a_symmetric_grid_has_its_zero_in_the_middle(bits, group):
    spec = WeightSpec(bits, group, symmetric=True)
    w = _random(16, 96) + 0.5
    grid = fit_grid(w, spec)
    assert (grid.zeros == 2**(bits - 1)).all()
    assert torch.equal(rounded(-w, spec), -rounded(w, spec))
    largest = w.view(16, -1, spec.group(96)).abs().amax(2)
    torch.testing.assert_close(grid.scales, largest / (2**(bits - 1) - 1), rtol=2**-11, atol=0)


@pytest.mark.parametrize('spec', SPECS)
@pytest.mark.parametrize('clip', [0.75, 0.55])
def test_a_cut_range_ends_at_its_part_of_the_largest_weight(spec, clip):
    w = _random(16, 96)
    grid = fit_grid(w, spec, clip)
    limit = w.view(16, -1, spec.group(96)).abs().amax(2) * clip
    limits = limit.repeat_interleave(spec.group(96), 1)
    cut = values(nearest_codes(w, grid, spec), grid, spec)
    steps = _steps(grid, w)
    # A symmetric grid has one step more below zero than above.
    nearest = torch.minimum(torch.maximum(w, -limits - steps * spec.symmetric), limits)
    assert ((cut - nearest).abs() <= steps * (0.5 + 15 * 2**-11)).all()
    assert (grid.scales < fit_grid(w, spec).scales).all()
    assert (w.abs() > limits + steps).any()


def test_each_group_may_be_cut_by_its_own_part():
    spec, w = WeightSpec(4, 32), _random(16, 96)
    clip = torch.where(_random(16, 3, seed=1) > 0, 1.0, 0.7)
    grid = fit_grid(w, spec, clip)
    for part in (1.0, 0.7):
        same = fit_grid(w, spec, part)
        assert torch.equal(grid.scales[clip == part], same.scales[clip == part])
        assert torch.equal(grid.zeros[clip == part], same.zeros[clip == part])


@pytest.mark.parametrize('spec', SPECS)
def test_what_is_packed_dequantizes_to_the_values_of_the_codes(spec):
    w = _random(16, 96)
    grid = fit_grid(w, spec, 0.9)
    codes = nearest_codes(w, grid, spec)
    weight = packed(codes, grid, spec)
    assert weight.bits == spec.bits and weight.shape == (16, 96)
    assert weight.group_size == (96 if spec.group_size == -1 else 32)
    assert torch.equal(weight.dequantize(), values(codes, grid, spec))
    assert torch.equal(unpack_codes(weight.qweight, spec.bits), codes.to(torch.uint8))


@pytest.mark.parametrize('spec', SPECS)
def test_rounding_at_once_is_rounding_step_by_step(spec):
    w = _random(16, 96)
    weight = quantize_rtn(w, spec.group_size, spec.bits, spec.symmetric)
    assert torch.equal(weight.dequantize(), rounded(w, spec))


def test_rounding_what_is_rounded_changes_nothing():
    for spec in SPECS:
        once = rounded(_random(16, 96), spec)
        grid = fit_grid(once, spec)
        again = values(nearest_codes(once, grid, spec), grid, spec)
        assert ((again - once).abs() <= _steps(grid, once) * 2**-8).all(), spec


@pytest.mark.parametrize('changes, message', [
    ({'bits': 2}, 'bits: expected 4 or 3, got 2'), ({'bits': 8}, 'got 8'),
    ({'group_size': 12}, 'multiple of 8 or -1, one group per row, got 12'),
    ({'group_size': 0}, 'got 0'), ({'group_size': -2}, 'got -2')])
def test_a_grid_that_no_format_holds_is_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        WeightSpec(**changes)


def _perplexity(path, stories=4):
    model = load_folder(path)
    texts = read_texts(data_path('text/tinystories-cal.txt'), '<|endoftext|>')[:stories]
    ids = token_lists(texts, Tokenizer.load(path).encode, model.config.max_position_embeddings,
                      separate=True)
    return perplexity(model, ids, torch.device('cpu')).perplexity


@pytest.mark.parametrize('name, group, plain, quantized', [
    ('stories260K-pad192', 64, 4.729, 5.218), ('babyllama105-pad384', 128, 2.220, 2.352)])
def test_a_trained_model_loses_as_little_as_is_known_of_rtn(name, group, plain, quantized,
                                                            tmp_path):
    """The figures are of stories that were not trained on, as these were: their ratio holds."""
    source = data_path(f'models/{name}')
    before, after = _perplexity(source), _perplexity(quantize_folder(source, tmp_path, group))
    assert 0.7 * plain < before < plain
    assert after / before == pytest.approx(quantized / plain, rel=0.03)


@pytest.mark.parametrize('name, group, begins', [
    ('stories260K-pad192', 64, 'Once upon a time, there was a'),
    ('babyllama105-pad384', 128, 'Once upon a time, there was a')])
def test_a_quantized_story_model_tells_a_story(name, group, begins, tmp_path):
    engine = Engine.load(quantize_folder(data_path(f'models/{name}'), tmp_path, group),
                         num_slots=1, max_seq_len=128)
    assert engine.info.format == 'awq-gemm'
    result = list(engine.generate(Request(raw=True, max_new_tokens=60)))[-1].result
    assert result.text.startswith(begins)
    assert result.finish_reason == FinishReason.LENGTH
