/* exp, log, log1p, tanh, sigmoid, erf, power and cross-entropy of float32, each a fixed sequence of IEEE operations: see
   docs/reference/numerics.md, which has the same formulas and coefficients.

   The coefficients are our own: fitted for the smallest largest error, rounded to float32 one after another, the others
   fitted again each time. A result that is not a number has the bits 0x7fc00000 whatever went in, because x86 and Arm
   pass on different ones. Nothing is flushed to zero. */
#include "kernels.h"

#include <math.h>

#define NOT_A_NUMBER __builtin_nanf("")
#define INFINITE __builtin_inff()

INLINE V magnitude(V x) { return floats(and_int(bits(x), all_int(INT32_MAX))); }
INLINE V with_sign_of(V x, V y) { return floats(or_int(bits(y), and_int(bits(x), all_int(INT32_MIN)))); }
INLINE V unless_nan(V x, V y) { return choose(is_nan(x), all(NOT_A_NUMBER), y); }

/* 2**n for n from -126 to 127 */
INLINE V power_of_two(VI n) { return floats(shift_left(add_int(n, all_int(127)), 23)); }

/* x = n ln 2 + r, with n the whole number next to x / ln 2; for |x| < 2**20 */
typedef struct {
    V r;
    VI n;
} Reduced;

INLINE Reduced reduced(V x) {
    V shift = all(0x1.8p+23f), shifted = fma_(x, all(0x1.715476p+0f), shift), n = sub(shifted, shift);
    V r = fma_(n, all(-0x1.62e4p-1f), x);
    return (Reduced){fma_(n, all(-0x1.7f7d1cp-20f), r), sub_int(bits(shifted), bits(shift))};
}

/* exp(r) - 1 for |r| <= ln(2) / 2 */
INLINE V expm1_near_zero(V r) {
    V p = all(0x1.6a4508p-10f);
    p = fma_(p, r, all(0x1.1239aap-7f));
    p = fma_(p, r, all(0x1.5558b8p-5f));
    p = fma_(p, r, all(0x1.555492p-3f));
    p = fma_(p, r, all(0x1.fffffcp-2f));
    return fma_(mul(r, r), p, r);
}

/* Below -104 and above 89 all results are equal. Scaled in two halves, of which only the second one rounds. */
INLINE V exp_bounded(V x) {
    Reduced at = reduced(x);
    VI half = shift_right(at.n, 1);
    V near = add(expm1_near_zero(at.r), all(1.0f));
    return mul(mul(near, power_of_two(half)), power_of_two(sub_int(at.n, half)));
}

INLINE V exp_(V x) { return unless_nan(x, exp_bounded(larger(smaller(x, all(89.0f)), all(-104.0f)))); }

/* x = (1 + f) 2**n with 1 + f from sqrt(1/2) to sqrt(2), for normal numbers x > 0 */
typedef struct {
    V f;
    VI n;
} Parts;

INLINE Parts parts(V x) {
    VI root = all_int(0x3f3504f3), above = sub_int(bits(x), root);
    V m = floats(add_int(and_int(above, all_int(0x007fffff)), root));
    return (Parts){sub(m, all(1.0f)), shift_right(above, 23)};
}

/* n ln 2 + log(1 + f) */
INLINE V log_of_parts(V f, V n) {
    V p = all(0x1.147268p-4f);
    p = fma_(p, f, all(-0x1.de0116p-4f));
    p = fma_(p, f, all(0x1.e6bfecp-4f));
    p = fma_(p, f, all(-0x1.fc28dap-4f));
    p = fma_(p, f, all(0x1.233ba4p-3f));
    p = fma_(p, f, all(-0x1.555c44p-3f));
    p = fma_(p, f, all(0x1.99a476p-3f));
    p = fma_(p, f, all(-0x1.000006p-2f));
    p = fma_(p, f, all(0x1.555548p-2f));
    V square = mul(f, f), y = mul(mul(square, f), p);
    y = fma_(n, all(0x1.7f7d1cp-20f), y);
    y = fma_(square, all(-0.5f), y);
    return fma_(n, all(0x1.62e4p-1f), add(f, y));
}

/* The logarithm y of u where that is a finite number above 0; or else minus infinity, infinity, not a number. */
INLINE V log_of_any(V u, V y) {
    V zero = all(0.0f), infinite = all(INFINITE);
    y = choose(less(u, infinite), y, infinite);
    return choose(less(zero, u), y, choose(equal(u, zero), all(-INFINITE), all(NOT_A_NUMBER)));
}

