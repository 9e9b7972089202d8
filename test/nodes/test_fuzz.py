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
"""Hostile input from every side: each request is answered once, with the right code."""

import math
import random

from builtin_interfaces.msg import Time
from node_process import make_prompt
import pytest
from rclpy.parameter import Parameter
from rclpy.serialization import serialize_message
from std_msgs.msg import String

from tinychat_msgs.msg import Interrupt, Response
from tinychat_msgs.srv import CountTokens, ResetConversation
from tinychat_ros.nodes.input_limits import (
    MAX_ID_CHARS, MAX_MESSAGES, MAX_ROLE_BYTES, MAX_STOP_BYTES, MAX_STOPS)
from tinychat_ros.nodes.parameters import check

MAX_TEXT_BYTES = 20000
MIB = 'x' * 2**20
NASTY = ('%s%n%d{0}{}', '$(reboot)`id`;|&', '../../etc/passwd', '\x1b[2J\r\nforged line',
         '{{ 7 * 7 }}{% for x in y %}', "'; DROP TABLE", '\u202e\ufeff\ufffe', '</s><s>[INST]')
LONG_ID = 'i' * (MAX_ID_CHARS + 1)
# What is set in a prompt, the code that it is answered with, and what the message says.
REFUSED = (
    ({'text': ''}, 'text: expected a prompt'),
    ({'text': '\n\t '}, 'text: expected a prompt'),
    ({'text': MIB}, f'text: expected at most {MAX_TEXT_BYTES} bytes, got {2**20}'),
    ({'text': 'ü' * (MAX_TEXT_BYTES // 2 + 1)}, f'text: expected at most {MAX_TEXT_BYTES} bytes'),
    ({'system': MIB}, f'system: expected at most {MAX_TEXT_BYTES} bytes, got {2**20}'),
    ({'request_id': MIB}, f'request_id: expected at most {MAX_ID_CHARS} characters, got {2**20}'),
    ({'request_id': LONG_ID}, f'request_id: expected at most {MAX_ID_CHARS} characters'),
    ({'request_id': 'a\nforged'}, 'request_id: expected printable characters, got \'a\\nforged\''),
    ({'request_id': '\x1b[2J'}, 'request_id: expected printable characters'),
    ({'conversation_id': LONG_ID}, f'conversation_id: expected at most {MAX_ID_CHARS} characters'),
    ({'conversation_id': 'a\u2028b'}, 'conversation_id: expected printable characters'),
    ({'conversation_id': '\u202e'}, 'conversation_id: expected printable characters'),
    ({'messages': [('user', 'x')] * (MAX_MESSAGES + 1)},
     f'messages: expected at most {MAX_MESSAGES} messages, got {MAX_MESSAGES + 1}'),
    ({'messages': [('user', 'x' * MAX_TEXT_BYTES)] * 2},
     f'messages: expected at most {MAX_TEXT_BYTES} bytes, got {2 * MAX_TEXT_BYTES}'),
    ({'messages': [(MIB, '')]},
     f'messages[0].role: expected at most {MAX_ROLE_BYTES} bytes, got {2**20}'),
    ({'messages': [('root', 'x')]}, 'role: expected one of'),
    ({'messages': [('user\n', 'x')]}, "got 'user\\n'"),
    ({'stop': ['x'] * (MAX_STOPS + 1)}, f'stop: expected at most {MAX_STOPS} strings'),
    ({'stop': ['x' * (MAX_STOP_BYTES + 1)]}, f'stop[0]: expected at most {MAX_STOP_BYTES} bytes'),
    ({'stop': ['']}, 'stop: expected strings'),
    ({'max_new_tokens': -1}, 'max_new_tokens: expected'),
    ({'max_new_tokens': -2**31}, 'max_new_tokens: expected'),
    ({'policy': 4}, 'policy: expected'),
    ({'policy': 255}, 'policy: expected'),
    ({'image': 1}, 'image: expected NO_IMAGE'),
    ({'image': 255}, 'image: expected 0 to 2'),
    *(({'sampling': {name: value}}, f'{name}: expected')
      for name in ('temperature', 'top_p', 'min_p', 'repetition_penalty')
      for value in (math.nan, math.inf, -math.inf, -0.5, 3.0e38)),
    *(({'sampling': {name: value}}, f'{name}: expected')
      for name, value in (('top_k', -2), ('top_k', -2**31), ('seed', -2), ('seed', -2**63))))
TAKEN = (
    *({'text': text} for text in NASTY), *({'system': text} for text in NASTY),
    *({'messages': [('user', text)]} for text in NASTY),
    *({'stop': [text]} for text in NASTY), {'conversation_id': '/etc/passwd %s {}'},
    {'conversation_id': 'ü' * MAX_ID_CHARS}, {'request_id': '%s%n {} $(x) ../..'},
    {'deadline': Time(sec=1)}, {'deadline': Time(sec=-2**31)},
    {'deadline': Time(sec=2**31 - 1, nanosec=2**32 - 1)}, {'priority': 255},
    {'sampling': {'seed': 2**63 - 1, 'top_k': 2**31 - 1}}, {'stop': ['x'] * MAX_STOPS})


@pytest.fixture(scope='module')
def story_node(start_node, story_model):
    """Return a node that takes short texts."""
    return start_node(model=story_model, max_seq_len=2048, max_text_bytes=MAX_TEXT_BYTES,
                      max_new_tokens=4)


@pytest.fixture(autouse=True)
def the_next_prompt_is_answered(client, story_node):
    """Whatever a test does to the node, it serves the next request, and its log is readable."""
    yield
    client.check_that_the_node_answers()
    assert all(len(line) < 2000 and line.replace('\t', ' ').isprintable()
               for line in story_node.log.split('\n'))
    assert not any(line.startswith('forged') for line in story_node.log.split('\n'))


def outcome(client, action, fields):
    """Send a prompt on the topic or as a goal; return its only response."""
    seen = len(client.received['response'])
    fields = {'text': 'Once', 'max_new_tokens': 4, **fields}
    if action:
        goal = client.send_goal(**fields)
        client.wait(lambda: goal.outcome is not None)
    else:
        client.send(**fields)
    client.wait(lambda: len(client.received['response']) > seen)
    response, = client.received['response'][seen:]
    if action:
        assert goal.result.error_code == response.error_code
        assert goal.result.error_msg == response.error_msg
    return response


def cases(table):
    """Return (fields, expectation, way) in an order that is the same in every run."""
    rng = random.Random(11)
    drawn = [(case, rng.random() < 0.5) for case in table]
    rng.shuffle(drawn)
    return drawn


def test_what_cannot_be_served_is_refused_by_field_and_limit(client):
    for (fields, expected), action in cases(REFUSED):
        response = outcome(client, action, fields)
        assert response.finish_reason == Response.ERROR
        assert response.error_code == Response.INVALID_REQUEST, response.error_msg
        assert expected in response.error_msg
        assert len(response.error_msg) < 500
        assert response.request_id.isprintable() and len(response.request_id) <= MAX_ID_CHARS
        assert response.conversation_id.isprintable()
        assert len(response.conversation_id) <= MAX_ID_CHARS


def test_what_only_looks_bad_is_answered(client):
    for fields, action in cases(TAKEN):
        response = outcome(client, action, fields)
        assert response.error_code == Response.NO_ERROR, response.error_msg
        assert response.finish_reason in (Response.LENGTH, Response.STOP, Response.DEADLINE)


def test_two_wrongs_are_one_refusal(client):
    rng = random.Random(12)
    for _ in range(40):
        (one, _), (other, _) = rng.sample(REFUSED, 2)
        response = outcome(client, rng.random() < 0.5, {**one, **other})
        assert response.error_code == Response.INVALID_REQUEST, response.error_msg


def test_a_refused_request_under_an_id_in_use_leaves_its_answer_whole(client):
    client.send('Once', request_id='mine', max_new_tokens=1500)
    client.wait_for_chunks('mine')
    for fields in ({'policy': 9}, {'text': ''}, {'stop': ['']}, {'text': MIB}):
        client.send(**{'text': 'Once', 'request_id': 'mine', **fields})
    client.wait(lambda: len(client.answer('mine').responses) == 5)
    client.wait(lambda: client.answer('mine').whole)
    answer = client.answer('mine')
    refusals = [answer.responses.pop(0) for _ in range(4)]
    assert all("request_id: expected a new one, got 'mine'" in r.error_msg for r in refusals)
    answer.check()
    assert answer.response.finish_reason == Response.LENGTH


def test_strings_on_the_prompt_topic(client):
    for text, code in (('', Response.INVALID_REQUEST), (MIB, Response.INVALID_REQUEST),
                       *((text, Response.NO_ERROR) for text in NASTY)):
        seen = len(client.received['response'])
        client.prompt.publish(String(data=text))
        client.wait(lambda: len(client.received['response']) > seen)
        assert client.received['response'][-1].error_code == code


def test_interrupts_that_mean_nobody_end_nothing(client):
    running = client.send('Once', max_new_tokens=1500)
    client.wait_for_chunks(running)
    for fields in ({'request_id': MIB}, {'conversation_id': MIB}, {'request_id': 'no\nforged'},
                   {'conversation_id': '\x1b[2J', 'spoken_char_end': -2**31},
                   {'request_id': 'nobody', 'reason': MIB, 'spoken_char_end': 2**31 - 1}):
        client.interrupt.publish(Interrupt(**fields))
    client.wait(lambda: client.answer(running).whole)
    assert client.answer(running).response.finish_reason == Response.LENGTH


@pytest.mark.parametrize('reason', [MIB, 'stop\nforged line', '%s%n{}', '\x1b[2J'])
def test_an_interrupt_ends_the_answer_whatever_its_reason_holds(client, reason):
    running = client.send('Once', max_new_tokens=1900)
    client.wait_for_chunks(running)
    client.interrupt.publish(Interrupt(reason=reason, spoken_char_end=2**31 - 1))
    client.wait(lambda: client.answer(running).whole)
    assert client.answer(running).response.finish_reason == Response.CANCELED


def test_services_refuse_by_field_and_limit(client):
    for with_template in (False, True):
        counted = client.call(CountTokens, 'count_tokens', text=MIB,
                              with_chat_template=with_template)
        assert not counted.success and counted.tokens == 0
        assert f'text: expected at most {MAX_TEXT_BYTES} bytes, got {2**20}' in counted.message
    for name in (MIB, LONG_ID, 'a\nforged', '\x1b[2J'):
        reset = client.call(ResetConversation, 'reset_conversation', conversation_id=name)
        assert not reset.success
        assert 'conversation_id: expected' in reset.message and len(reset.message) < 200


def test_bytes_that_are_no_message_and_no_utf_8_do_no_harm(client):
    """Half are cut, the others have bytes changed: most cannot be read, the rest is answered."""
    rng = random.Random(13)
    whole = serialize_message(make_prompt('Once upon a time', max_new_tokens=2))
    for i in range(100):
        data = bytearray(whole)
        for _ in range(3):
            data[rng.randrange(4, len(data))] = rng.choice((0, 255, rng.randrange(256)))
        client.request.publish(bytes(data[:rng.randrange(4, len(data))] if i % 2 else data))
    seen = len(client.received['response'])
    client.request.publish(whole.replace(b'Once', b'O\xff\xfee'))
    client.wait(lambda: any(r.request_id and r.request_id.encode() in whole
                            for r in client.received['response'][seen:]))


def test_an_id_that_no_request_may_have_is_no_default_conversation():
    result = check([Parameter('default_conversation', value='a\nb')], configured=True)
    assert not result.successful
    assert 'default_conversation: expected printable characters' in result.reason
