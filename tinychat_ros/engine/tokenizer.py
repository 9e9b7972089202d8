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
"""The tokenizer that a checkpoint brings, and text that streams out of it whole."""

from __future__ import annotations

import json
from pathlib import Path
import re
from typing import Any, Protocol, Sequence

import sentencepiece
import tokenizers

from tinychat_ros.errors import TokenizerError

_REPLACEMENT = '\ufffd'
# Divides a text and has no token of its own: a token whose letters stand on both sides of it is
# not read. A noncharacter of Unicode, which no text may interchange.
BREAK = '\ufdd0'
# A UTF-8 character has at most 4 bytes, so that at most 3 can be waiting for the last.
_MOST_WAITING = 3
# Tokens in a row that never end on a whole character: these are no text, and waiting ends.
_LONGEST_WINDOW = 64


class _Backend(Protocol):
    vocab_size: int
    adds_bos: bool
    added_tokens: dict[str, bool]

    def encode(self, text: str, special: bool) -> list[int]:
        """Return ids, with what the tokenizer puts around a text if ``special``."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return text without special tokens."""

    def is_special(self, token_id: int) -> bool:
        """Say whether ``decode`` leaves a token out."""

    def token_id(self, token: str) -> int | None:
        """Return a token's id."""


class _FastBackend:
    """A ``tokenizers`` pipeline: tokenizer.json, or vocab.json and merges.txt."""

    # The pipeline's own post-processor does, where the model wants one.
    adds_bos = False

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer = _match_as_written(tokenizer)
        ids = tokenizer.get_vocab(with_added_tokens=True).values()
        self.vocab_size = max(ids, default=-1) + 1
        added = tokenizer.get_added_tokens_decoder().values()
        self.added_tokens = {token.content: token.special for token in added}
        tokenizer.add_special_tokens([tokenizers.AddedToken(BREAK, normalized=False)])
        self._break_id = tokenizer.token_to_id(BREAK)
        added = tokenizer.get_added_tokens_decoder()
        self._special_ids = {index for index, token in added.items() if token.special}

    def encode(self, text: str, special: bool) -> list[int]:
        ids = self._tokenizer.encode(text, add_special_tokens=special).ids
        return [i for i in ids if i != self._break_id]

    def decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(list(ids), skip_special_tokens=True)

    def is_special(self, token_id: int) -> bool:
        # A model may embed more tokens than its tokenizer has.
        return token_id in self._special_ids or self._tokenizer.id_to_token(token_id) is None

    def token_id(self, token: str) -> int | None:
        return self._tokenizer.token_to_id(token)


class _SentencePieceBackend:
    """
    A SentencePiece tokenizer.model.

    SentencePiece never reads a control token out of a text, which a chat template needs: the text
    is cut at such tokens first, and every piece between them is encoded as a text of its own.
    """

    adds_bos = True

    def __init__(self, processor: sentencepiece.SentencePieceProcessor,
                 added_tokens: dict[str, int]) -> None:
        self._processor = processor
        controls = (i for i in range(processor.vocab_size()) if processor.is_control(i))
        self._special = {processor.id_to_piece(i): i for i in controls} | added_tokens
        self._special_ids = set(self._special.values())
        self.added_tokens = dict.fromkeys(self._special, True)
        longest_first = sorted(self._special, key=len, reverse=True)
        # Without any, a pattern that matches nowhere: an empty one would match everywhere.
        self._cut = re.compile('(' + ('|'.join(map(re.escape, longest_first)) or '(?!)') + ')')
        self.vocab_size = max([processor.vocab_size() - 1, *added_tokens.values()]) + 1

    def encode(self, text: str, special: bool) -> list[int]:
        ids: list[int] = []
        for part in (p for span in text.split(BREAK) for p in self._cut.split(span)):
            ids += [self._special[part]] if part in self._special else self._processor.encode(part)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        return self._processor.decode([i for i in ids if not self.is_special(i)])

    def is_special(self, token_id: int) -> bool:
        return token_id in self._special_ids or token_id >= self._processor.vocab_size()

    def token_id(self, token: str) -> int | None:
        if token in self._special:
            return self._special[token]
        index = self._processor.piece_to_id(token)
        return None if index == self._processor.unk_id() else index