INLINE V log_(V x) {
    M is_tiny = less(x, all(0x1p-126f));
    Parts of = parts(choose(is_tiny, mul(x, all(0x1p+23f)), x));
    V n = add(from_int(of.n), choose(is_tiny, all(-23.0f), all(0.0f)));
    return log_of_any(x, log_of_parts(of.f, n));
}

/* What 1 + x loses is in f again, which is rounded once. Above 2**24 nothing is lost that counts. */
INLINE V log1p_(V x) {
    V u = add(x, all(1.0f));
    Parts of = parts(u);
    V scale = power_of_two(sub_int(all_int(0), of.n)), f = fma_(x, scale, sub(scale, all(1.0f)));
    V y = log_of_parts(choose(less(x, all(0x1p+24f)), f, of.f), from_int(of.n));
    return log_of_any(u, with_sign_of(x, y)); /* of x = -0 as well */
}

/* Below 0.55 a polynomial; above, 1 - 2 / (exp(2a) + 1), which is 1 from 10 on. */
INLINE V tanh_(V x) {
    V a = smaller(magnitude(x), all(10.0f)), z = mul(a, a), p = all(-0x1.9921a2p-8f);
    p = fma_(p, z, all(0x1.58e518p-6f));
    p = fma_(p, z, all(-0x1.b91e7ep-5f));
    p = fma_(p, z, all(0x1.110ceep-3f));
    p = fma_(p, z, all(-0x1.55554ap-2f));
    V small = fma_(mul(p, z), a, a);
    Reduced at = reduced(add(a, a));
    V near = add(expm1_near_zero(at.r), all(1.0f));
    V large = sub(all(1.0f), divide(all(2.0f), add(mul(near, power_of_two(at.n)), all(1.0f))));
    return unless_nan(x, with_sign_of(x, choose(less(a, all(0x1.19999ap-1f)), small, large)));
}

INLINE V sigmoid_(V x) {
    V one = all(1.0f), d = exp_bounded(larger(sub(all(0.0f), magnitude(x)), all(-104.0f)));
    return unless_nan(x, divide(choose(less(x, all(0.0f)), d, one), add(one, d)));
}

/* Below 1 a polynomial; above, 1 - exp(q) of another one, that is 1 from 4 on. */
INLINE V erf_(V x) {
    V a = smaller(magnitude(x), all(4.0f)), z = mul(a, a);
    V p = all(0x1.4771fep-14f);
    p = fma_(p, z, all(-0x1.a3515ep-11f));
    p = fma_(p, z, all(0x1.53f224p-8f));
    p = fma_(p, z, all(-0x1.b7f71ap-6f));
    p = fma_(p, z, all(0x1.ce2ce6p-4f));
    p = fma_(p, z, all(-0x1.81273ep-2f));
    p = fma_(p, z, all(0x1.06eba8p-3f));
    V q = all(0x1.852f08p-13f);
    q = fma_(q, a, all(-0x1.814d8p-9f));
    q = fma_(q, a, all(0x1.65424ep-6f));
    q = fma_(q, a, all(-0x1.a60a8cp-4f));
    q = fma_(q, a, all(-0x1.46c584p-1f));
    q = fma_(q, a, all(-0x1.2085b2p+0f));
    q = fma_(q, a, all(-0x1.72e73cp-12f));
    Reduced at = reduced(q);
    V left = mul(add(expm1_near_zero(at.r), all(1.0f)), power_of_two(at.n));
    V y = choose(less(a, all(1.0f)), fma_(p, a, a), sub(all(1.0f), left));
    return unless_nan(x, with_sign_of(x, y));
}

#define EACH(name, of)                                                                                                 \
    void name(int64_t n, const float *x, float *y) {                                                                   \
        int64_t i = 0;                                                                                                 \
        for (; i + WIDTH <= n; i += WIDTH) store(y + i, of(load(x + i)));                                              \
        if (i < n) store_first(y + i, of(load_first(x + i, n - i)), n - i);                                            \
    }
EACH(ls_exp, exp_)
EACH(ls_log, log_)
EACH(ls_log1p, log1p_)
EACH(ls_tanh, tanh_)
EACH(ls_sigmoid, sigmoid_)
EACH(ls_erf, erf_)

