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
Publishes a prompt and prints the answer token by token.

``ros2 run tinychat_ros prompt_publisher Bring me the red cup.``
"""

from __future__ import annotations

import sys
import uuid

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from rclpy.utilities import remove_ros_args

from tinychat_msgs.msg import Prompt, Status, TokenChunk

_LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class PromptPublisher(Node):
    """Asks once, and listens until the last token."""

    def __init__(self) -> None:
        super().__init__('prompt_publisher')
        self.finished = False
        self._active = False
        self._request_id = uuid.uuid4().hex
        self._publisher = self.create_publisher(Prompt, 'tinychat/request', 10)
        self.create_subscription(TokenChunk, 'tinychat/tokens', self._token_callback, 1000)
        # The last subscription: when a status comes, the node knows of the others, too.
        self.create_subscription(Status, 'tinychat/status', self._status_callback, _LATCHED)

    def ready(self) -> bool:
        """Tell whether the node would answer and be heard."""
        return self._active and self._publisher.get_subscription_count() > 0

    def ask(self, text: str) -> None:
        """Publish the prompt."""
        self._publisher.publish(
            Prompt(request_id=self._request_id, conversation_id='default', text=text))

    def _status_callback(self, status: Status) -> None:
        self._active = status.lifecycle_state == 'active'

    def _token_callback(self, chunk: TokenChunk) -> None:
        if chunk.request_id != self._request_id:
            return
        print(chunk.text, end='\n' if chunk.final else '', flush=True)
        self.finished = chunk.final


def main() -> None:
    """Ask what the command line says."""
    rclpy.init()
    node = PromptPublisher()
    try:
        while not node.ready():
            rclpy.spin_once(node, timeout_sec=0.1)
        node.ask(' '.join(remove_ros_args(sys.argv)[1:]) or 'Hello!')
        while not node.finished:
            rclpy.spin_once(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        node.destroy_node()
        rclpy.try_shutdown()


if __name__ == '__main__':
    main()
