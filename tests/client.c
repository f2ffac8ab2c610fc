/* libsopt from plain C: adds noise to zeros and prints the elements as hexadecimal floats.
 * Build: cc -std=c99 -I csrc/include client.c -L DIR -lsopt_cpu -Wl,-rpath,DIR */
#include <sopt.h>
#include <stdio.h>

int main(void) {
  float x[1000] = {0};
  const sopt_tensor tensor = {x, x, 1000, UINT64_MAX - 6, SOPT_FLOAT32};
  const uint64_t seed = 42;
  const float coefficient = 1.0f;
  if (sopt_abi_version() != SOPT_ABI_VERSION) return 1;
  if (sopt_add_noise_cpu(&tensor, 1, &seed, &coefficient, 1, SOPT_GAUSSIAN, 1.0f, NULL, 0, NULL) !=
      SOPT_OK) {
    fprintf(stderr, "%s\n", sopt_last_error());
    return 1;
  }
  for (int i = 0; i < 1000; ++i) printf("%a\n", (double)x[i]);
  return 0;
}
