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

// The activations of an MLP. Included as simd.h says.

#pragma once

#include "cpu/ops_bodies.h"
#include "cpu/simd.h"

namespace tinychat::cpu {
namespace {

struct Silu {
  Floats operator()(Floats x) const { return x / (1.0f + exp(-x)); }
};

// The mass of the normal distribution beyond a distance from its middle, half of erfc(distance /
// sqrt(2)). Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26, whose
// error, which is an absolute one, is below 7.5e-8.
inline Floats normal_tail(Floats distance) {
  const Floats z = distance * 0.707106781f;
  const Floats t = 1.0f / (1.0f + 0.3275911f * z);
  Floats y = t * 1.061405429f - 1.453152027f;
  y = y * t + 1.421413741f;
  y = y * t - 0.284496736f;
  y = y * t + 0.254829592f;
  return 0.5f * t * y * exp(-z * z);
}

struct Gelu {
  Floats operator()(Floats x) const {
    const Floats tail = normal_tail(as_floats(as_ints(x) & INT32_MAX));
    return x * (x < 0.0f ? tail : 1.0f - tail);
  }
};

struct GeluTanh {
  Floats operator()(Floats x) const {
    const Floats inner = 0.797884561f * (x + 0.044715f * x * x * x);  // sqrt(2 / pi)
    return 0.5f * x * (1.0f + tanh(inner));
  }
};

// Calls run with a function of a vector.
template <typename Run>
inline void with_activation(Activation activation, Run run) {
  if (activation == Activation::kSilu) return run(Silu());
  if (activation == Activation::kGelu) return run(Gelu());
  run(GeluTanh());
}

void gate_mul_row(Activation activation, const float* gate, const float* up, int64_t n,
                  float* out) {
  with_activation(activation, [&](auto activated) {
    for (int64_t i = 0; i < n; i += kLanes) {
      store(out + i, activated(load(gate + i, n - i)) * load(up + i, n - i), n - i);
    }
  });
}

void activate_row(Activation activation, const float* x, const void* scales, DType dtype,
                  int64_t n, float* out) {
  with_activation(activation, [&](auto activated) {
    with_type(dtype, scales, [&](const auto* divisors) {
      for (int64_t i = 0; i < n; i += kLanes) {
        const Floats value = activated(load(x + i, n - i));
        store(out + i, divisors == nullptr ? value : value / load(divisors + i, n - i), n - i);
      }
    });
  });
}

}  // namespace
}  // namespace tinychat::cpu
