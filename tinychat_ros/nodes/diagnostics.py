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
"""Counts what the node did, and says it on /diagnostics beside the state of the machine."""

from __future__ import annotations

from collections import deque
import math
from typing import Callable, Optional, Sequence, Union

from diagnostic_msgs.msg import DiagnosticStatus, KeyValue

from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import decode_rate
from tinychat_ros.engine.scheduler import Scheduler
from tinychat_ros.nodes import machine
from tinychat_ros.nodes.limits import broken_limits, Figures
from tinychat_ros.nodes.messages import Response

# Percentiles are over the last answers, so that they follow a change of load.
_ANSWERS = 100


class Statistics:
    """What happened since the node was activated."""

    def __init__(self) -> None:
        self.served = 0
        self.failed = 0
        self._rejected = 0
        self._chunks = 0
        self._coalesced = 0
        self._last_error = ''
        self._first_token: deque[float] = deque(maxlen=_ANSWERS)
        self._rate: deque[float] = deque(maxlen=_ANSWERS)

    def count(self, response: Response, chunks: int, coalesced: int) -> None:
        """
        Take the end of a request into account.

        :param chunks: messages in which its tokens were published.
        :param coalesced: tokens that went in the message of one before them.
        """
        self._chunks += chunks
        self._coalesced += coalesced
        if response.error_code != Response.NO_ERROR:
            self.failed += 1
            self._rejected += response.error_code == Response.QUEUE_FULL
            self._last_error = response.error_msg
            return
        self.served += 1
        if response.completion_tokens:
            self._first_token.append(response.time_to_first_token)
        rate = decode_rate(response.completion_tokens, response.duration,
                           response.time_to_first_token)
        if rate:
            self._rate.append(rate)

    def figures(self) -> Figures:
        """Return the figures under the names that /diagnostics gives them."""
        return {
            'requests served': self.served,
            'requests failed': self.failed,
            'requests rejected, queue full': self._rejected,
            'time to first token p50 [s]': _percentile(self._first_token, 50),
            'time to first token p95 [s]': _percentile(self._first_token, 95),
            'decode rate p50 [tokens/s]': _percentile(self._rate, 50),
            'chunks published': self._chunks,
            'tokens coalesced': self._coalesced,
            'last error': self._last_error,
        }


def diagnostic_status(name: str, lifecycle_state: str, problem: str, engine: Optional[Engine],
                      scheduler: Optional[Scheduler], counted: Statistics,
                      parameter: Callable[[str], float]) -> DiagnosticStatus:
    """
    Return the node's entry on /diagnostics.

    :param name: the node's full name.
    :param problem: why the node is not active although it should be; '' when there is none.
    :param parameter: returns the value of one of the node's parameters.
    """
    figures = {'lifecycle state': lifecycle_state, **_model(engine),
               **_queue(scheduler, parameter), **counted.figures(), **machine.figures()}
    found = list(broken_limits(figures, parameter))
    if problem:
        found.insert(0, (DiagnosticStatus.ERROR, problem))
    elif lifecycle_state != 'active':
        found.insert(0, (DiagnosticStatus.WARN, lifecycle_state))
    return DiagnosticStatus(
        level=max((level for level, _ in found), default=DiagnosticStatus.OK),
        name=f'{name}: language model',
        message='; '.join(text for _, text in found) or lifecycle_state,
        hardware_id=engine.info.device if engine else '',
        values=[KeyValue(key=key, value=_text(value)) for key, value in figures.items()])


def _model(engine: Optional[Engine]) -> Figures:
    if engine is None:
        return {}
    info = engine.info
    return {'model': info.name, 'model hash': info.model_hash, 'device': info.device,
            'KV positions used': engine.cached_positions,
            'KV positions': info.num_slots * info.max_seq_len}


def _queue(scheduler: Optional[Scheduler], parameter: Callable[[str], float]) -> Figures:
    if scheduler is None:
        return {}
    length = scheduler.queue_length
    return {'queue length': length, 'queue in use [%]': 100 * length / parameter('queue_capacity'),
            'preemptions': scheduler.preemptions}


def _percentile(values: Sequence[float], percent: int) -> Union[float, str]:
    """Return the least value that so many percent do not exceed; '' of none."""
    if not values:
        return ''
    return sorted(values)[math.ceil(percent * len(values) / 100) - 1]


def _text(value: Union[str, int, float]) -> str:
    return f'{value:.3f}' if isinstance(value, float) else str(value)
