// Int8 layers on CUDA: kernels, launchers, C entry points.
//
// A thread computes 4 pixels by 4 channels of the result and needs nothing from the others; what
// neighbours read alike comes from the first-level cache. Bytes are multiplied by dp4a. The Triton
// kernels multiply on tensor cores and come first where Triton is.
#include "../common/int8_layers.h"
#include "lane.cuh"
#include "launch.cuh"
#include "storage.cuh"

namespace sopt {
namespace {

constexpr int kAcross = 16, kDown = 8;  // threads of a block; affects speed only
constexpr int kMine = 4;                // pixels, and channels, of a thread
constexpr int kLayerThreads = kAcross * kDown;

struct LayerWork {
  sopt_int8_layer layer;
  sopt_image x;
  void* out;
  int64_t pixels, height, width, channels;  // of the result
  int64_t depth;                            // channels of x
  int8_t* codes;                            // of the pixels of x, `pitch` apart
  float* scales;                            // of the pixels of x
  int64_t pitch;
  bool words;  // the layer's codes can be read by four
};

template <class T>
SOPT_INLINE const T* pixel_of(const sopt_image& x, int64_t batch, int64_t row, int64_t column) {
  return static_cast<const T*>(x.data) + batch * x.batch_stride + row * x.row_stride +
         column * x.column_stride;
}

// A thread for each pixel of x.
template <class T>
__global__ void __launch_bounds__(kLayerThreads)
    quantize_pixels_kernel(__grid_constant__ const LayerWork work) {
  const int64_t pixel = int64_t{blockIdx.x} * kLayerThreads + threadIdx.x;
  if (pixel >= work.x.batch * work.x.height * work.x.width) return;
  const int64_t row = pixel / work.x.width;
  const T* x = pixel_of<T>(work.x, row / work.x.height, row % work.x.height, pixel % work.x.width);
  uint32_t bits = 0;  // of the largest absolute value; those of NaN are above those of infinity
  for (int64_t k = 0; k < work.depth; ++k) {
    const uint32_t own = bits_of(Storage<T>::load_one(x + k * work.x.channel_stride)) & 0x7FFFFFFFu;
    bits = own > bits ? own : bits;
  }
  const float largest = float_of(bits);
  const bool finite = bits < 0x7F800000u, kept = finite && largest >= kLeastQuantized;
  work.scales[pixel] = kept ? Lane::divide(largest, 127.0f) : float_of(finite ? 0u : 0x7FC00000u);
  const float inverse = kept ? Lane::divide(127.0f, largest) : 0.0f;
  int8_t* codes = work.codes + pixel * work.pitch;
  for (int64_t k = 0; k < work.pitch; ++k) {
    const bool zero = k >= work.depth || !kept;
    const float value = zero ? 0.0f : Storage<T>::load_one(x + k * work.x.channel_stride);
    codes[k] = int8_t(bits_of(value * inverse + kRounder) & 0xFFu);
  }
}

// The first four bytes of `count`, zero past them.
SOPT_INLINE int four_codes(const int8_t* from, int64_t count, bool words) {
  if (words) return *reinterpret_cast<const int*>(from);
  uint32_t word = 0;
  SOPT_UNROLL
  for (int i = 0; i < 4; ++i)
    if (i < count) word |= uint32_t{uint8_t(from[i])} << 8 * i;
  return int(word);
}

// What a thread computes.
struct LayerShare {
  int64_t batch[kMine], row[kMine], column[kMine], channel[kMine];
  bool pixel[kMine];  // whether it exists

  __device__ explicit LayerShare(const LayerWork& work) {
    constexpr int kPanel = kAcross * kMine;
    const int64_t panels = (work.channels + kPanel - 1) / kPanel;
    const int64_t first = (blockIdx.x / panels * kDown + threadIdx.x / kAcross) * kMine;
    SOPT_UNROLL
    for (int i = 0; i < kMine; ++i) {
      pixel[i] = first + i < work.pixels;
      const int64_t line = (first + i) / work.width;
      column[i] = (first + i) % work.width;
      row[i] = line % work.height;
      batch[i] = line / work.height;
      channel[i] = blockIdx.x % panels * kPanel + threadIdx.x % kAcross + i * kAcross;
    }
  }
};

// The pixel of x that each pixel of a share reads for one element of the kernel.
struct LayerSources {
  int64_t row[kMine], column[kMine];
  bool inside[kMine];

