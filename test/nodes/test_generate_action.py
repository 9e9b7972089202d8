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
"""The action: goals are watched while they are answered, and canceled at any time."""

import time

from action_msgs.msg import GoalStatus

from tinychat_msgs.action import Generate
from tinychat_msgs.msg import Response, Status

QUEUED, PREFILL, DECODE = (
    Generate.Feedback.QUEUED, Generate.Feedback.PREFILL, Generate.Feedback.DECODE)


def check(goal):
    """Assert that feedback and result of a goal say the same."""
    assert [chunk.seq for chunk in goal.chunks] == list(range(len(goal.chunks)))
    assert [chunk.final for chunk in goal.chunks] == [False] * (len(goal.chunks) - 1) + [True]
    assert ''.join(chunk.text for chunk in goal.chunks).encode() == goal.result.text.encode()
    assert sum(len(c.token_ids) for c in goal.chunks) == goal.result.completion_tokens


def cancel(client, goal):
    """Ask to cancel a goal; return the seconds until its result came."""
    begin = time.monotonic()
    accepted = goal.handle.cancel_goal_async()
    client.wait(lambda: goal.outcome is not None)
    seconds = time.monotonic() - begin
    client.wait(accepted.done)
    assert len(accepted.result().goals_canceling) == 1
    return seconds


def test_a_goal_is_answered_with_feedback(client):
    heard = []
    goal = client.send_goal('Once upon a time', heard.append, max_new_tokens=150)
    client.wait(lambda: goal.whole)
    check(goal)
    assert [message.feedback for message in heard] == goal.feedback[:len(heard)] != []
    assert goal.status == GoalStatus.STATUS_SUCCEEDED
    assert goal.states == [QUEUED, PREFILL, DECODE]
    assert goal.result.finish_reason == Response.LENGTH
    assert goal.result.completion_tokens == 150
    assert goal.result.prompt_tokens > 1
    assert 0 < goal.result.time_to_first_token < goal.result.duration


def test_the_topics_say_what_the_feedback_says(client):
    goal = client.send_goal('Once upon a time', request_id='goal', max_new_tokens=80)
    client.wait(lambda: goal.whole and client.answer('goal').whole)
    answer = client.answer('goal')
    answer.check()
    assert answer.chunks == goal.chunks
    assert answer.response.text == goal.result.text
    assert answer.response.duration == goal.result.duration


def test_every_token_may_come_as_feedback_of_its_own(start_node, connect, story_model):
    client = connect(start_node(model=story_model, **{'stream.flush_ms': 0}))
    goal = client.send_goal('Once upon a time', max_new_tokens=400)
    client.wait(lambda: goal.whole)
    check(goal)
    assert len(goal.chunks) > 380


def test_a_goal_canceled_in_mid_answer_ends_within_a_token(client):
    goal = client.send_goal('Once upon a time', max_new_tokens=2000)
    client.wait(lambda: len(goal.chunks) >= 3)
    seconds = cancel(client, goal)
    client.wait(lambda: goal.whole)
    print(f'\ncancel to result: {seconds * 1e3:.1f} ms')
    check(goal)
    assert goal.status == GoalStatus.STATUS_CANCELED
    assert goal.result.finish_reason == Response.CANCELED
    assert goal.result.error_code == Response.NO_ERROR
    assert goal.result.completion_tokens < 1500
    assert seconds < 1.0
    client.ask('The end', max_new_tokens=10).check()


def test_a_waiting_goal_knows_its_place_and_moves_up(client):
    first = client.send_goal('Once upon a time', max_new_tokens=1500)
    client.wait(lambda: first.chunks)
    second = client.send_goal('The cat', max_new_tokens=100)
    third = client.send_goal('The dog', max_new_tokens=20)
    client.wait(lambda: first.whole and second.whole and third.whole)

    def places(goal):
        return [f.queue_position for f in goal.feedback if f.state == QUEUED]

    assert places(first) == [0]
    assert places(second) == [1]
    assert places(third) == [2, 1]
    for goal in (first, second, third):
        check(goal)
        assert goal.status == GoalStatus.STATUS_SUCCEEDED
    assert first.result.duration < second.result.duration < third.result.duration


def test_a_waiting_goal_is_canceled_without_being_served(client):
    running = client.send_goal('Once upon a time', max_new_tokens=2000)
    client.wait(lambda: running.chunks)
    waiting = client.send_goal('The cat', max_new_tokens=100)
    cancel(client, waiting)
    client.wait(lambda: waiting.whole)
    assert running.outcome is None
    assert waiting.status == GoalStatus.STATUS_CANCELED
    assert waiting.result.finish_reason == Response.CANCELED
    assert (waiting.result.text, waiting.result.completion_tokens) == ('', 0)
    assert PREFILL not in waiting.states
    cancel(client, running)
    client.wait(lambda: running.whole)
    check(running)


def test_goals_of_several_clients_are_all_answered(client, connect, story_node):
    clients = [client, connect(story_node), connect(story_node)]
    goals = [(each, each.send_goal(f'There was a {animal}', max_new_tokens=60))
             for animal in ('cat', 'dog', 'bird') for each in clients]
    for each, goal in goals:
        each.wait(lambda goal=goal: goal.whole)
        check(goal)
        assert goal.status == GoalStatus.STATUS_SUCCEEDED
    texts = [goal.result.text for _, goal in goals]
    assert texts[0:3] == [texts[0]] * 3 and texts[3:6] == [texts[3]] * 3
    assert len({texts[0], texts[3], texts[6]}) == 3


def test_a_goal_that_cannot_be_served_is_aborted_with_a_code(client):
    goal = client.send_goal('', max_new_tokens=10)
    client.wait(lambda: goal.whole)
    assert goal.status == GoalStatus.STATUS_ABORTED
    assert goal.result.finish_reason == Response.ERROR
    assert goal.result.error_code == Response.INVALID_REQUEST
    assert 'text: expected a prompt, got an empty one' in goal.result.error_msg


def test_a_goal_with_an_id_in_use_is_aborted_and_the_first_goes_on(client):
    first = client.send_goal('Once upon a time', request_id='twice', max_new_tokens=1500)
    client.wait(lambda: first.chunks)
    second = client.send_goal('The cat', request_id='twice')
    client.wait(lambda: second.outcome is not None)
    assert second.status == GoalStatus.STATUS_ABORTED
    assert second.result.error_code == Response.INVALID_REQUEST
    client.wait(lambda: first.whole)
    check(first)
    assert first.status == GoalStatus.STATUS_SUCCEEDED


def test_a_goal_ended_by_its_deadline_has_a_result(client):
    goal = client.send_goal('Once upon a time', max_new_tokens=2000,
                            deadline=client.time_from_now(0.5))
    client.wait(lambda: goal.whole)
    check(goal)
    assert goal.status == GoalStatus.STATUS_SUCCEEDED
    assert goal.result.finish_reason == Response.DEADLINE


def test_a_client_that_leaves_does_not_take_its_goal_down(client, connect, story_node):
    leaving = connect(story_node)
    leaving.send_goal('Once upon a time', request_id='left alone', max_new_tokens=300)
    leaving.close()
    client.wait(lambda: client.answer('left alone').whole)
    client.answer('left alone').check()
    assert client.answer('left alone').response.finish_reason == Response.LENGTH
    client.wait(lambda: client.status().state == Status.IDLE)