class Tokenizer:
    """
    Text to token ids and back.

    :param config: tokenizer_config.json; ``special_tokens`` are read from it for chat templates.

    ``added_tokens`` are those that count as themselves wherever a text spells them, and whether
    they are special.
    """

    def __init__(self, backend: _Backend, config: dict[str, Any]) -> None:
        self._backend = backend
        self.config = config
        self.vocab_size = backend.vocab_size
        self.added_tokens = backend.added_tokens
        self.special_tokens = {
            name: text for name in ('bos_token', 'eos_token', 'unk_token', 'pad_token')
            if (text := _token_text(config.get(name)))}
        self._bos_id = None
        if config.get('add_bos_token', backend.adds_bos):
            self._bos_id = backend.token_id(self.special_tokens.get('bos_token', '<s>'))

    @classmethod
    def load(cls, path: Path) -> Tokenizer:
        """
        Read the tokenizer of a checkpoint folder.

        :raises TokenizerError: there is none, or a file of it is not what it says.
        """
        config = _read_config(path / 'tokenizer_config.json')
        try:
            return cls(_load_backend(path, config), config)
        except TokenizerError:
            raise
        except Exception as error:  # the libraries raise bare Exception, OSError and others
            raise TokenizerError(f'{path}: expected a readable tokenizer, got: {error}') from error

    def encode(self, text: str, special: bool = True) -> list[int]:
        """
        Return the ids of a text; tokens such as ``<|im_end|>`` written in it count as themselves.

        A BREAK inside of such a token makes it text.

        :param special: put around it what the tokenizer puts around a text, such as BOS.
        """
        ids = self._backend.encode(text, special)
        if special and self._bos_id is not None and ids[:1] != [self._bos_id]:
            ids.insert(0, self._bos_id)
        return ids

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of token ids, without special tokens; broken UTF-8 becomes U+FFFD."""
        return self._backend.decode(ids)

    def is_special(self, token_id: int) -> bool:
        """Say whether a token has no text, as special tokens and those beyond the vocabulary."""
        return self._backend.is_special(token_id)

    def token_id(self, token: str) -> int | None:
        """Return the id of a token such as ``</s>``, or None."""
        return self._backend.token_id(token)


class StreamDecoder:
    """
    Turns token ids into text one at a time and never splits a character.

    The last decoded tokens stay in the window, since what a token reads as depends on the one
    before it (SentencePiece drops the space in front of a text). Bytes that are not yet a
    character wait for the tokens that complete it. How many U+FFFD stand for them is no measure:
    byte fallback reads whole characters in front of them as broken, too, until then.

    :param context: tokens whose text was said before, and which the new text continues.
    """

    def __init__(self, tokenizer: Tokenizer, context: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._window = list(context)
        self._context = len(self._window)
        self._emitted = len(tokenizer.decode(self._window))
        self._waiting = 0

    def push(self, token_id: int) -> str:
        """Return the text that became certain with this token, often all of it, or ''."""
        if self._tokenizer.is_special(token_id):
            return ''
        self._window.append(token_id)
        text = self._tokenizer.decode(self._window)
        certain = len(text.rstrip(_REPLACEMENT))
        self._waiting = self._waiting + 1 if certain < len(text) else 0
        if len(self._window) - self._context > _LONGEST_WINDOW:
            certain = len(text)
        elif self._waiting > _MOST_WAITING:
            certain = max(certain, len(text) - _MOST_WAITING)
        new = text[self._emitted:certain]
        self._emitted = max(self._emitted, certain)
        if certain == len(text):
            self._slide()
        return new

    def flush(self) -> str:
        """Return what was held back; a character cut short at the end becomes U+FFFD."""
        return self._tokenizer.decode(self._window)[self._emitted:]

    def _slide(self) -> None:
        """Keep the tokens since the last slide as context, forget those before."""
        self._window = self._window[self._context:]
        self._context = len(self._window)
        self._emitted = len(self._tokenizer.decode(self._window))


def _match_as_written(tokenizer: tokenizers.Tokenizer) -> tokenizers.Tokenizer:
    """
    Make special tokens match before the text is normalized, whatever the file says.

    Some files of Llama 2 want them matched afterwards. Then ``</s><s>``, as between two turns, is
    read as ``</s>`` and four letters, and decoding does not know that they are special.
    """
    added = tokenizer.get_added_tokens_decoder().values()
    if not any(token.special and token.normalized for token in added):
        return tokenizer
    pipeline = json.loads(tokenizer.to_str())
    for token in pipeline['added_tokens']:
        token['normalized'] = token['normalized'] and not token['special']
    return tokenizers.Tokenizer.from_str(json.dumps(pipeline))


def _load_backend(path: Path, config: dict[str, Any]) -> _Backend:
    if (path / 'tokenizer.json').exists():
        return _FastBackend(tokenizers.Tokenizer.from_file(str(path / 'tokenizer.json')))
    if (path / 'tokenizer.model').exists():
        processor = sentencepiece.SentencePieceProcessor()
        processor.Load(str(path / 'tokenizer.model'))
        added = config.get('added_tokens_decoder') or {}
        return _SentencePieceBackend(
            processor, {token['content']: int(index) for index, token in added.items()})
    if (path / 'vocab.json').exists() and (path / 'merges.txt').exists():
        # How the text is cut before the merges depends on the family; transformers knows each.
        from transformers import AutoTokenizer
        fast = AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        return _FastBackend(fast.backend_tokenizer)
    raise TokenizerError(f'{path}: expected tokenizer.json, tokenizer.model, or vocab.json with '
                         'merges.txt, and there is none of them')


def _read_config(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        config = json.loads(path.read_bytes().decode('utf-8'))
    except (OSError, ValueError, RecursionError) as error:
        raise TokenizerError(f'{path}: expected JSON in UTF-8, got: {error}') from None
    if not isinstance(config, dict):
        raise TokenizerError(f'{path}: expected a JSON object, got {type(config).__name__}')
    return config


def _token_text(token: Any) -> str | None:
    return token.get('content') if isinstance(token, dict) else token
