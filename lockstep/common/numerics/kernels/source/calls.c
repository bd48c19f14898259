/* What Python calls: a list of operations, each with its arguments in a row of whole numbers, is carried out at once.

   Addresses are whole numbers too. Python has checked every size, stride and address before it writes a row, and keeps
   the arrays until all calls are over (calls.py). */
#include "convolution.h"
#include "kernels.h"

#include <time.h>

/* Numbers of a row, the first of which is the operation; kernel_leaves.py has the same names in the same order. */
enum { ROW = 23 };
enum Operation {
    PRODUCT, STACK, SUM, CONVOLUTION, CONVOLUTION_TO_INPUT, CONVOLUTION_TO_KERNELS, EXP, LOG, LOG1P, TANH, SIGMOID, ERF,
    POWER, RELU, RELU_GRADIENT, MAX_POOL, MAX_POOL_GRADIENT, ADD_ROWS, CROSS_ENTROPY,
    CROSS_ENTROPY_GRADIENT, RECURRENT, RECURRENT_GRADIENT
};

INLINE const float *from(int64_t address) { return (const float *)(intptr_t)address; }
INLINE const int64_t *integers(int64_t address) { return (const int64_t *)(intptr_t)address; }
INLINE float *to(int64_t address) { return (float *)(intptr_t)address; }

/* The sum over the tree of products. */
static void call_product(const int64_t *g) {
    const Product product = {
        .count = g[0], .rows = g[1], .columns = g[2], .terms = g[3], .a = from(g[4]), .a_row = g[5], .a_column = g[6],
        .a_step = g[7], .b = from(g[8]), .b_step = g[11], .c = to(g[12]), .c_row = g[13], .adds = g[14] != 0,
    };
    multiply_matrices(&product, g[9], g[10], to(g[15]));
}

/* Products, each of which has a result of its own. */
static void call_stack(const int64_t *g) {
    const Product first = {
        .count = 1, .rows = g[1], .columns = g[2], .terms = g[3], .a = from(g[4]), .a_row = g[5], .a_column = g[6],
        .a_step = g[7], .b = from(g[8]), .b_step = g[11], .c = to(g[12]), .c_row = g[13], .bias = from(g[16]),
    };
    multiply_stack(&first, g[0], g[9], g[10], g[14], to(g[15]));
}

INLINE Convolution convolution_of(const int64_t *g) {
    return (Convolution){
        .channels = g[0], .height = g[1], .width = g[2], .images = g[3], .outputs = g[4], .kernel_height = g[5],
        .kernel_width = g[6], .stride_y = g[7], .stride_x = g[8], .dilation_y = g[9], .dilation_x = g[10],
    };
}

/* A convolution or one of its gradients, group by group: of images, kernels and results. */
static void call_convolution(enum Operation operation, const int64_t *g) {
    Convolution c = convolution_of(g);
    if (operation == CONVOLUTION_TO_INPUT) {
        c.padding_y = g[17];
        c.padding_x = g[18];
    }
    const int64_t height = c.height - 2 * c.padding_y, width = c.width - 2 * c.padding_x;
    const int64_t image = c.channels * height * width * c.images;
    const int64_t kernel = c.outputs * c.channels * c.kernel_height * c.kernel_width;
    const int64_t result = c.outputs * rows_of(&c) * columns_of(&c) * c.images;
    float *scratch = to(g[15]);
    for (int64_t group = 0; group < g[11]; group++) {
        float *x = to(g[12]) + group * image, *kernels = to(g[13]) + group * kernel, *y = to(g[14]) + group * result;
        const float *bias = g[16] ? from(g[16]) + group * c.outputs : NULL;
        if (operation == CONVOLUTION) convolve(&c, x, kernels, bias, y, scratch);
        else if (operation == CONVOLUTION_TO_INPUT) convolve_to_input(&c, y, kernels, x, scratch);
        else convolve_to_kernels(&c, y, x, kernels, scratch);
    }
}

INLINE CrossEntropy cross_entropy_of(const int64_t *g) {
    return (CrossEntropy){
        .classes = g[0], .samples = g[1], .shares = from(g[2]), .scores = from(g[3]), .targets = integers(g[4]),
    };
}

