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
"""Checkpoints as they lie on the hub load and talk, or are refused by name."""

import json

from hub_layouts import (
    END, GEMMA3, GEMMA_NORMS, GROUP, HEAD_NORMS, LAYOUTS, like_llama, TIED, VOCAB,
    write_layout)
import pytest
from tiny_llava import random_image
from tiny_models import llama_config, llama_tensors, write_chat_model, write_model, write_tokenizer
import tokenizers
import torch
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from tinychat_ros.checkpoint.loader import load_model
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import Message, Request
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.errors import CheckpointError, UnsupportedModelError
from tinychat_ros.models.kv_cache import KVCache


@pytest.fixture
def read(monkeypatch):
    """Return the names of the tensors that are read from now on."""
    names = set()
    stored = CheckpointReader.stored

    def recorded(self, name):
        names.add(name)
        return stored(self, name)

    monkeypatch.setattr(CheckpointReader, 'stored', recorded)
    return names


def _load(path):
    return Engine.load(path, device='cpu', max_seq_len=64, num_slots=1, weight_cache='off')


def _answer(engine, **fields):
    request = Request('Hi', max_new_tokens=3, sampling=SamplingParams(), **fields)
    return list(engine.generate(request))[-1].result.token_ids


@pytest.mark.parametrize('name', LAYOUTS)
def test_a_checkpoint_of_the_hub_is_read_whole_and_talks(name, tmp_path, read):
    layout = LAYOUTS[name]
    expected = write_layout(tmp_path, layout)
    engine = _load(tmp_path)
    assert read == expected
    assert len(_answer(engine)) == 3
    assert END in engine._stop_ids
    assert engine.info.format == {'': 'plain', 'packed': 'pack-quantized'}.get(
        layout.quantized, 'awq-gemm')
    if engine.info.sees:
        assert len(_answer(engine, image=random_image())) == 3


def test_of_a_gemma_3_that_sees_the_text_part_alone_counts(tmp_path):
    for name in ('text', 'seeing'):
        (tmp_path / name).mkdir()
    text = like_llama({**GEMMA3['text_config'], 'eos_token_id': [1, END]},
                      {**GEMMA_NORMS, **HEAD_NORMS}, TIED)
    write_layout(tmp_path / 'text', text)
    write_layout(tmp_path / 'seeing', LAYOUTS['gemma 3 4b'])
    alone, seeing = _load(tmp_path / 'text'), _load(tmp_path / 'seeing')
    assert _answer(seeing) == _answer(alone)
    assert (seeing.info.architecture, seeing.info.sees) == ('gemma3', False)
    assert seeing.info.weight_bytes == alone.info.weight_bytes
    assert seeing.info.parameters == alone.info.parameters


def _write_gemma_3_that_sees(path):
    config = Gemma3Config(
        text_config={**GEMMA3['text_config'], 'num_hidden_layers': 7, 'sliding_window': 6},
        vision_config={**GEMMA3['vision_config'], 'image_size': 28}, mm_tokens_per_image=4,
        image_token_index=261, boi_token_index=262, eoi_token_index=263)
    model = Gemma3ForConditionalGeneration(config).eval()
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape) * 0.2
    model.save_pretrained(path)
    return model


def test_the_text_part_of_a_gemma_3_that_sees_has_the_logits_of_transformers(tmp_path):
    reference = _write_gemma_3_that_sees(tmp_path)
    ids = torch.randint(256, (40,))
    with torch.no_grad():
        expected = reference(ids[None], token_type_ids=torch.zeros_like(ids[None])).logits[0]
    with CheckpointReader(tmp_path) as reader:
        model, _ = load_model(reader, torch.float32, torch.device('cpu'), 64)
    cache = KVCache(model.config, 1, 64, torch.float32, torch.device('cpu'))
    logits = model.forward(ids, cache, 0, 0, all_logits=True)
    assert expected.abs().max() > 1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-4)


def test_a_token_that_ends_turns_need_not_be_special(tmp_path):
    folder = write_chat_model(tmp_path, vocab_size=VOCAB)
    tokenizer = tokenizers.Tokenizer.from_file(str(folder / 'tokenizer.json'))
    tokenizer.add_tokens(['<|im_start|>', '<|im_end|>'])
    tokenizer.save(str(folder / 'tokenizer.json'))
    (folder / 'tokenizer_config.json').write_text(json.dumps({'chat_template': (
        '{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n'
        '{% endfor %}<|im_start|>assistant\n')}))
    engine = _load(folder)
    assert engine.tokenizer.token_id('<|im_end|>') in engine._stop_ids


@pytest.mark.parametrize('template', [{}, {'chat_template': '{{ messages[0].content }}'}])
def test_a_folder_in_the_cache_of_the_hub_is_called_as_its_repository(template, tmp_path):
    layout = LAYOUTS['falcon 7b']
    folder = tmp_path / 'models--tiiuae--falcon-7b-instruct' / 'snapshots' / 'f4cfaf6d8c3f'
    folder.mkdir(parents=True)
    write_layout(folder, layout)
    (folder / 'tokenizer_config.json').write_text(json.dumps(template))
    engine = _load(folder)
    assert engine.info.name == 'falcon-7b-instruct'
    assert engine._chat_prompt.stop == ('\nUser',)
    prompt = engine.tokenizer.decode(engine._chat_ids([Message('user', 'a')]))
    assert prompt == ('a' if template else 'User: a\n\nAssistant:')


def _write_gptq(path):
    config = llama_config(vocab_size=VOCAB)
    tensors = llama_tensors(config)
    n, k = tensors.pop('model.layers.0.self_attn.q_proj.weight').shape
    layer = {'qweight': torch.zeros(k // 8, n, dtype=torch.int32),
             'qzeros': torch.zeros(k // GROUP, n // 8, dtype=torch.int32),
             'scales': torch.ones(k // GROUP, n).half(),
             'g_idx': torch.arange(k, dtype=torch.int32) // GROUP}
    write_model(path, config, {**tensors, **{
        f'model.layers.0.self_attn.q_proj.{suffix}': each for suffix, each in layer.items()}})


def test_gptq_is_refused_by_its_tensors(tmp_path):
    _write_gptq(tmp_path)
    write_tokenizer(tmp_path)
    with pytest.raises(UnsupportedModelError, match='q_proj: expected .* got .*q_proj.g_idx'):
        _load(tmp_path)


@pytest.mark.parametrize('file, named', [
    ('pytorch_model-00001-of-00002.bin', 'only pytorch_model-00001-of-00002.bin, a pickle, .*'
     'transformers that loads and saves it writes safetensors'),
    ('consolidated.safetensors', 'got only consolidated.safetensors$'),
    ('llama-2-7b.Q4_0.gguf', 'got only llama-2-7b.Q4_0.gguf$')])
def test_weights_of_another_layout_are_refused_with_what_there_is(file, named, tmp_path):
    (tmp_path / 'config.json').write_text(json.dumps(llama_config()))
    (tmp_path / file).write_bytes(b'')
    with pytest.raises(CheckpointError, match=named):
        _load(tmp_path)
