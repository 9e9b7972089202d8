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

// CUDA on a CPU, for tests: g++ compiles a .cu file against this header and runs its kernels. Each
// CUDA thread is a fiber; blocks run one after another, all in an order shuffled by the seed.
// Warps are whole: a mask names all 32 lanes, and a block has a multiple of 32 threads. A thread
// that spins until another writes something spins for ever.

#pragma once

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>

#include "common.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// In a function this is static as well. All of a module's thread-local variables lie together, so
// that each block can find them poisoned; kernels run on the one thread that launches them.
#define __shared__ thread_local
#define TINYCHAT_DYNAMIC_SHARED(type, name) \
  type* name = static_cast<type*>(tinychat::emu::shared())
#define TINYCHAT_UNROLL

struct uint3 {
  unsigned x, y, z;
};

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

inline uint3 threadIdx, blockIdx;
inline dim3 blockDim, gridDim;

namespace tinychat {
namespace emu {

// The bytes that uninitialized and not yet copied shared memory holds: NaN in every float format.
constexpr int kPoison = 0xff;

// Another seed gives another order of blocks and of the threads in them.
void set_seed(uint32_t seed);

// Runs `thread` for each thread of the grid. Throws std::runtime_error, naming the kernel, the
// block and the thread, for what a GPU would answer with a hang, a trap or garbage: a barrier that
// not all reach, lanes that diverge, a write beside the dynamic shared memory.
void run_grid(const char* kernel, dim3 grid, dim3 block, size_t shared_bytes,
              const std::function<void()>& thread);

// What kernels call. `site` is the line of the call: those who meet must come from the same one.
void fail(const std::string& reason);
void* shared();
int lane();
void arrive(int barrier, int threads, int site, bool wait);
const unsigned char* exchange_bytes(const void* value, size_t bytes, uint32_t mask, int site);
void copy_later(void* to, const void* from);
void commit_copies();
void wait_for_copies(size_t groups_left);
void check_aligned(const void* address, size_t alignment);

constexpr size_t kSlotBytes = 32;
constexpr int kMaxSharedBytes = 163 << 10;  // What a block can have on an Orin.

// Gives each lane of the warp the values of all lanes.
template <typename T>
std::array<T, 32> exchange(const T& value, int site, uint32_t mask = ~0u) {
  static_assert(sizeof(T) <= kSlotBytes, "one slot holds the value");
  const unsigned char* slots = exchange_bytes(&value, sizeof(T), mask, site);
  std::array<T, 32> values;
  for (int i = 0; i < 32; ++i) std::memcpy(&values[i], slots + i * kSlotBytes, sizeof(T));
  return values;
}

template <typename To, typename From>
To bit_cast(From from) {
  static_assert(sizeof(To) == sizeof(From), "the same bits");
  To to;
  std::memcpy(&to, &from, sizeof(to));
  return to;
}

inline float widen_half(uint16_t bits) {
  if ((~bits & 0x7c00) != 0) return half_to_float(bits);
  return bit_cast<float>((bits & 0x8000u) << 16 | 0x7f800000u | (bits & 1023u) << 13);
}

// To nearest, ties to even, as all of these.
inline uint16_t round_to_half(float value) {
  const uint32_t sign = bit_cast<uint32_t>(value) >> 16 & 0x8000;
  const uint32_t magnitude = bit_cast<uint32_t>(value) & 0x7fffffff;
  if (magnitude > 0x7f800000) return 0x7fff;
  if (magnitude >= 0x477ff000) return sign | 0x7c00;  // From 65520 on it is infinity.
  // Subnormal halves are multiples of 2^-24, which is the last place of 0.5.
  if (magnitude < 0x38800000) {
    return sign | (bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000);
  }
  return sign | (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
}

inline float widen_bfloat16(uint16_t bits) { return bit_cast<float>(uint32_t{bits} << 16); }

inline uint16_t round_to_bfloat16(float value) {
  const uint32_t bits = bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffff) > 0x7f800000) return 0x7fff;
  return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

template <uint16_t (*kRound)(float), float (*kWiden)(uint16_t)>
struct Float16 {
  uint16_t bits;
  Float16() = default;
  Float16(float value) : bits(kRound(value)) {}
  operator float() const { return kWiden(bits); }
};

template <typename T>
struct alignas(4) Pair {
  T x, y;
  Pair() = default;
  Pair(T x, T y) : x(x), y(y) {}
};

}  // namespace emu

template <typename... Parameters, typename... Arguments>
void launch(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
            size_t shared_bytes, void* /* stream */, Arguments... arguments) {
  emu::run_grid(name, grid, block, shared_bytes, [&] { kernel(arguments...); });
}

template <typename... Parameters, typename... Arguments>
void launch_dependent(const char* name, void (*kernel)(Parameters...), dim3 grid, dim3 block,
                      size_t shared_bytes, void* stream, Arguments... arguments) {
  launch(name, kernel, grid, block, shared_bytes, stream, arguments...);
}

template <typename Kernel>
std::string kernel_problem(Kernel* /* kernel */) {
  return "";
}

inline bool stream_ended(void* /* stream */) { return true; }

// A small device, so that blocks have to take more than one piece of work.
inline int multiprocessors() { return 3; }

inline int max_shared_bytes() { return emu::kMaxSharedBytes; }

template <typename... Parameters>
int resident_blocks(const char* /* name */, void (*)(Parameters...), int /* threads */,
                    size_t /* shared_bytes */) {
  return multiprocessors();
}

}  // namespace tinychat

