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
"""AutoAWQ ``gemv`` and ``gemv_fast``, which llm-awq calls v1 and v2."""

import json

import pytest
from stored_weights import check_read, Codes, gemv, gemv_fast, open_layer, zeros_width
import torch

from tinychat_ros.checkpoint import formats
from tinychat_ros.checkpoint.scales import padded_groups
from tinychat_ros.errors import CheckpointError

STORE = {'awq-gemv': gemv, 'awq-gemv-fast': gemv_fast}


@pytest.mark.parametrize('n, k, group', [
    (8, 32, 32), (8, 64, 64), (64, 64, 32), (16, 128, 128), (128, 128, 32), (24, 96, 32),
    (24, 1056, 32), (40, 1152, 128), (16, 1088, 64), (9, 160, -1), (8, 1152, -1)])
def test_gemv_is_read_bit_for_bit(n, k, group, tmp_path):
    codes = Codes.random(n, k, group)
    with open_layer(tmp_path, gemv(codes)) as reader:
        check_read(reader, codes, 'awq-gemv')


@pytest.mark.parametrize('zeros', ['scaled_zeros', 'qzeros'])
@pytest.mark.parametrize('n, k, group', [
    (8, 64, 32), (12, 64, 64), (128, 128, 128), (32, 128, 32), (24, 192, 32), (40, 1152, 64),
    (16, 1152, 128), (16, 1088, 32), (24, 448, -1), (8, 1088, -1)])
def test_gemv_fast_is_read_bit_for_bit(n, k, group, zeros, tmp_path):
    codes = Codes.random(n, k, group)
    with open_layer(tmp_path, gemv_fast(codes, zeros)) as reader:
        check_read(reader, codes, 'awq-gemv-fast')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_gemv_fast_in_another_float_type_keeps_its_integers(dtype, tmp_path):
    codes = Codes.random(16, 128, 64)
    scales = codes.scales.to(dtype)
    tensors = gemv_fast(codes)
    tensors['scales'][:2], tensors['scaled_zeros'] = scales.t(), tensors['scaled_zeros'].to(dtype)
    tensors['scales'] = tensors['scales'].to(dtype)
    tensors['scaled_zeros'][:2] = -(scales.float() * codes.zeros).to(dtype).t()
    with open_layer(tmp_path, tensors) as reader:
        check_read(reader, Codes(codes.q, codes.zeros, scales.half(), 64), 'awq-gemv-fast')


def test_a_scale_of_zero_needs_no_zero_point(tmp_path):
    codes = Codes.random(8, 64, 64)
    codes.scales[3] = 0
    with open_layer(tmp_path, gemv_fast(codes)) as reader:
        weight = formats.detect(reader, 'l').read(reader, 'l', 8, 64)
    assert torch.equal(weight.dequantize(), codes.dequantize())


def test_the_shape_tells_the_group_size_but_for_128_and_short_rows():
    """The rows of up to 1024 that are one group look like groups of 128, and nothing else does."""
    for k in range(32, 4097, 32):
        sizes = [g for g in {32, 64, 128, k} if k % g == 0 and (g in (32, 64) or g >= 128)]
        assert all(padded_groups(k, g) == 8 * zeros_width(k, g) for g in sizes)
        doubled = {g for g in sizes for other in sizes
                   if g != other and padded_groups(k, g) == padded_groups(k, other)}
        assert doubled == ({128, k} if k % 128 == 0 and 128 < k <= 1024 else set())


CLAIMS = [
    ({'group_size': 128, 'bits': 4}, None, 128), ({'group_size': -1}, None, 256),
    ({'group_size': 256}, None, 256), (None, {'q_group_size': 128, 'w_bit': 4}, 128),
    (None, {'q_group_size': -1}, 256), ({'group_size': -1}, {'q_group_size': 128}, 256)]


@pytest.mark.parametrize('name', STORE)
@pytest.mark.parametrize('config, older, group', CLAIMS)
def test_where_128_and_one_group_look_alike_the_configuration_decides(config, older, group, name,
                                                                      tmp_path):
    codes = Codes.random(8, 256, group)
    if older is not None:
        (tmp_path / 'quant_config.json').write_text(json.dumps(older))
    with open_layer(tmp_path, STORE[name](codes), quantization_config=config) as reader:
        check_read(reader, codes, name)


@pytest.mark.parametrize('name', STORE)
@pytest.mark.parametrize('claim', [None, {}, [], 'x', {'group_size': None}, {'group_size': '128'},
                                   {'group_size': 64}, {'group_size': 0}, {'group_size': True},
                                   {'group_size': -128}, {'group_size': 192}])
def test_without_a_claim_that_fits_the_group_size_is_refused(claim, name, tmp_path):
    tensors = STORE[name](Codes.random(8, 256, 128))
    with open_layer(tmp_path, tensors, quantization_config=claim) as reader:
        found = formats.detect(reader, 'l')
        for use in (found.shape, lambda *layer: found.read(*layer, 8, 256)):
            with pytest.raises(CheckpointError, match=r'l.scales: .* got 8, which fits '
                                                      r'\[128, 256\]; config.json says'):
                use(reader, 'l')


@pytest.mark.parametrize('name', STORE)
def test_a_claim_that_the_shape_contradicts_is_not_believed(name, tmp_path):
    codes = Codes.random(8, 1152, 64)
    claim = {'group_size': 128, 'version': 'gemm'}
    with open_layer(tmp_path, STORE[name](codes), quantization_config=claim) as reader:
        check_read(reader, codes, name)


