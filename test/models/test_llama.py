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
"""The Llama model against transformers, whole and in pieces, and as every plain checkpoint."""

import json
from pathlib import Path

import pytest
from safetensors.torch import save_file
from tiny_models import llama_config, llama_tensors, load_folder, run_model, write_model
import torch
from transformers import AutoModelForCausalLM

from tinychat_ros.errors import CheckpointError, KernelError
from tinychat_ros.kernels import extension
from tinychat_ros.models.kv_cache import kv_bytes_per_position, KVCache

_LLAMA3 = {'rope_type': 'llama3', 'factor': 8.0, 'low_freq_factor': 1.0,
           'high_freq_factor': 4.0, 'original_max_position_embeddings': 32}

CONFIGS = {
    'gqa-8-2': {'num_attention_heads': 8, 'num_key_value_heads': 2, 'head_dim': 8},
    'mha': {'num_attention_heads': 4, 'num_key_value_heads': 4},
    'mqa': {'num_attention_heads': 8, 'num_key_value_heads': 1, 'head_dim': 8},
    'heads wider than hidden': {'num_attention_heads': 4, 'head_dim': 32},
    'head_dim from hidden': {'head_dim': None, '_head_dim': 16},
    'kv heads from heads': {'num_key_value_heads': None, '_kv_heads': 4},
    'tied': {'tie_word_embeddings': True},
    'odd sizes': {'hidden_size': 36, 'intermediate_size': 86, 'num_attention_heads': 6,
                  'num_key_value_heads': 3, 'head_dim': 6, 'vocab_size': 97},
    'attention bias': {'attention_bias': True},
    'every bias': {'attention_bias': True, 'mlp_bias': True},
    'theta': {'rope_theta': 500000.0},
    'eps': {'rms_norm_eps': 0.1},
    'linear rope': {'rope_scaling': {'type': 'linear', 'factor': 4.0}},
    'llama3 rope': {'rope_theta': 500000.0, 'rope_scaling': _LLAMA3},
    'rope_parameters': {'rope_theta': None,
                        'rope_parameters': {'rope_type': 'default', 'rope_theta': 5000.0}},
    'linear rope_parameters': {'rope_theta': None, 'rope_parameters': {
        'rope_type': 'linear', 'rope_theta': 5000.0, 'factor': 2.0}},
    'llama3 rope_parameters': {'rope_theta': None,
                               'rope_parameters': {**_LLAMA3, 'rope_theta': 500.0}},
}


def _token_ids(vocab_size: int, count: int = 40) -> list[int]:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(vocab_size, (count,), generator=generator).tolist()


def _write(path: Path, changes: dict, dtype: torch.dtype = torch.float32) -> dict:
    """Write a random model; keys with an underscore say what transformers derives by itself."""
    config = llama_config(**{k: v for k, v in changes.items() if not k.startswith('_')})
    full = {'head_dim': changes.get('_head_dim'), 'num_key_value_heads': changes.get('_kv_heads')}
    full = {**{k: v for k, v in full.items() if v}, **config}
    write_model(path, config, llama_tensors(full, seed=len(changes), dtype=dtype))
    return config


def _transformers_logits(path: Path, ids: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0]


