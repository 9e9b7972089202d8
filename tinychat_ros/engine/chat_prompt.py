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
"""Messages to token ids: control tokens come from the template, never from what people write."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
import re
from typing import Iterable, Optional, Sequence

from tinychat_ros.engine.chat_template import ChatTemplate
from tinychat_ros.engine.request import Message
from tinychat_ros.engine.tokenizer import BREAK, Tokenizer
from tinychat_ros.errors import ChatTemplateError

_ANY_TEXT = 'x'
_ANY_ANSWER = 'any answer'


class ChatPrompt:
    """
    Encodes conversations with a chat template.

    A content that spells a control token, such as ``<|im_end|>``, is broken inside of it before
    the template sees it, so that it is encoded as text. Control tokens are the special ones and,
    but for the model's own words, those that the template names.

    :param stop: strings that end an answer, beside those of a request.
    """

    def __init__(self, template: ChatTemplate, tokenizer: Tokenizer,
                 stop: Sequence[str] = ()) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self.stop = tuple(stop)
        special = {text for text, is_special in tokenizer.added_tokens.items()
                   if is_special or text in (*tokenizer.special_tokens.values(),
                                             template.image_token)}
        named = {text for text in tokenizer.added_tokens
                 if text.strip() and text in template.source}
        self._of_template = special | named
        self._in_answers = _inside(special)
        self._elsewhere = _inside(self._of_template)
        # A character that the vocabulary lacks is one unknown token, and no control token.
        unknown = tokenizer.special_tokens.get('unk_token')
        self._control_ids = {tokenizer.token_id(text) for text in special
                             if text != unknown and len(text) > 1}

    def encode(self, messages: Sequence[Message]) -> list[int]:
        """
        Return the prompt that asks for the next assistant message.

        :raises ChatTemplateError: the template refuses the messages, or changes their texts so
            that they become control tokens.
        """
        ids = self._encode([replace(m, content=self._broken(m)) for m in messages])
        bare = self._encode([replace(m, content=_ANY_TEXT if m.content.strip() else m.content)
                             for m in messages])
        if surplus := self._controls(ids) - self._controls(bare):
            raise ChatTemplateError(
                'chat template: expected control tokens of its own alone, and it makes '
                f'{sum(surplus.values())} of the texts of the messages')
        return ids

    def answer_end(self) -> Optional[int]:
        """
        Return the control token that the template puts behind an answer, None where it has none.

        Whatever it is, the end of a turn or the beginning of the next, the answer is over there.
        """
        try:
            text = self._template.render([Message('user', _ANY_TEXT), Message(
                'assistant', _ANY_ANSWER), Message('user', _ANY_TEXT)])
        except ChatTemplateError:
            return None
        behind = text.partition(_ANY_ANSWER)[2].lstrip()
        token = max(filter(behind.startswith, self._of_template), key=len, default='')
        return self._tokenizer.token_id(token) if token else None

    def _broken(self, message: Message) -> str:
        pattern = self._in_answers if message.role == 'assistant' else self._elsewhere
        return pattern.sub(lambda match: match.group() + BREAK, message.content)

    def _encode(self, messages: Sequence[Message]) -> list[int]:
        text = self._template.render(messages)
        # Templates of image models leave BOS to the processor, which puts it where it is missing.
        bos = self._tokenizer.special_tokens.get('bos_token', '')
        missing = self._template.image_token and bos and not text.startswith(bos)
        return self._tokenizer.encode(text, special=bool(missing))

    def _controls(self, ids: Iterable[int]) -> Counter[int]:
        return Counter(i for i in ids if i in self._control_ids)


def _inside(tokens: Iterable[str]) -> re.Pattern[str]:
    """Return a pattern of every first character of a token, also where tokens overlap."""
    texts = '|'.join(re.escape(text) for text in tokens if len(text) > 1)
    return re.compile(f'(?=(?:{texts or "(?!)"})).', re.DOTALL)
