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
"""The corpus follows from its seed, answers alike what is asked alike, and keeps its split."""

import pytest
from tinychat_ros.demo_model import corpus, phrases
from tinychat_ros.demo_model.corpus import held_out_dialogues, is_held_out, training_dialogues

COUNT = 6000


@pytest.fixture(scope='module')
def training():
    return training_dialogues(seed=1, count=COUNT)


@pytest.fixture(scope='module')
def held_out():
    return held_out_dialogues(seed=2, count=COUNT // 5)


def said(dialogues, role):
    """Return everything that was said by one side."""
    return [m.content for dialogue in dialogues for m in dialogue.messages if m.role == role]


def test_a_seed_always_draws_the_same_dialogues_and_another_seed_others():
    first, again, other = (training_dialogues(seed, 200) for seed in (5, 5, 6))
    assert first == again
    assert len({dialogue.messages for dialogue in first + other}) > 350


def test_no_combination_of_the_test_occurs_in_training(training, held_out):
    trained = {key for dialogue in training for key in dialogue.keys if key}
    assert trained.isdisjoint(dialogue.keys[-1] for dialogue in held_out)
    # The history before the last request is of the kind that was trained on.
    assert not any(is_held_out(key) for dialogue in held_out for key in dialogue.keys[:-1])


def test_the_held_out_part_is_as_large_as_it_says():
    share = sum(is_held_out(f'go to the {{place}}|room {i}') for i in range(20000)) / 20000
    assert share == pytest.approx(corpus.HELD_OUT_SHARE, abs=0.01)


def test_the_same_talk_always_has_the_same_reply(training, held_out):
    known = {}
    for dialogue in training + held_out:
        talk = ()
        for message in dialogue.messages:
            if message.role == 'assistant':
                assert known.setdefault(talk, message.content) == message.content, talk
            if message.role != 'system':
                talk += (message.content.lower().rstrip('.?!'),)
    assert len(known) > COUNT


def test_every_reply_of_the_tables_is_reached(training):
    tables = [value for value in vars(phrases).values()
              if isinstance(value, tuple) and value and len(value[0]) == 3
              and isinstance(value[0][1], tuple)]
    fixed = {reply for table in tables for _, _, reply in table if '{' not in reply}
    assert len(tables) == 9 and len(fixed) > 30
    assert fixed <= set(said(training, 'assistant'))


def test_nothing_is_left_to_fill_in(training):
    for text in said(training, 'user') + said(training, 'assistant'):
        assert not set('{}|()') & set(text) and text == ' '.join(text.split()), text


def test_talks_are_short_and_long_with_and_without_a_system_prompt(training):
    assert {1, 2, 3, 12} <= {len(dialogue.keys) for dialogue in training}
    systems = sum(dialogue.messages[0].role == 'system' for dialogue in training)
    assert 0.1 < systems / COUNT < 0.3


def test_a_pointer_takes_the_thing_that_was_named_before(training):
    pointed = 0
    for dialogue in training:
        talk = [m.content for m in dialogue.messages if m.role == 'assistant']
        for before, reply, key in zip(talk, talk[1:], dialogue.keys[1:]):
            if before.startswith('I will bring you ') and '{it} to {person}' in key:
                thing = before.removeprefix('I will bring you ').rstrip('.')
                assert reply.startswith(f'I will bring {thing} to '), (before, reply)
                pointed += 1
    assert pointed >= 5