@pytest.mark.parametrize('changes', CONFIGS.values(), ids=CONFIGS.keys())
def test_logits_agree_with_transformers(changes, tmp_path):
    config = _write(tmp_path, changes)
    ids = _token_ids(config['vocab_size'])
    expected = _transformers_logits(tmp_path, ids)
    assert expected.abs().max() > 1, 'a model that says nothing proves nothing'
    torch.testing.assert_close(run_model(load_folder(tmp_path), ids), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize('piece', [1, 3, 7])
@pytest.mark.parametrize('name', ['gqa-8-2', 'llama3 rope', 'every bias'])
def test_a_text_fed_in_pieces_gives_the_logits_of_the_whole(name, piece, tmp_path):
    config = _write(tmp_path, CONFIGS[name])
    model, ids = load_folder(tmp_path), _token_ids(config['vocab_size'])
    torch.testing.assert_close(run_model(model, ids, piece), run_model(model, ids),
                               rtol=0, atol=1e-4)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_weights_computed_in_fp32_agree_with_transformers(dtype, tmp_path):
    _write(tmp_path, {}, dtype)
    ids = _token_ids(96)
    torch.testing.assert_close(run_model(load_folder(tmp_path), ids),
                               _transformers_logits(tmp_path, ids), rtol=0, atol=1e-4)


@pytest.mark.parametrize('dtype, tolerance', [(torch.float16, 0.02), (torch.bfloat16, 0.15)])
def test_half_activations_stay_near_those_of_fp32(dtype, tolerance, tmp_path):
    _write(tmp_path, {'attention_bias': True}, dtype)
    ids = _token_ids(96)
    exact = run_model(load_folder(tmp_path), ids)
    rounded = run_model(load_folder(tmp_path, dtype), ids)
    assert rounded.dtype == torch.float32
    assert (rounded - exact).abs().max() < tolerance * exact.abs().max()


def test_shards_give_the_same_logits_as_one_file(tmp_path):
    config = llama_config()
    tensors = llama_tensors(config)
    whole = load_folder(write_model(tmp_path / 'whole', config, tensors))
    sharded = tmp_path / 'sharded'
    sharded.mkdir()
    (sharded / 'config.json').write_text(json.dumps(config))
    names = sorted(tensors)
    weight_map = {}
    for i, part in enumerate((names[::2], names[1::2])):
        shard = f'model-{i + 1:05}-of-00002.safetensors'
        save_file({name: tensors[name] for name in part}, sharded / shard)
        weight_map.update({name: shard for name in part})
    (sharded / 'model.safetensors.index.json').write_text(json.dumps({'weight_map': weight_map}))
    ids = _token_ids(96)
    assert torch.equal(run_model(load_folder(sharded), ids), run_model(whole, ids))


def test_a_tied_model_ignores_a_stored_head(tmp_path):
    config = llama_config(tie_word_embeddings=True)
    tensors = llama_tensors(config)
    ids = _token_ids(96)
    bare = run_model(load_folder(write_model(tmp_path / 'a', config, tensors)), ids)
    tensors['lm_head.weight'] = tensors['model.embed_tokens.weight'].clone()
    stored = run_model(load_folder(write_model(tmp_path / 'b', config, tensors)), ids)
    assert torch.equal(bare, stored)


def test_a_model_that_is_not_tied_needs_its_head(tmp_path):
    config = llama_config()
    tensors = llama_tensors(config)
    del tensors['lm_head.weight']
    write_model(tmp_path, config, tensors)
    with pytest.raises(CheckpointError, match='lm_head'):
        load_folder(tmp_path)


def test_the_last_logits_are_those_of_all_logits(tmp_path):
    _write(tmp_path, {})
    model, ids = load_folder(tmp_path), torch.tensor(_token_ids(96))
    every = model.forward(ids, KVCache(model.config, 1, 64, torch.float32, ids.device), 0, 0,
                          all_logits=True)
    last = model.forward(ids, KVCache(model.config, 1, 64, torch.float32, ids.device), 0, 0)
    torch.testing.assert_close(last, every[-1], rtol=0, atol=1e-5)


def test_two_slots_do_not_mix(tmp_path):
    _write(tmp_path, {})
    model, ids = load_folder(tmp_path), _token_ids(96, 20)
    other = ids[::-1]
    cache = KVCache(model.config, 2, 32, torch.float32, torch.device('cpu'))
    turns = [(slot, i) for i in range(20) for slot in (0, 1)]
    logits = {turn: model.forward(torch.tensor([(ids, other)[turn[0]][turn[1]]]), cache, *turn)
              for turn in turns}
    for slot, text in enumerate((ids, other)):
        alone = run_model(model, text)
        mixed = torch.stack([logits[slot, i] for i in range(20)])
        torch.testing.assert_close(mixed, alone, rtol=0, atol=1e-4)


def test_what_lies_behind_the_present_position_has_no_influence(tmp_path):
    _write(tmp_path, {})
    model = load_folder(tmp_path)
    cache = KVCache(model.config, 1, 32, torch.float32, torch.device('cpu'))
    ids = torch.tensor(_token_ids(96, 20))
    model.forward(ids, cache, 0, 0)
    again = model.forward(ids[4:8].flip(0), cache, 0, 4)
    fresh = run_model(model, [*ids[:4].tolist(), *ids[4:8].flip(0).tolist()])[-1]
    torch.testing.assert_close(again, fresh, rtol=0, atol=1e-5)


def test_a_text_beyond_the_cache_is_refused_with_both_lengths(tmp_path):
    _write(tmp_path, {})
    model = load_folder(tmp_path)
    cache = KVCache(model.config, 1, 8, torch.float32, torch.device('cpu'))
    with pytest.raises(KernelError, match='9 positions, got 8'):
        model.forward(torch.arange(9), cache, 0, 0)


def test_the_cache_takes_the_bytes_that_are_announced(tmp_path):
    _write(tmp_path, {})
    model = load_folder(tmp_path)
    cache = KVCache(model.config, 3, 10, torch.bfloat16, torch.device('cpu'))
    layers = [cache.layer(i, slot) for i in range(2) for slot in range(3)]
    taken = sum(t.numel() * t.element_size() for layer in layers for t in layer[:2])
    assert taken == kv_bytes_per_position(model.config, torch.bfloat16) * 3 * 10


@pytest.mark.parametrize('tied', [False, True])
@pytest.mark.parametrize('dtype, tolerance', [('int8', 0.02), ('int4', 0.15)])
def test_a_rounded_head_gives_nearly_the_same_logits(tmp_path, dtype, tolerance, tied):
    _write(tmp_path, {'tie_word_embeddings': tied})
    model, ids = load_folder(tmp_path), torch.arange(9)
    before, embedding = run_model(model, ids.tolist()), model.embedding.clone()
    model.quantize_head(dtype)
    after = run_model(model, ids.tolist())
    assert not isinstance(model.lm_head.weight, torch.Tensor) and not torch.equal(before, after)
    assert (after - before).abs().max() < tolerance * before.abs().max()
    assert torch.equal(model.embedding, embedding)


@pytest.mark.parametrize('int8, group', [(False, 0), (True, 64), (None, 64)])
def test_the_input_of_an_int4_head_is_rounded_as_that_of_other_linears(tmp_path, int8, group):
    if extension.load() is None:
        pytest.skip(extension.why_absent())
    _write(tmp_path, {})
    model = load_folder(tmp_path)
    model.quantize_head('int4', int8)
    assert model.lm_head.activation_group == group


@pytest.mark.parametrize('changes, reason', [
    ({'hidden_size': 40}, 'expected K to be a multiple of 32, got 40'),
    ({}, 'expected groups whose scale fp16 holds')])
def test_a_head_that_int4_cannot_hold_is_refused(tmp_path, changes, reason):
    _write(tmp_path, changes)
    model = load_folder(tmp_path)
    model.lm_head.weight[3, 5] = 1e7
    with pytest.raises(CheckpointError, match=f'lm_head: .*{reason}'):
        model.quantize_head('int4')
