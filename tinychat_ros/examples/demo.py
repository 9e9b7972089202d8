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
Starts the node as a process of its own and talks to it over ROS 2 topics, as a robot would.

``make demo`` runs this after it has set everything up.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import Callable

import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from std_msgs.msg import String

from tinychat_ros.engine.request import decode_rate
from tinychat_ros.examples.loopback import isolate
from tinychat_ros.nodes.messages import Response, Status, TokenChunk
from tinychat_ros.nodes.publishers import LATCHED

PROMPTS = (
    'Hello Tiny!',
    'What can you do?',
    'Please fetch the red cup from the kitchen.',
    'Bring it to the bedroom.',
    'Can you cook dinner for me?',
    'Thank you!',
)
_START_S = 60.0
_ANSWER_S = 60.0


class Listener(Node):
    """Publishes prompts and prints the tokens that come back."""

    def __init__(self) -> None:
        super().__init__('tinychat_demo')
        self.status: Status | None = None
        self.response: Response | None = None
        self.finished = False
        self._prompts = self.create_publisher(String, '/tinychat/prompt', 10)
        self.create_subscription(Status, '/tinychat/status', self._status_callback, LATCHED)
        self.create_subscription(TokenChunk, '/tinychat/tokens', self._token_callback, 1000)
        self.create_subscription(Response, '/tinychat/response', self._response_callback, 10)

    def ready(self) -> bool:
        """Say whether the node is active and all topics are connected."""
        return (self.status is not None and self.status.lifecycle_state == 'active'
                and self._prompts.get_subscription_count() > 0
                and self.count_publishers('/tinychat/tokens') > 0
                and self.count_publishers('/tinychat/response') > 0)

    def ask(self, text: str) -> None:
        """Publish a prompt."""
        self.response, self.finished = None, False
        self._prompts.publish(String(data=text))

    def answered(self) -> bool:
        """Say whether the whole answer is here."""
        return self.finished and self.response is not None

    def _status_callback(self, status: Status) -> None:
        self.status = status

    def _token_callback(self, chunk: TokenChunk) -> None:
        print(chunk.text, end='', flush=True)
        self.finished = chunk.final

    def _response_callback(self, response: Response) -> None:
        self.response = response


def main() -> int:
    """Run the demo; return 0 when every prompt was answered and the node ended in order."""
    isolate()
    print('== starting the node: python -m tinychat_ros.nodes.chat_node')
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, '-m', 'tinychat_ros.nodes.chat_node'])
    rclpy.init()
    executor = SingleThreadedExecutor()
    listener = Listener()
    executor.add_node(listener)
    try:
        answered = _talk(executor, listener, process, started)
    finally:
        rclpy.try_shutdown()
        process.send_signal(signal.SIGINT)
        status = process.wait(timeout=10)
    print(f'\n== the node ended with exit code {status}')
    return 0 if answered and status == 0 else 1


def _talk(executor: SingleThreadedExecutor, listener: Listener, process: subprocess.Popen,
          started: float) -> bool:
    if not _wait(executor, process, listener.ready, _START_S):
        print('== the node did not become active', file=sys.stderr)
        return False
    print(f'== the node is active after {time.monotonic() - started:.1f} s; publishing prompts on '
          '/tinychat/prompt, printing /tinychat/tokens')
    for prompt in PROMPTS:
        print(f'\nyou:  {prompt}\ntiny: ', end='', flush=True)
        listener.ask(prompt)
        if not _wait(executor, process, listener.answered, _ANSWER_S):
            print('== no answer came', file=sys.stderr)
            return False
        if listener.response.error_code:
            print(f'== failed: {listener.response.error_msg}', file=sys.stderr)
            return False
        print(f'\n      {_figures(listener.response)}')
    return True


def _wait(executor: SingleThreadedExecutor, process: subprocess.Popen,
          condition: Callable[[], bool], seconds: float) -> bool:
    give_up = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > give_up or process.poll() is not None:
            return False
        executor.spin_once(timeout_sec=0.1)
    return True


def _figures(response: Response) -> str:
    rate = decode_rate(response.completion_tokens, response.duration,
                       response.time_to_first_token)
    return (f'first token after {response.time_to_first_token * 1000:.0f} ms, '
            f'{response.completion_tokens} tokens, {rate:.0f} tokens/s, '
            f'{response.cached_tokens} of {response.prompt_tokens} prompt tokens were cached')


if __name__ == '__main__':
    sys.exit(main())
