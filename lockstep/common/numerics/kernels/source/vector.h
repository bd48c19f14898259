/* One vector of float32 for each instruction set, so that everything above this file is the same source for all of them.

   TARGET_AVX512, TARGET_AVX2, TARGET_NEON or none of them (plain C) chooses it. Only operations whose result IEEE 754
   fixes are here, and each is one operation: the file is compiled with -ffp-contract=off, and a fused multiply-add is
   made where `fma_` stands and nowhere else. A mask `M` is whatever the instruction set compares into. */
#ifndef LOCKSTEP_VECTOR_H
#define LOCKSTEP_VECTOR_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* A shared library that exports nothing but what Python calls. */
#define EXPORT __attribute__((visibility("default")))

/* Loops over parts of a tile: gcc keeps accumulators in registers only if it is told to unroll. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 16")
#endif

/* Four floats by the compiler's own vectors. */
typedef float Four __attribute__((vector_size(16)));

/* Elements over which a chain of a product goes, and chains of a sum: see the contract. */
enum { CHAIN = 256, LANES = 16 };

#if defined(TARGET_AVX512)

#include <immintrin.h>
typedef __m512 V;
typedef __m512i VI;
enum { WIDTH = 16 };
INLINE V load(const float *p) { return _mm512_loadu_ps(p); }
INLINE void store(float *p, V v) { _mm512_storeu_ps(p, v); }
INLINE V load_first(const float *p, long n) { return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1), p); }
INLINE void store_first(float *p, V v, long n) { _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1), v); }
INLINE V all(float x) { return _mm512_set1_ps(x); }
INLINE VI all_int(int32_t x) { return _mm512_set1_epi32(x); }
INLINE V fma_(V a, V b, V c) { return _mm512_fmadd_ps(a, b, c); }
INLINE V add(V a, V b) { return _mm512_add_ps(a, b); }
INLINE V sub(V a, V b) { return _mm512_sub_ps(a, b); }
INLINE V mul(V a, V b) { return _mm512_mul_ps(a, b); }
INLINE V divide(V a, V b) { return _mm512_div_ps(a, b); }
INLINE VI bits(V x) { return _mm512_castps_si512(x); }
INLINE V floats(VI x) { return _mm512_castsi512_ps(x); }
INLINE VI add_int(VI a, VI b) { return _mm512_add_epi32(a, b); }
INLINE VI sub_int(VI a, VI b) { return _mm512_sub_epi32(a, b); }
INLINE VI and_int(VI a, VI b) { return _mm512_and_si512(a, b); }
INLINE VI or_int(VI a, VI b) { return _mm512_or_si512(a, b); }
INLINE VI andnot_int(VI a, VI b) { return _mm512_andnot_si512(a, b); } /* ~a & b */
INLINE VI shift_left(VI a, int n) { return _mm512_slli_epi32(a, (unsigned)n); }
INLINE VI shift_right(VI a, int n) { return _mm512_srai_epi32(a, (unsigned)n); } /* with the sign */
INLINE V from_int(VI a) { return _mm512_cvtepi32_ps(a); }
typedef __mmask16 M;
INLINE M less(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ); }
INLINE M equal(V a, V b) { return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ); }
INLINE M is_nan(V a) { return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q); }
INLINE V choose(M mask, V yes, V no) { return _mm512_mask_blend_ps(mask, no, yes); }
INLINE V smaller(V a, V b) { return _mm512_min_ps(a, b); } /* a < b ? a : b, which is b for NaN */
INLINE V larger(V a, V b) { return _mm512_max_ps(a, b); }  /* a > b ? a : b, likewise */

#elif defined(TARGET_AVX2)

