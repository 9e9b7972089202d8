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
"""What is asked of the engine and what comes back."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
import time
from typing import Optional
import uuid

from tinychat_ros.engine.image import Image
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.errors import InvalidRequestError

MAX_PRIORITY = 255
_LOGGED_CHARS = 500
ROLES = ('system', 'user', 'assistant', 'tool')


class FinishReason(IntEnum):
    """Why an answer ended; the numbers are those of the ROS messages."""

    NONE = 0
    STOP = 1
    LENGTH = 2
    DEADLINE = 3
    CANCELED = 4
    PREEMPTED = 5
    ERROR = 6


class Policy(IntEnum):
    """What a request does to the one that is being answered, numbered as in the ROS messages."""

    QUEUE = 0
    PREEMPT = 1
    REPLACE = 2
    REJECT_IF_BUSY = 3


@dataclass(frozen=True)
class Message:
    """One message of a conversation, and what is shown with it."""

    role: str
    content: str
    image: Optional[Image] = None

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise InvalidRequestError(f"role: expected one of {', '.join(ROLES)}, "
                                      f'got {self.role!r}')
        check_unicode('content', self.content)


@dataclass
class Request:
    """
    One prompt.

    :param text: what the user says.
    :param image: what the user shows with ``text``; a raw text has the token for it. The engine
        leaves in it, and in those of ``messages``, what the model sees.
    :param messages: when given, they replace the conversation's history; ``text`` may then be
        empty, if the last of them asks for an answer.
    :param system: system prompt; '' keeps the conversation's own.
    :param conversation_id: whose history to continue; '' remembers nothing.
    :param raw: continue ``text`` as it is, without template and history.
    :param max_new_tokens: None takes what the checkpoint recommends, or fills the context.
    :param sampling: None takes what the checkpoint recommends.
    :param stop: strings that end the answer and are not part of it.
    :param heard_chars: how much of an interrupted answer was heard, in characters, and goes into
        the history; None is all of it. May be set until the answer ends.
    :param deadline: on the clock of time.monotonic(), in seconds. An answer that comes to the end
        of a sentence in the half second before it ends there.
    :param priority: 0, the least urgent, to 255.
    :param policy: see Scheduler.
    :raises InvalidRequestError: a field is out of its range.
    """

    text: str = ''
    messages: tuple[Message, ...] = ()
    system: str = ''
    conversation_id: str = ''
    request_id: str = field(default_factory=lambda: uuid.uuid4().hex)
    raw: bool = False
    max_new_tokens: Optional[int] = None
    sampling: Optional[SamplingParams] = None
    stop: tuple[str, ...] = ()
    deadline: Optional[float] = None
    heard_chars: Optional[int] = None
    priority: int = 0
    policy: Policy = Policy.QUEUE
    image: Optional[Image] = None
    _ended: FinishReason = field(default=FinishReason.NONE, repr=False)
    _paused: bool = field(default=False, repr=False)

    def __post_init__(self) -> None:
        for name in ('text', 'system', 'conversation_id', 'request_id'):
            check_unicode(name, getattr(self, name))
        if not self.raw and not self.text.strip() and not self.messages:
            raise InvalidRequestError('text: expected a prompt, got an empty one')
        if self.max_new_tokens is not None and self.max_new_tokens < 1:
            raise InvalidRequestError(
                f'max_new_tokens: expected 1 or more, got {self.max_new_tokens}')
        if not 0 <= self.priority <= MAX_PRIORITY:
            raise InvalidRequestError(
                f'priority: expected 0 to {MAX_PRIORITY}, got {self.priority}')
        if isinstance(self.stop, str):
            raise InvalidRequestError(f'stop: expected a list of strings, got {self.stop!r}')
        for stop in self.stop:
            check_unicode('stop', stop)
            if not stop:
                raise InvalidRequestError('stop: expected strings, got an empty one')

    def cancel(self, reason: FinishReason = FinishReason.CANCELED) -> None:
        """End the answer within one token; safe from any thread, at any time."""
        self._ended = self._ended or reason

    def pause(self) -> None:
        """Let a prefill give way at once, until :meth:`resume`; safe from any thread."""
        self._paused = True

    def resume(self) -> None:
        """Let the prefill go on."""
        self._paused = False

    def paused(self) -> bool:
        """Say whether a prefill must stop for now, or for good."""
        return self._paused or self.interrupted()

    def interrupted(self) -> bool:
        """Say whether the answer must end now."""
        return self.interruption() != FinishReason.NONE

    def interruption(self) -> FinishReason:
        """Return why the answer must end now: DEADLINE or what it was canceled with; or NONE."""
        if self._ended:
            return self._ended
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return FinishReason.DEADLINE
        return FinishReason.NONE


@dataclass(frozen=True)
class Result:
    """
    A finished answer.

    :param text: the chunks' texts joined.
    :param token_ids: every generated token, the one that ended the answer too.
    :param cached_tokens: how many of the prompt's tokens were already in the KV cache.
    :param turn: which of the user's messages in the conversation was answered, from 1.
    :param time_to_first_token: seconds from the start of the prefill; None when there was none.
    :param duration: seconds from the start of the prefill to the end.
    :param seed: what the tokens were drawn with; None where they are greedy without one.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason
    prompt_tokens: int
    cached_tokens: int = 0
    time_to_first_token: Optional[float] = None
    duration: float = 0.0
    seed: Optional[int] = None
    turn: int = 0

    @property
    def completion_tokens(self) -> int:
        """Return the number of generated tokens."""
        return len(self.token_ids)

    @property
    def tokens_per_second(self) -> float:
        """Return the decode rate, counted after the first token; 0 for fewer than two tokens."""
        return decode_rate(self.completion_tokens, self.duration, self.time_to_first_token or 0.0)


@dataclass(frozen=True)
class Chunk:
    """
    A piece of an answer: the text that became certain, the tokens since the last chunk.

    The last chunk carries the result; text and tokens may be empty in any chunk.
    """

    text: str
    token_ids: tuple[int, ...]
    result: Optional[Result] = None

    @property
    def final(self) -> bool:
        """Say whether this is the last chunk."""
        return self.result is not None


def decode_rate(completion_tokens: int, duration: float, time_to_first_token: float) -> float:
    """Return tokens per second, counted after the first token; 0 for fewer than two tokens."""
    seconds = duration - time_to_first_token
    return (completion_tokens - 1) / seconds if completion_tokens > 1 and seconds > 0 else 0.0


def one_line(text: object) -> str:
    """Return a text as a log may hold it: without line breaks and control characters, and cut."""
    return ''.join(c if c.isprintable() else ascii(c)[1:-1] for c in str(text)[:_LOGGED_CHARS])


def check_unicode(name: str, text: str) -> None:
    """Refuse a text that UTF-8 cannot hold, such as bytes that were not UTF-8 to begin with."""
    try:
        text.encode('utf-8')
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f'{name}: expected valid Unicode, got a lone surrogate at index {error.start}, as '
            'bytes that are not UTF-8 leave it') from None
