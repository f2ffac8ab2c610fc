/* Int8 layers on int8 activations by plain C, a line with a hash for each dtype and shape, at the
 * level that is named: the lines of all levels and processors are the same.
 * Build: cc -std=c99 -I csrc/include layers.c -L DIR -lsopt_cpu -Wl,-rpath,DIR -lm */
#include <math.h>
#include <sopt.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* batch, height, width, inputs, outputs, kernel, stride, padding: whole and partial words, panels
 * and tiles. */
static const int64_t shapes[][8] = {
    {1, 1, 9, 12, 5, 1, 1, 0},  {1, 1, 21, 131, 67, 1, 1, 0}, {2, 5, 7, 64, 40, 3, 1, 1},
    {1, 9, 9, 67, 33, 3, 2, 1}, {1, 8, 8, 320, 16, 3, 1, 1},
};

static void* allocate(size_t size) {
  void* memory = NULL;
  if (posix_memalign(&memory, 64, size + 64) != 0) exit(2);
  return memory;
}

static int layer(const int64_t* s, sopt_dtype dtype) {
  const int64_t pixels = s[0] * s[1] * s[2], numel = pixels * s[3];
  const int64_t height = (s[1] + 2 * s[7] - s[5]) / s[6] + 1;
  const int64_t width = (s[2] + 2 * s[7] - s[5]) / s[6] + 1;
  const int64_t weights = s[4] * s[5] * s[5] * s[3], results = s[0] * height * width * s[4];
  const size_t bytes = dtype == SOPT_FLOAT32 ? 4 : 2;
  unsigned char *x = allocate((size_t)numel * bytes), *out = allocate((size_t)results * bytes);
  int8_t* codes = allocate((size_t)weights);
  float *scales = allocate((size_t)s[4] * 4), *bias = allocate((size_t)s[4] * 4);
  for (int64_t i = 0; i < numel; ++i) { /* seven bits and a sign: exact in both dtypes */
    float value = (float)((int)((uint32_t)i * 2654435761u % 255u) - 127) / 64;
    uint32_t bits;
    memcpy(&bits, &value, 4);
    const uint16_t half = (uint16_t)(bits >> 16);
    memcpy(x + (size_t)i * bytes, dtype == SOPT_FLOAT32 ? (void*)&value : (void*)&half, bytes);
  }
  for (int64_t i = 0; i < weights; ++i)
    codes[i] = (int8_t)((int)((uint32_t)i * 2246822519u % 255u) - 127);
  for (int64_t i = 0; i < s[4]; ++i) {
    scales[i] = (float)(i % 7 + 1) / 640;
    bias[i] = (float)(i % 5 - 2) / 3;
  }
  const sopt_int8_layer weight = {codes, scales, bias, s[4], s[3], s[5], s[5], s[6], s[7]};
  const sopt_image image = {x, s[0], s[1], s[2], s[1] * s[2] * s[3], s[2] * s[3], s[3], 1};
  const int64_t size = sopt_int8_conv2d_scratch_cpu(&weight, &image, dtype, SOPT_ELEMENTS_INT8, 1);
  if (size < 0) return 1;
  void* scratch = allocate((size_t)size);
  if (sopt_int8_conv2d_cpu(&weight, &image, out, dtype, SOPT_ELEMENTS_INT8, 1, scratch)) return 1;
  uint64_t hash = 0xCBF29CE484222325u; /* FNV-1a */
  for (size_t i = 0; i < (size_t)results * bytes; ++i) hash = (hash ^ out[i]) * 0x100000001B3u;
  printf("%d %lldx%lld %016llx\n", (int)dtype, (long long)s[3], (long long)s[4],
         (unsigned long long)hash);
  free(x), free(out), free(codes), free(scales), free(bias), free(scratch);
  return 0;
}

int main(int count, char** names) {
  if (count != 2 || sopt_set_cpu_level(names[1])) {
    fprintf(stderr, "%s\n", count == 2 ? sopt_last_error() : "usage: layers LEVEL");
    return 1;
  }
  for (size_t i = 0; i < sizeof shapes / sizeof *shapes; ++i)
    if (layer(shapes[i], SOPT_FLOAT32) || layer(shapes[i], SOPT_BFLOAT16)) {
      fprintf(stderr, "%s\n", sopt_last_error());
      return 1;
    }
  return 0;
}
