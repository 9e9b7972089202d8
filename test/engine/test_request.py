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
"""Fields of a request that are refused by name, and what ends it from outside."""

import time

import pytest

from tinychat_ros.engine.request import FinishReason, Message, Request
from tinychat_ros.errors import InvalidRequestError


@pytest.mark.parametrize('fields, named', [
    ({'text': ''}, 'text: expected a prompt'),
    ({'text': 'a\udcff'}, 'text: expected valid Unicode, got a lone surrogate at index 1'),
    ({'system': '\ud800'}, 'system: expected valid Unicode'),
    ({'conversation_id': '\ud800'}, 'conversation_id: expected valid Unicode'),
    ({'request_id': '\ud800'}, 'request_id: expected valid Unicode'),
    ({'stop': ('a', '\ud800')}, 'stop: expected valid Unicode'),
    ({'stop': ('a', '')}, 'stop: expected strings, got an empty one'),
    ({'stop': 'END'}, "stop: expected a list of strings, got 'END'"),
    ({'max_new_tokens': 0}, 'max_new_tokens: expected 1 or more, got 0'),
    ({'max_new_tokens': -5}, 'max_new_tokens: expected 1 or more, got -5'),
])
def test_a_field_out_of_its_range_is_refused_by_name(fields, named):
    with pytest.raises(InvalidRequestError, match=f'^{named}'):
        Request(**{'text': 'hi', **fields})


@pytest.mark.parametrize('role, content, named', [
    ('robot', 'hi', 'role: expected one of system, user, assistant, tool, got'),
    ('', 'hi', 'role'), ('user', '\ud800', 'content: expected valid Unicode')])
def test_a_message_that_cannot_be_is_refused(role, content, named):
    with pytest.raises(InvalidRequestError, match=named):
        Message(role, content)


def test_messages_or_raw_need_no_text():
    assert Request(messages=(Message('user', 'hi'),)).text == ''
    assert Request(raw=True).text == ''


def test_every_request_has_an_id_of_its_own():
    assert Request('a').request_id != Request('a').request_id


def test_an_interruption_is_told_with_its_reason():
    request = Request('a')
    assert request.interruption() == FinishReason.NONE
    assert Request('a', deadline=time.monotonic() + 60).interruption() == FinishReason.NONE
    late = Request('a', deadline=time.monotonic())
    assert late.interruption() == FinishReason.DEADLINE
    late.cancel()
    assert late.interruption() == FinishReason.CANCELED
