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
"""Renders messages with the Jinja template of a model, in a sandbox."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
import json
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import jinja2
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tinychat_ros.checkpoint.reader import read_json
from tinychat_ros.engine.request import Message
from tinychat_ros.errors import ChatTemplateError

_ANY_TEXT = 'any text'


class _Generation(Extension):
    """``{% generation %}``: marks for training what the model says, and changes no text."""

    tags = {'generation'}

    def parse(self, parser: Parser) -> jinja2.nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
        return jinja2.nodes.Scope(body).set_lineno(line)


class ChatTemplate:
    """
    A compiled chat template.

    The environment is the one that Hugging Face templates are written for: trimmed blocks, loop
    controls, ``{% generation %}``, ``raise_exception``, ``strftime_now`` and a ``tojson`` without
    HTML escapes. Templates of image models may want a content as a list of parts, and get it; in
    others, the token for an image stands in a line above the text.

    :param source: the Jinja text.
    :param special_tokens: ``bos_token``, ``eos_token`` and so on, as variables of the template.
    :param image_token: what stands for an image, '' for a model that takes text alone.
    :raises ChatTemplateError: the text is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str],
                 image_token: str = '') -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True,
            extensions=['jinja2.ext.loopcontrols', _Generation])
        environment.filters['tojson'] = _tojson
        environment.globals['raise_exception'] = _raise_exception
        environment.globals['strftime_now'] = lambda pattern: datetime.now().strftime(pattern)
        self._special_tokens = special_tokens
        self.source = source
        self.image_token = image_token
        if not isinstance(source, str):
            raise ChatTemplateError('chat template: expected Jinja text, '
                                    f'got {type(source).__name__}')
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # deep nesting fails in Python's own compiler
            raise ChatTemplateError(f'chat template: expected valid Jinja, got: {error}') from None
        self._in_parts = self._wants_parts()

    def render(self, messages: Sequence[Message]) -> str:
        """
        Return the prompt that asks for the next assistant message.

        A system message that the template refuses goes in front of the user's first one.

        :raises ChatTemplateError: the template refuses the messages or fails on them.
        """
        try:
            return self._render(messages)
        except ChatTemplateError:
            if [m.role for m in messages[:2]] != ['system', 'user']:
                raise
        system, first, *others = messages
        first = replace(first, content=f'{system.content}\n\n{first.content}')
        return self._render([first, *others])

    def _render(self, messages: Sequence[Message]) -> str:
        return self._apply([{'role': m.role, 'content': self._content(m)} for m in messages])

    def _content(self, message: Message) -> Any:
        shows = message.image is not None
        if self._in_parts:
            return _parts(message.content, shows)
        return f'{self.image_token}\n{message.content}' if shows else message.content

    def _wants_parts(self) -> bool:
        shown = self._shown(_parts(_ANY_TEXT, bool(self.image_token)))
        if self.image_token and self.image_token in shown:
            return True
        return _ANY_TEXT in shown and _ANY_TEXT not in self._shown(_ANY_TEXT)

    def _shown(self, content: Any) -> str:
        try:
            return self._apply([{'role': 'user', 'content': content}])
        except ChatTemplateError:
            return ''

    def _apply(self, messages: Sequence[Mapping[str, Any]]) -> str:
        try:
            return self._template.render(messages=messages, add_generation_prompt=True, tools=None,
                                         documents=None, **self._special_tokens)
        except Exception as error:  # a template is a program, and may fail in any way
            raise ChatTemplateError(f'chat template: it refuses the messages: {error}') from None


def find_template(path: Path, tokenizer_config: Mapping[str, Any]) -> Optional[str]:
    """
    Return the template of a checkpoint folder, or None.

    It is chat_template.jinja, or a text or a list of named texts in tokenizer_config.json or, as
    image models had it, in chat_template.json.

    :raises ChatTemplateError: chat_template.jinja is not UTF-8.
    :raises CheckpointError: chat_template.json is not a JSON object.
    """
    file, older = path / 'chat_template.jinja', path / 'chat_template.json'
    if file.exists():
        return read_template(file)
    template = _default(tokenizer_config.get('chat_template'))
    if template is None and older.exists():
        template = _default(read_json(older).get('chat_template'))
    return template


def read_template(path: Path) -> str:
    """
    Read a Jinja file.

    :raises ChatTemplateError: it is missing or not UTF-8.
    """
    try:
        return path.read_bytes().decode('utf-8')
    except (OSError, UnicodeDecodeError) as error:
        raise ChatTemplateError(f'{path}: expected a text file in UTF-8, got: {error}') from None


def _default(template: Any) -> Any:
    if not isinstance(template, list):
        return template
    named = [entry for entry in template if isinstance(entry, dict)]
    return next((e.get('template') for e in named if e.get('name') == 'default'), None)


def _parts(text: str, shows_image: bool) -> list[dict[str, str]]:
    image = [{'type': 'image'}] if shows_image else []
    return [*image, {'type': 'text', 'text': text}]


def _tojson(value: Any, ensure_ascii: bool = False, indent: Optional[int] = None,
            separators: Optional[tuple[str, str]] = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
