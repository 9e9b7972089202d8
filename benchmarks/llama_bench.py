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
"""llama.cpp's own benchmark program, llama-bench: how it is run and what it reports."""

from __future__ import annotations

import json
import subprocess
from typing import Mapping, NamedTuple, Sequence

from tinychat_ros.errors import ConfigError


class Phase(NamedTuple):
    """Tokens of a prompt, or tokens that are generated behind nothing."""

    prompt: int
    generated: int

    def __str__(self) -> str:
        return f'decode {self.generated}' if self.generated else f'prefill {self.prompt}'


# Options by which its versions lay weights out anew as they load, or not: those of llama.cpp, and
# those of ik_llama.cpp.
_SETTINGS = {'--repack ': {'repacked': ('--repack', '1'), 'as stored': ('--repack', '0')},
             '--run-time-repack ': {'repacked': ('-rtr', '1'), 'as stored': ('-rtr', '0')}}


class LlamaBench:
    """
    A llama-bench program, whoever built it.

    :raises ConfigError: it cannot be run.
    """

    def __init__(self, binary: str) -> None:
        self._binary = binary
        self.settings = settings(_output(binary, '--help'))

    def speeds(self, gguf: str, setting: str, phases: Sequence[Phase],
               threads: int) -> dict[Phase, float]:
        """Return the tokens per second of each phase, measured once behind a warm-up."""
        found = speeds(self._binary, gguf, phases, 1, '-t', str(threads),
                       *self.settings[setting])
        return {phase: found[phase] for phase in phases}


def settings(usage: str) -> Mapping[str, Sequence[str]]:
    """Return the arguments for each layout of the weights that a program has by its --help."""
    return next((known for option, known in _SETTINGS.items() if option in usage),
                {'default': ()})


def speeds(binary: str, gguf: str, phases: Sequence[Phase], repetitions: int,
           *arguments: str) -> dict[Phase, float]:
    """
    Run llama-bench on a model and return the tokens per second of each phase.

    :raises ConfigError: it failed, or does not report them.
    """
    prompts = [str(phase.prompt) for phase in phases if phase.prompt]
    generated = [str(phase.generated) for phase in phases if phase.generated]
    found = reported(_output(
        binary, '-m', gguf, '-p', ','.join(prompts) or '0', '-n', ','.join(generated) or '0',
        '-r', str(repetitions), '-o', 'json', *arguments))
    if not set(phases) <= set(found):
        raise ConfigError(f"llama-bench: expected the phases {', '.join(map(str, phases))}, "
                          f"got {', '.join(map(str, found)) or 'none'}")
    return found


def reported(text: str) -> dict[Phase, float]:
    """
    Return the tokens per second that a JSON report of llama-bench has.

    :raises ConfigError: it is no such report.
    """
    try:
        return {Phase(test['n_prompt'], test['n_gen']): float(test['avg_ts'])
                for test in json.loads(text)}
    except (ValueError, KeyError, TypeError):
        raise ConfigError('llama-bench: expected a JSON list with n_prompt, n_gen and avg_ts, '
                          f'got {text[:80]!r}') from None


def _output(binary: str, *arguments: str) -> str:
    try:
        result = subprocess.run([binary, *arguments], capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(f'llama-bench: {error}') from None
    if result.returncode:
        raise ConfigError(f'llama-bench: expected it to run {" ".join(arguments)}, got exit '
                          f'status {result.returncode}: {result.stderr.strip()[-200:]}')
    return result.stdout
