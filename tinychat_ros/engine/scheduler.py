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
"""A bounded queue of requests in front of the engine, the most urgent first, on one thread."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from itertools import count
import logging
import threading
import time
from typing import Callable, Iterator, Optional, Protocol, Sequence

from tinychat_ros.engine.request import (
    Chunk, FinishReason, one_line, Policy, Request, Result)
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


@dataclass(eq=False)
class _Job:
    """
    A request in the scheduler's hands.

    :param number: counts the requests as they come.
    :param since: when it began to wait, None while it is served.
    :param waited: what it waited before that.
    :param chunks: the engine's answer, once it has begun.
    :param state: what is told of it while it is served.
    """

    request: Request
    listener: Listener
    number: int
    since: Optional[float]
    waited: float = 0.0
    chunks: Optional[Iterator[Chunk]] = None
    state: RequestState = RequestState.PREFILL

    @property
    def begun(self) -> bool:
        """Say whether the engine has seen it."""
        return self.since is None or self.chunks is not None


# A callback of a listener, and what it is called with.
_End = tuple[Callable[..., None], object]


class Scheduler:
    """
    Serves the most urgent request first, equally urgent ones in the order in which they came.

    A request that waits becomes more urgent by one step of its priority every ``ageing_s``, so
    that none waits for ever. What it does to the one that is served is its policy:

    - QUEUE waits.
    - PREEMPT pauses a less urgent one within a token; that goes on where it was when it is the
      most urgent again. Its slot of the KV cache is kept, so that no more are paused than slots
      remain. In its own conversation it ends the older request, which it makes obsolete.
    - REPLACE ends what is served or waits in its conversation, PREEMPTED, then waits.
    - REJECT_IF_BUSY is refused unless nothing is served or waits.

    :param generate: Engine.generate.
    :param capacity: requests that may wait, beside the one that is served and those paused.
    :param max_paused: answers that keep a slot while others are served.
    :param ageing_s: seconds.
    :param clock: in seconds.
    """

    def __init__(self, generate: Callable[[Request], Iterator[Chunk]], capacity: int,
                 max_paused: int = 0, ageing_s: float = 1.0,
                 clock: Callable[[], float] = time.monotonic) -> None:
        self._generate = generate
        self._capacity = capacity
        self._max_paused = max_paused
        self._ageing_s = ageing_s
        self._clock = clock
        self._waiting: list[_Job] = []
        self._paused: list[_Job] = []
        self._running: Optional[_Job] = None
        self._numbers = count()
        self._closed = False
        self.preemptions = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._serve, name='tinychat-decode', daemon=True)
        self._thread.start()

    @property
    def running(self) -> Optional[Request]:
        """Return the request that is being served."""
        job = self._running
        return job.request if job else None

    @property
    def begun(self) -> list[Request]:
        """Return the requests whose answers are under way, the one that is served first."""
        with self._changed:
            return [job.request for job in (self._running, *self._paused) if job]

    @property
    def queue_length(self) -> int:
        """Return how many requests wait, those that were paused too."""
        return len(self._waiting) + len(self._paused)

    def submit(self, request: Request, listener: Listener) -> None:
        """
        Take a request.

        :raises QueueFullError: no more may wait, the scheduler is closed, or it is busy and the
            policy is REJECT_IF_BUSY.
        :raises DuplicateRequestError: a request with this id is waiting or being served.
        """
        with self._changed:
            obsolete = self._obsolete(request)
            self._check(request, obsolete)
            job = _Job(request, listener, next(self._numbers), self._clock())
            self._waiting.append(job)
            _notify(listener.on_state, RequestState.QUEUED, self._position(job))
            if self._preemptor() is job:
                self._running.request.pause()
            self._changed.notify_all()
        self._end(obsolete, FinishReason.PREEMPTED)

    def check(self, request: Request) -> None:
        """Raise what :meth:`submit` would raise now, and take nothing."""
        with self._changed:
            self._check(request, self._obsolete(request))

    def check_id(self, request_id: str) -> None:
        """
        Refuse an id in use.

        :raises DuplicateRequestError: a request with this id is waiting or being served.
        """
        with self._changed:
            if any(job.request.request_id == request_id for job in self._jobs()):
                raise DuplicateRequestError(
                    f'request_id: expected a new one, got {request_id!r}, which is waiting or '
                    'being served')

    def cancel(self, request_id: str = '', conversation_id: str = '') -> int:
        """
        End requests: the one of an id, all of a conversation, or all when neither is given.

        :returns: how many there were.
        """
        with self._changed:
            jobs = [job for job in self._jobs()
                    if request_id in ('', job.request.request_id)
                    and conversation_id in ('', job.request.conversation_id)]
        self._end(jobs, FinishReason.CANCELED)
        return len(jobs)

    def close(self) -> None:
        """End every request with a result and stop; no listener is called after this returns."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self.cancel()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _check(self, request: Request, obsolete: Sequence[_Job]) -> None:
        jobs = [job for job in self._jobs() if job not in obsolete]
        if self._closed:
            raise QueueFullError('queue: expected an active scheduler, and it is closed')
        self.check_id(request.request_id)
        if request.policy == Policy.REJECT_IF_BUSY and jobs:
            raise QueueFullError(f'queue: expected an idle engine, got {len(jobs)} requests')
        if sum(job not in self._paused for job in jobs) > self._capacity:
            raise QueueFullError(
                f'queue: expected at most {self._capacity} waiting requests, got one more')

    def _obsolete(self, request: Request) -> list[_Job]:
        """Return what a new request ends in its own conversation."""
        if not request.conversation_id:
            return []
        same = [job for job in self._jobs()
                if job.request.conversation_id == request.conversation_id]
        if request.policy == Policy.REPLACE:
            return same
        return [job for job in same if request.policy == Policy.PREEMPT
                and job.begun and job.request.priority < request.priority]

    def _end(self, jobs: Sequence[_Job], reason: FinishReason) -> None:
        """End requests; those that have begun end in the scheduler's thread."""
        with self._changed:
            waiting = [job for job in jobs if job in self._waiting]
            for job in waiting:
                self._waiting.remove(job)
            begun = [job for job in jobs if job not in waiting]
            for job in begun:
                job.request.cancel(reason)
            if self._running and any(job in self._paused for job in begun):
                self._running.request.pause()  # A prefill is long, and they wait for its thread.
        for job in waiting:
            _end_unserved(job, reason)

    def _serve(self) -> None:
        while (job := self._next()) is not None:
            end = self._run(job, may_pause=True)
            if end is None:
                continue
            # Whoever hears the end may send the next request at once, and finds the engine idle.
            with self._changed:
                self._running = None
            _notify(*end)

    def _next(self) -> Optional[_Job]:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._paused or self._closed)
            if not self._waiting and not self._paused:
                return None
            job = min(self._startable(), key=self._rank)
            (self._paused if job in self._paused else self._waiting).remove(job)
            job.waited, job.since = self._waited(job), None
            self._running = job
            behind = sorted([*self._waiting, *self._paused], key=self._rank)
        for position, other in enumerate(behind, start=1):
            _notify(other.listener.on_state, RequestState.QUEUED, position)
        return job

    def _run(self, job: _Job, may_pause: bool) -> Optional[_End]:
        """Serve a request until it is paused, or return the callback that tells of its end."""
        job.request.resume()
        _notify(job.listener.on_state, job.state, 0)
        try:
            job.chunks = job.chunks or self._generate(job.request)
            for chunk in job.chunks:
                if chunk.final:
                    last = chunk
                    continue
                self._tell(job, chunk)
                # Before the look at those who wait: who pauses it is among them by then.
                job.request.resume()
                if self._waiting or self._paused:
                    self._end_interrupted()
                    if may_pause and self._pause(job):
                        return None
            return job.listener.on_chunk, last
        except Exception as error:
            foreseen = isinstance(error, TinychatError)
            _LOGGER.log(logging.WARNING if foreseen else logging.ERROR, 'request %s: %s',
                        job.request.request_id, one_line(error), exc_info=not foreseen)
            return job.listener.on_error, error

    def _tell(self, job: _Job, chunk: Chunk) -> None:
        if chunk.token_ids and job.state != RequestState.DECODE:
            job.state = RequestState.DECODE
            _notify(job.listener.on_state, job.state, 0)
        if chunk.token_ids or chunk.text:
            _notify(job.listener.on_chunk, chunk)

    def _pause(self, job: _Job) -> bool:
        """Pause the running request if another one preempts it."""
        with self._changed:
            if self._preemptor() is None:
                return False
            job.since = self._clock()
            self._paused.append(job)
            self._running = None
            self.preemptions += 1
            return True

    def _end_interrupted(self) -> None:
        """End those that were canceled, or whose deadline came, while they waited or paused."""
        with self._changed:
            overdue = [job for job in self._waiting if job.request.interrupted()]
            paused = [job for job in self._paused if job.request.interrupted()]
            for job in paused:
                self._paused.remove(job)
        for job in overdue:
            self._end([job], job.request.interruption())
        for job in paused:
            _notify(*self._run(job, may_pause=False))

    def _preemptor(self) -> Optional[_Job]:
        """Return the request for which the running one is to be paused."""
        if self._running is None or len(self._paused) >= self._max_paused:
            return None
        running = self._running
        found = [job for job in self._startable() if job.request.policy == Policy.PREEMPT
                 and not job.begun and self._urgency(job) > self._urgency(running)
                 and job.request.conversation_id not in _named(running)]
        return min(found, key=self._rank, default=None)

    def _startable(self) -> list[_Job]:
        """Return what can be served now: nothing in a conversation whose answer is paused."""
        taken = {name for job in self._paused for name in _named(job)}
        return [*self._paused,
                *(job for job in self._waiting if job.request.conversation_id not in taken)]

    def _jobs(self) -> list[_Job]:
        return [*self._waiting, *self._paused, *([self._running] if self._running else [])]

    def _position(self, job: _Job) -> int:
        ranked = sorted([*self._waiting, *self._paused], key=self._rank)
        return ranked.index(job) + (self._running is not None)

    def _rank(self, job: _Job) -> tuple[int, int]:
        return -self._urgency(job), job.number

    def _urgency(self, job: _Job) -> int:
        return job.request.priority + int(self._waited(job) / self._ageing_s)

    def _waited(self, job: _Job) -> float:
        return job.waited + (0.0 if job.since is None else self._clock() - job.since)


def _named(job: _Job) -> tuple[str, ...]:
    """Return the conversation of a request, if it has one."""
    return (job.request.conversation_id,) if job.request.conversation_id else ()


def _end_unserved(job: _Job, reason: FinishReason) -> None:
    result = Result(text='', token_ids=(), finish_reason=reason, prompt_tokens=0)
    _notify(job.listener.on_chunk, Chunk('', (), result))


def _notify(callback: Callable[..., None], *args: object) -> None:
    """Call a listener; one that fails must not take the requests of others down."""
    try:
        callback(*args)
    except Exception:
        _LOGGER.exception('a listener failed')
