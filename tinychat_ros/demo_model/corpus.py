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
"""
The corpus of the demo model: dialogues with a home robot, some combinations of slots held out.

A dialogue is drawn turn by turn from the tables in ``phrases.py`` and dressed with politeness,
casing and punctuation. Everything follows from the seed, and a reply from what was said before.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from random import Random
import re
from typing import Optional

from tinychat_ros.demo_model import phrases
from tinychat_ros.engine.request import Message

# Of all combinations of a request with its slots, this share is never trained on.
HELD_OUT_SHARE = 0.1

_CHOICE = re.compile(r'\(([^()]*)\)')
_SLOT = re.compile(r'\{(\w+)\}')
# Short talks for the most part, and some long ones, since the history of a talk is not cut.
_TURNS = (1, 1, 1, 2, 2, 2, 3, 3, 4, 6, 8, 12)
_ASKING = ('can you ', 'could you ', 'would you ', 'will you ')


@dataclass(frozen=True)
class Thing:
    """Something that the robot can carry; ``said`` by the person, ``name`` by the robot."""

    said: str
    name: str
    noun: str
    plural: bool

    def word(self, slot: str) -> str:
        """Return the form of 'it', 'is', 'one' or 'belongs' that agrees with the thing."""
        forms = {'it': ('it', 'them'), 'is': ('is', 'are'), 'one': ('one', 'ones'),
                 'belongs': ('belongs', 'belong')}
        return forms[slot][self.plural]


@dataclass
class State:
    """What a dialogue has named so far."""

    thing: Optional[Thing] = None
    place: Optional[str] = None
    offered: bool = False


@dataclass(frozen=True)
class Turn:
    """One request and its reply; ``key`` names the combination that it is, '' if it is none."""

    category: str
    request: str
    reply: str
    key: str


@dataclass(frozen=True)
class Dialogue:
    """
    Messages that end with a reply.

    :param category: of the last request.
    :param keys: the combination of each request.
    """

    messages: tuple[Message, ...]
    category: str
    keys: tuple[str, ...]


def training_dialogues(seed: int, count: int) -> list[Dialogue]:
    """Return dialogues without any held-out combination."""
    draw = Random(seed)
    return [_dialogue(draw, held_out=False) for _ in range(count)]


def held_out_dialogues(seed: int, count: int) -> list[Dialogue]:
    """Return dialogues whose last request, and only this, is a held-out combination."""
    draw = Random(seed)
    return [_dialogue(draw, held_out=True) for _ in range(count)]


def is_held_out(key: str) -> bool:
    """Say whether a combination is held out; the same on every machine and for every seed."""
    digest = int.from_bytes(sha256(key.encode()).digest()[:4], 'big')
    return key != '' and digest < HELD_OUT_SHARE * 2**32


def _dialogue(draw: Random, held_out: bool) -> Dialogue:
    messages, keys = [], []
    if draw.random() < 0.2:
        messages.append(Message('system', draw.choice(phrases.SYSTEM_PROMPTS)))
    state, turns = State(), draw.choice(_TURNS)
    for index in range(turns):
        turn = _turn(draw, state, held_out and index == turns - 1)
        messages += [Message('user', turn.request), Message('assistant', turn.reply)]
        keys.append(turn.key)
    return Dialogue(tuple(messages), turn.category, tuple(keys))


def _turn(draw: Random, state: State, held_out: bool) -> Turn:
    """Draw until the combination is on the wanted side of the split, then advance the state."""
    while True:
        after = State(state.thing, state.place)
        turn = _draw_turn(draw, after, offered=state.offered)
        if is_held_out(turn.key) == held_out:
            state.thing, state.place, state.offered = after.thing, after.place, after.offered
            return turn


def _draw_turn(draw: Random, state: State, offered: bool) -> Turn:
    tables = _tables(state, offered)
    table, polite = draw.choice(tables if draw.random() < 0.6 else tables[:2])
    weights = [_weight(category, reply) for category, _, reply in table]
    category, requests, reply = draw.choices(table, weights)[0]
    template = draw.choice(requests)
    template = _CHOICE.sub(lambda match: draw.choice(match.group(1).split('|')), template)
    slots = _fill_slots(draw, f'{template} {reply}', state)
    state.offered = category == 'find'
    if '{place}' in reply and not reply.endswith('?'):
        state.place = slots['place']
    elif category == 'home':
        state.place = None
    request, dressing = _dress(draw, template.format(**slots), polite)
    named = {name for name in _SLOT.findall(template) if name in _VALUES}
    # A request without slots has no combination but the one with its politeness, if it has any.
    parts = [slots[name] for name in sorted(named)] if named else [dressing] if dressing else []
    key = '|'.join([template, *parts]) if parts else ''
    return Turn(category, request, reply.format(**{**slots, 'thing': slots.get('name')}), key)


def _weight(category: str, reply: str) -> int:
    """Weigh what has more to learn than a fixed phrase: slots, and the world outside."""
    return 5 if category == 'unknown' else 3 if '{' in reply else 1


def _tables(state: State, offered: bool) -> list[tuple[tuple, bool]]:
    """Return (table, whether it can be made polite); those of every dialogue come first."""
    tables = [(phrases.COMMANDS, True), (phrases.STATEMENTS, False)]
    if offered:
        tables += [(phrases.AGREED, False)] * 3
    if state.thing:
        # To take up what was named is the hardest to learn.
        tables += [(phrases.ABOUT_THING, True)] * 3 + [(phrases.ABOUT_THING_STATEMENTS, False)]
    else:
        tables += [(phrases.WITHOUT_THING, True)]
    if state.place:
        tables += [(phrases.ABOUT_PLACE, True), (phrases.ABOUT_PLACE_STATEMENTS, False)]
    else:
        tables += [(phrases.WITHOUT_PLACE_STATEMENTS, False)]
    return tables


# Slots that are drawn from a table; the others follow from them or from the state.
_VALUES = {
    'thing': phrases.THINGS, 'place': phrases.PLACES, 'person': phrases.PEOPLE,
    'color': phrases.COLORS, 'heavy': phrases.HEAVY, 'impossible': phrases.IMPOSSIBLE,
    'topic': phrases.TOPICS, 'country': phrases.COUNTRIES, 'number': phrases.NUMBERS}


def _fill_slots(draw: Random, text: str, state: State) -> dict[str, str]:
    names = set(_SLOT.findall(text))
    slots = {name: draw.choice(_VALUES[name]) for name in sorted(names & set(_VALUES))}
    slots['last_place'] = state.place or ''
    slots['last'] = state.thing.name if state.thing else ''
    if 'color' in names:
        slots['noun'] = state.thing.noun
        state.thing = _colored(state.thing, slots['color'])
    elif 'thing' in names:
        state.thing = _draw_thing(draw)
        slots['thing'], slots['name'] = state.thing.said, state.thing.name
    thing = state.thing or Thing('', '', '', draw.random() < 0.2)
    return {**slots, **{word: thing.word(word) for word in ('it', 'is', 'one', 'belongs')}}


def _draw_thing(draw: Random) -> Thing:
    plural = draw.random() < 0.22
    noun = draw.choice(phrases.THINGS_PLURAL if plural else phrases.THINGS)
    full = f'{draw.choice(phrases.COLORS)} {noun}' if draw.random() < 0.4 else noun
    article = 'some' if plural else 'an' if full[0] in 'aeiou' else 'a'
    said, name = draw.choice((('the', 'the'), ('the', 'the'), ('my', 'your'), (article, 'the')))
    return Thing(f'{said} {full}', f'{name} {full}', noun, plural)


def _colored(thing: Thing, color: str) -> Thing:
    full = f'the {color} {thing.noun}'
    return Thing(full, full, thing.noun, thing.plural)


def _dress(draw: Random, text: str, polite: bool) -> tuple[str, str]:
    """Return the request as a person might type it, and what was put around it."""
    before, behind = draw.choice(phrases.POLITE) if polite else ('', '')
    call = draw.choice(phrases.CALLS) if polite or draw.random() < 0.2 else ''
    asks = before in _ASKING or text.endswith('?')
    text = f'{call}{before}{text.rstrip("?")}{behind}'
    casing = draw.random()
    if casing < 0.6:
        text = text[0].upper() + text[1:]
    elif casing < 0.8:
        text = text.lower()
    mark = draw.choice(('?', '?', '')) if asks else draw.choice(('.', '.', '', '', '!'))
    return ' '.join(text.split()) + mark, f'{call}{before}{behind}'
