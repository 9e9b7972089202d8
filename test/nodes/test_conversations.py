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
"""Conversations have a memory of their own, which can be listed, cut and forgotten."""

import uuid

import pytest

from tinychat_msgs.msg import Interrupt, Prompt, Response
from tinychat_msgs.srv import CountTokens, GetModelInfo, ListConversations, ResetConversation

TURNS = {'cat': ('There was a cat.', ' The cat was big.', ' The cat ran.'),
         'dog': ('One day a dog', ' The dog saw', ' And then the dog')}


def talk(client, conversation_id, turns, max_new_tokens=40):
    """Send the turns one after the other; return the answers' texts."""
    return [client.ask(turn, conversation_id=conversation_id, max_new_tokens=max_new_tokens).text
            for turn in turns]


def listed(client):
    """Return what the node remembers, by conversation id."""
    response = client.call(ListConversations, 'list_conversations')
    assert response.success
    return {c.conversation_id: c for c in response.conversations}


@pytest.fixture(autouse=True)
def nothing_remembered(client):
    """Forget what the tests before left."""
    assert client.call(ResetConversation, 'reset_conversation').success


def test_two_conversations_that_alternate_do_not_mix(client):
    alone = {name: talk(client, f'{name} alone', turns) for name, turns in TURNS.items()}
    mixed = {'cat': [], 'dog': []}
    for cat, dog in zip(*TURNS.values()):
        mixed['cat'] += talk(client, 'cat', [cat])
        mixed['dog'] += talk(client, 'dog', [dog])
    assert mixed == alone


def test_two_conversations_that_wait_in_one_queue_do_not_mix(client):
    alone = {name: talk(client, f'{name} alone', turns) for name, turns in TURNS.items()}
    sent = {'cat': [], 'dog': []}
    for cat, dog in zip(*TURNS.values()):
        for name, text in (('cat', cat), ('dog', dog)):
            sent[name].append(client.send(text, conversation_id=name, max_new_tokens=40))
    client.wait(lambda: all(client.answer(i).whole for ids in sent.values() for i in ids))
    assert {name: [client.answer(i).text for i in ids] for name, ids in sent.items()} == alone


def test_more_conversations_than_slots_do_not_mix(start_node, connect, story_model):
    client = connect(start_node(model=story_model, max_seq_len=1024, num_slots=1))
    alone = {name: talk(client, f'{name} alone', turns) for name, turns in TURNS.items()}
    for cat, dog, alone_cat, alone_dog in zip(*TURNS.values(), *alone.values()):
        assert talk(client, 'cat', [cat]) == [alone_cat]
        assert talk(client, 'dog', [dog]) == [alone_dog]
    assert listed(client)['cat'].cached_tokens == 0
    assert listed(client)['dog'].cached_tokens > 0


def test_the_second_turn_finds_the_first_in_the_cache(client):
    first = client.ask('Once upon a time', conversation_id='a', max_new_tokens=50).response
    second = client.ask(' The end.', conversation_id='a', max_new_tokens=50).response
    assert first.cached_tokens == 0
    assert second.prompt_tokens > first.prompt_tokens + 40
    assert second.cached_tokens >= first.prompt_tokens


def test_a_prompt_without_a_conversation_is_not_remembered(client):
    first = client.ask('Once upon a time', max_new_tokens=20).response
    second = client.ask('Once upon a time', max_new_tokens=20).response
    assert first.prompt_tokens == second.prompt_tokens
    assert first.text == second.text
    assert listed(client) == {}


def test_the_conversations_are_listed_the_last_used_first(client):
    for name in ('a', 'b', 'a', 'c'):
        talk(client, name, ['Once'], 10)
    response = client.call(ListConversations, 'list_conversations')
    assert [(c.conversation_id, c.turns) for c in response.conversations] == [
        ('c', 1), ('a', 2), ('b', 1)]
    assert all(c.cached_tokens > 0 and not c.busy for c in response.conversations)


def test_a_conversation_that_is_answered_is_listed_as_busy(client):
    talk(client, 'a', ['There was a cat.'], 10)
    request_id = client.send('Once', conversation_id='a', max_new_tokens=2000)
    client.wait_for_chunks(request_id)
    assert listed(client)['a'].busy
    client.interrupt.publish(Interrupt(request_id=request_id))
    client.wait(lambda: client.answer(request_id).whole)


