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
"""A checkpoint folder that is not what it says: each fault is refused by name."""

import json
import os
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tiny_models import llama_config, llama_tensors, load_folder, write_model
import torch

from tinychat_ros.checkpoint.reader import CheckpointReader, read_json
from tinychat_ros.errors import CheckpointError


@pytest.fixture
def model(tmp_path):
    """Return a whole small checkpoint."""
    config = llama_config()
    return write_model(tmp_path / 'model', config, llama_tensors(config))


def _file(header):
    """Return a safetensors file of a header and four bytes of data."""
    return len(header).to_bytes(8, 'little') + header.encode() + bytes(4)


def _sharded(path, weight_map):
    (path / 'model.safetensors').unlink()
    (path / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))


@pytest.mark.parametrize('path', ['nowhere', 'x' * 5000, '\0'])
def test_a_missing_folder_is_refused(path, tmp_path):
    with pytest.raises(CheckpointError, match='expected a checkpoint folder'):
        CheckpointReader(tmp_path / path)


def test_a_file_is_no_folder(model):
    with pytest.raises(CheckpointError, match='expected a checkpoint folder'):
        CheckpointReader(model / 'config.json')


def test_a_missing_config_is_named(model):
    (model / 'config.json').unlink()
    with pytest.raises(CheckpointError, match='config.json: expected a file, and there is none'):
        CheckpointReader(model)


@pytest.mark.parametrize('content, named', [
    (b'', 'expected JSON'), (b'{"a": ', 'expected JSON'), (b'[1, 2]', 'JSON object, got list'),
    (b'{"a": "\xff"}', 'UTF-8, got byte 0xff at offset 7'), (b'[' * 100000, 'expected JSON'),
    (b'{"a": ' + b'1' * 5000 + b'}', 'expected JSON'), (b'\xef\xbb\xbf{}', 'expected JSON')])
def test_a_json_file_that_holds_no_object_is_refused(content, named, tmp_path):
    file = tmp_path / 'config.json'
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f'config.json: .*{named}'):
        read_json(file)


def test_a_folder_in_the_place_of_a_file_is_refused(model):
    (model / 'config.json').unlink()
    (model / 'config.json').mkdir()
    with pytest.raises(CheckpointError, match='config.json'):
        CheckpointReader(model)


def test_without_weights_the_names_that_were_looked_for_are_said(model):
    (model / 'model.safetensors').unlink()
    with pytest.raises(CheckpointError, match='model.safetensors.index.json, got none'):
        CheckpointReader(model)


def test_a_pickle_is_not_opened(model):
    (model / 'model.safetensors').rename(model / 'pytorch_model.bin')
    with pytest.raises(CheckpointError, match='only pytorch_model.bin, a pickle'):
        CheckpointReader(model)


@pytest.mark.parametrize('size', [0, 4, 8, 9, 100, 2000, 0.5, 0.99, -1])
def test_a_cut_file_is_refused_by_name(size, model):
    file = model / 'model.safetensors'
    whole = file.stat().st_size
    os.truncate(file, int(size * whole) if isinstance(size, float) else size % whole)
    with pytest.raises(CheckpointError, match='model.safetensors: expected a whole safetensors'):
        load_folder(model)


@pytest.mark.parametrize('content', [
    b'\xff' * 200, b'\x02' + b'\0' * 7 + b'{}', b'\x10' + b'\0' * 7 + b'not json at all!',
    _file('{"a": {"dtype": "F32", "shape": [9], "data_offsets": [0, 4]}}'),
    _file('{"a": {"dtype": "Q7", "shape": [1], "data_offsets": [0, 4]}}'),
    _file('{"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}'),
    _file('{"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}'), _file('{"a": 1}')])
def test_a_file_with_a_wrong_header_is_refused(content, model):
    (model / 'model.safetensors').write_bytes(content)
    with pytest.raises(CheckpointError):
        load_folder(model)


def test_a_tensor_of_a_wrong_shape_is_refused_with_both_shapes(model):
    (model / 'config.json').write_text(json.dumps(llama_config(hidden_size=32)))
    with pytest.raises(CheckpointError, match=r'expected shape \[96, 32\], got \[96, 64\]'):
        load_folder(model)


@pytest.mark.parametrize('name', ['model.embed_tokens.weight', 'model.norm.weight',
                                  'model.layers.1.mlp.up_proj.weight',
                                  'model.layers.0.input_layernorm.weight'])
def test_a_missing_tensor_is_named(name, model):
    tensors = llama_tensors(llama_config())
    del tensors[name]
    write_model(model, llama_config(), tensors)
    with pytest.raises(CheckpointError, match=name):
        load_folder(model)


