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
"""An answer cut into chunks: nothing is lost, nothing comes early, whatever the tokens are."""

import random
import time

import pytest
from tiny_models import data_path, write_tokenizer

from tinychat_ros.engine.answer import Answer
from tinychat_ros.engine.request import FinishReason, Request
from tinychat_ros.engine.tokenizer import Tokenizer

_ALPHABET = 'ab é🦙\n\ufffd日'


@pytest.fixture(scope='module')
def bytes_tokenizer(tmp_path_factory):
    """Return a tokenizer of single bytes: every border of a byte is one of a token."""
    path = tmp_path_factory.mktemp('tokenizer')
    write_tokenizer(path)
    return Tokenizer.load(path)


def _answer(tokenizer, stop=(), limit=1000, stop_ids=(257,)):
    return Answer(Request('x', stop=stop), tokenizer, frozenset(stop_ids), limit, 5, 2)


def _run(answer, ids, rng):
    """Push tokens, take chunks at random moments, and return (chunks, reason)."""
    chunks, reason = [], FinishReason.NONE
    for token_id in ids:
        reason = answer.push(token_id)
        if reason != FinishReason.NONE:
            break
        if rng.random() < 0.6:
            chunks.append(answer.chunk())
    return [*chunks, answer.finish(reason)], reason


def _cut(text, stops):
    for end in range(len(text) + 1):
        begins = [end - len(s) for s in stops if text[:end].endswith(s)]
        if begins:
            return text[:min(begins)]
    return text


@pytest.mark.parametrize('seed', range(40))
def test_joined_chunks_are_the_text_up_to_the_first_stop_string(seed, bytes_tokenizer):
    rng = random.Random(seed)
    for _ in range(5):
        text = ''.join(rng.choices(_ALPHABET, k=rng.randrange(1, 40)))
        stops = tuple(''.join(rng.choices(_ALPHABET, k=rng.randrange(2, 4)))
                      for _ in range(rng.randrange(3)))
        ids = bytes_tokenizer.encode(text, special=False)
        chunks, reason = _run(_answer(bytes_tokenizer, stops), [*ids, 257], rng)
        result = chunks[-1].result
        assert ''.join(chunk.text for chunk in chunks) == result.text == _cut(text, stops)
        assert sum((chunk.token_ids for chunk in chunks), ()) == result.token_ids
        assert reason == result.finish_reason == FinishReason.STOP
        assert [chunk.final for chunk in chunks] == [False] * (len(chunks) - 1) + [True]


@pytest.mark.parametrize('name', ['llama2', 'falcon'])
def test_joined_chunks_are_the_text_with_real_tokenizers(name):
    tokenizer, rng = Tokenizer.load(data_path(f'tokenizers/{name}')), random.Random(1)
    text = 'Straße 🦙🦙, 日本 3.14\n\nUser: no  more'
    ids = tokenizer.encode(text, special=False)
    for stops in ((), ('User:',), ('🦙,',), ('\n\n', 'xyz'), ('本 3',)):
        chunks, _ = _run(_answer(tokenizer, stops), ids, rng)
        assert ''.join(chunk.text for chunk in chunks) == chunks[-1].result.text == _cut(
            text, stops)


def test_text_that_may_begin_a_stop_string_comes_with_the_last_chunk(bytes_tokenizer):
    answer = _answer(bytes_tokenizer, ('STOP',), limit=6)
    chunks, reason = _run(answer, bytes_tokenizer.encode('go STO', special=False),
                          random.Random(0))
    assert reason == FinishReason.LENGTH
    assert ''.join(chunk.text for chunk in chunks) == 'go STO'
    assert chunks[-1].text.endswith('STO')


def test_a_character_cut_by_the_limit_is_told_of(bytes_tokenizer):
    answer = _answer(bytes_tokenizer, limit=3)
    chunks, _ = _run(answer, bytes_tokenizer.encode('a🦙', special=False), random.Random(0))
    assert chunks[-1].result.text == 'a\ufffd'
    assert len(chunks[-1].result.token_ids) == 3


def test_a_stop_token_has_no_text_and_is_counted(bytes_tokenizer):
    answer = _answer(bytes_tokenizer, stop_ids=(bytes_tokenizer.encode('!')[0], 257))
    chunks, reason = _run(answer, bytes_tokenizer.encode('Hi!', special=False), random.Random(0))
    assert (reason, chunks[-1].result.text) == (FinishReason.STOP, 'Hi')
    assert chunks[-1].result.completion_tokens == 3


def test_a_stop_token_at_the_limit_is_a_stop(bytes_tokenizer):
    answer = _answer(bytes_tokenizer, limit=1)
    assert answer.push(257) == FinishReason.STOP


def test_the_rate_counts_from_the_first_token(bytes_tokenizer):
    answer = _answer(bytes_tokenizer)
    chunks, _ = _run(answer, [65, 66, 67, 257], random.Random(0))
    result = chunks[-1].result
    assert (result.prompt_tokens, result.cached_tokens) == (5, 2)
    assert result.tokens_per_second == pytest.approx(
        3 / (result.duration - result.time_to_first_token))
    nothing = _answer(bytes_tokenizer).finish(FinishReason.CANCELED).result
    assert nothing.tokens_per_second == 0.0 and nothing.time_to_first_token is None


@pytest.mark.parametrize('text, heard, left', [
    ('hello', 3, 'hel'), ('hello', 9, 'hello'), ('hello', 0, ''), ('é🦙x', 2, 'é🦙'),
    ('é🦙x', 1, 'é')])
def test_what_was_heard_ends_at_the_border_of_a_token(text, heard, left, bytes_tokenizer):
    answer = _answer(bytes_tokenizer)
    for token_id in bytes_tokenizer.encode(text, special=False):
        answer.push(token_id)
    answer.finish(FinishReason.CANCELED)
    found, tokens = answer.heard(heard)
    assert found == left
    ids = bytes_tokenizer.encode(text, special=False)[:tokens]
    assert bytes_tokenizer.decode(ids).startswith(left)
    assert answer.heard(None)[0] == text


@pytest.mark.parametrize('text, said', [
    ('One. Two. Three', 'One.'), ('It is 3.5 m. So', 'It is 3.5 m.'), ('Dr. No. Yes', 'Dr. No.'),
    ('你好。再见', '你好。'), ('"Go!" Now', '"Go!'), ('no end', 'no end')])
def test_shortly_before_its_deadline_an_answer_ends_with_a_sentence(text, said, bytes_tokenizer):
    request = Request('x', deadline=time.monotonic() + 0.4)
    answer = Answer(request, bytes_tokenizer, frozenset(), 1000, 5, 2)
    chunks, reason = _run(answer, bytes_tokenizer.encode(text, special=False), random.Random(0))
    assert ''.join(chunk.text for chunk in chunks) == said
    assert reason == (FinishReason.NONE if said == text else FinishReason.DEADLINE)


def test_long_before_its_deadline_an_answer_goes_on(bytes_tokenizer):
    request = Request('x', deadline=time.monotonic() + 60)
    answer = Answer(request, bytes_tokenizer, frozenset(), 1000, 5, 2)
    ids = bytes_tokenizer.encode('One. Two.', special=False)
    assert all(answer.push(token_id) == FinishReason.NONE for token_id in ids)
