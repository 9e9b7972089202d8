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
"""
Puts the node under load: thousands of requests from four clients, and how fast it lets go.

Every request must end once, its chunks without a gap, and the node's memory must stay what it is
after the first tenth. Then a running answer is canceled, interrupted or preempted while others
wait, and what that takes is set beside the time of one token.
"""

from __future__ import annotations

import argparse
from collections import Counter
from dataclasses import dataclass
from itertools import cycle
import json
import multiprocessing
from multiprocessing.sharedctypes import Synchronized
from pathlib import Path
import random
from statistics import median, quantiles
import sys
import time
from typing import Any, Optional, Sequence

from rclpy.duration import Duration

from benchmarks.node_client import Client, ENDLESS, node_process
from tinychat_msgs.msg import Interrupt, Prompt, Response
from tinychat_msgs.srv import ResetConversation
from tinychat_ros.commands.common import FAILED
from tinychat_ros.examples.loopback import isolate

CLIENTS = 4
TOLERATED_GROWTH = 0.05
PROMISED_S = 0.05
_IN_FLIGHT = 3
_LINGER_S = 1.0
_TURNS = 10
_KINDS = {'topic': 50, 'goal': 15, 'cancel': 10, 'interrupt': 10, 'deadline': 8, 'bad': 7}
_BAD = ({'text': ''}, {'text': 'x' * 300_000}, {'policy': 9}, {'stop': ['']},
        {'conversation_id': 'a\nb'}, {'max_new_tokens': -1})
_DONE = (Response.STOP, Response.LENGTH)
_ENDS = {'topic': _DONE, 'goal': _DONE, 'cancel': (*_DONE, Response.CANCELED),
         'interrupt': (*_DONE, Response.CANCELED), 'deadline': (*_DONE, Response.DEADLINE),
         'bad': (Response.ERROR,)}
_TRIALS = ('cancel', 'interrupt', 'preempt')
_WAITING = 3


@dataclass
class Asked:
    """
    A request under way.

    :param patience: chunks to wait for before it is canceled or interrupted.
    """

    kind: str
    request_id: str
    patience: int
    accepted: Any = None
    result: Any = None
    stopped: bool = False


def work(namespace: str, count: int, seed: int, served: Synchronized,
         reports: multiprocessing.Queue) -> None:
    """Send requests, a few at a time, and report how each ended and what went wrong."""
    client, rng = Client(namespace), random.Random(seed)
    client.connect()
    asked: list[Asked] = []
    under_way: list[Asked] = []
    while under_way or len(asked) < count:
        while len(under_way) < _IN_FLIGHT and len(asked) < count:
            # Talks end before they fill the context.
            talk = f'{rng.choice("abcde")} {len(asked) // _TURNS}'
            asked.append(_ask(client, rng, talk))
            under_way.append(asked[-1])
        try:
            client.wait(lambda: any([_advance(client, each) for each in under_way]))
            still = [each for each in under_way if not _advance(client, each)]
        except TimeoutError:
            still = []  # What is missing is told at the end.
        with served.get_lock():
            served.value += len(under_way) - len(still)
        under_way = still
    end = time.monotonic() + _LINGER_S
    client.wait(lambda: time.monotonic() > end)
    reports.put((Counter(_outcome(client, each) for each in asked),
                 [wrong for each in asked if (wrong := _wrong(client, each))]))


def _ask(client: Client, rng: random.Random, talk: str) -> Asked:
    kind, = rng.choices(list(_KINDS), _KINDS.values())
    fields = {'text': 'Hello, who are you?', 'max_new_tokens': rng.randint(4, 24),
              'conversation_id': rng.choice(('', talk))}
    if kind in ('cancel', 'interrupt'):
        fields |= {'max_new_tokens': 100, 'sampling': ENDLESS}
    elif kind == 'deadline':
        deadline = client.node.get_clock().now() + Duration(seconds=rng.uniform(0.0, 0.2))
        fields['deadline'] = deadline.to_msg()
    elif kind == 'bad':
        fields |= rng.choice(_BAD)
    if kind not in ('goal', 'cancel'):
        return Asked(kind, client.send(**fields), rng.randint(0, 3))
    request_id, accepted = client.send_goal(**fields)
    return Asked(kind, request_id, rng.randint(0, 3), accepted)


def _advance(client: Client, each: Asked) -> bool:
    """Cancel or interrupt when it is time; say whether all ends of a request are here."""
    handle = each.accepted.result() if each.accepted and each.accepted.done() else None
    if handle and not each.result:
        each.result = handle.get_result_async()
    if not each.stopped and len(client.chunks[each.request_id]) >= each.patience:
        if each.kind == 'cancel' and handle:
            handle.cancel_goal_async()
            each.stopped = True
        elif each.kind == 'interrupt':
            client.interrupt.publish(Interrupt(request_id=each.request_id))
            each.stopped = True
    return client.ended(each.request_id) and (
        each.accepted is None or bool(each.result and each.result.done()))


def _outcome(client: Client, each: Asked) -> tuple[str, int]:
    responses = client.responses[each.request_id]
    return each.kind, responses[0].finish_reason if responses else Response.NONE


def _wrong(client: Client, each: Asked) -> str:
    """Return what is wrong with the end of a request, '' for nothing."""
    chunks, responses = client.chunks[each.request_id], client.responses[each.request_id]
    response = responses[0] if responses else Response()
    checks = {
        f'{len(responses)} responses': len(responses) == 1,
        f'seq {[c.seq for c in chunks]}': [c.seq for c in chunks] == list(range(len(chunks))),
        'more than one final chunk': sum(c.final for c in chunks) == 1,
        'texts differ': ''.join(c.text for c in chunks) == response.text,
        f'finish reason {response.finish_reason}: {response.error_msg}':
            response.finish_reason in _ENDS[each.kind],
        'not accepted': each.accepted is None or each.accepted.done(),
        'no result': each.result is None or each.result.done(),
        'the result differs': each.result is None or not each.result.done() or (
            each.result.result().result.finish_reason == response.finish_reason)}
    return '; '.join(f'{each.kind}: {name}' for name, right in checks.items() if not right)


