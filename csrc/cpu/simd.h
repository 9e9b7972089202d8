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

// Vectors of TINYCHAT_LANES floats, in the vector extensions of g++ and clang. Only ops_NAME.cpp
// includes this and the bodies, after it has said which instruction set all that follows is for.
// So that no other file can get a copy of any of it, all stands in unnamed namespaces, and nothing
// calls the standard library.

#pragma once

#include <cstdint>

#include "common.h"

namespace tinychat::cpu {
namespace {

constexpr int kLanes = TINYCHAT_LANES;

typedef float Floats __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Ints __attribute__((vector_size(kLanes * sizeof(int32_t))));
typedef uint16_t Shorts __attribute__((vector_size(kLanes * sizeof(uint16_t))));
typedef int8_t Bytes __attribute__((vector_size(kLanes * sizeof(int8_t))));

// For what runs for every few rows. Left to itself, g++ 12 calls some of that as functions once a
// file has grown: attention where no heads share a KV head took 1.38 times as long.
#define TINYCHAT_INLINE __attribute__((always_inline)) inline

constexpr float kInfinity = __builtin_inff();

// Added to a small number, it leaves no bits for a fraction: a rounding, half to even.
constexpr float kRound = 0x1.8p23f;

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

inline Floats as_floats(Ints bits) { return reinterpret_cast<Floats>(bits); }
inline Ints as_ints(Floats values) { return reinterpret_cast<Ints>(values); }
inline Floats all(float value) { return value - Floats{}; }

template <typename To>
inline To load_as(const void* from) {
  To to;
  __builtin_memcpy(&to, from, sizeof(to));
  return to;
}

// ---- from and to memory ------------------------------------------------------------------------

inline Floats widen(Shorts halves) {
#if TINYCHAT_LANES == 16
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(reinterpret_cast<__m256i>(halves)));
#elif TINYCHAT_LANES == 8
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(reinterpret_cast<__m128i>(halves)));
#elif defined(__aarch64__)
  return reinterpret_cast<Floats>(vcvt_f32_f16(reinterpret_cast<float16x4_t>(halves)));
#else
  const Ints bits = __builtin_convertvector(halves, Ints);
  const Ints magnitude = bits & 0x7fff;
  const Ints infinite = magnitude >= 0x7c00;
  const Ints normal = (magnitude << 13) + (112 << 23) + (infinite & (112 << 23));
  // Subnormals come from integers: a caller may have set subnormal floats to be taken as zero.
  const Floats subnormal = __builtin_convertvector(magnitude, Floats) * 0x1p-24f;
  const Ints value = magnitude < 0x400 ? as_ints(subnormal) : normal;
  return as_floats(value | (bits & 0x8000) << 16);
#endif
}