def test_a_conversation_whose_answer_is_paused_is_listed_as_busy(client):
    for name in ('a', 'b', 'c'):
        talk(client, name, ['There was a cat.'], 10)
    low = client.send('Once', conversation_id='a', max_new_tokens=2000)
    client.wait_for_chunks(low)
    high = client.send('Once', conversation_id='b', max_new_tokens=2000, priority=200,
                       policy=Prompt.PREEMPT)
    client.wait_for_chunks(high)
    assert {name: c.busy for name, c in listed(client).items()} == {
        'a': True, 'b': True, 'c': False}
    for request_id in (low, high):
        client.interrupt.publish(Interrupt(request_id=request_id))
    client.wait(lambda: client.answer(low).whole and client.answer(high).whole)


def test_a_conversation_that_was_reset_begins_anew(client):
    first = talk(client, 'a', ['Once upon a time'])
    assert talk(client, 'a', ['Once upon a time']) != first
    talk(client, 'b', ['Once'])
    assert client.call(ResetConversation, 'reset_conversation', conversation_id='a').success
    assert set(listed(client)) == {'b'}
    assert talk(client, 'a', ['Once upon a time']) == first


def test_a_reset_without_a_name_forgets_all(client):
    talk(client, 'a', ['Once'])
    talk(client, 'b', ['Once'])
    assert client.call(ResetConversation, 'reset_conversation').success
    assert listed(client) == {}


def test_a_reset_of_all_forgets_an_answer_under_way(client):
    request_id = client.send('Once', conversation_id='a', max_new_tokens=2000)
    client.wait_for_chunks(request_id)
    assert client.call(ResetConversation, 'reset_conversation').success
    client.wait(lambda: client.answer(request_id).whole)
    assert client.answer(request_id).response.finish_reason == Response.CANCELED
    assert listed(client) == {}


def test_a_reset_of_an_unknown_conversation_is_refused_by_its_name(client):
    response = client.call(ResetConversation, 'reset_conversation', conversation_id='nobody')
    assert not response.success
    assert "got 'nobody'" in response.message


def test_a_reset_ends_the_answer_under_way(client):
    request_id = client.send('Once', conversation_id='a', max_new_tokens=2000)
    client.wait_for_chunks(request_id)
    assert client.call(ResetConversation, 'reset_conversation', conversation_id='a').success
    client.wait(lambda: client.answer(request_id).whole)
    client.answer(request_id).check()
    assert client.answer(request_id).response.finish_reason == Response.CANCELED
    client.ask('Once', max_new_tokens=5).check()
    assert listed(client) == {}


def test_an_interrupt_ends_the_running_answer(client):
    request_id = client.send('Once', conversation_id='a', max_new_tokens=2000)
    client.wait_for_chunks(request_id)
    client.interrupt.publish(Interrupt(reason='the user spoke'))
    client.wait(lambda: client.answer(request_id).whole)
    client.answer(request_id).check()
    assert client.answer(request_id).response.finish_reason == Response.CANCELED
    client.ask('The end', max_new_tokens=5).check()


def test_an_interrupt_of_another_conversation_changes_nothing(client, story_node):
    request_id = client.send('Once', conversation_id='a', max_new_tokens=1000)
    client.wait_for_chunks(request_id)
    interrupt(client, story_node, conversation_id='b')
    interrupt(client, story_node, request_id='nobody')
    client.wait(lambda: client.answer(request_id).whole)
    assert client.answer(request_id).response.finish_reason == Response.LENGTH


def test_an_interrupt_takes_a_waiting_request_out_of_the_queue(client):
    running = client.send('Once', max_new_tokens=2000)
    client.wait_for_chunks(running)
    waiting = client.send('The cat', max_new_tokens=20)
    client.interrupt.publish(Interrupt(request_id=waiting))
    client.wait(lambda: client.answer(waiting).whole)
    assert client.answer(waiting).response.finish_reason == Response.CANCELED
    assert not client.answer(running).whole
    client.interrupt.publish(Interrupt(request_id=running))
    client.wait(lambda: client.answer(running).whole)


def interrupt(client, node, **fields):
    """Interrupt, and wait until the node heard it: messages of two topics are not ordered."""
    reason = f'reason {uuid.uuid4().hex}'
    client.interrupt.publish(Interrupt(reason=reason, **fields))
    client.wait(lambda: reason in node.log)


