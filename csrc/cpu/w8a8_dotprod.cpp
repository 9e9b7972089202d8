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

// The body for processors with dot products, with i8mm or without: to put two rows and two tokens
// side by side for it takes as many instructions as it saves.

#if defined(__aarch64__)

#include <arm_neon.h>

#include <cstring>

#include "cpu/w8a8.h"

// w4a8_neon.cpp says why.
#if defined(__clang__)
#define TINYCHAT_DOTPROD __attribute__((target("dotprod")))
#else
#define TINYCHAT_DOTPROD
#endif

namespace tinychat {
namespace {

constexpr int kRows = 2;
constexpr int64_t kLanes = 16;
static_assert(kW8A8Padding % kLanes == 0, "x is read in whole registers");

// sums[4] += 4 products each, in assembler as in w4a8_neon.cpp.
TINYCHAT_DOTPROD inline void add_products(int32x4_t& sums, int8x16_t w, int8x16_t x) {
  asm(".arch armv8.4-a\n\tsdot %0.4s, %1.16b, %2.16b" : "+w"(sums) : "w"(w), "w"(x));
}

template <int kTokens>
TINYCHAT_DOTPROD inline void add_step(const int8_t* first, const int8_t* second, const int8_t* x,
                                      int64_t x_stride, int32x4_t (&sums)[kTokens][kRows]) {
  const int8x16_t w[] = {vld1q_s8(first), vld1q_s8(second)};
  // Unrolled so that the sums are registers.
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    const int8x16_t token = vld1q_s8(x + t * x_stride);
    add_products(sums[t][0], w[0], token);
    add_products(sums[t][1], w[1], token);
  }
}

template <int kTokens>
TINYCHAT_DOTPROD void multiply_tokens(const int8_t* const* w, const int8_t* x, int64_t x_stride,
                                      int64_t k, int32_t* out) {
  int32x4_t sums[kTokens][kRows] = {};
  int64_t i = 0;
  for (; i + kLanes <= k; i += kLanes) {
    add_step<kTokens>(w[0] + i, w[1] + i, x + i, x_stride, sums);
  }
  if (i < k) {
    // The weight may end where its last row ends.
    int8_t tail[kRows][kLanes] = {};
    for (int row = 0; row < kRows; ++row) std::memcpy(tail[row], w[row] + i, k - i);
    add_step<kTokens>(tail[0], tail[1], x + i, x_stride, sums);
  }
#pragma GCC unroll 4
  for (int t = 0; t < kTokens; ++t) {
    *out++ = vaddvq_s32(sums[t][0]);
    *out++ = vaddvq_s32(sums[t][1]);
  }
}

void multiply(const int8_t* const* w, const int8_t* x, const int32_t*, int64_t x_stride, int64_t k,
              int64_t tokens, int32_t* sums) {
  constexpr decltype(&multiply_tokens<1>) kByTokens[] = {
      multiply_tokens<1>, multiply_tokens<2>, multiply_tokens<3>, multiply_tokens<4>};
  kByTokens[tokens - 1](w, x, x_stride, k, sums);
}

float quantize(const float* x, int64_t count, int8_t* q) { return quantize_int8(x, count, q); }

}  // namespace

const W8A8Body kW8A8Dotprod = {quantize, kRows, 4, multiply};

}  // namespace tinychat

#endif
