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
"""The command `tinychat`: chat, generate, inspect and doctor."""

from __future__ import annotations

import argparse
from dataclasses import asdict
import json
import logging
import os
from pathlib import Path
import signal
import sys
from typing import Any, NoReturn, Optional, Sequence

from tinychat_ros.checkpoint.loader import num_parameters
from tinychat_ros.checkpoint.reader import CheckpointReader
from tinychat_ros.checkpoint.summary import (
    kv_bytes_fp16, summarize_layers, weight_bytes_per_token)
from tinychat_ros.doctor import examine
from tinychat_ros.engine.config import DEVICES, DTYPES, EngineConfig
from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import Request, Result
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.errors import (
    ConfigError, InvalidRequestError, PromptTooLongError, TinychatError)

FAILED, WRONG_USAGE = 1, 2
_CONVERSATION = 'chat'
_CHAT_HELP = '/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer'


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run a subcommand; return 0, 1 when it failed, or 2 for a wrong argument."""
    args = build_parser().parse_args(argv)
    logging.basicConfig(format='tinychat: %(message)s', stream=sys.stderr,
                        level=logging.DEBUG if args.verbose else logging.WARNING)
    try:
        return args.run(args)
    except BrokenPipeError:
        # The reader, such as `head`, has gone; Python must not flush into the pipe at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        print('tinychat: interrupted', file=sys.stderr)
        return FAILED
    except Exception as error:
        if args.verbose:
            raise
        _print_error(error)
        usage = isinstance(error, (ConfigError, InvalidRequestError))
        return WRONG_USAGE if usage and not isinstance(error, PromptTooLongError) else FAILED


def _print_error(error: Exception) -> None:
    kind = '' if isinstance(error, TinychatError) else f'{type(error).__name__}: '
    print(f'tinychat: error: {kind}{error}', file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """Say what is wrong in one line, without the usage."""
        self.exit(WRONG_USAGE, f'{self.prog}: error: {message}; see {self.prog} --help\n')


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of all subcommands."""
    parser = _Parser(
        prog='tinychat', description='Run a 4-bit large language model on this machine. Exit '
        'codes: 0, 1 (failed), 2 (wrong usage).')
    commands = parser.add_subparsers(dest='command', required=True, metavar='COMMAND')
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument('--json', action='store_true',
                        help='print one JSON document as the last line of stdout')
    common.add_argument('--verbose', action='store_true',
                        help='log more, and show the traceback of an error')
    _add_chat(commands, common)
    _add_generate(commands, common)
    inspect = commands.add_parser(
        'inspect', parents=[common], help='describe a checkpoint without loading it')
    inspect.add_argument('model', nargs='?', default='', metavar='DIR',
                         help='checkpoint folder (default: the demo model)')
    inspect.set_defaults(run=_inspect)
    doctor = commands.add_parser(
        'doctor', parents=[common], help='say what this machine has and what is missing')
    doctor.set_defaults(run=_doctor)
    return parser


def _add_chat(commands: Any, common: argparse.ArgumentParser) -> None:
    chat = commands.add_parser('chat', parents=[common, _engine_options(), _answer_options()],
                               help='talk to a model', description=f'Talk to a model: '
                               f'{_CHAT_HELP}.')
    chat.set_defaults(run=_chat)


def _add_generate(commands: Any, common: argparse.ArgumentParser) -> None:
    generate = commands.add_parser(
        'generate', parents=[common, _engine_options(), _answer_options()],
        help='answer one prompt')
    generate.add_argument('--prompt', required=True, metavar='TEXT', help='what to answer')
    generate.add_argument('--raw', action='store_true',
                          help='continue the prompt as it is, without the chat template')
    generate.set_defaults(run=_generate)


def _engine_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group('model')
    group.add_argument('--model', default='', metavar='DIR',
                       help='checkpoint folder (default: the demo model)')
    group.add_argument('--device', default='auto', choices=DEVICES,
                       help='default: auto, the GPU where there is one')
    group.add_argument('--dtype', default='auto', choices=('auto', *DTYPES),
                       help='of activations (default: auto, float32 on the CPU)')
    group.add_argument('--threads', type=int, default=0, metavar='N',
                       help='CPU threads (default: 0, every core, or one for a small model)')
    group.add_argument('--max-seq-len', type=int, default=0, metavar='N',
                       help="context in tokens (default: 0, the model's, at most 2048)")
    group.add_argument('--chat-template', default='', metavar='FILE',
                       help="Jinja file (default: the checkpoint's own)")
    return options


def _answer_options() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(add_help=False)
    group = options.add_argument_group('answer')
    group.add_argument('--system', default='', metavar='TEXT', help='system prompt')
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
        max_seq_len=args.max_seq_len, chat_template=args.chat_template, num_slots=1))


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
    request = _request(args, engine, args.prompt, raw=args.raw)
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
    _request(args, engine, 'Hello')
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
            _print_error(error)
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
        request = _request(args, engine, text, conversation_id=_CONVERSATION)
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


def _inspect(args: argparse.Namespace) -> int:
    path = EngineConfig(model=args.model).model_path
    with CheckpointReader(Path(path)) as reader:
        layers = summarize_layers(reader)
        counts = {name: sum(layer.format == name for layer in layers)
                  for name in sorted({layer.format for layer in layers})}
        document = {
            'architecture': reader.config.model_type,
            'format': max(counts, key=counts.__getitem__),
            'parameters': num_parameters(reader),
            'weight_bytes_per_token': weight_bytes_per_token(reader),
            'kv_bytes_per_position': kv_bytes_fp16(reader),
            'max_position_embeddings': reader.config.max_position_embeddings,
            'vocab_size': reader.config.vocab_size,
            'layers': [asdict(layer) for layer in layers],
        }
    table = sys.stderr if args.json else sys.stdout
    for key, value in document.items():
        if key != 'layers':
            print(f'{key:24} {value}', file=table)
    for layer in layers:
        group = f'g{layer.group_size}' if layer.group_size else ''
        reason = layer.reference_reason
        note = f'on the torch reference: {reason}' if reason else ''
        print(f'  {layer.name:40} {layer.format:14} {layer.n:6} x {layer.k:<6} {group:5} {note}',
              file=table)
    if args.json:
        print(json.dumps(document))
    return 0


def _doctor(args: argparse.Namespace) -> int:
    findings = examine()
    table = sys.stderr if args.json else sys.stdout
    for key, value in findings.items():
        if key != 'problems':
            print(f'{key:12} {value}', file=table)
    for problem in findings['problems']:
        print(f'problem      {problem}', file=table)
    if not findings['problems']:
        print('no problems', file=table)
    if args.json:
        print(json.dumps(findings))
    return 0


if __name__ == '__main__':
    sys.exit(main())
