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
"""Over DDS: what is more urgent pauses what is less, and what is obsolete gives way."""

from action_msgs.msg import GoalStatus
import pytest

from tinychat_msgs.action import Generate
from tinychat_msgs.msg import Prompt, Response

QUEUED, DECODE = Generate.Feedback.QUEUED, Generate.Feedback.DECODE


@pytest.mark.parametrize('sampling', [None, {'temperature': 1.2, 'seed': 7}])
def test_an_answer_that_was_paused_is_the_same_as_without(client, sampling):
    expected = client.ask('Once upon a time', max_new_tokens=700, sampling=sampling).text
    low = client.send_goal('Once upon a time', max_new_tokens=700, sampling=sampling)
    client.wait(lambda: len(low.chunks) >= 2)
    for i in range(3):
        high = client.ask(f'There was a dog {i}', max_new_tokens=20, priority=200,
                          policy=Prompt.PREEMPT)
        assert low.outcome is None, 'it had been answered before'
        high.check()
        assert high.response.completion_tokens == 20
    client.wait(lambda: low.whole)
    assert low.status == GoalStatus.STATUS_SUCCEEDED
    assert low.result.text == expected
    # The second and the third may find it still paused.
    assert low.states[-3:] == [DECODE, QUEUED, DECODE]
    assert [chunk.seq for chunk in low.chunks] == list(range(len(low.chunks)))


def test_equally_urgent_requests_do_not_preempt_each_other(client):
    low = client.send_goal('Once upon a time', max_new_tokens=150, priority=7)
    client.wait(lambda: low.chunks)
    high = client.ask('There was a dog', max_new_tokens=5, priority=7, policy=Prompt.PREEMPT)
    assert low.outcome is not None
    high.check()


def test_the_most_urgent_of_those_that_wait_is_next(client):
    running = client.send('Once upon a time', max_new_tokens=200)
    client.wait_for_chunks(running)
    ids = [client.send('The cat', max_new_tokens=3, priority=priority)
           for priority in (0, 90, 200, 90)]
    client.wait(lambda: all(client.answer(name).whole for name in ids))
    order = [response.request_id for response in client.received['response']
             if response.request_id in ids]
    assert order == [ids[2], ids[1], ids[3], ids[0]]


def test_what_is_replaced_ends_and_says_so(client):
    other = client.send('The cat', max_new_tokens=400, conversation_id='other')
    running = client.send('Once upon a time', max_new_tokens=2000, conversation_id='talk')
    client.wait_for_chunks(running)
    waiting = client.send('The dog', max_new_tokens=5, conversation_id='talk')
    new = client.ask('There was a bird', max_new_tokens=5, conversation_id='talk',
                     policy=Prompt.REPLACE)
    client.wait(lambda: all(client.answer(name).whole for name in (running, waiting, other)))
    for name in (running, waiting):
        client.answer(name).check()
        assert client.answer(name).response.finish_reason == Response.PREEMPTED
        assert client.answer(name).response.error_code == Response.NO_ERROR
    assert client.answer(other).response.finish_reason == Response.LENGTH
    assert new.response.finish_reason == Response.LENGTH


def test_a_goal_that_is_replaced_is_aborted_with_what_was_said(client):
    goal = client.send_goal('Once upon a time', max_new_tokens=2000, conversation_id='talk')
    client.wait(lambda: goal.chunks)
    client.ask('There was a bird', max_new_tokens=5, conversation_id='talk',
               policy=Prompt.REPLACE)
    client.wait(lambda: goal.whole)
    assert goal.status == GoalStatus.STATUS_ABORTED
    assert goal.result.finish_reason == Response.PREEMPTED
    assert goal.result.text


def test_a_paused_answer_can_be_canceled(client):
    low = client.send_goal('Once upon a time', max_new_tokens=2000)
    client.wait(lambda: low.chunks)
    high = client.send('There was a dog', max_new_tokens=400, priority=9, policy=Prompt.PREEMPT)
    client.wait_for_chunks(high)
    canceled = low.handle.cancel_goal_async()
    client.wait(lambda: low.whole)
    assert low.status == GoalStatus.STATUS_CANCELED and canceled.done()
    assert not client.answer(high).responses, 'it ended before the one that paused it'
    client.wait(lambda: client.answer(high).whole)
    client.answer(high).check()
