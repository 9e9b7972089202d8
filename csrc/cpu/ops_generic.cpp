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

// The bodies for processors without ones of their own: 128-bit vectors, which are SSE2 or NEON.

#if defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "cpu/ops_bodies.h"

#define TINYCHAT_LANES 4
#include "cpu/activation_body.h"
#include "cpu/attention_body.h"
#include "cpu/dense_body.h"
#include "cpu/memory_body.h"
#include "cpu/rows_body.h"

namespace tinychat::cpu {

const Bodies kGenericBodies = {widen_row, rms_norm_row, layer_norm_row, add_row, clip_row,
                             softcap_row, gate_mul_row, activate_row, rotate_row, append_row,
                             attend, merge, dense, read_piece, checksum_piece};

}  // namespace tinychat::cpu
