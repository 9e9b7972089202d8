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
"""From a checkpoint to a model: quantized, plain and mixed layers, and the memory they take."""

import logging
from types import SimpleNamespace

import pytest
from stored_weights import store_linears
from tiny_models import (
    linear_shapes, llama_config, llama_tensors, load_folder, run_model, write_model)
import torch

from tinychat_ros.checkpoint import loader
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.writer import awq_gemm_tensors, save_checkpoint
from tinychat_ros.errors import ConfigError, OutOfMemoryError
from tinychat_ros.kernels import extension
from tinychat_ros.kernels.packing import Int8Weight
from tinychat_ros.kernels.rtn import quantize_rtn

_IDS = [i * 7 % 96 for i in range(30)]
CPU = torch.device('cpu')


def _quantize(config, tensors, group=32, keep=lambda name: False):
    """Return (tensors with AWQ layers, the same with those layers dequantized)."""
    awq, plain = dict(tensors), dict(tensors)
    for name in linear_shapes(config):
        if not keep(name):
            weight = quantize_rtn(awq.pop(f'{name}.weight'), group)
            awq.update(awq_gemm_tensors(name, weight))
            plain[f'{name}.weight'] = weight.dequantize()
    return awq, plain


def _logits_of_both(config, tensors, tmp_path, **options):
    awq, plain = _quantize(config, tensors, **options)
    return [run_model(load_folder(write_model(tmp_path / name, config, t)), _IDS)
            for name, t in (('awq', awq), ('plain', plain))]


KEPT = {
    'all quantized': lambda name: False,
    'q quantized, k and v not': lambda name: name.endswith(('k_proj', 'v_proj')),
    'gate quantized, up not': lambda name: name.endswith('up_proj'),
    'first layer plain': lambda name: 'layers.0' in name,
}


@pytest.mark.parametrize('keep', KEPT.values(), ids=KEPT.keys())
@pytest.mark.parametrize('group', [32, 64, -1])
def test_a_quantized_model_computes_with_its_dequantized_weights(keep, group, tmp_path):
    config = llama_config(attention_bias=True)
    quantized, plain = _logits_of_both(config, llama_tensors(config), tmp_path, group=group,
                                       keep=keep)
    assert (quantized - plain).abs().max() <= 1e-3 * plain.abs().max()


@pytest.mark.parametrize('quantized', [True, False])
def test_a_bias_that_only_some_of_the_joined_layers_have_stays_theirs(quantized, tmp_path):
    config = llama_config(attention_bias=True)
    tensors = llama_tensors(config)
    zeroed = {name: torch.zeros_like(t) if name.endswith('k_proj.bias') else t
              for name, t in tensors.items()}
    without = {name: t for name, t in tensors.items() if not name.endswith('k_proj.bias')}
    one, other = (_quantize(config, t)[0] if quantized else t for t in (zeroed, without))
    expected = run_model(load_folder(write_model(tmp_path / 'zero', config, one)), _IDS)
    torch.testing.assert_close(
        run_model(load_folder(write_model(tmp_path / 'none', config, other)), _IDS), expected)


def test_groups_of_128_and_a_tied_head(tmp_path):
    config = llama_config(hidden_size=128, intermediate_size=256, head_dim=32,
                          tie_word_embeddings=True)
    quantized, plain = _logits_of_both(config, llama_tensors(config), tmp_path, group=128)
    assert (quantized - plain).abs().max() <= 1e-3 * plain.abs().max()