/* The gates take, keep, candidate and show of an LSTM: they come as products with the input, to which the bias is added;
   `products` are those with the state before. */
void lstm(int64_t n, float *gates, const float *bias, const float *products, const float *before, float *cell,
          float *curve, float *state) {
    for (int64_t i = 0; i < n; i += WIDTH) {
        const int64_t left = n - i;
        V gate[4];
        UNROLL for (int k = 0; k < 4; k++) {
            const int64_t at = k * n + i;
            gate[k] = add(take(products + at, left), add(take(gates + at, left), take(bias + at, left)));
        }
        const V takes = sigmoid_(gate[0]), keeps = sigmoid_(gate[1]), candidate = tanh_(gate[2]);
        const V shows = sigmoid_(gate[3]);
        const V now = add(mul(keeps, take(before + i, left)), mul(takes, candidate)), bent = tanh_(now);
        give(gates + i, takes, left);
        give(gates + n + i, keeps, left);
        give(gates + 2 * n + i, candidate, left);
        give(gates + 3 * n + i, shows, left);
        give(cell + i, now, left);
        give(curve + i, bent, left);
        give(state + i, mul(shows, bent), left);
    }
}

/* Times y (1 - y), the derivative of a sigmoid y; and times 1 - y * y, that of a tanh. */
INLINE V times_of_sigmoid(V x, V y) { return mul(mul(x, y), sub(all(1.0f), y)); }
INLINE V times_of_tanh(V x, V y) { return mul(x, sub(all(1.0f), mul(y, y))); }

/* The gradient of a state is that of the products of the step behind it, and that of the result. */
void lstm_gradient(int64_t n, const float *gates, const float *curve, const float *before, const float *product,
                   const float *of_result, float *of_cell, float *of_gates) {
    for (int64_t i = 0; i < n; i += WIDTH) {
        const int64_t left = n - i;
        const V takes = take(gates + i, left), keeps = take(gates + n + i, left);
        const V candidate = take(gates + 2 * n + i, left), shows = take(gates + 3 * n + i, left);
        const V state = add(take(product + i, left), take(of_result + i, left));
        const V bent = take(curve + i, left), shown = mul(state, shows);
        const V cell = sub(add(take(of_cell + i, left), shown), mul(mul(shown, bent), bent));
        give(of_gates + i, times_of_sigmoid(mul(cell, candidate), takes), left);
        give(of_gates + n + i, times_of_sigmoid(mul(cell, take(before + i, left)), keeps), left);
        give(of_gates + 2 * n + i, times_of_tanh(mul(cell, takes), candidate), left);
        give(of_gates + 3 * n + i, times_of_sigmoid(mul(state, bent), shows), left);
        give(of_cell + i, mul(cell, keeps), left);
    }
}

/* The gates reset, keep and candidate of a GRU; `curve` is what a reset multiplies. */
void gru(int64_t n, float *gates, const float *input_bias, const float *products, const float *state_bias,
         const float *before, float *curve, float *state) {
    for (int64_t i = 0; i < n; i += WIDTH) {
        const int64_t left = n - i;
        V of_input[3], of_state[3];
        UNROLL for (int k = 0; k < 3; k++) {
            const int64_t at = k * n + i;
            of_input[k] = add(take(gates + at, left), take(input_bias + at, left));
            of_state[k] = add(take(products + at, left), take(state_bias + at, left));
        }
        const V resets = sigmoid_(add(of_state[0], of_input[0])), keeps = sigmoid_(add(of_state[1], of_input[1]));
        const V product = of_state[2], candidate = tanh_(add(mul(product, resets), of_input[2]));
        give(gates + i, resets, left);
        give(gates + n + i, keeps, left);
        give(gates + 2 * n + i, candidate, left);
        give(curve + i, product, left);
        give(state + i, add(mul(sub(take(before + i, left), candidate), keeps), candidate), left);
    }
}

