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

// All kernels once under AddressSanitizer, on arrays that end where their data does. With an
// argument it makes a row longer than its array, which the sanitizer has to find.

#include <cstdio>
#include <vector>

#include "cuda/launchers.h"
#include "primitives.h"

namespace tinychat {
namespace {

void run_rms_norm(int64_t tokens, int64_t hidden, DType dtype, int64_t overrun) {
  const size_t bytes = dtype == DType::kFloat32 ? 4 : 2;
  std::vector<char> x(tokens * hidden * bytes), residual(x), y(x), weight(hidden * bytes);
  rms_norm(x.data(), residual.data(), weight.data(), y.data(), tokens, hidden + overrun, 1e-5f,
           dtype, nullptr);
}

// Keys and values of a cache whose arrays end with its last position.
struct AttentionArrays {
  std::vector<char> k, v, k_scale, v_scale;
  StepState state;

  KvCache cache(int64_t kv_heads, int64_t max_seq_len, int64_t head_dim, bool int8) {
    const size_t rows = kv_heads * max_seq_len;
    k.resize(rows * head_dim * (int8 ? 1 : 2));
    v = k;
    k_scale.resize(rows * 2);
    v_scale = k_scale;
    return {k.data(), v.data(), int8 ? k_scale.data() : nullptr, int8 ? v_scale.data() : nullptr,
            kv_heads, max_seq_len, head_dim, &state};
  }
};

// The positions end behind the cache.
void run_attention(int64_t head_dim, bool int8, DType dtype) {
  constexpr int kHeads = 3, kKvHeads = 1, kLength = 131, kTokens = 18;
  AttentionArrays arrays;
  const KvCache cache = arrays.cache(kKvHeads, kLength, head_dim, int8);
  const int64_t row = kHeads * head_dim * 2;
  const int64_t qkv_row = (kHeads + 2 * kKvHeads) * head_dim * 2;
  std::vector<char> q(kTokens * row), out(q), qkv(kTokens * qkv_row);
  std::vector<float> cos(kLength * head_dim / 2), sin(cos);
  std::vector<char> workspace(decode_attention_workspace(kHeads, kKvHeads, head_dim, kLength));
  arrays.state = {0, kLength - kTokens + 1, 0, 0};
  rope_append(qkv.data(), q.data(), cache, {cos.data(), sin.data()}, kTokens, kHeads, dtype,
              nullptr);
  prefill_attention(q.data(), cache, out.data(), kTokens, kHeads, 1.0f, dtype, nullptr);
  q.resize(row), out.resize(row);
  q.shrink_to_fit(), out.shrink_to_fit();
  arrays.state.position = kLength;
  decode_attention(q.data(), cache, out.data(), workspace.data(), kHeads, 1.0f, dtype, nullptr);
}

void run_primitives() {
  constexpr int kSteps = 4;
  std::vector<char> in(kSteps * 256 * 16), out(in);
  ring_copy(in.data(), out.data(), kSteps, nullptr);
  handed_over_copy(in.data(), out.data(), kSteps * 2, nullptr);
  std::vector<char> a(16 * 16 * 2), b(a), d(16 * 16 * 4);
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    matmul_16(a.data(), b.data(), d.data(), dtype, nullptr);
  }
}

}  // namespace
}  // namespace tinychat

int main(int argc, char**) {
  using tinychat::DType;
  for (DType dtype : {DType::kFloat16, DType::kBFloat16, DType::kFloat32}) {
    for (int hidden : {8, 64, 80, 128, 4096, 4104}) {
      for (int tokens : {1, 3}) tinychat::run_rms_norm(tokens, hidden, dtype, argc > 1 ? 8 : 0);
    }
  }
  for (DType dtype : {DType::kFloat16, DType::kBFloat16}) {
    for (int head_dim : {8, 64, 80, 128, 256}) {
      for (bool int8 : {false, true}) tinychat::run_attention(head_dim, int8, dtype);
    }
  }
  tinychat::run_primitives();
  std::puts("clean");
}
