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
"""The node in a process of its own, and a client that sends it requests over DDS."""

from __future__ import annotations

from contextlib import contextmanager
import signal
import subprocess
import sys
import time
from typing import Any, Callable, Iterator
import uuid

import rclpy
from rclpy.action import ActionClient
from rclpy.qos import DurabilityPolicy, QoSProfile

from tinychat_msgs.action import Generate
from tinychat_msgs.msg import Interrupt, Prompt, Response, SamplingParams, TokenChunk
from tinychat_msgs.srv import ResetConversation

# At the highest temperature every token is as likely as another, and an answer seldom ends; with
# this seed, the demo model's to 'Hello' does not.
ENDLESS = SamplingParams(temperature=100.0, top_k=0, top_p=1.0, min_p=0.0, seed=0)
_PATIENCE_S = 30.0
_KNOCK_S = 2.0


@contextmanager
def node_process() -> Iterator[tuple[str, subprocess.Popen]]:
    """Run the node with the demo model on one thread; give its namespace and its process."""
    namespace = f'/bench_{uuid.uuid4().hex[:8]}'
    process = subprocess.Popen(
        [sys.executable, '-m', 'tinychat_ros.nodes.chat_node', '--ros-args',
         '--log-level', 'fatal', '-r', f'__ns:={namespace}', '-p', 'num_threads:=1'],
        stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        yield namespace, process
    finally:
        process.send_signal(signal.SIGINT)
        process.wait()


class Client:
    """A ROS node that sends requests and keeps what comes for them, by request id."""

    def __init__(self, namespace: str) -> None:
        if not rclpy.ok():
            rclpy.init()
        self.node = rclpy.create_node(f'client_{uuid.uuid4().hex[:8]}', namespace=namespace)
        self.chunks: dict[str, list[TokenChunk]] = {}
        self.responses: dict[str, list[Response]] = {}
        self.arrivals: dict[str, list[float]] = {}
        self.request = self.node.create_publisher(Prompt, 'tinychat/request', 1000)
        self.interrupt = self.node.create_publisher(Interrupt, 'tinychat/interrupt', 1000)
        # A reader has the responses to all clients in it, of which the default keeps ten.
        services = QoSProfile(depth=1000)
        self.generate = ActionClient(
            self.node, Generate, 'tinychat/generate', goal_service_qos_profile=services,
            result_service_qos_profile=services, cancel_service_qos_profile=services)
        self.reset = self.node.create_client(ResetConversation, 'tinychat/reset_conversation')
        self.node.create_subscription(TokenChunk, 'tinychat/tokens', self._hear_chunk, 10000)
        self.node.create_subscription(
            Response, 'tinychat/response', self._hear_response,
            QoSProfile(depth=1000, durability=DurabilityPolicy.TRANSIENT_LOCAL))

    def connect(self) -> None:
        """Wait until requests are heard and answered, on the topics and by the action."""
        self.wait(self.generate.server_is_ready)
        self.wait(self.reset.service_is_ready)
        self.wait(lambda: self.interrupt.get_subscription_count())
        knocks: list[str] = []
        while not any(self.ended(name) for name in knocks):
            knocks.append(self.send(text='knock', max_new_tokens=1))
            give_up = time.monotonic() + _KNOCK_S
            self.wait(lambda: self.ended(knocks[-1]) or time.monotonic() > give_up)

    def expect(self, request_id: str) -> None:
        """Keep what comes for a request; that of others is left."""
        self.chunks[request_id], self.responses[request_id] = [], []
        self.arrivals[request_id] = []

    def send(self, **fields: Any) -> str:
        """Publish a prompt; return its id."""
        prompt = Prompt(**{'request_id': uuid.uuid4().hex, **fields})
        self.expect(prompt.request_id)
        self.request.publish(prompt)
        return prompt.request_id

    def send_goal(self, **fields: Any) -> tuple[str, rclpy.Future]:
        """Send a goal; return its request id and what tells whether it is accepted."""
        prompt = Prompt(**{'request_id': uuid.uuid4().hex, **fields})
        self.expect(prompt.request_id)
        return prompt.request_id, self.generate.send_goal_async(Generate.Goal(prompt=prompt))

    def forget(self, request_id: str) -> None:
        """Keep nothing more of a request."""
        for kept in (self.chunks, self.responses, self.arrivals):
            del kept[request_id]

    def ended(self, request_id: str) -> bool:
        """Tell whether the response and the last chunk are here."""
        chunks = self.chunks[request_id]
        return bool(self.responses[request_id] and chunks and chunks[-1].final)

    def spin(self) -> None:
        """Take the next message."""
        rclpy.spin_once(self.node, timeout_sec=0.05)

    def wait(self, condition: Callable[[], Any]) -> None:
        """
        Take messages until the condition holds.

        :raises TimeoutError: it does not for half a minute.
        """
        give_up = time.monotonic() + _PATIENCE_S
        while not condition():
            if time.monotonic() > give_up:
                raise TimeoutError(f'waited {_PATIENCE_S:.0f} s for the node')
            self.spin()

    def _hear_chunk(self, chunk: TokenChunk) -> None:
        if chunk.request_id in self.chunks:
            self.chunks[chunk.request_id].append(chunk)
            self.arrivals[chunk.request_id].append(time.monotonic())

    def _hear_response(self, response: Response) -> None:
        if response.request_id in self.responses:
            self.responses[response.request_id].append(response)
