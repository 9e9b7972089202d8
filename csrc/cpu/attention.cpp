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

#include <algorithm>
#include <cmath>
#include <vector>

#include "cpu/ops.h"
#include "cpu/ops_bodies.h"
#include "cpu/thread_pool.h"

namespace tinychat::cpu {
namespace {

// Between the calls of a decode step the pool's workers are awake: of the 10 to 18 microseconds
// that these took, the fewer query heads share a row the longer, two threads left 0.6 to 0.7.
constexpr int64_t kMinProductsPerThread = int64_t{1} << 19;

// Queries for which a prefill reads a block of positions from the second-level cache.
constexpr int64_t kQueryBlock = 32;

// A decode's parts, kept from call to call.
struct Workspace {
  std::vector<Query> queries;
  std::vector<float> outs;
};

struct Problem {
  const Bodies& bodies;
  const float* q;
  const KvCache& cache;
  float* out;
  int64_t tokens;
  int64_t heads;
  const Scores& scores;
  int64_t start;  // The first token's position.
  int64_t slot;

  int64_t group() const { return heads / cache.kv_heads; }
  int64_t length(int64_t token) const {
    return std::min(start + token + 1, cache.max_seq_len);
  }
  // The first position that a token sees.
  int64_t begin(int64_t token) const {
    return scores.window > 0 ? std::max(length(token) - scores.window, int64_t{0}) : 0;
  }
};

KvRows rows_of(const Problem& p, int64_t kv_head) {
  const KvCache& cache = p.cache;
  const int64_t first = (p.slot * cache.kv_heads + kv_head) * cache.max_seq_len;
  const bool int8 = cache.k_scale != nullptr;
  const int64_t size = int8 ? 1 : cache.dtype == DType::kFloat16 ? 2 : 4;
  const int64_t bytes = first * cache.head_dim * size;
  return {static_cast<const char*>(cache.k) + bytes,
          static_cast<const char*>(cache.v) + bytes,
          int8 ? static_cast<const uint16_t*>(cache.k_scale) + first : nullptr,
          int8 ? static_cast<const uint16_t*>(cache.v_scale) + first : nullptr,
          cache.dtype, cache.head_dim, p.scores.scale, p.scores.softcap};
}

Query empty_query(const Problem& p, int64_t token, int64_t head, float* out) {
  const int64_t head_dim = p.cache.head_dim;
  const float slope = p.scores.slopes == nullptr ? 0.0f : p.scores.slopes[head];
  std::fill_n(out, head_dim, 0.0f);
  return {p.q + (token * p.heads + head) * head_dim, p.begin(token), p.length(token), slope, out,
          -INFINITY, 0.0f};
}

// A block of positions for all query heads of a KV head, so that its rows are read once.
void attend_block(const Problem& p, int64_t kv_head, int64_t block, Query* queries, float* outs) {
  for (int64_t g = 0; g < p.group(); ++g) {
    queries[g] = empty_query(p, 0, kv_head * p.group() + g, outs + g * p.cache.head_dim);
  }
  const int64_t begin = p.begin(0) + block * kPositionBlock;
  p.bodies.attend(rows_of(p, kv_head), begin, std::min(begin + kPositionBlock, p.length(0)),
                  queries, p.group());
}

// One token: threads take blocks of positions, whose results are merged in the blocks' order.
void decode(const Problem& p, int num_threads) {
  static thread_local Workspace workspace;
  const int64_t group = p.group();
  const int64_t head_dim = p.cache.head_dim;
  const int64_t seen = p.length(0) - p.begin(0);
  const int64_t blocks = ceil_div(seen, kPositionBlock);
  workspace.queries.resize(p.heads * blocks);
  workspace.outs.resize(p.heads * blocks * head_dim);
  Query* queries = workspace.queries.data();
  float* outs = workspace.outs.data();
  ThreadPool::instance().parallel_for(
      p.cache.kv_heads * blocks,
      threads_for(2 * p.heads * seen * head_dim, kMinProductsPerThread, num_threads),
      [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          attend_block(p, item / blocks, item % blocks, queries + item * group,
                       outs + item * group * head_dim);
        }
      });
  for (int64_t head = 0; head < p.heads; ++head) {
    Query* parts = queries + head / group * blocks * group + head % group;
    p.bodies.merge(parts, blocks, group, head_dim, p.out + head * head_dim);
  }
}

// Queries [first, end) of a KV head, counted through its group of heads and then the tokens.
void attend_queries(const Problem& p, int64_t kv_head, int64_t first, int64_t end) {
  const int64_t group = p.group();
  const int64_t head_dim = p.cache.head_dim;
  Query queries[kQueryBlock];
  for (int64_t i = first; i < end; ++i) {
    const int64_t token = i / group;
    const int64_t head = kv_head * group + i % group;
    float* out = p.out + (token * p.heads + head) * head_dim;
    queries[i - first] = empty_query(p, token, head, out);
  }
  const KvRows rows = rows_of(p, kv_head);
  const int64_t length = queries[end - first - 1].length;
  for (int64_t begin = queries[0].begin; begin < length; begin += kPositionBlock) {
    p.bodies.attend(rows, begin, std::min(begin + kPositionBlock, length), queries, end - first);
  }
  for (int64_t i = 0; i < end - first; ++i) {
    p.bodies.merge(queries + i, 1, 1, head_dim, queries[i].out);
  }
}

void prefill(const Problem& p, int num_threads) {
  const int64_t queries = p.tokens * p.group();
  const int64_t blocks = ceil_div(queries, kQueryBlock);
  const int64_t seen = p.length(p.tokens - 1) - p.begin(p.tokens - 1);
  const int64_t products = 2 * p.tokens * p.heads * seen * p.cache.head_dim;
  ThreadPool::instance().parallel_for(
      p.cache.kv_heads * blocks, threads_for(products, kMinProductsPerThread, num_threads),
      [&](int64_t begin, int64_t end) {
        for (int64_t item = begin; item < end; ++item) {
          const int64_t first = item % blocks * kQueryBlock;
          attend_queries(p, item / blocks, first, std::min(first + kQueryBlock, queries));
        }
      });
}

}  // namespace

void attention(const float* q, const KvCache& cache, float* out, int64_t tokens, int64_t heads,
               const Scores& scores, int num_threads, const std::string& isa) {
  const Problem problem = {bodies_for(isa), q, cache, out, tokens, heads, scores,
                           cache.state->position, cache.state->slot};
  if (tokens == 1) {
    decode(problem, num_threads);
  } else {
    prefill(problem, num_threads);
  }
}

}  // namespace tinychat::cpu
