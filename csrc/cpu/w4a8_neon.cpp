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

// The bodies 'dotprod' and 'i8mm'. Both instructions stand here in assembler, because g++ 9 does
// not know i8mm. They are volatile, as the loads of the weight are, and so stay in order: g++ 12
// loaded ahead of the products and kept some of the sums in memory.

#if defined(__aarch64__)

#include <arm_neon.h>

#include <utility>

#include "cpu/w4a8.h"

// g++ passes the directive on to the assembler; clang before 17 goes by the function instead.
#if defined(__clang__)
#define TINYCHAT_DOTPROD __attribute__((target("dotprod")))
#define TINYCHAT_I8MM __attribute__((target("i8mm")))
#else
#define TINYCHAT_DOTPROD
#define TINYCHAT_I8MM
#endif

namespace tinychat {
namespace {

// A tile's rows are four quarters of 4 lanes.
constexpr int kLanes = 4;
constexpr int kQuarters = kTileRows / kLanes;

// With 6 tokens the sums take 24 of the 32 registers.
constexpr int64_t kMaxTokens = 6;

// The codes of 4 rows, for the lower 4 of 8 k and for the higher 4.
struct Codes {
  int8x16_t low;
  int8x16_t high;
};

inline Codes load_codes(const uint8_t* words) {
  uint8x16_t packed;
  asm volatile("ldr %q0, %1" : "=w"(packed) : "m"(*reinterpret_cast<const uint8_t(*)[16]>(words)));
  return {vreinterpretq_s8_u8(vandq_u8(packed, vdupq_n_u8(15))),
          vreinterpretq_s8_u8(vshrq_n_u8(packed, 4))};
}

inline int8x16_t load(const uint8_t* bytes) { return vreinterpretq_s8_u8(vld1q_u8(bytes)); }

// total[token] += the sums, less those of the zero points, times the scales: `scales` of the tile,
// `x_scales` of the record.
template <int kTokens>
inline void add_to_total(const uint8_t* scales, const uint8_t* x_scales,
                         const int32x4_t (&sums)[kQuarters][kTokens], float* total) {
  const uint8x16_t zeros = vld1q_u8(scales + kTileRows * 2);
  const uint16x8_t zero_halves[] = {vmovl_u8(vget_low_u8(zeros)), vmovl_high_u8(zeros)};
#pragma GCC unroll 4
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    const float32x4_t row_scales = vcvt_f32_f16(
        vreinterpret_f16_u8(vld1_u8(scales + quarter * kLanes * 2)));
    const uint16x8_t half = zero_halves[quarter / 2];
    const int32x4_t row_zeros = vreinterpretq_s32_u32(
        quarter % 2 == 0 ? vmovl_u16(vget_low_u16(half)) : vmovl_high_u16(half));
#pragma GCC unroll 6
    for (int t = 0; t < kTokens; ++t) {
      const auto negative_sum = load_scalar<int32_t>(x_scales + (kTokens + t) * 4);
      const int32x4_t difference = vmlaq_n_s32(sums[quarter][t], row_zeros, negative_sum);
      const float32x4_t scaled = vmulq_f32(vcvtq_f32_s32(difference), row_scales);
      const auto scale = load_scalar<float>(x_scales + t * 4);
      float* lanes = total + t * kTileRows + quarter * kLanes;
      vst1q_f32(lanes, vfmaq_n_f32(vld1q_f32(lanes), scaled, scale));
    }
  }
}

// ---- dotprod -----------------------------------------------------------------------------------

// sums[row] += 4 products: the row's codes times the 4 values in a lane of x.
template <int kLane>
TINYCHAT_DOTPROD inline void dot_fours(int32x4_t& sums, int8x16_t codes, int8x16_t x) {
  asm volatile(".arch armv8.4-a\n\tsdot %0.4s, %1.16b, %2.4b[%c3]"
               : "+w"(sums)
               : "w"(codes), "w"(x), "i"(kLane));
}

// sums[token] += the products of 4 k; the first token's are in lane kFirst % 4 of x[kFirst / 4].
template <int kFirst, int... kToken>
TINYCHAT_DOTPROD inline void dot_tokens(int8x16_t codes, const int8x16_t* x,
                                        int32x4_t (&sums)[sizeof...(kToken)],
                                        std::integer_sequence<int, kToken...>) {
  (dot_fours<(kFirst + kToken) % 4>(sums[kToken], codes, x[(kFirst + kToken) / 4]), ...);
}

template <int kTokens, int kOctet>
TINYCHAT_DOTPROD inline void dot_octet(const uint8_t* tile, const int8x16_t* x,
                                       int32x4_t (&sums)[kQuarters][kTokens]) {
  constexpr std::make_integer_sequence<int, kTokens> kAll;
#pragma GCC unroll 4
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
    const Codes codes = load_codes(tile + kOctet * kSetBytes + quarter * 16);
    dot_tokens<2 * kOctet * kTokens>(codes.low, x, sums[quarter], kAll);
    dot_tokens<(2 * kOctet + 1) * kTokens>(codes.high, x, sums[quarter], kAll);
  }
}

