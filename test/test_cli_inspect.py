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
"""What `tinychat inspect` says of a model, against figures that were computed by hand."""

import json

from family_models import block_linears, FAMILIES, quantize_family, write_family
import pytest
from tiny_models import llama_config, llama_tensors, quantize_folder, write_model
import torch

from tinychat_ros.bench.bandwidth import Bandwidth
from tinychat_ros.bench.estimate import Device, estimate
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.summary import (
    cpu_attention_refusal, grouped, kv_bytes_read, summarize_layers, weight_bytes_per_token,
    why_not_recorded)
from tinychat_ros.cli import main
from tinychat_ros.kernels import extension

# A block has 36864 weights of 4 bits: 18432 bytes, 2304 of scales and 576 of zeros; both blocks.
_BLOCKS = 2 * (18432 + 2304 + 576)
_NORMS = 5 * 64 * 2
_MATRIX = 96 * 64 * 2
_KV = 2 * 2 * 2 * 16 * 2

with_kernels = pytest.mark.skipif(extension.load() is None, reason=extension.why_absent())


@pytest.fixture
def no_measuring(monkeypatch):
    """Let this machine read 10 GB/s."""
    monkeypatch.setattr(Bandwidth, '__init__', lambda self, device: None)
    monkeypatch.setattr(Bandwidth, 'read', lambda self: 10e9)


def _write(path, group=32, **changes):
    config = llama_config(**changes)
    write_model(path / 'plain', config, llama_tensors(config, dtype=torch.float16))
    return quantize_folder(path / 'plain', path / 'w4', group)


def _inspect(capsys, path, *args):
    code = main(['inspect', str(path), '--json', *args])
    captured = capsys.readouterr()
    return code, json.loads(captured.out.splitlines()[-1]) if not code else captured.err


def test_bytes_memory_and_limits_are_those_computed_by_hand(capsys, tmp_path, no_measuring):
    path = _write(tmp_path, model_type='mistral', sliding_window=8)
    code, found = _inspect(capsys, path, '--context', '32')
    assert code == 0
    assert found['weight_bytes_per_token'] == _BLOCKS + _NORMS + _MATRIX
    assert found['kv_bytes_per_position'] == _KV
    assert found['memory_bytes'] == _BLOCKS + _NORMS + 2 * _MATRIX + 32 * _KV
    # All layers see the last 8 positions.
    read = _BLOCKS + _NORMS + _MATRIX + 8 * _KV
    assert (found['context'], found['bytes_per_token']) == (32, read)
    limits = {device['name']: device['tokens_per_second_limit'] for device in found['devices']}
    assert limits['Jetson AGX Orin 64GB'] == pytest.approx(204.8e9 / read)
    assert limits['Jetson Orin Nano 8GB'] == pytest.approx(68e9 / read)
    assert limits['this machine, cpu'] == pytest.approx(10e9 / read)
    assert [device['measured'] for device in found['devices']] == [False] * 6 + [True]


def test_this_machine_is_measured(capsys, tmp_path):
    _, found = _inspect(capsys, _write(tmp_path))
    machine = found['devices'][-1]
    assert machine['measured'] and machine['fits'] and 0.1 < machine['bandwidth_gbs'] < 10000


def test_the_context_is_what_the_model_was_trained_for_and_at_most_4096(
        capsys, tmp_path, no_measuring):
    assert _inspect(capsys, _write(tmp_path))[1]['context'] == 64
    long = _write(tmp_path, max_position_embeddings=32768)
    assert _inspect(capsys, long)[1]['context'] == 4096


@pytest.mark.parametrize('context', ['65', '-1'])
def test_a_context_that_the_model_was_not_trained_for_is_refused(capsys, tmp_path, context):
    code, error = _inspect(capsys, _write(tmp_path), '--context', context)
    assert code == 2
    assert f'context: expected 1 to 64, what the model was trained for, got {context}' in error


def test_a_model_fits_in_nine_tenths_of_a_memory():
    device = Device('a board', 1000, 2e9)
    assert estimate(device, 900, 100) == {
        'name': 'a board', 'memory_bytes': 1000, 'bandwidth_gbs': 2.0, 'measured': False,
        'fits': True, 'tokens_per_second_limit': 2e7}
    assert not estimate(device, 901, 100)['fits']


