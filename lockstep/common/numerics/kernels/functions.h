/* Functions of single numbers: see functions.c. x and y may be the same array. */
#ifndef LOCKSTEP_FUNCTIONS_H
#define LOCKSTEP_FUNCTIONS_H

#include <stdint.h>

void ls_exp(int64_t n, const float *x, float *y);
void ls_log(int64_t n, const float *x, float *y);
void ls_log1p(int64_t n, const float *x, float *y);
void ls_tanh(int64_t n, const float *x, float *y);
void ls_sigmoid(int64_t n, const float *x, float *y);
void ls_erf(int64_t n, const float *x, float *y);
void ls_power(int64_t n, const float *x, const float *y, float *z);

#endif