template <int kTokens>
TINYCHAT_DOTPROD void multiply_dotprod(const uint8_t* tile, const uint8_t* record, int64_t block,
                                       float* total) {
  // 8 k of an odd number of tokens do not fill whole registers.
  constexpr int kOctets = 1 + kTokens % 2;
  constexpr int kVectors = kOctets * kTokens / 2;
  int32x4_t sums[kQuarters][kTokens] = {};
  for (int64_t k = 0; k < block; k += 8 * kOctets) {
    int8x16_t x[kVectors];
#pragma GCC unroll 6
    for (int v = 0; v < kVectors; ++v) x[v] = load(record + 16 * v);
    dot_octet<kTokens, 0>(tile, x, sums);
    if constexpr (kOctets == 2) dot_octet<kTokens, 1>(tile, x, sums);
    tile += kOctets * kSetBytes;
    record += 16 * kVectors;
  }
  add_to_total<kTokens>(tile, record, sums, total);
}

// ---- i8mm --------------------------------------------------------------------------------------

// sums[row][token] += 8 products, for 2 rows and 2 tokens.
TINYCHAT_I8MM inline void multiply_pairs(int32x4_t& sums, int8x16_t codes, int8x16_t x) {
  asm volatile(".arch armv8.6-a\n\tsmmla %0.4s, %1.16b, %2.16b"
               : "+w"(sums)
               : "w"(codes), "w"(x));
}

inline int8x16_t zip_low(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s32(vzip1q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}

inline int8x16_t zip_high(int8x16_t a, int8x16_t b) {
  return vreinterpretq_s8_s32(vzip2q_s32(vreinterpretq_s32_s8(a), vreinterpretq_s32_s8(b)));
}

// 8 k of 2 tokens each. What stands beside an odd one is whatever follows in the record, and its
// sums are dropped.
template <int kTokens, int kPairs>
inline void load_pairs(const uint8_t* bytes, int8x16_t (&x)[kPairs]) {
#pragma GCC unroll 3
  for (int pair = 0; pair < kPairs; pair += 2) {
    const int8x16_t low = load(bytes + pair * 8);
    const int8x16_t high = load(bytes + kTokens * 4 + pair * 8);
    x[pair] = zip_low(low, high);
    if (pair + 1 < kPairs) x[pair + 1] = zip_high(low, high);
  }
}

template <int kTokens>
TINYCHAT_I8MM void multiply_i8mm(const uint8_t* tile, const uint8_t* record, int64_t block,
                                 float* total) {
  constexpr int kPairs = (kTokens + 1) / 2;
  int32x4_t pair_sums[kQuarters][kPairs][2] = {};
  for (int64_t k = 0; k < block; k += 8) {
    int8x16_t x[kPairs];
    load_pairs<kTokens>(record, x);
#pragma GCC unroll 4
    for (int quarter = 0; quarter < kQuarters; ++quarter) {
      const Codes codes = load_codes(tile + quarter * 16);
      const int8x16_t rows[] = {zip_low(codes.low, codes.high), zip_high(codes.low, codes.high)};
#pragma GCC unroll 3
      for (int pair = 0; pair < kPairs; ++pair) {
        multiply_pairs(pair_sums[quarter][pair][0], rows[0], x[pair]);
        multiply_pairs(pair_sums[quarter][pair][1], rows[1], x[pair]);
      }
    }
    tile += kSetBytes;
    record += 8 * kTokens;
  }
  int32x4_t sums[kQuarters][kTokens];
#pragma GCC unroll 4
  for (int quarter = 0; quarter < kQuarters; ++quarter) {
#pragma GCC unroll 6
    for (int t = 0; t < kTokens; ++t) {
      const auto& [first, second] = pair_sums[quarter][t / 2];
      sums[quarter][t] = t % 2 == 0 ? vuzp1q_s32(first, second) : vuzp2q_s32(first, second);
    }
  }
  add_to_total<kTokens>(tile, record, sums, total);
}

float quantize(const float* x, int64_t count, int8_t* q) { return quantize_int8(x, count, q); }

}  // namespace

const W4A8Body kW4A8Dotprod = {
    quantize, kMaxTokens,
    {multiply_dotprod<1>, multiply_dotprod<2>, multiply_dotprod<3>, multiply_dotprod<4>,
     multiply_dotprod<5>, multiply_dotprod<6>}};

// Up to 3 tokens, putting the codes in order takes more instructions than it saves.
const W4A8Body kW4A8I8mm = {
    quantize, kMaxTokens,
    {multiply_dotprod<1>, multiply_dotprod<2>, multiply_dotprod<3>, multiply_i8mm<4>,
     multiply_i8mm<5>, multiply_i8mm<6>}};

}  // namespace tinychat

#endif