/* `direct` is a part of the gradient of the state, and then of the state before. */
void gru_gradient(int64_t n, const float *gates, const float *curve, const float *before, const float *product,
                  const float *of_result, float *direct, float *of_gates, float *of_products) {
    for (int64_t i = 0; i < n; i += WIDTH) {
        const int64_t left = n - i;
        const V resets = take(gates + i, left), keeps = take(gates + n + i, left);
        const V candidate = take(gates + 2 * n + i, left);
        const V state = add(add(take(product + i, left), take(direct + i, left)), take(of_result + i, left));
        const V kept = mul(state, keeps), of_candidate = times_of_tanh(sub(state, kept), candidate);
        const V of_resets = times_of_sigmoid(mul(of_candidate, take(curve + i, left)), resets);
        const V of_keeps = times_of_sigmoid(mul(sub(take(before + i, left), candidate), state), keeps);
        give(of_gates + i, of_resets, left);
        give(of_gates + n + i, of_keeps, left);
        give(of_gates + 2 * n + i, of_candidate, left);
        give(of_products + i, of_resets, left);
        give(of_products + n + i, of_keeps, left);
        give(of_products + 2 * n + i, mul(of_candidate, resets), left);
        give(direct + i, kept, left);
    }
}

void tanh_gradient(int64_t n, const float *gradient, const float *result, float *y) {
    for (int64_t i = 0; i < n; i += WIDTH) {
        give(y + i, times_of_tanh(take(gradient + i, n - i), take(result + i, n - i)), n - i);
    }
}

/* The largest score of each sample, not a number if there is such a score. */
INLINE V largest_of(const CrossEntropy *c, const float *scores, int64_t left) {
    V largest = take(scores, left);
    for (int64_t i = 1; i < c->classes; i++) {
        const V score = take(scores + i * c->samples, left);
        largest = choose(less(largest, score), score, choose(is_nan(score), score, largest));
    }
    return largest;
}

/* The classes of samples as floats, which have all whole numbers up to 2**24. */
INLINE V targets_of(const int64_t *targets, int64_t left) {
    float found[WIDTH];
    for (int64_t i = 0; i < WIDTH; i++) found[i] = i < left ? (float)targets[i] : 0.0f;
    return load(found);
}

void cross_entropy(const CrossEntropy *c, float *losses) {
    for (int64_t j = 0; j < c->samples; j += WIDTH) {
        const int64_t left = c->samples - j;
        const float *scores = c->scores + j;
        const V largest = largest_of(c, scores, left), target = targets_of(c->targets + j, left);
        V powers[LANES], sums[LANES], at_target = all(NOT_A_NUMBER);
        for (int i = 0; i < LANES; i++) powers[i] = sums[i] = all(0.0f);
        for (int64_t i = 0; i < c->classes; i++) {
            const V score = sub(take(scores + i * c->samples, left), largest);
            powers[i % LANES] = add(powers[i % LANES], exp_(score));
            sums[i % LANES] = add(sums[i % LANES], score);
            at_target = choose(equal(target, all((float)i)), score, at_target);
        }
        if (c->shares) {
            at_target = add(mul(all(c->shares[0]), at_target), mul(halved_vectors(sums), all(c->shares[1])));
        }
        give(losses + j, sub(log_(halved_vectors(powers)), at_target), left);
    }
}

void cross_entropy_gradient(const CrossEntropy *c, const float *gradient, int64_t step, float *result) {
    const V share = all(c->shares ? c->shares[0] : 1.0f);
    for (int64_t j = 0; j < c->samples; j += WIDTH) {
        const int64_t left = c->samples - j;
        const float *scores = c->scores + j;
        const V largest = largest_of(c, scores, left), target = targets_of(c->targets + j, left);
        const V of_loss = step ? take(gradient + j, left) : all(*gradient);
        V powers[LANES];
        for (int i = 0; i < LANES; i++) powers[i] = all(0.0f);
        for (int64_t i = 0; i < c->classes; i++) {
            const V power = exp_(sub(take(scores + i * c->samples, left), largest));
            powers[i % LANES] = add(powers[i % LANES], power);
            give(result + i * c->samples + j, power, left);
        }
        const V sum = halved_vectors(powers);
        for (int64_t i = 0; i < c->classes; i++) {
            float *place = result + i * c->samples + j;
            V found = divide(take(place, left), sum);
            if (c->shares) found = sub(found, all(c->shares[1]));
            found = choose(equal(target, all((float)i)), sub(found, share), found);
            give(place, mul(found, of_loss), left);
        }
    }
}

/* Powers of what is finite and not zero, by + - * / of double alone. Without a branch, so that a compiler can compute
   several at once. */
INLINE double bits_as_double(uint64_t word) {
    double x;
    memcpy(&x, &word, sizeof x);
    return x;
}

INLINE uint64_t double_as_bits(double x) {
    uint64_t word;
    memcpy(&word, &x, sizeof word);
    return word;
}