INLINE Pool pool_of(const int64_t *g) {
    return (Pool){
        .channels = g[0], .height = g[1], .width = g[2], .images = g[3], .rows = g[4], .columns = g[5],
        .kernel_y = g[6], .kernel_x = g[7], .stride_y = g[8], .stride_x = g[9], .padding_y = g[10], .padding_x = g[11],
    };
}

INLINE Recurrence recurrence_sizes_of(const int64_t *g) {
    return (Recurrence){
        .kind = (enum Recurring)g[0], .steps = g[1], .batch = g[2], .features = g[3], .hidden = g[4],
        .gates_count = g[0] == RECUR_LSTM ? 4 : g[0] == RECUR_GRU ? 3 : 1,
    };
}

INLINE Recurrence recurrence_of(const int64_t *g) {
    Recurrence r = recurrence_sizes_of(g);
    r.is_reversed = g[5] != 0;
    r.lengths = integers(g[6]);
    r.to_state = from(g[7]);
    r.gates = to(g[8]);
    r.curves = to(g[9]);
    r.cells = to(g[10]);
    r.states = to(g[11]);
    r.scratch = to(g[12]);
    r.x = from(g[13]);
    r.to_input = from(g[14]);
    return r;
}

static void call_recurrent(const int64_t *g) {
    Recurrence r = recurrence_of(g);
    r.input_bias = from(g[15]);
    r.state_bias = from(g[16]);
    recur(&r);
}

static void call_recurrent_gradient(const int64_t *g) {
    Recurrence r = recurrence_of(g);
    r.of_result = from(g[15]);
    r.of_state = to(g[16]);
    r.of_cell = r.of_state + r.batch * r.hidden;
    r.of_gates = to(g[17]);
    r.of_x = to(g[18]);
    r.of_to_input = to(g[19]);
    r.of_to_state = to(g[20]);
    r.of_input_bias = to(g[21]);
    r.of_state_bias = r.of_input_bias + r.gates_count * r.hidden;
    recur_back(&r);
}

/* How this thread rounds, and whether it keeps subnormal numbers. Another library of the process may have changed it, as
   all that gcc links with -ffast-math do: then calls would have other bits. */
#if defined(TARGET_AVX512) || defined(TARGET_AVX2)
enum { DEFAULT_MODE = 0x1f80, STATUS = 0x3f };
INLINE uint64_t floating_point_mode(void) { return _mm_getcsr() & ~(unsigned)STATUS; }
INLINE void write_floating_point_mode(uint64_t mode) { _mm_setcsr((unsigned)mode); }
#elif defined(TARGET_NEON)
enum { DEFAULT_MODE = 0 };
INLINE uint64_t floating_point_mode(void) { uint64_t mode; __asm__ volatile("mrs %0, fpcr" : "=r"(mode)); return mode; }
INLINE void write_floating_point_mode(uint64_t mode) { __asm__ volatile("msr fpcr, %0" : : "r"(mode)); }
#else
enum { DEFAULT_MODE = 0 };
INLINE uint64_t floating_point_mode(void) { return DEFAULT_MODE; }
INLINE void write_floating_point_mode(uint64_t mode) { (void)mode; }
#endif

/* A compiler knows of no other effect of the mode, and could move reads and writes of memory, with the arithmetic between
   them, before or behind the change: the empty instruction may read and write all of it. */
INLINE void set_floating_point_mode(uint64_t mode) {
    __asm__ volatile("" : : : "memory");
    write_floating_point_mode(mode);
    __asm__ volatile("" : : : "memory");
}

/* Seconds of the clock that Python calls perf_counter are written there; NULL if nobody wants to know. */
static _Thread_local double *shown;

#if defined(__APPLE__)
enum { CLOCK = CLOCK_UPTIME_RAW };
#else
enum { CLOCK = CLOCK_MONOTONIC };
#endif

