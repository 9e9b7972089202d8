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
"""Every failure that a caller may handle, one documented exception each."""


class TinychatError(Exception):
    """Base of every error that this package raises on purpose."""


class ConfigError(TinychatError):
    """An option of the engine is out of its range; the message names the option."""


class CheckpointError(TinychatError):
    """A checkpoint is missing, cut short, mislabelled or holds values that cannot be right."""


class UnsupportedModelError(TinychatError):
    """The checkpoint is whole, but of an architecture or a format that is not built."""


class TokenizerError(TinychatError):
    """The tokenizer is missing, unreadable or does not fit the model."""


class ChatTemplateError(TinychatError):
    """The chat template is missing, does not parse or refuses the messages."""


class InvalidRequestError(TinychatError):
    """A request holds a value that cannot be served; the message names the field."""


class DuplicateRequestError(InvalidRequestError):
    """A request carries the id of one that is still waiting or running."""


class PromptTooLongError(InvalidRequestError):
    """
    The prompt leaves no room in the context for even one new token.

    :param prompt_tokens: what the prompt takes.
    :param max_seq_len: what the context holds.
    """

    def __init__(self, prompt_tokens: int, max_seq_len: int) -> None:
        super().__init__(
            f'the prompt with its history takes {prompt_tokens} tokens, and the context of '
            f'{max_seq_len} tokens holds a prompt of at most {max_seq_len - 1} tokens; a '
            'conversation that was reset begins anew')
        self.prompt_tokens = prompt_tokens
        self.max_seq_len = max_seq_len


class ImageError(InvalidRequestError):
    """A request shows an image that cannot be looked at; one of the kinds below."""


class ImageMissingError(ImageError):
    """No image has come, or none with the stamp that was asked for is kept."""


class ImageStaleError(ImageError):
    """The image is older than it may be."""


class ImageCorruptError(ImageError):
    """The image is cut short or damaged."""


class ImageUnsupportedError(ImageError):
    """The image is too large, or of an encoding or a format that is not read."""


class ModelCannotSeeError(ImageError):
    """A request shows an image to a model that takes text alone."""


class QueueFullError(TinychatError):
    """The request queue holds as many requests as it may."""


class EngineBusyError(TinychatError):
    """An answer of this conversation is under way, or one in every slot of the KV cache."""


class ModelMissingError(TinychatError):
    """A request came while no model is loaded and active."""


class OutOfMemoryError(TinychatError):
    """Weights and KV cache together do not fit the memory budget."""


class KernelError(TinychatError):
    """An op was called with a tensor whose device, dtype, shape or layout it cannot take."""
