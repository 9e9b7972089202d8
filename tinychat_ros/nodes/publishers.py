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
"""What the node publishes, and with which quality of service."""

from __future__ import annotations

from typing import Any

from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.publisher import Publisher
from rclpy.qos import DurabilityPolicy, QoSProfile
from std_msgs.msg import Header, String

from tinychat_ros.nodes.messages import Response, Sentence, Status, TokenChunk

# As many chunks as an answer of common length has: none is lost for a listener that lags.
TOKENS_DEPTH = 1000

# The last message waits for whoever comes late.
LATCHED = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Publishers:
    """The publishers of a node, all reliable, usable from any thread."""

    def __init__(self, node: Node) -> None:
        self._clock = node.get_clock()
        self.tokens = node.create_publisher(TokenChunk, '~/tokens', TOKENS_DEPTH)
        self._text = node.create_publisher(String, '~/text', 100)
        self._sentences = node.create_publisher(Sentence, '~/sentences', 50)
        self.response = node.create_publisher(Response, '~/response', LATCHED)
        self._status = node.create_publisher(Status, '~/status', LATCHED)
        self.diagnostics = node.create_publisher(DiagnosticArray, '/diagnostics', 10)

    def header(self) -> Header:
        """Return a header stamped with the node's clock."""
        return Header(stamp=self._clock.now().to_msg())

    def text(self, text: str) -> None:
        """Publish a piece of an answer."""
        _publish_if_heard(self._text, String(data=text))

    def sentence(self, sentence: Sentence) -> None:
        """Stamp and publish a sentence."""
        sentence.header = self.header()
        _publish_if_heard(self._sentences, sentence)

    def status(self, status: Status) -> None:
        """Stamp and publish a status."""
        status.header = self.header()
        self._status.publish(status)


def _publish_if_heard(publisher: Publisher, message: Any) -> None:
    """Publish where someone listens: what nobody hears takes the decoding thread as long."""
    if publisher.get_subscription_count():
        publisher.publish(message)
