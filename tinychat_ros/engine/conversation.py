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
"""Who said what, and whose tokens lie in which slot of the KV cache."""

from __future__ import annotations

from dataclasses import dataclass, field
import logging
import threading
from typing import Iterator, Optional, Sequence

from tinychat_ros.engine.request import Message, Request
from tinychat_ros.errors import EngineBusyError

_LOGGER = logging.getLogger(__name__)

# Histories are small, but a robot that names each visitor's anew must not grow for ever.
MAX_CONVERSATIONS = 1000
# Of all histories together; LLaVA is shown a third of a megabyte of each.
MAX_IMAGES = 250


@dataclass
class Conversation:
    """
    One history.

    :param system: the system prompt, '' for none.
    :param slot: its slot in the KV cache, None when it has none.
    :param cached_ids: the tokens whose keys and values lie in the slot, from position 0.
    :param answered: id of the request that has the last answer.
    :param token_ends: of the last answer, where the text of each token ends, in characters.
    :param active: an answer is under way, which needs the slot.
    """

    conversation_id: str
    system: str = ''
    messages: list[Message] = field(default_factory=list)
    slot: Optional[int] = None
    cached_ids: list[int] = field(default_factory=list)
    answered: str = ''
    token_ends: Sequence[int] = ()
    active: bool = False

    @property
    def turns(self) -> int:
        """Return the number of the user's messages."""
        return sum(m.role == 'user' for m in self.messages)

    @property
    def images(self) -> int:
        """Return the number of images that were shown."""
        return sum(m.image is not None for m in self.messages)

    def with_request(self, request: Request, default_system: str) -> list[Message]:
        """Return the messages to answer: system prompt, history or its replacement, the text."""
        system, messages = self._before(request)
        if system or default_system:
            messages.insert(0, Message('system', system or default_system))
        if request.text or request.image is not None:
            messages.append(Message('user', request.text, request.image))
        return messages

    def turn(self, request: Request) -> int:
        """Return which of the user's messages a request brings, from 1."""
        return sum(m.role == 'user' for m in self.with_request(request, ''))

    def record(self, request: Request, answer: str, token_ends: Sequence[int] = ()) -> None:
        """Remember a turn; an answer of which nothing was said leaves no trace."""
        if not answer:
            return
        self.system, self.messages = self._before(request)
        if request.text or request.image is not None:
            self.messages.append(Message('user', request.text, request.image))
        self.messages.append(Message('assistant', answer))
        self.answered, self.token_ends = request.request_id, token_ends

    def _before(self, request: Request) -> tuple[str, list[Message]]:
        """Return the system prompt and the messages that the request's text follows."""
        system, messages = self.system, list(request.messages or self.messages)
        if messages and messages[0].role == 'system':
            system = messages.pop(0).content
        return request.system or system, messages

    def cut_last_answer(self, char_end: int) -> bool:
        """
        Cut the last answer to the tokens that lie whole in its first characters.

        Without any, the turn leaves no trace.
        """
        if not self.messages or self.messages[-1].role != 'assistant':
            return False
        border = max((end for end in self.token_ends if end <= char_end), default=0)
        answer = self.messages.pop().content[:border]
        if answer:
            self.messages.append(Message('assistant', answer))
        elif self.messages and self.messages[-1].role == 'user':
            self.messages.pop()
        return True

    def common_prefix(self, token_ids: Sequence[int]) -> int:
        """Return how many leading tokens of ``token_ids`` lie in the slot already."""
        length = 0
        for cached, wanted in zip(self.cached_ids, token_ids):
            if cached != wanted:
                break
            length += 1
        return length


class ConversationStore:
    """
    All conversations, most recently used last, and the slots they share; safe from any thread.

    :param num_slots: slots of the KV cache. When all are taken, the least recently used
        conversation gives its slot up and is prefilled again when it returns.
    """

    def __init__(self, num_slots: int) -> None:
        self._free = list(range(num_slots))
        self._conversations: dict[str, Conversation] = {}
        self._lock = threading.RLock()

    def __iter__(self) -> Iterator[Conversation]:
        with self._lock:
            return iter(list(self._conversations.values()))

    def get(self, conversation_id: str) -> Optional[Conversation]:
        """Return a conversation, None where there is none."""
        with self._lock:
            return self._conversations.get(conversation_id)

    def begin(self, conversation_id: str) -> Conversation:
        """
        Return a conversation for an answer, made where there is none; :meth:`end` ends it.

        Of the one without a name there may be several, since it remembers nothing.

        :raises EngineBusyError: an answer of this conversation is under way.
        """
        with self._lock:
            conversation = self._conversations.get(conversation_id)
            if conversation is not None and conversation.active:
                if conversation_id:
                    raise EngineBusyError(f'conversation {conversation_id!r}: expected one answer '
                                          'at a time, and one is under way')
                return Conversation('', active=True)
            if conversation is None:
                self._make_room()
                conversation = Conversation(conversation_id)
            self._conversations.pop(conversation_id, None)
            self._conversations[conversation_id] = conversation
            conversation.active = True
            return conversation

    def give_slot(self, conversation: Conversation) -> int:
        """
        Return the slot of a conversation that has begun.

        When none is free, the least recently used one without an answer under way gives its up.

        :raises EngineBusyError: answers are under way in all slots.
        """
        with self._lock:
            if conversation.slot is None:
                if not self._free:
                    self._release(self._least_used())
                conversation.slot = self._free.pop()
            return conversation.slot

    def end(self, conversation: Conversation) -> None:
        """End an answer; a conversation that was forgotten meanwhile gives its slot back."""
        with self._lock:
            if self._conversations.get(conversation.conversation_id) is not conversation:
                self._release(conversation)
            elif conversation.images:
                self._make_room_for_images()
            conversation.active = False

    def remove(self, conversation_id: str) -> bool:
        """Forget a conversation and free its slot; False when there was none."""
        with self._lock:
            conversation = self._conversations.pop(conversation_id, None)
            if conversation is not None and not conversation.active:
                self._release(conversation)
            return conversation is not None

    def clear(self) -> None:
        """Forget every conversation, one that is being answered too."""
        with self._lock:
            for conversation_id in list(self._conversations):
                self.remove(conversation_id)

    def _make_room(self) -> None:
        if len(self._conversations) >= MAX_CONVERSATIONS:
            oldest = next(c for c in self if not c.active)
            self._forget(oldest, f'{MAX_CONVERSATIONS} conversations')

    def _make_room_for_images(self) -> None:
        surplus = sum(c.images for c in self) - MAX_IMAGES
        for conversation in self:
            if surplus > 0 and conversation.images and not conversation.active:
                surplus -= conversation.images
                self._forget(conversation, f'{MAX_IMAGES} images')

    def _forget(self, conversation: Conversation, limit: str) -> None:
        _LOGGER.warning('%s are kept at most: forgetting %r', limit, conversation.conversation_id)
        self.remove(conversation.conversation_id)

    def _least_used(self) -> Conversation:
        for conversation in self:
            if conversation.slot is not None and not conversation.active:
                return conversation
        raise EngineBusyError('engine: expected a free slot of the KV cache, and answers are '
                              'under way in all of them')

    def _release(self, conversation: Conversation) -> None:
        if conversation.slot is not None:
            self._free.append(conversation.slot)
        conversation.slot, conversation.cached_ids = None, []
