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
Prints what the node costs: its tokens per second beside those of the engine alone.

The engine runs in this process, the node in one of its own, both with the demo model on one
thread. They take turns with the same requests, long answers of the same tokens. Three processes,
this one among them, listen to the node's tokens. The node is started several times: what memory
it is given makes it faster or slower than the engine by some percent until it ends.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import time
from typing import Any, Optional, Sequence

import rclpy

from benchmarks.node_client import Client, ENDLESS, node_process
from tinychat_ros.bench.timing import summary
from tinychat_ros.engine.engine import Engine
from tinychat_ros.engine.request import Request
from tinychat_ros.engine.sampler import SamplingParams
from tinychat_ros.examples.loopback import isolate

LISTENERS = 2
_TOKENS = 900
_TEXT = 'Hello'
_WARM_UP = 3


def listen(namespace: str) -> None:
    """Hear the node until the process is ended."""
    client = Client(namespace)
    while rclpy.ok():
        client.spin()


def run(starts: int, rounds: int) -> dict[str, Any]:
    """Let both answer in turn; return their rates in tokens per second, and the ratio."""
    engine = Engine.load(num_threads=1)
    pairs = [_turns(engine, rounds) for _ in range(starts)]
    ratios = [[node / bare for bare, node in turns] for turns in pairs]
    bare, node = zip(*(pair for turns in pairs for pair in turns))
    return {'tokens': _TOKENS, 'subscribers': LISTENERS + 1, 'starts': starts, 'rounds': rounds,
            'engine': summary(bare)._asdict(), 'node': summary(node)._asdict(),
            'ratio': summary(sum(ratios, []))._asdict(),
            'ratio_of_each_start': [statistics.median(start) for start in ratios]}


def _turns(engine: Engine, rounds: int) -> list[tuple[float, float]]:
    """Start a node and return both rates of each turn."""
    spawn, turns = multiprocessing.get_context('spawn'), []
    with node_process() as (namespace, _):
        listeners = [spawn.Process(target=listen, args=(namespace,), daemon=True)
                     for _ in range(LISTENERS)]
        for listener in listeners:
            listener.start()
        client = Client(namespace)
        client.connect()
        client.wait(lambda: client.node.count_subscribers(f'{namespace}/tinychat/tokens')
                    == LISTENERS + 1)
        for _ in range(rounds + _WARM_UP):
            turns.append((_engine_rate(engine), _node_rate(client)))
        client.node.destroy_node()
        for listener in listeners:
            listener.kill()
    return turns[_WARM_UP:]


def _engine_rate(engine: Engine) -> float:
    sampling = SamplingParams(**{name: getattr(ENDLESS, name) for name in
                                 ('temperature', 'top_k', 'top_p', 'min_p', 'seed')})
    begin = time.monotonic()
    *_, last = engine.generate(Request(text=_TEXT, max_new_tokens=_TOKENS, sampling=sampling))
    return last.result.completion_tokens / (time.monotonic() - begin)


def _node_rate(client: Client) -> float:
    name = client.send(text=_TEXT, max_new_tokens=_TOKENS, sampling=ENDLESS)
    client.wait(lambda: client.ended(name))
    response, = client.responses[name]
    client.forget(name)
    return response.completion_tokens / response.duration


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Print a table and one JSON document."""
    args = _parser().parse_args(argv)
    isolate()
    document = run(args.starts, args.rounds)
    for name in ('engine', 'node', 'ratio'):
        figures = '  '.join(f'{key} {value:9.3f}' for key, value in document[name].items())
        print(f"{name:>7} {'' if name == 'ratio' else '[tokens/s]':10}  {figures}")
    print('ratio of each start ', *(f'{ratio:.3f}' for ratio in document['ratio_of_each_start']))
    print(json.dumps(document))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog='python -m benchmarks.node_overhead',
                                     description=__doc__)
    parser.add_argument('--starts', type=int, default=7)
    parser.add_argument('--rounds', type=int, default=15)
    return parser


if __name__ == '__main__':
    sys.exit(main())
