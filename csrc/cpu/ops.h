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

// The kernels of a decode step and a prefill on the CPU that are not quantized linears. All arrays
// are contiguous, of any alignment of their elements, and apart from each other unless said; all
// activations are fp32. num_threads 0 is one for each processor that this process may use, isa one
// of supported_isas(). The number of threads does not change a bit of what they give.

#pragma once

#include <cstdint>
#include <string>

#include "common.h"
#include "step.h"

namespace tinychat::cpu {

// ---- both ends of the model --------------------------------------------------------------------

// x = table[token_ids] * scale. An id that is not in the table gives zeros.
void embedding(const int32_t* token_ids,  // [tokens]
               const void* table,         // [vocab, hidden] dtype
               float* x,                  // [tokens, hidden]
               int64_t tokens,            //
               int64_t vocab,             //
               int64_t hidden,            //
               DType dtype,               //
               float scale,               //
               int num_threads,           //
               const std::string& isa);

// out = x times the transposed weight, which is plain or int8 by rows: the LM head and linears
// that are not quantized. The weight is read from memory once for 128 tokens.
void dense_gemm(const float* x,       // [m, k]
                const void* weight,   // [n, k] dtype, or int8 where there are scales
                const float* scales,  // [n], or null
                float* out,           // [m, n]
                int64_t m,            //
                int64_t n,            //
                int64_t k,            //
                DType dtype,          //
                int num_threads,      //
                const std::string& isa);

// Draws the next token: writes it to state->token, adds 1 to its position and its step, and puts
// (step + 1) << 32 | token at step % ring_size of the ring, in one store that another thread may
// watch. A best logit that is not finite gives the token -1.
void sample(const float* logits,          // [vocab]
            const SamplingState* params,  //
            uint8_t* seen,                // [vocab]: what the penalty is for; the token joins
            StepState* state,             //
            uint64_t* ring,               // [ring_size]
            int ring_size,                //
            int64_t vocab);

// ---- rows --------------------------------------------------------------------------------------

// y = x / sqrt(mean(x^2) + eps) * weight by rows.
void rms_norm(const float* x,      // [tokens, hidden]
              const void* weight,  // [hidden] dtype
              float* y,            // [tokens, hidden], may be x
              int64_t tokens,      //
              int64_t hidden,      //
              float eps,           //
              DType dtype,         //
              int num_threads,     //
              const std::string& isa);

// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias by rows.
void layer_norm(const float* x,      // [tokens, hidden]
                const void* weight,  // [hidden] dtype
                const void* bias,    // [hidden] dtype, or null
                float* y,            // [tokens, hidden], may be x
                int64_t tokens,      //
                int64_t hidden,      //
                float eps,           //
                DType dtype,         //
                int num_threads,     //
                const std::string& isa);

// x += residual.
void add(float* x,               // [count]
         const float* residual,  // [count]
         int64_t count,          //
         int num_threads,        //
         const std::string& isa);

// x = min(max(x, -limit), limit).
void clip(float* x,         // [count]
          int64_t count,    //
          float limit,      //
          int num_threads,  //
          const std::string& isa);

// x = cap * tanh(x / cap).
void softcap(float* x,         // [count]
             int64_t count,    //
             float cap,        //
             int num_threads,  //
             const std::string& isa);

// GELU is the exact one or that of tanh. The error of an activation is below 1e-6, above 1 the
// relative one.
enum class Activation : int { kSilu, kGelu, kGeluTanh };

// out = activation(gate) * up.
void gate_mul(const float* gate_up,   // [tokens, 2 size], gate first
              float* out,             // [tokens, size]
              int64_t tokens,         //
              int64_t size,           //
              Activation activation,  //
              int num_threads,        //
              const std::string& isa);

// out = activation(x) / scales.
void activate(const float* x,         // [tokens, size]
              const void* scales,     // [size] dtype, or null
              float* out,             // [tokens, size], may be x
              int64_t tokens,         //
              int64_t size,           //
              Activation activation,  //
              DType dtype,            //
              int num_threads,        //
              const std::string& isa);

// ---- memory ------------------------------------------------------------------------------------

// Reads an array and does nothing with it, to find out how fast memory is.
void read(const uint8_t* data,  // [bytes]
          int64_t bytes,        //
          int num_threads,      //
          const std::string& isa);

// A number that tells whether bytes are the same as before: where one word of 8 bytes has changed
// always, where two have unless it is in their topmost bits alone, else but by rare chance. It is
// no defence against someone who means harm. All instruction sets agree on it.
uint64_t checksum(const uint8_t* data,  // [bytes]
                  int64_t bytes,        //
                  int num_threads,      //
                  const std::string& isa);

// ---- attention ---------------------------------------------------------------------------------

constexpr int64_t kMaxHeadDim = 256;

// The KV cache of one layer, and where in it the tokens of this call go.
struct KvCache {
  void* k;                 // [slots, kv_heads, max_seq_len, head_dim] dtype, or int8
  void* v;                 //
  void* k_scale;           // [slots, kv_heads, max_seq_len] fp16 with int8 values, else null
  void* v_scale;           //
  DType dtype;             // fp32 or fp16; of no meaning with int8 values
  int64_t kv_heads;        //
  int64_t max_seq_len;     //
  int64_t head_dim;        // even, 2 to kMaxHeadDim
  const StepState* state;  // slot and position; the tokens stand one after another from there
};

// The RMSNorm of each query and each key.
struct HeadNorm {
  const void* q;  // [head_dim] dtype, or null, as k is then: there is none
  const void* k;  // [head_dim] dtype
  DType dtype;    //
  float eps;      //
};

// Normalizes queries and keys, rotates them in the half-split layout of Hugging Face's Llama, and
// appends keys and values to the cache, where there is room. In int8 each head's row has a scale
// of its own.
void rope_append(const float* qkv,      // [tokens, heads + 2 kv_heads, head_dim]
                 float* q,              // [tokens, heads, head_dim]
                 const KvCache& cache,  //
                 const float* cos,      // [max_seq_len, head_dim / 2], or null: no rotation
                 const float* sin,      //
                 const HeadNorm& norm,  //
                 int64_t tokens,        //
                 int64_t heads,         //
                 int num_threads,       //
                 const std::string& isa);

// What is made of the products of queries and keys.
struct Scores {
  float scale;          // of the products, 1 / sqrt(head_dim) as a rule
  int64_t window;       // positions that a token sees, its own among them; 0: all before it
  float softcap;        // then softcap * tanh(score / softcap); 0: as they are
  const float* slopes;  // [heads] of ALiBi, lost for each position that a key is back; or null
};

// The causal attention of tokens that follow one another, each over the cache up to its own place.
// What lies behind a window is not read.
void attention(const float* q,        // [tokens, heads, head_dim]
               const KvCache& cache,  //
               float* out,            // [tokens, heads, head_dim]
               int64_t tokens,        //
               int64_t heads,         // a multiple of kv_heads
               const Scores& scores,  //
               int num_threads,       //
               const std::string& isa);

}  // namespace tinychat::cpu
