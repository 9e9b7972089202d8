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
"""Perplexity: against all logits at once, of trained models, and the texts that it is taken of."""

import math

import pytest
from tiny_models import (
    data_path, llama_config, llama_tensors, load_folder, quantize_folder, run_model, write_model)
import torch

from tinychat_ros.engine.tokenizer import Tokenizer
from tinychat_ros.errors import ConfigError
from tinychat_ros.quantization import evaluate
from tinychat_ros.quantization.calibration import read_texts
from tinychat_ros.quantization.evaluate import perplexity, token_lists

_CPU = torch.device('cpu')
_TEXTS = [[i * 7 % 96 for i in range(40)], [], [5], [i * i % 96 for i in range(64)], [3, 4]]


@pytest.fixture
def model(tmp_path):
    config = llama_config()
    return load_folder(write_model(tmp_path, config, llama_tensors(config)))


def _encode(text):
    """Return a BOS and one id per character."""
    return [1, *map(ord, text)]


def _stories(path, count):
    """Return the ids of the last stories, cut to the context."""
    texts = read_texts(data_path('text/tinystories-cal.txt'), '<|endoftext|>')[-count:]
    context = load_folder(path).config.max_position_embeddings
    return token_lists(texts, Tokenizer.load(path).encode, context, separate=True)


def test_it_is_the_exponential_of_the_mean_over_every_token_but_the_first_of_each_text(model):
    losses = [-torch.log_softmax(run_model(model, ids).double(), -1)[position, ids[position + 1]]
              for ids in _TEXTS for position in range(len(ids) - 1)]
    found = perplexity(model, _TEXTS, _CPU)
    assert found.tokens == len(losses) == 39 + 63 + 1
    assert found.perplexity == pytest.approx(math.exp(sum(losses) / len(losses)), rel=1e-5)


def test_a_token_that_the_model_does_not_embed_is_refused(model):
    with pytest.raises(ConfigError, match='text: expected tokens below 96, .* got 96'):
        perplexity(model, [[1, 2], [], [3, 96]], _CPU)


@pytest.mark.parametrize('piece', [1, 7, 39, 63])
def test_the_size_of_the_pieces_changes_nothing(model, monkeypatch, piece):
    whole = perplexity(model, _TEXTS, _CPU)
    monkeypatch.setattr(evaluate, '_PIECE', piece)
    found = perplexity(model, _TEXTS, _CPU)
    assert found.tokens == whole.tokens
    assert found.perplexity == pytest.approx(whole.perplexity, rel=1e-5)


def test_texts_know_nothing_of_each_other(model):
    assert perplexity(model, _TEXTS, _CPU).perplexity == pytest.approx(
        perplexity(model, _TEXTS[::-1], _CPU).perplexity, rel=1e-6)


@pytest.mark.parametrize('texts, found', [
    ([], '0 texts of at most 0'), ([[], [5], [6]], '3 texts of at most 1')])
def test_texts_without_a_second_token_are_refused(model, texts, found):
    with pytest.raises(ConfigError, match=f'text: expected one of 2 tokens or more, got {found}'):
        perplexity(model, texts, _CPU)


def test_separate_texts_are_cut_and_others_fall_into_windows():
    texts = ['abcdefg', 'h']
    assert token_lists(texts, _encode, 3, separate=True) == [[1, 97, 98], [1, 104]]
    assert token_lists(texts, _encode, 3, separate=False) == [
        [1, 97, 98], [99, 100, 101], [102, 103], [1, 104]]


@pytest.mark.parametrize('name, expected', [
    ('stories260K-pad192', 4.4764), ('babyllama105-pad384', 2.2302)])
def test_the_perplexity_of_trained_models_is_the_known_one(name, expected):
    path = data_path(f'models/{name}')
    found = perplexity(load_folder(path), _stories(path, 30), _CPU)
    assert found.perplexity == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize('name, group', [('stories260K-pad192', 64), ('babyllama105-pad384', 128)])
def test_int8_activations_change_little_in_a_model_of_4_bits(name, group, tmp_path):
    path = quantize_folder(data_path(f'models/{name}'), tmp_path, group)
    ids = _stories(path, 10)
    exact, rounded = (perplexity(load_folder(path, int8_activations=int8), ids, _CPU).perplexity
                      for int8 in (False, True))
    assert rounded != exact
    assert rounded == pytest.approx(exact, rel=0.01)
