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
"""`tinychat bench` measures the kernels, here the emulated ones."""

import json

import pytest

from tinychat_ros import cli
from tinychat_ros.bench import bandwidth, shapes

TINY = {'model_type': 'llama', 'vocab_size': 96, 'hidden_size': 64, 'intermediate_size': 128,
        'num_hidden_layers': 2, 'num_attention_heads': 4, 'num_key_value_heads': 2}
KERNELS = ('embedding', 'qkv', 'attention@5', 'attention@40', 'o', 'gate_up', 'down', 'lm_head',
           'sampler')


@pytest.mark.parametrize('kv_cache_dtype', ['auto', 'int8'])
def test_every_kernel_of_the_step_runs_and_is_measured(emulated, monkeypatch, capsys,
                                                       kv_cache_dtype):
    monkeypatch.setitem(shapes.SHAPES, 'tiny', TINY)
    monkeypatch.setitem(bandwidth._BUFFER_BYTES, 'cpu', 2**16)
    monkeypatch.setitem(bandwidth._MATRIX_SIZES, 'cpu', (32,))
    code = cli.main(['bench', '--shape', 'tiny', '--group-size', '32', '--device', 'cpu',
                     '--dtype', 'float16', '--kv-cache-dtype', kv_cache_dtype, '--threads', '1',
                     '--context', '5', '40', '--prefill', '8', '33', '--json'])
    assert code == 0
    found = json.loads(capsys.readouterr().out)
    assert tuple(row['name'] for row in found['kernels']) == KERNELS
    assert all(row['milliseconds'] > row['kernels_milliseconds'] / 10 > 0
               for row in found['decode'])
