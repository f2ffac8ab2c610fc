// Which elements a thread works on, and their way from memory into registers and back.
//
// A block of threads takes one tile of one tensor, each thread 32 elements of it: a quarter of 128
// consecutive ones, which are one counter block of Rademacher noise or 32 of Gaussian noise. So
// threads need nothing from each other, and what a counter block costs is spread over 32 elements.
// The four threads of a quarter take V elements each in turn: their accesses of 16 bytes join to
// whole sectors of memory, of 32 bytes.
#pragma once
#include "storage.cuh"

namespace sopt {

constexpr int kThreads = 128;  // per block; with kShare, affects speed only; not tuned on a GPU yet
constexpr int kShare = 32;     // elements per thread
constexpr int kTile = kThreads * kShare;

// The elements of this thread: V at each of `first` + 4 i, for i = 0, V, 2 V ... below kShare.
template <int V>
struct Share {
  int64_t first;
  bool whole;    // the tile has no elements past the end, and vectors may be used
  bool vectors;  // addresses of vectors are multiples of 16

  template <class... Addresses>
  __device__ Share(int64_t tile, int64_t numel, Addresses... of_memory) {
    const int64_t begin = tile * kTile;
    first = begin + threadIdx.x / 4 * 128 + threadIdx.x % 4 * V;
    vectors = ((reinterpret_cast<uintptr_t>(of_memory) | ...) & 15) == 0;
    whole = vectors && begin + kTile <= numel;
  }

  // Of the whole tensor, element i of the share.
  __device__ int64_t index(int i) const { return first + i / V * V * 4 + i % V; }
};

// V consecutive elements.
template <int V, class T>
SOPT_INLINE void load_vectors(const T* from, float* x) {
  constexpr int N = Storage<T>::kVector;
  SOPT_UNROLL
  for (int v = 0; v < V; v += N) Storage<T>::load(from + v, x + v);
}

template <int V, class T>
SOPT_INLINE void store_vectors(T* to, const float* x) {
  constexpr int N = Storage<T>::kVector;
  SOPT_UNROLL
  for (int v = 0; v < V; v += N) Storage<T>::store(to + v, x + v);
}

// Of a whole tile, without a branch between the accesses: all of them are under way at once.
template <int V, class T>
SOPT_INLINE void load(const Share<V>& share, const T* from, int64_t numel, float (&x)[kShare]) {
  const T* mine = from + share.first;
  if (share.whole) {
    SOPT_UNROLL
    for (int i = 0; i < kShare; i += V) load_vectors<V>(mine + 4 * i, x + i);
    return;
  }
  SOPT_UNROLL
  for (int i = 0; i < kShare; i += V) {
    const int64_t rest = numel - share.first - 4 * i;
    if (share.vectors && rest >= V) {
      load_vectors<V>(mine + 4 * i, x + i);
    } else {
      SOPT_UNROLL
      for (int v = 0; v < V; ++v)
        x[i + v] = v < rest ? Storage<T>::load_one(mine + 4 * i + v) : 0.0f;
    }
  }
}

template <int V, class T>
SOPT_INLINE void store(const Share<V>& share, T* to, int64_t numel, const float (&x)[kShare]) {
  T* mine = to + share.first;
  if (share.whole) {
    SOPT_UNROLL
    for (int i = 0; i < kShare; i += V) store_vectors<V>(mine + 4 * i, x + i);
    return;
  }
  SOPT_UNROLL
  for (int i = 0; i < kShare; i += V) {
    const int64_t rest = numel - share.first - 4 * i;
    if (share.vectors && rest >= V) {
      store_vectors<V>(mine + 4 * i, x + i);
    } else {
      SOPT_UNROLL
      for (int v = 0; v < V; ++v)
        if (v < rest) Storage<T>::store_one(mine + 4 * i + v, x[i + v]);
    }
  }
}

}  // namespace sopt
