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
"""Calibration text: the files it is read from, and the samples that come of it."""

import json

import pytest
from tiny_models import data_path
import torch

from tinychat_ros.engine.tokenizer import Tokenizer
from tinychat_ros.errors import ConfigError
from tinychat_ros.quantization.calibration import read_texts, token_samples

TEXTS = ['abc', 'defgh', 'i', 'jklmno', 'pq']


def _encode(text):
    """Return a BOS and one id per character."""
    return [1, *map(ord, text)]


def _strings(samples):
    return [''.join(map(chr, sample)) for sample in samples]


def _samples(texts=TEXTS, num_samples=100, sample_length=4, seed=0, separate=False):
    return token_samples(texts, _encode, num_samples, sample_length, seed, separate)


def test_the_built_in_text_is_large_and_repeats_nothing():
    texts = read_texts(None)
    assert len(texts) >= 100
    assert 100_000 < sum(len(text.encode()) for text in texts) < 140_000
    assert len(set(texts)) == len(texts)
    assert {text.strip() for text in texts} == set(texts)


@pytest.mark.parametrize('letter', list('ßçñąşжст中のま한ابनक∎\t'))
def test_the_built_in_text_is_written_in_many_scripts(letter):
    assert any(letter in text for text in read_texts(None))


@pytest.mark.parametrize('name', ['gpt2', 'llama2', 'qwen2.5'])
def test_the_built_in_text_fills_sixty_samples_of_512_tokens(name):
    tokenizer = Tokenizer.load(data_path(f'tokenizers/{name}'))
    samples = token_samples(read_texts(None), tokenizer.encode, 60, 512, 0, separate=False)
    assert [len(sample) for sample in samples] == [512] * 60


@pytest.mark.parametrize('name', ['texts.jsonl', 'texts.json'])
def test_a_json_lines_file_holds_one_text_per_line(tmp_path, name):
    path = tmp_path / name
    lines = [{'text': 'one\n\ntwo', 'id': 1}, {'text': ' '}, {'text': 'a \u2028 b'}]
    path.write_bytes('\r\n\n'.join(
        json.dumps(line, ensure_ascii=False) for line in lines).encode())
    assert read_texts(path) == ['one\n\ntwo', 'a \u2028 b']


def test_half_of_a_surrogate_pair_becomes_a_character_that_tokenizers_take(tmp_path):
    path = tmp_path / 'texts.jsonl'
    path.write_text(r'{"text": "a\ud800b \ud83d\ude00"}')
    assert read_texts(path) == ['a?b 😀']


@pytest.mark.parametrize('line, found', [
    ('{"text": "x"', "got: Expecting ',' delimiter"),
    ('plain', 'got: Expecting value'),
    ('[' * 100_000, 'got: '),
    ('["text"]', r'got \["text"\]$'),
    ('{"content": "x"}', 'got {"content": "x"}$'),
    ('{"text": ["x"]}', r'got {"text": \["x"\]}$'),
])
def test_a_line_without_a_text_is_named(tmp_path, line, found):
    path = tmp_path / 'texts.jsonl'
    path.write_text('{"text": "x"}\n\n' + line)
    with pytest.raises(ConfigError,
                       match=f'texts.jsonl, line 3: expected a JSON object.*, {found}'):
        read_texts(path)


def test_a_plain_file_is_one_text_as_it_stands(tmp_path):
    path = tmp_path / 'book.txt'
    path.write_text(' Über\n\n<|endoftext|>\n', encoding='utf-8')
    assert read_texts(path) == [' Über\n\n<|endoftext|>\n']


@pytest.mark.parametrize('content', [
    'one\n<|endoftext|>\ntwo\n<|endoftext|>\n', 'one<|endoftext|><|endoftext|> two'])
def test_a_separator_cuts_a_plain_file_into_texts(tmp_path, content):
    path = tmp_path / 'stories.txt'
    path.write_text(content)
    assert read_texts(path, '<|endoftext|>') == ['one', 'two']


@pytest.mark.parametrize('name, content', [
    ('a.txt', ''), ('a.txt', ' \n\n'), ('a.txt', '--\n--'), ('a.jsonl', ''),
    ('a.jsonl', '{"text": ""}\n')])
def test_a_file_without_text_is_refused(tmp_path, name, content):
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError, match=f'{name}: expected text, and there is none in it'):
        read_texts(path, '--')


def test_a_file_that_is_not_utf_8_is_refused_with_the_byte(tmp_path):
    path = tmp_path / 'latin.txt'
    path.write_bytes('Grüße'.encode('latin-1'))
    with pytest.raises(ConfigError, match='latin.txt: expected UTF-8, got byte 0xfc at offset 2'):
        read_texts(path)


def test_a_file_that_is_missing_or_a_folder_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='none.txt: expected a file, and there is none'):
        read_texts(tmp_path / 'none.txt')
    with pytest.raises(ConfigError, match='expected a file that can be read, got: .*directory'):
        read_texts(tmp_path)


def test_blocks_are_cut_from_the_joined_texts_and_the_remainder_is_dropped():
    samples = _samples()
    assert {(sample.dtype, sample.shape) for sample in samples} == {(torch.int64, (4,))}
    # 17 characters and 5 BOS make 5 blocks of 4 and 2 more tokens.
    assert len(samples) == 5
    texts = ''.join(_strings(samples)).split(chr(1))[1:]
    assert texts[:-1] == [text for text in texts if text in TEXTS][:len(texts) - 1]
    assert any(text.startswith(texts[-1]) for text in TEXTS)


def test_separate_samples_are_the_texts_cut_to_the_length():
    samples = _samples(separate=True)
    assert all(sample.dtype == torch.int64 for sample in samples)
    assert sorted(_strings(samples)) == ['\x01abc', '\x01def', '\x01i', '\x01jkl', '\x01pq']


@pytest.mark.parametrize('separate', [False, True])
def test_fewer_samples_are_the_first_of_the_same_order(separate):
    every = _strings(_samples(separate=separate))
    assert _strings(_samples(num_samples=2, separate=separate)) == every[:2]


@pytest.mark.parametrize('separate', [False, True])
def test_texts_after_the_last_sample_are_not_tokenized(separate):
    seen = []

    def encode(text):
        seen.append(text)
        return _encode(text)

    token_samples(['abc'] * 10, encode, 2, 4, 0, separate)
    assert len(seen) <= 3


@pytest.mark.parametrize('seed, order', [(0, [3, 4, 0, 1, 2]), (1, [1, 0, 4, 3, 2])])
def test_a_seed_gives_one_order_on_every_machine(seed, order):
    texts = list('abcde')
    samples = _strings(_samples(texts, seed=seed, separate=True))
    assert samples == [f'\x01{texts[index]}' for index in order]


def test_texts_that_do_not_fill_a_block_are_refused_with_their_tokens():
    with pytest.raises(ConfigError, match='at least the 23 tokens of one sample, got 22'):
        _samples(sample_length=23)
    assert len(_samples(sample_length=22)) == 1
