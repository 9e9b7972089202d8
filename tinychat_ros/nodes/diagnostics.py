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
"""Counts what the node did, and says it on /diagnostics."""

from __future__ import annotations

from collections import deque
import statistics
from typing import Optional

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from tinychat_ros.engine.engine import ModelInfo
from tinychat_ros.engine.request import decode_rate
from tinychat_ros.nodes.messages import Response

# Medians are over the last answers, so that they follow a change of load.
_ANSWERS = 100


class Statistics:
    """What happened since the node was activated."""

    def __init__(self) -> None:
        self.served = 0
        self.failed = 0
        self.last_error = ''
        self._first_token: deque[float] = deque(maxlen=_ANSWERS)
        self._rate: deque[float] = deque(maxlen=_ANSWERS)

    def count(self, response: Response) -> None:
        """Take the end of a request into account."""
        if response.error_code != Response.NO_ERROR:
            self.failed += 1
            self.last_error = response.error_msg
            return
        self.served += 1
        if response.completion_tokens:
            self._first_token.append(response.time_to_first_token)
        rate = decode_rate(response.completion_tokens, response.duration,
                           response.time_to_first_token)
        if rate:
            self._rate.append(rate)

    def values(self) -> dict[str, str]:
        """Return the figures under the names that /diagnostics gives them."""
        return {
            'requests served': str(self.served),
            'requests failed': str(self.failed),
            'time to first token p50 [s]': _median(self._first_token),
            'decode rate p50 [tokens/s]': _median(self._rate),
            'last error': self.last_error,
        }


def diagnostic_status(name: str, lifecycle_state: str, problem: str, info: Optional[ModelInfo],
                      queue_length: int, counted: Statistics) -> DiagnosticStatus:
    """
    Return the node's entry on /diagnostics.

    :param name: the node's full name.
    :param problem: why the node is not active although it should be; '' when there is none.
    """
    values = {'lifecycle state': lifecycle_state, 'queue length': str(queue_length)}
    if info:
        values |= {'model': info.name, 'device': info.device}
    values |= counted.values()
    active = lifecycle_state == 'active'
    level = DiagnosticStatus.OK if active else DiagnosticStatus.WARN
    return DiagnosticStatus(
        level=DiagnosticStatus.ERROR if problem else level,
        name=f'{name}: language model', message=problem or lifecycle_state,
        hardware_id=info.device if info else '',
        values=[KeyValue(key=key, value=text) for key, text in values.items()])


def _median(values: deque[float]) -> str:
    return f'{statistics.median(values):.3f}' if values else ''
