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
"""Priorities, policies and ageing, with a fake engine and a clock that the test moves."""

import threading
import time

import pytest

from tinychat_ros.engine.request import Chunk, FinishReason, Policy, Request, Result
from tinychat_ros.engine.scheduler import RequestState, Scheduler
from tinychat_ros.errors import QueueFullError

PATIENCE_S = 30
STOP, CANCELED, PREEMPTED = FinishReason.STOP, FinishReason.CANCELED, FinishReason.PREEMPTED


class Engine:
    """Says a word of a request each time that it is told to, and keeps who said what."""

    def __init__(self):
        self.said = []
        self._steps = threading.Semaphore(0)
        self._done = threading.Semaphore(0)

    def generate(self, request):
        words = request.text.split()
        for number, word in enumerate(words):
            if request.interrupted():
                break
            assert self._steps.acquire(timeout=PATIENCE_S)
            self.said.append(word)
            self._done.release()
            yield Chunk(word, (number,))
        yield Chunk('', (), Result('', (), request.interruption() or STOP, 1))

    def step(self, count=1):
        """Let so many words be said."""
        for _ in range(count):
            self._steps.release()
            assert self._done.acquire(timeout=PATIENCE_S)


class Ear:
    """Hears of one request."""

    def __init__(self):
        self.text, self.states, self.reason = '', [], None
        self.ended = threading.Event()

    def on_state(self, state, queue_position):
        self.states.append((state, queue_position))

    def on_chunk(self, chunk):
        self.text += chunk.text
        if chunk.final:
            self.reason = chunk.result.finish_reason
            self.ended.set()

    def on_error(self, error):
        raise error

    def wait(self):
        """Return the reason of the end."""
        assert self.ended.wait(PATIENCE_S)
        return self.reason


class Bench:
    """A scheduler with its engine and its clock."""

    def __init__(self, **options):
        self.now = 0.0
        self.engine = Engine()
        self.scheduler = Scheduler(self.engine.generate, clock=lambda: self.now, **{
            'capacity': 5, 'max_paused': 1, **options})

    def submit(self, text, **fields):
        ear = Ear()
        self.scheduler.submit(Request(text, request_id=text.split()[0], **fields), ear)
        return ear

    def until(self, condition):
        """Wait for what the scheduler's thread will do."""
        end = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end
            time.sleep(0.001)

    def run(self, words):
        """Say so many words and return all that was said in order."""
        self.engine.step(words)
        return ' '.join(self.engine.said)


@pytest.fixture
def bench():
    made = []

    def make(**options):
        made.append(Bench(**options))
        return made[-1]

    yield make
    for each in made:
        each.engine._steps.release(1000)
        each.scheduler.close()


def begin(bench, text, **fields):
    """Submit a request and let it say its first word."""
    ear = bench.submit(text, **fields)
    bench.engine.step()
    return ear


def test_the_most_urgent_waits_the_least_and_equals_come_in_order(bench):
    bench = bench()
    begin(bench, 'a1 a2')
    for text, priority in (('b', 0), ('c', 7), ('d', 7), ('e', 255)):
        last = bench.submit(text, priority=priority)
    assert last.states == [(RequestState.QUEUED, 1)]
    assert bench.run(5) == 'a1 a2 e c d b'


def test_what_waits_becomes_more_urgent(bench):
    bench = bench(ageing_s=2.0)
    begin(bench, 'a1 a2')
    bench.submit('old', priority=0)
    bench.now = 9.9
    bench.submit('fresh', priority=4)
    assert bench.run(3) == 'a1 a2 old fresh'


def test_a_less_urgent_answer_is_paused_and_goes_on_where_it_was(bench):
    bench = bench()
    low = begin(bench, 'a1 a2 a3 a4')
    high = bench.submit('b1 b2', priority=1, policy=Policy.PREEMPT)
    bench.engine.step(2)
    assert bench.scheduler.running.request_id == 'b1'
    assert bench.run(3) == 'a1 a2 b1 b2 a3 a4'
    assert (low.wait(), low.text, high.wait(), high.text) == (STOP, 'a1a2a3a4', STOP, 'b1b2')
    assert bench.scheduler.preemptions == 1
    states = [state for state, _ in low.states]
    assert states[-3:] == [RequestState.DECODE, RequestState.QUEUED, RequestState.DECODE]


@pytest.mark.parametrize('priority, policy', [
    (5, Policy.PREEMPT), (4, Policy.PREEMPT), (6, Policy.QUEUE), (6, Policy.REPLACE)])
