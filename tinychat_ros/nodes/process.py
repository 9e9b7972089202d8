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
"""Runs a node as a process: spinning, signals, and an end that loses no message."""

from __future__ import annotations

import gc
import os
import signal
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Callable, NoReturn, Optional, Protocol

import rclpy
from rclpy.exceptions import ParameterException
from rclpy.executors import SingleThreadedExecutor
from rclpy.impl.implementation_singleton import rclpy_implementation
from rclpy.signals import SignalHandlerOptions

from tinychat_ros.nodes.log_handler import forward_logging

# Python hands the interpreter over every 5 ms by default, longer than a small model's token.
_SWITCH_INTERVAL_S = 0.0005
_SHUTDOWN_GRACE_S = 0.5
_LEAST_ROUNDS = 20
_ROUNDS_PER_GOAL = 5
_END_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class ServingNode(Protocol):
    """What a process asks of its node, beside being an rclpy node."""

    open_goals: int

    def autostart(self) -> None:
        """Begin to serve."""

    def stop(self) -> None:
        """End every request with a result; goals have theirs after some more callbacks."""


def run_process(make_node: Callable[[], ServingNode]) -> NoReturn:
    """
    Run a node until SIGINT or SIGTERM and end the process.

    The exit code is 0 after an orderly end, 1 when the node could not start.
    """
    status = _run(make_node)
    sys.stdout.flush()
    sys.stderr.flush()
    # Everything is closed. Python's own way out tears torch down, which takes a second.
    os._exit(status)


def _run(make_node: Callable[[], ServingNode]) -> int:
    sys.setswitchinterval(_SWITCH_INTERVAL_S)
    # rclpy's own handlers end the context at once, and with it the messages that end an answer.
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    for number in _END_SIGNALS:
        signal.signal(number, _interrupt_once)
    try:
        return _run_node(make_node)
    finally:
        # The node stands in cycles of references, and half a megabyte of shared memory that it
        # holds would outlive the process.
        gc.collect()
        rclpy.try_shutdown()


def _run_node(make_node: Callable[[], ServingNode]) -> int:
    try:
        node = make_node()
    except (ParameterException, rclpy_implementation.RCLError) as error:
        print(f'tinychat: {error}', file=sys.stderr)
        return 1
    forward_logging(node.get_logger())
    try:
        _serve(node)
    finally:
        node.destroy_node()
    return 0


def _serve(node: ServingNode) -> None:
    """Serve until SIGINT or SIGTERM."""
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    stopping = threading.Event()
    spinner = threading.Thread(target=_spin, args=(executor, node, stopping), name='tinychat-ros')
    try:
        node.autostart()
        spinner.start()
        threading.Event().wait()
    except KeyboardInterrupt:
        node.get_logger().info('shutting down')
    finally:
        goals = node.open_goals
        node.stop()
        if spinner.ident is not None:
            executor.create_task(stopping.set)
            spinner.join()
        _drain(executor, node, goals)
        executor.shutdown()


def _spin_once(executor: SingleThreadedExecutor, node: ServingNode,
               timeout_s: Optional[float] = None) -> None:
    """Run the next callback; one that fails does not take the node down."""
    try:
        executor.spin_once(timeout_sec=timeout_s)
    except Exception:
        node.get_logger().error(f'a callback failed:\n{traceback.format_exc()}')


def _spin(executor: SingleThreadedExecutor, node: ServingNode, stopping: threading.Event) -> None:
    while rclpy.ok() and not stopping.is_set():
        _spin_once(executor, node)


def _drain(executor: SingleThreadedExecutor, node: ServingNode, goals: int) -> None:
    """Bring action clients their results: the end of a goal takes a few callbacks, one by one."""
    rounds = _LEAST_ROUNDS + _ROUNDS_PER_GOAL * goals
    give_up = time.monotonic() + _SHUTDOWN_GRACE_S
    while rounds and time.monotonic() < give_up:
        _spin_once(executor, node, timeout_s=0.0)
        rounds -= 1


def _interrupt_once(number: int, frame: Optional[FrameType]) -> None:
    """Begin the end; a terminal and its launcher often both signal, and one is enough."""
    for each in _END_SIGNALS:
        # Python complains when a signal that is under way meets SIG_IGN.
        signal.signal(each, lambda number, frame: None)
    raise KeyboardInterrupt
