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
"""An answer while it grows: tokens in, certain text out."""

from __future__ import annotations

import time
from typing import Optional, Sequence

from tinychat_ros.engine.request import Chunk, FinishReason, Request, Result
from tinychat_ros.engine.sentences import ends_sentence
from tinychat_ros.engine.stop_strings import StopStrings
from tinychat_ros.engine.tokenizer import StreamDecoder, Tokenizer

_SENTENCE_BEFORE_DEADLINE_S = 0.5
# Of a text, to see whether a sentence ends there.
_TAIL_CHARS = 40


class Answer:
    """
    Collects the tokens of one request and cuts them into chunks.

    :param stop_ids: tokens that end the answer and have no text.
    :param limit: the most tokens it may have.
    :param seed: what the tokens are drawn with.
    :param turn: see Result.
    :param context: tokens whose text the answer continues, without a space lost between them.
    :param stop: strings that end it, beside those of the request.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, stop_ids: frozenset[int],
                 limit: int, prompt_tokens: int, cached_tokens: int,
                 seed: Optional[int] = None, turn: int = 0, context: Sequence[int] = (),
                 stop: Sequence[str] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer, context)
        self._stops = StopStrings((*request.stop, *stop))
        self._stop_ids = stop_ids
        self._limit = limit
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = cached_tokens
        self._seed = seed
        self._turn = turn
        self._started = time.monotonic()
        self._first_token: float | None = None
        self._token_ids: list[int] = []
        self._chunked = 0
        self._pending = ''
        self._stopped = False
        self._deadline = request.deadline
        self._token_ends: list[int] = []
        self.text = ''

    def push(self, token_id: int) -> FinishReason:
        """Take the next token; return why the answer ends with it, or NONE."""
        if self._first_token is None:
            self._first_token = time.monotonic() - self._started
        self._token_ids.append(token_id)
        if token_id in self._stop_ids:
            return FinishReason.STOP
        decoded = self._decoder.push(token_id)
        self._token_ends.append(len(decoded) + (self._token_ends or [0])[-1])
        certain, self._stopped = self._stops.push(decoded)
        self._pending += certain
        if self._stopped:
            return FinishReason.STOP
        if len(self._token_ids) >= self._limit:
            return FinishReason.LENGTH
        return FinishReason.DEADLINE if self._ends_before_deadline() else FinishReason.NONE

    def heard(self, chars: Optional[int]) -> tuple[str, int]:
        """
        Return the text up to the last token that lies whole in its first characters.

        :param chars: None is all.
        :returns: the text, and how many tokens it is.
        """
        if chars is None:
            return self.text, len(self._token_ends)
        ends = [end for end in self._token_ends if end <= chars]
        return self.text[:ends[-1] if ends else 0], len(ends)

    @property
    def token_ends(self) -> Sequence[int]:
        """Return where the text of each token ends, in characters."""
        return self._token_ends

    def chunk(self) -> Chunk:
        """Return what came since the last chunk."""
        return Chunk(*self._take())

    def finish(self, reason: FinishReason) -> Chunk:
        """Return the last chunk, with what was held back and the result."""
        if not self._stopped:
            certain, stopped = self._stops.push(self._decoder.flush())
            self._pending += certain + ('' if stopped else self._stops.flush())
        text, token_ids = self._take()
        return Chunk(text, token_ids, Result(
            text=self.text, token_ids=tuple(self._token_ids), finish_reason=reason,
            prompt_tokens=self._prompt_tokens, cached_tokens=self._cached_tokens,
            time_to_first_token=self._first_token, duration=time.monotonic() - self._started,
            seed=self._seed, turn=self._turn))

    def _ends_before_deadline(self) -> bool:
        return (self._deadline is not None
                and time.monotonic() >= self._deadline - _SENTENCE_BEFORE_DEADLINE_S
                and ends_sentence((self.text + self._pending)[-_TAIL_CHARS:]))

    def _take(self) -> tuple[str, tuple[int, ...]]:
        text, self._pending = self._pending, ''
        token_ids, self._chunked = tuple(self._token_ids[self._chunked:]), len(self._token_ids)
        self.text += text
        return text, token_ids
