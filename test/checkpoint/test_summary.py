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
"""What inspect tells of a checkpoint without loading it."""

import pytest
from stored_weights import STORE, store_linears
from tiny_models import linear_shapes, llama_config, llama_tensors, write_model

from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.summary import summarize_layers, weight_bytes_per_token


@pytest.mark.parametrize('name', STORE)
@pytest.mark.parametrize('group', [32, 64])
def test_a_quantized_layer_is_described_in_every_format(name, group, tmp_path):
    config = llama_config()
    stored = store_linears(config, llama_tensors(config), group, name)
    write_model(tmp_path, config, stored)
    with CheckpointReader(tmp_path) as reader:
        layers = {layer.name: layer for layer in summarize_layers(reader)}
        assert weight_bytes_per_token(reader) == sum(
            t.nbytes for tensor, t in stored.items() if 'embed_tokens' not in tensor)
    head = layers.pop('lm_head')
    assert (head.format, head.n, head.k, head.group_size) == ('plain', 96, 64, None)
    assert {layer.name: (layer.n, layer.k) for layer in layers.values()} == linear_shapes(config)
    assert {(layer.format, layer.group_size) for layer in layers.values()} == {(name, group)}
