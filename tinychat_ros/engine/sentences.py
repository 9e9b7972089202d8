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
"""Cuts streamed text into sentences, for speech synthesis."""

from __future__ import annotations

from dataclasses import dataclass
import re

# A sentence ends behind its punctuation and the quotes or brackets that close it. Latin marks need
# white space after them, which keeps '3.5' whole; CJK marks do not.
_END = re.compile(r'(?:[.!?…]+["\'”’)\]]*(?=\s)|[。！？｡]+[”’」』）]*|\n)\s*')
# Looked for in a sentence with the first character after it. Some are words as well, or end a
# sentence as often as not: what follows decides.
_ABBREVIATION = re.compile(
    r'(?:(?:\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|approx|Fig)|(?<![\w.])[A-Z])\.\s+\S'
    r'|\bNo\.\s+\d|\b[ap]\.m\.\s+[a-z])$')


def ends_sentence(text: str) -> bool:
    """Say whether a text ends with a whole sentence, as far as can be told without the next."""
    text = text.rstrip()
    # A number may go on behind its point.
    if re.search(r'\d\.$', text):
        return False
    ahead = f'{text} X'
    return (any(match.end() == len(text) + 1 for match in _END.finditer(ahead))
            and not _ABBREVIATION.search(ahead))


@dataclass(frozen=True)
class Sentence:
    """
    A sentence and where it stands in the whole text.

    :param char_begin: index of its first character.
    :param char_end: index behind its last; the sentences of a text join without gaps.
    """

    index: int
    text: str
    char_begin: int
    char_end: int
    final: bool = False


class SentenceSplitter:
    """Takes text as it streams and hands out each sentence as soon as its end is certain."""

    def __init__(self) -> None:
        self._buffer = ''
        self._count = 0
        self._begin = 0

    def push(self, text: str) -> list[Sentence]:
        """Return the sentences that this text completes."""
        self._buffer += text
        sentences = []
        while (end := self._next_end()) is not None:
            sentences.append(self._cut(end))
        return sentences

    def flush(self) -> Sentence:
        """Return the rest as the last sentence; it may be empty."""
        return self._cut(len(self._buffer), final=True)

    def _next_end(self) -> int | None:
        for match in _END.finditer(self._buffer):
            # White space belongs to the sentence before it, and more of it may still come.
            if match.end() == len(self._buffer):
                return None
            sentence = self._buffer[:match.end() + 1]
            if sentence[:-1].strip() and not _ABBREVIATION.search(sentence):
                return match.end()
        return None

    def _cut(self, end: int, final: bool = False) -> Sentence:
        text, self._buffer = self._buffer[:end], self._buffer[end:]
        sentence = Sentence(self._count, text, self._begin, self._begin + len(text), final)
        self._count += 1
        self._begin += len(text)
        return sentence