@pytest.mark.parametrize('value', [float('nan'), float('inf'), -float('inf')])
@pytest.mark.parametrize('name', ['model.embed_tokens.weight', 'model.norm.weight',
                                  'model.layers.1.mlp.up_proj.weight'])
def test_a_value_that_is_no_number_is_refused_with_its_tensor(name, value, model):
    tensors = llama_tensors(llama_config())
    tensors[name].view(-1)[5] = value
    write_model(model, llama_config(), tensors)
    with pytest.raises(CheckpointError, match=f'{name}: .*NaN or infinity in 1 of'):
        load_folder(model)


@pytest.mark.parametrize('dtype', [torch.int8, torch.int64, torch.float64, torch.float8_e4m3fn,
                                   torch.bool, torch.complex64])
def test_a_weight_of_another_type_is_refused(dtype, model):
    tensors = llama_tensors(llama_config())
    tensors['lm_head.weight'] = torch.ones(96, 64).to(dtype)
    write_model(model, llama_config(), tensors)
    with pytest.raises(CheckpointError, match='lm_head.weight: expected fp32, fp16 or bf16'):
        load_folder(model)


@pytest.mark.parametrize('dtype', [torch.float8_e4m3fn, torch.uint32, torch.complex64])
def test_the_size_of_a_type_that_is_not_read_is_refused_too(dtype, model):
    tensors = {**llama_tensors(llama_config()), 'extra': torch.ones(4).to(dtype)}
    write_model(model, llama_config(), tensors)
    with CheckpointReader(model) as reader:
        with pytest.raises(CheckpointError, match='extra: expected'):
            reader.num_bytes('extra')


def test_a_shard_that_the_index_names_must_be_there(model):
    _sharded(model, {'lm_head.weight': 'model-00001-of-00001.safetensors'})
    with pytest.raises(CheckpointError, match='model-00001-of-00001.safetensors: expected a file'):
        CheckpointReader(model)


@pytest.mark.parametrize('shard', ['../other.safetensors', '/etc/passwd', 'sub/x.safetensors',
                                   '..', '.', '', 7, None, ['a'], {}])
def test_an_index_names_files_beside_it_and_nothing_else(shard, model):
    save_file({'lm_head.weight': torch.ones(96, 64)}, model.parent / 'other.safetensors')
    _sharded(model, {'lm_head.weight': shard, 'model.norm.weight': 'x.safetensors'})
    with pytest.raises(CheckpointError, match='expected names of files beside it, got'):
        CheckpointReader(model)


@pytest.mark.parametrize('weight_map', [None, {}, [], 'x', 3])
def test_an_index_without_a_map_is_refused(weight_map, model):
    _sharded(model, weight_map)
    with pytest.raises(CheckpointError, match="expected the key 'weight_map'"):
        CheckpointReader(model)


def test_a_tensor_that_only_the_index_knows_is_missing(model):
    tensors = llama_tensors(llama_config())
    missing = tensors.pop('lm_head.weight')
    assert missing.shape == (96, 64)
    (model / 'model.safetensors').unlink()
    save_file(tensors, model / 'a.safetensors')
    (model / 'model.safetensors.index.json').write_text(json.dumps(
        {'weight_map': {name: 'a.safetensors' for name in [*tensors, 'lm_head.weight']}}))
    with pytest.raises(CheckpointError, match='lm_head'):
        load_folder(model)


@pytest.mark.parametrize('in_config, in_generation, expected', [
    (2, None, (2,)), (2, {}, (2,)), (2, {'eos_token_id': [1, 3]}, (1, 3)),
    (None, {'eos_token_id': 3}, (3,)), (None, None, ())])
def test_generation_config_overrides_what_ends_an_answer(in_config, in_generation, expected,
                                                         model):
    (model / 'config.json').write_text(json.dumps(llama_config(eos_token_id=in_config)))
    if in_generation is not None:
        (model / 'generation_config.json').write_text(json.dumps(in_generation))
    with CheckpointReader(model) as reader:
        assert reader.stop_token_ids() == expected


def test_files_are_closed_after_a_failure_in_a_later_shard(model):
    _sharded(model, {'a': 'a.safetensors', 'b': 'b.safetensors'})
    save_file({'a': torch.ones(1)}, model / 'a.safetensors')
    (model / 'b.safetensors').write_bytes(b'no')
    before = len(list(Path('/proc/self/fd').iterdir()))
    for _ in range(5):
        with pytest.raises(CheckpointError, match='b.safetensors'):
            CheckpointReader(model)
    assert len(list(Path('/proc/self/fd').iterdir())) == before
