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
"""The last images of a camera, and the one that a prompt asks for."""

from __future__ import annotations

from typing import NamedTuple, Optional, Union

from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import CompressedImage, Image as RawImage
import torch

from tinychat_ros.engine.image import check_size, decode_image, Image
from tinychat_ros.engine.request import one_line
from tinychat_ros.errors import (
    ImageCorruptError, ImageMissingError, ImageStaleError, ImageUnsupportedError,
    InvalidRequestError, ModelCannotSeeError)
from tinychat_ros.nodes import parameters
from tinychat_ros.nodes.messages import Prompt

# What a busy node did not take is not worth taking later: the next image is on its way.
_NEWEST_ONLY = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)
_CHANNELS = {'rgb8': 3, 'bgr8': 3, 'mono8': 1}
_CHOICES = ('NO_IMAGE', 'NEWEST_IMAGE', 'IMAGE_AT_STAMP')


class _Frame(NamedTuple):
    """A message with its stamp, or with its arrival where it has none, in nanoseconds."""

    stamp: int
    message: Union[RawImage, CompressedImage]


class Camera:
    """
    Listens to ``~/image`` and ``~/image/compressed`` while it is open.

    Messages are kept as they come, and the one that a prompt asks for is decoded: a camera that
    nobody asks about costs the way of its messages alone.

    :param node: has the parameters ``image.*``, and the clock by which an image is old.
    """

    def __init__(self, node: Node) -> None:
        self._node = node
        self._subscriptions = []
        self._frames: list[_Frame] = []

    def open(self) -> None:
        """Begin to listen."""
        self._subscriptions = [
            self._node.create_subscription(kind, topic, self.keep, _NEWEST_ONLY)
            for kind, topic in ((RawImage, '~/image'), (CompressedImage, '~/image/compressed'))]

    def close(self) -> None:
        """Stop to listen, and forget all images."""
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions, self._frames = [], []

    def keep(self, message: Union[RawImage, CompressedImage]) -> None:
        """Keep a message, and of those before it what is near in time and fits."""
        stamp = _nanoseconds(message.header.stamp) or self._now()
        # A clock that was set back has left images behind that would stay the newest.
        near = [f for f in self._frames if abs(f.stamp - stamp) <= 1e9 * self._max_age_s()]
        self._frames = [*near, _Frame(stamp, message)]
        budget = parameters.value(self._node, 'image.history_mb') * 2**20
        while len(self._frames) > 1 and sum(len(f.message.data) for f in self._frames) > budget:
            del self._frames[0]

    def image_for(self, prompt: Prompt) -> Optional[Image]:
        """
        Return the image that a prompt asks for, None where it asks for none.

        :raises ImageError: there is none that may be shown; see errors.py for the kinds.
        :raises InvalidRequestError: the prompt asks for something else.
        """
        if prompt.image == Prompt.NO_IMAGE:
            return None
        if prompt.image >= len(_CHOICES):
            raise InvalidRequestError(f'image: expected 0 to {len(_CHOICES) - 1}, one of '
                                      f"{', '.join(_CHOICES)}, got {prompt.image}")
        if not self._subscriptions:
            raise ModelCannotSeeError('image: expected NO_IMAGE, since the model takes text '
                                      f'alone, got {_CHOICES[prompt.image]}')
        frame = self._newest() if prompt.image == Prompt.NEWEST_IMAGE else self._at(prompt)
        age, most = (self._now() - frame.stamp) * 1e-9, self._max_age_s()
        if abs(age) > most:
            raise ImageStaleError(f"image: expected one at most {most:g} s old by the node's "
                                  f'clock, got one of {age:.3f} s')
        if isinstance(frame.message, CompressedImage):
            return decode_image(frame.message.data.tobytes())
        return _to_image(frame.message)

    def _newest(self) -> _Frame:
        if not self._frames:
            topics = ' or '.join(s.topic_name for s in self._subscriptions)
            raise ImageMissingError(
                f'image: expected one on {topics}, got none since the node is active')
        return max(self._frames, key=lambda frame: frame.stamp)

    def _at(self, prompt: Prompt) -> _Frame:
        stamp = prompt.image_stamp
        for frame in self._frames:
            if frame.message.header.stamp == stamp:
                return frame
        raise ImageMissingError(
            f'image_stamp: expected the stamp of one of the {len(self._frames)} images that are '
            f'kept, got {stamp.sec}.{stamp.nanosec:09d}')

    def _max_age_s(self) -> float:
        return parameters.value(self._node, 'image.max_age_s')

    def _now(self) -> int:
        return self._node.get_clock().now().nanoseconds


def _to_image(message: RawImage) -> Image:
    channels = _CHANNELS.get(message.encoding)
    if channels is None:
        raise ImageUnsupportedError(f"image.encoding: expected one of {', '.join(_CHANNELS)}, "
                                    f"got '{one_line(message.encoding)}'")
    check_size(message.width, message.height)
    row, size = message.width * channels, message.height * message.step
    if message.step < row:
        raise ImageCorruptError(
            f'image.step: expected {row} bytes or more for a row of {message.width} pixels in '
            f'{message.encoding}, got {message.step}')
    if len(message.data) < size:
        raise ImageCorruptError(f'image.data: expected {size} bytes for {message.height} rows of '
                                f'{message.step}, got {len(message.data)}')
    rows = torch.frombuffer(message.data, dtype=torch.uint8, count=size).view(-1, message.step)
    pixels = rows[:, :row].view(message.height, message.width, channels)
    if message.encoding == 'bgr8':
        pixels = pixels.flip(2)
    return Image(pixels.expand(-1, -1, 3).contiguous())


def _nanoseconds(stamp: Time) -> int:
    return stamp.sec * 10**9 + stamp.nanosec
