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
"""Packed 3-bit weights in a checkpoint: pinned by hand, kept to the bit, refused when damaged."""

import json

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import (
    linear_shapes, llama_config, llama_tensors, load_folder, run_model, write_model)
import torch

from tinychat_ros.checkpoint import formats, loader
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.summary import summarize_layers, weight_bytes_per_token
from tinychat_ros.checkpoint.tinychat_w3 import read_w3, w3_tensors
from tinychat_ros.checkpoint.writer import save_checkpoint
from tinychat_ros.errors import CheckpointError
from tinychat_ros.kernels import extension
from tinychat_ros.kernels.packing import QuantizedWeight

CPU = torch.device('cpu')


def _open(path, tensors):
    """Open a folder that holds just these tensors."""
    (path / 'config.json').write_text(json.dumps(llama_config()))
    save_file(tensors, path / 'model.safetensors')
    return CheckpointReader(path)


def _random_weight(n, k, group):
    generator = torch.Generator().manual_seed(n * k + group)
    groups = 1 if group == -1 else k // group
    return QuantizedWeight(
        torch.randint(0, 256, (n, 3 * k // 8), generator=generator, dtype=torch.uint8),
        torch.randn(n, groups, generator=generator).half() * 0.05,
        torch.randint(0, 8, (n, groups), generator=generator, dtype=torch.uint8), k // groups, 3)


def _quantized(config):
    """Return random tensors whose decoder linears have 3 bits."""
    tensors = llama_tensors(config)
    for name, (n, k) in linear_shapes(config).items():
        del tensors[f'{name}.weight']
        tensors[name] = _random_weight(n, k, 32)
    return tensors


def test_a_layer_is_read_as_drawn(tmp_path):
    """K = 8, N = 2, G = 4: the first row holds the codes 0 to 7, the second ends with a 7."""
    tensors = {'l.qweight3': torch.tensor([[0x88, 0xC6, 0xFA], [0x00, 0x00, 0xE0]]).byte(),
               'l.scales': torch.tensor([[1.0, 0.5], [2.0, 4.0]]).half(),
               'l.zeros': torch.tensor([[0, 7], [1, 3]]).byte()}
    with _open(tmp_path, tensors) as reader:
        assert formats.detect(reader, 'l').name == 'tinychat-w3'
        weight = read_w3(reader, 'l', 2, 8)
    assert (weight.group_size, weight.bits) == (4, 3)
    assert weight.dequantize().tolist() == [[0, 1, 2, 3, -1.5, -1, -0.5, 0],
                                            [-2, -2, -2, -2, -12, -12, -12, 16]]


@pytest.mark.parametrize('group', [8, 32, 128, -1])
def test_what_is_written_and_read_back_keeps_every_bit(group, tmp_path):
    weight = _random_weight(20, 384, group)
    save_checkpoint(tmp_path, llama_config(), {'l': weight})
    stored = load_file(tmp_path / 'model.safetensors')
    groups = 384 // weight.group_size
    assert {name: (list(t.shape), t.dtype) for name, t in stored.items()} == {
        'l.qweight3': ([20, 144], torch.uint8), 'l.scales': ([20, groups], torch.float16),
        'l.zeros': ([20, groups], torch.uint8)}
    with CheckpointReader(tmp_path) as reader:
        back = formats.detect(reader, 'l').read(reader, 'l', 20, 384)
    assert (back.group_size, back.bits) == (weight.group_size, 3)
    assert torch.equal(back.qweight, weight.qweight)
    assert torch.equal(back.scales, weight.scales)
    assert torch.equal(back.zeros, weight.zeros)


@pytest.mark.parametrize('changes, named', [
    ({'qweight3': torch.zeros(16, 32).byte()},
     r'l.qweight3: expected shape \[16, 24\], got \[16, 32\]'),
    ({'qweight3': torch.zeros(16, 24).char()}, 'l.qweight3: expected torch.uint8, got torch.int8'),
    ({'scales': torch.ones(16, 3).half()}, r'l.scales: expected K/G .* 64, got \[16, 3\]'),
    ({'scales': torch.ones(16, 0).half()}, r'l.scales: .*got \[16, 0\]'),
    ({'scales': torch.tensor(1.0).half()}, r'l.scales: .*got \[\]'),
    ({'scales': torch.ones(8, 2).half()}, r'l.scales: expected shape \[16, 2\], got \[8, 2\]'),
    ({'scales': torch.ones(16, 2)}, 'l.scales: expected torch.float16, got torch.float32'),
    ({'scales': torch.full((16, 2), float('nan')).half()}, 'l.scales: .*NaN.* 32 of 32'),
    ({'zeros': torch.zeros(16, 1).byte()}, r'l.zeros: expected shape \[16, 2\], got \[16, 1\]'),
    ({'zeros': torch.zeros(16, 2).int()}, 'l.zeros: expected torch.uint8, got torch.int32'),
    ({'zeros': torch.full((16, 2), 8).byte()}, 'l.zeros: expected 0 to 7, got 8'),
])
def test_a_tensor_that_cannot_be_right_is_refused_by_name(changes, named, tmp_path):
    tensors = {**w3_tensors('l', _random_weight(16, 64, 32)),
               **{f'l.{name}': t for name, t in changes.items()}}
    with _open(tmp_path, tensors) as reader, pytest.raises(CheckpointError, match=named):
        read_w3(reader, 'l', 16, 64)


def test_a_layer_whose_rows_fill_no_whole_bytes_is_refused(tmp_path):
    with _open(tmp_path, w3_tensors('l', _random_weight(16, 64, 32))) as reader:
        with pytest.raises(CheckpointError, match='l.qweight3: .* multiple of 8, got 60'):
            read_w3(reader, 'l', 16, 60)


def test_a_model_computes_with_its_dequantized_weights(tmp_path):
    config = llama_config()
    quantized = _quantized(config)
    plain = {f'{name}.weight' if isinstance(t, QuantizedWeight) else name:
             t.dequantize() if isinstance(t, QuantizedWeight) else t
             for name, t in quantized.items()}
    save_checkpoint(tmp_path / 'w3', config, quantized)
    ids = [i * 7 % 96 for i in range(30)]
    out = run_model(load_folder(tmp_path / 'w3'), ids)
    expected = run_model(load_folder(write_model(tmp_path / 'plain', config, plain)), ids)
    assert (out - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_activations_are_rounded_where_the_kernels_are_faster_for_it(tmp_path):
    save_checkpoint(tmp_path, llama_config(), _quantized(llama_config()))
    block = load_folder(tmp_path, int8_activations=None).blocks[0]
    assert block.o_proj.activation_group == (32 if extension.load() is not None else 0)


def test_a_model_is_counted_and_described_from_its_headers(tmp_path):
    config = llama_config()
    save_checkpoint(tmp_path, config, _quantized(config))
    stored = load_file(tmp_path / 'model.safetensors')
    with CheckpointReader(tmp_path) as reader:
        layers = {layer.name: layer for layer in summarize_layers(reader)}
        assert loader.num_parameters(reader) == sum(
            t.numel() for t in llama_tensors(config).values())
        assert loader.weight_bytes(reader, torch.float32, CPU) == sum(
            t.nbytes for t in stored.values())
        assert weight_bytes_per_token(reader) == sum(
            t.nbytes for name, t in stored.items() if 'embed_tokens' not in name)
    assert layers.pop('lm_head').format == 'plain'
    assert {layer.name: (layer.n, layer.k) for layer in layers.values()} == linear_shapes(config)
    assert {(layer.format, layer.group_size) for layer in layers.values()} == {('tinychat-w3', 32)}
    if extension.load() is not None:
        assert {layer.reference_reason for layer in layers.values()} == {None}
