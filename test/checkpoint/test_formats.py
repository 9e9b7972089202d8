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
"""The layouts of a linear's weight, pinned by numbers written by hand."""

import itertools
import json

import pytest
from safetensors.torch import save_file
from tiny_models import llama_config, llama_tensors, write_model
import torch

from tinychat_ros.checkpoint import awq_layouts, formats
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.scales import padded_groups
from tinychat_ros.checkpoint.writer import awq_gemm_tensors, w8a8_tensors
from tinychat_ros.errors import CheckpointError, UnsupportedModelError
from tinychat_ros.kernels.packing import Int8Weight, QuantizedWeight, unpack_codes
from tinychat_ros.kernels.rtn import quantize_rtn


def _open(path, tensors):
    """Open a folder that holds just these tensors."""
    (path / 'config.json').write_text(json.dumps(llama_config()))
    save_file(tensors, path / 'model.safetensors')
    return CheckpointReader(path)


def _int32(*words):
    return torch.tensor(words, dtype=torch.int64).to(torch.int32)


# Channel j of a column sits in nibble [0, 4, 1, 5, 2, 6, 3, 7][j]: nibbles 0 to 7 hold the
# channels 0, 2, 4, 6, 1, 3, 5, 7, and the lowest nibble is the last digit.
RISING = 0x75316420
FALLING = 0x8ACE9BDF


def test_awq_words_hold_their_channels_in_the_published_order():
    q = awq_layouts.unpack_awq(_int32([RISING, FALLING]))
    assert q.tolist() == [[0, 1, 2, 3, 4, 5, 6, 7, 15, 14, 13, 12, 11, 10, 9, 8]]
    assert torch.equal(awq_layouts.pack_awq(q), _int32([RISING, FALLING]))


def test_an_awq_layer_is_read_as_drawn(tmp_path):
    """K = 4, N = 8, G = 2: rows of qweight are inputs, rows of scales and qzeros are groups."""
    tensors = {'l.qweight': _int32([RISING], [FALLING], [0], [0x11111111]),
               'l.qzeros': _int32([0x22222222], [RISING]),
               'l.scales': torch.tensor([[1.0] * 8, [0.5] * 7 + [4.0]]).half()}
    with _open(tmp_path, tensors) as reader:
        assert formats.detect(reader, 'l').name == 'awq-gemm'
        weight = formats.read_awq_gemm(reader, 'l', 8, 4)
    assert weight.group_size == 2
    w = weight.dequantize()
    assert w.shape == (8, 4)
    assert w[:, 0].tolist() == [-2, -1, 0, 1, 2, 3, 4, 5]
    assert w[:, 1].tolist() == [13, 12, 11, 10, 9, 8, 7, 6]
    assert w[:, 2].tolist() == [0, -0.5, -1, -1.5, -2, -2.5, -3, -28]
    assert w[:, 3].tolist() == [0.5, 0, -0.5, -1, -1.5, -2, -2.5, -24]


