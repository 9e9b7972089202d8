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
"""What the figures of /diagnostics may be before it warns, in one table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Callable, Iterator, Mapping, Union

from diagnostic_msgs.msg import DiagnosticStatus

Figures = Mapping[str, Union[str, int, float]]


@dataclass(frozen=True)
class Limit:
    """
    One row.

    :param figure: its name is ``figure [unit]``.
    :param bound: the limit is what it may be 'at most' or 'at least'.
    :param warn: name of the parameter that is the limit; 0 there is none.
    :param error: the same for ERROR.
    """

    figure: str
    unit: str
    bound: str
    warn: str
    error: str = ''

    def breaks(self, value: float, limit: float) -> bool:
        """Say whether a value is on the wrong side of a limit that is set."""
        return limit > 0 and (value > limit if self.bound == 'at most' else value < limit)


LIMITS = (
    Limit('time to first token p95', 's', 'at most',
          'diagnostics.first_token_warn_s', 'diagnostics.first_token_error_s'),
    Limit('queue in use', '%', 'at most', 'diagnostics.queue_warn_percent'),
    Limit('free memory', 'MiB', 'at least',
          'diagnostics.memory_warn_mb', 'diagnostics.memory_error_mb'),
    Limit('GPU temperature', 'C', 'at most',
          'diagnostics.temperature_warn_c', 'diagnostics.temperature_error_c'),
)


def broken_limits(figures: Figures,
                  parameter: Callable[[str], float]) -> Iterator[tuple[bytes, str]]:
    """
    Yield a level and a message for each figure that is on the wrong side of its limit.

    :param parameter: returns the value of a parameter.
    """
    for limit in LIMITS:
        value = figures.get(f'{limit.figure} [{limit.unit}]')
        if not isinstance(value, (int, float)):
            continue
        for level, name in ((DiagnosticStatus.ERROR, limit.error),
                            (DiagnosticStatus.WARN, limit.warn)):
            if name and limit.breaks(value, parameter(name)):
                yield level, (f'{limit.figure}: expected {limit.bound} {parameter(name):g} '
                              f'{limit.unit}, got {value:g}')
                break