// Rounds half to even.
inline Shorts narrow(Floats values) {
#if TINYCHAT_LANES == 16
  return reinterpret_cast<Shorts>(
      _mm512_cvtps_ph(reinterpret_cast<__m512>(values), _MM_FROUND_TO_NEAREST_INT));
#elif TINYCHAT_LANES == 8
  return reinterpret_cast<Shorts>(
      _mm256_cvtps_ph(reinterpret_cast<__m256>(values), _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
  return reinterpret_cast<Shorts>(vcvt_f16_f32(reinterpret_cast<float32x4_t>(values)));
#else
  const Ints bits = as_ints(values);
  const Ints magnitude = bits & INT32_MAX;
  const Ints normal = (magnitude + 0xfff + ((magnitude >> 13) & 1) - (112 << 23)) >> 13;
  // One bit of the sum is as large as the smallest half.
  const Ints subnormal = as_ints(as_floats(magnitude) + 0.5f) - 0x3f000000;
  Ints half = magnitude < (113 << 23) ? subnormal : normal;
  half = magnitude >= 0x477ff000 ? Ints{} + 0x7c00 : half;
  half = magnitude > 0x7f800000 ? Ints{} + 0x7e00 : half;
  return __builtin_convertvector(half | ((bits >> 16) & 0x8000), Shorts);
#endif
}

inline Floats load(const float* from) { return load_as<Floats>(from); }
inline Floats load(const Half* from) { return widen(load_as<Shorts>(from)); }

// g++ 12 takes shorts for ARM and bytes apart one by one where it is left to convert them.
inline Floats load(const BFloat16* from) {
#if defined(__aarch64__)
  const Ints bits = reinterpret_cast<Ints>(vmovl_u16(load_as<uint16x4_t>(from)));
#else
  const Ints bits = __builtin_convertvector(load_as<Shorts>(from), Ints);
#endif
  return as_floats(bits << 16);
}

inline Floats load(const int8_t* from) {
#if TINYCHAT_LANES == 16
  const Ints whole = reinterpret_cast<Ints>(_mm512_cvtepi8_epi32(load_as<__m128i>(from)));
#elif TINYCHAT_LANES == 8
  const Ints whole = reinterpret_cast<Ints>(_mm256_cvtepi8_epi32(_mm_loadu_si64(from)));
#elif defined(__aarch64__)
  const int16x8_t shorts = vmovl_s8(vcreate_s8(load_as<uint32_t>(from)));
  const Ints whole = reinterpret_cast<Ints>(vmovl_s16(vget_low_s16(shorts)));
#else
  const Ints whole = __builtin_convertvector(load_as<Bytes>(from), Ints);
#endif
  return __builtin_convertvector(whole, Floats);
}

// With zeros behind the first n, or all where n is larger.
template <typename T>
inline Floats load(const T* from, int64_t n) {
  if (n >= kLanes) return load(from);
  T padded[kLanes] = {};
  __builtin_memcpy(padded, from, n * sizeof(T));
  return load(padded);
}

// Stores the first n, or all where n is larger.
template <typename Values>
inline void store(void* to, Values values, int64_t n = kLanes) {
  constexpr int64_t kSize = sizeof(values) / kLanes;
  if (n >= kLanes) {
    __builtin_memcpy(to, &values, sizeof(values));
  } else {
    __builtin_memcpy(to, &values, n * kSize);
  }
}

// Calls run with a pointer to the dtype.
template <typename Run>
inline void with_type(DType dtype, const void* values, Run run) {
  if (dtype == DType::kFloat16) return run(static_cast<const Half*>(values));
  if (dtype == DType::kBFloat16) return run(static_cast<const BFloat16*>(values));
  run(static_cast<const float*>(values));
}

// ---- arithmetic --------------------------------------------------------------------------------

// Keeps a product from being fused with the sum that it goes to.
inline Floats rounded(Floats product) {
  asm("" : "+m"(product));
  return product;
}

inline Floats largest(Floats a, Floats b) { return a > b ? a : b; }

struct Exponential {
  Floats power;  // Of two.
  Floats fraction;
};

// exp(x) = power * (1 + fraction) for x from -87.3 to 88.
inline Exponential split_exp(Floats x) {
  const Floats shifted = x * 1.44269504f + kRound;
  const Floats n = shifted - kRound;
  // ln 2 in two parts, of which n times the first is exact.
  const Floats r = x - n * 0x1.62ep-1f - n * 0x1.0bfbe8p-15f;
  Floats y = r * (1.0f / 720) + 1.0f / 120;
  y = y * r + 1.0f / 24;
  y = y * r + 1.0f / 6;
  y = y * r + 0.5f;
  y = y * r + 1.0f;
  return {as_floats((as_ints(shifted) + 127) << 23), y * r};
}

// The relative error is below 1e-6, that of the Taylor polynomial below 2e-7. What would be
// subnormal is 0, what is above exp(88) is exp(88), and NaN stays.
inline Floats exp(Floats x) {
  x = x > 88.0f ? all(88.0f) : x;
  const auto [power, fraction] = split_exp(x);
  return x < -87.3f ? Floats{} : (fraction + 1.0f) * power;
}

// The relative error is below 1e-6, near 0 too, since exp(2x) - 1 is added up from its parts.
inline Floats tanh(Floats x) {
  x = x > 20.0f ? all(20.0f) : x < -20.0f ? all(-20.0f) : x;
  const auto [power, fraction] = split_exp(2.0f * x);
  const Floats grown = power * fraction + (power - 1.0f);
  return grown / (grown + 2.0f);
}

inline Floats softcapped(Floats x, float cap) { return cap * tanh(x * (1.0f / cap)); }

// to[i] = the sum of the lanes of values[i].
TINYCHAT_INLINE void add_lanes(const Floats (&values)[4], float* to) {
#if TINYCHAT_LANES == 4
  for (int i = 0; i < 4; ++i) {
    to[i] = (values[i][0] + values[i][1]) + (values[i][2] + values[i][3]);
  }
#elif TINYCHAT_LANES == 8
  const auto pairs = [&](int i) {
    return _mm256_hadd_ps(reinterpret_cast<__m256>(values[i]),
                          reinterpret_cast<__m256>(values[i + 1]));
  };
  const __m256 quarters = _mm256_hadd_ps(pairs(0), pairs(2));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(quarters),
                               _mm256_extractf128_ps(quarters, 1)));
#else
  // The four vectors are brought into one before its halves are added: two thirds of the
  // instructions of halving each.
  const auto pairs = [&](int i) {
    const __m512 a = reinterpret_cast<__m512>(values[i]);
    const __m512 b = reinterpret_cast<__m512>(values[i + 1]);
    return _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
  };
  const __m512d low = pairs(0);
  const __m512d high = pairs(2);
  const __m512 quarters = _mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                                        _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
  const __m256 half = _mm256_add_ps(
      _mm512_castps512_ps256(quarters),
      _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(quarters), 1)));
  _mm_storeu_ps(to, _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1)));
#endif
}

inline float total(const Floats (&values)[4]) {
  float sums[4];
  add_lanes(values, sums);
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

}  // namespace
}  // namespace tinychat::cpu
