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
"""ROS messages to the engine's types and back."""

from __future__ import annotations

from dataclasses import replace
import math
import time
from typing import Any, Mapping

from builtin_interfaces.msg import Time

from tinychat_ros.engine.conversation import Conversation
from tinychat_ros.engine.engine import ModelInfo
from tinychat_ros.engine.request import Message, Policy, Request
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.errors import (
    ChatTemplateError, ImageCorruptError, ImageMissingError, ImageStaleError,
    ImageUnsupportedError, InvalidRequestError, ModelMissingError, OutOfMemoryError,
    PromptTooLongError, QueueFullError)

try:
    from tinychat_msgs.action import Generate
    from tinychat_msgs.msg import (
        ConversationInfo, Interrupt, Prompt, Response, Sentence, Status, TokenChunk)
    from tinychat_msgs.srv import (
        CountTokens, GetModelInfo, ListConversations, ResetConversation)
except ImportError as error:
    raise ImportError(
        'tinychat_msgs: expected the interface package, and it cannot be imported '
        f'({error}). colcon stops at the first package that it meets: build from the root of the '
        'repository, where colcon_defaults.yaml names both packages, or with '
        '`colcon build --base-paths src src/tinychat_ros/tinychat_msgs`; then source '
        'install/setup.bash') from error

__all__ = [
    'ConversationInfo', 'CountTokens', 'Generate', 'GetModelInfo', 'Interrupt',
    'ListConversations', 'Prompt', 'ResetConversation', 'Response', 'Sentence', 'Status',
    'TokenChunk', 'conversation_info', 'error_code', 'fill_model_info', 'to_request',
]

# Looked up from the top: a kind stands before the kinds that it is one of.
_ERROR_CODES = (
    (PromptTooLongError, Response.PROMPT_TOO_LONG),
    (ImageMissingError, Response.IMAGE_MISSING),
    (ImageStaleError, Response.IMAGE_STALE),
    (ImageCorruptError, Response.IMAGE_CORRUPT),
    (ImageUnsupportedError, Response.IMAGE_UNSUPPORTED),
    (InvalidRequestError, Response.INVALID_REQUEST),
    (ChatTemplateError, Response.INVALID_REQUEST),
    (QueueFullError, Response.QUEUE_FULL),
    (ModelMissingError, Response.MODEL_MISSING),
    (OutOfMemoryError, Response.OUT_OF_MEMORY),
    (MemoryError, Response.OUT_OF_MEMORY),
)


def to_request(prompt: Prompt, request_id: str, max_new_tokens: int,
               overrides: Mapping[str, Any], default: SamplingParams, now: float) -> Request:
    """
    Turn a prompt into a request, without its image.

    :param request_id: for a prompt without one.
    :param max_new_tokens: for a prompt that names none.
    :param overrides: sampling parameters of the node, before those of the prompt.
    :param default: sampling parameters of the checkpoint.
    :param now: the node's clock, in seconds, against which the deadline counts.
    :raises InvalidRequestError: a field is out of its range.
    """
    if prompt.policy not in set(Policy):
        raise InvalidRequestError(
            f"policy: expected 0 to {max(Policy)}, one of {', '.join(p.name for p in Policy)}, "
            f'got {prompt.policy}')
    if prompt.max_new_tokens < 0:
        raise InvalidRequestError(
            f'max_new_tokens: expected 0 (the default) or more, got {prompt.max_new_tokens}')
    return Request(
        text=prompt.text, system=prompt.system, conversation_id=prompt.conversation_id,
        messages=tuple(Message(m.role, m.content) for m in prompt.messages),
        request_id=prompt.request_id or request_id, stop=tuple(prompt.stop),
        max_new_tokens=prompt.max_new_tokens or max_new_tokens,
        sampling=replace(default, **{**overrides, **_sampling(prompt)}),
        deadline=_deadline(prompt.deadline, now), priority=prompt.priority,
        policy=Policy(prompt.policy))


def error_code(error: Exception) -> int:
    """Return the error code of the messages for an exception."""
    for kind, code in _ERROR_CODES:
        if isinstance(error, kind):
            return code
    # torch names its own: 'CUDA out of memory' is a RuntimeError of this class name, and what the
    # CPU lacks one that only says so.
    if type(error).__name__ == 'OutOfMemoryError' or "can't allocate memory" in str(error):
        return Response.OUT_OF_MEMORY
    return Response.INTERNAL


def conversation_info(conversation: Conversation) -> ConversationInfo:
    """Return what `~/list_conversations` says of a conversation."""
    return ConversationInfo(
        conversation_id=conversation.conversation_id, turns=conversation.turns,
        cached_tokens=len(conversation.cached_ids), busy=conversation.active)


def fill_model_info(response: GetModelInfo.Response, info: ModelInfo) -> GetModelInfo.Response:
    """Copy what the engine says of its model into a response."""
    for name in ('name', 'path', 'model_hash', 'architecture', 'format', 'parameters',
                 'weight_bytes', 'max_seq_len', 'vocab_size', 'device', 'dtype', 'num_slots',
                 'sees'):
        setattr(response, name, getattr(info, name))
    response.success = True
    return response


def _sampling(prompt: Prompt) -> dict[str, Any]:
    given = {name: getattr(prompt.sampling, name)
             for name in ('temperature', 'top_k', 'top_p', 'min_p', 'repetition_penalty', 'seed')}
    for name, value in given.items():
        if math.isnan(value) or (value < 0 and value != -1):
            raise InvalidRequestError(
                f"sampling.{name}: expected -1 (the node's parameter) or more, got {value}")
    return {name: value for name, value in given.items() if value != -1}


def _deadline(deadline: Time, now: float) -> float | None:
    seconds = deadline.sec + deadline.nanosec * 1e-9
    return time.monotonic() + seconds - now if seconds else None
