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
"""The engine: requests in, streamed answers out. No ROS in here."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
import logging
from pathlib import Path
import threading
from typing import Any, Iterator, Mapping, Optional, Sequence, Union

import torch
from torch import Tensor

from tinychat_ros.checkpoint.loader import (
    check_memory, load_model, num_parameters, weight_bytes)
from tinychat_ros.checkpoint.reader import CheckpointReader, read_json
from tinychat_ros.engine.answer import Answer
from tinychat_ros.engine.chat_fallback import find_fallback
from tinychat_ros.engine.chat_prompt import ChatPrompt
from tinychat_ros.engine.chat_template import ChatTemplate, find_template, read_template
from tinychat_ros.engine.config import ACTIVATIONS, EngineConfig
from tinychat_ros.engine.conversation import Conversation, ConversationStore
from tinychat_ros.engine.graph_runner import make_runner
from tinychat_ros.engine.image import Image
from tinychat_ros.engine.image_processor import FittedImage, ImageProcessor
from tinychat_ros.engine.request import (
    check_unicode, Chunk, FinishReason, Message, Request)
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.engine.tokenizer import Tokenizer
from tinychat_ros.engine.vision import image_token, Prompt, Vision
from tinychat_ros.errors import (
    ChatTemplateError, CheckpointError, InvalidRequestError, ModelCannotSeeError,
    PromptTooLongError, TokenizerError)
from tinychat_ros.kernels import cpu
from tinychat_ros.models.kv_cache import KVCache

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class ModelInfo:
    """
    What an engine has loaded; sizes in bytes, lengths in tokens.

    :param model_hash: SHA-256 of config.json and the weights, in hexadecimal.
    :param sees: a request may show it an image.
    """

    name: str
    path: str
    model_hash: str
    architecture: str
    format: str
    parameters: int
    weight_bytes: int
    vocab_size: int
    max_seq_len: int
    num_slots: int
    device: str
    dtype: str
    sees: bool = False


class Engine:
    """
    A loaded model that answers requests.

    Answers of several conversations may be under way at once, one in each slot: each goes on when
    its next chunk is asked for, from whatever thread, while the others keep their slots.

    :raises TinychatError: the model cannot be loaded; see errors.py for the kinds.
    """

    def __init__(self, config: EngineConfig) -> None:
        with CheckpointReader(config.model_path) as reader:
            shape = reader.config
            self._config = config = config.for_model(shape)
            device, dtype = config.torch_device(), config.torch_dtype()
            max_seq_len = config.seq_len(shape.max_position_embeddings)
            size = weight_bytes(reader, dtype, device)
            torch.set_num_threads(config.threads(size))
            check_memory(reader, dtype, config.torch_kv_dtype(), device, config.num_slots,
                         max_seq_len, config.budget())
            self.tokenizer = load_tokenizer(reader)
            token, processor = '', None
            if shape.vision is not None:
                token = image_token(self.tokenizer, shape.vision.image_token_index)
                processor = ImageProcessor.load(config.model_path, shape.vision.image_size)
            self._chat_prompt = _load_chat_prompt(config, self.tokenizer, token, shape.vocab_size)
            self._stop_ids = _stop_ids(reader, self.tokenizer, self._chat_prompt)
            recommended = reader.generation_config()
            self.default_sampling = SamplingParams.from_generation_config(recommended)
            self._max_new_tokens = _max_new_tokens(recommended) or max_seq_len
            model, weight_format = load_model(
                reader, dtype, device, max_seq_len, ACTIVATIONS[config.activations],
                config.lm_head_dtype, config.weight_cache_path)
            self._vision = processor and Vision(model.vision, processor)
            self.info = ModelInfo(
                name=config.model_name, path=str(config.model_path),
                model_hash=reader.content_hash,
                architecture=shape.model_type, format=weight_format,
                parameters=num_parameters(reader), weight_bytes=size,
                vocab_size=shape.vocab_size, max_seq_len=max_seq_len, num_slots=config.num_slots,
                device=str(device), dtype=str(dtype).removeprefix('torch.'),
                sees=shape.vision is not None)
        cache = KVCache(shape, config.num_slots, max_seq_len, config.torch_kv_dtype(), device)
        self._runner = make_runner(model, cache, device)
        self._conversations = ConversationStore(config.num_slots)
        self._processors = config.processor_set()
        # Reentrant, since a generator that is collected closes in whatever thread that happens.
        self._turn = threading.RLock()

    @classmethod
    def load(cls, model: Union[str, Path] = '', **options: Any) -> Engine:
        """Load a checkpoint folder, or the demo model; see EngineConfig for the options."""
        return cls(EngineConfig(model=str(model), **options))

    @property
    def conversations(self) -> list[Conversation]:
        """Return the remembered conversations, the most recently used last."""
        return [c for c in self._conversations if c.conversation_id and c.messages]

    @property
    def cached_positions(self) -> int:
        """Return how many positions of the KV cache hold a token, over all slots."""
        return sum(len(conversation.cached_ids) for conversation in self._conversations)

    def generate(self, request: Request) -> Iterator[Chunk]:
        """
        Answer a request, chunk by chunk as the tokens come.

        The last chunk carries the result. Closing the generator early ends the answer; what was
        said by then stays in the conversation.

        :raises PromptTooLongError: the prompt does not fit the context.
        :raises ModelCannotSeeError: the request shows an image to a model that takes text alone.
        :raises ImageError: the prompt has more or fewer places for images than images.
        :raises ChatTemplateError: there is no template, or it refuses the messages.
        :raises EngineBusyError: an answer of this conversation is under way, or one in each slot.
        """
        chunks = self._generate(request)
        try:
            while True:
                with self._turn, cpu.on_processors(self._processors):
                    chunk = next(chunks, None)
                if chunk is None:
                    return
                yield chunk
        finally:
            with self._turn:
                chunks.close()

    def count_tokens(self, text: str, with_chat_template: bool = False) -> int:
        """Return how many tokens a text takes, as it is or as a conversation's first message."""
        check_unicode('text', text)
        if with_chat_template:
            return len(self._chat_ids([Message('user', text)]))
        return len(self.tokenizer.encode(text, special=False))

    def reset_conversation(self, conversation_id: str) -> bool:
        """Forget a conversation; False when there is none. An answer under way is not recorded."""
        return self._conversations.remove(conversation_id)

    def reset_all_conversations(self) -> None:
        """Forget every conversation. An answer under way is not recorded."""
        self._conversations.clear()

    def cut_last_answer(self, char_end: int, conversation_id: str = '',
                        request_id: str = '') -> bool:
        """
        Cut the last answer of a conversation to the characters that were heard.

        :param conversation_id: '' is the one that was used last.
        :param request_id: whose answer it has to be; '' is any.
        :returns: False when there is no such answer.
        """
        for conversation in reversed(self.conversations):
            if (conversation_id in ('', conversation.conversation_id)
                    and request_id in ('', conversation.answered)):
                return conversation.cut_last_answer(char_end)
        return False

    def _generate(self, request: Request) -> Iterator[Chunk]:
        self._admit_images(request)
        conversation = self._conversations.begin(request.conversation_id)
        try:
            yield from self._answer(request, conversation)
        finally:
            self._conversations.end(conversation)

    def _admit_images(self, request: Request) -> None:
        if not any([request.image, *(message.image for message in request.messages)]):
            return
        if self._vision is None:
            raise ModelCannotSeeError(f'image: expected none, since {self.info.name} takes text '
                                      'alone, got one')

        def fitted(image: Optional[Image]) -> Optional[FittedImage]:
            return image and self._vision.fitted(image)

        # Histories keep them, and that of a camera may have 100 times the pixels.
        request.image = fitted(request.image)
        request.messages = tuple(replace(m, image=fitted(m.image)) for m in request.messages)

    def _answer(self, request: Request, conversation: Conversation) -> Iterator[Chunk]:
        prompt = self._prompt(conversation, request)
        length = len(prompt.ids)
        if length >= self.info.max_seq_len:
            raise PromptTooLongError(length, self.info.max_seq_len)
        slot = self._conversations.give_slot(conversation)
        # The last token is always run, for the logits after it.
        cached = min(conversation.common_prefix(prompt.ids), length - 1)
        del conversation.cached_ids[cached:]
        limit = min(request.max_new_tokens or self._max_new_tokens,
                    self.info.max_seq_len - length)
        sampling = (request.sampling or self.default_sampling).seeded()
        answer = Answer(request, self.tokenizer, self._stop_ids, limit, length, cached,
                        sampling.seed, 0 if request.raw else conversation.turn(request),
                        context=prompt.text_ids if request.raw else (),
                        stop=() if request.raw else self._chat_prompt.stop)
        try:
            yield from self._run(request, conversation, slot, prompt, sampling, answer)
        finally:
            text, tokens = answer.heard(request.heard_chars)
            del conversation.cached_ids[length + tokens:]
            if request.conversation_id and not request.raw:
                conversation.record(request, text, answer.token_ends[:tokens])

    def _run(self, request: Request, conversation: Conversation, slot: int, prompt: Prompt,
             sampling: SamplingParams, answer: Answer) -> Iterator[Chunk]:
        cached, last = conversation.cached_ids, None
        while last is None or len(cached) < len(prompt.ids):
            piece = prompt.ids[len(cached):][:self._config.prefill_chunk]
            last = self._prefill(piece, slot, len(cached), prompt, request)
            if last is not None:
                cached += piece
            if request.interrupted():
                yield answer.finish(request.interruption())
                return
            if last is None or len(cached) < len(prompt.ids):
                yield answer.chunk()
        tokens = self._runner.tokens(last, slot, len(cached), sampling, prompt.text_ids,
                                     request.interrupted)
        appended: list[int] = []
        while True:
            reason = request.interruption()
            if reason == FinishReason.NONE:
                token = next(tokens, None)
                if token is None:
                    continue
                # Asking for it has put the one before into the slot.
                cached += appended
                appended = [token]
                reason = answer.push(token)
            if reason != FinishReason.NONE:
                yield answer.finish(reason)
                return
            yield answer.chunk()

    def _prefill(self, piece: Sequence[int], slot: int, start: int, prompt: Prompt,
                 request: Request) -> Optional[Tensor]:
        if min(piece) >= 0:
            return self._runner.prefill(piece, slot, start, request.paused)
        features = self._vision.features(piece, prompt.images, request.paused)
        if features is None:
            return None
        ids = [max(i, -1) for i in piece]
        return self._runner.prefill(ids, slot, start, request.paused, features)

    def _prompt(self, conversation: Conversation, request: Request) -> Prompt:
        if request.raw:
            ids = self.tokenizer.encode(request.text)
            images = [request.image]
        else:
            messages = conversation.with_request(request, self._config.system_prompt)
            ids = self._chat_ids(messages)
            images = [message.image for message in messages]
        if not ids:
            raise InvalidRequestError('text: expected a prompt of one token or more, got none')
        if max(ids) >= self.info.vocab_size:
            raise InvalidRequestError(f'text: expected tokens below {self.info.vocab_size}, as '
                                      f'many as the model embeds, got {max(ids)}')
        if self._vision is None:
            return Prompt(ids)
        return self._vision.prompt(ids, [image for image in images if image is not None])

    def _chat_ids(self, messages: Sequence[Message]) -> list[int]:
        if self._chat_prompt is None:
            raise ChatTemplateError(
                f'{self.info.path}: expected a chat template in tokenizer_config.json, and there '
                'is none; give one as chat_template, or continue raw text')
        return self._chat_prompt.encode(messages)


