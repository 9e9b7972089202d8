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
#include "cpu/wna16.h"

namespace tinychat {

// W4A8, and W3A8 beside it: out = x * w^T for a weight of 4 or 3 bits in the tiles that wna16.h
// draws, and activations that are quantized to 8 bits on the way, each `block` values of a token
// by one scale, as quantize.h says.
//
//   out[m, n] = sum over blocks g of scale[n, g] * d[m, g] * (dot[m, n, g] - zero[n, g] * A[m, g])
//
// where d is the scale of a token's block, A the sum of its integers, and dot the sum of its
// products with the codes. The difference is an integer below 2^18, exact in int32 and fp32, and
//
//   total += (float(difference) * scale) * d
//
// is taken block after block: neither m nor num_threads changes a bit. The last product and the
// addition round once, and give the same bits, in all instruction sets but 'generic', where they
// round as compilers please. A token that holds NaN or infinity gives NaN.
//
// A value far above the others of its block leaves them few steps. Where they take less than
// kW4A8OthersMean of the 127 on average, the token's residuals x - q * d are quantized as well, by
// a scale of their own, and their products added behind those of q. The error of rounding x,
// relative to what the other channels add up to, for normal x with some channels scaled, k = 4096,
// blocks of 128, and the share of blocks with residuals; rounding the weights makes one of 0.10:
//
//                                 without   with
//   no channel                     0.0065   0.0065    none
//   2 channels by 1000             0.2142   0.0065   6.2 %
//   16 channels by 20              0.0315   0.0117    18 %
//   silu(a) * b, normal a and b    0.0130   0.0126   1.8 %
//
// With none it took 1.00 to 1.02 of the time without; with a tenth of the blocks, 1.03 for one
// token and 1.1 for many, or 1.2 where each token had them elsewhere.
void w4a8_gemm(const float* x,           // [m, k]; beyond 1e28 sums may overflow
               const uint8_t* tiles,     // [ceil(n / 16), k / block, bytes of a tile]
               float* out,               // [m, n], apart from x and tiles
               int64_t m,                // >= 1
               int64_t n,                // a multiple of 8
               int64_t k,                // a multiple of block
               int bits,                 // 3 or 4
               int64_t block,            // 32, 64 or 128
               int num_threads,          // 0: one for each processor that this process may use
               const std::string& isa);  // one of supported_isas()

// The tokens are cut into strips, and a body multiplies a strip by a row of tiles. A strip is what
// it reads in one sequential stream, for each block a record of
//
//   int8 q[block / 4][tokens][4] | fp32 d[tokens] | int32 -A[tokens]
//
// and behind it, for w4a8.cpp, which of its tokens have residuals, and a record of these:
//
//   int32 count | int32 token[count] | record
constexpr int64_t w4a8_record_bytes(int64_t block, int64_t tokens) { return (block + 8) * tokens; }

// reference.OTHERS_MEAN is its twin.
constexpr int32_t kW4A8OthersMean = 6;

// Of a tile or a record, of any alignment.
template <typename T>
T load_scalar(const uint8_t* from) {
  T value;
  __builtin_memcpy(&value, from, sizeof(value));
  return value;
}

// total[tokens][16] += a tile times a record of so many tokens.
using W4A8Multiply = void (*)(const uint8_t* tile, const uint8_t* record, int64_t block,
                              float* total);

// What an instruction set has to provide for each width, for a strip of 1 token, 2 tokens and so
// on; w4a8.cpp has the loops over tiles, strips and threads.
constexpr int64_t kW4A8MaxTokens = 24;
struct W4A8Body {
  decltype(&quantize_int8) quantize;
  int64_t max_tokens;
  W4A8Multiply multiply[kW4A8MaxTokens];
};

extern const W4A8Body kW3A8Generic;
extern const W4A8Body kW4A8Generic;
#if defined(__x86_64__)
extern const W4A8Body kW3A8Avx2;
extern const W4A8Body kW4A8Avx2;
extern const W4A8Body kW3A8Avx512Vnni;
extern const W4A8Body kW4A8Avx512Vnni;
#endif
#if defined(TINYCHAT_AVXVNNI)
extern const W4A8Body kW3A8AvxVnni;
extern const W4A8Body kW4A8AvxVnni;
#endif
#if defined(__aarch64__)
extern const W4A8Body kW4A8Dotprod;
extern const W4A8Body kW4A8I8mm;
#endif

}  // namespace tinychat
