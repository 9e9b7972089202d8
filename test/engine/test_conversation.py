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
"""Histories, and the slots that conversations share."""

from contextlib import suppress
import threading

import pytest
import torch

from tinychat_ros.engine import conversation as module
from tinychat_ros.engine.conversation import Conversation, ConversationStore
from tinychat_ros.engine.image import Image
from tinychat_ros.engine.request import Message, Request
from tinychat_ros.errors import EngineBusyError


def begun(store, name):
    """Answer in a conversation; return the slot that it had."""
    conversation = store.begin(name)
    try:
        return store.give_slot(conversation)
    finally:
        store.end(conversation)


def _talk(*turns):
    conversation = Conversation('a')
    for text, answer in turns:
        conversation.record(Request(text), answer, range(1, len(answer) + 1))
    return conversation


def _pairs(messages):
    return [(m.role, m.content) for m in messages]


def test_turns_are_counted_and_an_unanswered_one_leaves_no_trace():
    conversation = _talk(('one', '1'), ('two', ''), ('three', '3'))
    assert conversation.turns == 2
    assert _pairs(conversation.messages) == [('user', 'one'), ('assistant', '1'),
                                             ('user', 'three'), ('assistant', '3')]


@pytest.mark.parametrize('default, own, asked, expected', [
    ('', '', '', None), ('d', '', '', 'd'), ('d', 'o', '', 'o'), ('d', 'o', 'a', 'a')])
def test_the_nearest_system_prompt_wins(default, own, asked, expected):
    conversation = Conversation('a', system=own)
    messages = conversation.with_request(Request('hi', system=asked), default)
    assert _pairs(messages) == [*([('system', expected)] if expected else []), ('user', 'hi')]


def test_asking_changes_nothing_until_it_is_recorded():
    conversation = _talk(('one', '1'))
    conversation.with_request(Request('two', system='s', messages=(Message('user', 'x'),)), '')
    assert conversation.system == '' and conversation.turns == 1


@pytest.mark.parametrize('char_end, left', [(100, 'hello'), (5, 'hello'), (2, 'he')])
def test_the_last_answer_is_cut_to_its_first_characters(char_end, left):
    conversation = _talk(('one', 'hello'))
    assert conversation.cut_last_answer(char_end)
    assert conversation.messages[-1] == Message('assistant', left)


@pytest.mark.parametrize('heard, left', [
    (14, 'Good morning !'), (13, 'Good morning'), (12, 'Good morning'), (11, 'Good'), (4, 'Good')])
def test_an_answer_is_cut_at_the_border_of_a_token(heard, left):
    conversation = Conversation('a')
    conversation.record(Request('x'), 'Good morning !', [4, 4, 12, 14])
    assert conversation.cut_last_answer(heard)
    assert conversation.messages[-1].content == left


def test_an_answer_of_which_nothing_was_heard_takes_its_question_with_it():
    conversation = _talk(('one', '1'), ('two', '2'))
    assert conversation.cut_last_answer(0)
    assert _pairs(conversation.messages) == [('user', 'one'), ('assistant', '1')]
    assert conversation.cut_last_answer(0)
    assert not conversation.cut_last_answer(0)


@pytest.mark.parametrize('cached, wanted, length', [
    ([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2, 3], [1, 2], 2), ([1, 9], [1, 2], 1),
    ([9], [1], 0)])
def test_the_common_prefix_ends_at_the_first_difference(cached, wanted, length):
    assert Conversation('a', cached_ids=cached).common_prefix(wanted) == length


def test_a_slot_belongs_to_one_conversation_at_a_time():
    store = ConversationStore(2)
    slots = {name: begun(store, name) for name in 'ab'}
    assert sorted(slots.values()) == [0, 1]
    assert begun(store, 'a') == slots['a']
    evicted = store.get('b')
    begun(store, 'b')
    begun(store, 'a')
    evicted.cached_ids = [1, 2]
    assert begun(store, 'c') == slots['b']
    assert (evicted.slot, evicted.cached_ids) == (None, [])


def test_a_removed_conversation_gives_its_slot_back():
    store = ConversationStore(1)
    begun(store, 'a')
    assert store.remove('a') and not store.remove('a')
    assert store.get('a') is None and list(store) == []
    assert begun(store, 'b') == 0


@pytest.mark.parametrize('before', [True, False])
def test_one_removed_while_it_is_answered_keeps_its_slot_until_the_end(before):
    store = ConversationStore(1)
    removed = store.begin('a')
    if before:
        store.remove('a')
    assert store.give_slot(removed) == 0
    store.remove('a')
    assert store.get('a') is None
    with pytest.raises(EngineBusyError, match='free slot'):
        store.give_slot(store.begin('b'))
    store.end(removed)
    assert removed.slot is None
    assert begun(store, 'c') == 0


def test_a_conversation_has_one_answer_at_a_time_and_the_nameless_one_any():
    store = ConversationStore(3)
    first = store.begin('a')
    with pytest.raises(EngineBusyError, match="'a'"):
        store.begin('a')
    nameless = [store.begin('') for _ in range(2)]
    assert sorted(map(store.give_slot, (first, *nameless))) == [0, 1, 2]
    for conversation in (*nameless, first):
        store.end(conversation)
    assert store.begin('') is nameless[0] and nameless[1].slot is None


def test_the_oldest_conversation_is_forgotten_when_there_are_too_many(monkeypatch, caplog):
    monkeypatch.setattr(module, 'MAX_CONVERSATIONS', 3)
    store = ConversationStore(1)
    begun(store, 'a')
    for name in 'bcabde':
        store.end(store.begin(name))
    assert [c.conversation_id for c in store] == ['b', 'd', 'e']
    assert "forgetting 'c'" in caplog.text
    assert begun(store, 'e') == 0


def test_those_that_hold_images_are_forgotten_when_there_are_too_many_images(monkeypatch, caplog):
    monkeypatch.setattr(module, 'MAX_IMAGES', 3)
    store = ConversationStore(1)

    def show(name, *images):
        conversation = store.begin(name)
        for image in images:
            conversation.record(Request('hi', image=image), 'yes')
        store.end(conversation)
        return [c.conversation_id for c in store]

    image = Image(torch.zeros(1, 1, 3, dtype=torch.uint8))
    show('text', None)
    show('a', image, image)
    assert show('b', image, None) == ['text', 'a', 'b'] and not caplog.text
    assert show('c', image) == ['text', 'b', 'c']
    assert "3 images are kept at most: forgetting 'a'" in caplog.text
    assert show('d', *[image] * 4) == ['text', 'd']


def test_answers_in_many_threads_keep_the_histories():
    store = ConversationStore(2)
    kept = {name: store.begin(name) for name in 'abcd'}
    for conversation in kept.values():
        store.end(conversation)

    def touch():
        for _ in range(2000):
            for name in 'abcd':
                with suppress(EngineBusyError):
                    begun(store, name)

    threads = [threading.Thread(target=touch) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {c.conversation_id: c for c in store} == kept
    assert sorted(c.slot for c in store if c.slot is not None) == [0, 1]
