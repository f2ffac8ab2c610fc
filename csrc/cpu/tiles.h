// Lists of tensors cut into tiles: what the entry points of all ops on lists share.
#pragma once
#include "../common/checks.h"
#include "kernels.h"
#include "parallel.h"

namespace sopt {
namespace {

// Tiles per task, 32Ki elements; affects speed only. Zen 4: a Gaussian task takes 20 us, and the
// second thread of PyTorch's pool about 4 us to start.
constexpr int64_t kGrain = 16;

template <class Tensor>
int64_t tiles_of(const Tensor& tensor) {
  return (tensor.numel + kTile - 1) / kTile;
}

// Calls body(i, begin, end) on ranges of elements of tensors i that cover them all, on several
// threads; each begins at a multiple of kTile.
template <class Tensor, class Body>
sopt_status parallel_for_ranges(const Tensor* tensors, int64_t count, Body body,
                                int64_t grain = kGrain) {
  int64_t total = 0;
  for (int64_t i = 0; i < count; ++i) total += tiles_of(tensors[i]);
  return parallel_for(total, grain, [&](int64_t lo, int64_t hi) {
    for (int64_t i = 0; hi > 0; ++i) {  // tiles count on from one tensor to the next
      const int64_t tiles = tiles_of(tensors[i]);
      if (lo < tiles) body(i, lo * kTile, hi < tiles ? hi * kTile : tensors[i].numel);
      lo = lo > tiles ? lo - tiles : 0;
      hi -= tiles;
    }
  });
}

}  // namespace
}  // namespace sopt
