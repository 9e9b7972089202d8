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

// Functions of one value.

#pragma once

#include <cmath>

#include "cuda/launchers.h"
#include "cuda/runtime.cuh"

namespace tinychat {

// cap * tanh(x / cap), to 1e-6 of the cap. (tanhf would take several times the instructions.)
__device__ inline float softcapped(float x, float cap) {
  return cap - __fdividef(2.0f * cap, 1.0f + __expf(2.0f / cap * x));
}

__device__ inline float activated(Activation activation, float x) {
  constexpr float kSqrtHalf = 0.70710678f, kTwoSqrtTwoOverPi = 1.59576912f;
  if (activation == Activation::kSilu) return x / (1.0f + __expf(-x));
  if (activation == Activation::kGelu) return 0.5f * x * (1.0f + erff(kSqrtHalf * x));
  if (activation == Activation::kGeluTanh) {
    // 1 + tanh(y) is 2 / (1 + exp(-2 y)).
    return x / (1.0f + __expf(-kTwoSqrtTwoOverPi * (x + 0.044715f * x * x * x)));
  }
  return x;
}

}  // namespace tinychat