def soak(namespace: str, pid: int, requests: int) -> dict[str, Any]:
    """Let four processes send requests; return how they ended and the node's memory in bytes."""
    spawn = multiprocessing.get_context('spawn')
    served, reports = spawn.Value('i', 0), spawn.Queue()
    workers = [spawn.Process(target=work, args=(namespace, requests // CLIENTS, seed, served,
                                                reports)) for seed in range(CLIENTS)]
    begin, early = time.monotonic(), 0
    for worker in workers:
        worker.start()
    while any(worker.is_alive() for worker in workers) and reports.qsize() < CLIENTS:
        time.sleep(0.1)
        if not early and served.value >= requests // 10:
            early = resident_bytes(pid)
    late, seconds = resident_bytes(pid), time.monotonic() - begin
    outcomes, wrong = Counter(), []
    for _ in workers:
        counted, found = reports.get(timeout=10)
        outcomes += counted
        wrong += found
    for worker in workers:
        worker.join()
    return {'requests': outcomes.total(), 'seconds': seconds, 'wrong': wrong,
            'outcomes': {f'{kind} {reason}': n for (kind, reason), n in sorted(outcomes.items())},
            'memory_early': early, 'memory_late': late, 'growth': late / early - 1}


def resident_bytes(pid: int) -> int:
    """Return the memory of a process that is in RAM."""
    for line in Path(f'/proc/{pid}/status').read_text().splitlines():
        if line.startswith('VmRSS:'):
            return int(line.split()[1]) * 1024
    raise OSError(f'/proc/{pid}/status: expected a line VmRSS, and there is none')


def latencies(client: Client, trials: int) -> dict[str, Any]:
    """Stop running answers while others wait; return what it takes, and one token, in seconds."""
    taken: dict[str, list[float]] = {kind: [] for kind in _TRIALS}
    token: list[float] = []
    kinds = cycle(_TRIALS)
    while any(len(values) < trials for values in taken.values()):
        kind = next(kinds)
        seconds, response = _trial(client, kind)
        if response.finish_reason != Response.CANCELED:
            continue  # It was quicker than we.
        taken[kind].append(seconds)
        if kind != 'preempt':
            token.append((response.duration - response.time_to_first_token)
                         / max(response.completion_tokens - 1, 1))
    return {'token': median(token), **{
        kind: {'p50': median(values), 'p99': _p99(values), 'max': max(values)}
        for kind, values in taken.items()}}


def _p99(values: Sequence[float]) -> float:
    return quantiles(values, n=100, method='inclusive')[98]


def _trial(client: Client, kind: str) -> tuple[float, Response]:
    fields = {'text': 'Hello', 'sampling': ENDLESS, 'max_new_tokens': 900}
    victim, accepted = client.send_goal(**fields)
    client.wait(accepted.done)
    waiting = [client.send(**fields) for _ in range(_WAITING)]
    client.wait(lambda: client.chunks[victim])
    begin = time.monotonic()
    if kind == 'cancel':
        accepted.result().cancel_goal_async()
    elif kind == 'interrupt':
        client.interrupt.publish(Interrupt(request_id=victim))
    else:
        waiting.append(client.send(**{**fields, 'priority': 255, 'policy': Prompt.PREEMPT}))
    told = victim if kind != 'preempt' else waiting[-1]
    client.wait(lambda: client.ended(told) or kind == 'preempt' and client.chunks[told])
    seconds = client.arrivals[told][-1 if kind != 'preempt' else 0] - begin
    client.reset.call_async(ResetConversation.Request())
    client.wait(lambda: all(client.ended(name) for name in (victim, *waiting)))
    response, = client.responses[victim]
    for name in (victim, *waiting):
        client.forget(name)
    return seconds, response


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print a table and one JSON document; return 0, or 1 when a promise was not kept."""
    args = _parser().parse_args(argv)
    isolate()
    with node_process() as (namespace, process):
        document = {'soak': soak(namespace, process.pid, args.requests)}
        client = Client(namespace)
        client.connect()
        document['latency'] = latency = latencies(client, args.trials)
    document['kept'] = (
        not document['soak']['wrong'] and document['soak']['growth'] <= TOLERATED_GROWTH
        and all(latency[kind]['p99'] <= PROMISED_S + latency['token'] for kind in _TRIALS))
    _print_table(document)
    print(json.dumps(document))
    return 0 if document['kept'] else FAILED


def _print_table(document: dict[str, Any]) -> None:
    soaked, latency = document['soak'], document['latency']
    print(f"{soaked['requests']} requests in {soaked['seconds']:.0f} s, {len(soaked['wrong'])} "
          f"ended wrong; memory {soaked['memory_early'] / 2**20:.0f} MiB, then "
          f"{100 * soaked['growth']:+.1f} %")
    print(f"a token takes {latency['token'] * 1e3:.1f} ms; until it took effect [ms]:")
    for kind in _TRIALS:
        print(f'{kind:>10}' + ''.join(f'  {name} {value * 1e3:6.1f}'
                                      for name, value in latency[kind].items()))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.node_soak', description=__doc__)
    parser.add_argument('--requests', type=int, default=10_000)
    parser.add_argument('--trials', type=int, default=200, help='of each way to stop an answer')
    return parser


if __name__ == '__main__':
    sys.exit(main())
