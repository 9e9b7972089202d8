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
#include <string>

#include "cpu/isa.h"
#include "cpu/quantize.h"

namespace tinychat {

// out = x * w^T for an 8-bit weight w[n, k] = qweight[n, k] * scales[n].
//
// Each row of x, a token, is quantized to 8 bits on the way, with the scale s = max |x| / 127 and
// q = round(x / s), half to even. A token whose scale would be subnormal, such as one of zeros,
// gets s = 0 and zeros; one that holds NaN or infinity gives NaN. The sums are exact integers and
//
//   out[m, n] = float(sum over k of q[m, k] * qweight[n, k]) * s[m] * scales[n]
//
// is multiplied from left to right, so that every instruction set, every m and every number of
// threads give the bits of reference.linear, the oracle.
void w8a8_gemm(const float* x,           // [m, k]
               const int8_t* qweight,    // [n, k]
               const float* scales,      // [n]
               float* out,               // [m, n], apart from what is read
               int64_t m,                // >= 1
               int64_t n,                // >= 1
               int64_t k,                // 1 to kW8A8MaxK
               int num_threads,          // 0: one for each processor that this process may use
               const std::string& isa);  // one of supported_isas()

// Up to here no sum of products leaves int32; tinychat_ros/kernels/packing.py holds its twin.
constexpr int64_t kW8A8MaxK = INT32_MAX / (127 * 128);

// Instructions that want one factor unsigned may get the weight plus this: its part of a sum, the
// bias times the sum of x, is taken off at the end. On the way int32 may wrap around.
constexpr int32_t kW8A8Bias = 128;

// What an instruction set has to provide: the sums of a few rows of the weight and a few tokens.
// w8a8.cpp has the rest.
constexpr int64_t kW8A8MaxRows = 4;
constexpr int64_t kW8A8MaxTokens = 6;
constexpr int64_t kW8A8Padding = 64;
struct W8A8Body {
  decltype(&quantize_int8) quantize;
  int64_t rows;
  int64_t max_tokens;
  void (*multiply)(const int8_t* const* w,  // [rows][k], the last row maybe several times
                   const int8_t* x,         // [tokens, x_stride], zeros from k on
                   const int32_t* x_sums,   // [tokens], of their integers
                   int64_t x_stride,        // a multiple of kW8A8Padding
                   int64_t k,
                   int64_t tokens,  // 1 to max_tokens
                   int32_t* sums);  // [tokens, rows]
};

extern const W8A8Body kW8A8Generic;
#if defined(__x86_64__)
extern const W8A8Body kW8A8Avx2;
extern const W8A8Body kW8A8Avx512Vnni;
#endif
#if defined(TINYCHAT_AVXVNNI)
extern const W8A8Body kW8A8AvxVnni;
#endif
#if defined(__aarch64__)
extern const W8A8Body kW8A8Dotprod;
#endif

}  // namespace tinychat
