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

// Kernels that use one primitive of prim.cuh each, for the tests. One block each, unless said.

#pragma once

#include <cstdint>

#include "common.h"

namespace tinychat {

// d[16][16] fp32 = a[16][16] b[16][16], both dtype fp16 or bf16, through ldmatrix and mma.
void matmul_16(const void* a, const void* b, void* d, DType dtype, void* stream);

// fragments[32 lanes][4] uint32 of matrices[4][8][8] uint16.
void load_matrices(const void* matrices, void* fragments, bool transposed, void* stream);

// out[steps][256][16 bytes] = in, the chunks of a step in reverse, through a ring of three stages.
void ring_copy(const void* in, void* out, int steps, void* stream);

// What each of 32 threads finds in shared memory: before[32][16 bytes] as soon as it began to copy
// in[32][16 bytes], and after[32][16 bytes] when it has waited.
void copy_and_look(const void* in, void* before, void* after, void* stream);

// out[blocks][128][16 bytes] = in, by streaming loads; two warps load for the two others.
void handed_over_copy(const void* in, void* out, int blocks, void* stream);

// out[5][32] int32 of in[32] int32: from lane 3, from lane ^ 5, from 2 lanes on, from 2 lanes on
// among 8, the ballot of odd values.
void shuffle_32(const void* in, void* out, void* stream);

}  // namespace tinychat
