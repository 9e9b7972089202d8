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

#pragma once

#include <cstdint>
#include <cstring>

#if defined(__CUDACC__)
#include <cuda_runtime.h>

#include <stdexcept>
#include <string>
#endif

namespace tinychat {

enum class DType : int { kFloat16, kBFloat16, kFloat32 };

// Raised whenever a run-time weight layout changes. tinychat_ros/kernels/packing.py holds its
// twin, and a module whose number differs is refused.
constexpr int kLayoutVersion = 2;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A finite IEEE half as a float. Subnormals are built from an integer, because a caller may have
// set the processor to flush subnormal floats to zero.
inline float half_to_float(uint16_t half) {
  const uint32_t exponent = (half >> 10) & 31;
  const uint32_t mantissa = half & 1023;
  const uint32_t bits = (exponent + 112) << 23 | mantissa << 13;
  float magnitude;
  std::memcpy(&magnitude, &bits, sizeof(magnitude));
  if (exponent == 0) magnitude = static_cast<float>(mantissa) * 0x1p-24f;
  return half & 0x8000 ? -magnitude : magnitude;
}

#if defined(__CUDACC__)
inline void check_cuda(cudaError_t status, const std::string& what,
                       const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // It would be the next call's.
  throw std::runtime_error(std::string(file) + ":" + std::to_string(line) + ": " + what + ": " +
                           cudaGetErrorString(status));
}
#endif

}  // namespace tinychat
