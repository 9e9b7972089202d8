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
"""Publishes one answer while it grows; the scheduler's listener on the ROS side."""

from __future__ import annotations

import time
from typing import Callable, Optional

from tinychat_ros.engine.request import Chunk, FinishReason
from tinychat_ros.engine.scheduler import RequestState
from tinychat_ros.engine.sentences import Sentence as SentenceText, SentenceSplitter
from tinychat_ros.errors import DuplicateRequestError
from tinychat_ros.nodes.messages import error_code, Generate, Response, Sentence, TokenChunk
from tinychat_ros.nodes.publishers import Publishers

_NO_SEED = -1


class AnswerPublisher:
    """
    Turns what the engine says of one request into messages.

    :param model_hash: of the model that answers, '' for none.
    :param flush_s: tokens are collected for at most this long, in seconds; the first and the last
        are published at once.
    :param on_begin: called when the engine begins to serve the request.
    :param on_end: called once with the Response, after it was published. By then ``chunks`` and
        ``coalesced`` count the messages and the tokens that went in the message of one before.
    :param on_feedback: called with the action's feedback; None for requests from topics.
    """

    def __init__(self, request_id: str, conversation_id: str, model_hash: str,
                 publishers: Publishers, flush_s: float, on_begin: Callable[[], None],
                 on_end: Callable[[Response], None],
                 on_feedback: Optional[Callable[[Generate.Feedback], None]] = None) -> None:
        self._ids = {'request_id': request_id, 'conversation_id': conversation_id}
        self._model_hash = model_hash
        self._publishers = publishers
        self._flush_s = flush_s
        self._on_begin = on_begin
        self._on_end = on_end
        self._on_feedback = on_feedback
        self._sentences = SentenceSplitter()
        self._arrival = time.monotonic()
        self._first_token = 0.0
        self._published_at: Optional[float] = None
        self.chunks = 0
        self.coalesced = 0
        self._text = ''
        self._token_ids: list[int] = []
        self._published_text = ''

    def on_state(self, state: RequestState, queue_position: int) -> None:
        """Send feedback without tokens when an action's goal waits or begins."""
        if state == RequestState.PREFILL:
            self._on_begin()
        if state == RequestState.QUEUED and (self._text or self._token_ids):
            self._publish(self._chunk_message())  # The answer is paused, maybe for long.
        if self._on_feedback and state != RequestState.DECODE:
            self._on_feedback(Generate.Feedback(
                chunk=self._chunk_message(), state=int(state), queue_position=queue_position))

    def on_chunk(self, chunk: Chunk) -> None:
        """Collect tokens, publish them when it is time, and end the answer with the last."""
        if chunk.token_ids and not self._first_token:
            self._first_token = time.monotonic() - self._arrival
        # A ROS string ends at its first zero, and a model may well say one.
        self._text += chunk.text.replace('\0', '\ufffd')
        self._token_ids += chunk.token_ids
        if chunk.result is not None:
            self._finish(self._response(
                finish_reason=int(chunk.result.finish_reason),
                prompt_tokens=chunk.result.prompt_tokens,
                cached_tokens=chunk.result.cached_tokens,
                completion_tokens=chunk.result.completion_tokens, turn=chunk.result.turn,
                seed=_NO_SEED if chunk.result.seed is None else chunk.result.seed))
        elif self._due():
            self._publish(self._chunk_message())

    def on_error(self, error: Exception) -> None:
        """End the answer with an error; what was generated so far is published."""
        response = self._response(finish_reason=int(FinishReason.ERROR),
                                  error_code=error_code(error),
                                  error_msg=f'{type(error).__name__}: {error}')
        if isinstance(error, DuplicateRequestError):
            # The stream of chunks under this id is the other request's, and must not end here.
            self._end(response)
        else:
            self._finish(response)

    def _due(self) -> bool:
        if self._published_at is None:
            return bool(self._text)
        return time.monotonic() - self._published_at >= self._flush_s

    def _chunk_message(self) -> TokenChunk:
        return TokenChunk(
            header=self._publishers.header(), **self._ids, seq=self.chunks, text=self._text,
            token_ids=self._token_ids)

    def _publish(self, chunk: TokenChunk) -> None:
        self._publishers.tokens.publish(chunk)
        if self._on_feedback:
            self._on_feedback(Generate.Feedback(chunk=chunk, state=int(RequestState.DECODE)))
        if self._text:
            self._publishers.text(self._text)
        for sentence in self._sentences.push(self._text):
            self._publish_sentence(sentence)
        self._published_text += self._text
        self._published_at = time.monotonic()
        self.chunks += 1
        self.coalesced += max(len(chunk.token_ids) - 1, 0)
        self._text, self._token_ids = '', []

    def _response(self, **fields: object) -> Response:
        return Response(
            header=self._publishers.header(), **self._ids,
            text=self._published_text + self._text, model_hash=self._model_hash,
            time_to_first_token=self._first_token, duration=time.monotonic() - self._arrival,
            **fields)

    def _finish(self, response: Response) -> None:
        last = self._chunk_message()
        last.final, last.finish_reason = True, response.finish_reason
        self._publish(last)
        self._publish_sentence(self._sentences.flush())
        self._end(response)

    def _end(self, response: Response) -> None:
        self._publishers.response.publish(response)
        self._on_end(response)

    def _publish_sentence(self, sentence: SentenceText) -> None:
        self._publishers.sentence(Sentence(
            **self._ids, index=sentence.index, text=sentence.text, final=sentence.final,
            char_begin=sentence.char_begin, char_end=sentence.char_end))
