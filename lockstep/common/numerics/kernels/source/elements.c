/* Arithmetic of single elements that NumPy could do, in one pass where that makes several. Each operation is rounded. */
#include "kernels.h"

/* A loop over whole vectors, and the part of one at the end. */
#define EACH(n, ACT) { \
        int64_t i = 0; \
        for (; i + WIDTH <= (n); i += WIDTH) ACT(load, store, ) \
        if (i < (n)) ACT(load_first, store_first, REST(n)) \
    }
#define REST(n) , (n) - i

void add_to(int64_t n, const float *x, float *y) {
#define ACT(from, to, rest) { to(y + i, add(from(x + i rest), from(y + i rest)) rest); }
    EACH(n, ACT)
#undef ACT
}

void times(int64_t n, const float *x, float *y) {
#define ACT(from, to, rest) { to(y + i, mul(from(x + i rest), from(y + i rest)) rest); }
    EACH(n, ACT)
#undef ACT
}

/* max(x, 0): +0 for all that is not positive, and NaN for NaN. */
INLINE V rectified(V x) {
    return choose(less(all(0.0f), x), x, choose(is_nan(x), x, all(0.0f)));
}

void rectify(int64_t n, const float *x, float *y) {
#define ACT(from, to, rest) { to(y + i, rectified(from(x + i rest)) rest); }
    EACH(n, ACT)
#undef ACT
}

/* The gradient where the result is positive, +0 elsewhere. */
void rectify_gradient(int64_t n, const float *gradient, const float *result, float *y) {
#define ACT(from, to, rest) { \
        to(y + i, choose(less(all(0.0f), from(result + i rest)), from(gradient + i rest), all(0.0f)) rest); \
    }
    EACH(n, ACT)
#undef ACT
}

/* g is the sum of the terms, multiplied or divided, then scaled; plus decay * weights. v = momentum * v + g;
   weights -= rate * v; Nesterov: see rules.py. Returns whether all new weights are finite. */
int follow_momentum(const Momentum *m) {
    const V momentum = all(m->momentum), rate = all(m->rate), decay = all(m->decay);
    const V divisor = all(m->divisor), scale = all(m->scale);
    const int has_decay = m->decay != 0.0f;
    V checked = all(0.0f);
#define ACT(from, to, rest) { \
        const V weights = from(m->weights + i rest); \
        V gradient = from(m->first + i rest); \
        if (m->second) gradient = add(gradient, from(m->second + i rest)); \
        gradient = m->divides ? divide(gradient, divisor) : mul(gradient, divisor); \
        if (m->has_scale) gradient = mul(gradient, scale); \
        if (has_decay) gradient = add(gradient, mul(weights, decay)); \
        if (m->velocity) { \
            const V velocity = add(mul(from(m->velocity + i rest), momentum), gradient); \
            to(m->new_velocity + i, velocity rest); \
            gradient = m->is_nesterov ? add(gradient, mul(velocity, momentum)) : velocity; \
        } \
        const V new_weights = sub(weights, mul(gradient, rate)); \
        to(m->new_weights + i, new_weights rest); \
        /* What is not finite, less itself, is NaN; anything else 0. */ \
        checked = add(checked, sub(new_weights, new_weights)); \
    }
    EACH(m->n, ACT)
#undef ACT
    float sums[WIDTH];
    store(sums, checked);
    for (int i = 0; i < WIDTH; i++) if (sums[i] != 0.0f) return 0;
    return 1;
}

void add_rows(int64_t uses, int64_t width, const float *from, const int64_t *indices, float *to) {
    for (int64_t use = 0; use < uses; use++, from += width) {
        float *row = to + indices[use] * width;
#define ACT(load_, store_, rest) { store_(row + i, add(load_(row + i rest), load_(from + i rest)) rest); }
        EACH(width, ACT)
#undef ACT
    }
}
