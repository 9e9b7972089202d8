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

// How launchers check their arguments and choose a kernel.

#pragma once

#include <stdexcept>
#include <string>

#include "cuda/runtime.cuh"

namespace tinychat {

inline void require(bool holds, const char* launcher, const char* expected, int64_t got) {
  if (holds) return;
  throw std::invalid_argument(std::string(launcher) + ": expected " + expected + ", got " +
                              std::to_string(got));
}

// Calls run with a value of the type that `dtype` names.
template <typename Run>
void with_float_type(DType dtype, Run run) {
  if (dtype == DType::kFloat16) return run(half());
  if (dtype == DType::kBFloat16) return run(__nv_bfloat16());
  run(float());
}

// As with_float_type, for launchers that do not take fp32.
template <typename Run>
void with_half_type(const char* launcher, DType dtype, Run run) {
  require(dtype != DType::kFloat32, launcher, "dtype 0 (fp16) or 1 (bf16)",
          static_cast<int>(dtype));
  if (dtype == DType::kFloat16) return run(half());
  run(__nv_bfloat16());
}

}  // namespace tinychat
