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
"""Joining the files of single blocks into one file, or several and their index."""

import json

import pytest
from safetensors import safe_open
from tiny_models import llama_config, llama_tensors, load_folder, run_model, write_model
import torch
from transformers import AutoModelForCausalLM

from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.shards import join, read_metadata
from tinychat_ros.checkpoint.writer import save_json, save_tensors
from tinychat_ros.errors import CheckpointError

_CONFIG = llama_config(num_hidden_layers=3)
_TENSORS = llama_tensors(_CONFIG)


@pytest.fixture
def pieces(tmp_path):
    """Write a file of what lies outside the blocks, and one of each block."""
    prefixes = [f'model.layers.{i}.' for i in range(3)]
    groups = [[name for name in _TENSORS if not name.startswith(tuple(prefixes))],
              *([name for name in _TENSORS if name.startswith(prefix)] for prefix in prefixes)]
    files = [tmp_path / f'piece-{index}' for index in range(4)]
    for file, names in zip(files, groups):
        save_tensors(file, {name: _TENSORS[name] for name in names}, {'of': file.name})
    (tmp_path / 'out').mkdir()
    save_json(tmp_path / 'out' / 'config.json', _CONFIG)
    return files


def _names(folder):
    return sorted(file.name for file in folder.iterdir() if file.name != 'config.json')


def _check(folder):
    """Check that every reader finds every tensor as it was."""
    with CheckpointReader(folder) as reader:
        assert reader.names == _TENSORS.keys()
        assert all(torch.equal(reader.stored(name), t) for name, t in _TENSORS.items())
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    assert all(torch.equal(model.state_dict()[name], t) for name, t in _TENSORS.items())


def test_what_fits_into_one_file_becomes_one_without_an_index(tmp_path, pieces):
    join(pieces, tmp_path / 'out')
    assert _names(tmp_path / 'out') == ['model.safetensors']
    assert read_metadata(tmp_path / 'out' / 'model.safetensors') == {'format': 'pt'}
    _check(tmp_path / 'out')


def test_more_becomes_files_of_whole_pieces_and_an_index_that_every_reader_takes(
        tmp_path, pieces):
    out = tmp_path / 'out'
    join(pieces, out, pieces[2].stat().st_size * 2 + 1)
    shards = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors']
    assert _names(out) == [*shards, 'model.safetensors.index.json']
    index = json.loads((out / 'model.safetensors.index.json').read_text())
    assert index['metadata'] == {'total_size': sum(t.nbytes for t in _TENSORS.values())}
    assert index['weight_map'].keys() == _TENSORS.keys()
    for shard in shards:
        with safe_open(out / shard, framework='pt') as file:
            assert file.metadata() == {'format': 'pt'}
            assert set(file.keys()) == {k for k, v in index['weight_map'].items() if v == shard}
    _check(out)
    plain = write_model(tmp_path / 'plain', _CONFIG, _TENSORS)
    assert torch.equal(run_model(load_folder(out), [1, 2, 3]),
                       run_model(load_folder(plain), [1, 2, 3]))


def test_a_piece_larger_than_a_file_may_be_is_not_divided(tmp_path, pieces):
    join(pieces, tmp_path / 'out', 1)
    assert _names(tmp_path / 'out') == [
        *(f'model-0000{i}-of-00004.safetensors' for i in range(1, 5)),
        'model.safetensors.index.json']
    _check(tmp_path / 'out')


def test_pieces_give_the_same_bytes_each_time(tmp_path, pieces):
    found = []
    for name in ('a', 'b'):
        (tmp_path / name).mkdir()
        join(pieces, tmp_path / name, 1)
        found.append({file.name: file.read_bytes() for file in (tmp_path / name).iterdir()})
    assert found[0] == found[1]


@pytest.mark.parametrize('content', [b'', b'\x08\0\0\0\0\0\0\0garbage!'])
def test_a_damaged_piece_is_named(tmp_path, pieces, content):
    pieces[2].write_bytes(content)
    with pytest.raises(CheckpointError, match='piece-2: expected a whole safetensors file'):
        join(pieces, tmp_path / 'out')
    with pytest.raises(CheckpointError, match='piece-2: expected a whole safetensors file'):
        read_metadata(pieces[2])


def test_metadata_is_read_as_it_was_written(tmp_path, pieces):
    assert read_metadata(pieces[0]) == {'of': 'piece-0'}
    save_tensors(tmp_path / 'bare', {'a': torch.ones(1)}, {})
    assert read_metadata(tmp_path / 'bare') == {}