#define TINYCHAT_VECTOR(name, type, alignment, ...) \
  struct alignas(alignment) name {                  \
    type __VA_ARGS__;                               \
  };
TINYCHAT_VECTOR(float2, float, 8, x, y)
TINYCHAT_VECTOR(float4, float, 16, x, y, z, w)
TINYCHAT_VECTOR(uint2, unsigned, 8, x, y)
TINYCHAT_VECTOR(uint4, unsigned, 16, x, y, z, w)
#undef TINYCHAT_VECTOR

inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

using __half = tinychat::emu::Float16<tinychat::emu::round_to_half, tinychat::emu::widen_half>;
using __nv_bfloat16 =
    tinychat::emu::Float16<tinychat::emu::round_to_bfloat16, tinychat::emu::widen_bfloat16>;
using __half2 = tinychat::emu::Pair<__half>;
using __nv_bfloat162 = tinychat::emu::Pair<__nv_bfloat16>;
using half = __half;
using half2 = __half2;

inline float __half2float(__half a) { return a; }
inline __half __float2half(float a) { return a; }
inline __half2 __half2half2(__half a) { return {a, a}; }
inline __half2 __floats2half2_rn(float a, float b) { return {a, b}; }

inline __nv_bfloat162 __floats2bfloat162_rn(float a, float b) { return {a, b}; }

// A product of two 16-bit floats is exact in fp32, and a sum in fp64, so that each rounds once.
template <typename T>
T __hfma(T a, T b, T c) {
  return static_cast<float>(double{a} * double{b} + double{c});
}
template <typename T>
tinychat::emu::Pair<T> __hsub2(tinychat::emu::Pair<T> a, tinychat::emu::Pair<T> b) {
  return {float{a.x} - float{b.x}, float{a.y} - float{b.y}};
}
template <typename T>
tinychat::emu::Pair<T> __hmul2(tinychat::emu::Pair<T> a, tinychat::emu::Pair<T> b) {
  return {float{a.x} * float{b.x}, float{a.y} * float{b.y}};
}
template <typename T>
tinychat::emu::Pair<T> __hfma2(tinychat::emu::Pair<T> a, tinychat::emu::Pair<T> b,
                               tinychat::emu::Pair<T> c) {
  return {__hfma(a.x, b.x, c.x), __hfma(a.y, b.y, c.y)};
}

using std::max;
using std::min;
inline float rsqrtf(float a) { return 1.0f / std::sqrt(a); }
inline float __expf(float a) { return std::exp(a); }
inline float __fdividef(float a, float b) { return a / b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __fmul_rn(float a, float b) { return a * b; }
inline unsigned __float_as_uint(float a) { return tinychat::emu::bit_cast<unsigned>(a); }
inline float __uint_as_float(unsigned a) { return tinychat::emu::bit_cast<float>(a); }
inline uint64_t __umul64hi(uint64_t a, uint64_t b) {
  return static_cast<uint64_t>(static_cast<unsigned __int128>(a) * b >> 64);
}
// Four of the eight bytes of b and a, each named by the lower three bits of a digit of `selector`.
inline unsigned __byte_perm(unsigned a, unsigned b, unsigned selector) {
  const uint64_t bytes = uint64_t{b} << 32 | a;
  unsigned chosen = 0;
  for (int i = 0; i < 4; ++i) {
    chosen |= static_cast<unsigned>(bytes >> (selector >> 4 * i & 7) * 8 & 0xff) << 8 * i;
  }
  return chosen;
}
template <typename T>
T __ldg(const T* address) {
  return *address;
}

// One thread runs at a time, until it waits.
inline void __threadfence() {}
template <typename T, typename Value>
T atomicAdd(T* address, Value value) {
  const T old = *address;
  *address = old + static_cast<T>(value);
  return old;
}

inline void __syncthreads(int site = __builtin_LINE()) {
  tinychat::emu::arrive(0, blockDim.x * blockDim.y * blockDim.z, site, true);
}
inline void __syncwarp(uint32_t mask = ~0u, int site = __builtin_LINE()) {
  tinychat::emu::exchange(0, site, mask);
}
inline uint32_t __ballot_sync(uint32_t mask, int predicate, int site = __builtin_LINE()) {
  uint32_t bits = 0;
  const auto votes = tinychat::emu::exchange(predicate, site, mask);
  for (int i = 0; i < 32; ++i) bits |= uint32_t{votes[i] != 0} << i;
  return bits;
}

// A lane whose source lies outside its `width` lanes keeps its own value.
template <typename T>
T __shfl_sync(uint32_t mask, T value, int source, int width = 32, int site = __builtin_LINE()) {
  const int first = tinychat::emu::lane() & -width;
  return tinychat::emu::exchange(value, site, mask)[first + (source & (width - 1))];
}
template <typename T>
T __shfl_xor_sync(uint32_t mask, T value, int bits, int width = 32, int site = __builtin_LINE()) {
  const int lane = tinychat::emu::lane();
  const int source = lane ^ bits;
  return tinychat::emu::exchange(value, site, mask)[source < (lane & -width) + width ? source
                                                                                     : lane];
}
template <typename T>
T __shfl_down_sync(uint32_t mask, T value, int delta, int width = 32,
                   int site = __builtin_LINE()) {
  const int lane = tinychat::emu::lane();
  const int source = lane + delta;
  return tinychat::emu::exchange(value, site, mask)[source < (lane & -width) + width ? source
                                                                                     : lane];
}
