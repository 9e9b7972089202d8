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
"""How large a message may be. What is larger is refused before anything looks into it."""

from __future__ import annotations

from tinychat_ros.errors import InvalidRequestError
from tinychat_ros.nodes.messages import Prompt

MAX_ID_CHARS = 128
MAX_MESSAGES = 1000
MAX_ROLE_BYTES = 32
MAX_STOPS = 32
MAX_STOP_BYTES = 256


def check_prompt(prompt: Prompt, max_text_bytes: int) -> None:
    """
    Check the sizes of a prompt.

    :param max_text_bytes: of the text, of the system prompt, and of all messages together.
    :raises InvalidRequestError: the message names the field, what it may have and what it has.
    """
    check_id('request_id', prompt.request_id)
    check_id('conversation_id', prompt.conversation_id)
    _check_size('messages', len(prompt.messages), MAX_MESSAGES, 'messages')
    _check_size('stop', len(prompt.stop), MAX_STOPS, 'strings')
    check_bytes('text', prompt.text, max_text_bytes)
    check_bytes('system', prompt.system, max_text_bytes)
    for i, message in enumerate(prompt.messages):
        check_bytes(f'messages[{i}].role', message.role, MAX_ROLE_BYTES)
    check_bytes('messages', ''.join(m.content for m in prompt.messages), max_text_bytes)
    for i, stop in enumerate(prompt.stop):
        check_bytes(f'stop[{i}]', stop, MAX_STOP_BYTES)


def check_id(name: str, text: str) -> None:
    """
    Check an id, which stands in logs and comes back with every answer.

    :raises InvalidRequestError: it is too long, or has a control character or a line break.
    """
    _check_size(name, len(text), MAX_ID_CHARS, 'characters')
    if not text.isprintable():
        raise InvalidRequestError(f'{name}: expected printable characters, got {ascii(text)}')


def check_bytes(name: str, text: str, most: int) -> None:
    """
    Check the length of a text in UTF-8.

    :raises InvalidRequestError: it is too long.
    """
    _check_size(name, len(text.encode('utf-8', errors='surrogatepass')), most, 'bytes')


def answerable(text: str) -> str:
    """Return an id as the answer to a request may carry it, also to one refused for its id."""
    return ''.join(c if c.isprintable() else '\ufffd' for c in text[:MAX_ID_CHARS])


def _check_size(name: str, size: int, most: int, unit: str) -> None:
    if size > most:
        raise InvalidRequestError(f'{name}: expected at most {most} {unit}, got {size}')
