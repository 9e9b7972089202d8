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
"""Requests that are recorded with the seeds of their answers give these answers again."""

from node_process import make_prompt
import pytest

SAMPLED = {'temperature': 0.9, 'top_p': 0.95}
STREAM = (
    ('Once upon a time', {'conversation_id': 'a', 'sampling': SAMPLED}),
    ('The cat', {'conversation_id': 'b', 'sampling': {**SAMPLED, 'seed': 7}}),
    ('Then', {'conversation_id': 'a', 'sampling': {**SAMPLED, 'seed': 0}}),
    ('A dog', {'sampling': SAMPLED}),
    ('And then', {'conversation_id': 'b', 'sampling': SAMPLED}),
    ('The end', {'conversation_id': 'a', 'sampling': {'temperature': 0.0}}),
    ('One day', {'conversation_id': 'b', 'sampling': SAMPLED}),
)


def tell(client, prompts):
    """Send prompts one after another; return their responses."""
    responses = []
    for prompt in prompts:
        client.request.publish(prompt)
        client.wait(lambda prompt=prompt: client.answer(prompt.request_id).whole)
        responses.append(client.answer(prompt.request_id).response)
    return responses


def prompts():
    return [make_prompt(text, max_new_tokens=40, **fields) for text, fields in STREAM]


@pytest.mark.parametrize('model', ['story', 'demo'])
def test_another_process_gives_the_same_answers_from_the_reported_seeds(
        start_node, connect, story_model, demo_model, model):
    path = {'story': story_model, 'demo': demo_model}[model]
    recorded = prompts()
    first = connect(start_node(model=path, max_seq_len=1024))
    responses = tell(first, recorded)
    seeds = [response.seed for response in responses]
    assert (seeds[1], seeds[2], seeds[5]) == (7, 0, -1)
    drawn = [seeds[i] for i in (0, 3, 4, 6)]
    assert len(set(drawn)) == 4 and min(drawn) >= 0
    others = [response.text for response in tell(first, prompts())]
    first.close()

    second = connect(start_node(model=path, max_seq_len=1024))
    for prompt, response in zip(recorded, responses):
        prompt.sampling.seed = response.seed
    again = tell(second, recorded)
    assert [response.seed for response in again] == seeds
    assert [response.text for response in again] == [response.text for response in responses]
    assert {r.model_hash for r in again} == {r.model_hash for r in responses} != {''}
    # Seeds that are drawn anew tell something else.
    assert others != [response.text for response in responses]


def test_the_result_of_an_action_reports_seed_and_model_too(client):
    goal = client.send_goal('Once', sampling=SAMPLED, max_new_tokens=30)
    client.wait(lambda: goal.whole and client.answer(goal.message.prompt.request_id).whole)
    response = client.answer(goal.message.prompt.request_id).response
    assert (goal.result.seed, goal.result.model_hash) == (response.seed, response.model_hash)
    again = client.ask('Once', sampling={**SAMPLED, 'seed': goal.result.seed}, max_new_tokens=30)
    assert again.text == goal.result.text


def test_a_request_that_is_refused_has_no_seed(client):
    response = client.ask('', sampling={**SAMPLED, 'seed': 7}).response
    assert response.seed == -1
    assert response.model_hash != ''
