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
"""Brings what the engine logs, without knowing of ROS, into the node's log."""

from __future__ import annotations

import logging

from rclpy.impl.rcutils_logger import RcutilsLogger


class _RosLogHandler(logging.Handler):
    def __init__(self, logger: RcutilsLogger) -> None:
        super().__init__()
        # rclpy refuses one call site that logs at two severities, hence one method for each.
        self._methods = {logging.DEBUG: lambda text: logger.debug(text),
                         logging.INFO: lambda text: logger.info(text),
                         logging.WARNING: lambda text: logger.warning(text),
                         logging.ERROR: lambda text: logger.error(text)}

    def emit(self, record: logging.LogRecord) -> None:
        level = min(record.levelno, logging.ERROR) // 10 * 10
        self._methods[max(level, logging.DEBUG)](self.format(record))


def forward_logging(logger: RcutilsLogger) -> None:
    """Send the package's log records to a node's logger, which filters them by its own level."""
    package = logging.getLogger('tinychat_ros')
    package.handlers = [_RosLogHandler(logger)]
    package.setLevel(logging.DEBUG)
    package.propagate = False
