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
"""A whole model with int8 weights: written, loaded, summarized and run."""

import pytest
from tiny_models import linear_shapes, llama_config, llama_tensors, load_folder, run_model
import torch

from tinychat_ros.checkpoint import loader
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.summary import summarize_layers, weight_bytes_per_token
from tinychat_ros.checkpoint.writer import save_checkpoint
from tinychat_ros.kernels import extension
from tinychat_ros.kernels.packing import Int8Weight

_IDS = [i * 7 % 96 for i in range(30)]
CPU = torch.device('cpu')
_CONFIG = llama_config(intermediate_size=172, attention_bias=True)


def _int8(weight):
    scales = weight.abs().amax(1) / 127
    return Int8Weight(torch.round(weight / scales[:, None]).to(torch.int8), scales)


def _write(path, keep=lambda name: False):
    """Write a model with int8 linears, the kept ones plain; return its tensors in fp32."""
    tensors = llama_tensors(_CONFIG)
    stored = dict(tensors)
    for name in linear_shapes(_CONFIG):
        if not keep(name):
            stored[name] = _int8(stored.pop(f'{name}.weight'))
    save_checkpoint(path, _CONFIG, stored)
    return tensors


@pytest.mark.parametrize('keep', [
    lambda name: False, lambda name: name.endswith(('k_proj', 'up_proj'))],
    ids=['all int8', 'k and up plain'])
def test_an_int8_model_computes_what_the_plain_one_does(keep, tmp_path):
    tensors = _write(tmp_path / 'int8', keep)
    save_checkpoint(tmp_path / 'plain', _CONFIG, tensors)
    int8, plain = (run_model(load_folder(tmp_path / name), _IDS) for name in ('int8', 'plain'))
    assert not torch.equal(int8, plain)
    assert (int8 - plain).abs().max() <= 0.05 * plain.abs().max()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_the_kernel_and_the_oracle_give_the_same_logits(dtype, tmp_path, monkeypatch, caplog):
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    _write(tmp_path)
    compiled = run_model(load_folder(tmp_path, dtype), _IDS)
    assert not caplog.messages
    monkeypatch.setattr(extension, 'load', lambda: None)
    monkeypatch.setattr(extension, 'why_absent', lambda: 'not built')
    torch.testing.assert_close(run_model(load_folder(tmp_path, dtype), _IDS), compiled)
    assert len(caplog.messages) == 1 and 'not built' in caplog.messages[0]


def test_its_size_is_one_byte_for_each_int8_weight(tmp_path):
    tensors = _write(tmp_path)
    shapes = linear_shapes(_CONFIG)
    linears, rows = sum(n * k for n, k in shapes.values()), sum(n for n, _ in shapes.values())
    count = sum(t.numel() for t in tensors.values())
    with CheckpointReader(tmp_path) as reader:
        assert loader.load_model(reader, torch.float32, CPU, 8)[1] == 'w8a8'
        assert loader.num_parameters(reader) == count
        assert loader.weight_bytes(reader, torch.float16, CPU) == 2 * (count - linears) + (
            linears + 4 * rows)
        embedding = 4 * tensors['model.embed_tokens.weight'].numel()
        assert weight_bytes_per_token(reader) == 4 * (count - linears) + linears + 4 * rows - (
            embedding)


def test_its_layers_are_described_from_their_headers(tmp_path, monkeypatch):
    _write(tmp_path)
    monkeypatch.setattr(extension, 'load', lambda: None)
    monkeypatch.setattr(extension, 'why_absent', lambda: 'not built')
    with CheckpointReader(tmp_path) as reader:
        layers = {layer.name: layer for layer in summarize_layers(reader)}
    assert len(layers) == 2 * 7 + 1 and layers['lm_head'].format == 'plain'
    down = layers['model.layers.1.mlp.down_proj']
    assert (down.format, down.n, down.k, down.group_size) == ('w8a8', 64, 172, None)
    assert down.reference_reason == 'not built'
