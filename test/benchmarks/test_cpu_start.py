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
"""What a start takes is measured in processes of their own, on a checkpoint of random weights."""

import json

from benchmarks import cpu_start, random_checkpoint
import pytest
import torch

from tinychat_ros.bench import shapes
from tinychat_ros.checkpoint import loader
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.models.config import ModelConfig

TINY = {'model_type': 'llama', 'max_position_embeddings': 64, 'vocab_size': 96, 'hidden_size': 64,
        'intermediate_size': 128, 'num_hidden_layers': 2, 'num_attention_heads': 4,
        'num_key_value_heads': 2, 'rms_norm_eps': 1e-5}


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.setitem(shapes.SHAPES, 'tiny', TINY)
    random_checkpoint.write_random_checkpoint(tmp_path / 'model', 'tiny', 32)
    return tmp_path / 'model'


def test_a_random_checkpoint_has_all_weights_of_its_shape(checkpoint):
    with CheckpointReader(checkpoint) as reader:
        assert reader.config == ModelConfig.from_dict(TINY)
        model, name = loader.load_model(reader, torch.float32, torch.device('cpu'), 16)
        layer = 64 * (64 * 2 + 32 * 2 + 3 * 128) + 2 * 64
        assert loader.num_parameters(reader) == 2 * layer + 2 * 96 * 64 + 64
    assert name == 'awq-gemm' and len(model.blocks) == 2


def test_a_start_says_what_it_took(checkpoint, tmp_path, capsys):
    threads = torch.get_num_threads()
    cpu_start.main(['--checkpoint', str(checkpoint), '--weight-cache', str(tmp_path / 'cache'),
                    '--max-seq-len', '64', '--lm-head-dtype', 'int8'])
    torch.set_num_threads(threads)
    found = json.loads(capsys.readouterr().out)
    assert 0 < found['load_seconds'] < found['first_token_seconds']
    assert found['kv_bytes'] in (2 * 2 * 2 * 16 * 64 * size for size in (2, 4))
    assert found['weight_bytes'] > 96 * 64 * 3


def test_the_table_sets_the_median_of_the_warm_starts_beside_the_cold_one():
    lines = cpu_start.table({
        'cold': {'load_seconds': 8.0, 'peak_bytes': 2**30},
        'warm': [{'load_seconds': s, 'peak_bytes': 2**29} for s in (3.0, 1.0, 2.0)]}).split('\n')
    assert [line.split() for line in lines] == [
        ['cold', 'warm'], ['load_seconds', '8.00', '2.00'], ['peak_MiB', '1024.00', '512.00']]


def test_memory_is_that_of_this_process():
    found = cpu_start.memory()
    assert 2**20 < found['RssAnon'] <= found['VmRSS'] <= found['VmHWM']