@pytest.mark.parametrize('group', [32, 64, 128, -1])
def test_awq_written_and_read_back_keeps_every_bit(group, tmp_path):
    generator = torch.Generator().manual_seed(group + 1)
    n, k = 24, 384
    groups = 1 if group == -1 else k // group
    weight = QuantizedWeight(
        torch.randint(0, 256, (n, k // 2), generator=generator, dtype=torch.uint8),
        torch.randn(n, groups, generator=generator).half(),
        torch.randint(0, 16, (n, groups), generator=generator, dtype=torch.uint8), k // groups)
    tensors = awq_gemm_tensors('l', weight)
    assert {name: (list(t.shape), t.dtype) for name, t in tensors.items()} == {
        'l.qweight': ([k, n // 8], torch.int32), 'l.qzeros': ([groups, n // 8], torch.int32),
        'l.scales': ([groups, n], torch.float16)}
    with _open(tmp_path, tensors) as reader:
        back = formats.read_awq_gemm(reader, 'l', n, k)
    assert back.group_size == weight.group_size
    assert torch.equal(back.qweight, weight.qweight)
    assert torch.equal(back.scales, weight.scales)
    assert torch.equal(back.zeros, weight.zeros)


def test_a_code_lies_where_its_input_and_output_say():
    weight = quantize_rtn(torch.eye(16, 32), 32)
    tensors = awq_gemm_tensors('l', weight)
    q = awq_layouts.unpack_awq(tensors['l.qweight'])
    assert torch.equal(q.t(), unpack_codes(weight.qweight, 4))
    assert q[3, 3] == 15 and q[3, 4] == 0


def test_a_plain_layer_is_told_apart_by_its_tensor(tmp_path):
    config = llama_config()
    write_model(tmp_path, config, llama_tensors(config))
    with CheckpointReader(tmp_path) as reader:
        assert formats.detect(reader, 'lm_head').name == 'plain'


class Headers:
    """What tells formats apart: the shapes of the tensors of a layer ``l``."""

    def __init__(self, qweight, qzeros, scales):
        self._shapes = {'l.qweight': qweight, 'l.qzeros': qzeros, 'l.scales': scales}
        self.names = self._shapes.keys()

    def shape(self, name):
        return list(self._shapes[name])


def test_awq_formats_of_the_same_names_are_told_apart_by_every_shape():
    sizes = (8, 16, 32, 64, 128, 256, 512, 1024, 4096)
    for n, k in itertools.product(sizes, sizes):
        for g in (g for g in {2, 8, 32, 64, 128, k} if k % g == 0):
            p = padded_groups(k, g)
            for name, headers in {
                    'awq-gemm': Headers((k, n // 8), (k // g, n // 8), (k // g, n)),
                    'awq-gemv': Headers((n, k // 8), (n, p // 8), (n, p)),
                    'awq-gemv-fast': Headers((n // 4, k), (p, n), (p, n))}.items():
                assert formats.detect(headers, 'l').name == name


@pytest.mark.parametrize('tensors, error, named', [
    ({}, CheckpointError, 'l.qweight or .* or l.qweight3 or l.weight, and there is none'),
    ({'l.bias': torch.zeros(8)}, CheckpointError, 'there is none'),
    ({'l.qweight': _int32([0]), 'l.scales': torch.ones(1, 8)}, UnsupportedModelError,
     'got l.qweight, l.scales'),
    ({'l.weight_packed': _int32([0])}, UnsupportedModelError, 'got l.weight_packed'),
])
def test_a_layer_of_no_format_is_refused_with_what_it_holds(tensors, error, named, tmp_path):
    with _open(tmp_path, {'other.weight': torch.ones(1), **tensors}) as reader:
        with pytest.raises(error, match=named):
            formats.detect(reader, 'l')


def _awq(n=16, k=64, group=32):
    return awq_gemm_tensors('l', quantize_rtn(torch.eye(n, k), group))


@pytest.mark.parametrize('changes, named', [
    ({'scales': torch.ones(3, 16).half()}, r'l.scales: expected K/G .*got \[3, 16\]'),
    ({'scales': torch.ones(0, 16).half()}, r'l.scales: .*got \[0, 16\]'),
    ({'scales': torch.tensor(1.0)}, r'l.scales: .*got \[\]'),
    ({'scales': torch.ones(64, 16).half()}, 'even group size'),
    ({'scales': torch.ones(2, 8).half()}, r'l.scales: expected shape \[2, 16\], got \[2, 8\]'),
    ({'scales': torch.ones(2, 16, dtype=torch.int32)}, 'l.scales: expected fp32, fp16 or bf16'),
    ({'scales': torch.full((2, 16), float('nan')).half()}, 'l.scales: .*NaN.* 32 of 32'),
    ({'scales': torch.full((2, 16), -float('inf'))}, 'l.scales: expected finite'),
    ({'scales': torch.full((2, 16), 1e5)}, 'l.scales: expected values that fp16 holds'),
    ({'qzeros': torch.zeros(1, 2, dtype=torch.int32)},
     r'l.qzeros: expected shape \[2, 2\], got \[1, 2\]'),
    ({'qzeros': torch.zeros(2, 2)}, 'l.qzeros: expected torch.int32, got torch.float32'),
    ({'qweight': torch.zeros(64, 2, dtype=torch.int64)}, 'l.qweight: expected torch.int32'),
    ({'qweight': torch.zeros(8, 16, dtype=torch.int32)},
     r'l.qweight: expected shape \[64, 2\], got \[8, 16\]'),
])
def test_an_awq_tensor_that_cannot_be_right_is_refused_by_name(changes, named, tmp_path):
    tensors = {**_awq(), **{f'l.{name}': t for name, t in changes.items()}}
    with _open(tmp_path, tensors) as reader, pytest.raises(CheckpointError, match=named):
        formats.read_awq_gemm(reader, 'l', 16, 64)


def test_an_awq_layer_of_a_width_that_it_cannot_hold_is_refused(tmp_path):
    with _open(tmp_path, _awq()) as reader:
        with pytest.raises(CheckpointError, match='N to be a multiple of 8, got 20'):
            formats.read_awq_gemm(reader, 'l', 20, 64)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_scales_of_another_float_type_become_fp16(dtype, tmp_path):
    tensors = _awq()
    tensors['l.scales'] = torch.full((2, 16), 0.25, dtype=dtype)
    with _open(tmp_path, tensors) as reader:
        scales = formats.read_awq_gemm(reader, 'l', 16, 64).scales
    assert scales.dtype == torch.float16 and (scales == 0.25).all()


def _int8(n=3, k=5):
    q = torch.arange(-7, n * k - 7).view(n, k).to(torch.int8)
    q[0, 0], q[-1, -1] = -128, 127
    return Int8Weight(q, torch.linspace(0.0, 2.0, n))


def test_int8_written_and_read_back_keeps_every_bit(tmp_path):
    weight = _int8()
    tensors = w8a8_tensors('l', weight)
    assert {name: (list(t.shape), t.dtype) for name, t in tensors.items()} == {
        'l.weight': ([3, 5], torch.int8), 'l.weight_scale': ([3, 1], torch.float32)}
    with _open(tmp_path, tensors) as reader:
        assert formats.detect(reader, 'l').name == 'w8a8'
        back = formats.read_w8a8(reader, 'l', 3, 5)
    assert torch.equal(back.qweight, weight.qweight)
    assert torch.equal(back.scales, weight.scales)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_int8_scales_of_another_float_type_become_fp32(dtype, tmp_path):
    tensors = {**w8a8_tensors('l', _int8()), 'l.weight_scale': torch.full((3, 1), 0.25).to(dtype)}
    with _open(tmp_path, tensors) as reader:
        scales = formats.read_w8a8(reader, 'l', 3, 5).scales
    assert scales.dtype == torch.float32 and scales.tolist() == [0.25] * 3


@pytest.mark.parametrize('changes, named', [
    ({'weight': torch.ones(3, 5).to(torch.float8_e4m3fn)},
     'l.weight: expected torch.int8, got torch.float8_e4m3fn'),
    ({'weight': torch.ones(3, 5)}, 'l.weight: expected torch.int8, got torch.float32'),
    ({'weight': torch.ones(5, 3, dtype=torch.int8)},
     r'l.weight: expected shape \[3, 5\], got \[5, 3\]'),
    ({'weight_scale': torch.ones(3)}, r'l.weight_scale: expected shape \[3, 1\], got \[3\]'),
    ({'weight_scale': torch.ones(1, 1)}, r'l.weight_scale: expected shape \[3, 1\]'),
    ({'weight_scale': torch.ones(3, 1, dtype=torch.int32)}, 'l.weight_scale: expected fp32, fp16'),
    ({'weight_scale': torch.full((3, 1), float('nan'))}, 'l.weight_scale: .*NaN.* 3 of 3'),
    ({'weight_scale': torch.full((3, 1), float('inf'))}, 'l.weight_scale: expected finite'),
    ({'weight_scale': torch.tensor([[1.0], [-0.5], [1.0]])},
     'l.weight_scale: expected values of 0 or more, got -0.5'),
])
def test_an_int8_tensor_that_cannot_be_right_is_refused_by_name(changes, named, tmp_path):
    tensors = {**w8a8_tensors('l', _int8()), **{f'l.{name}': t for name, t in changes.items()}}
    with _open(tmp_path, tensors) as reader, pytest.raises(CheckpointError, match=named):
        formats.read_w8a8(reader, 'l', 3, 5)


def test_an_int8_layer_with_zero_points_is_refused(tmp_path):
    tensors = {**w8a8_tensors('l', _int8()),
               'l.weight_zero_point': torch.zeros(3, 1, dtype=torch.int8)}
    with _open(tmp_path, tensors) as reader:
        with pytest.raises(UnsupportedModelError, match='l.weight_zero_point: expected a symmet'):
            formats.read_w8a8(reader, 'l', 3, 5)
