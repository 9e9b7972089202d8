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
"""What becomes of one answer's chunks, without a node: portions, ends and faults."""

from types import SimpleNamespace

import pytest
from std_msgs.msg import Header

from tinychat_msgs.msg import Response
from tinychat_ros.engine.request import Chunk, FinishReason, Result
from tinychat_ros.engine.scheduler import RequestState
from tinychat_ros.errors import (
    CheckpointError, DuplicateRequestError, OutOfMemoryError, PromptTooLongError)
from tinychat_ros.nodes.answer_publisher import AnswerPublisher


class Topic(list):
    """A publisher that keeps what it publishes."""

    publish = list.append


class Said:
    """Everything that was published of one answer."""

    def __init__(self, flush_s=1000.0):
        self.tokens, self.text, self.sentences = Topic(), Topic(), Topic()
        self.response, self.feedback, self.ended, self.begun = Topic(), [], [], []
        publishers = SimpleNamespace(
            header=Header, tokens=self.tokens, text=self.text.append, response=self.response,
            sentence=self.sentences.append)
        self.listener = AnswerPublisher(
            'id', 'talk', 'a hash', publishers, flush_s, lambda: self.begun.append(True),
            self.ended.append, self.feedback.append)


def last(text='', reason=FinishReason.STOP, token_ids=(), seed=None):
    return Chunk(text, token_ids, Result(text, (1, 2, 3), reason, prompt_tokens=9,
                                         cached_tokens=4, seed=seed))


def test_tokens_are_collected_between_the_first_and_the_last():
    said = Said()
    for chunk in (Chunk('', (1,)), Chunk('Hello', (2,)), Chunk(' you', (3,)), Chunk('.', (4,)),
                  last('', token_ids=(5,))):
        said.listener.on_chunk(chunk)
    assert [(c.seq, c.text, list(c.token_ids), c.final) for c in said.tokens] == [
        (0, 'Hello', [1, 2], False), (1, ' you.', [3, 4, 5], True)]
    assert (said.listener.chunks, said.listener.coalesced) == (2, 3)
    assert said.text == ['Hello', ' you.']
    assert [(s.text, s.final) for s in said.sentences] == [('Hello you.', True)]


def test_the_response_counts_and_comes_last():
    said = Said()
    said.listener.on_chunk(Chunk('Hello', (1,)))
    said.listener.on_chunk(last(' you'))
    response, = said.response
    assert said.ended == [response]
    assert (response.request_id, response.conversation_id) == ('id', 'talk')
    assert (response.text, response.finish_reason) == ('Hello you', Response.STOP)
    assert (response.prompt_tokens, response.cached_tokens, response.completion_tokens) == (
        9, 4, 3)
    assert 0 < response.time_to_first_token <= response.duration


@pytest.mark.parametrize('seed, reported', [(7, 7), (0, 0), (None, -1)])
def test_the_response_says_what_makes_the_answer_again(seed, reported):
    said = Said()
    said.listener.on_chunk(last(' you', seed=seed))
    response, = said.response
    assert (response.model_hash, response.seed) == ('a hash', reported)


def test_a_zero_byte_is_replaced_since_a_ros_string_ends_there():
    said = Said(flush_s=0.0)
    said.listener.on_chunk(Chunk('a\0b', (1,)))
    said.listener.on_chunk(last('\0'))
    assert ''.join(c.text for c in said.tokens) == said.response[0].text == 'a\ufffdb\ufffd'


@pytest.mark.parametrize('error, code', [
    (PromptTooLongError(3000, 2048), Response.PROMPT_TOO_LONG),
    (OutOfMemoryError('no room'), Response.OUT_OF_MEMORY),
    (MemoryError(), Response.OUT_OF_MEMORY),
    (type('OutOfMemoryError', (RuntimeError,), {})('CUDA'), Response.OUT_OF_MEMORY),
    (CheckpointError('logits'), Response.INTERNAL),
    (ZeroDivisionError('a fault'), Response.INTERNAL)])
def test_a_fault_in_mid_answer_keeps_what_was_said(error, code):
    said = Said()
    said.listener.on_chunk(Chunk('Hello. I', (1,)))
    said.listener.on_chunk(Chunk(' am', (2,)))
    said.listener.on_error(error)
    assert [(c.text, c.final) for c in said.tokens] == [('Hello. I', False), (' am', True)]
    assert [s.text for s in said.sentences] == ['Hello. ', 'I am']
    response, = said.response
    assert response.text == 'Hello. I am'
    assert (response.finish_reason, response.error_code) == (Response.ERROR, code)
    assert response.error_msg.startswith(type(error).__name__)
    assert said.tokens[-1].finish_reason == Response.ERROR


def test_a_duplicate_says_so_and_leaves_the_stream_of_the_first_alone():
    said = Said()
    said.listener.on_error(DuplicateRequestError('request_id'))
    assert said.tokens == said.text == said.sentences == said.feedback == []
    assert said.response[0].error_code == Response.INVALID_REQUEST
    assert said.ended == said.response


def test_feedback_tells_the_states_and_then_the_chunks():
    said = Said(flush_s=0.0)
    said.listener.on_state(RequestState.QUEUED, 2)
    assert said.begun == []
    said.listener.on_state(RequestState.PREFILL, 0)
    assert said.begun == [True]
    said.listener.on_state(RequestState.DECODE, 0)
    said.listener.on_chunk(Chunk('Hi', (1,)))
    said.listener.on_chunk(last())
    assert [(f.state, f.queue_position, f.chunk.text) for f in said.feedback] == [
        (RequestState.QUEUED, 2, ''), (RequestState.PREFILL, 0, ''),
        (RequestState.DECODE, 0, 'Hi'), (RequestState.DECODE, 0, '')]
    assert [f.chunk for f in said.feedback[2:]] == said.tokens
