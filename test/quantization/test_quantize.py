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
"""Quantizing whole checkpoints: what is written, what is kept, what is refused beforehand."""

import json
import shutil
from types import SimpleNamespace

import pytest
from safetensors.torch import save_file
from tiny_models import (
    linear_shapes, llama_config, llama_tensors, load_folder, run_model, write_chat_model,
    write_model)
import torch

from tinychat_ros.checkpoint import shards
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.shards import read_metadata
from tinychat_ros.checkpoint.summary import summarize_layers
from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import Request
from tinychat_ros.errors import CheckpointError, ConfigError, UnsupportedModelError
from tinychat_ros.kernels.rtn import quantize_rtn, WeightSpec
from tinychat_ros.quantization import work_folder
from tinychat_ros.quantization.job import Job, SmoothQuant, WeightOnly
from tinychat_ros.quantization.method import METHODS
from tinychat_ros.quantization.quantize import quantize_checkpoint

_SAMPLES = [torch.arange(start, start + 16) * 7 % 96 for start in range(4)]
_IDS = [i * 5 % 96 for i in range(12)]
_RTN = WeightOnly(METHODS['rtn'], WeightSpec(4, 32))
_AWQ = WeightOnly(METHODS['awq'], WeightSpec(4, 32))


def _job(tmp_path, scheme=_RTN, source='source', out='out', samples=_SAMPLES):
    return Job(tmp_path / source, tmp_path / out, scheme, samples, search_samples=2)


def _source(tmp_path, dtype=torch.float32, extra=None, **changes):
    config = llama_config(**changes)
    tensors = llama_tensors(config, dtype=dtype)
    write_model(tmp_path / 'source', config, {**tensors, **(extra or {})})
    return tensors


def _logits(path):
    return run_model(load_folder(path), _IDS)


def _is_near(tmp_path, most):
    """Say whether the logits moved, but by little."""
    before, after = _logits(tmp_path / 'source'), _logits(tmp_path / 'out')
    return 0 < float((after - before).pow(2).mean() / before.pow(2).mean()) < most


@pytest.mark.parametrize('scheme, stored, bits', [
    *((WeightOnly(method, WeightSpec(4, 32)), 'awq-gemm', 4) for method in METHODS.values()),
    (WeightOnly(METHODS['awq'], WeightSpec(3, 64)), 'tinychat-w3', 3),
    (WeightOnly(METHODS['gptq'], WeightSpec(4, -1, symmetric=True)), 'awq-gemm', 4),
    (SmoothQuant(), 'w8a8', 8), (SmoothQuant(0.5), 'w8a8', 8)])
def test_every_method_writes_what_the_engine_loads(tmp_path, scheme, stored, bits):
    _source(tmp_path)
    outcome = quantize_checkpoint(_job(tmp_path, scheme))
    assert _is_near(tmp_path, 0.2 if bits == 3 else 0.03)
    with CheckpointReader(tmp_path / 'out') as reader:
        formats = {layer.name: layer.format for layer in summarize_layers(reader)}
    assert formats.pop('lm_head') == 'plain' and set(formats.values()) == {stored}
    assert [layer.name for layer in outcome.layers] == list(linear_shapes(llama_config()))
    assert {layer.bits for layer in outcome.layers} == {bits}
    assert (outcome.blocks, outcome.peak_memory_bytes > 2**20) == (2, True)
    assert outcome.blocks_per_minute == pytest.approx(120 / outcome.seconds)
    calibrated = scheme != _RTN
    assert all((layer.loss is not None) == calibrated for layer in outcome.layers)
    assert read_metadata(tmp_path / 'out' / 'model.safetensors') == {'format': 'pt'}
    assert sorted(path.name for path in tmp_path.iterdir()) == ['out', 'source']


def test_plain_rounding_writes_the_codes_of_plain_rounding_and_reads_no_samples(tmp_path):
    tensors = _source(tmp_path)
    quantize_checkpoint(_job(tmp_path, samples=[]))
    with CheckpointReader(tmp_path / 'out') as reader:
        for name in linear_shapes(llama_config()):
            wanted = quantize_rtn(tensors[f'{name}.weight'], 32).scales.t()
            assert torch.equal(reader.stored(f'{name}.scales'), wanted)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
