// What int8 layers share on all devices: the numbers of quantization, who reads what, checks.
#pragma once
#include "checks.h"
#include "portable.h"

namespace sopt {

// Pixels below this are zeros: 127 over them might overflow.
constexpr float kLeastQuantized = 0x1p-100f;
// Adding it rounds what is small to an integer, ties to even.
constexpr float kRounder = 0x1.8p23f;

// The row (or column) of x that row y of the result reads for row k of the kernel; -1 for none.
// Transposed is the gradient: x is that of the results, and the result that of the inputs.
SOPT_INLINE int64_t int8_source(const sopt_int8_layer& layer, bool transposed, int64_t y, int64_t k,
                                int64_t size) {
  const int64_t stride = layer.stride, padding = layer.padding;
  const int64_t at = transposed ? y + padding - k : y * stride + k - padding;
  if (at < 0 || (transposed && at % stride != 0)) return -1;
  const int64_t row = transposed ? at / stride : at;
  return row < size ? row : -1;
}

// Rows (or columns) of the result; 0 for an image that is too small.
inline int64_t int8_result_size(int64_t size, int64_t kernel, const sopt_int8_layer& layer) {
  const int64_t room = size + 2 * layer.padding - kernel;
  return room < 0 ? 0 : room / layer.stride + 1;
}

inline sopt_status check_int8_layer(const char* function, const sopt_int8_layer& layer,
                                    const sopt_image& x, sopt_dtype dtype, sopt_elements elements) {
  const struct {
    const char* name;
    int64_t value, least, most;
  } rules[] = {
      {"dtype", dtype, SOPT_FLOAT32, SOPT_FLOAT16},
      {"elements", elements, SOPT_ELEMENTS_REAL, SOPT_ELEMENTS_INT8},
      {"outputs", layer.outputs, 1, SOPT_INT8_MAX_CHANNELS},
      {"inputs", layer.inputs, 1, SOPT_INT8_MAX_CHANNELS},
      {"kernel_height", layer.kernel_height, 1, 64},
      {"kernel_width", layer.kernel_width, 1, 64},
      {"stride", layer.stride, 1, 64},
      {"padding", layer.padding, 0, 64},
      {"batch", x.batch, 0, INT64_MAX},
      {"height", x.height, 0, INT64_MAX},
      {"width", x.width, 0, INT64_MAX},
  };
  for (const auto& rule : rules)
    if (rule.value < rule.least || rule.value > rule.most)
      return sopt_fail(SOPT_INVALID_ARGUMENT,
                       "%s: %s must be in [%" PRId64 ", %" PRId64 "], got %" PRId64, function,
                       rule.name, rule.least, rule.most, rule.value);
  return SOPT_OK;
}

// `height` and `width` are those of the inputs, whose gradient is asked for.
inline sopt_status check_int8_gradient(const char* function, const sopt_int8_layer& layer,
                                       const sopt_image& x, int64_t height, int64_t width) {
  if (int8_result_size(height, layer.kernel_height, layer) == x.height &&
      int8_result_size(width, layer.kernel_width, layer) == x.width)
    return SOPT_OK;
  return sopt_fail(SOPT_INVALID_ARGUMENT,
                   "%s: height and width must be those of an input of which the result is %" PRId64
                   " by %" PRId64 ", got %" PRId64 " and %" PRId64,
                   function, x.height, x.width, height, width);
}

}  // namespace sopt
