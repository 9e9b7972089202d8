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
"""Talks with the demo model, which a node without parameters serves."""

import pytest

from tinychat_msgs.msg import Interrupt, Response
from tinychat_msgs.srv import GetModelInfo, ResetConversation


@pytest.fixture(scope='module')
def client(connect, start_node, demo_model):
    """Return a client of a node that was told nothing."""
    return connect(start_node())


@pytest.fixture(autouse=True)
def nothing_remembered(client):
    """Forget what the tests before left."""
    assert client.call(ResetConversation, 'reset_conversation').success


def say(client, text, conversation_id='visitor'):
    """Return the reply to one sentence."""
    answer = client.ask(text, conversation_id=conversation_id)
    answer.check()
    assert answer.response.finish_reason == Response.STOP
    return answer.text


def test_the_demo_model_is_the_default(client):
    assert client.call(GetModelInfo, 'get_model_info').name == 'demo_model'


def test_a_request_is_confirmed_in_a_sentence(client):
    reply = say(client, 'Bring me the cup.')
    assert 'cup' in reply
    assert reply.endswith(('.', '!', '?'))


def test_the_second_turn_knows_what_it_is(client):
    say(client, 'Bring me the cup.')
    reply = say(client, 'Bring it to the kitchen.')
    assert 'cup' in reply and 'kitchen' in reply


def test_two_visitors_do_not_hear_of_each_other(client):
    say(client, 'Bring me the cup.', 'Ann')
    say(client, 'Fetch the book.', 'Bob')
    ann = say(client, 'Bring it to the kitchen.', 'Ann')
    bob = say(client, 'Bring it to the kitchen.', 'Bob')
    assert 'cup' in ann and 'book' not in ann
    assert 'book' in bob and 'cup' not in bob


@pytest.mark.parametrize('conversation_id', ['', 'visitor'])
def test_without_a_first_turn_there_is_no_it(client, conversation_id):
    if conversation_id:
        say(client, 'Bring me the cup.', conversation_id)
        assert client.call(ResetConversation, 'reset_conversation',
                           conversation_id=conversation_id).success
    assert 'cup' not in say(client, 'Bring it to the kitchen.', conversation_id)


def test_the_second_turn_is_prefilled_from_where_the_first_ended(client):
    first = client.ask('Bring me the cup.', conversation_id='visitor').response
    second = client.ask('Bring it to the kitchen.', conversation_id='visitor').response
    # The whole first turn lies in the cache, but for the token that ended it.
    assert second.cached_tokens >= first.prompt_tokens + first.completion_tokens - 1


def test_a_reply_that_nobody_heard_is_not_remembered(client):
    say(client, 'Bring me the cup.')
    client.interrupt.publish(Interrupt(conversation_id='visitor', spoken_char_end=0))
    client.wait(lambda: 'interrupt: ' in client.log)
    assert 'cup' not in say(client, 'Bring it to the kitchen.')
