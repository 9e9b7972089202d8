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

// The launchers of the CUDA kernels. All addresses are of device memory and multiples of 16, all
// arrays contiguous, all activations fp16 or bf16 (dtype) unless said; a kernel is started on the
// stream (a cudaStream_t), nobody waits for it.

#pragma once

#include <cstdint>
#include <string>

#include "common.h"
#include "step.h"

namespace tinychat {

// The best of a tile of logits. Of equal ones the first.
struct Candidate {
  float logit;
  int32_t token;
};

// Logits per candidate.
constexpr int kCandidateTile = 16;

// Returns why no kernel runs on the current device, such as that none was built for it, or ''.
std::string device_problem();

// ---- norms -------------------------------------------------------------------------------------

// y = x / sqrt(mean(x^2) + eps) * weight by rows, after x += residual where there is one. Rounds
// where the reference does: x + residual, the normalized x, the product with the weight.
void rms_norm(void* x,               // [tokens, hidden] dtype or fp32, written only with residual
              const void* residual,  // [tokens, hidden], or null
              const void* weight,    // [hidden]
              void* y,               // [tokens, hidden], may be x
              int64_t tokens,        // 1 or more
              int64_t hidden,        // a multiple of 8
              float eps,             //
              DType dtype,           //
              void* stream);

// y = (x - mean(x)) / sqrt(var(x) + eps) * weight + bias by rows, rounded once.
void layer_norm(const void* x,       // [tokens, hidden] dtype or fp32
                const void* weight,  // [hidden]
                const void* bias,    // [hidden], or null
                void* y,             // [tokens, hidden], may be x
                int64_t tokens,      // 1 or more
                int64_t hidden,      // a multiple of 8
                float eps,           //
                DType dtype,         //
                void* stream);

// ---- W4A16 linears -----------------------------------------------------------------------------

// y = x times the transposed weight, in records (w4_record.cuh draws them), plus the bias. A GEMV
// reads the weights once for 8 tokens at most; a GEMM is for more.
struct W4Input {
  const void* x;            // [m, k]
  const void* records;      // [ceil(n / 16), ceil(k / 128), record bytes]
  const void* bias;         // [n] in the order of the records' rows, or null
  const void* norm_weight;  // [k], the RMSNorm in front of a GEMV, or null
  float norm_eps;           //
  int64_t m, n, k;          // n a multiple of 8, k of 8
  int group_size;           // of the records: 32, 64 or 128
  const void* next;         // what the next kernel reads first, to be brought into L2, or null
  int64_t next_bytes;       //
  DType dtype;              //
  void* stream;
};

// y [m, n] = the product, plus the residual [m, n] where there is one, which may be y.
struct LinearOutput {
  const void* residual;
  void* y;
};

// Of an MLP. GELU in full, and as it is approximated by a tanh.
enum class Activation { kNone, kSilu, kGelu, kGeluTanh };

// y [m, n] = activation(product), divided by the scales [n] where there are some.
struct UpOutput {
  Activation activation;
  const void* scales;
  void* y;
};

// y [m, n / 2] = activation(gate) * up; the rows of each tile of 16 are 8 of gate, then 8 of up.
struct GateUpOutput {
  Activation activation;
  void* y;
};

// The KV cache of one layer, and where in it the tokens of this call go.
struct KvCache {
  void* k;                 // [slots, kv_heads, max_seq_len, head_dim] dtype, or int8
  void* v;                 //
  void* k_scale;           // [slots, kv_heads, max_seq_len] fp16 with int8 values, else null
  void* v_scale;           //
  int64_t kv_heads;        //
  int64_t max_seq_len;     //
  int64_t head_dim;        // a multiple of 8
  const StepState* state;  // slot and position; the tokens stand one after another from there
};

// The rotary embedding in the half-split layout of Hugging Face's Llama.
struct Rotary {
  const float* cos;  // [max_seq_len, head_dim / 2], or null for no rotation
  const float* sin;  //
};

// The RMSNorm of each query and each key head in front of the rotation.
struct HeadNorm {
  const void* q;  // [head_dim], or null for no norm
  const void* k;  // likewise
  float eps;      //
};

// Rotated queries to q [m, heads, head_dim], rotated keys and values to a cache that is not int8.
// head_dim is a multiple of 16, the angles are not null. In the tiles of a query or key head, rows
// 0-7 of tile j are its dimensions 8j to 8j + 7 and rows 8-15 those head_dim / 2 further; values
// are in their order.
struct QkvOutput {
  void* q;
  KvCache cache;
  Rotary rotary;
  int64_t heads;
};

// logits [n] fp32 and the best of each tile of 16; m is 1.
struct LogitsOutput {
  float* logits;
  Candidate* best;  // [ceil(n / 16)]
  float softcap;    // The logits are cap * tanh(product / cap); 0 leaves them.
};

// m is 1 to 8.
void w4_gemv(const W4Input& input, const LinearOutput& output);
void w4_gemv(const W4Input& input, const UpOutput& output);
void w4_gemv(const W4Input& input, const GateUpOutput& output);
void w4_gemv(const W4Input& input, const QkvOutput& output);
void w4_gemv(const W4Input& input, const LogitsOutput& output);

// m is 1 or more, norm_weight null.
void w4_gemm(const W4Input& input, const LinearOutput& output);
void w4_gemm(const W4Input& input, const UpOutput& output);
void w4_gemm(const W4Input& input, const GateUpOutput& output);
void w4_gemm(const W4Input& input, const QkvOutput& output);

// Writes records from a weight in its canonical form, w = (q - zero) * scale, row by row.
void w4_repack(const uint8_t* qweight,  // [rows of it, k / 2], the lower nibble first
               const void* scales,      // [rows of it, k / source_group] fp16
               const uint8_t* zeros,    // [rows of it, k / source_group]
               const int32_t* rows,     // [tiles * 16]: the row that goes there, or -1 for none
               void* records,           // [tiles, ceil(k / 128), record bytes]
               int64_t tiles,           //
               int64_t k,               // a multiple of 8
               int64_t source_group,    // 32, 64, a multiple of 128, or k
               void* stream);

// ---- attention ---------------------------------------------------------------------------------

// What follows a QKV product that did not do it itself: normalizes and rotates queries and keys,
// and appends keys and values to a cache of either kind. In int8 a head's row has its own scale.
void rope_append(const void* qkv,        // [tokens, heads + 2 kv_heads, head_dim]
                 bool permuted,          // whether its heads are in the order of QkvOutput's tiles
                 void* q,                // [tokens, heads, head_dim]
                 const KvCache& cache,   //
                 const HeadNorm& norm,   //
                 const Rotary& rotary,   //
                 int64_t tokens,         //
                 int64_t heads,          //
                 DType dtype,            //
                 void* stream);

// What attention makes of the products of a query with the keys.
struct Scores {
  float scale;          // of the products, 1 / sqrt(head_dim) as a rule
  int window;           // positions that a token sees, itself among them; 0 is all before it
  float softcap;        // Bounds what was scaled, cap * tanh(product / cap); 0 leaves it.
  const float* slopes;  // [heads] of ALiBi: what a score loses for each position back; or null
};

// The bytes of decode_attention's workspace, which the caller fills with zeros once.
int64_t decode_attention_workspace(int64_t heads, int64_t kv_heads, int64_t head_dim,
                                   int64_t max_seq_len);

// The attention of one token over the cache up to its own position, split over the length.
void decode_attention(const void* q,         // [heads, head_dim]
                      const KvCache& cache,  //
                      void* out,             // [heads, head_dim]
                      void* workspace,       //
                      int64_t heads,         // a multiple of kv_heads
                      const Scores& scores,  //
                      DType dtype,           //
                      void* stream);

// The causal attention of tokens that follow one another, each over the cache up to its own place.
void prefill_attention(const void* q,         // [tokens, heads, head_dim]
                       const KvCache& cache,  //
                       void* out,             // [tokens, heads, head_dim]
                       int64_t tokens,        //
                       int64_t heads,         // a multiple of kv_heads
                       const Scores& scores,  //
                       DType dtype,           //
                       void* stream);

// ---- both ends of the model --------------------------------------------------------------------

// x = table[token_ids] * scale. An id that is not in the table gives zeros.
void embedding(const int32_t* token_ids,  // [tokens], 4-byte aligned
               const void* table,         // [vocab, hidden]
               void* x,                   // [tokens, hidden]
               int64_t tokens,            //
               int64_t vocab,             //
               int64_t hidden,            // a multiple of 8
               float scale,               //
               DType dtype,               //
               void* stream);

// The LM head of one token, its weight plain or int8 by rows.
void lm_head(const void* x,              // [k]
             const void* norm_weight,    // [k], the final RMSNorm in front, or null
             float norm_eps,             //
             const void* weight,         // [n, k] dtype, or int8 where there are scales
             const float* scales,        // [n], or null
             const LogitsOutput& output, //
             int64_t n,                  //
             int64_t k,                  // a multiple of 16
             DType dtype,                //
             void* stream);

// Draws the next token: writes it to state->token, adds 1 to its position and its step, and puts
// (step + 1) << 32 | token at step % ring_size of the ring, in one store that the host may watch.
// A best logit that is not finite gives the token -1.
void sample(const float* logits,          // [vocab]
            const Candidate* best,        // [ceil(vocab / 16)]
            const SamplingState* params,  //
            uint8_t* seen,                // [vocab]: what the penalty is for; the token joins
            StepState* state,             //
            uint64_t* ring,               // [ring_size], host memory that the device can write
            int ring_size,                //
            int64_t vocab,                //
            void* stream);

// Waits until sample() has put the token of a step, counted from 0, into the ring, and returns it.
// Throws where the stream has failed, or has ended without it.
int32_t wait_for_token(const uint64_t* ring,  // [ring_size]
                       int ring_size,         //
                       int64_t step,          //
                       void* stream);

// ---- measurement -------------------------------------------------------------------------------

constexpr uint32_t kReadMark = 0x5eed0bed;

// Reads an array once. A thread whose words, combined by exclusive or, are kReadMark writes that
// to the sink, so that no read can be left out.
void read_bytes(const void* data,  // [bytes]
                int64_t bytes,     // a multiple of 16
                void* sink,        // [4]
                void* stream);

}  // namespace tinychat
