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
"""The commands `tinychat chat` and `tinychat generate`."""

from __future__ import annotations

import argparse
from dataclasses import asdict
import json
from pathlib import Path
import signal
import sys
from typing import Any, Optional

from tinychat_ros.commands.common import (
    device_options, FAILED, output_options, print_error, PROCESSORS_HELP, WEIGHT_CACHE_HELP)
from tinychat_ros.engine.config import (
    ACTIVATIONS, EngineConfig, KV_CACHE_DTYPES, LM_HEAD_DTYPES)
from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.image import decode_image, Image
from tinychat_ros.engine.request import Request, Result
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.errors import InvalidRequestError

_CONVERSATION = 'chat'
_CHAT_HELP = '/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer'


def add(commands: Any) -> None:
    """Add ``chat`` and ``generate`` to the parser."""
    parents = [output_options(), _model_options(), device_options(), _answer_options()]
    chat = commands.add_parser('chat', parents=parents, help='talk to a model',
                               description=f'Talk to a model: {_CHAT_HELP}.')
    chat.set_defaults(run=_chat)
    generate = commands.add_parser('generate', parents=parents, help='answer one prompt')
    generate.add_argument('--prompt', required=True, metavar='TEXT', help='what to answer')
    generate.add_argument('--raw', action='store_true',
                          help='continue the prompt as it is, without the chat template')
    generate.set_defaults(run=_generate)


def _model_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group('model')
    group.add_argument('--model', default='', metavar='DIR',
                       help='checkpoint folder (default: the demo model)')
    group.add_argument('--max-seq-len', type=int, default=0, metavar='N',
                       help="context in tokens (default: 0, the model's, at most 2048)")
    group.add_argument('--activations', default='auto', choices=tuple(ACTIVATIONS),
                       help='of linears of 4 bits or less (default: auto, int8 where faster)')
    group.add_argument('--kv-cache-dtype', default='auto', choices=KV_CACHE_DTYPES,
                       help='default: auto, of 16 bits unless --dtype says 32; int8 takes half')
    group.add_argument('--lm-head-dtype', default='auto', choices=LM_HEAD_DTYPES,
                       help='default: auto, as it is stored; int8 and int4 take a half and a '
                       'quarter of the time to read')
    group.add_argument('--weight-cache', default='', metavar='DIR', help=WEIGHT_CACHE_HELP)
    group.add_argument('--processors', default='', metavar='LIST', help=PROCESSORS_HELP)
    group.add_argument('--chat-template', default='', metavar='FILE',
                       help="Jinja file (default: the checkpoint's own, or a built-in one for old "
                            'chat models that have none)')
    return options


def _answer_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group('answer')
    group.add_argument('--system', default='', metavar='TEXT', help='system prompt')
    group.add_argument('--image', type=Path, metavar='FILE',
                       help='JPEG or PNG to show with the first prompt of a conversation')
    group.add_argument('--max-new-tokens', type=int, metavar='N',
                       help='default: as many as the context holds')
    group.add_argument('--stop', action='append', default=[], metavar='TEXT',
                       help='end the answer before this text; may be given several times')
    own = "(default: the checkpoint's own)"
    group.add_argument('--temperature', type=float, metavar='T', help=f'0 is greedy {own}')
    group.add_argument('--top-k', type=int, metavar='K', help=f'0 keeps all tokens {own}')
    group.add_argument('--top-p', type=float, metavar='P', help=f'1 keeps all tokens {own}')
    group.add_argument('--min-p', type=float, metavar='P', help=f'0 drops no token {own}')
    group.add_argument('--repetition-penalty', type=float, metavar='R', help=f'1 is none {own}')
    group.add_argument('--seed', type=int, metavar='S',
                       help='same seed, same tokens (default: a new one each time)')
    return options


