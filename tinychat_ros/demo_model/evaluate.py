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
"""Exact match of a checkpoint's answers with the replies of the corpus."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

from tinychat_ros.demo_model.corpus import Dialogue
from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import Message, Request
from tinychat_ros.engine.sampler import SamplingParams

# The longest reply of the corpus, a story, has fewer tokens.
MAX_NEW_TOKENS = 160


@dataclass
class Score:
    """How many replies were exactly right, by category of the request."""

    right: Counter[str] = field(default_factory=Counter)
    asked: Counter[str] = field(default_factory=Counter)

    @property
    def exact_match(self) -> float:
        """Return the part of all replies that were exactly right, 0 to 1."""
        return self.right.total() / self.asked.total()

    def table(self) -> str:
        """Return one line per category."""
        return '\n'.join(f'  {category:18} {self.right[category]:4} of {asked}'
                         for category, asked in sorted(self.asked.items()))


def answer(engine: Engine, messages: tuple[Message, ...]) -> str:
    """Return the whole greedy answer to a conversation."""
    request = Request(messages=messages, sampling=SamplingParams(temperature=0.0),
                      max_new_tokens=MAX_NEW_TOKENS)
    *_, last = engine.generate(request)
    return last.result.text


def score(engine: Engine, dialogues: Iterable[Dialogue]) -> Score:
    """Ask for the last reply of each dialogue and compare it with the corpus, byte for byte."""
    result = Score()
    for dialogue in dialogues:
        *history, expected = dialogue.messages
        result.asked[dialogue.category] += 1
        result.right[dialogue.category] += answer(engine, tuple(history)) == expected.content
    return result
