/* libsopt from plain C, as another runtime would use it: repeats kat/golden.txt line by line.
 * Inputs and hash are those of tests/golden.py.
 * Build: cc -std=c99 -I csrc/include client.c -L DIR -lsopt_cpu -Wl,-rpath,DIR */
#include <sopt.h>
#include <stdio.h>
#include <string.h>

enum { SIZE = 5005, ROWS = 7, HEADROOM = 8 };

static const uint64_t seeds[3] = {0x123456789ABCDEF0u, 0x123456789ABCDEF1u, 0x123456789ABCDEF2u};
static const uint64_t stream = 0xFEDCBA9876543210u;
static const float coefficients[3] = {0.5f, -0.25f, 0.125f};
static const uint64_t rounding[2] = {77, 78};
static const int64_t cut = 1;

static int integer(int i, int low, int high) {
  return low + (int)((uint32_t)i * 2654435761u % (uint32_t)(high - low));
}

/* A multiple of 1/64 in [-2, 2) in the bits of a dtype: sign, exponent and some bits, exactly. */
static void write_value(void* x, sopt_dtype dtype, int i) {
  const float value = (float)integer(i, -128, 128) / 64;
  uint32_t bits;
  memcpy(&bits, &value, 4);
  const uint16_t bfloat16 = (uint16_t)(bits >> 16);
  const uint32_t magnitude = bits & 0x7FFFFFFF;
  const uint32_t half = magnitude ? (magnitude >> 13) - (112 << 10) : 0;
  const uint16_t float16 = (uint16_t)((bits >> 16 & 0x8000) | half);
  if (dtype == SOPT_FLOAT32) memcpy((char*)x + 4 * i, &value, 4);
  if (dtype == SOPT_BFLOAT16) memcpy((char*)x + 2 * i, &bfloat16, 2);
  if (dtype == SOPT_FLOAT16) memcpy((char*)x + 2 * i, &float16, 2);
}

static uint64_t fnv_1a(uint64_t state, const void* data, size_t size) {
  for (size_t i = 0; i < size; ++i)
    state = (state ^ ((const unsigned char*)data)[i]) * 0x100000001B3u;
  return state;
}

static const uint64_t start = 0xCBF29CE484222325u;
static const char* kind_names[] = {"gaussian", "rademacher"};
static const char* dtype_names[] = {"float32", "bfloat16", "float16"};
static int failed = 0;

static void print(sopt_status status, const char* op, const char* dtype, sopt_noise kind,
                  uint64_t hash) {
  if (status != SOPT_OK) fprintf(stderr, "%s\n", sopt_last_error());
  failed |= status != SOPT_OK;
  printf("%s %s %s %016llx\n", op, dtype, kind_names[kind], (unsigned long long)hash);
}

static void floats(sopt_noise kind, sopt_dtype dtype) {
  static const char* names[] = {"add_noise_", "add_noise_/round_after", "add_noise_/stochastic",
                                "write_noisy_"};
  const size_t bytes = SIZE * (dtype == SOPT_FLOAT32 ? 4 : 2);
  static float x[SIZE], y[SIZE]; /* memory for any dtype */
  for (int way = 0; way < 4; ++way) {
    for (int i = 0; i < SIZE; ++i) write_value(x, dtype, i);
    void* out = way == 3 ? y : x;
    const sopt_tensor tensor = {out, x, SIZE, stream, dtype};
    const int rounds = way == 1 || way == 2;
    const sopt_status status = sopt_add_noise_cpu(&tensor, 1, seeds, coefficients, 3, kind, 0.75f,
                                                  &cut, rounds, way == 2 ? rounding : NULL);
    print(status, names[way], dtype_names[dtype], kind, fnv_1a(start, out, bytes));
  }
  for (int i = 0; i < SIZE; ++i) write_value(x, dtype, i), write_value(y, dtype, i);
  const sopt_tensor p = {x, x, SIZE, stream, dtype}, g = {y, y, SIZE, stream, dtype};
  const sopt_status status =
      sopt_restore_accumulate_cpu(&p, &g, 1, seeds, coefficients, coefficients + 1, kind);
  const uint64_t hash = fnv_1a(fnv_1a(start, x, bytes), y, bytes);
  print(status, "restore_accumulate_", dtype_names[dtype], kind, hash);
}

static void codes(sopt_noise kind) {
  static int8_t q[SIZE];
  float scales[ROWS], factors[3];
  uint64_t delta_seeds[3];
  for (int row = 0; row < ROWS; ++row) scales[row] = (float)(row + 1) / 16;
  for (int n = 0; n < 3; ++n) factors[n] = coefficients[n] * 48, delta_seeds[n] = seeds[n] + 1000;
  const sopt_codes tensor = {q, scales, SIZE, ROWS, stream};
  const float eps = 0.5f;
  int64_t clamped = 0;
  for (int i = 0; i < SIZE; ++i) q[i] = (int8_t)integer(i, -119, 120);
  sopt_status status =
      sopt_perturb_int8_cpu(&tensor, 1, seeds, coefficients, 3, kind, HEADROOM, rounding);
  print(status, "perturb_int8_", "int8", kind, fnv_1a(start, q, SIZE));
  for (int i = 0; i < SIZE; ++i) q[i] = (int8_t)integer(i, -119, 120);
  status = sopt_update_int8_cpu(&tensor, 1, seeds, delta_seeds, factors, 3, &eps, kind, HEADROOM,
                                rounding, &clamped);
  print(status, "update_int8_", "int8", kind, fnv_1a(fnv_1a(start, q, SIZE), &clamped, 8));
}

int main(void) {
  if (sopt_abi_version() != SOPT_ABI_VERSION) return 1;
  for (int kind = SOPT_GAUSSIAN; kind <= SOPT_RADEMACHER; ++kind) {
    for (int dtype = SOPT_FLOAT32; dtype <= SOPT_FLOAT16; ++dtype)
      floats((sopt_noise)kind, (sopt_dtype)dtype);
    codes((sopt_noise)kind);
  }
  return failed;
}