@pytest.mark.parametrize('scheme', [_AWQ, SmoothQuant(0.5)])
def test_sources_of_16_bits_give_what_the_same_values_in_fp32_give(tmp_path, dtype, scheme):
    tensors = _source(tmp_path / 'half', dtype)
    write_model(tmp_path / 'full' / 'source', llama_config(),
                {name: t.float() for name, t in tensors.items()})
    for kind in ('half', 'full'):
        quantize_checkpoint(_job(tmp_path / kind, scheme))
    with CheckpointReader(tmp_path / 'half' / 'out') as half, \
            CheckpointReader(tmp_path / 'full' / 'out') as full:
        assert half.names == full.names
        assert all(torch.equal(half.stored(name), full.stored(name)) for name in half.names)
        assert {half.stored(name).dtype for name in half.names} <= {
            torch.float16, torch.int32, torch.int8, torch.float32}


@pytest.mark.parametrize('changes', [
    {'tie_word_embeddings': True}, {'attention_bias': True, 'mlp_bias': True},
    {'num_attention_heads': 4, 'num_key_value_heads': 4},
    {'num_attention_heads': 4, 'num_key_value_heads': 1, 'head_dim': 32}])
@pytest.mark.parametrize('scheme', [_AWQ, SmoothQuant()])
def test_heads_biases_and_shared_kv_heads_survive(tmp_path, changes, scheme):
    tensors = _source(tmp_path, **changes)
    quantize_checkpoint(_job(tmp_path, scheme))
    assert _is_near(tmp_path, 0.03)
    with CheckpointReader(tmp_path / 'out') as reader:
        stems = {name.rpartition('.')[0] for name in tensors if name.endswith('.bias')}
        assert {name.rpartition('.')[0] for name in reader.names if name.endswith('.bias')} \
            == stems
        assert ('lm_head.weight' in reader.names) == ('lm_head.weight' in tensors)
        assert torch.equal(reader.stored('model.embed_tokens.weight'),
                           tensors['model.embed_tokens.weight'].half())


def test_a_layer_that_the_group_does_not_divide_stays_in_fp16_and_is_named(tmp_path):
    _source(tmp_path, intermediate_size=80)
    outcome = quantize_checkpoint(_job(tmp_path))
    left = [f'model.layers.{i}.mlp.down_proj' for i in range(2)]
    assert [layer.name for layer in outcome.layers if layer.note] == left
    config = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert config['quantization_config']['modules_to_not_convert'] == left
    assert _is_near(tmp_path, 0.03)


def test_the_config_says_how_the_weights_are_stored_and_keeps_the_rest(tmp_path):
    config = llama_config(rope_theta=5000.0, unknown='kept')
    write_model(tmp_path / 'source', {**config, 'dtype': 'float32', 'torch_dtype': 'float32'},
                llama_tensors(config))
    for name, scheme, method in (('awq', _AWQ, 'awq'), ('w8a8', SmoothQuant(0.5),
                                                        'compressed-tensors')):
        quantize_checkpoint(_job(tmp_path, scheme, out=name))
        written = json.loads((tmp_path / name / 'config.json').read_text())
        assert written.pop('quantization_config')['quant_method'] == method
        assert written == {**config, 'torch_dtype': 'float16'}


def test_what_belongs_to_the_model_is_kept_and_what_belongs_to_its_weights_is_not(tmp_path):
    source = write_chat_model(tmp_path / 'source')
    kept = {'generation_config.json': '{"temperature": 0.7}', 'chat_template.jinja': '{{ 1 }}',
            'LICENSE': 'free', 'License.txt': 'free', 'NOTICE.md': 'x', 'merges.txt': 'a b',
            'tokenizer.model': 'x', 'special_tokens_map.json': '{}'}
    left = {'pytorch_model.bin': 'x', 'pytorch_model.bin.index.json': '{}', 'README.md': 'fp16',
            '.hidden.json': '{}', 'model.safetensors.index.json': '{}'}
    for name, text in {**kept, **left}.items():
        (source / name).write_text(text)
    (source / 'onnx.json').mkdir()
    quantize_checkpoint(_job(tmp_path))
    out = tmp_path / 'out'
    assert sorted(path.name for path in out.iterdir()) == sorted(
        [*kept, 'config.json', 'model.safetensors', 'tokenizer.json', 'tokenizer_config.json'])
    for name in [*kept, 'tokenizer.json', 'tokenizer_config.json']:
        assert (out / name).read_bytes() == (source / name).read_bytes()