#include <immintrin.h>
typedef __m256 V;
typedef __m256i VI;
enum { WIDTH = 8 };
static const int32_t FIRST[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
INLINE VI first_(long n) { return _mm256_loadu_si256((const __m256i *)(FIRST + 8 - n)); }
INLINE V load(const float *p) { return _mm256_loadu_ps(p); }
INLINE void store(float *p, V v) { _mm256_storeu_ps(p, v); }
INLINE V load_first(const float *p, long n) { return _mm256_maskload_ps(p, first_(n)); }
INLINE void store_first(float *p, V v, long n) { _mm256_maskstore_ps(p, first_(n), v); }
INLINE V all(float x) { return _mm256_set1_ps(x); }
INLINE VI all_int(int32_t x) { return _mm256_set1_epi32(x); }
INLINE V fma_(V a, V b, V c) { return _mm256_fmadd_ps(a, b, c); }
INLINE V add(V a, V b) { return _mm256_add_ps(a, b); }
INLINE V sub(V a, V b) { return _mm256_sub_ps(a, b); }
INLINE V mul(V a, V b) { return _mm256_mul_ps(a, b); }
INLINE V divide(V a, V b) { return _mm256_div_ps(a, b); }
INLINE VI bits(V x) { return _mm256_castps_si256(x); }
INLINE V floats(VI x) { return _mm256_castsi256_ps(x); }
INLINE VI add_int(VI a, VI b) { return _mm256_add_epi32(a, b); }
INLINE VI sub_int(VI a, VI b) { return _mm256_sub_epi32(a, b); }
INLINE VI and_int(VI a, VI b) { return _mm256_and_si256(a, b); }
INLINE VI or_int(VI a, VI b) { return _mm256_or_si256(a, b); }
INLINE VI andnot_int(VI a, VI b) { return _mm256_andnot_si256(a, b); }
INLINE VI shift_left(VI a, int n) { return _mm256_slli_epi32(a, n); }
INLINE VI shift_right(VI a, int n) { return _mm256_srai_epi32(a, n); }
INLINE V from_int(VI a) { return _mm256_cvtepi32_ps(a); }
typedef V M;
INLINE M less(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
INLINE M equal(V a, V b) { return _mm256_cmp_ps(a, b, _CMP_EQ_OQ); }
INLINE M is_nan(V a) { return _mm256_cmp_ps(a, a, _CMP_UNORD_Q); }
INLINE V choose(M mask, V yes, V no) { return _mm256_blendv_ps(no, yes, mask); }
INLINE V smaller(V a, V b) { return _mm256_min_ps(a, b); }
INLINE V larger(V a, V b) { return _mm256_max_ps(a, b); }

#else

/* NEON, or plain C, which defines the bits. */
typedef Four V;
typedef int32_t VI __attribute__((vector_size(16)));
enum { WIDTH = 4 };
#if defined(TARGET_NEON)
#include <arm_neon.h>
INLINE V fma_(V a, V b, V c) { return (V)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
#else
#include <math.h>
INLINE V fma_(V a, V b, V c) {
    return (V){fmaf(a[0], b[0], c[0]), fmaf(a[1], b[1], c[1]), fmaf(a[2], b[2], c[2]), fmaf(a[3], b[3], c[3])};
}
#endif
INLINE V load(const float *p) { V v; memcpy(&v, p, sizeof v); return v; }
INLINE void store(float *p, V v) { memcpy(p, &v, sizeof v); }
INLINE V load_first(const float *p, long n) { V v = {0}; memcpy(&v, p, (size_t)n * sizeof *p); return v; }
INLINE void store_first(float *p, V v, long n) { memcpy(p, &v, (size_t)n * sizeof *p); }
INLINE V all(float x) { return (V){x, x, x, x}; }
INLINE VI all_int(int32_t x) { return (VI){x, x, x, x}; }
INLINE V add(V a, V b) { return a + b; }
INLINE V sub(V a, V b) { return a - b; }
INLINE V mul(V a, V b) { return a * b; }
INLINE V divide(V a, V b) { return a / b; }
INLINE VI bits(V x) { VI v; memcpy(&v, &x, sizeof v); return v; }
INLINE V floats(VI x) { V v; memcpy(&v, &x, sizeof v); return v; }
/* Unsigned, so that what overflows wraps around. */
typedef uint32_t VU __attribute__((vector_size(16)));
INLINE VI add_int(VI a, VI b) { return (VI)((VU)a + (VU)b); }
INLINE VI sub_int(VI a, VI b) { return (VI)((VU)a - (VU)b); }
INLINE VI and_int(VI a, VI b) { return a & b; }
INLINE VI or_int(VI a, VI b) { return a | b; }
INLINE VI andnot_int(VI a, VI b) { return ~a & b; }
INLINE VI shift_left(VI a, int n) { return (VI)((VU)a << n); }
INLINE VI shift_right(VI a, int n) { return a >> n; }
INLINE V from_int(VI a) { return (V){(float)a[0], (float)a[1], (float)a[2], (float)a[3]}; }
typedef VI M;
INLINE M less(V a, V b) { return a < b; }
INLINE M equal(V a, V b) { return a == b; }
INLINE M is_nan(V a) { return a != a; }
INLINE V choose(M mask, V yes, V no) { return floats(or_int(and_int(mask, bits(yes)), andnot_int(mask, bits(no)))); }
INLINE V smaller(V a, V b) { return choose(less(a, b), a, b); }
INLINE V larger(V a, V b) { return choose(less(b, a), a, b); }

#endif
#endif
