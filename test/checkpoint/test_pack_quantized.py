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
"""The format pack-quantized of compressed-tensors."""

import pytest
from stored_weights import check_read, Codes, open_layer, pack_quantized
import torch

from tinychat_ros.checkpoint import formats
from tinychat_ros.errors import CheckpointError, UnsupportedModelError

SHAPES = [(8, 32, 32), (16, 64, 64), (24, 128, 128), (40, 1152, 128), (20, 96, 32), (9, 64, -1),
          (12, 172, -1), (64, 64, 32)]


@pytest.mark.parametrize('n, k, group', SHAPES)
def test_a_layer_is_read_bit_for_bit(n, k, group, tmp_path):
    codes = Codes.random(n, k, group)
    with open_layer(tmp_path, pack_quantized(codes)) as reader:
        check_read(reader, codes, 'pack-quantized')


@pytest.mark.parametrize('n, k, group', SHAPES)
def test_a_layer_without_zero_points_is_symmetric(n, k, group, tmp_path):
    codes = Codes.random(n, k, group)
    codes.zeros[:] = 8
    with open_layer(tmp_path, pack_quantized(codes, symmetric=True)) as reader:
        check_read(reader, codes, 'pack-quantized')


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float32])
def test_scales_of_another_float_type_become_fp16(dtype, tmp_path):
    codes = Codes.random(16, 64, 32)
    scales = codes.scales.to(dtype)
    tensors = {**pack_quantized(codes), 'weight_scale': scales}
    with open_layer(tmp_path, tensors) as reader:
        check_read(reader, Codes(codes.q, codes.zeros, scales.half(), 32), 'pack-quantized')


def test_an_index_that_says_what_is_so_is_accepted(tmp_path):
    codes = Codes.random(8, 96, 32)
    g_idx = torch.arange(96, dtype=torch.int32) // 32
    with open_layer(tmp_path, {**pack_quantized(codes), 'weight_g_idx': g_idx}) as reader:
        check_read(reader, codes, 'pack-quantized')


def test_an_index_of_another_order_is_refused_by_name(tmp_path):
    g_idx = torch.arange(96, dtype=torch.int32) // 32
    g_idx[40] = 2
    tensors = {**pack_quantized(Codes.random(8, 96, 32)), 'weight_g_idx': g_idx}
    with open_layer(tmp_path, tensors) as reader:
        with pytest.raises(UnsupportedModelError, match=r'l.weight_g_idx: expected input k in '
                                                        r'group k // 32, got input 40 in group 2'):
            formats.detect(reader, 'l').read(reader, 'l', 8, 96)


def _zeros(*shape, dtype=torch.int32):
    return torch.zeros(shape, dtype=dtype)


@pytest.mark.parametrize('changes, named', [
    ({'weight_shape': torch.tensor([16, 128])},
     r'l.weight_packed: .* weight_shape \[16, 128\] in 4 bits, got \[16, 8\]'),
    ({'weight_shape': torch.tensor([-16, 64])}, r'l.weight_packed: .*\[-16, 64\]'),
    ({'weight_shape': torch.tensor([16])}, r'l.weight_shape: expected shape \[2\], got \[1\]'),
    ({'weight_shape': torch.tensor([16.0, 64.0])}, 'l.weight_shape: expected torch.int64'),
    ({'weight_packed': _zeros(16, 16)}, r'l.weight_packed: .* in 4 bits, got \[16, 16\]'),
    ({'weight_packed': _zeros(16)}, r'l.weight_packed: expected two dimensions.* got \[16\]'),
    ({'weight_packed': _zeros(16, 8, dtype=torch.uint8)}, 'l.weight_packed: expected torch.int32'),
    ({'weight_packed': _zeros(8, 8), 'weight_shape': torch.tensor([8, 64])},
     r'l.weight_shape: expected \[16, 64\], got \[8, 64\]'),
    ({'weight_scale': torch.ones(16, 3)}, r'l.weight_scale: expected K/G .* got \[16, 3\]'),
    ({'weight_scale': torch.ones(1)}, r'l.weight_scale: expected K/G .* got \[1\]'),
    ({'weight_scale': torch.ones(8, 2)}, r'l.weight_scale: expected shape \[16, 2\], got'),
    ({'weight_scale': _zeros(16, 2)}, 'l.weight_scale: expected fp32, fp16 or bf16'),
    ({'weight_scale': torch.full((16, 2), float('nan'))}, 'l.weight_scale: .*NaN.* 32 of 32'),
    ({'weight_scale': torch.full((16, 2), 1e5)}, 'l.weight_scale: expected values that fp16'),
    ({'weight_zero_point': _zeros(16, 2)},
     r'l.weight_zero_point: expected shape \[2, 2\], got \[16, 2\]'),
    ({'weight_zero_point': _zeros(2, 2, dtype=torch.int8)}, 'l.weight_zero_point: expected torch'),
    ({'weight_g_idx': _zeros(16)}, r'l.weight_g_idx: expected shape \[64\], got \[16\]'),
    ({'weight_g_idx': _zeros(64, dtype=torch.int64)}, 'l.weight_g_idx: expected torch.int32'),
])
def test_a_tensor_that_cannot_be_right_is_refused_by_name(changes, named, tmp_path):
    tensors = {**pack_quantized(Codes.random(16, 64, 32)), **changes}
    with open_layer(tmp_path, tensors) as reader:
        with pytest.raises(CheckpointError, match=named):
            formats.detect(reader, 'l').read(reader, 'l', 16, 64)
