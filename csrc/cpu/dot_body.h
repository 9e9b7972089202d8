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

// Dot products and weighted sums of a tile of four rows and a few vectors, which the scores of
// attention and dense linears share. Included as simd.h says.

#pragma once

#include "cpu/simd.h"

namespace tinychat::cpu {
namespace {

constexpr int kRows = 4;

// Vectors of a tile: with 4 rows and their sums they fill 16 or 32 registers.
#if TINYCHAT_LANES == 16 || defined(__aarch64__)
constexpr int kVectors = 4;
#else
constexpr int kVectors = 2;
#endif

template <typename T>
struct Rows {
  const T* row[kRows];
};

// Rows from `first` on, the last one in place of those that would be behind `end`.
template <typename T>
inline Rows<T> rows_at(const T* values, int64_t stride, int64_t first, int64_t end) {
  Rows<T> rows;
  for (int r = 0; r < kRows; ++r) {
    rows.row[r] = values + (first + r < end ? first + r : end - 1) * stride;
  }
  return rows;
}

inline void prefetch(const void* from, int64_t bytes) {
  const char* line = static_cast<const char*>(from);
  for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(line + i);
}

template <int kCount, typename T>
TINYCHAT_INLINE void add_products(const Rows<T>& rows, const float* const (&x)[kCount], int64_t i,
                                  int64_t n, Floats (&sums)[kCount][kRows]) {
  Floats values[kRows];
  for (int r = 0; r < kRows; ++r) values[r] = load(rows.row[r] + i, n);
  for (int v = 0; v < kCount; ++v) {
    const Floats vector = load(x[v] + i, n);
    for (int r = 0; r < kRows; ++r) sums[v][r] += values[r] * vector;
  }
}

// to[v][r] = the sum of n products of x[v] and row r.
template <int kCount, typename T>
TINYCHAT_INLINE void dot(const Rows<T>& rows, const float* const (&x)[kCount], int64_t n,
                         float* const (&to)[kCount]) {
  Floats sums[kCount][kRows] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) add_products(rows, x, i, kLanes, sums);
  if (i < n) add_products(rows, x, i, n - i, sums);
  for (int v = 0; v < kCount; ++v) add_lanes(sums[v], to[v]);
}

template <int kCount, typename T>
TINYCHAT_INLINE void add_weighted(const Rows<T>& rows, const Floats (&weights)[kCount][kRows],
                                  int64_t i, int64_t n, float* const (&to)[kCount]) {
  Floats values[kRows];
  for (int r = 0; r < kRows; ++r) values[r] = load(rows.row[r] + i, n);
  for (int v = 0; v < kCount; ++v) {
    Floats sum = load(to[v] + i, n);
    for (int r = 0; r < kRows; ++r) sum += weights[v][r] * values[r];
    store(to[v] + i, sum, n);
  }
}

// to[v] += the sum of weights[v][r] times row r.
template <int kCount, typename T>
TINYCHAT_INLINE void add_rows(const Rows<T>& rows, const float* const (&weights)[kCount],
                              int64_t n, float* const (&to)[kCount]) {
  Floats factors[kCount][kRows];
  for (int v = 0; v < kCount; ++v) {
    for (int r = 0; r < kRows; ++r) factors[v][r] = all(weights[v][r]);
  }
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) add_weighted(rows, factors, i, kLanes, to);
  if (i < n) add_weighted(rows, factors, i, n - i, to);
}

template <int kValue>
struct Count {
  static constexpr int value = kValue;
};

// Calls run with `count`, 1 to kVectors, as a constant.
template <typename Run>
inline void with_count(int64_t count, Run run) {
  if (count == 1) return run(Count<1>());
  if (kVectors == 2 || count == 2) return run(Count<2>());
  if (count == 3) return run(Count<3>());
  run(Count<4>());
}

}  // namespace
}  // namespace tinychat::cpu