def prompt_tokens_after(client, conversation_id):
    """Return how long the history of a conversation is, with the next word."""
    answer = client.ask('x', conversation_id=conversation_id, max_new_tokens=1)
    return answer.response.prompt_tokens


def count(client, text):
    """Return the tokens of a text."""
    response = client.call(CountTokens, 'count_tokens', text=text, with_chat_template=True)
    assert response.success
    return response.tokens


def test_what_was_not_heard_of_a_finished_answer_is_cut_from_the_history(client, story_node):
    text = talk(client, 'a', ['Once upon a time'], 100)[0]
    interrupt(client, story_node, conversation_id='a', spoken_char_end=30)
    # The next token ends behind the 30th character.
    heard = ', there was a little girl'
    assert text.startswith(f'{heard} named')
    assert prompt_tokens_after(client, 'a') == count(client, f'Once upon a time{heard}x')


@pytest.mark.parametrize('name, heard', [('{}', 25), ('', 25), ('another', 2000)])
def test_the_voice_that_lags_behind_is_interrupted_by_its_request(client, story_node, name, heard):
    request_id = client.send('Once upon a time', conversation_id='a', max_new_tokens=100)
    client.wait(lambda: client.answer(request_id).whole)
    text = client.answer(request_id).text
    interrupt(client, story_node, request_id=name.format(request_id), spoken_char_end=25)
    assert prompt_tokens_after(client, 'a') == count(
        client, 'Once upon a time' + text[:heard] + 'x')


def test_an_answer_of_which_nothing_was_heard_leaves_no_trace(client, story_node):
    talk(client, 'a', ['Once upon a time'])
    interrupt(client, story_node, conversation_id='a', spoken_char_end=0)
    assert listed(client) == {}
    assert prompt_tokens_after(client, 'a') == count(client, 'x')


def test_an_interrupt_that_does_not_know_what_was_heard_keeps_all(client, story_node):
    text = talk(client, 'a', ['Once upon a time'], 100)[0]
    interrupt(client, story_node, conversation_id='a')
    assert prompt_tokens_after(client, 'a') == count(client, 'Once upon a time' + text + 'x')


def test_what_was_not_heard_of_a_running_answer_is_cut_from_the_history(client):
    request_id = client.send('Once upon a time', conversation_id='a', max_new_tokens=2000)
    client.wait(lambda: len(client.answer(request_id).text) > 60)
    client.interrupt.publish(Interrupt(conversation_id='a', spoken_char_end=25))
    client.wait(lambda: client.answer(request_id).whole)
    text = client.answer(request_id).text
    assert client.answer(request_id).response.finish_reason == Response.CANCELED
    assert prompt_tokens_after(client, 'a') == count(
        client, 'Once upon a time' + text[:25] + 'x')


def test_messages_replace_the_history(client):
    talk(client, 'a', ['The dog', ' And'])
    given = (('user', 'Once upon'), ('assistant', ' a time'))
    replaced = client.ask(' there', conversation_id='a', messages=given, max_new_tokens=20)
    fresh = client.ask('Once upon a time there', max_new_tokens=20)
    assert replaced.text == fresh.text
    assert listed(client)['a'].turns == 2


def test_the_tokens_of_a_text_are_counted(client):
    response = client.call(CountTokens, 'count_tokens', text='Once upon a time')
    assert response.success and response.message == ''
    assert (response.tokens, response.max_seq_len) == (
        client.ask('Once upon a time', max_new_tokens=1).response.prompt_tokens, 2048)


def test_the_model_describes_itself(client, story_model):
    info = client.call(GetModelInfo, 'get_model_info')
    assert info.success and info.message == ''
    assert (info.name, info.path) == ('stories', str(story_model))
    assert (info.architecture, info.format, info.device, info.dtype) == (
        'llama', 'plain', 'cpu', 'bfloat16')
    assert (info.vocab_size, info.max_seq_len, info.num_slots) == (512, 2048, 4)
    assert 250e3 < info.parameters < 300e3
    assert info.weight_bytes >= 2 * info.parameters


def test_services_answer_while_a_story_is_told(client):
    request_id = client.send('Once', max_new_tokens=2000)
    client.wait_for_chunks(request_id)
    assert client.call(CountTokens, 'count_tokens', text='Once upon').tokens > 1
    assert client.call(GetModelInfo, 'get_model_info').success
    assert not client.answer(request_id).whole
    client.interrupt.publish(Interrupt(request_id=request_id))
    client.wait(lambda: client.answer(request_id).whole)
