// Kernel of add_low_rank: y += scale (x a^T) b^T for blocks of rows, the products in between kept.
#pragma once
#include "attention_math.h"
#include "kernels.h"

namespace sopt {
namespace {

constexpr int kLowRankSide = 4;   // rows, and ranks, of a tile of inner products
constexpr int kLowRankPacks = 4;  // of columns of y

// Sums over the lanes of each of x: N packs of kLanes lanes to N numbers.
template <class P, int N>
SOPT_INLINE void sum_lanes(typename P::F (&x)[N], float* to) {
  constexpr int L = P::kLanes;
  static_assert(N % L == 0 || L % N == 0, "whole packs");
  for (int i = 0; i < N; i += L) {
    typename P::F square[L];
    for (int j = 0; j < L; ++j) square[j] = i + j < N ? x[i + j] : typename P::F{};
    P::transpose(square);
    for (int step = L / 2; step > 0; step /= 2)
      for (int j = 0; j < step; ++j) square[j] = square[j] + square[j + step];
    store_some<P>(to + i, N, square[0]);
  }
}

// inner[i][r] = scale x[i] . a[r] for i < rows.
template <class P, class T>
void inner_products(const LowRank& f, const T* x, int64_t rows, float* inner) {
  constexpr int S = kLowRankSide;
  const int64_t last_row = rows - 1, last_rank = f.rank - 1;
  for (int64_t i = 0; i < rows; i += S) {
    const T* from[S];
    for (int j = 0; j < S; ++j) from[j] = x + (i + j < rows ? i + j : last_row) * f.in;
    for (int64_t r = 0; r < f.rank; r += S) {
      const float* a[S];
      for (int j = 0; j < S; ++j) a[j] = f.a + (r + j < f.rank ? r + j : last_rank) * f.in;
      typename P::F acc[S * S] = {};
      for (int64_t k = 0; k < f.in; k += P::kLanes) {
        typename P::F factors[S];
        for (int j = 0; j < S; ++j) factors[j] = load_some<P>(a[j] + k, f.in - k);
        SOPT_UNROLL
        for (int j = 0; j < S; ++j) {
          const typename P::F row = load_some<P>(from[j] + k, f.in - k);
          SOPT_UNROLL
          for (int q = 0; q < S; ++q)
            acc[j * S + q] = Singles<P>::multiply_add(row, factors[q], acc[j * S + q]);
        }
      }
      float sums[S * S];
      sum_lanes<P>(acc, sums);
      for (int64_t j = 0; j < S && i + j < rows; ++j)
        for (int64_t q = 0; q < S && r + q < f.rank; ++q)
          inner[(i + j) * f.rank + r + q] = f.scale * sums[j * S + q];
    }
  }
}

// y[i] += inner[i] b^T for i < rows.
template <class P, class T>
void add_outer_products(const LowRank& f, T* y, int64_t rows, const float* inner) {
  constexpr int N = kLowRankPacks, L = P::kLanes;
  alignas(64) float b[SOPT_LOW_RANK_MAX * N * L];  // (rank, columns)
  for (int64_t column = 0; column < f.out; column += N * L) {
    const int64_t columns = f.out - column < N * L ? f.out - column : N * L;
    for (int64_t r = 0; r < f.rank; ++r) {
      for (int64_t j = 0; j < columns; ++j) b[r * N * L + j] = f.b[(column + j) * f.rank + r];
      for (int64_t j = columns; j < N * L; ++j) b[r * N * L + j] = 0.0f;
    }
    for (int64_t i = 0; i < rows; ++i) {
      T* to = y + i * f.out + column;
      typename P::F acc[N] = {};
      for (int64_t r = 0; r < f.rank; ++r) {
        const typename P::F factor = P::splat(inner[i * f.rank + r]);
        SOPT_UNROLL
        for (int v = 0; v < N; ++v)
          acc[v] = Singles<P>::multiply_add(factor, P::load(b + (r * N + v) * L), acc[v]);
      }
      SOPT_UNROLL
      for (int v = 0; v < N; ++v) {
        const int64_t left = columns - v * L;
        if (left > 0) store_some<P>(to + v * L, left, load_some<P>(to + v * L, left) + acc[v]);
      }
    }
  }
}

// Blocks [begin, end) of kLowRankRows rows.
template <class P, class T>
void add_low_rank(const LowRank& f, int64_t begin, int64_t end) {
  float inner[kLowRankRows * SOPT_LOW_RANK_MAX];
  for (int64_t first = begin * kLowRankRows; begin < end; ++begin, first += kLowRankRows) {
    const int64_t rows = f.rows - first < kLowRankRows ? f.rows - first : kLowRankRows;
    inner_products<P>(f, static_cast<const T*>(f.x) + first * f.in, rows, inner);
    add_outer_products<P>(f, static_cast<T*>(f.y) + first * f.out, rows, inner);
  }
}

}  // namespace
}  // namespace sopt
