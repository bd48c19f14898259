/* Sums of many terms (K3 of the contract): sixteen chains, then halves of them. */
#include "kernels.h"

float halved(const float *lanes) {
    Four parts[4];
    memcpy(parts, lanes, sizeof parts);
    const Four sum = (parts[0] + parts[2]) + (parts[1] + parts[3]);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* Terms that lie next to one another. */
static float sum_along(int64_t terms, const float *x) {
    enum { PARTS = LANES / WIDTH };
    V lanes[PARTS];
    float kept[LANES];
    UNROLL for (int i = 0; i < PARTS; i++) lanes[i] = all(0.0f);
    int64_t k = 0;
    for (; k + LANES <= terms; k += LANES) {
        UNROLL for (int i = 0; i < PARTS; i++) lanes[i] = add(lanes[i], load(x + k + i * WIDTH));
    }
    /* Lanes beyond the end get 0: they have no negative zero, which that would change. */
    UNROLL for (int i = 0; i < PARTS; i++) {
        const int64_t left = terms - k - i * WIDTH;
        if (left > 0) lanes[i] = add(lanes[i], take(x + k + i * WIDTH, left));
        store(kept + i * WIDTH, lanes[i]);
    }
    return halved(kept);
}

/* Terms of `width` neighbours, `stride` apart from one to the next. */
INLINE void sum_across(int64_t terms, int64_t stride, const float *x, float *y, int64_t width, const int is_whole) {
    V lanes[LANES];
    UNROLL for (int i = 0; i < LANES; i++) lanes[i] = all(0.0f);
    int64_t k = 0;
    for (; k + LANES <= terms; k += LANES) {
        const float *first = x + k * stride;
        UNROLL for (int i = 0; i < LANES; i++) {
            const float *term = first + i * stride;
            lanes[i] = add(lanes[i], is_whole ? load(term) : load_first(term, width));
        }
    }
    UNROLL for (int i = 0; i < LANES; i++) {
        if (k + i < terms) {
            const float *term = x + (k + i) * stride;
            lanes[i] = add(lanes[i], is_whole ? load(term) : load_first(term, width));
        }
    }
    const V sum = halved_vectors(lanes);
    if (is_whole) store(y, sum);
    else store_first(y, sum, width);
}

/* The sums of lanes (LANES, n). */
void halve(int64_t n, const float *lanes, float *y) {
    for (int64_t j = 0; j < n; j += WIDTH) {
        V each[LANES];
        UNROLL for (int i = 0; i < LANES; i++) each[i] = take(lanes + i * n + j, n - j);
        give(y + j, halved_vectors(each), n - j);
    }
}

/* x (outer, terms, inner), whose outer elements are `step` apart -> y (outer, inner); both have inner in a row. */
void sum_terms(int64_t outer, int64_t terms, int64_t inner, int64_t step, int64_t stride, const float *x, float *y) {
    for (int64_t i = 0; i < outer; i++, x += step, y += inner) {
        if (inner == 1 && stride == 1) {
            *y = sum_along(terms, x);
            continue;
        }
        int64_t j = 0;
        for (; j + WIDTH <= inner; j += WIDTH) sum_across(terms, stride, x + j, y + j, WIDTH, 1);
        if (j < inner) sum_across(terms, stride, x + j, y + j, inner - j, 0);
    }
}
