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
"""Tokenizers against golden cases, and text that streams out of them whole."""

from functools import lru_cache
import json
import random
import shutil

import pytest
import sentencepiece
from tiny_models import data_path, SPECIAL_TOKENS, write_tokenizer
from transformers import AutoTokenizer

from tinychat_ros.engine.tokenizer import StreamDecoder, Tokenizer
from tinychat_ros.errors import TokenizerError

# The folder of a tokenizer, its golden file, and the files to take, None for all.
GOLDEN = {
    'falcon': ('falcon', 'falcon', None),
    'gpt2': ('gpt2', 'gpt-2', None),
    'llama2': ('llama2', 'llama-spm', ('tokenizer.json', 'tokenizer_config.json')),
    'llama2 SentencePiece': ('llama2', 'llama-spm', ('tokenizer.model', 'tokenizer_config.json')),
    'qwen2.5': ('qwen2.5', 'qwen2', None),
}
_SEPARATOR = '\n__ggml_vocab_test__\n'


@pytest.fixture(scope='module')
def load(tmp_path_factory):
    """Return a function from a name in GOLDEN to its tokenizer, loaded once."""
    @lru_cache(maxsize=None)
    def load_named(name):
        folder, _, files = GOLDEN[name]
        path = data_path(f'tokenizers/{folder}')
        if files:
            source, path = path, tmp_path_factory.mktemp('tokenizer')
            for file in files:
                shutil.copy(source / file, path)
        return Tokenizer.load(path)
    return load_named


def _golden(name):
    """Return (text, ids) of every case; the file ends with a separator, not with a case."""
    stem = f'golden/ggml-vocab-{GOLDEN[name][1]}.gguf'
    texts = data_path(f'{stem}.inp').read_bytes().decode().split(_SEPARATOR)[:-1]
    lines = data_path(f'{stem}.out').read_text().splitlines()
    assert len(texts) == len(lines) == 46
    return [(text, [int(i) for i in line.split()]) for text, line in zip(texts, lines)]


def _stream(tokenizer, ids):
    decoder = StreamDecoder(tokenizer)
    return [*map(decoder.push, ids), decoder.flush()]


every_tokenizer = pytest.mark.parametrize('name', GOLDEN)


@every_tokenizer
def test_golden_texts_become_their_ids(name, load):
    for text, ids in _golden(name):
        assert load(name).encode(text, special=False) == ids


@every_tokenizer
def test_golden_ids_become_their_texts_whole_and_streamed(name, load):
    tokenizer = load(name)
    for text, ids in _golden(name):
        assert tokenizer.decode(ids) == text
        pieces = _stream(tokenizer, ids)
        assert ''.join(pieces) == text
        assert not any('\ufffd' in piece for piece in pieces)


@every_tokenizer
def test_a_long_text_of_all_cases_streams_back(name, load):
    tokenizer = load(name)
    text = ' '.join(text for text, _ in _golden(name) * 3)
    ids = tokenizer.encode(text, special=False)
    decoder = StreamDecoder(tokenizer)
    streamed = ''
    for token_id in ids:
        streamed += decoder.push(token_id)
        assert len(decoder._window) < 140
    assert streamed + decoder.flush() == tokenizer.decode(ids) == text


@every_tokenizer
def test_most_text_is_certain_at_once(name, load):
    ids = load(name).encode('The robot is on its way to the kitchen.', special=False)
    *pieces, rest = _stream(load(name), ids)
    assert all(pieces) and not rest


@every_tokenizer
@pytest.mark.parametrize('text', [
    '🦙', '👩‍🚀 and 🇰🇪🏳️‍🌈', 'x🦙🦙🦙y', '일이삼', '\u0950\u200dक़', 'é' * 40])
def test_characters_of_many_bytes_come_whole(text, name, load):
    pieces = _stream(load(name), load(name).encode(text, special=False))
    assert ''.join(pieces) == text
    assert '\ufffd' not in ''.join(pieces)


@every_tokenizer
def test_a_character_cut_short_at_the_end_is_told_of_and_not_split(name, load):
    ids = load(name).encode('ab 🫠', special=False)
    pieces = _stream(load(name), ids[:-1])
    assert ''.join(pieces[:-1]).rstrip() == 'ab'
    assert set(pieces[-1].strip()) == {'\ufffd'}


def _byte_ids(tokenizer, data):
    """Return the ids of single bytes, as byte fallback or as a byte-level vocabulary has them."""
    if tokenizer.token_id('<0x00>') is not None:
        return [tokenizer.token_id(f'<0x{byte:02X}>') for byte in data]
    # GPT-2 writes printable bytes as themselves and the others, in order, as U+0100 and on.
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = [byte for byte in range(256) if byte not in printable]
    return [tokenizer.token_id(chr(b if b in printable else 256 + others.index(b))) for b in data]


