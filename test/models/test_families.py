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
"""Every family against transformers, in fp32: logits however a text is fed, and greedy tokens."""

from dataclasses import dataclass
import json

from family_models import (
    FAMILIES, load_family, logits_of, MAX_SEQ_LEN, PROMPT_LEN, token_ids, transformers_model,
    write_family)
import pytest
from safetensors.torch import load_file, save_file
from tiny_models import run_model
import torch
from transformers import PreTrainedModel
from transformers.models.mpt.modeling_mpt import MptModel

from tinychat_ros.engine.graph_runner import GraphRunner, make_runner
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.kernels import extension
from tinychat_ros.models.causal_lm import CausalLM
from tinychat_ros.models.kv_cache import KVCache

_CPU = torch.device('cpu')
_NEW_TOKENS = 64


@dataclass(frozen=True)
class Pair:
    """A model here and in transformers, and a text for both."""

    name: str
    ours: CausalLM
    theirs: PreTrainedModel
    ids: list[int]


@pytest.fixture(scope='module', params=FAMILIES)
def pair(request, tmp_path_factory) -> Pair:
    """Return each family in turn."""
    path = write_family(tmp_path_factory.mktemp('family'), request.param)
    theirs = transformers_model(path)
    return Pair(request.param, load_family(path), theirs, token_ids(theirs.config.vocab_size))


def _runner(model):
    cache = KVCache(model.config, 1, MAX_SEQ_LEN, torch.float32, _CPU)
    return make_runner(model, cache, _CPU)


def _assert_equal(logits, expected):
    assert expected.abs().max() > 1, 'a model that says nothing proves nothing'
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_logits_agree_with_transformers_whole_in_chunks_and_token_by_token(pair):
    expected = logits_of(pair.theirs, pair.ids)
    for piece in (0, 7, 1):
        _assert_equal(run_model(pair.ours, pair.ids, piece), expected)


@pytest.mark.parametrize('kv_dtype, tolerance', [(torch.float16, 4e-3), (torch.int8, 0.1)])
def test_a_cache_of_fewer_bits_gives_nearly_the_same_logits(pair, kv_dtype, tolerance):
    expected = logits_of(pair.theirs, pair.ids)
    cache = KVCache(pair.ours.config, 1, MAX_SEQ_LEN, kv_dtype, _CPU)
    ids = torch.tensor(pair.ids)
    logits = torch.cat([pair.ours.forward(ids[start:end], cache, 0, start, all_logits=True)
                        for start, end in ((0, 20), (20, PROMPT_LEN - 1), (PROMPT_LEN - 1, None))])
    assert (logits - expected).abs().max() <= tolerance * expected.abs().max()


def test_greedy_tokens_are_those_of_transformers(pair):
    pair.theirs.generation_config.eos_token_id = None
    prompt = torch.tensor([pair.ids])
    # Without a mask, a token 0 of the prompt is taken for padding.
    answer = pair.theirs.generate(prompt, attention_mask=torch.ones_like(prompt),
                                  do_sample=False, max_new_tokens=_NEW_TOKENS)[0].tolist()
    best = logits_of(pair.theirs, answer[:-1])[PROMPT_LEN - 1:].topk(2).values
    assert (best[:, 0] - best[:, 1]).min() > 2e-4, 'two tokens are as good as each other'
    runner = _runner(pair.ours)
    tokens = runner.tokens(runner.prefill(pair.ids, 0, 0), 0, PROMPT_LEN, SamplingParams(),
                           pair.ids)
    assert [next(tokens) for _ in range(_NEW_TOKENS)] == answer[PROMPT_LEN:]
    assert len(set(answer[PROMPT_LEN:])) >= 3 or pair.name == 'gemma2 loud'


@pytest.mark.skipif(extension.load() is None, reason=extension.why_absent())
def test_its_step_is_recorded(pair):
    assert isinstance(_runner(pair.ours), GraphRunner)


