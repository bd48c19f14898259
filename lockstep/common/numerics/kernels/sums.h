/* Sums of many terms: see sums.c. */
#ifndef LOCKSTEP_SUMS_H
#define LOCKSTEP_SUMS_H

#include "vector.h"

float halved(float *lanes);
void sum_terms(int64_t outer, int64_t terms, int64_t inner, int64_t step, int64_t stride, const float *x, float *y);

#endif
