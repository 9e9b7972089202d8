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

// What an instruction set has to provide for the kernels of ops.h: their inner loops.

#pragma once

#include <cstdint>
#include <string>

#include "cpu/ops.h"

namespace tinychat::cpu {

// Positions of the KV cache whose scores are kept at once; in decode also what one thread takes.
constexpr int64_t kPositionBlock = 256;

// A query and what it has gathered so far.
struct Query {
  const float* q;  // [head_dim]
  int64_t begin;   // The positions that it sees: from here,
  int64_t length;  // and up to its own, which is the last.
  float slope;     // What a score loses for each position that its key is back.
  float* out;      // [head_dim]: the sum of exp(score - max) * value
  float max;       // The largest score.
  float sum;       // Of exp(score - max).
};

// Keys and values of one KV head, int8 where they have scales.
struct KvRows {
  const void* k;  // [max_seq_len, head_dim]
  const void* v;
  const uint16_t* k_scale;  // [max_seq_len] fp16, or null
  const uint16_t* v_scale;
  DType dtype;
  int64_t head_dim;
  float scale;
  float softcap;
};

struct DenseProblem {
  const float* x;
  const void* weight;
  const float* scales;
  float* out;
  int64_t m;
  int64_t n;
  int64_t k;
  DType dtype;
};

// Where a row of the KV cache goes, int8 where it has a scale.
struct KvDestination {
  void* values;
  uint16_t* scale;
  DType dtype;
};

// What a checksum takes at once: 16 columns of words.
constexpr int64_t kStripeBytes = 128;

// The finalizer of MurmurHash3, which spreads a change of any bit over all.
inline uint64_t mix_words(uint64_t before, uint64_t word) {
  uint64_t mixed = before * 0x9e3779b97f4a7c15u + word;
  mixed = (mixed ^ mixed >> 33) * 0xff51afd7ed558ccdu;
  mixed = (mixed ^ mixed >> 33) * 0xc4ceb9fe1a85ec53u;
  return mixed ^ mixed >> 33;
}

struct Bodies {
  // A row each.
  void (*widen)(const void* from, DType dtype, int64_t n, float scale, float* to);
  void (*rms_norm)(const float* x, const void* weight, DType dtype, int64_t n, float eps,
                   float* y);
  void (*layer_norm)(const float* x, const void* weight, const void* bias, DType dtype, int64_t n,
                     float eps, float* y);
  void (*add)(float* x, const float* residual, int64_t n);
  void (*clip)(float* x, int64_t n, float limit);
  void (*softcap)(float* x, int64_t n, float cap);
  void (*gate_mul)(Activation activation, const float* gate, const float* up, int64_t n,
                   float* out);
  void (*activate)(Activation activation, const float* x, const void* scales, DType dtype,
                   int64_t n, float* out);
  void (*rotate)(const float* x, const float* cos, const float* sin, int64_t half, float* y);
  void (*append)(const float* x, int64_t n, const KvDestination& to);

  // Adds the positions [begin, end), at most kPositionBlock, to queries of one KV head.
  void (*attend)(const KvRows& rows, int64_t begin, int64_t end, Query* queries, int64_t count);
  // Writes the result of a query whose parts are at parts[0], parts[stride], ...; out may be the
  // only part's. A part's `max` becomes its factor.
  void (*merge)(Query* parts, int64_t count, int64_t stride, int64_t head_dim, float* out);

  // The output features [begin, end) of all tokens.
  void (*dense)(const DenseProblem& problem, int64_t begin, int64_t end);

  // A piece each; what `read` returns has no meaning.
  uint64_t (*read)(const uint8_t* data, int64_t bytes);
  uint64_t (*checksum)(const uint8_t* data, int64_t bytes);
};

extern const Bodies kGenericBodies;
#if defined(__x86_64__)
extern const Bodies kAvx2Bodies;
extern const Bodies kAvx512Bodies;
#endif

inline const Bodies& bodies_for([[maybe_unused]] const std::string& isa) {
#if defined(__x86_64__)
  if (isa == "avx512vnni") return kAvx512Bodies;
  if (isa == "avx2" || isa == "avxvnni") return kAvx2Bodies;
#endif
  return kGenericBodies;
}

}  // namespace tinychat::cpu
