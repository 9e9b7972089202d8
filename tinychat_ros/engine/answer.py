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
from typing import Sequence

from tinychat_ros.engine.request import Chunk, FinishReason, Request, Result
from tinychat_ros.engine.stop_strings import StopStrings
from tinychat_ros.engine.tokenizer import StreamDecoder, Tokenizer


class Answer:
    """
    Collects the tokens of one request and cuts them into chunks.

    :param stop_ids: tokens that end the answer and have no text.
    :param limit: the most tokens it may have.
    :param context: tokens whose text the answer continues, without a space lost between them.
    """

    def __init__(self, request: Request, tokenizer: Tokenizer, stop_ids: frozenset[int],
                 limit: int, prompt_tokens: int, cached_tokens: int,
                 context: Sequence[int] = ()) -> None:
        self._decoder = StreamDecoder(tokenizer, context)
        self._stops = StopStrings(request.stop)
        self._stop_ids = stop_ids
        self._limit = limit
        self._prompt_tokens = prompt_tokens
        self._cached_tokens = cached_tokens
        self._started = time.monotonic()
        self._first_token: float | None = None
        self._token_ids: list[int] = []
        self._chunked = 0
        self._pending = ''
        self._stopped = False
        self.text = ''

    def push(self, token_id: int) -> FinishReason:
        """Take the next token; return why the answer ends with it, or NONE."""
        if self._first_token is None:
            self._first_token = time.monotonic() - self._started
        self._token_ids.append(token_id)
        if token_id in self._stop_ids:
            return FinishReason.STOP
        certain, self._stopped = self._stops.push(self._decoder.push(token_id))
        self._pending += certain
        if self._stopped:
            return FinishReason.STOP
        return FinishReason.LENGTH if len(self._token_ids) >= self._limit else FinishReason.NONE

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
            time_to_first_token=self._first_token, duration=time.monotonic() - self._started))

    def _take(self) -> tuple[str, tuple[int, ...]]:
        text, self._pending = self._pending, ''
        token_ids, self._chunked = tuple(self._token_ids[self._chunked:]), len(self._token_ids)
        self.text += text
        return text, token_ids
