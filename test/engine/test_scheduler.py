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
"""The scheduler with a fake engine: order, bounds, ends, and nothing that blocks it."""

import threading
import time

import pytest

from tinychat_ros.engine.request import Chunk, FinishReason, Policy, Request, Result
from tinychat_ros.engine.scheduler import RequestState, Scheduler
from tinychat_ros.errors import DuplicateRequestError, QueueFullError

PATIENCE_S = 30


class FakeEngine:
    """
    Answers with the request's own text, word by word.

    :param held: until it is set, an answer that has begun goes on for ever.
    """

    def __init__(self):
        self.held = threading.Event()
        self.begun = []

    def generate(self, request):
        self.begun.append(request.request_id)
        words = []
        for word in request.text.split():
            if word == 'fault':
                raise ZeroDivisionError('the engine has a fault')
            words.append(word)
            yield Chunk(word, (len(words),))
        while not self.held.is_set() and request.interruption() == FinishReason.NONE:
            time.sleep(0.001)
            yield Chunk('', ())
        reason = request.interruption() or FinishReason.STOP
        yield Chunk('', (), Result(''.join(words), tuple(range(len(words))), reason, 1))


class Ear:
    """Hears of one request, and keeps it."""

    def __init__(self, log=None):
        self.states, self.chunks, self.errors = [], [], []
        self.ended = threading.Event()
        self._log = log

    def on_state(self, state, queue_position):
        self.states.append((state, queue_position))

    def on_chunk(self, chunk):
        self.chunks.append(chunk)
        if chunk.final:
            self._end()

    def on_error(self, error):
        self.errors.append(error)
        self._end()

    def _end(self):
        if self._log is not None:
            self._log.append(self)
        self.ended.set()

    @property
    def reason(self):
        """Wait for the end and return its reason."""
        assert self.ended.wait(PATIENCE_S)
        return self.chunks[-1].result.finish_reason


class Deaf(Ear):
    """Fails at whatever it hears."""

    def on_state(self, state, queue_position):
        raise RuntimeError('state')

    def on_chunk(self, chunk):
        super().on_chunk(chunk)
        raise RuntimeError('chunk')

    def on_error(self, error):
        super().on_error(error)
        raise RuntimeError('error')


@pytest.fixture
def engine():
    return FakeEngine()


@pytest.fixture
def scheduler(engine):
    scheduler = Scheduler(engine.generate, capacity=3)
    yield scheduler
    scheduler.close()


def submit(scheduler, name, ear=None, **fields):
    """Submit a request by its id; return what hears of it."""
    ear = ear or Ear()
    scheduler.submit(Request(**{'text': 'a b', 'request_id': name, **fields}), ear)
    return ear


def until(condition):
    """Wait for what another thread does."""
    give_up = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < give_up
        time.sleep(0.001)


def begin(scheduler, name='running', **fields):
    """Submit a request and wait until its answer has begun."""
    ear = submit(scheduler, name, **fields)
    until(lambda: ear.chunks)
    return ear


def test_requests_are_served_in_the_order_in_which_they_came(scheduler, engine):
    ended = []
    first = submit(scheduler, 'first', Ear(ended))
    until(lambda: first.chunks)
    others = [submit(scheduler, name, Ear(ended)) for name in ('b', 'a', 'c')]
    engine.held.set()
    assert [ear.reason for ear in (first, *others)] == [FinishReason.STOP] * 4
    assert engine.begun == ['first', 'b', 'a', 'c']
    assert ended == [first, *others]


def test_a_request_hears_its_place_its_states_and_its_chunks(scheduler, engine):
    first = begin(scheduler)
    second, third = submit(scheduler, 'second'), submit(scheduler, 'third')
    assert scheduler.running.request_id == 'running'
    assert scheduler.queue_length == 2
    engine.held.set()
    assert third.reason == FinishReason.STOP
    served = [(RequestState.PREFILL, 0), (RequestState.DECODE, 0)]
    assert first.states == [(RequestState.QUEUED, 0), *served]
    assert second.states == [(RequestState.QUEUED, 1), *served]
    assert third.states == [(RequestState.QUEUED, 2), (RequestState.QUEUED, 1), *served]
    assert ''.join(chunk.text for chunk in third.chunks) == 'ab'
    assert scheduler.queue_length == 0


