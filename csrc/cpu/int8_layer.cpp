// C entry points of int8 layers on the CPU: checks, tiles that fit the scratch, threads.
#include <atomic>
#include <cinttypes>

#include "../common/int8_layers.h"
#include "kernels.h"
#include "parallel.h"

namespace sopt {
namespace {

constexpr int64_t kLeastBudget = 49152;
constexpr int64_t kMostPerThread = 786432;  // stays in the second-level cache, of 1 MiB on Zen 4
constexpr int64_t kMostPixels = 512;        // of a tile
constexpr int64_t kDepthStep = 16;          // words: the lanes of the widest vectors
constexpr int64_t kItemsPerThread = 4;      // so that threads end at about the same time

// A call with its tiles, and how its scratch is shared.
struct Plan {
  Int8Call call;
  Int8Body body;
  int64_t items, slots, bytes;  // slots: threads at work; bytes of each
};

int64_t scratch_bytes(const Int8Call& c, const Int8Body& body) {
  const int64_t word = 4;
  return int8_aligned((c.tile.read + 1) * c.x.pitch * word) +
         int8_aligned(body.columns * c.x.depth * word) +
         int8_aligned(c.tile.totals * body.columns * word) +
         int8_aligned((c.tile.read + 1) * word) + int8_aligned(c.tile.pixels * word);
}

void set_tile(Int8Call& c, int64_t height, int64_t width) {
  const int64_t down = c.layer.kernel_height, right = c.layer.kernel_width, s = c.layer.stride;
  int64_t rows = (height - 1) * s + down, columns = (width - 1) * s + right;
  if (c.transposed) rows = (height + down - 2) / s + 2, columns = (width + right - 2) / s + 2;
  if (rows > c.x.image.height) rows = c.x.image.height;
  if (columns > c.x.image.width) columns = c.x.image.width;
  const int64_t pixels = height * width;
  const bool several = down * right > 1 || c.x.depth < c.x.words;  // panels, for one result
  c.tile = {height, width, pixels, rows * columns, several ? pixels : 0};
}

// How much of a pixel's depth a panel holds, so that it takes an eighth of the budget at most. By
// the layer alone, as the order of sums is by this. Sums of integers are exact over all of the
// depth: they stay integers between panels, and only a kernel of one element has room for that.
int64_t panel_depth(const Int8Call& c, const Int8Body& body, sopt_elements elements,
                    int64_t budget) {
  const bool one = c.layer.kernel_height * c.layer.kernel_width == 1;
  if (elements == SOPT_ELEMENTS_INT8 && !one) return c.x.words;
  const int64_t room = budget / 8 / (body.columns * 4) / kDepthStep * kDepthStep;
  const int64_t depth = room > kDepthStep ? room : kDepthStep;
  return depth < c.x.words ? depth : c.x.words;
}

// The largest tile within `budget`: of part of a row, or of whole rows.
void fit_tile(Int8Call& c, const Int8Body& body, int64_t budget) {
  auto fits = [&](int64_t height, int64_t width) {
    set_tile(c, height, width);
    return c.tile.pixels <= kMostPixels && scratch_bytes(c, body) <= budget;
  };
  int64_t height = 1, width = c.out.width;
  while (width > 1 && !fits(1, width))
    width = width > body.rows ? (width - 1) / body.rows * body.rows : width - 1;
  if (width == c.out.width)
    while (height < c.out.height && fits(height + 1, width)) ++height;
  else if (c.layer.kernel_height > 1)  // squares read less around them than stripes
    while (height < c.out.height && width >= 2 * body.rows && fits(2 * height, width / 2))
      height *= 2, width /= 2;
  set_tile(c, height, width);
}

Plan plan_of(const sopt_int8_layer& layer, const sopt_image& x, bool transposed, int64_t height,
             int64_t width, sopt_dtype dtype, sopt_elements elements, int64_t threads) {
  Plan p{};
  Int8Call& c = p.call;
  p.body = kernels().int8_layer[elements][dtype];
  c.layer = layer;
  c.transposed = transposed;
  c.x.image = x;
  c.x.channels = transposed ? layer.outputs : layer.inputs;
  c.x.words = (c.x.channels + p.body.depth - 1) / p.body.depth;
  // Rows a multiple of 1 KiB apart would fall on the same lines of the first-level cache.
  c.x.pitch = c.x.words + (c.x.words % 256 == 0 ? 16 : 0);
  c.out = {nullptr, height, width, transposed ? layer.inputs : layer.outputs};
  const int64_t eighth =
      layer.outputs * layer.inputs * layer.kernel_height * layer.kernel_width / 2;
  const int64_t budget = eighth > kLeastBudget ? eighth : kLeastBudget;
  c.x.depth = panel_depth(c, p.body, elements, budget);
  p.slots = threads;
  for (;; --p.slots) {
    const int64_t share = budget / p.slots / 64 * 64;
    fit_tile(c, p.body, share < kMostPerThread ? share : kMostPerThread);
    p.bytes = scratch_bytes(c, p.body);
    if (p.bytes <= share || p.slots == 1) break;
  }
  const int64_t tiles = x.batch * ((height + c.tile.height - 1) / c.tile.height) *
                        ((width + c.tile.width - 1) / c.tile.width);
  const int64_t panels = (c.out.channels + p.body.columns - 1) / p.body.columns;
  c.groups = tiles > 0 ? (kItemsPerThread * p.slots + tiles - 1) / tiles : 1;
  if (c.groups > panels) c.groups = panels;
  p.items = tiles * c.groups;
  return p;
}

sopt_status check(const char* function, const sopt_int8_layer& layer, const sopt_image& x,
                  sopt_dtype dtype, sopt_elements elements, int64_t threads) {
  if (threads < 1 || threads > 65536)
    return sopt_fail(SOPT_INVALID_ARGUMENT, "%s: threads must be in [1, 65536], got %" PRId64,
                     function, threads);
  return check_int8_layer(function, layer, x, dtype, elements);
}

sopt_status run(Plan p, void* out, void* scratch) {
  p.call.out.data = out;
  std::atomic<int64_t> next{0};
  return parallel_for(p.slots, 1, [&](int64_t begin, int64_t end) {
    if (begin >= end) return;
    uint8_t* memory = static_cast<uint8_t*>(scratch) + begin * p.bytes;
    for (int64_t item; (item = next.fetch_add(1, std::memory_order_relaxed)) < p.items;)
      p.body.item(p.call, item, memory);
  });
}

sopt_status plan_forward(const char* function, const sopt_int8_layer& layer, const sopt_image& x,
                         sopt_dtype dtype, sopt_elements elements, int64_t threads, Plan* plan) {
  const sopt_status status = check(function, layer, x, dtype, elements, threads);
  if (status != SOPT_OK) return status;
  const int64_t height = int8_result_size(x.height, layer.kernel_height, layer);
  const int64_t width = int8_result_size(x.width, layer.kernel_width, layer);
  *plan = plan_of(layer, x, false, height, width, dtype, elements, threads);
  return SOPT_OK;
}

sopt_status plan_backward(const char* function, const sopt_int8_layer& layer, const sopt_image& x,
                          int64_t height, int64_t width, sopt_dtype dtype, int64_t threads,
                          Plan* plan) {
  sopt_status status = check(function, layer, x, dtype, SOPT_ELEMENTS_REAL, threads);
  if (status == SOPT_OK) status = check_int8_gradient(function, layer, x, height, width);
  if (status != SOPT_OK) return status;
  *plan = plan_of(layer, x, true, height, width, dtype, SOPT_ELEMENTS_REAL, threads);
  return SOPT_OK;
}

}  // namespace
}  // namespace sopt