@every_tokenizer
@pytest.mark.parametrize('data', [b'\x80', b'\xe2\x82', b'\xf0\x9f\x98', b'\x80' * 6,
                                  b'\xf0\xe2\x82', b'\xed\xa0\x80', b'\xf0\x80\x80\x80'])
def test_bytes_that_are_no_character_are_neither_lost_nor_block_what_follows(data, name, load):
    tokenizer = load(name)
    decoder = StreamDecoder(tokenizer)
    ids = [*tokenizer.encode('before', special=False), *_byte_ids(tokenizer, data)]
    streamed = ''.join(map(decoder.push, ids))
    after = tokenizer.encode('x after', special=False)
    streamed += ''.join(map(decoder.push, after)) + decoder.flush()
    assert streamed.startswith('before') and streamed.endswith('x after')
    broken = streamed[len('before'):-len('x after')].strip()
    assert broken and set(broken) == {'\ufffd'}


@every_tokenizer
def test_endless_broken_bytes_fill_no_memory_and_come_out(name, load):
    tokenizer = load(name)
    decoder = StreamDecoder(tokenizer)
    broken, = _byte_ids(tokenizer, b'\x80')
    streamed = ''
    for _ in range(500):
        streamed += decoder.push(broken)
        assert len(decoder._window) < 140
    assert set(streamed) == {'\ufffd'} and len(streamed) > 490


@every_tokenizer
def test_tokens_without_text_fill_no_memory(name, load):
    tokenizer = load(name)
    decoder = StreamDecoder(tokenizer)
    decoder.push(tokenizer.encode('a', special=False)[-1])
    assert ''.join(decoder.push(tokenizer.vocab_size + 5) for _ in range(300)) == ''
    assert len(decoder._window) < 5


@pytest.mark.parametrize('name', ['llama2', 'llama2 SentencePiece'])
@pytest.mark.parametrize('silent', [1, 2, 32005])
def test_a_token_without_text_takes_no_space_from_the_next(silent, name, load):
    tokenizer = load(name)
    hello, world = tokenizer.encode('hello world', special=False)
    pieces = _stream(tokenizer, [hello, silent, silent, world])
    assert pieces == ['hello', '', '', ' world', '']


@every_tokenizer
def test_random_tokens_stream_as_they_decode(name, load):
    """Random ids are mostly broken UTF-8: what is certain must still be the text's own order."""
    tokenizer, rng = load(name), random.Random(5)
    for _ in range(30):
        ids = [rng.randrange(tokenizer.vocab_size) for _ in range(20)]
        whole = tokenizer.decode(ids).replace('\ufffd', '')
        assert ''.join(_stream(tokenizer, ids)).replace('\ufffd', '') == whole


@pytest.mark.parametrize('name', ['llama2', 'llama2 SentencePiece'])
def test_a_text_that_goes_on_keeps_the_space_between(name, load):
    tokenizer = load(name)
    ids = tokenizer.encode('Once upon a time')
    decoder = StreamDecoder(tokenizer, ids[:-1])
    assert decoder.push(ids[-1]) == ' time'
    assert StreamDecoder(tokenizer).push(ids[-1]) == 'time'


@pytest.mark.parametrize('name', ['llama2', 'llama2 SentencePiece'])
def test_bos_is_put_in_front_once(name, load):
    tokenizer = load(name)
    assert tokenizer.encode('') == [1]
    assert tokenizer.encode('Hi') == [1, *tokenizer.encode('Hi', special=False)]
    assert tokenizer.encode('Hi', special=False)[0] != 1


@pytest.mark.parametrize('name', ['falcon', 'gpt2', 'qwen2.5'])
def test_no_bos_is_put_where_the_tokenizer_has_none(name, load):
    assert load(name).encode('Hi') == load(name).encode('Hi', special=False)
    assert load(name).encode('') == []


def test_special_tokens_in_a_text_are_single_tokens_in_both_files_of_llama2(load):
    text = '<s>[INST] Hi [/INST] Hello! </s><s>[INST] Go on [/INST]'
    one, other = load('llama2'), load('llama2 SentencePiece')
    ids = one.encode(text, special=False)
    assert ids == other.encode(text, special=False)
    assert ids[:9] == [1, 518, 25580, 29962, 6324, 518, 29914, 25580, 29962]
    assert [i for i in ids if i < 3] == [1, 2, 1]
    assert one.decode(ids) == other.decode(ids)
    assert one.decode(ids).split() == '[INST] Hi [/INST] Hello! [INST] Go on [/INST]'.split()


