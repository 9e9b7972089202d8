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
"""Renders messages with the Jinja template that a checkpoint brings, in a sandbox."""

from __future__ import annotations

from datetime import datetime
import json
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tinychat_ros.engine.request import Message
from tinychat_ros.errors import ChatTemplateError


class ChatTemplate:
    """
    A compiled chat template.

    The environment is the one that Hugging Face templates are written for: trimmed blocks, loop
    controls, ``raise_exception``, ``strftime_now`` and a ``tojson`` without HTML escapes.

    :param source: the Jinja text.
    :param special_tokens: ``bos_token``, ``eos_token`` and so on, as variables of the template.
    :raises ChatTemplateError: the text is not valid Jinja.
    """

    def __init__(self, source: str, special_tokens: Mapping[str, str]) -> None:
        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=['jinja2.ext.loopcontrols'])
        environment.filters['tojson'] = _tojson
        environment.globals['raise_exception'] = _raise_exception
        environment.globals['strftime_now'] = lambda pattern: datetime.now().strftime(pattern)
        self._special_tokens = special_tokens
        self.source = source
        if not isinstance(source, str):
            raise ChatTemplateError('chat template: expected Jinja text, '
                                    f'got {type(source).__name__}')
        try:
            self._template = environment.from_string(source)
        except Exception as error:  # deep nesting fails in Python's own compiler
            raise ChatTemplateError(f'chat template: expected valid Jinja, got: {error}') from None

    def render(self, messages: Sequence[Message]) -> str:
        """
        Return the prompt that asks for the next assistant message.

        :raises ChatTemplateError: the template refuses the messages or fails on them.
        """
        plain = [{'role': m.role, 'content': m.content} for m in messages]
        try:
            return self._template.render(messages=plain, add_generation_prompt=True, tools=None,
                                         documents=None, **self._special_tokens)
        except Exception as error:  # a template is a program, and may fail in any way
            raise ChatTemplateError(f'chat template: it refuses the messages: {error}') from None


def find_template(path: Path, tokenizer_config: Mapping[str, Any]) -> Optional[str]:
    """
    Return the template of a checkpoint folder, or None.

    It is chat_template.jinja, or a text or a list of named texts in tokenizer_config.json.
    """
    file = path / 'chat_template.jinja'
    if file.exists():
        return read_template(file)
    template = tokenizer_config.get('chat_template')
    if isinstance(template, list):
        named = [entry for entry in template if isinstance(entry, dict)]
        template = next((e.get('template') for e in named if e.get('name') == 'default'), None)
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


def _tojson(value: Any, ensure_ascii: bool = False, indent: Optional[int] = None,
            separators: Optional[tuple[str, str]] = None, sort_keys: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators,
                      sort_keys=sort_keys)


def _raise_exception(message: str) -> None:
    raise jinja2.TemplateError(message)
