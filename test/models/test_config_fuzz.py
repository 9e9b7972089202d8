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
"""Whatever a config.json says, a family is read, loaded and run, or refused by name."""

from copy import deepcopy
import json
from typing import Any, Iterator

from family_models import load_family, write_family
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import run_model
import torch

from tinychat_ros.checkpoint.loader import check_memory
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.errors import CheckpointError, TinychatError
from tinychat_ros.models.registry import read_config

_VALUES = [None, [], {}, '', 'x', -1, 0, 1, 2, 3, 0.5, True, False, float('nan'), 1e-320, 1e30,
           1e300, 10**9, 10**400, [1], [[1]], ['x'], [{}], {'x': 1}, 'linear', 'dynamic',
           'llama3', 'yarn', 'longrope']

# Keys that a family reads where they are there.
_OPTIONAL = ['rope_scaling', 'rope_parameters', 'rope_theta', 'head_dim', 'layer_types',
             'sliding_window', 'max_window_layers', 'num_kv_heads', 'ffn_hidden_size', 'n_head',
             'n_head_kv', 'n_layer', 'sliding_window_pattern', 'rope_local_base_freq', 'alibi',
             'attn_logit_softcapping', 'num_ln_in_parallel_attn', 'partial_rotary_factor',
             'original_max_position_embeddings', 'attn_config']
_OPTIONAL_ROPE = ['mscale', 'mscale_all_dim', 'attention_factor', 'beta_fast', 'beta_slow',
                  'truncate', 'type', 'low_freq_factor', 'short_factor', 'long_factor']

_FAMILIES = ['llama mha', 'llama dynamic', 'llama llama3', 'llama yarn mscale', 'mistral window',
             'qwen2 windows', 'qwen3', 'phi3 window', 'phi3 long', 'gemma2 loud', 'gemma3',
             'mpt clip', 'falcon 71 heads', 'falcon 40b', 'falcon mha']


def _places(config: dict[str, Any]) -> Iterator[tuple]:
    """Yield the way to every value, those of nested objects and the first of lists too."""
    for key, value in config.items():
        yield (key,)
        if isinstance(value, dict):
            inner = {**dict.fromkeys(_OPTIONAL_ROPE), **value} if 'rope_type' in value else value
            yield from ((key, *place) for place in _places(inner))
        elif isinstance(value, list) and value:
            yield key, 0


def _altered(config: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for place in _places({**dict.fromkeys(_OPTIONAL), **config}):
        for value in _VALUES:
            altered = deepcopy(config)
            target = altered
            for key in place[:-1]:
                target = target[key]
            target[place[-1]] = value
            yield altered


@pytest.mark.parametrize('name', _FAMILIES)
def test_no_value_of_any_key_escapes_as_another_exception(name, tmp_path):
    path = write_family(tmp_path, name)
    config = json.loads((path / 'config.json').read_text())
    accepted = {}
    for altered in _altered(config):
        try:
            accepted.setdefault(read_config(altered), altered)
        except TinychatError as error:
            assert 'expected' in str(error)
    assert len(accepted) > 20
    for altered in accepted.values():
        (path / 'config.json').write_text(json.dumps(altered))
        _load_and_run(path)


def _load_and_run(path):
    try:
        with CheckpointReader(path) as reader:
            check_memory(reader, torch.float32, torch.float32, torch.device('cpu'), 1, 8, 10**9)
        run_model(load_family(path, max_seq_len=8), [1, 5, 9])
    except TinychatError as error:
        assert 'expected' in str(error)


@pytest.mark.parametrize('name', _FAMILIES)
def test_a_tensor_that_is_missing_or_of_another_shape_is_named(name, tmp_path):
    path = write_family(tmp_path, name)
    tensors = load_file(path / 'model.safetensors')
    for tensor in tensors:
        rest = {other: value for other, value in tensors.items() if other != tensor}
        longer = torch.cat([tensors[tensor], tensors[tensor][:1]])
        for damaged in ({**rest, tensor: longer}, rest):
            # Biases are read where they are.
            if tensor.endswith('.bias') and tensor not in damaged:
                continue
            save_file(damaged, path / 'model.safetensors', metadata={'format': 'pt'})
            with pytest.raises(CheckpointError, match=tensor.removesuffix('.weight')):
                load_family(path)
