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
"""Formats of the models that were tuned to chat before checkpoints brought templates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
import re
from typing import Any, Collection, Mapping, Optional

from tinychat_ros.engine.chat_template import read_template

_FOLDER = Path(__file__).resolve().parent / 'chat_templates'


@dataclass(frozen=True)
class ChatFallback:
    """
    A format, and what shows that a checkpoint was tuned for it.

    :param name: of its file in chat_templates/, without .jinja.
    :param model_types: of config.json, one of which it has.
    :param called: pattern of the beginning of its name in small letters; '' is any.
    :param tokens: that its tokenizer has all of.
    :param stop: strings that end an answer, where no token is sure to.
    """

    name: str
    model_types: tuple[str, ...]
    called: str = ''
    tokens: tuple[str, ...] = ()
    stop: tuple[str, ...] = ()

    @property
    def source(self) -> str:
        """Return its Jinja text."""
        return read_template(_FOLDER / f'{self.name}.jinja')


# Vicuna's weights of version 0 are deltas and talk differently, and so does CodeLlama of 70B.
FALLBACKS = (
    ChatFallback('vicuna', ('llama', 'llava', 'llava_llama'),
                 called=r'vicuna-(?!.*v0)|llava-v?1\.5\b'),
    ChatFallback('llama2_chat', ('llama',),
                 called=r'llama-?2-\d+b-chat|codellama-(7|13|34)b-instruct'),
    ChatFallback('mpt_chat', ('mpt',), tokens=('<|im_start|>', '<|im_end|>')),
    ChatFallback('falcon_instruct', ('falcon', 'RefinedWeb', 'RefinedWebModel'),
                 called=r'falcon-\d+b-instruct', stop=('\nUser',)),
)


def find_fallback(called: str, config: Mapping[str, Any],
                  added_tokens: Collection[str]) -> Optional[ChatFallback]:
    """
    Return the format of a checkpoint without a template, None where it does not show one.

    :param called: its name; what config.json says that it was made from is the next to count.
    :param config: config.json.
    :param added_tokens: of its tokenizer.
    """
    text_config = config.get('text_config')
    origins = [each.get('_name_or_path') for each in (config, text_config)
               if isinstance(each, Mapping)]
    names = [Path(name).name.lower() for name in (called, *origins)
             if isinstance(name, str)]
    model_type = config.get('model_type')
    for name in names:
        for fallback in FALLBACKS:
            if (model_type in fallback.model_types and re.match(fallback.called, name)
                    and set(fallback.tokens) <= set(added_tokens)):
                return fallback
    return None