def test_no_more_wait_than_may(scheduler, engine):
    begin(scheduler)
    for name in 'abc':
        submit(scheduler, name)
    for refuses in (scheduler.check, lambda request: scheduler.submit(request, Ear())):
        with pytest.raises(QueueFullError, match='expected at most 3 waiting requests'):
            refuses(Request('d', request_id='d'))
    scheduler.cancel(request_id='b')
    scheduler.check(Request('d', request_id='d'))
    submit(scheduler, 'd')


def test_one_more_is_taken_while_nothing_is_served(engine):
    for _ in range(50):  # whether the thread has begun by then is up to the machine
        scheduler = Scheduler(engine.generate, capacity=2)
        for name in 'abc':
            submit(scheduler, name)
        with pytest.raises(QueueFullError):
            submit(scheduler, 'd')
        scheduler.close()


def test_who_will_not_wait_is_refused(scheduler, engine):
    ear = begin(scheduler)
    with pytest.raises(QueueFullError, match='expected an idle engine, got 1 requests'):
        submit(scheduler, 'impatient', policy=Policy.REJECT_IF_BUSY)
    engine.held.set()
    assert ear.reason == FinishReason.STOP


def test_an_id_in_use_is_refused_while_it_runs_and_while_it_waits(scheduler, engine):
    running, waiting = begin(scheduler), submit(scheduler, 'waiting')
    for name in ('running', 'waiting'):
        with pytest.raises(DuplicateRequestError, match=f"got '{name}'"):
            submit(scheduler, name)
    engine.held.set()
    assert running.reason == waiting.reason == FinishReason.STOP
    assert submit(scheduler, 'running').reason == FinishReason.STOP


def test_who_hears_the_end_finds_the_engine_idle(scheduler, engine):
    class Next(Ear):
        def on_chunk(self, chunk):
            super().on_chunk(chunk)
            if chunk.final:
                request = Request('c', request_id='next', policy=Policy.REJECT_IF_BUSY)
                scheduler.submit(request, following)

    following = Ear()
    engine.held.set()
    submit(scheduler, 'first', Next())
    assert following.reason == FinishReason.STOP


def test_the_running_request_is_canceled(scheduler):
    ear, waiting = begin(scheduler), submit(scheduler, 'waiting')
    assert scheduler.cancel(request_id='running') == 1
    assert ear.reason == FinishReason.CANCELED
    until(lambda: waiting.chunks)
    assert not waiting.ended.is_set()


def test_a_waiting_request_is_canceled_before_cancel_returns(scheduler, engine):
    running, waiting = begin(scheduler), submit(scheduler, 'waiting')
    assert scheduler.cancel(request_id='waiting') == 1
    assert waiting.ended.is_set()
    assert waiting.reason == FinishReason.CANCELED
    assert [chunk.text for chunk in waiting.chunks] == ['']
    assert not running.ended.is_set()
    assert engine.begun == ['running']


def test_nobody_is_canceled_by_an_unknown_id(scheduler):
    ear = begin(scheduler)
    assert scheduler.cancel(request_id='nobody') == 0
    assert scheduler.cancel(request_id='running', conversation_id='other') == 0
    assert not ear.ended.is_set()


def test_a_conversation_is_canceled_wherever_it_stands(scheduler):
    running = begin(scheduler, conversation_id='a')
    other = submit(scheduler, 'other', conversation_id='b')
    waiting = submit(scheduler, 'waiting', conversation_id='a')
    assert scheduler.cancel(conversation_id='a') == 2
    assert running.reason == waiting.reason == FinishReason.CANCELED
    until(lambda: other.chunks)


