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
"""Sentences leave the splitter as soon as their end is certain, and join to the text."""

import random

import pytest

from tinychat_ros.engine.sentences import SentenceSplitter

# Text and its sentences, divided by bars; white space belongs to the sentence before it.
CASES = [
    'Hello there. |I am Tiny! |How can I help? |Bye',
    'It is 3.5 meters long. |Version 2.0.1 is out.',
    'Dr. Smith met Mrs. Jones at St. Mary. |Then he left.',
    'J. R. R. Tolkien wrote it. |I read it.',
    'Bring tools, e.g. a hammer, i.e. the big one. |Thanks.',
    'Take room No. 5 now. |Go.',
    'No. |I cannot do that.',
    'Meet me at 9 a.m. tomorrow. |Or at 5 p.m. |Both work.',
    'He said "Stop." |Then he went (away.) |And “gone!” |So.',
    'Wait... |What?! |Yes',
    'First line\n|second line\n\n|third',
    '\n\n Hello. |You.',
    '你好。|我是机器人！|你要什么？|再见',
    '他说：「停。」|然后走了。',
    'これはペンです。|はい。 |そうです',
    'Mixed 你好。|Then English. |再见。',
    'no end at all',
    'example.com is a host. |See tinychat.ros for more.',
    '🤖 beeps! |🤖🤖 sleeps…  |Zzz',
]


def split(pieces):
    """Return the sentences of a text that comes in pieces."""
    splitter = SentenceSplitter()
    sentences = [sentence for piece in pieces for sentence in splitter.push(piece)]
    return [*sentences, splitter.flush()]


@pytest.mark.parametrize('case', CASES)
def test_a_text_is_cut_behind_its_sentences(case):
    assert [s.text for s in split([case.replace('|', '')])] == case.split('|')


@pytest.mark.parametrize('case', CASES)
def test_the_sentences_do_not_depend_on_the_pieces_in_which_a_text_comes(case):
    text, source = case.replace('|', ''), random.Random(case)
    for _ in range(50):
        cuts = sorted(source.randrange(len(text) + 1) for _ in range(source.randrange(10)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
        assert [s.text for s in split(pieces)] == case.split('|')
    assert [s.text for s in split(text)] == case.split('|')


def test_any_text_joins_again_and_every_sentence_knows_its_place():
    source = random.Random(0)
    alphabet = 'ab .!?\n"\')。！」…é你🤖Dr.No 35'
    for _ in range(300):
        text = ''.join(source.choice(alphabet) for _ in range(source.randrange(60)))
        sentences = split(text)
        assert ''.join(s.text for s in sentences) == text
        assert [s.index for s in sentences] == list(range(len(sentences)))
        assert [text[s.char_begin:s.char_end] for s in sentences] == [s.text for s in sentences]
        assert [s.final for s in sentences] == [False] * (len(sentences) - 1) + [True]
        assert all(s.text.strip() for s in sentences[:-1])


def test_a_sentence_comes_with_the_first_character_after_it():
    splitter = SentenceSplitter()
    assert splitter.push('Hello.') == []
    assert splitter.push(' ') == []
    assert [s.text for s in splitter.push('I')] == ['Hello. ']


def test_of_no_text_there_is_one_last_empty_sentence():
    last = SentenceSplitter().flush()
    assert (last.text, last.index, last.char_begin, last.char_end, last.final) == (
        '', 0, 0, 0, True)
