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
"""Whatever comes in, a Response says what was expected, and the next prompt is answered."""

import math

import pytest

from tinychat_msgs.msg import Prompt, Response


@pytest.fixture(autouse=True)
def the_next_prompt_is_answered(client):
    """Whatever a test does to the node, it serves the next request."""
    yield
    client.check_that_the_node_answers()


def refused(client, text='Once', code=Response.INVALID_REQUEST, **fields):
    """Send a request that cannot be served; return the error message."""
    answer = client.ask(text, **fields)
    answer.check()
    assert answer.response.finish_reason == Response.ERROR
    assert answer.response.error_code == code
    assert answer.text == ''
    return answer.response.error_msg


@pytest.mark.parametrize('text', ['', ' ', '\n\t  \n'])
def test_an_empty_prompt_is_refused(client, text):
    assert 'text: expected a prompt, got an empty one' in refused(client, text)


def test_a_prompt_longer_than_the_context_is_refused_with_both_counts(client):
    text = 'Once upon a time. ' * 1000
    message = refused(client, text, Response.PROMPT_TOO_LONG)
    numbers = [int(word) for word in message.split() if word.isdigit()]
    assert numbers[0] > 4000
    assert numbers[1:] == [2048, 2047]


@pytest.mark.parametrize('field, value', [
    ('temperature', 500.0), ('temperature', -0.5), ('temperature', math.nan),
    ('temperature', math.inf), ('top_p', 2.0), ('top_p', 0.0), ('top_p', math.nan),
    ('min_p', 1.5), ('min_p', -2.0), ('top_k', -2), ('repetition_penalty', 0.0),
    ('repetition_penalty', 1000.0), ('seed', -7)])
def test_a_sampling_parameter_out_of_its_range_is_refused_by_name(client, field, value):
    message = refused(client, sampling={field: value})
    assert f'{field}: expected' in message
    assert f'got {value}' in message


def test_an_unknown_role_is_refused(client):
    message = refused(client, messages=(('robot', 'Hello'),))
    assert "role: expected one of system, user, assistant" in message
    assert "got 'robot'" in message


@pytest.mark.parametrize('policy', [4, 200, 255])
def test_a_policy_that_there_is_not_is_refused(client, policy):
    message = refused(client, policy=policy)
    assert 'policy: expected 0 to 3, one of QUEUE, PREEMPT, REPLACE, REJECT_IF_BUSY' in message
    assert f'got {policy}' in message


def test_a_negative_number_of_tokens_is_refused(client):
    assert 'max_new_tokens: expected 0 (the default) or more, got -4' in refused(
        client, max_new_tokens=-4)


def test_an_empty_stop_string_is_refused(client):
    assert 'stop: expected strings, got an empty one' in refused(client, stop=['a', ''])


def test_an_id_in_use_is_refused_and_the_first_answer_is_whole(client):
    request_id = client.send('Once upon a time', request_id='same', max_new_tokens=800)
    client.wait_for_chunks(request_id)
    client.send('The cat', request_id='same', max_new_tokens=5)
    client.wait(lambda: client.answer('same').responses)
    assert client.answer('same').response.error_code == Response.INVALID_REQUEST
    assert "request_id: expected a new one, got 'same'" in client.answer('same').response.error_msg
    client.wait(lambda: len(client.answer('same').responses) == 2 and client.answer('same').whole)
    answer = client.answer('same')
    del answer.responses[0]
    answer.check()
    assert answer.response.finish_reason == Response.LENGTH


def test_an_id_may_be_used_again_after_its_answer(client):
    for _ in range(2):
        seen = len(client.received['response'])
        client.send('Once', request_id='again', max_new_tokens=5)
        client.wait(lambda: len(client.received['response']) > seen)
        assert client.received['response'][-1].error_code == Response.NO_ERROR


def test_a_deadline_in_the_past_ends_the_answer_before_it_begins(client):
    answer = client.ask('Once', deadline=client.time_from_now(-5.0))
    answer.check()
    assert answer.response.finish_reason == Response.DEADLINE
    assert answer.response.error_code == Response.NO_ERROR
    assert answer.text == ''


def test_a_deadline_ends_the_answer_in_its_middle(client):
    answer = client.ask('Once', max_new_tokens=2000, deadline=client.time_from_now(0.7))
    answer.check()
    assert answer.response.finish_reason == Response.DEADLINE
    assert answer.response.duration < 5.0


def test_a_deadline_counts_while_a_request_waits(client):
    running = client.send('Once', max_new_tokens=2000)
    client.wait_for_chunks(running)
    waiting = client.ask('The cat', deadline=client.time_from_now(0.2))
    assert waiting.response.finish_reason == Response.DEADLINE
    assert not client.answer(running).whole
    client.wait(lambda: client.answer(running).whole)
    client.answer(running).check()


def test_who_will_not_wait_is_refused_while_another_is_served(client):
    running = client.send('Once', max_new_tokens=1500)
    client.wait_for_chunks(running)
    message = refused(client, 'The cat', Response.QUEUE_FULL, policy=Prompt.REJECT_IF_BUSY)
    assert 'queue: expected an idle engine' in message
    # Before an image is looked for, which would be refused by another name.
    refused(client, 'What is it?', Response.QUEUE_FULL, policy=Prompt.REJECT_IF_BUSY,
            image=Prompt.NEWEST_IMAGE)
    client.wait(lambda: client.answer(running).whole)
    answer = client.ask('The cat', policy=Prompt.REJECT_IF_BUSY, max_new_tokens=5)
    assert answer.response.error_code == Response.NO_ERROR


def test_more_tokens_than_the_context_holds_end_with_it(client):
    answer = client.ask('Once upon a time', max_new_tokens=2**31 - 1)
    answer.check()
    assert answer.response.finish_reason == Response.LENGTH
    assert answer.response.prompt_tokens + answer.response.completion_tokens == 2048


def test_text_of_any_language_and_an_end_of_string_are_taken(client):
    for text in ('你好，机器人。', 'Привет 🤖 e\u0301', 'before\0after', '\ufffd\u202e', '{{ 7 * 7 }}'):
        client.ask(text, max_new_tokens=5).check()


def test_a_chat_template_that_refuses_the_messages_is_quoted(
        start_node, connect, story_model, tmp_path):
    template = tmp_path / 'refuses.jinja'
    template.write_text("{{ raise_exception('only on Sundays') }}")
    client = connect(start_node(model=story_model, max_seq_len=512, chat_template=template))
    message = refused(client)
    assert 'chat template' in message and 'only on Sundays' in message