int64_t sopt_int8_conv2d_scratch_cpu(const sopt_int8_layer* layer, const sopt_image* x,
                                     sopt_dtype dtype, sopt_elements elements, int64_t threads) {
  sopt::Plan plan;
  if (sopt::plan_forward(__func__, *layer, *x, dtype, elements, threads, &plan) != SOPT_OK)
    return -1;
  return plan.slots * plan.bytes;
}

int64_t sopt_int8_conv2d_backward_scratch_cpu(const sopt_int8_layer* layer,
                                              const sopt_image* gradient, int64_t height,
                                              int64_t width, sopt_dtype dtype, int64_t threads) {
  sopt::Plan plan;
  if (sopt::plan_backward(__func__, *layer, *gradient, height, width, dtype, threads, &plan) !=
      SOPT_OK)
    return -1;
  return plan.slots * plan.bytes;
}

sopt_status sopt_int8_conv2d_cpu(const sopt_int8_layer* layer, const sopt_image* x, void* out,
                                 sopt_dtype dtype, sopt_elements elements, int64_t threads,
                                 void* scratch) {
  sopt::Plan plan;
  const sopt_status status =
      sopt::plan_forward(__func__, *layer, *x, dtype, elements, threads, &plan);
  return status == SOPT_OK ? sopt::run(plan, out, scratch) : status;
}

sopt_status sopt_int8_conv2d_backward_cpu(const sopt_int8_layer* layer, const sopt_image* gradient,
                                          void* out, int64_t height, int64_t width,
                                          sopt_dtype dtype, int64_t threads, void* scratch) {
  sopt::Plan plan;
  const sopt_status status =
      sopt::plan_backward(__func__, *layer, *gradient, height, width, dtype, threads, &plan);
  return status == SOPT_OK ? sopt::run(plan, out, scratch) : status;
}
