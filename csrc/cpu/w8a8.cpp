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

#include "cpu/w8a8.h"

#include <algorithm>
#include <numeric>
#include <vector>

#include "common.h"
#include "cpu/thread_pool.h"

namespace tinychat {
namespace {

// Rows of the weight taken through all tokens before the next: at K = 4096 they fill 128 KiB,
// which stays in a second-level cache, so that memory is read once for any number of tokens.
constexpr int64_t kRowBlock = 32;

// Between the calls of a decode step the pool's workers are awake: of the 16 microseconds that one
// thread took for these products, two left 0.65.
constexpr int64_t kMinProductsPerThread = int64_t{1} << 20;
constexpr int64_t kMinValuesPerThread = int64_t{1} << 16;

struct Problem {
  const W8A8Body& body;
  const int8_t* x;
  const float* x_scales;
  const int32_t* x_sums;
  const int8_t* qweight;
  const float* scales;
  float* out;
  int64_t m;
  int64_t n;
  int64_t k;
  int64_t x_stride;
};

// Rows [begin, end) of the weight, at most the body's, times some tokens.
void multiply_rows(const Problem& p, int64_t begin, int64_t end, int64_t token, int64_t tokens) {
  int32_t sums[kW8A8MaxTokens * kW8A8MaxRows];
  const int8_t* rows[kW8A8MaxRows];
  for (int64_t r = 0; r < p.body.rows; ++r) {
    rows[r] = p.qweight + std::min(begin + r, end - 1) * p.k;
  }
  p.body.multiply(rows, p.x + token * p.x_stride, p.x_sums + token, p.x_stride, p.k, tokens, sums);
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t row = begin; row < end; ++row) {
      const float sum = static_cast<float>(sums[t * p.body.rows + row - begin]);
      p.out[(token + t) * p.n + row] = sum * p.x_scales[token + t] * p.scales[row];
    }
  }
}

void multiply_row_block(const Problem& p, int64_t begin, int64_t end) {
  for (int64_t token = 0; token < p.m; token += p.body.max_tokens) {
    for (int64_t row = begin; row < end; row += p.body.rows) {
      multiply_rows(p, row, std::min(row + p.body.rows, end), token,
                    std::min(p.body.max_tokens, p.m - token));
    }
  }
}

const W8A8Body& body_for([[maybe_unused]] const std::string& isa) {
#if defined(TINYCHAT_AVXVNNI)
  if (isa == "avxvnni") return kW8A8AvxVnni;
#endif
#if defined(__x86_64__)
  if (isa == "avx512vnni") return kW8A8Avx512Vnni;
  if (isa != "generic") return kW8A8Avx2;
#endif
#if defined(__aarch64__)
  if (isa != "generic") return kW8A8Dotprod;
#endif
  return kW8A8Generic;
}

}  // namespace

void w8a8_gemm(const float* x, const int8_t* qweight, const float* scales, float* out, int64_t m,
               int64_t n, int64_t k, int num_threads, const std::string& isa) {
  const W8A8Body& body = body_for(isa);
  const int64_t x_stride = ceil_div(k, kW8A8Padding) * kW8A8Padding;
  std::vector<int8_t> x_quantized(m * x_stride);
  std::vector<float> x_scales(m);
  std::vector<int32_t> x_sums(m);
  ThreadPool& pool = ThreadPool::instance();
  pool.parallel_for(
      m, threads_for(m * k, kMinValuesPerThread, num_threads), [&](int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
          int8_t* const q = x_quantized.data() + t * x_stride;
          x_scales[t] = body.quantize(x + t * k, k, q);
          x_sums[t] = std::accumulate(q, q + k, 0);
        }
      });
  const Problem problem{body, x_quantized.data(), x_scales.data(), x_sums.data(), qweight, scales,
                        out, m, n, k, x_stride};
  pool.parallel_for(n, threads_for(m * n * k, kMinProductsPerThread, num_threads),
                    [&problem](int64_t begin, int64_t end) {
                      for (int64_t row = begin; row < end; row += kRowBlock) {
                        multiply_row_block(problem, row, std::min(row + kRowBlock, end));
                      }
                    });
}

}  // namespace tinychat
