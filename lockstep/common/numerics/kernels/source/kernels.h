/* Sums (sums.c), functions of single numbers (functions.c), arithmetic of elements (elements.c), pools (pooling.c),
   recurrent layers (recurrent.c). */
#ifndef LOCKSTEP_KERNELS_H
#define LOCKSTEP_KERNELS_H

#include "vector.h"

/* Show that this thread runs, where it wants to (calls.c): called between parts that take some microseconds. */
void show_running(void);

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

void halve(int64_t n, const float *lanes, float *y);
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

/* A step of a recurrent layer, of one sequence: gates in blocks of n, the elements of a state. */
void lstm(int64_t n, float *gates, const float *bias, const float *products, const float *before, float *cell,
          float *curve, float *state);
void lstm_gradient(int64_t n, const float *gates, const float *curve, const float *before, const float *product,
                   const float *of_result, float *of_cell, float *of_gates);
void gru(int64_t n, float *gates, const float *input_bias, const float *products, const float *state_bias,
         const float *before, float *curve, float *state);
void gru_gradient(int64_t n, const float *gates, const float *curve, const float *before, const float *product,
                  const float *of_result, float *direct, float *of_gates, float *of_products);
void tanh_gradient(int64_t n, const float *gradient, const float *result, float *y);

/* y = x + y, and y = x * y */
void add_to(int64_t n, const float *x, float *y);
void times(int64_t n, const float *x, float *y);

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
    int is_nesterov;
} Momentum;

int follow_momentum(const Momentum *m);

/* Images (channels, height, width, images) and their windows (channels, rows, columns, images). */
typedef struct {
    int64_t channels, height, width, images, rows, columns;
    int64_t kernel_y, kernel_x, stride_y, stride_x, padding_y, padding_x;
} Pool;

void pool_largest(const Pool *p, const float *x, float *y);
void pool_largest_gradient(const Pool *p, const float *gradient, const float *x, const float *y, float *result);

/* In the order of GATES in operands.py. */
enum Recurring { RECUR_LSTM, RECUR_GRU, RECUR_TANH, RECUR_RELU };

/* A layer, and the memory of a pass. Gates come after their functions; of an LSTM, curves are tanh of the cells, of a GRU
   the products of the candidate with the state. */
typedef struct {
    enum Recurring kind;
    int64_t steps, batch, features, hidden, gates_count;
    int is_reversed;        /* the last step is made first */
    const int64_t *lengths; /* steps of each sequence; NULL if all have all of them */
    const float *x;         /* (steps, batch, features) */
    const float *to_input, *to_state; /* (gates · hidden, features), (gates · hidden, hidden) */
    const float *input_bias, *state_bias; /* (gates · hidden); NULL for none, as that of the state but for a GRU */
    float *gates, *curves;  /* (steps, batch, gates · hidden), (steps, batch, hidden) */
    float *cells, *states;  /* (steps + 1, batch, hidden), with the first ones at the begin of the order */
    const float *of_result; /* gradients: (steps, batch, hidden) */
    float *of_state, *of_cell; /* (batch, hidden): of the last ones, and then of the first ones */
    float *of_gates;        /* as gates, before their functions */
    float *of_x;            /* as x; NULL if it is not wanted */
    float *of_to_input, *of_to_state, *of_input_bias, *of_state_bias;
    float *scratch;
} Recurrence;

void recur(const Recurrence *r);
void recur_back(const Recurrence *r);

/* Floats of scratch memory. */
int64_t recurrence_scratch(const Recurrence *r);

#endif