def test_two_group_sizes_in_one_block_are_not_joined(tmp_path):
    config = llama_config()
    awq, plain = _quantize(config, llama_tensors(config), keep=lambda name: 'k_proj' in name)
    for name in [n for n in linear_shapes(config) if 'k_proj' in n]:
        weight = quantize_rtn(awq.pop(f'{name}.weight'), 64)
        awq.update(awq_gemm_tensors(name, weight))
        plain[f'{name}.weight'] = weight.dequantize()
    quantized, expected = (run_model(load_folder(write_model(tmp_path / str(i), config, t)), _IDS)
                           for i, t in enumerate((awq, plain)))
    assert (quantized - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_shapes_that_no_kernel_takes_run_on_the_oracle_with_one_log_line(tmp_path, caplog):
    """K = 172 is what the MLP of stories260K has."""
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    config = llama_config(intermediate_size=172)
    with caplog.at_level(logging.WARNING):
        quantized, plain = _logits_of_both(
            config, llama_tensors(config), tmp_path, group=-1,
            keep=lambda name: name.endswith(('gate_proj', 'up_proj')))
    assert (quantized - plain).abs().max() <= 1e-3 * plain.abs().max()
    assert len(caplog.messages) == 1
    assert 'torch reference' in caplog.messages[0] and 'K = 172' in caplog.messages[0]
    assert '2 layers such as model.layers.0.mlp.down_proj' in caplog.messages[0]


def test_without_the_compiled_module_a_model_runs_all_the_same_and_says_so_once(
        tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(extension, 'load', lambda: None)
    monkeypatch.setattr(extension, 'why_absent', lambda: 'not built')
    config = llama_config()
    with caplog.at_level(logging.WARNING):
        quantized, plain = _logits_of_both(config, llama_tensors(config), tmp_path)
    torch.testing.assert_close(quantized, plain, rtol=0, atol=1e-4)
    assert len(caplog.messages) == 1 and 'not built' in caplog.messages[0]


def test_a_plain_model_logs_nothing(tmp_path, caplog):
    config = llama_config(intermediate_size=172)
    load_folder(write_model(tmp_path, config, llama_tensors(config)))
    assert not caplog.messages


@pytest.mark.parametrize('keep, name', [
    (lambda name: True, 'plain'), (lambda name: False, 'awq-gemm'),
    (lambda name: 'layers.0' in name and 'mlp' in name, 'awq-gemm')])
def test_the_format_is_that_of_most_layers(keep, name, tmp_path):
    config = llama_config()
    write_model(tmp_path, config, _quantize(config, llama_tensors(config), keep=keep)[0])
    with CheckpointReader(tmp_path) as reader:
        assert loader.load_model(reader, torch.float32, CPU, 8)[1] == name


@pytest.mark.parametrize('group, expected', [(32, 32), (64, 64), (256, 128)])
def test_int8_activations_are_those_of_4_bit_linears_in_groups_of_a_tile(
        group, expected, tmp_path):
    config = llama_config(hidden_size=256, intermediate_size=256, num_hidden_layers=1,
                          head_dim=64)
    awq, _ = _quantize(config, llama_tensors(config), group, lambda name: 'gate' in name)
    write_model(tmp_path, config, awq)
    [block] = load_folder(tmp_path, int8_activations=True).blocks
    assert [x.activation_group for x in (*block.qkv, block.o_proj, *block.gate_up)] == [
        expected, expected, 0, expected]
    assert load_folder(tmp_path).blocks[0].o_proj.activation_group == 0


def test_int8_activations_of_a_model_without_4_bit_linears_are_refused(tmp_path):
    config = llama_config()
    tensors = llama_tensors(config)
    tensors['lm_head'] = Int8Weight(torch.ones(96, 64).to(torch.int8), torch.ones(96))
    del tensors['lm_head.weight']
    save_checkpoint(tmp_path, config, tensors)
    with pytest.raises(ConfigError, match='activations: expected fp16 .* no linear of 4 bits'):
        load_folder(tmp_path, int8_activations=True)


def test_parameters_are_counted_as_if_nothing_were_quantized(tmp_path):
    config = llama_config()
    tensors = llama_tensors(config)
    write_model(tmp_path, config, _quantize(config, tensors)[0])
    with CheckpointReader(tmp_path) as reader:
        assert loader.num_parameters(reader) == sum(t.numel() for t in tensors.values())


STORED = pytest.mark.parametrize('name', ['awq-gemv', 'awq-gemv-fast', 'pack-quantized'])


@STORED
@pytest.mark.parametrize('group', [32, 64])
def test_every_format_of_the_same_weights_gives_the_same_logits(name, group, tmp_path):
    config = llama_config(attention_bias=True)
    gemm, _ = _quantize(config, llama_tensors(config), group)
    other = store_linears(config, llama_tensors(config), group, name)
    expected, got = (run_model(load_folder(write_model(tmp_path / str(i), config, tensors)), _IDS)
                     for i, tensors in enumerate((gemm, other)))
    assert torch.equal(got, expected)


@STORED
def test_every_format_is_counted_and_named(name, tmp_path):
    config = llama_config(attention_bias=True)
    tensors = llama_tensors(config)
    stored = store_linears(config, tensors, 32, name)
    write_model(tmp_path, config, stored)
    with CheckpointReader(tmp_path) as reader:
        assert loader.num_parameters(reader) == sum(t.numel() for t in tensors.values())
        assert loader.weight_bytes(reader, torch.float32, CPU) == sum(
            t.nbytes for t in stored.values())
        assert loader.load_model(reader, torch.float32, CPU, 8)[1] == name


def test_weight_bytes_are_those_of_the_compute_dtype_without_kernels(tmp_path, monkeypatch):
    config = llama_config()
    tensors = llama_tensors(config, dtype=torch.float16)
    count = sum(t.numel() for t in tensors.values())
    write_model(tmp_path, config, tensors)
    monkeypatch.setattr(extension, 'load', lambda: None)
    with CheckpointReader(tmp_path) as reader:
        assert loader.weight_bytes(reader, torch.float32, CPU) == 4 * count
        assert loader.weight_bytes(reader, torch.float16, CPU) == 2 * count


def test_kernels_read_matrices_of_16_bits_as_they_are_stored(tmp_path):
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    config = llama_config()
    tensors = llama_tensors(config, dtype=torch.float16)
    write_model(tmp_path / 'halves', config, tensors)
    floats = load_folder(write_model(tmp_path / 'floats', config,
                                     {name: t.float() for name, t in tensors.items()}))
    with CheckpointReader(tmp_path / 'halves') as reader:
        size = loader.weight_bytes(reader, torch.float32, CPU)
        model, _ = loader.load_model(reader, torch.float32, CPU, 40)
    assert size == sum(t.numel() * (2 if t.dim() == 2 else 4) for t in tensors.values())
    assert model.embedding.dtype == model.lm_head.weight.dtype == torch.float16
    assert model.dtype == torch.float32
    torch.testing.assert_close(run_model(model, _IDS), run_model(floats, _IDS))


def test_quantized_weight_bytes_are_those_of_the_file(tmp_path):
    config = llama_config()
    awq = _quantize(config, llama_tensors(config))[0]
    write_model(tmp_path, config, awq)
    with CheckpointReader(tmp_path) as reader:
        assert loader.weight_bytes(reader, torch.float32, CPU) == sum(
            t.numel() * t.element_size() for t in awq.values())


def test_a_model_that_does_not_fit_is_refused_with_what_it_needs(tmp_path):
    config = llama_config()
    tensors = llama_tensors(config)
    weights = sum(t.numel() for t in tensors.values()) * 4
    cache = 2 * 2 * 2 * 16 * 4 * 3 * 50
    write_model(tmp_path, config, tensors)
    with CheckpointReader(tmp_path) as reader:
        loader.check_memory(reader, torch.float32, torch.float32, CPU, 3, 50, weights + cache)
        with pytest.raises(OutOfMemoryError, match='3 slots of 50 positions'):
            loader.check_memory(reader, torch.float32, torch.float32, CPU, 3, 50,
                                weights + cache - 1)


def test_free_memory_is_more_than_nothing():
    assert 2**20 < loader.available_memory(CPU) < 2**50


@pytest.mark.parametrize('integrated', [False, True], ids=['card', 'Jetson'])
def test_a_gpu_that_shares_the_memory_has_what_the_cpu_has(monkeypatch, integrated):
    gpu = torch.device('cuda')
    monkeypatch.setattr(torch.cuda, 'get_device_properties',
                        lambda device: SimpleNamespace(is_integrated=integrated))
    monkeypatch.setattr(torch.cuda, 'mem_get_info', lambda device: (123, 456))
    assert (loader.available_memory(gpu) == 123) != integrated


@pytest.mark.parametrize('int8, group', [(None, 32), (True, 32), (False, 0)])
def test_activations_are_rounded_where_that_is_faster_unless_told(tmp_path, int8, group):
    config = llama_config()
    quantized, _ = _quantize(config, llama_tensors(config), 32)
    path = write_model(tmp_path, config, quantized)
    model = load_folder(path, int8_activations=int8)
    if extension.load() is None and int8 is None:
        group = 0
    assert {linear.activation_group for block in model.blocks
            for linear in block.linears()} == {group}