def _load_engine(args: argparse.Namespace) -> Engine:
    return Engine(EngineConfig(
        model=args.model, device=args.device, dtype=args.dtype, num_threads=args.threads,
        max_seq_len=args.max_seq_len, chat_template=args.chat_template,
        activations=args.activations, kv_cache_dtype=args.kv_cache_dtype,
        lm_head_dtype=args.lm_head_dtype, weight_cache=args.weight_cache,
        processors=args.processors, num_slots=1))


def _image(args: argparse.Namespace) -> Optional[Image]:
    return args.image and decode_image(args.image.read_bytes())


def _sampling(args: argparse.Namespace, default: SamplingParams) -> SamplingParams:
    given = {name: value for name in asdict(default)
             if (value := getattr(args, name)) is not None}
    return SamplingParams(**{**asdict(default), **given})


def _request(args: argparse.Namespace, engine: Engine, text: str, **fields: Any) -> Request:
    return Request(text=text, system=args.system, max_new_tokens=args.max_new_tokens,
                   sampling=_sampling(args, engine.default_sampling), stop=tuple(args.stop),
                   **fields)


def _generate(args: argparse.Namespace) -> int:
    engine = _load_engine(args)
    request = _request(args, engine, args.prompt, raw=args.raw, image=_image(args))
    result = _stream(engine, request, quiet=args.json)
    if args.json:
        print(json.dumps(_result_json(result)))
    return 0


def _stream(engine: Engine, request: Request, quiet: bool) -> Result:
    """Print an answer as it comes; Ctrl-C ends the answer, not the program."""
    previous = signal.signal(signal.SIGINT, lambda *_: request.cancel())
    try:
        for chunk in engine.generate(request):
            if not quiet:
                print(chunk.text, end='', flush=True)
    finally:
        signal.signal(signal.SIGINT, previous)
    if not quiet:
        print()
    return chunk.result


def _chat(args: argparse.Namespace) -> int:
    engine = _load_engine(args)
    # A wrong option or a missing template shows before anything is typed.
    _request(args, engine, 'Hello', image=_image(args))
    engine.count_tokens('Hello', with_chat_template=True)
    interactive = sys.stdin is not None and sys.stdin.isatty()
    if interactive:
        print(f'{engine.info.name} on {engine.info.device}. {_CHAT_HELP}.', file=sys.stderr)
    turns, status = [], 0
    while (text := _read_line(interactive)) not in (None, '/exit'):
        try:
            turns += _chat_line(args, engine, text)
        except InvalidRequestError as error:
            # One line that cannot be served must not end the talk.
            print_error(error)
            status = 0 if interactive else FAILED
    if args.json:
        print(json.dumps({'turns': turns}))
    return status


def _chat_line(args: argparse.Namespace, engine: Engine, text: str) -> list[dict[str, Any]]:
    """Answer a line or obey a command; return the turn, if it was one."""
    if text == '/reset':
        engine.reset_conversation(_CONVERSATION)
    elif text.startswith('/'):
        print(_CHAT_HELP, file=sys.stderr)
    elif text.strip():
        image = None if engine.conversations else _image(args)
        request = _request(args, engine, text, conversation_id=_CONVERSATION, image=image)
        return [{'prompt': text, **_result_json(_stream(engine, request, args.json))}]
    return []


def _read_line(interactive: bool) -> Optional[str]:
    """Return the next line, or None at the end; Ctrl-C drops what was typed."""
    if sys.stdin is None:
        return None
    if interactive:
        import readline  # noqa: F401  (its import gives input() a history)
    while True:
        try:
            return input('> ' if interactive else '')
        except KeyboardInterrupt:
            print(file=sys.stderr)
        except EOFError:
            return None


def _result_json(result: Result) -> dict[str, Any]:
    return {
        'text': result.text, 'token_ids': result.token_ids,
        'finish_reason': result.finish_reason.name.lower(),
        'prompt_tokens': result.prompt_tokens, 'cached_tokens': result.cached_tokens,
        'completion_tokens': result.completion_tokens,
        'time_to_first_token': result.time_to_first_token, 'duration': result.duration,
        'tokens_per_second': result.tokens_per_second,
    }