  __device__ LayerSources(const LayerWork& work, const LayerShare& share, bool transposed,
                          int64_t element) {
    const sopt_int8_layer& layer = work.layer;
    SOPT_UNROLL
    for (int i = 0; i < kMine; ++i) {
      row[i] =
          int8_source(layer, transposed, share.row[i], element / layer.kernel_width, work.x.height);
      column[i] = int8_source(layer, transposed, share.column[i], element % layer.kernel_width,
                              work.x.width);
      inside[i] = share.pixel[i] && row[i] >= 0 && column[i] >= 0;
    }
  }
};

template <class T>
SOPT_INLINE void write_share(const LayerWork& work, const LayerShare& share, bool transposed,
                             const float (&total)[kMine][kMine]) {
  SOPT_UNROLL
  for (int i = 0; i < kMine; ++i) SOPT_UNROLL
  for (int j = 0; j < kMine; ++j) {
    const int64_t channel = share.channel[j];
    if (!share.pixel[i] || channel >= work.channels) continue;
    const int64_t line = share.batch[i] * work.height + share.row[i];
    float result = total[i][j];
    if (!transposed) {
      const float shift = work.layer.bias == nullptr ? 0.0f : work.layer.bias[channel];
      result = Lane::fma(result, work.layer.scales[channel], shift);
    }
    const int64_t at = (line * work.width + share.column[i]) * work.channels + channel;
    Storage<T>::store_one(static_cast<T*>(work.out) + at, result);
  }
}

template <class T>
__global__ void __launch_bounds__(kLayerThreads)
    int8_layer_kernel(__grid_constant__ const LayerWork work) {
  const LayerShare share(work);
  const int64_t elements = work.layer.kernel_height * work.layer.kernel_width;
  float total[kMine][kMine] = {};
  for (int64_t element = 0; element < elements; ++element) {
    const LayerSources from(work, share, false, element);
    const int8_t* rows[kMine];
    float scale[kMine];
    int sums[kMine][kMine] = {};
    SOPT_UNROLL
    for (int i = 0; i < kMine; ++i) {
      const int64_t line = share.batch[i] * work.x.height + from.row[i];
      const int64_t pixel = from.inside[i] ? line * work.x.width + from.column[i] : 0;
      rows[i] = work.codes + pixel * work.pitch;
      scale[i] = from.inside[i] ? work.scales[pixel] : 0.0f;
    }
    for (int64_t k = 0; k < work.depth; k += 4) {
      int codes[kMine];
      SOPT_UNROLL
      for (int j = 0; j < kMine; ++j) {
        const int64_t at = (share.channel[j] * elements + element) * work.depth + k;
        codes[j] = share.channel[j] < work.channels
                       ? four_codes(work.layer.codes + at, work.depth - k, work.words)
                       : 0;
      }
      SOPT_UNROLL
      for (int i = 0; i < kMine; ++i) {
        const int four = from.inside[i] ? *reinterpret_cast<const int*>(rows[i] + k) : 0;
        SOPT_UNROLL
        for (int j = 0; j < kMine; ++j) sums[i][j] = __dp4a(four, codes[j], sums[i][j]);
      }
    }
    SOPT_UNROLL
    for (int i = 0; i < kMine; ++i) SOPT_UNROLL
    for (int j = 0; j < kMine; ++j)
      total[i][j] = Lane::fma(Lane::to_float(sums[i][j]), scale[i], total[i][j]);
  }
  write_share<T>(work, share, false, total);
}

// Of elements as they are.
template <class T, bool transposed>
__global__ void __launch_bounds__(kLayerThreads)
    real_layer_kernel(__grid_constant__ const LayerWork work) {
  const LayerShare share(work);
  const int64_t elements = work.layer.kernel_height * work.layer.kernel_width;
  float total[kMine][kMine] = {};
  for (int64_t element = 0; element < elements; ++element) {
    const LayerSources from(work, share, transposed, element);
    for (int64_t k = 0; k < work.depth; ++k) {
      const float factor = transposed ? work.layer.scales[k] : 1.0f;
      float codes[kMine];
      SOPT_UNROLL
      for (int j = 0; j < kMine; ++j) {
        const int64_t channel = share.channel[j];
        const int64_t output = transposed ? k : channel, input = transposed ? channel : k;
        const int64_t at = (output * elements + element) * work.layer.inputs + input;
        codes[j] = channel < work.channels ? float(work.layer.codes[at]) : 0.0f;
      }
      SOPT_UNROLL
      for (int i = 0; i < kMine; ++i) {
        if (!from.inside[i]) continue;
        const T* x = pixel_of<T>(work.x, share.batch[i], from.row[i], from.column[i]);
        const float value = Storage<T>::load_one(x + k * work.x.channel_stride) * factor;
        SOPT_UNROLL
        for (int j = 0; j < kMine; ++j) total[i][j] = Lane::fma(value, codes[j], total[i][j]);
      }
    }
  }
  write_share<T>(work, share, transposed, total);
}

// The kernels of a dtype.
struct LayerKernels {
  void (*quantize)(LayerWork);
  void (*int8)(LayerWork);
  void (*real)(LayerWork);
  void (*gradient)(LayerWork);
};

template <class T>
constexpr LayerKernels kernels_of() {
  return {quantize_pixels_kernel<T>, int8_layer_kernel<T>, real_layer_kernel<T, false>,
          real_layer_kernel<T, true>};
}

const LayerKernels kLayerKernels[] = {kernels_of<float>(), kernels_of<bfloat16>(),
                                      kernels_of<float16>()};  // by sopt_dtype

int64_t blocks_of(int64_t count, int64_t each) { return (count + each - 1) / each; }

sopt_status launch_layer(const char* function, void (*kernel)(LayerWork), const LayerWork& work,
                         void* stream) {
  const int64_t blocks =
      blocks_of(work.pixels, kDown * kMine) * blocks_of(work.channels, kAcross * kMine);
  return launch(function, kernel, blocks, kLayerThreads, stream, work);
}

}  // namespace
}  // namespace sopt

