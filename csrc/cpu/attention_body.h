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

// The inner loops of attention.cpp. Included as simd.h says.

#pragma once

#include "cpu/dot_body.h"
#include "cpu/ops_bodies.h"

namespace tinychat::cpu {
namespace {

// The scores of a query, then their probabilities, each times the scale of its value.
struct ScoreBlock {
  alignas(64) float values[kPositionBlock + kLanes];
};

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t greatest(int64_t a, int64_t b) { return a > b ? a : b; }

template <typename T>
inline Floats scales_at(const uint16_t* scales, int64_t position, int64_t left) {
  if constexpr (sizeof(T) > 1) return all(1.0f);
  return load(reinterpret_cast<const Half*>(scales) + position, left);
}

// How far ahead of a tile its successors are asked for. Without that, since the four rows of a
// tile are read in turn, a thread took fp16 keys and values from memory at 16 GB/s instead of 31.
constexpr int64_t kAhead = 8192;

template <typename T>
inline void prefetch_rows(const T* row, int64_t head_dim) {
  prefetch(reinterpret_cast<const char*>(row) + kAhead, kRows * head_dim * sizeof(T));
}

template <int kCount, typename T>
inline void score(const KvRows& rows, int64_t begin, int64_t first, int64_t end,
                  const Query* queries, ScoreBlock* scores) {
  const T* keys = static_cast<const T*>(rows.k);
  const float* q[kCount];
  float* to[kCount];
  for (; first < end; first += kRows) {
    for (int v = 0; v < kCount; ++v) {
      q[v] = queries[v].q;
      to[v] = scores[v].values + first - begin;
    }
    prefetch_rows(keys + first * rows.head_dim, rows.head_dim);
    dot(rows_at(keys, rows.head_dim, first, end), q, rows.head_dim, to);
  }
}

template <int kCount, typename T>
inline void gather(const KvRows& rows, int64_t begin, int64_t first, int64_t end,
                   const Query* queries, const ScoreBlock* scores) {
  const T* values = static_cast<const T*>(rows.v);
  const float* weights[kCount];
  float* to[kCount];
  for (; first < end; first += kRows) {
    for (int v = 0; v < kCount; ++v) {
      weights[v] = scores[v].values + first - begin;
      to[v] = queries[v].out;
    }
    prefetch_rows(values + first * rows.head_dim, rows.head_dim);
    add_rows(rows_at(values, rows.head_dim, first, end), weights, rows.head_dim, to);
  }
}

// The scores of positions from this one on, capped, less what the slope takes.
inline Floats shaped(Floats scores, const KvRows& rows, const Query& query, int64_t position) {
  if (rows.softcap != 0.0f) scores = softcapped(scores, rows.softcap);
  Floats lanes;
  for (int lane = 0; lane < kLanes; ++lane) lanes[lane] = static_cast<float>(lane);
  return scores - query.slope * (static_cast<float>(query.length - 1 - position) - lanes);
}

// A query's maximum over scores too.
template <typename T, bool kPlain>
inline float scale_scores(const KvRows& rows, int64_t begin, int64_t count, const Query& query,
                          float* scores) {
  float max = query.max;
  Floats best = all(max);
  for (int64_t i = 0; i < count; i += kLanes) {
    Floats scaled = load(scores + i) * rows.scale *
                    scales_at<T>(rows.k_scale, begin + i, count - i);
    if constexpr (!kPlain) scaled = shaped(scaled, rows, query, begin + i);
    store(scores + i, scaled);
    if (i + kLanes > count) {
      for (int64_t j = count; j < i + kLanes; ++j) scores[j] = -kInfinity;
    }
    best = largest(load(scores + i), best);
  }
  for (int lane = 0; lane < kLanes; ++lane) max = best[lane] > max ? best[lane] : max;
  return max;
}

inline void rescale(const KvRows& rows, float factor, Query& query) {
  query.sum *= factor;
  for (int64_t i = 0; i < rows.head_dim; i += kLanes) {
    const int64_t left = rows.head_dim - i;
    store(query.out + i, load(query.out + i, left) * factor, left);
  }
}

template <typename T>
inline void softmax(const KvRows& rows, int64_t begin, int64_t end, Query& query, float* scores) {
  const int64_t count = end - begin;
  if (count <= 0) return;
  const bool plain = rows.softcap == 0.0f && query.slope == 0.0f;
  const float max = plain ? scale_scores<T, true>(rows, begin, count, query, scores)
                          : scale_scores<T, false>(rows, begin, count, query, scores);
  if (max > query.max) {
    rescale(rows, exp(all(query.max - max))[0], query);
    query.max = max;
  }
  Floats sums[4] = {};
  for (int64_t i = 0; i < count; i += kLanes) {
    const Floats probability = exp(load(scores + i) - max);
    sums[0] += probability;
    store(scores + i, probability * scales_at<T>(rows.v_scale, begin + i, count - i));
  }
  query.sum += total(sums);
}

// What all of a few queries see of [begin, end): all that each sees, or whole tiles.
inline int64_t common_end(int64_t begin, int64_t end, const Query& first, const Query& last) {
  const int64_t common = least(end, first.length);
  if (common <= begin) return begin;
  return common == least(end, last.length) ? common : common - (common - begin) % kRows;
}

// Adds positions to a few queries, of which none sees fewer than those before it and all see what
// they do from `begin` on. What one does not see is not even multiplied by zero: it may be NaN.
template <int kCount, typename T>
inline void attend_few(const KvRows& rows, int64_t begin, int64_t end, Query* queries) {
  ScoreBlock scores[kCount];
  const int64_t common = common_end(begin, end, queries[0], queries[kCount - 1]);
  score<kCount, T>(rows, begin, begin, common, queries, scores);
  for (int v = 0; v < kCount; ++v) {
    const int64_t own_end = least(end, queries[v].length);
    score<1, T>(rows, begin, common, own_end, queries + v, scores + v);
    softmax<T>(rows, begin, own_end, queries[v], scores[v].values);
  }
  gather<kCount, T>(rows, begin, begin, common, queries, scores);
  for (int v = 0; v < kCount; ++v) {
    gather<1, T>(rows, begin, common, least(end, queries[v].length), queries + v, scores + v);
  }
}

// The windows of a few queries begin within a few positions: those in front of where the last one
// does are added to each query alone.
template <typename T>
inline void attend_as(const KvRows& rows, int64_t begin, int64_t end, Query* queries,
                      int64_t count) {
  for (int64_t done = 0; done < count; done += kVectors) {
    Query* of_few = queries + done;
    const int64_t few = least(kVectors, count - done);
    const int64_t open = greatest(begin, of_few[few - 1].begin);
    for (int64_t v = 0; v < few - 1; ++v) {
      const int64_t own = greatest(begin, of_few[v].begin);
      if (own < open) attend_few<1, T>(rows, own, least(open, end), of_few + v);
    }
    with_count(few, [&](auto size) {
      attend_few<decltype(size)::value, T>(rows, open, end, of_few);
    });
  }
}

void attend(const KvRows& rows, int64_t begin, int64_t end, Query* queries, int64_t count) {
  if (rows.k_scale != nullptr) return attend_as<int8_t>(rows, begin, end, queries, count);
  if (rows.dtype == DType::kFloat16) return attend_as<Half>(rows, begin, end, queries, count);
  attend_as<float>(rows, begin, end, queries, count);
}

void merge(Query* parts, int64_t count, int64_t stride, int64_t head_dim, float* out) {
  float max = -kInfinity;
  for (int64_t c = 0; c < count; ++c) {
    const float part_max = parts[c * stride].max;
    max = part_max > max ? part_max : max;
  }
  float sum = 0.0f;
  for (int64_t c = 0; c < count; ++c) {
    Query& part = parts[c * stride];
    part.max = exp(all(part.max - max))[0];
    sum += part.max * part.sum;
  }
  for (int64_t i = 0; i < head_dim; i += kLanes) {
    const int64_t left = head_dim - i;
    Floats values = {};
    for (int64_t c = 0; c < count; ++c) {
      const Query& part = parts[c * stride];
      values += load(part.out + i, left) * part.max;
    }
    store(out + i, values / sum, left);
  }
}

}  // namespace
}  // namespace tinychat::cpu
