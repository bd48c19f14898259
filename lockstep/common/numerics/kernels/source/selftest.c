/* A digest of what these kernels compute of fixed values, for each part of the contract: one on all processors.

   Python compares them with the known ones when a library was compiled and when a process loads it, because a compiler
   may contract a * b + c to one operation or reorder a sum, though it was told not to. */
#include <stdlib.h>

#include "convolution.h"
#include "kernels.h"

#define NOINLINE __attribute__((noinline))

/* Where a digest begins, and what each word is multiplied with (FNV-1a). */
static const uint64_t BEGIN = 14695981039346656037ull, PRIME = 1099511628211ull;

/* Read anew each time, so that no compiler computes in advance what it should compile. */
static volatile const uint32_t SEED = 88172645u;
static volatile const float ZERO = 0.0f;

/* Add floats to a digest. The bits of a NaN differ between processors: all count as one, which is tested by integers
   because a compiler may assume that there are none. */
static NOINLINE uint64_t digest(uint64_t hash, const float *values, int64_t count) {
    for (int64_t i = 0; i < count; i++) {
        uint32_t word;
        memcpy(&word, values + i, sizeof word);
        if ((word & 0x7fffffffu) > 0x7f800000u) word = 0x7fc00000u;
        hash = (hash ^ word) * PRIME;
    }
    return hash;
}

/* Fill with multiples of 2^-23 in [-1, 1): xorshift, and two exact operations on floats. */
static NOINLINE void fill(float *to, int64_t count, uint32_t number) {
    uint32_t state = SEED + 2654435761u * number;
    for (int64_t i = 0; i < count; i++) {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        to[i] = (float)((int32_t)state >> 8) * 0x1p-23f;
    }
}

/* Values of each kind below; a multiple of all widths. */
enum { VALUES = 64 };

static NOINLINE void products_and_sums(const float *a, const float *b, const float *c, float *to) {
    for (int64_t i = 0; i < VALUES; i++) to[i] = a[i] * b[i] + c[i];
    for (int64_t i = 0; i < VALUES; i++) to[VALUES + i] = c[i] - a[i] * b[i];
    for (int64_t i = 0; i < VALUES; i += WIDTH) {
        const V x = load(a + i), y = load(b + i), z = load(c + i);
        store(to + 2 * VALUES + i, add(mul(x, y), z));
        store(to + 3 * VALUES + i, sub(mul(x, y), z));
        /* What a product loses by being rounded. */
        store(to + 4 * VALUES + i, fma_(x, y, sub(all(0.0f), mul(x, y))));
        store(to + 5 * VALUES + i, divide(x, y));
    }
}

static NOINLINE void in_their_order(const float *a, const float *b, float *to) {
    float sum = 0.0f;
    for (int64_t i = 0; i < VALUES; i++) sum += a[i];
    for (int64_t i = 0; i < VALUES; i++) to[i] = (a[i] + sum) - a[i];
    for (int64_t i = 0; i < VALUES; i++) to[VALUES + i] = a[i] / b[i] * b[i];
    for (int64_t i = 0; i < VALUES; i++) to[2 * VALUES + i] = a[i] / sum + b[i] / sum;
    for (int64_t i = 0; i < VALUES; i += WIDTH) {
        const V x = load(a + i), y = load(b + i);
        store(to + 3 * VALUES + i, sub(add(x, y), x));
    }
}

/* Values too small for a full significand, zeros with their signs, infinities, NaN. */
static NOINLINE void special(const float *a, float *to) {
    float zeros[VALUES], infinities[VALUES];
    for (int64_t i = 0; i < VALUES; i++) zeros[i] = a[i] * ZERO;
    for (int64_t i = 0; i < VALUES; i++) infinities[i] = a[i] / zeros[i];
    for (int64_t i = 0; i < VALUES; i++) to[i] = a[i] * 0x1p-126f * 0x1p20f;
    for (int64_t i = 0; i < VALUES; i += WIDTH) {
        const V x = load(a + i), zero = load(zeros + i), infinite = load(infinities + i);
        store(to + VALUES + i, add(zero, all(0.0f)));
        store(to + 2 * VALUES + i, sub(all(0.0f), zero));
        store(to + 3 * VALUES + i, sub(infinite, infinite));
        store(to + 4 * VALUES + i, choose(is_nan(mul(infinite, zero)), x, all(2.0f)));
        store(to + 5 * VALUES + i, choose(less(infinite, zero), x, infinite));
    }
}

/* What IEEE 754 fixes, and compilers do not keep by themselves. */
EXPORT uint64_t ls_check_arithmetic(void) {
    float a[VALUES], b[VALUES], c[VALUES], to[6 * VALUES];
    uint64_t hash = BEGIN;
    fill(a, VALUES, 1);
    fill(b, VALUES, 2);
    fill(c, VALUES, 3);
    products_and_sums(a, b, c, to);
    hash = digest(hash, to, 6 * VALUES);
    in_their_order(a, b, to);
    hash = digest(hash, to, 4 * VALUES);
    special(a, to);
    return digest(hash, to, 6 * VALUES);
}

/* Memory for so many floats, which begins where scratch memory may. */
static float *memory_for(int64_t floats) {
    enum { LINE = 64 };
    return aligned_alloc(LINE, ((size_t)floats * sizeof(float) / LINE + 1) * LINE);
}

