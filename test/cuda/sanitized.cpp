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

void run_read_bytes() {
  for (int64_t bytes : {16, 65536, 65552, 4 * 65536 + 16}) {
    std::vector<char> data(bytes), sink(4);
    read_bytes(data.data(), bytes, sink.data(), nullptr);
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
  tinychat::run_primitives();
  tinychat::run_read_bytes();
  std::puts("clean");
}