def _logits_with(path, changes):
    """Return the logits of a model that is told otherwise; a dot leads into a nested object."""
    config = json.loads((path / 'config.json').read_text())
    for key, value in changes.items():
        *outer, last = key.split('.')
        inner = config
        for part in outer:
            inner = inner[part]
        inner[last] = value
    (path / 'config.json').write_text(json.dumps(config))
    return run_model(load_family(path), token_ids(96))


@pytest.mark.parametrize('name, changes', [
    ('llama yarn', {'rope_parameters.factor': 2.0}),
    ('llama yarn', {'rope_parameters.attention_factor': 1.3}),
    ('llama yarn mscale', {'rope_parameters.truncate': True}),
    ('llama yarn mscale', {'rope_parameters.mscale': None}),
    ('llama llama3', {'rope_parameters.low_freq_factor': 2.0}),
    ('mistral window', {'sliding_window': None}),
    ('qwen2 windows', {'layer_types': ['full_attention'] * 3}),
    ('phi3 window', {'sliding_window': None}),
    ('phi3 long', {'original_max_position_embeddings': MAX_SEQ_LEN}),
    ('gemma2', {'sliding_window': MAX_SEQ_LEN}),
    ('gemma2', {'query_pre_attn_scalar': 256}),
    ('gemma2 loud', {'attn_logit_softcapping': None}),
    ('gemma2 loud', {'final_logit_softcapping': None}),
    ('gemma3', {'rope_parameters.sliding_attention.rope_theta': 1e6}),
    ('gemma3', {'rope_parameters.full_attention.factor': 1.0}),
    ('mpt', {'attn_config.alibi_bias_max': 16}),
    ('mpt clip', {'attn_config.clip_qkv': None}),
    ('mpt clip', {'attn_config.softmax_scale': None}),
])
def test_a_key_that_sets_a_family_apart_changes_what_these_models_say(name, changes, tmp_path):
    before, after = (_logits_with(write_family(tmp_path, name), change)
                     for change in ({}, changes))
    assert (after - before).abs().max() > 0.02


def test_a_dynamic_table_is_that_of_a_text_that_fills_the_context(tmp_path):
    path = write_family(tmp_path, 'llama dynamic')
    ids = token_ids(96, 2 * MAX_SEQ_LEN)
    ours = run_model(load_family(path, max_seq_len=len(ids)), ids)
    _assert_equal(ours, logits_of(transformers_model(path), ids))


@pytest.mark.parametrize('name', ['mpt', 'falcon 7b', 'falcon mha'])
def test_scales_that_a_quantizer_left_behind_the_activation_divide_it(name, tmp_path):
    path = write_family(tmp_path, name)
    before = run_model(load_family(path), token_ids(96))
    tensors = load_file(path / 'model.safetensors')
    names = load_family(path).config.names
    for i in range(2):
        block = f'{names.blocks}.{i}'
        down = tensors[f'{block}.{names.down_proj}.weight']
        scales = torch.rand(down.shape[1]) + 0.5
        down *= scales
        tensors[f'{block}.{names.mlp_scales}'] = scales
    save_file(tensors, path / 'model.safetensors', metadata={'format': 'pt'})
    _assert_equal(run_model(load_family(path), token_ids(96)), before)


def test_alibi_obeys_the_maximum_of_its_slopes(tmp_path, monkeypatch):
    """Transformers leaves it at 8, and MPT's own code does not."""
    build = MptModel.build_mpt_alibi_tensor
    monkeypatch.setattr(MptModel, 'build_mpt_alibi_tensor',
                        lambda *args, device: build(*args, alibi_bias_max=16, device=device))
    path = write_family(tmp_path, 'mpt clip')
    ours = _logits_with(path, {'attn_config.alibi_bias_max': 16})
    _assert_equal(ours, logits_of(transformers_model(path), token_ids(96)))
