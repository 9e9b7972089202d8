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

#include "cuda/launchers.h"

#include <stdexcept>

namespace tinychat {
[[noreturn]] static void missing(const char* name) { throw std::runtime_error(name); }

void w4_gemv(const W4Input&, const LinearOutput&) { missing("w4_gemv"); }
void w4_gemv(const W4Input&, const GateUpOutput&) { missing("w4_gemv"); }
void w4_gemv(const W4Input&, const QkvOutput&) { missing("w4_gemv"); }
void w4_gemv(const W4Input&, const LogitsOutput&) { missing("w4_gemv"); }
void w4_gemm(const W4Input&, const LinearOutput&) { missing("w4_gemm"); }
void w4_gemm(const W4Input&, const GateUpOutput&) { missing("w4_gemm"); }
void w4_gemm(const W4Input&, const QkvOutput&) { missing("w4_gemm"); }
void w4_repack(const uint8_t*, const void*, const uint8_t*, const int32_t*, void*, int64_t, int64_t, int64_t, void*) { missing("w4_repack"); }
void rope_append(const void*, void*, const KvCache&, const Rotary&, int64_t, int64_t, DType, void*) { missing("rope_append"); }
int64_t decode_attention_workspace(int64_t, int64_t, int64_t, int64_t) { missing("decode_attention_workspace"); }
void decode_attention(const void*, const KvCache&, void*, void*, int64_t, float, DType, void*) { missing("decode_attention"); }
void prefill_attention(const void*, const KvCache&, void*, int64_t, int64_t, float, DType, void*) { missing("prefill_attention"); }
}  // namespace tinychat
