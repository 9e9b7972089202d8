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
"""Finds stop strings in streamed text, also across the borders of tokens."""

from __future__ import annotations

from typing import Sequence


class StopStrings:
    """
    Lets text through up to the first stop string.

    The end of a text that may be the beginning of a stop string is held back until it is certain.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ''

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that is certain, and whether a stop string came after it."""
        text = self._held + text
        # The first to end counts, since it would have ended a text that came letter by letter.
        found = [(index + len(stop), index) for stop in self._stops
                 if (index := text.find(stop)) >= 0]
        if found:
            self._held = ''
            return text[:min(found)[1]], True
        keep = self._beginning(text)
        self._held = text[len(text) - keep:]
        return text[:len(text) - keep], False

    def flush(self) -> str:
        """Return what was held back: no more text comes, so it is no stop string."""
        held, self._held = self._held, ''
        return held

    def _beginning(self, text: str) -> int:
        """Return the length of the longest end of ``text`` that begins a stop string."""
        longest = max(map(len, self._stops), default=0) - 1
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
