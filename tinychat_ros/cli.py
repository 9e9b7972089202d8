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
"""The command `tinychat`: its parser, and what becomes of an error."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from typing import NoReturn, Optional, Sequence

from tinychat_ros.commands import bench, chat, doctor, inspect, perplexity, quantize
from tinychat_ros.commands.common import FAILED, print_error, WRONG_USAGE
from tinychat_ros.errors import ConfigError, InvalidRequestError, PromptTooLongError


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
        print_error(error)
        usage = isinstance(error, (ConfigError, InvalidRequestError))
        return WRONG_USAGE if usage and not isinstance(error, PromptTooLongError) else FAILED


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
    for module in (chat, quantize, perplexity, inspect, bench, doctor):
        module.add(commands)
    return parser


if __name__ == '__main__':
    sys.exit(main())
