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

// The checks of arguments that need no tensor.

#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>

#include "cpu/isa.h"

namespace tinychat {

struct Requirement {
  const char* kernel;

  void operator()(bool holds, const char* argument, const std::string& expected,
                  const std::string& got) const {
    if (holds) return;
    throw std::invalid_argument(std::string(kernel) + ": " + argument + ": expected " + expected +
                                ", got " + got);
  }
};

inline std::string resolve_isa(const Requirement& require, const std::string& isa) {
  const auto& supported = supported_isas();
  if (isa == "auto") return default_isa();
  std::string names = "'auto'";
  for (const auto& name : supported) names += " or '" + name + "'";
  const bool known = std::find(supported.begin(), supported.end(), isa) != supported.end();
  require(known, "isa", names, "'" + isa + "'");
  return isa;
}

}  // namespace tinychat