@with_kernels
def test_layers_that_are_alike_are_one_line_with_their_kernels(capsys, tmp_path, no_measuring):
    assert main(['inspect', str(_write(tmp_path))]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ['model.layers.*.self_attn.k_proj', '2', 'awq-gemm', '32', '32', 'x', '64', 'W4A8',
            'W4A16'] in lines
    assert ['lm_head', '1', 'plain', '-', '96', 'x', '64', 'plain', 'plain'] in lines
    assert ['decode', 'step', 'CPU', 'recorded'] in lines
    assert sum('*' in line[0] for line in lines if line) == 7


@with_kernels
def test_a_layer_on_the_reference_says_why(capsys, tmp_path, no_measuring):
    path = _write(tmp_path, group=8, hidden_size=40, intermediate_size=80)
    assert main(['inspect', str(path)]) == 0
    out = capsys.readouterr().out
    # 40 of hidden size, 64 of all heads, 80 in the MLP; a group is as bad everywhere.
    assert 'K = 40 is not a multiple of 32\n' in out
    assert 'group size 8 is not 32, 64, a multiple of 128 or K\n' in out
    assert 'CPU   op by op: model.layers.0.' in out and 'CUDA  recorded' in out


@pytest.mark.parametrize('name', FAMILIES)
def test_every_family_is_described_by_its_own_names(name, tmp_path):
    path = quantize_family(write_family(tmp_path, name), tmp_path)['awq']
    with CheckpointReader(path) as reader:
        layers = summarize_layers(reader)
        names = {layer.name for layer in layers}
        tied = reader.config.tie_word_embeddings
        assert names == {*block_linears(reader.config),
                         *([] if tied else [reader.config.names.lm_head])}
        every = sum(map(reader.num_bytes, reader.names))
        rows = 0 if tied else reader.num_bytes(f'{reader.config.names.embedding}.weight')
        assert weight_bytes_per_token(reader) == every - rows
        groups = grouped(layers)
        assert sum(group.count for group in groups) == len(layers)
        per_block = (len(names) - (not tied)) // reader.config.num_hidden_layers
        assert len(groups) == per_block + (not tied)


def test_alternating_windows_bound_what_a_token_reads(tmp_path):
    with CheckpointReader(write_family(tmp_path, 'gemma3')) as reader:
        config = reader.config
    # Seven layers of one KV head of 256 in 16 bits; the sixth sees all.
    layer = 2 * 1 * 256 * 2
    assert kv_bytes_read(config, 100) == layer * (6 * 6 + 100)
    assert kv_bytes_read(config, 4) == layer * 7 * 4


@with_kernels
def test_linears_of_several_kinds_side_by_side_are_named(tmp_path):
    config = llama_config()
    tensors = llama_tensors(config, dtype=torch.float16)
    path = quantize_folder(write_model(tmp_path / 'plain', config, tensors), tmp_path / 'w4', 32)
    with CheckpointReader(path) as reader:
        layers = summarize_layers(reader)
        assert why_not_recorded(reader.config, layers) == {'cpu': None, 'cuda': None}
        mixed = [layer for layer in layers if layer.name != 'model.layers.1.self_attn.k_proj']
        assert why_not_recorded(reader.config, mixed)['cpu'] == (
            'model.layers.1.self_attn.q_proj + model.layers.1.self_attn.k_proj + '
            'model.layers.1.self_attn.v_proj: not all of one kind')


@with_kernels
def test_a_head_that_no_attention_kernel_takes_is_named():
    assert cpu_attention_refusal(256) is None
    assert cpu_attention_refusal(258) == 'head_dim = 258 is more than 256'


def test_without_the_compiled_module_nothing_is_recorded_on_the_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(extension, 'load', lambda: None)
    monkeypatch.setattr(extension, 'why_absent', lambda: 'it is not there')
    config = llama_config()
    with CheckpointReader(write_model(tmp_path, config, llama_tensors(config))) as reader:
        found = why_not_recorded(reader.config, summarize_layers(reader))
    assert found == {'cpu': 'it is not there', 'cuda': None}