/* Products of a (rows, terms) and b (terms, columns), each as it lies and turned. */
static uint64_t product_of(uint64_t hash, int64_t count, int64_t rows, int64_t columns, int64_t terms) {
    const int64_t a_size = count * rows * terms, b_size = count * terms * columns;
    float *a = memory_for(a_size + b_size + rows * columns), *b = a + a_size, *c = b + b_size;
    float *scratch = memory_for(product_scratch(count, 0, columns, terms, terms));
    if (!a || !scratch) return 0;
    fill(a, count * rows * terms, 4);
    fill(b, count * terms * columns, 5);
    fill(c, rows * columns, 6);
    for (int turned = 0; turned < 4; turned++) {
        const int a_turned = turned & 1, b_turned = turned >> 1;
        const Product product = {
            .count = count, .rows = rows, .columns = columns, .terms = terms, .a = a, .a_row = a_turned ? 1 : terms,
            .a_column = a_turned ? rows : 1, .a_step = rows * terms, .b = b, .b_step = terms * columns, .c = c,
            .c_row = columns, .adds = a_turned,
        };
        multiply_matrices(&product, b_turned ? 1 : columns, b_turned ? terms : 1, scratch);
        hash = digest(hash, c, rows * columns);
    }
    free(a);
    free(scratch);
    return hash;
}

EXPORT uint64_t ls_check_products(void) {
    uint64_t hash = product_of(BEGIN, 1, 9, 53, 2 * CHAIN + 7);
    hash = product_of(hash, 1, 1, 17, 40);
    return product_of(hash, 3, 7, 35, 31);
}

EXPORT uint64_t ls_check_sums(void) {
    enum { TERMS = 77, INNER = 37 };
    float x[TERMS * INNER], y[INNER];
    fill(x, TERMS * INNER, 7);
    sum_terms(1, TERMS * INNER, 1, 0, 1, x, y);
    uint64_t hash = digest(BEGIN, y, 1);
    sum_terms(1, TERMS, INNER, 0, INNER, x, y);
    hash = digest(hash, y, INNER);
    sum_terms(INNER, TERMS, 1, TERMS, 1, x, y);
    return digest(hash, y, INNER);
}

/* Functions of values of all sizes, with zeros, infinities and NaN among them. */
EXPORT uint64_t ls_check_functions(void) {
    enum { COUNT = 203 };
    static void (*const functions[])(int64_t, const float *, float *) = {
        ls_exp, ls_log, ls_log1p, ls_tanh, ls_sigmoid, ls_erf,
    };
    static const float scales[] = {1.0f, 100.0f, 0x1p-20f, 0x1p-120f, 0x1p-141f, 0x1p120f};
    float x[COUNT], power[COUNT], y[COUNT];
    uint64_t hash = BEGIN;
    fill(power, COUNT, 8);
    for (size_t scale = 0; scale < sizeof scales / sizeof *scales; scale++) {
        fill(x, COUNT, 9 + (uint32_t)scale);
        for (int64_t i = 0; i < COUNT; i++) x[i] *= scales[scale];
        x[0] = ZERO, x[1] = -x[0], x[2] = 1.0f / x[0], x[3] = -x[2], x[4] = x[2] + x[3];
        for (size_t i = 0; i < sizeof functions / sizeof *functions; i++) {
            functions[i](COUNT, x, y);
            hash = digest(hash, y, COUNT);
        }
        for (int64_t i = 0; i < COUNT; i++) y[i] = x[i] < 0.0f ? -x[i] : x[i];
        ls_power(COUNT, y, power, y);
        hash = digest(hash, y, COUNT);
    }
    return hash;
}

/* A convolution of a batch, and its gradients to the input and to the kernels. */
static uint64_t convolution_of(uint64_t hash, const Convolution *c) {
    const int64_t image = c->channels * c->height * c->width * c->images;
    const int64_t kernel = c->outputs * c->channels * c->kernel_height * c->kernel_width;
    const int64_t result = c->outputs * rows_of(c) * columns_of(c) * c->images;
    float *x = memory_for(image + kernel + result), *kernels = x + image, *y = kernels + kernel;
    float *scratch = memory_for(convolution_scratch(c));
    if (!x || !scratch) return 0;
    fill(x, image, 20);
    fill(kernels, kernel, 21);
    convolve(c, x, kernels, NULL, y, scratch);
    hash = digest(hash, y, result);
    convolve_to_kernels(c, y, x, kernels, scratch);
    hash = digest(hash, kernels, kernel);
    fill(kernels, kernel, 22);
    convolve_to_input(c, y, kernels, x, scratch);
    hash = digest(hash, x, image);
    free(x);
    free(scratch);
    return hash;
}

EXPORT uint64_t ls_check_convolutions(void) {
    static const Convolution shapes[] = {
        {.channels = 2, .height = 6, .width = 7, .images = 19, .outputs = 5, .kernel_height = 3, .kernel_width = 3,
         .stride_y = 1, .stride_x = 1, .dilation_y = 1, .dilation_x = 1},
        {.channels = 1, .height = 9, .width = 8, .images = 5, .outputs = 3, .kernel_height = 2, .kernel_width = 3,
         .stride_y = 2, .stride_x = 2, .dilation_y = 2, .dilation_x = 1},
    };
    uint64_t hash = BEGIN;
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) hash = convolution_of(hash, shapes + i);
    return hash;
}

/* What this library was compiled from: Python looks for it in the file. */
#if defined(LOCKSTEP_SOURCES)
EXPORT const char ls_sources[] = LOCKSTEP_SOURCES;
#endif
