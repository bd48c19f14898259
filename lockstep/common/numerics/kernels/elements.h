/* Arithmetic of single elements, of pools, and of an update: see elements.c and pooling.c. */
#ifndef LOCKSTEP_ELEMENTS_H
#define LOCKSTEP_ELEMENTS_H

#include "vector.h"

void rectify(int64_t n, const float *x, float *y);
void rectify_gradient(int64_t n, const float *gradient, const float *result, float *y);

/* What an update by momentum does with each weight. */
typedef struct {
    int64_t n;
    const float *weights, *gradient, *velocity;
    float *new_weights, *new_velocity;
    float momentum, rate, decay;
    int has_momentum, has_decay, is_nesterov;
} Momentum;

void follow_momentum(const Momentum *m);

/* Images (channels, height, width, images) and their windows (channels, rows, columns, images). */
typedef struct {
    int64_t channels, height, width, images, rows, columns;
    int64_t kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x;
} Pool;

void pool_largest(const Pool *p, const float *x, float *y);
void pool_largest_gradient(const Pool *p, const float *gradient, const float *x, const float *y, float *result);

#endif