def test_the_engine_chats_with_what_was_written(tmp_path):
    write_chat_model(tmp_path / 'source')
    quantize_checkpoint(_job(tmp_path, _AWQ))
    engine = Engine.load(tmp_path / 'out', num_slots=1, max_seq_len=64)
    assert engine.info.format == 'awq-gemm'
    result = list(engine.generate(Request(text='hi', max_new_tokens=4)))[-1].result
    assert result.completion_tokens <= 4


def test_a_source_of_several_files_gives_what_one_file_gives(tmp_path):
    tensors = _source(tmp_path)
    quantize_checkpoint(_job(tmp_path, _AWQ))
    sharded = tmp_path / 'sharded' / 'source'
    sharded.mkdir(parents=True)
    shutil.copy(tmp_path / 'source' / 'config.json', sharded)
    names = sorted(tensors)
    weight_map = {name: f'model-0000{1 + i % 2}-of-00002.safetensors'
                  for i, name in enumerate(names)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file},
                  sharded / file)
    (sharded / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    quantize_checkpoint(_job(tmp_path / 'sharded', _AWQ))
    assert sorted(path.name for path in (tmp_path / 'sharded' / 'out').iterdir()) == [
        'config.json', 'model.safetensors']
    assert (tmp_path / 'sharded' / 'out' / 'model.safetensors').read_bytes() == (
        tmp_path / 'out' / 'model.safetensors').read_bytes()


def test_a_large_output_becomes_several_files(tmp_path, monkeypatch):
    _source(tmp_path)
    quantize_checkpoint(_job(tmp_path))
    monkeypatch.setattr(work_folder, 'join', lambda pieces, out: shards.join(pieces, out, 20_000))
    quantize_checkpoint(_job(tmp_path, out='small'))
    assert sorted(path.name for path in (tmp_path / 'small').iterdir()) == [
        'config.json', *(f'model-0000{i}-of-00003.safetensors' for i in (1, 2, 3)),
        'model.safetensors.index.json']
    assert torch.equal(_logits(tmp_path / 'small'), _logits(tmp_path / 'out'))


def test_tensors_in_a_block_that_the_model_does_not_read_are_dropped_and_others_kept(tmp_path):
    strays = {'vision.layers.0.weight': torch.randn(4, 4).bfloat16(),
              'model.rotary_emb.inv_freq': torch.tensor([1e6, 1.0]),
              'position_ids': torch.arange(3)}
    dropped = {'model.layers.0.self_attn.rotary_emb.inv_freq': torch.ones(8),
               'model.layers.2.mlp.up_proj.weight': torch.ones(3, 3)}
    _source(tmp_path, extra={**strays, **dropped})
    quantize_checkpoint(_job(tmp_path, _AWQ))
    with CheckpointReader(tmp_path / 'out') as reader:
        assert not reader.names & dropped.keys()
        for name, tensor in strays.items():
            assert torch.equal(reader.stored(name), tensor)
            assert reader.stored(name).dtype == tensor.dtype
    assert _is_near(tmp_path, 0.03)


def _refused(tmp_path, job, error, message):
    """Check that a job is refused before anything is written."""
    before = sorted(tmp_path.rglob('*'))
    with pytest.raises(error, match=message):
        quantize_checkpoint(job)
    assert sorted(tmp_path.rglob('*')) == before


def _without(name):
    return lambda tensors: tensors.pop(name)


def _with(name, value):
    def change(tensors):
        tensors[name][0] = value
    return change


_UP = 'model.layers.1.mlp.up_proj.weight'


@pytest.mark.parametrize('change, message', [
    (_without(_UP), f'expected a tensor {_UP}, and it is missing'),
    (_without('model.layers.1.input_layernorm.weight'), 'input_layernorm.weight, and it is missi'),
    (_without('model.embed_tokens.weight'), 'model.embed_tokens.weight, and it is missing'),
    (_without('model.norm.weight'), 'model.norm.weight, and it is missing'),
    (_without('lm_head.weight'), 'lm_head.weight, and it is missing'),
    (_with(_UP, float('nan')), f'{_UP}: expected finite values, got NaN'),
    (_with('lm_head.weight', 1e6), 'lm_head.weight: expected values that fp16 holds'),
    (lambda tensors: tensors.update({_UP: torch.ones(4, 4)}), r'expected shape \[128, 64\], got'),
    (lambda tensors: tensors.update({_UP: tensors[_UP].to(torch.float8_e4m3fn)}),
     f'{_UP}: expected fp32, fp16 or bf16')])
def test_a_tensor_that_is_not_as_it_has_to_be_is_found_before_the_work(tmp_path, change, message):
    config = llama_config()
    tensors = llama_tensors(config)
    change(tensors)
    write_model(tmp_path / 'source', config, tensors)
    _refused(tmp_path, _job(tmp_path, _AWQ), CheckpointError, message)


@pytest.mark.parametrize('scheme', [_RTN, SmoothQuant()])
def test_what_is_quantized_already_is_refused(tmp_path, scheme):
    _source(tmp_path)
    quantize_checkpoint(_job(tmp_path, scheme))
    _refused(tmp_path, _job(tmp_path, source='out', out='again'), UnsupportedModelError,
             'expected plain weights, got model.layers.0.mlp.down_proj in the format .*already')


def test_an_architecture_without_a_recipe_is_refused(tmp_path):
    _source(tmp_path, model_type='mamba')
    _refused(tmp_path, _job(tmp_path), UnsupportedModelError, "model_type: expected .*'mamba'")


@pytest.mark.parametrize('samples, message', [
    ([], 'calibration: expected at least one sample, got none'),
    ([torch.tensor([5, 96])], 'calibration: expected token ids below 96, got 96: the tokenizer')])
def test_calibration_that_cannot_serve_is_refused(tmp_path, samples, message):
    _source(tmp_path)
    for scheme in (_AWQ, SmoothQuant()):
        _refused(tmp_path, _job(tmp_path, scheme, samples=samples), ConfigError, message)


def test_a_group_that_divides_no_layer_is_refused(tmp_path):
    _source(tmp_path)
    job = _job(tmp_path, WeightOnly(METHODS['rtn'], WeightSpec(4, 48)))
    _refused(tmp_path, job, ConfigError,
             'group size: expected a divisor of a K of this model, 64 or 128, got 48')


def test_a_full_disk_is_refused_and_what_an_earlier_run_took_of_it_counts(tmp_path, monkeypatch):
    _source(tmp_path)
    monkeypatch.setattr(shutil, 'disk_usage', lambda _: SimpleNamespace(free=150_000))
    _refused(tmp_path, _job(tmp_path), ConfigError, 'expected 0 MiB of free space, got 0 MiB')
    partial = tmp_path / 'out.partial'
    partial.mkdir()
    for name, size in (('settings.json', 0), ('block-00000.safetensors', 90_000)):
        (partial / name).write_bytes(bytes(size))
    with pytest.raises(CheckpointError, match='settings.json: expected JSON'):
        quantize_checkpoint(_job(tmp_path), resume=True)


@pytest.mark.parametrize('source, out, message', [
    ('a', 'a', 'expected an output folder that does not exist yet'),
    ('a', 'a/b/c', 'a/b/c: expected a folder outside of the source'),
    ('a/b', 'a', 'expected an output folder that does not exist yet'),
    ('a.partial', 'a', 'a: expected a folder outside of the source'),
    ('a.partial/b', 'a', 'a: expected a folder outside of the source')])
def test_source_and_output_must_not_overlap(tmp_path, source, out, message):
    """The work folder beside the output is removed in the end, with all that is in it."""
    (tmp_path / source).mkdir(parents=True)
    with pytest.raises(ConfigError, match=message):
        Job(tmp_path / source, tmp_path / out, _RTN)


def test_a_broken_link_in_the_place_of_the_output_is_refused(tmp_path):
    (tmp_path / 'out').symlink_to(tmp_path / 'nowhere')
    with pytest.raises(ConfigError, match='out: expected an output folder that does not exist'):
        _job(tmp_path)


@pytest.mark.parametrize('alpha', [-0.1, 1.1, float('nan')])
def test_an_alpha_out_of_range_is_refused(alpha):
    with pytest.raises(ConfigError, match='alpha: expected 0 to 1, got'):
        SmoothQuant(alpha)


def test_a_log_gets_one_line_for_each_block(tmp_path, capsys):
    _source(tmp_path)
    quantize_checkpoint(_job(tmp_path, SmoothQuant()))
    out, err = capsys.readouterr()
    assert out == '' and '\r' not in err
    assert [line.partition(' [')[0] for line in err.splitlines()] == [
        'survey: 1/2', 'survey: 2/2', 'blocks: 1/2', 'blocks: 2/2']
