/* Sums (sums.c), functions of single numbers (functions.c), arithmetic of elements (elements.c), pools (pooling.c). */
#ifndef LOCKSTEP_KERNELS_H
#define LOCKSTEP_KERNELS_H

#include "vector.h"

/* As many of a vector's numbers as are left. */
INLINE V take(const float *p, int64_t left) { return left < WIDTH ? load_first(p, left) : load(p); }
INLINE void give(float *p, V v, int64_t left) {
    if (left < WIDTH) store_first(p, v, left);
    else store(p, v);
}

/* The sum of sixteen chains, and the same for each number of vectors. */
float halved(const float *lanes);
INLINE V halved_vectors(V *lanes) {
    UNROLL for (int i = 0; i < 8; i++) lanes[i] = add(lanes[i], lanes[i + 8]);
    UNROLL for (int i = 0; i < 4; i++) lanes[i] = add(lanes[i], lanes[i + 4]);
    UNROLL for (int i = 0; i < 2; i++) lanes[i] = add(lanes[i], lanes[i + 2]);
    return add(lanes[0], lanes[1]);
}

void sum_terms(int64_t outer, int64_t terms, int64_t inner, int64_t step, int64_t stride, const float *x, float *y);

void ls_exp(int64_t n, const float *x, float *y);
void ls_log(int64_t n, const float *x, float *y);
void ls_log1p(int64_t n, const float *x, float *y);
void ls_tanh(int64_t n, const float *x, float *y);
void ls_sigmoid(int64_t n, const float *x, float *y);
void ls_erf(int64_t n, const float *x, float *y);
void ls_power(int64_t n, const float *x, const float *y, float *z);

/* Scores (classes, samples), the class of each sample, and if there is label smoothing the shares of the class, and of
   each class. */
typedef struct {
    int64_t classes, samples;
    const float *scores;
    const int64_t *targets;
    const float *shares;
} CrossEntropy;

/* The loss of each sample; and the gradient of the scores, from those of the losses, which are `step` apart. */
void cross_entropy(const CrossEntropy *c, float *losses);
void cross_entropy_gradient(const CrossEntropy *c, const float *gradient, int64_t step, float *result);

/* A step of a recurrent layer: gates in blocks of n, the elements (hidden, batch) of a state. */
void lstm(int64_t n, float *gates, const float *inputs, const float *before, float *cell, float *curve, float *state);
void lstm_gradient(int64_t n, const float *gates, const float *curve, const float *before, const float *product,
                   const float *of_result, float *of_cell, float *of_gates);
void gru(int64_t n, float *gates, const float *inputs, const float *before, float *curve, float *state);
void gru_gradient(int64_t n, const float *gates, const float *curve, const float *before, const float *product,
                  const float *of_result, float *direct, float *of_gates, float *of_products);

void rectify(int64_t n, const float *x, float *y);
void rectify_gradient(int64_t n, const float *gradient, const float *result, float *y);

/* Add each of `uses` rows to the row of `to` that its index names. */
void add_rows(int64_t uses, int64_t width, const float *from, const int64_t *indices, float *to);

/* What an update by momentum does with each weight. */
typedef struct {
    int64_t n;
    const float *first, *second; /* terms of the gradient; no second one is NULL */
    float divisor, scale;        /* the sum is multiplied by the divisor, unless it `divides` */
    int divides, has_scale;
    const float *weights, *velocity; /* without momentum, velocities are NULL */
    float *new_weights, *new_velocity;
    float momentum, rate, decay;
    int has_decay, is_nesterov;
} Momentum;

int follow_momentum(const Momentum *m);

/* Images (channels, height, width, images) and their windows (channels, rows, columns, images). */
typedef struct {
    int64_t channels, height, width, images, rows, columns;
    int64_t kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x;
} Pool;

void pool_largest(const Pool *p, const float *x, float *y);
void pool_largest_gradient(const Pool *p, const float *gradient, const float *x, const float *y, float *result);

#endif