@pytest.mark.parametrize('name', STORE)
def test_a_group_size_above_128_is_not_taken_for_one_group(name, tmp_path):
    codes = Codes.random(8, 1536, 256)
    with open_layer(tmp_path, STORE[name](codes), quantization_config={'group_size': 256}) as r:
        check_read(r, codes, name)


def _zeros(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype)


def _halves(*shape, value=1.0):
    return torch.full(shape, value).half()


def _refuse(path, tensors, changes, n, k, named):
    with open_layer(path, {**tensors, **changes}) as reader:
        with pytest.raises(CheckpointError, match=named):
            formats.detect(reader, 'l').read(reader, 'l', n, k)


@pytest.mark.parametrize('changes, named', [
    ({'qweight': _zeros(16, 16)}, r'l.qweight: expected shape \[16, 8\], got \[16, 16\]'),
    ({'qweight': _zeros(16, 8, dtype=torch.int64)}, 'l.qweight: expected torch.int32'),
    ({'qzeros': _zeros(16, 2)}, r'l.qzeros: expected shape \[16, 4\], got \[16, 2\]'),
    ({'qzeros': _zeros(16, 4, dtype=torch.int16)}, 'l.qzeros: expected torch.int32'),
    ({'scales': _halves(16, 24)}, r'l.scales: .* got 24, which fits none'),
    ({'scales': _halves(16, 2, 16)}, r'l.scales: expected two dimensions.* got \[16, 2, 16\]'),
    ({'scales': _zeros(16, 32)}, 'l.scales: expected fp32, fp16 or bf16'),
    ({'scales': _halves(16, 32, value=float('nan'))}, 'l.scales: .*NaN.* 512 of 512'),
    ({'scales': _halves(16, 32, value=float('inf'))}, 'l.scales: expected finite'),
    ({'scales': torch.full((16, 32), 1e5)}, 'l.scales: expected values that fp16 holds'),
])
def test_a_gemv_tensor_that_cannot_be_right_is_refused_by_name(changes, named, tmp_path):
    _refuse(tmp_path, gemv(Codes.random(16, 64, 32)), changes, 16, 64, named)


@pytest.mark.parametrize('changes, named', [
    ({'qweight': _zeros(4, 32, dtype=torch.int16)}, r'l.qweight: expected shape \[4, 64\], got'),
    ({'qweight': _zeros(4, 64)}, 'l.qweight: expected torch.int16, got torch.int32'),
    ({'scales': _halves(2, 16)}, 'l.scales: .* got 2, which fits none'),
    ({'scales': torch.tensor(1.0)}, r'l.scales: expected two dimensions.* got \[\]'),
    ({'scales': _halves(32, 8)}, r'l.scales: expected shape \[32, 16\], got \[32, 8\]'),
    ({'scales': _halves(32, 16, value=float('nan'))}, 'l.scales: .*NaN'),
    ({'scales': torch.full((32, 16), 1e5), 'scaled_zeros': torch.zeros(32, 16)},
     'l.scales: expected values that fp16 holds'),
    ({'scaled_zeros': _halves(16, 16)}, r'l.scaled_zeros: expected shape \[32, 16\], got'),
    ({'scaled_zeros': _zeros(32, 16)}, 'l.scaled_zeros: expected fp32, fp16 or bf16'),
    ({'scaled_zeros': _halves(32, 16, value=-float('inf'))}, 'l.scaled_zeros: expected finite'),
])
def test_a_gemv_fast_tensor_that_cannot_be_right_is_refused_by_name(changes, named, tmp_path):
    _refuse(tmp_path, gemv_fast(Codes.random(16, 64, 32)), changes, 16, 64, named)


@pytest.mark.parametrize('scale, scaled_zero', [
    (1.0, -2.5), (1.0, 1.0), (1.0, -16.0), (0.25, -3.74), (0.0, -1.0), (6e-8, -1.0), (2.0, -29.9)])
def test_a_scaled_zero_that_is_no_multiple_of_its_scale_is_refused(scale, scaled_zero, tmp_path):
    tensors = gemv_fast(Codes.random(16, 128, 32))
    tensors['scales'][2, 5], tensors['scaled_zeros'][2, 5] = scale, scaled_zero
    _refuse(tmp_path, tensors, {}, 16, 128, r'l.scaled_zeros: expected -scale \* zero with a zero '
                                            r'of 0 to 15, got .* at \[2, 5\] and 0 more')


def test_what_lies_in_the_padding_does_not_matter(tmp_path):
    codes = Codes.random(8, 64, 32)
    for name, tensors in (('awq-gemv', gemv(codes)), ('awq-gemv-fast', gemv_fast(codes))):
        if name == 'awq-gemv':
            tensors['qzeros'][:, 1:], tensors['scales'][:, 2:] = -1, 7
        else:
            tensors['scaled_zeros'][2:], tensors['scales'][2:] = 0.3, 7
        with open_layer(tmp_path, tensors) as reader:
            check_read(reader, codes, name)


@pytest.mark.parametrize('store, n, k, named', [
    (gemv, 8, 132, 'K to be a multiple of 8, got 132'),
    (gemv_fast, 8, 96, 'K to be a multiple of 64, got 96'),
    (gemv_fast, 10, 64, 'N to be a multiple of 4, got 10')])
def test_a_width_that_the_format_cannot_hold_is_refused(store, n, k, named, tmp_path):
    _refuse(tmp_path, store(Codes.random(8, 64, 32)), {}, n, k, f'l.qweight: expected {named}')
