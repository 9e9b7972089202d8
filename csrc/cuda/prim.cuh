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

// The only PTX of the project. Under the emulator each primitive is its definition in C++.

#pragma once

#include <type_traits>

#include "cuda/runtime.cuh"

namespace tinychat {

#if defined(__CUDACC__)
// For what is read once: the first to leave the L2 cache.
__device__ __forceinline__ uint64_t evict_first_policy() {
  uint64_t policy;
  asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
  return policy;
}

__device__ __forceinline__ uint32_t shared_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}
#endif

// Begins to copy 16 bytes to shared memory, past L1 and evict-first in L2. Both addresses are
// multiples of 16. The bytes are there for this thread after cp_async_wait, and for others after a
// barrier behind it.
__device__ __forceinline__ void cp_async_16(void* shared, const void* global) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global.L2::cache_hint [%0], [%1], 16, %2;" ::"r"(
                   shared_address(shared)),
               "l"(global), "l"(evict_first_policy())
               : "memory");
#else
  emu::copy_later(shared, global);
#endif
}

// As cp_async_16, but of what other blocks read too, and zeros instead where nothing is there.
__device__ __forceinline__ void cp_async_16_or_zeros(void* shared, const void* global,
                                                     bool there) {
#if defined(__CUDACC__)
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)),
               "l"(global), "r"(there ? 16 : 0)
               : "memory");
#else
  alignas(16) static const unsigned char zeros[16] = {};
  emu::copy_later(shared, there ? global : zeros);
#endif
}

// Closes the group of the copies that this thread began since the last one.
__device__ __forceinline__ void cp_async_commit() {
#if defined(__CUDACC__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#else
  emu::commit_copies();
#endif
}

// Waits for all groups of this thread but the newest kGroupsLeft.
template <int kGroupsLeft>
__device__ __forceinline__ void cp_async_wait() {
#if defined(__CUDACC__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroupsLeft) : "memory");
#else
  emu::wait_for_copies(kGroupsLeft);
#endif
}

// Loads 16 bytes that nobody writes while the kernel runs, past L1 and evict-first in L2.
__device__ __forceinline__ uint4 load_streaming(const void* global) {
#if defined(__CUDACC__)
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.L2::cache_hint.v4.u32 {%0, %1, %2, %3}, [%4], %5;"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(global), "l"(evict_first_policy()));
  return value;
#else
  emu::check_aligned(global, 16);
  return *static_cast<const uint4*>(global);
#endif
}

// Asks for the cache line at an address of global memory to be brought into L2.
__device__ __forceinline__ void prefetch_l2(const void* global) {
#if defined(__CUDACC__)
  asm volatile("prefetch.global.L2 [%0];" ::"l"(global));
#else
  (void)global;
#endif
}

// x & mask | bits as one instruction, which the compiler makes two of where both are constants.
template <uint32_t kMask>
__device__ __forceinline__ uint32_t and_or(uint32_t x, uint32_t bits) {
#if defined(__CUDACC__)
  uint32_t y;
  asm("lop3.b32 %0, %1, %2, %3, 0xea;" : "=r"(y) : "r"(x), "n"(kMask), "r"(bits));
  return y;
#else
  return (x & kMask) | bits;
#endif
}

#if !defined(__CUDACC__)
// Matrix m is the 8 rows of 16 bytes at the addresses that lanes 8m to 8m + 7 gave.
template <bool kTransposed>
void emulate_ldmatrix_x4(uint32_t (&matrices)[4], const void* row) {
  emu::check_aligned(row, 16);
  const auto rows = emu::exchange(static_cast<const uint16_t*>(row), __LINE__);
  const int line = emu::lane() / 4;
  const int pair = emu::lane() % 4 * 2;
  for (int m = 0; m < 4; ++m) {
    const auto* first = rows.data() + 8 * m;
    const uint32_t low = kTransposed ? first[pair][line] : first[line][pair];
    const uint32_t high = kTransposed ? first[pair + 1][line] : first[line][pair + 1];
    matrices[m] = high << 16 | low;
  }
}
#endif

