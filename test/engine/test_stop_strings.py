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
"""Stop strings in a text that comes in pieces: where it is cut must not depend on the pieces."""

import random

import pytest

from tinychat_ros.engine.stop_strings import StopStrings


def _feed(stops, pieces):
    """Return (text that was let through, whether it stopped) and check that nothing is early."""
    matcher, out = StopStrings(stops), ''
    for piece in pieces:
        certain, stopped = matcher.push(piece)
        out += certain
        if stopped:
            return out, True
    return out + matcher.flush(), False


def _expected(stops, text):
    """Cut where the first stop string is complete; of those that end there, the longest counts."""
    for end in range(len(text) + 1):
        begins = [end - len(s) for s in stops if text[:end].endswith(s)]
        if begins:
            return text[:min(begins)], True
    return text, False


CASES = [
    (['STOP'], 'go on STOP and more'), (['STOP'], 'go on STO'), (['STOP'], 'STOP'),
    (['STOP'], 'SSTOP'), (['STOP'], 'STSTOP x'), (['aab'], 'aaab'), (['abab'], 'abaabab!'),
    (['\n\n'], 'one\ntwo\n\nthree'), (['\n\n', '\n'], 'a\n\nb'), (['abcd', 'bc'], 'xabcdx'),
    (['abc', 'bc'], 'xabcx'), (['bc', 'abcd'], 'abx abce'), (['User:', 'Robot:'], 'Hi User: x'),
    (['é', '🦙'], 'a🦙é'), (['end'], 'the end'), (['ab', 'b'], 'aab'), ([], 'any text'),
    (['x'], ''), (['aa'], 'aaa'), (['a' * 9], 'a' * 8), (['</s>'], '< /s></</s>'),
]


@pytest.mark.parametrize('stops, text', CASES)
def test_every_way_to_split_a_text_gives_the_same(stops, text):
    expected = _expected(stops, text)
    rng = random.Random(text)
    assert _feed(stops, [text]) == expected
    assert _feed(stops, text) == expected
    for _ in range(40):
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(1, 6)))
        pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)])]
        assert _feed(stops, pieces) == expected


@pytest.mark.parametrize('seed', range(30))
def test_random_texts_and_stops_are_cut_the_same_however_they_are_split(seed):
    rng = random.Random(seed)
    for _ in range(30):
        stops = [''.join(rng.choices('ab', k=rng.randrange(1, 5)))
                 for _ in range(rng.randrange(1, 4))]
        text = ''.join(rng.choices('abc', weights=[5, 5, 1], k=rng.randrange(20)))
        pieces = [text[i:i + 3] for i in range(0, len(text), 3)]
        assert _feed(stops, pieces) == _feed(stops, text) == _expected(stops, text)


def test_only_what_may_begin_a_stop_string_is_held_back():
    matcher = StopStrings(['STOP', 'TOO'])
    assert matcher.push('go S') == ('go ', False)
    assert matcher.push('T') == ('', False)
    assert matcher.push('X') == ('STX', False)
    assert matcher.push('STO') == ('', False)
    assert matcher.push('O') == ('S', True)


def test_what_is_held_back_is_flushed_once():
    matcher = StopStrings(['STOP'])
    assert matcher.push('the STO') == ('the ', False)
    assert matcher.flush() == 'STO'
    assert matcher.flush() == ''