sopt_status sopt_int8_conv2d_cuda(const sopt_int8_layer* layer, const sopt_image* x, void* out,
                                  sopt_dtype dtype, sopt_elements elements, void* scratch,
                                  void* stream) {
  using namespace sopt;
  const sopt_status status = check_int8_layer(__func__, *layer, *x, dtype, elements);
  if (status != SOPT_OK) return status;
  LayerWork work = {};
  work.layer = *layer, work.x = *x, work.out = out;
  work.height = int8_result_size(x->height, layer->kernel_height, *layer);
  work.width = int8_result_size(x->width, layer->kernel_width, *layer);
  work.pixels = x->batch * work.height * work.width;
  work.channels = layer->outputs, work.depth = layer->inputs;
  if (work.pixels == 0) return SOPT_OK;
  const LayerKernels& kernels = kLayerKernels[dtype];
  if (elements == SOPT_ELEMENTS_REAL) return launch_layer(__func__, kernels.real, work, stream);
  const int64_t read = x->batch * x->height * x->width;
  work.pitch = (work.depth + 3) / 4 * 4;
  work.codes = static_cast<int8_t*>(scratch);
  work.scales = reinterpret_cast<float*>(work.codes + read * work.pitch);
  work.words = work.depth % 4 == 0 && (reinterpret_cast<uintptr_t>(layer->codes) & 3) == 0;
  const sopt_status quantized = launch(__func__, kernels.quantize, blocks_of(read, kLayerThreads),
                                       kLayerThreads, stream, work);
  return quantized == SOPT_OK ? launch_layer(__func__, kernels.int8, work, stream) : quantized;
}

sopt_status sopt_int8_conv2d_backward_cuda(const sopt_int8_layer* layer, const sopt_image* gradient,
                                           void* out, int64_t height, int64_t width,
                                           sopt_dtype dtype, void* stream) {
  using namespace sopt;
  sopt_status status = check_int8_layer(__func__, *layer, *gradient, dtype, SOPT_ELEMENTS_REAL);
  if (status == SOPT_OK) status = check_int8_gradient(__func__, *layer, *gradient, height, width);
  if (status != SOPT_OK) return status;
  LayerWork work = {};
  work.layer = *layer, work.x = *gradient, work.out = out;
  work.height = height, work.width = width;
  work.pixels = gradient->batch * height * width;
  work.channels = layer->inputs, work.depth = layer->outputs;
  if (work.pixels == 0) return SOPT_OK;
  return launch_layer(__func__, kLayerKernels[dtype].gradient, work, stream);
}
