// Copyright 2026 tinychat_ros developers
//
// Licensed under the Apache License, Version 2.0 (the "License");
// you may not use this file except in compliance with the License.
// You may obtain a copy of the License at
//
//     http://www.apache.org/licenses/LICENSE-2.0
//
// Unless required by applicable law or agreed to in writing, software
// distributed under the License is distributed on an "AS IS" BASIS,
// WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
// See the License for the specific language governing permissions and
// limitations under the License.

// A decode step as a flat list of kernel calls: the CPU's counterpart of a CUDA graph. While one
// is recorded, run_or_record() puts calls into it instead of making them.

#pragma once

#include <chrono>
#include <functional>
#include <stdexcept>
#include <utility>
#include <vector>

namespace tinychat {

class Program {
 public:
  void begin() {
    if (recorded_by_this_thread() != nullptr) {
      throw std::runtime_error("CpuProgram: expected one to be recorded at a time");
    }
    recorded_by_this_thread() = this;
  }

  void end() { recorded_by_this_thread() = nullptr; }

  // Makes the calls, and asks every few milliseconds whether to go on; says whether all were made.
  template <typename Interrupted>
  bool run(const Interrupted& interrupted) const {
    auto asked = Clock::now();
    for (const auto& call : calls_) {
      if (Clock::now() - asked > kAskAgain) {
        if (interrupted()) return false;
        asked = Clock::now();
      }
      call();
    }
    return true;
  }

  template <typename Call>
  static void run_or_record(Call&& call) {
    if (Program* program = recorded_by_this_thread()) {
      program->calls_.emplace_back(std::forward<Call>(call));
    } else {
      call();
    }
  }

 private:
  using Clock = std::chrono::steady_clock;

  // To ask takes the GIL. Steps of small models are shorter than this.
  static constexpr auto kAskAgain = std::chrono::milliseconds(5);

  static Program*& recorded_by_this_thread() {
    static thread_local Program* program = nullptr;
    return program;
  }

  std::vector<std::function<void()>> calls_;
};

}  // namespace tinychat
