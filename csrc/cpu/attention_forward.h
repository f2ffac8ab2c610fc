// Kernel of attention_forward: blocks of keys pass by queries that stay, as in FlashAttention
// (arXiv 2205.14135), with the softmax online (arXiv 1805.02867).
//
// Lanes are queries. So maxima and sums over keys need no step between lanes, a head of any size
// fills its registers, and only queries and results are transposed: of keys and values, single
// words are read and go to all lanes.
#pragma once
#include <cfloat>
#include <cmath>

#include "attention_math.h"
#include "kernels.h"

namespace sopt {
namespace {

constexpr int64_t kRowsAhead = 16;  // from request to use; affects speed only

// What a thread keeps of one head. Depth: the elements of a word; tile: kTileQueries<M> queries.
template <class M>
struct AttentionScratch {
  using Word = typename M::Word;
  alignas(64) Word queries[kAttentionElements / M::kDepth];  // (tiles, size / depth, tile)
  alignas(64) Word keys[kAttentionElements / M::kDepth];     // (keys, size / depth)
  alignas(64) Word values[kAttentionElements / M::kDepth];   // (keys / depth, size)
  alignas(64) float results[kAttentionElements];  // (tiles, size, tile), not yet divided by totals
  alignas(64) float scores[kMostKeys * kTileQueries<M>];              // (keys, tile)
  alignas(64) Word weights[kMostKeys / M::kDepth * kTileQueries<M>];  // (keys / depth, tile)
  alignas(64) float maxima[kMostQueries], totals[kMostQueries];       // of scores; of weights
};

// acc[r][v] += sum over k < count of a[r * row + k * step] * b[k * tile + v * lanes].
template <class M>
SOPT_INLINE void multiply_tile(typename M::F acc[kTileRows<M>][kTilePacks], int64_t count,
                               const typename M::Word* a, int64_t row, int64_t step,
                               const typename M::Word* b) {
  for (int64_t k = 0; k < count; ++k, a += step, b += kTileQueries<M>) {
    typename M::Words columns[kTilePacks];
    SOPT_UNROLL
    for (int v = 0; v < kTilePacks; ++v) columns[v] = M::load(b + v * M::kLanes);
    SOPT_UNROLL
    for (int r = 0; r < kTileRows<M>; ++r) {
      const typename M::Words word = M::splat(a[r * row]);
      SOPT_UNROLL
      for (int v = 0; v < kTilePacks; ++v) acc[r][v] = M::dot(word, columns[v], acc[r][v]);
    }
  }
}

// Scores of a tile of queries with `keys` keys; -inf past the last, to a whole number of tiles.
// `maxima` rise to the largest of each query.
template <class M>
[[gnu::noinline]] void score_tile(AttentionScratch<M>& s, const typename M::Word* queries,
                                  int64_t keys, int64_t depth, float* maxima) {
  using F = typename M::F;
  constexpr int R = kTileRows<M>;
  F most[kTilePacks];
  for (int v = 0; v < kTilePacks; ++v) most[v] = M::load(maxima + v * M::kLanes);
  for (int64_t key = 0; key < keys; key += R) {
    F acc[R][kTilePacks] = {};
    multiply_tile<M>(acc, depth, s.keys + key * depth, depth, 1, queries);
    SOPT_UNROLL
    for (int r = 0; r < R; ++r) SOPT_UNROLL
    for (int v = 0; v < kTilePacks; ++v) {
      most[v] = M::max(most[v], acc[r][v]);
      M::store(s.scores + (key + r) * kTileQueries<M> + v * M::kLanes, acc[r][v]);
    }
  }
  for (int64_t i = keys * kTileQueries<M>; i % (R * kTileQueries<M>) != 0; i += M::kLanes)
    M::store(s.scores + i, M::fill(-INFINITY));
  for (int v = 0; v < kTilePacks; ++v) M::store(maxima + v * M::kLanes, most[v]);
}

// weights = 2^(scale (score - maximum)), their sum in `totals`.
template <class M>
[[gnu::noinline]] void weigh_tile(AttentionScratch<M>& s, int64_t keys, float scale,
                                  const float* maxima, float* totals) {
  using F = typename M::F;
  constexpr int T = kTileQueries<M>, D = M::kDepth;
  const F factor = M::fill(scale);
  for (int v = 0; v < kTilePacks; ++v) {
    const float* scores = s.scores + v * M::kLanes;
    typename M::Word* weights = s.weights + v * M::kLanes;
    const F shift = -factor * M::load(maxima + v * M::kLanes);
    F total[D] = {};
    for (int64_t key = 0; key < keys; key += D, scores += D * T, weights += T) {
      F weight[D];
      for (int i = 0; i < D; ++i) {
        weight[i] = M::exp2(M::multiply_add(M::load(scores + i * T), factor, shift));
        total[i] = total[i] + weight[i];
      }
      M::store(weights, M::join(weight));
    }
    F sum = M::load(totals + v * M::kLanes);
    for (int i = 0; i < D; ++i) sum = sum + total[i];
    M::store(totals + v * M::kLanes, sum);
  }
}

// results = results * factors + values of the weights' keys.
template <class M>
[[gnu::noinline]] void accumulate_tile(AttentionScratch<M>& s, int64_t keys, int64_t size,
                                       const float* factors, float* results) {
  using F = typename M::F;
  constexpr int R = kTileRows<M>;
  for (int64_t column = 0; column < size; column += R, results += R * kTileQueries<M>) {
    F acc[R][kTilePacks];
    SOPT_UNROLL
    for (int r = 0; r < R; ++r) SOPT_UNROLL
    for (int v = 0; v < kTilePacks; ++v)
      acc[r][v] =
          M::load(results + r * kTileQueries<M> + v * M::kLanes) * M::load(factors + v * M::kLanes);
    multiply_tile<M>(acc, keys / M::kDepth, s.values + column, 1, size, s.weights);
    SOPT_UNROLL
    for (int r = 0; r < R; ++r) SOPT_UNROLL
    for (int v = 0; v < kTilePacks; ++v)
      M::store(results + r * kTileQueries<M> + v * M::kLanes, acc[r][v]);
  }
}

// One block of keys, packed, for all queries that are kept.
template <class M>
void attend(AttentionScratch<M>& s, int64_t tiles, int64_t keys, int64_t size, float scale) {
  constexpr int T = kTileQueries<M>;
  const int64_t rows = round_up(keys, kTileRows<M>);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    float *maxima = s.maxima + tile * T, *totals = s.totals + tile * T;
    alignas(64) float factors[T];
    memcpy(factors, maxima, sizeof factors);
    score_tile<M>(s, s.queries + tile * T * size / M::kDepth, keys, size / M::kDepth, maxima);
    for (int i = 0; i < T; i += M::kLanes) {
      const auto fallen = (M::load(factors + i) - M::load(maxima + i)) * M::fill(scale);
      const auto factor = M::exp2(fallen);
      M::store(factors + i, factor);
      M::store(totals + i, M::load(totals + i) * factor);
    }
    weigh_tile<M>(s, rows, scale, maxima, totals);
    accumulate_tile<M>(s, rows, size, factors, s.results + tile * T * size);
  }
}

// Brings a row to the cache, to be written if `write`; of those that are far apart the processor
// does not foresee the next.
template <bool write = false, class T>
SOPT_INLINE void prefetch_row(const T* row, int64_t size) {
  for (int64_t k = 0; k < size; k += 64 / int64_t{sizeof(T)}) __builtin_prefetch(row + k, write);
  __builtin_prefetch(row + size - 1, write);
}

template <class M, class T>
void pack_queries(AttentionScratch<M>& s, const T* from, int64_t stride, int64_t queries,
                  int64_t size) {
  constexpr int L = M::kLanes, N = kTileQueries<M>;
  const int64_t depth = size / M::kDepth;
  for (int64_t i = 0; i < round_up(queries, N); i += L) {
    typename M::Word* to = s.queries + i / N * N * depth + i % N;
    for (int j = 0; j < L; ++j) prefetch_row(from + (i + j + 4 * kRowsAhead) * stride, size);
    for (int64_t k = 0; k < depth; k += L) {
      typename M::Words rows[L];
      for (int j = 0; j < L; ++j)
        rows[j] = i + j < queries ? M::load_row(from + (i + j) * stride + k * M::kDepth, depth - k)
                                  : typename M::Words{};
      M::transpose(rows);
      for (int64_t j = 0; j < L && k + j < depth; ++j) M::store(to + (k + j) * N, rows[j]);
    }
  }
}

template <class M, class T>
void pack_keys(AttentionScratch<M>& s, const T* from, int64_t stride, int64_t keys, int64_t size) {
  const int64_t depth = size / M::kDepth;
  for (int64_t i = 0; i < round_up(keys, kTileRows<M>); ++i) {
    prefetch_row(from + (i + kRowsAhead) * stride, size);
    const T* row = from + (i < keys ? i : keys - 1) * stride;  // no maximum rises by the last again
    for (int64_t k = 0; k < depth; ++k) s.keys[i * depth + k] = M::word(row + k * M::kDepth);
  }
}

template <class M, class T>
void pack_values(AttentionScratch<M>& s, const T* from, int64_t stride, int64_t keys,
                 int64_t size) {
  static const T zeros[SOPT_ATTENTION_MAX_SIZE] = {};
  for (int64_t i = 0; i < round_up(keys, kTileRows<M>); i += M::kDepth) {
    for (int64_t j = 0; j < M::kDepth; ++j)
      prefetch_row(from + (i + j + kRowsAhead) * stride, size);
    const T* first = i < keys ? from + i * stride : zeros;
    const T* last = i + M::kDepth <= keys ? from + (i + M::kDepth - 1) * stride : zeros;
    for (int64_t k = 0; k < size; ++k)
      s.values[i / M::kDepth * size + k] = M::pair(first[k], last[k]);
  }
}

template <class M, class T>
void write_results(AttentionScratch<M>& s, T* to, int64_t stride, int64_t queries, int64_t size) {
  constexpr int L = M::kLanes, D = M::kDepth, N = kTileQueries<M>;
  const int64_t depth = size / D;
  for (int64_t i = 0; i < queries; i += L) {
    const float* from = s.results + i / N * N * size + i % N;
    const typename M::F factor = M::fill(1.0f) / M::load(s.totals + i);
    for (int64_t k = 0; k < depth; k += L) {
      typename M::Words rows[L];
      for (int j = 0; j < L; ++j) {
        typename M::F elements[D] = {};
        for (int e = 0; e < D && k + j < depth; ++e)
          elements[e] = M::load(from + ((k + j) * D + e) * N) * factor;
        rows[j] = M::join(elements);
      }
      M::transpose(rows);
      for (int64_t j = 0; j < L && i + j < queries; ++j)
        M::store_row(to + (i + j) * stride + k * D, depth - k, rows[j]);
    }
  }
}

// Items [begin, end): each a block of queries of one head.
template <class M, class T>
void attention_forward(const Attention& a, int64_t begin, int64_t end) {
  AttentionScratch<M> s;
  const int64_t size = a.size, blocks = (a.queries + a.block - 1) / a.block;
  const int64_t step = attention_block(size, kMostKeys);
  for (int64_t item = begin; item < end; ++item) {
    const int64_t batch = item / a.heads / blocks, head = item % a.heads;
    const int64_t first = item / a.heads % blocks * a.block;
    const int64_t queries = a.queries - first < a.block ? a.queries - first : a.block;
    const int64_t tiles = round_up(queries, kTileQueries<M>) / kTileQueries<M>;
    auto rows = [&](const sopt_rows& x, int64_t row) {
      return static_cast<const T*>(x.data) + batch * x.batch_stride + head * x.head_stride +
             row * x.row_stride;
    };
    const int64_t stride = a.heads * size;
    T* out = static_cast<T*>(a.out) + (batch * a.queries + first) * stride + head * size;
    for (int64_t i = 0; i < queries; ++i) prefetch_row<true>(out + i * stride, size);
    pack_queries<M>(s, rows(a.query, first), a.query.row_stride, queries, size);
    memset(s.results, 0, size_t(tiles * kTileQueries<M> * size) * sizeof(float));
    memset(s.totals, 0, sizeof s.totals);
    for (float& x : s.maxima) x = -FLT_MAX;  // -inf would give NaN, less -inf
    for (int64_t key = 0; key < a.keys; key += step) {
      const int64_t keys = a.keys - key < step ? a.keys - key : step;
      pack_keys<M>(s, rows(a.key, key), a.key.row_stride, keys, size);
      pack_values<M>(s, rows(a.value, key), a.value.row_stride, keys, size);
      attend<M>(s, tiles, keys, size, a.scale);
    }
    write_results<M>(s, out, stride, queries, size);
  }
}

}  // namespace
}  // namespace sopt