#if defined(__CUDACC__)
#define TINYCHAT_LDMATRIX(trans)                                                             \
  asm volatile("ldmatrix.sync.aligned.m8n8.x4" trans ".shared.b16 {%0, %1, %2, %3}, [%4];"   \
               : "=r"(matrices[0]), "=r"(matrices[1]), "=r"(matrices[2]), "=r"(matrices[3]) \
               : "r"(shared_address(row))                                                    \
               : "memory")
#endif

// Loads four 8 x 8 matrices of 16-bit values from shared memory. Lane l gives the address of row
// l % 8 of matrix l / 8, and gets values 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of each matrix.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&matrices)[4], const void* row) {
#if defined(__CUDACC__)
  TINYCHAT_LDMATRIX("");
#else
  emulate_ldmatrix_x4<false>(matrices, row);
#endif
}

// As ldmatrix_x4, of the transposed matrices.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&matrices)[4], const void* row) {
#if defined(__CUDACC__)
  TINYCHAT_LDMATRIX(".trans");
#else
  emulate_ldmatrix_x4<true>(matrices, row);
#endif
}

#undef TINYCHAT_LDMATRIX

#if defined(__CUDACC__)
#define TINYCHAT_MMA(type)                                                           \
  asm volatile("mma.sync.aligned.m16n8k16.row.col.f32." type "." type                \
               ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};" \
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])                      \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]))
#else
// Value k of those that a register holds two of.
template <typename T>
float value_of(uint32_t pair, int k) {
  return emu::bit_cast<T>(static_cast<uint16_t>(k % 2 ? pair >> 16 : pair));
}

template <typename T>
void emulate_mma(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  struct Operands {
    uint32_t a[4], b[2];
  };
  const auto lanes = emu::exchange(Operands{{a[0], a[1], a[2], a[3]}, {b[0], b[1]}}, __LINE__);
  for (int i = 0; i < 4; ++i) {
    const int row = emu::lane() / 4 + i / 2 * 8;
    const int column = emu::lane() % 4 * 2 + i % 2;
    for (int k = 0; k < 16; ++k) {
      const int t = k % 8 / 2;
      d[i] += value_of<T>(lanes[row % 8 * 4 + t].a[row / 8 + k / 8 * 2], k) *
              value_of<T>(lanes[column * 4 + t].b[k / 8], k);
    }
  }
}
#endif

// d[16][8] += a[16][16] b[16][8] in fp32, T half or __nv_bfloat16, two values in a register, the
// one of lower k (of d: lower column) first. With g = lane / 4 and t = lane % 4 a lane holds
//   a: rows g, g + 8, g, g + 8; k 2t, 2t + 1 in the first two, 8 more in the last two
//   b: column g; k 2t, 2t + 1 and 8 more
//   d: row g in the first two, g + 8 in the last two; columns 2t, 2t + 1
template <typename T>
__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4],
                                             const uint32_t (&b)[2]) {
  static_assert(std::is_same_v<T, half> || std::is_same_v<T, __nv_bfloat16>, "a 16-bit float");
#if !defined(__CUDACC__)
  emulate_mma<T>(d, a, b);
#else
  if constexpr (std::is_same_v<T, half>) {
    TINYCHAT_MMA("f16");
  } else {
    TINYCHAT_MMA("bf16");
  }
#endif
}

#undef TINYCHAT_MMA

// One of 16 barriers (0 is that of __syncthreads) for `threads` threads, whole warps: those that
// wait here, and those that only tell that they came.
__device__ __forceinline__ void named_barrier_wait(int barrier, int threads) {
#if defined(__CUDACC__)
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
#else
  emu::arrive(barrier, threads, 0, true);
#endif
}

__device__ __forceinline__ void named_barrier_arrive(int barrier, int threads) {
#if defined(__CUDACC__)
  asm volatile("bar.arrive %0, %1;" ::"r"(barrier), "r"(threads) : "memory");
#else
  emu::arrive(barrier, threads, 0, false);
#endif
}

// Waits until the kernels before this one in the stream have ended and their writes can be read.
// Where nothing was launched to overlap, and on an Orin, they have.
__device__ __forceinline__ void grid_dependency_wait() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Lets the kernel behind this one in the stream start, as far as it does not wait.
__device__ __forceinline__ void grid_dependency_launch() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

}  // namespace tinychat
