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
"""A bounded queue of requests in front of the engine, served by one thread."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import IntEnum
import logging
import threading
from typing import Callable, Iterator, Optional, Protocol

from tinychat_ros.engine.request import Chunk, FinishReason, Request, Result
from tinychat_ros.errors import DuplicateRequestError, QueueFullError, TinychatError

_LOGGER = logging.getLogger(__name__)


class RequestState(IntEnum):
    """Where a request stands; the numbers are those of the ROS messages."""

    QUEUED = 0
    PREFILL = 1
    DECODE = 2


class Listener(Protocol):
    """
    Hears of one request, mostly in the scheduler's thread; a last chunk or an error comes once.

    A request that ends while it waits is told of in the thread that ended it.
    """

    def on_state(self, state: RequestState, queue_position: int) -> None:
        """Hear that the request waits behind ``queue_position`` others, or is being served."""

    def on_chunk(self, chunk: Chunk) -> None:
        """Hear the next chunk; the last has the result."""

    def on_error(self, error: Exception) -> None:
        """Hear that the request failed; nothing comes after it."""


@dataclass(frozen=True, eq=False)
class _Job:
    request: Request
    listener: Listener


class Scheduler:
    """
    Serves requests in the order in which they came.

    :param generate: Engine.generate.
    :param capacity: requests that may wait, beside the one that is served.
    """

    def __init__(self, generate: Callable[[Request], Iterator[Chunk]], capacity: int) -> None:
        self._generate = generate
        self._capacity = capacity
        self._waiting: deque[_Job] = deque()
        self._running: Optional[_Job] = None
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name='tinychat-decode', daemon=True)
        self._thread.start()

    @property
    def running(self) -> Optional[Request]:
        """Return the request that is being served."""
        job = self._running
        return job.request if job else None

    @property
    def queue_length(self) -> int:
        """Return how many requests wait."""
        return len(self._waiting)

    def submit(self, request: Request, listener: Listener, only_if_idle: bool = False) -> None:
        """
        Take a request.

        :param only_if_idle: refuse it when another is waiting or being served.
        :raises QueueFullError: no more may wait, or the scheduler is closed.
        :raises DuplicateRequestError: a request with this id is waiting or being served.
        """
        with self._changed:
            self._check(request, only_if_idle)
            self._waiting.append(_Job(request, listener))
            position = len(self._waiting) - (self._running is None)
            _notify(listener.on_state, RequestState.QUEUED, position)
            self._changed.notify_all()

    def cancel(self, request_id: str = '', conversation_id: str = '') -> int:
        """
        End requests: the one of an id, all of a conversation, or all when neither is given.

        :returns: how many there were.
        """
        def meant(job: _Job) -> bool:
            return (request_id in ('', job.request.request_id)
                    and conversation_id in ('', job.request.conversation_id))

        with self._changed:
            running = [job for job in (self._running,) if job and meant(job)]
            waiting = self._take_waiting(meant)
        for job in running:
            job.request.cancel()
        for job in waiting:
            _end_unserved(job, FinishReason.CANCELED)
        return len(running) + len(waiting)

    def close(self) -> None:
        """End every request with a result and stop; no listener is called after this returns."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check(self, request: Request, only_if_idle: bool) -> None:
        jobs = [*self._waiting, *([self._running] if self._running else [])]
        if self._closed:
            raise QueueFullError('queue: expected an active scheduler, and it is closed')
        if any(job.request.request_id == request.request_id for job in jobs):
            raise DuplicateRequestError(
                f'request_id: expected a new one, got {request.request_id!r}, which is '
                'waiting or being served')
        if only_if_idle and jobs:
            raise QueueFullError(f'queue: expected an idle engine, got {len(jobs)} requests')
        if len(jobs) > self._capacity:
            raise QueueFullError(
                f'queue: expected at most {self._capacity} waiting requests, got one more')

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            end = self._run(job)
            # Whoever hears the end may send the next request at once, and finds the engine idle.
            with self._changed:
                self._running = None
            _notify(*end)

    def _next(self) -> Optional[_Job]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if not self._waiting:
                return None
            self._running = self._waiting.popleft()
            waiting = list(self._waiting)
        for position, job in enumerate(waiting, start=1):
            _notify(job.listener.on_state, RequestState.QUEUED, position)
        return self._running

    def _run(self, job: _Job) -> tuple[Callable[..., None], object]:
        """Serve a request; return the callback that tells of its end, and its argument."""
        _notify(job.listener.on_state, RequestState.PREFILL, 0)
        state = RequestState.PREFILL
        try:
            for chunk in self._generate(job.request):
                if chunk.final:
                    last = chunk
                    continue
                if state != RequestState.DECODE:
                    state = RequestState.DECODE
                    _notify(job.listener.on_state, state, 0)
                _notify(job.listener.on_chunk, chunk)
                self._end_overdue()
            return job.listener.on_chunk, last
        except Exception as error:
            foreseen = isinstance(error, TinychatError)
            _LOGGER.log(logging.WARNING if foreseen else logging.ERROR, 'request %s: %s',
                        job.request.request_id, error, exc_info=not foreseen)
            return job.listener.on_error, error

    def _end_overdue(self) -> None:
        """End requests whose deadline came while they waited."""
        with self._changed:
            overdue = self._take_waiting(lambda job: job.request.interrupted())
        for job in overdue:
            _end_unserved(job, job.request.interruption())

    def _take_waiting(self, meant: Callable[[_Job], bool]) -> list[_Job]:
        taken = [job for job in self._waiting if meant(job)]
        for job in taken:
            self._waiting.remove(job)
        return taken


def _end_unserved(job: _Job, reason: FinishReason) -> None:
    result = Result(text='', token_ids=(), finish_reason=reason, prompt_tokens=0)
    _notify(job.listener.on_chunk, Chunk('', (), result))


def _notify(callback: Callable[..., None], *args: object) -> None:
    """Call a listener; one that fails must not take the requests of others down."""
    try:
        callback(*args)
    except Exception:
        _LOGGER.exception('a listener failed')