def test_all_are_canceled_when_none_is_named(scheduler):
    ears = [begin(scheduler), submit(scheduler, 'b'), submit(scheduler, 'c')]
    assert scheduler.cancel() == 3
    assert [ear.reason for ear in ears] == [FinishReason.CANCELED] * 3
    assert scheduler.cancel() == 0


def test_closing_ends_all_with_a_result_and_stops_the_thread(scheduler):
    ears = [begin(scheduler), submit(scheduler, 'b'), submit(scheduler, 'c')]
    scheduler.close()
    assert all(ear.ended.is_set() for ear in ears)
    assert [ear.reason for ear in ears] == [FinishReason.CANCELED] * 3
    assert not scheduler._thread.is_alive()
    with pytest.raises(QueueFullError, match='it is closed'):
        submit(scheduler, 'late')
    scheduler.close()


def test_a_listener_may_close_the_scheduler(engine):
    class Closer(Ear):
        def on_chunk(self, chunk):
            if not chunk.final and not self.chunks:
                scheduler.close()
            super().on_chunk(chunk)

    scheduler = Scheduler(engine.generate, capacity=3)
    ear = submit(scheduler, 'a', Closer())
    assert ear.reason == FinishReason.CANCELED
    scheduler._thread.join(PATIENCE_S)
    assert not scheduler._thread.is_alive()


def test_a_deadline_counts_while_a_request_waits(scheduler):
    running = begin(scheduler)
    waiting = submit(scheduler, 'waiting', deadline=time.monotonic() + 0.02)
    assert waiting.reason == FinishReason.DEADLINE
    assert not running.ended.is_set()


def test_a_fault_of_the_engine_ends_its_request_and_no_other(scheduler, engine, caplog):
    faulty = submit(scheduler, 'faulty', text='a fault')
    assert faulty.ended.wait(PATIENCE_S)
    assert [type(error) for error in faulty.errors] == [ZeroDivisionError]
    assert [chunk.text for chunk in faulty.chunks] == ['a']
    engine.held.set()
    assert submit(scheduler, 'next').reason == FinishReason.STOP
    assert 'Traceback' in caplog.text and 'the engine has a fault' in caplog.text


def test_an_engine_that_forgets_the_last_chunk_is_a_fault():
    scheduler = Scheduler(lambda request: iter([Chunk('a', (1,))]), capacity=1)
    ear = submit(scheduler, 'a')
    assert ear.ended.wait(PATIENCE_S)
    assert len(ear.errors) == 1
    scheduler.close()


def test_a_listener_that_fails_takes_nobody_down(scheduler, engine):
    deaf = submit(scheduler, 'deaf', Deaf())
    until(lambda: deaf.chunks)
    also_deaf = submit(scheduler, 'also deaf', Deaf(), text='fault')
    waiting = submit(scheduler, 'waiting')
    canceled = submit(scheduler, 'canceled', Deaf())
    assert scheduler.cancel(request_id='canceled') == 1
    engine.held.set()
    assert waiting.reason == FinishReason.STOP
    assert deaf.ended.is_set() and also_deaf.ended.is_set() and canceled.ended.is_set()


def test_every_request_of_many_threads_ends_once():
    engine, ears = FakeEngine(), []
    engine.held.set()
    scheduler = Scheduler(engine.generate, capacity=10000)

    def client(number):
        for i in range(100):
            ears.append(submit(scheduler, f'{number} {i}'))
            if i % 3 == 0:
                scheduler.cancel(request_id=f'{number} {i}')

    threads = [threading.Thread(target=client, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ears) == 400
    assert {ear.reason for ear in ears} <= {FinishReason.STOP, FinishReason.CANCELED}
    scheduler.close()
    assert [sum(chunk.final for chunk in ear.chunks) for ear in ears] == [1] * 400