def test_chat_marks_of_qwen_are_single_tokens(load):
    tokenizer = load('qwen2.5')
    assert tokenizer.encode('<|im_start|>', special=False) == [151644]
    assert tokenizer.token_id('<|im_end|>') == 151645
    assert tokenizer.decode([151644, 9707, 151645]) == 'Hello'
    assert tokenizer.special_tokens['eos_token'] == '<|im_end|>'


@pytest.mark.parametrize('name', ['falcon', 'gpt2', 'qwen2.5'])
def test_ids_agree_with_transformers(name, load):
    expected = AutoTokenizer.from_pretrained(data_path(f'tokenizers/{GOLDEN[name][0]}'))
    for text in ('Hello world', ' two  spaces ', 'naïve\n\tcafé 3.14', '我想在apple工作'):
        assert load(name).encode(text) == expected(text).input_ids


def test_a_sentencepiece_model_without_control_tokens_is_read(tmp_path):
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(['the robot goes to the kitchen', 'the robot stops'] * 20),
        model_prefix=str(tmp_path / 'tokenizer'), vocab_size=40, bos_id=-1, eos_id=-1,
        hard_vocab_limit=False, minloglevel=2)
    tokenizer = Tokenizer.load(tmp_path)
    ids = tokenizer.encode('the robot stops')
    assert ids == tokenizer.encode('the robot stops', special=False)
    assert len(ids) < 12 and tokenizer.decode(ids) == 'the robot stops'


def test_ids_beyond_the_vocabulary_have_no_text(load):
    """A model may embed more tokens than its tokenizer has."""
    for name in GOLDEN:
        ids = load(name).encode('Hi', special=False)
        assert load(name).decode([*ids, load(name).vocab_size + 9]) == 'Hi'


def test_added_tokens_of_a_sentencepiece_folder_are_single_tokens(tmp_path):
    shutil.copy(data_path('tokenizers/llama2/tokenizer.model'), tmp_path)
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(
        {'added_tokens_decoder': {'32000': {'content': '<|im_end|>', 'special': True}}}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.vocab_size == 32001
    assert tokenizer.encode('<|im_end|>', special=False) == [32000]
    assert tokenizer.decode([32000]) == ''


def test_a_folder_without_a_tokenizer_is_refused_with_the_names_looked_for(tmp_path):
    with pytest.raises(TokenizerError, match='expected tokenizer.json, tokenizer.model, or vocab'):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize('keep', [0, 1, 100, 0.5, -1])
def test_a_cut_tokenizer_json_is_refused(keep, tmp_path):
    write_tokenizer(tmp_path)
    data = (tmp_path / 'tokenizer.json').read_bytes()
    (tmp_path / 'tokenizer.json').write_bytes(
        data[:int(keep * len(data)) if isinstance(keep, float) else keep])
    with pytest.raises(TokenizerError, match='expected a readable tokenizer'):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize('data', [b'', b'\x00' * 50, b'no protobuf at all'])
def test_a_file_that_is_no_sentencepiece_model_is_refused(data, tmp_path):
    (tmp_path / 'tokenizer.model').write_bytes(data)
    with pytest.raises(TokenizerError, match='expected a readable tokenizer'):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize('data', [b'{', b'[]', b'{"a": "\xff"}', b'', b'[' * 99999])
def test_a_tokenizer_config_that_is_no_object_is_refused(data, tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / 'tokenizer_config.json').write_bytes(data)
    with pytest.raises(TokenizerError, match='tokenizer_config.json: expected'):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize('config', [
    {'bos_token': 7, 'add_bos_token': True}, {'bos_token': ['<s>'], 'add_bos_token': True}])
def test_a_special_token_that_is_no_text_is_refused(config, tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(config))
    with pytest.raises(TokenizerError):
        Tokenizer.load(tmp_path)


def test_special_tokens_are_read_as_text_or_as_objects(tmp_path):
    write_tokenizer(tmp_path)
    (tmp_path / 'tokenizer_config.json').write_text(json.dumps(
        {'bos_token': {'content': '<s>', 'lstrip': False}, 'eos_token': '</s>',
         'add_bos_token': True, 'pad_token': None}))
    tokenizer = Tokenizer.load(tmp_path)
    assert tokenizer.special_tokens == {'bos_token': '<s>', 'eos_token': '</s>'}
    assert tokenizer.encode('a') == [256, *tokenizer.encode('a', special=False)]
    assert tokenizer.vocab_size == 256 + len(SPECIAL_TOKENS)