def return_memory() -> None:
    """Return to the system what engines that are gone held, and the allocators keep."""
    torch.cuda.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)


def load_tokenizer(reader: CheckpointReader) -> Tokenizer:
    """
    Read the tokenizer of an open checkpoint.

    Tokens may have been added that the model does not embed: Gemma 3 of 1B has that for images of
    its larger sisters.

    :raises TokenizerError: there is none, or it has other tokens that the model does not embed.
    """
    tokenizer, vocab_size = Tokenizer.load(reader.path), reader.config.vocab_size
    added = sum(tokenizer.token_id(text) >= vocab_size for text in tokenizer.added_tokens)
    if tokenizer.vocab_size - added > vocab_size:
        raise TokenizerError(
            f'{reader.path}: expected a tokenizer of at most {vocab_size} tokens, as many as the '
            f'model embeds, got one of {tokenizer.vocab_size}')
    return tokenizer


def _load_chat_prompt(config: EngineConfig, tokenizer: Tokenizer,
                      image_token_text: str, vocab_size: int) -> Optional[ChatPrompt]:
    path, fallback = config.model_path, None
    if config.chat_template:
        source = read_template(Path(config.chat_template).expanduser())
    else:
        source = find_template(path, tokenizer.config)
        fallback = find_fallback(config.model_name, read_json(path / 'config.json'),
                                 tokenizer.added_tokens)
    if source is None:
        if fallback is None:
            return None
        _LOGGER.info('%s has no chat template: it is taken for one that talks as %s', path,
                     fallback.name)
        source = fallback.source
    template = ChatTemplate(source, tokenizer.special_tokens, image_token_text)
    for text in tokenizer.added_tokens:
        if text in source and tokenizer.token_id(text) >= vocab_size:
            raise TokenizerError(f'{path}: expected a chat template of the {vocab_size} tokens '
                                 f'that the model embeds, got {text!r} in it')
    return ChatPrompt(template, tokenizer, fallback.stop if fallback else ())


def _stop_ids(reader: CheckpointReader, tokenizer: Tokenizer,
              chat_prompt: Optional[ChatPrompt]) -> frozenset[int]:
    """
    Return every token that ends an answer.

    What config.json says counts beside generation_config.json only where the token is special:
    its default is 2, which in the vocabularies of others is a letter.
    """
    ids = {*reader.stop_token_ids(), *filter(tokenizer.is_special, reader.config.eos_token_ids)}
    ends = [tokenizer.token_id(tokenizer.special_tokens.get('eos_token', '')),
            chat_prompt.answer_end() if chat_prompt else None]
    return frozenset(ids.union(i for i in ends if i is not None))


def _max_new_tokens(generation_config: Mapping[str, Any]) -> int:
    """Return what a checkpoint recommends, 0 for nothing; max_length counts the prompt, too."""
    limit = generation_config.get('max_new_tokens')
    if limit is None:
        return 0
    if not isinstance(limit, int) or isinstance(limit, bool) or limit < 1:
        raise CheckpointError('generation_config.json: max_new_tokens: expected a positive '
                              f'integer, got {limit!r}')
    return limit