def test_only_a_more_urgent_request_that_says_so_preempts(priority, policy, bench):
    bench = bench()
    begin(bench, 'a1 a2', priority=5)
    bench.submit('b', priority=priority, policy=policy)
    assert bench.run(2) == 'a1 a2 b'


def test_no_more_are_paused_than_slots_remain(bench):
    bench = bench(max_paused=1)
    begin(bench, 'a1 a2 a3', priority=1)
    bench.submit('b1 b2 b3', priority=2, policy=Policy.PREEMPT)
    bench.engine.step(2)
    bench.submit('c', priority=3, policy=Policy.PREEMPT)
    assert bench.run(4) == 'a1 a2 b1 b2 b3 c a3'


def test_an_answer_that_was_paused_again_and_again_comes_to_its_end(bench):
    bench = bench(ageing_s=1.0)
    low = begin(bench, ' '.join(f'a{i}' for i in range(9)))
    for i in range(4):
        bench.submit(f'b{i}', priority=5, policy=Policy.PREEMPT)
        bench.engine.step()
        if i < 3:
            bench.until(lambda: bench.scheduler.running.request_id == f'b{i}')
            bench.now += 2
            bench.engine.step()
            bench.until(lambda: bench.scheduler.running.request_id == 'a0')
    # Three times it waited two seconds, which makes it more urgent than the fourth.
    assert bench.run(5) == 'a0 a1 b0 a2 b1 a3 b2 a4 a5 a6 a7 a8 b3'
    assert (bench.scheduler.preemptions, low.wait()) == (3, STOP)


def test_nothing_of_a_conversation_is_served_while_its_answer_is_paused(bench):
    bench = bench()
    begin(bench, 'a1 a2 a3', conversation_id='x')
    bench.submit('b1', priority=9, policy=Policy.PREEMPT, conversation_id='y')
    bench.submit('later', priority=5, conversation_id='x')
    assert bench.run(4) == 'a1 a2 b1 a3 later'


def test_a_more_urgent_word_in_its_own_conversation_ends_the_older_answer(bench):
    bench = bench()
    old = begin(bench, 'a1 a2 a3', conversation_id='x')
    new = bench.submit('b', priority=1, policy=Policy.PREEMPT, conversation_id='x')
    assert bench.run(2) == 'a1 a2 b'
    assert (old.wait(), new.wait()) == (PREEMPTED, STOP)


def test_replace_ends_all_of_its_conversation_and_nothing_else(bench):
    bench = bench(capacity=4)
    running = begin(bench, 'a1 a2 a3', conversation_id='x')
    waiting = bench.submit('b', conversation_id='x')
    other, nameless = bench.submit('c', conversation_id='y'), bench.submit('d')
    new = bench.submit('e', conversation_id='x', policy=Policy.REPLACE)
    assert waiting.wait() == PREEMPTED
    assert bench.run(4) == 'a1 a2 c d e'
    assert [ear.wait() for ear in (running, other, nameless, new)] == [PREEMPTED] + 3 * [STOP]


def test_replace_takes_the_places_of_what_it_replaces(bench):
    bench = bench(capacity=2)
    begin(bench, 'a1 a2')
    bench.submit('b', conversation_id='x')
    bench.submit('c', conversation_id='y')
    with pytest.raises(QueueFullError):
        bench.submit('d', conversation_id='z', policy=Policy.REPLACE)
    bench.submit('e', conversation_id='y', policy=Policy.REPLACE)
    assert bench.run(3) == 'a1 a2 b e'


def test_a_paused_answer_can_be_canceled_while_another_is_served(bench):
    bench = bench()
    low = begin(bench, 'a1 a2 a3')
    high = bench.submit('b1 b2 b3', priority=1, policy=Policy.PREEMPT)
    bench.engine.step(2)
    assert bench.scheduler.cancel('a1') == 1
    bench.engine._steps.release()
    assert low.wait() == CANCELED
    assert not high.ended.is_set()
    bench.engine._steps.release(3)
    assert high.wait() == STOP


def test_closing_ends_what_runs_what_waits_and_what_is_paused(bench):
    bench = bench()
    ears = [begin(bench, 'a1 a2 a3'), bench.submit('b1 b2', priority=1, policy=Policy.PREEMPT),
            bench.submit('c')]
    bench.engine.step(2)
    bench.engine._steps.release(9)
    bench.scheduler.close()
    assert [ear.reason for ear in ears] == 3 * [CANCELED]
    with pytest.raises(QueueFullError):
        bench.submit('d')