/* The binary logarithm of x > 0, which is a normal number as a double. */
INLINE double logarithm(double x) {
    const uint64_t root = 0x3fe6a09e667f3bcd; /* sqrt(1/2) */
    const uint64_t above = double_as_bits(x) - root;
    /* A whole number of 52 bits is the end of a double from 2**52 on; it is 1023 too large, so that it is positive. */
    const uint64_t biased = (above + ((uint64_t)1023 << 52)) >> 52;
    const double n = bits_as_double(biased | double_as_bits(0x1p+52)) - (0x1p+52 + 1023.0);
    const double m = bits_as_double((above & (((uint64_t)1 << 52) - 1)) + root);
    const double s = (m - 1.0) / (m + 1.0), z = s * s;
    double p = 0x1.f1c166865e00fp-3;
    p = p * z + 0x1.0bb5069535d90p-2;
    p = p * z + 0x1.484fc3665c05ep-2;
    p = p * z + 0x1.a617561af612ep-2;
    p = p * z + 0x1.2776c516fcc93p-1;
    p = p * z + 0x1.ec709dc39c6a7p-1;
    p = p * z + 0x1.71547652b82ffp+1;
    return s * p + n;
}

/* 2**x for |x| <= 200 */
INLINE double power_of_two_of(double x) {
    const double shifted = x + 0x1.8p+52, r = x - (shifted - 0x1.8p+52);
    double p = 0x1.e392fb4aec44bp-28;
    p = p * r + 0x1.b673c6b39a92ep-24;
    p = p * r + 0x1.62c156f38a715p-20;
    p = p * r + 0x1.ffcb564542b61p-17;
    p = p * r + 0x1.43091264b494ap-13;
    p = p * r + 0x1.5d87fe9c9356cp-10;
    p = p * r + 0x1.3b2ab6fbd97ebp-7;
    p = p * r + 0x1.c6b08d703d7cfp-5;
    p = p * r + 0x1.ebfbdff82c41fp-3;
    p = p * r + 0x1.62e42fefa3a15p-1;
    /* The last bits of `shifted` are the whole number next to x. */
    return (p * r + 1.0) * bits_as_double((double_as_bits(shifted) + 1023) << 52);
}

/* As C's pow, but for the exponents that are computed in float32; `ordinary` is |x|**y where that is the result. */
static float power_(float x, float y, float ordinary) {
    if (y == 0.0f || x == 1.0f) return 1.0f;
    if (y == 0.5f) return sqrtf(x);
    if (y == 1.0f) return x;
    if (y == 2.0f) return x * x;
    if (y == -1.0f) return 1.0f / x;
    if (x > 0.0f && x < INFINITE && fabsf(y) < INFINITE) return ordinary;
    if (x != x || y != y) return NOT_A_NUMBER;
    const float base = fabsf(x), size = fabsf(y);
    const int is_whole = size >= 0x1p+24f || (float)(int32_t)y == y;
    const int is_odd = size < 0x1p+24f && is_whole && ((int32_t)y & 1);
    float result;
    if (base == 0.0f || base == INFINITE) result = (base == 0.0f) == (y > 0.0f) ? 0.0f : INFINITE;
    else if (x < 0.0f && !is_whole) return NOT_A_NUMBER;
    else if (base == 1.0f) result = 1.0f;
    else if (size == INFINITE) result = (base > 1.0f) == (y > 0.0f) ? INFINITE : 0.0f;
    else result = ordinary;
    return is_odd && signbit(x) ? -result : result;
}

void ls_power(int64_t n, const float *x, const float *y, float *z) {
    enum { BLOCK = 64 };
    double exponents[BLOCK];
    float ordinary[BLOCK];
    for (int64_t first = 0; first < n; first += BLOCK) {
        const int64_t count = n - first < BLOCK ? n - first : BLOCK;
        for (int64_t i = 0; i < count; i++) {
            exponents[i] = (double)y[first + i] * logarithm((double)fabsf(x[first + i]));
        }
        for (int64_t i = 0; i < count; i++) ordinary[i] = (float)power_of_two_of(exponents[i]);
        for (int64_t i = 0; i < count; i++) {
            const float size = exponents[i] > 200.0 ? INFINITE : exponents[i] < -200.0 ? 0.0f : ordinary[i];
            const float result = power_(x[first + i], y[first + i], size);
            z[first + i] = result == result ? result : NOT_A_NUMBER;
        }
    }
}
