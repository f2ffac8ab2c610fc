// The CPU kernels of one instruction-set level, as a table of function pointers.
#pragma once
#include <cstdint>

#include "sopt.h"

namespace sopt {

// sum_k coefficients[k] z(seeds[k]), added to decay times what was there. After the first
// round_after[r] terms, r < rounds, the sum is rounded to the dtype and decays again.
struct Sum {
  const uint64_t* seeds;
  const float* coefficients;
  int64_t terms;
  float decay;
  const int64_t* round_after;
  int64_t rounds;
  const uint64_t* rounding_seeds;  // rounds + 1 of them; null: to nearest
};

static inline Sum sum_of(const uint64_t* seeds, const float* coefficients, int64_t terms) {
  return {seeds, coefficients, terms, 1.0f, nullptr, 0, nullptr};
}

// codes += SR(sum_n coefficients[n] delta(seeds[n], eps)), see sopt_update_int8_cpu.
struct CodeUpdate {
  const uint64_t* seeds;
  const uint64_t* delta_rounding_seeds;
  const float* coefficients;
  int64_t terms;
  float eps;
  int headroom;
  uint64_t rounding_seed;
};

// softmax(scale' q k^T) v of `heads` heads, see sopt_attention_forward_cpu.
struct Attention {
  sopt_rows query, key, value;
  void* out;  // (batch, queries, heads, size)
  int64_t heads, queries, keys, size;
  float scale;    // times log2(e): the weights are powers of two
  int64_t block;  // queries of an item of work
};

// A block of queries or keys that a thread keeps: so many elements, and so many rows at most.
constexpr int64_t kAttentionElements = 16384;
constexpr int64_t kMostQueries = 512, kMostKeys = 128;

// Rows of a block, a whole number of tiles of 32.
static inline int64_t attention_block(int64_t size, int64_t most) {
  const int64_t rows = kAttentionElements / size / 32 * 32;
  return rows < most ? rows : most;
}

// y += scale (x a^T) b^T, see sopt_add_low_rank_cpu.
struct LowRank {
  void* y;
  const void* x;
  const float *a, *b;
  int64_t rows, in, out, rank;
  float scale;
};
constexpr int64_t kLowRankRows = 32;  // of an item of work

// What int8 layers and their gradients read and write, see sopt_int8_conv2d_cpu. Of a gradient, the
// image is that of the results, and the result that of the inputs.
struct Int8Call {
  sopt_int8_layer layer;
  bool transposed;  // the gradient
  struct {
    sopt_image image;
    int64_t channels, words, pitch;  // of a pixel; as many words as hold them; to the next pixel
    int64_t depth;                   // words of a pixel that a panel has codes for
  } x;
  struct {
    void* data;
    int64_t height, width, channels;
  } out;
  struct {
    int64_t height, width;
    int64_t pixels, read;  // of a tile; that it reads at most
    int64_t totals;        // pixels, or 0 where the kernel's one element gives the whole result
  } tile;
  int64_t groups;  // of panels: so many items for each tile
};

struct Int8Body {
  void (*item)(const Int8Call& call, int64_t item, uint8_t* scratch);
  int64_t columns, depth, rows;  // of a panel; of a word; of a tile of registers
};

static inline int64_t int8_aligned(int64_t bytes) { return (bytes + 63) / 64 * 64; }

// All rows of x that `count` rows of the result read, from row y on.
struct Int8Span {
  int64_t begin, size;
};

static inline Int8Span int8_span(const Int8Call& c, int64_t y, int64_t count, int64_t kernel,
                                 int64_t size) {
  const int64_t stride = c.layer.stride, padding = c.layer.padding, last = y + count - 1;
  int64_t begin = y * stride - padding, end = last * stride - padding + kernel;
  if (c.transposed) {
    begin = (y + padding - kernel + stride) / stride;  // at most one too early
    end = (last + padding) / stride + 1;
  }
  begin = begin > 0 ? begin : 0;
  end = end < size ? end : size;
  return {begin, end > begin ? end - begin : 0};
}

// Ranges of elements that kernels are called on begin at a multiple of this: a whole number of
// counter blocks of either kind, for vectors of any length.
constexpr int64_t kTile = 2048;

struct Kernels {
  // Elements [begin, end) of one tensor; by kind and dtype.
  void (*add_noise[2][3])(const void* base, void* out, int64_t begin, int64_t end, uint64_t stream,
                          const Sum& sum);
  void (*noise_tile[2])(float* tile, int64_t begin, int64_t end, uint64_t stream, uint64_t seed);
  void (*add_scaled[3])(const void* base, void* out, int64_t begin, int64_t end, const float* z,
                        float coefficient);
  void (*perturb_int8[2])(const sopt_codes& x, int64_t begin, int64_t end, const Sum& sum,
                          int headroom, uint64_t rounding_seed);
  int64_t (*update_int8[2])(const sopt_codes& x, int64_t begin, int64_t end,
                            const CodeUpdate& update);
  void (*philox4x32_10)(const uint32_t* counters, int64_t n, uint64_t key, uint32_t* words);
  void (*box_muller)(const uint32_t* words, int64_t pairs, float* samples);
  // Items [begin, end) of batch * heads * blocks of queries; by dtype.
  void (*attention_forward[2])(const Attention& attention, int64_t begin, int64_t end);
  // Items [begin, end) of blocks of rows; by dtype.
  void (*add_low_rank[3])(const LowRank& factors, int64_t begin, int64_t end);
  // By sopt_elements and dtype.
  Int8Body int8_layer[2][3];
};

// Each is defined by one compilation of kernels.cpp.
extern const Kernels kernels_sse42, kernels_avx2, kernels_avx512, kernels_avx512_vnni,
    kernels_avx512_bf16, kernels_neon, kernels_neon_dot, kernels_generic;

// Those of the level in use.
const Kernels& kernels();

}  // namespace sopt