void show_running(void) {
    if (!shown) return;
    struct timespec now;
    if (clock_gettime(CLOCK, &now) == 0) *(volatile double *)shown = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* From now on, kernels of this thread show there that it runs. */
EXPORT void ls_show_running(double *place) {
    shown = place;
}

static void run(const int64_t *rows, int64_t count) {
    for (const int64_t *row = rows; row < rows + count * ROW; row += ROW) {
        show_running();
        const int64_t *g = row + 1;
        switch ((enum Operation)row[0]) {
        case PRODUCT: call_product(g); break;
        case STACK: call_stack(g); break;
        case SUM: sum_terms(g[0], g[1], g[2], g[3], g[4], from(g[5]), to(g[6])); break;
        case CONVOLUTION:
        case CONVOLUTION_TO_INPUT:
        case CONVOLUTION_TO_KERNELS: call_convolution((enum Operation)row[0], g); break;
        case EXP: ls_exp(g[0], from(g[1]), to(g[2])); break;
        case LOG: ls_log(g[0], from(g[1]), to(g[2])); break;
        case LOG1P: ls_log1p(g[0], from(g[1]), to(g[2])); break;
        case TANH: ls_tanh(g[0], from(g[1]), to(g[2])); break;
        case SIGMOID: ls_sigmoid(g[0], from(g[1]), to(g[2])); break;
        case ERF: ls_erf(g[0], from(g[1]), to(g[2])); break;
        case POWER: ls_power(g[0], from(g[1]), from(g[2]), to(g[3])); break;
        case RELU: rectify(g[0], from(g[1]), to(g[2])); break;
        case RELU_GRADIENT: rectify_gradient(g[0], from(g[1]), from(g[2]), to(g[3])); break;
        case MAX_POOL: {
            const Pool pool = pool_of(g);
            pool_largest(&pool, from(g[12]), to(g[13]));
            break;
        }
        case MAX_POOL_GRADIENT: {
            const Pool pool = pool_of(g);
            pool_largest_gradient(&pool, from(g[12]), from(g[13]), from(g[14]), to(g[15]));
            break;
        }
        case ADD_ROWS: add_rows(g[0], g[1], from(g[2]), integers(g[3]), to(g[4])); break;
        case CROSS_ENTROPY: {
            const CrossEntropy losses = cross_entropy_of(g);
            cross_entropy(&losses, to(g[5]));
            break;
        }
        case CROSS_ENTROPY_GRADIENT: {
            const CrossEntropy losses = cross_entropy_of(g);
            cross_entropy_gradient(&losses, from(g[5]), g[7], to(g[6]));
            break;
        }
        case RECURRENT: call_recurrent(g); break;
        case RECURRENT_GRADIENT: call_recurrent_gradient(g); break;
        }
    }
}

/* Carry out `count` rows. */
EXPORT void ls_run(const int64_t *rows, int64_t count) {
    const uint64_t mode = floating_point_mode();
    if (mode != DEFAULT_MODE) set_floating_point_mode(DEFAULT_MODE);
    run(rows, count);
    if (mode != DEFAULT_MODE) set_floating_point_mode(mode);
}

/* An update by momentum, of n weights, from one or two terms of the gradient: see Momentum. */
EXPORT int64_t ls_momentum(int64_t n, const float *weights, const float *velocity, float *new_weights,
                           float *new_velocity, float momentum, float decay, int64_t is_nesterov, const float *first,
                           const float *second, float divisor, int64_t divides, float scale, int64_t has_scale,
                           float rate) {
    const Momentum m = {
        .n = n, .first = first, .second = second, .divisor = divisor, .scale = scale, .divides = divides != 0,
        .has_scale = has_scale != 0, .weights = weights, .velocity = velocity, .new_weights = new_weights,
        .new_velocity = new_velocity, .momentum = momentum, .rate = rate, .decay = decay, .is_nesterov = is_nesterov != 0,
    };
    const uint64_t mode = floating_point_mode();
    if (mode != DEFAULT_MODE) set_floating_point_mode(DEFAULT_MODE);
    const int is_finite = follow_momentum(&m);
    if (mode != DEFAULT_MODE) set_floating_point_mode(mode);
    return is_finite;
}

/* Floats of scratch memory of products: see product.h. */
EXPORT int64_t ls_product_scratch(int64_t count, int64_t shared_rows, int64_t columns, int64_t terms, int64_t b_column) {
    return product_scratch(count, shared_rows, columns, terms, b_column);
}

/* The same of a convolution and its gradients; `sizes` are the first eleven numbers of their rows. */
EXPORT int64_t ls_convolution_scratch(const int64_t *sizes) {
    const Convolution c = convolution_of(sizes);
    return convolution_scratch(&c);
}

/* The same of a recurrent layer and its gradients; `sizes` are the first five numbers of their rows. */
EXPORT int64_t ls_recurrent_scratch(const int64_t *sizes) {
    const Recurrence r = recurrence_sizes_of(sizes);
    return recurrence_scratch(&r);
}
