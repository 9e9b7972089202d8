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
"""Prompts become requests with every default filled in, or are refused."""

import time

import pytest

from tinychat_msgs.msg import Prompt, SamplingParams as SamplingMessage
from tinychat_ros.engine.request import Policy
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.errors import InvalidRequestError
from tinychat_ros.nodes.messages import to_request

CHECKPOINT = SamplingParams(temperature=0.7, top_k=40, top_p=0.5)


def request(now=100.0, overrides=None, **fields):
    """Return the request of a prompt, with the defaults of a node."""
    return to_request(Prompt(**{'text': 'Hello', **fields}), 'made', 256, overrides or {},
                      CHECKPOINT, now)


def test_what_a_prompt_leaves_open_is_filled_in():
    made = request()
    assert (made.request_id, made.max_new_tokens) == ('made', 256)
    assert made.sampling == CHECKPOINT
    assert made.deadline is None
    given = request(request_id='mine', max_new_tokens=7)
    assert (given.request_id, given.max_new_tokens) == ('mine', 7)


def test_the_prompt_comes_before_the_node_and_the_node_before_the_checkpoint():
    made = request(overrides={'temperature': 1.5, 'top_k': 3},
                   sampling=SamplingMessage(temperature=0.25, seed=5))
    assert made.sampling == SamplingParams(temperature=0.25, top_k=3, top_p=0.5, seed=5)


def test_policies_have_the_numbers_of_the_messages():
    for policy in Policy:
        assert getattr(Prompt, policy.name) == policy
        assert request(policy=policy, priority=255).policy is policy


def test_a_deadline_is_moved_to_the_monotonic_clock():
    prompt = Prompt().deadline
    prompt.sec, prompt.nanosec = 102, 500000000
    begin = time.monotonic()
    made = request(now=100.0, deadline=prompt)
    assert begin + 2.5 <= made.deadline <= time.monotonic() + 2.5


@pytest.mark.parametrize('fields, message', [
    ({'policy': 4}, 'policy: expected 0 to 3'), ({'max_new_tokens': -1}, 'max_new_tokens'),
    ({'text': 'half of a \ud83e'}, 'text: expected valid Unicode'),
    ({'sampling': SamplingMessage(min_p=-3.0)}, 'sampling.min_p')])
def test_what_cannot_be_served_is_refused_by_name(fields, message):
    with pytest.raises(InvalidRequestError, match=message):
        request(**fields)
