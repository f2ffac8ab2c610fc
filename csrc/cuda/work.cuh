// What one launch works on, passed by value: the tensors of a list and the terms of the sum.
//
// The driver copies the arguments of a kernel at the launch, and into a CUDA graph at its capture.
// So there is no table in device memory to allocate, to fill before the first call, to keep alive
// for graphs, or to order between streams.
#pragma once
#include <cstdint>
#include <cstring>

#include "launch.cuh"
#include "sopt.h"
#include "tile.cuh"

namespace sopt {

// Most launches are of the first size; a kernel has 32,764 bytes of arguments (CUDA 12.1 or newer).
struct Little {
  static constexpr int kTensors = 16, kTerms = 16;
};
struct Much {
  static constexpr int kTensors = 512, kTerms = SOPT_MAX_HOST_TERMS;
};
constexpr int kArgumentBytes = 32764;

// Numbers of the caller: those in host memory go along, those in device memory are read there.
template <class T>
struct Numbers {
  const T* from;
  sopt_memory memory;

  Numbers<T> operator+(int64_t k) const { return {from ? from + k : from, memory}; }
};

template <class T, int N>
struct Array {
  T items[N];
  const T* device;  // in place of `items`, where not null

  void set(Numbers<T> numbers, int64_t count) {
    device = numbers.memory == SOPT_DEVICE ? numbers.from : nullptr;
    if (numbers.memory == SOPT_HOST && count > 0)
      memcpy(items, numbers.from, size_t(count) * sizeof(T));
  }
  __device__ T operator[](int64_t k) const { return device ? device[k] : items[k]; }
};

template <class Item, int N>
struct List {
  Item items[N];
  int32_t count;

  // The one that has the tile: the last one whose first tile is not after it.
  __device__ const Item& with(uint32_t tile) const {
    int low = 0, high = count;
    while (high - low > 1) {
      const int middle = (low + high) / 2;
      (items[middle].first_tile <= tile ? low : high) = middle;
    }
    return items[low];
  }
};

// How many terms a launch has to carry, for arrays of them in these memories.
template <class... Memories>
int64_t carried(int64_t terms, Memories... memories) {
  return ((memories == SOPT_HOST) || ...) ? terms : 0;
}

inline bool is_little(int64_t tensors, int64_t terms) {
  return tensors <= Little::kTensors && terms <= Little::kTerms;
}

inline sopt_status check_carried(const char* function, int64_t terms) {
  if (terms > SOPT_MAX_HOST_TERMS)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: terms in host memory must be <= %d, got %" PRId64,
                     function, SOPT_MAX_HOST_TERMS, terms);
  return SOPT_OK;
}

// One launch for as many tensors as `work` has room for; item(i) is tensor i, and empty ones take
// no place.
template <class Work, class Item>
sopt_status launch_on_list(const char* function, void (*kernel)(Work), Work& work, int64_t count,
                           Item item, void* stream) {
  constexpr int kRoom = sizeof work.tensors.items / sizeof *work.tensors.items;
  for (int64_t i = 0; i < count;) {
    int64_t tiles = 0;
    for (work.tensors.count = 0; i < count && work.tensors.count < kRoom; ++i) {
      auto tensor = item(i);
      const int64_t more = (tensor.numel + kTile - 1) / kTile;
      if (more == 0) continue;
      if (work.tensors.count > 0 && tiles + more > INT32_MAX) break;
      tensor.first_tile = uint32_t(tiles);
      work.tensors.items[work.tensors.count++] = tensor;
      tiles += more;
    }
    if (work.tensors.count == 0) break;
    const sopt_status status = launch(function, kernel, tiles, kThreads, stream, work);
    if (status != SOPT_OK) return status;
  }
  return SOPT_OK;
}

}  // namespace sopt
