/* Recurrent layers over whole sequences: the weights are packed once for all steps, and the gates of a step are computed
   while its products are in a cache. Steps are rows: (steps, batch, features), as products read and write them. */
#include "kernels.h"
#include "product.h"

/* Rows of the input that are multiplied at once: fewer would not fill the tiles. */
enum { INPUTS_AT_ONCE = 64 };

/* The scratch memory: where rows of packed weights and of others begin, packed weights, and rows of a step. */
typedef struct {
    int64_t *packed, *features, *hidden;
    float *to_input, *to_state, *panel, *lanes, *turned, *rows;
} Pieces;

/* The same as numbers of floats from the beginning, because there is no memory yet while its size is asked for. */
typedef struct {
    int64_t features, hidden, to_input, to_state, panel, lanes, turned, rows;
} Offsets;

static Offsets offsets_of(const Recurrence *r, int is_back) {
    enum { NUMBER = sizeof(int64_t) / sizeof(float) };
    const int64_t count = r->gates_count * r->hidden, longest = count > r->features ? count : r->features;
    Offsets at = {.features = NUMBER * longest};
    at.hidden = at.features + NUMBER * CHAIN;
    at.to_input = at.hidden + NUMBER * CHAIN;
    at.to_state = at.to_input + (is_back ? packed_size(count, r->features) : packed_size(r->features, count));
    at.panel = at.to_state + (is_back ? packed_size(count, r->hidden) : packed_size(r->hidden, count));
    at.lanes = at.panel + PANEL;
    at.turned = at.lanes + 3 * LANES * count;
    at.rows = at.turned + CHAIN * (count + 2 * r->hidden);
    return at;
}

static Pieces pieces_of(const Recurrence *r, int is_back) {
    const Offsets at = offsets_of(r, is_back);
    float *begin = r->scratch;
    return (Pieces){
        .packed = (int64_t *)begin, .features = (int64_t *)(begin + at.features), .hidden = (int64_t *)(begin + at.hidden),
        .to_input = begin + at.to_input, .to_state = begin + at.to_state, .panel = begin + at.panel,
        .lanes = begin + at.lanes, .turned = begin + at.turned, .rows = begin + at.rows,
    };
}

int64_t recurrence_scratch(const Recurrence *r) {
    const int64_t forward = offsets_of(r, 0).rows, backward = offsets_of(r, 1).rows;
    /* Products of a step; or gradients, kept, and directly of states. */
    return (forward > backward ? forward : backward) + r->batch * (r->gates_count + 2) * r->hidden;
}

static void space(int64_t count, int64_t by, int64_t *offsets) {
    for (int64_t k = 0; k < count; k++) offsets[k] = k * by;
}

/* The number of the step at a place in the order of the steps; and whether sequence b has ended before it. */
INLINE int64_t step_at(const Recurrence *r, int64_t place) { return r->is_reversed ? r->steps - 1 - place : place; }
INLINE int has_ended(const Recurrence *r, int64_t step, int64_t b) { return r->lengths && r->lengths[b] <= step; }

/* States, or cells, before the step and after it: the first ones lie where the order begins. */
INLINE float *before_step(const Recurrence *r, float *states, int64_t step) {
    return states + (step + (r->is_reversed != 0)) * r->batch * r->hidden;
}
INLINE float *after_step(const Recurrence *r, float *states, int64_t step) {
    return states + (step + (r->is_reversed == 0)) * r->batch * r->hidden;
}

/* A bias, or what is added without a change of any bit. */
static const float *bias_of(const float *bias, int64_t count, float *none) {
    for (int64_t i = 0; i < count; i++) none[i] = -0.0f;
    return bias ? bias : none;
}

/* The part of the gates that does not depend on states, for the steps that are made next. */
static void multiply_inputs(const Recurrence *r, int64_t place, int64_t count, const Pieces *at) {
    const int64_t columns = r->gates_count * r->hidden;
    const int64_t first = step_at(r, r->is_reversed ? place + count - 1 : place) * r->batch;
    const Product product = {
        .count = 1, .rows = count * r->batch, .columns = columns, .terms = r->features,
        .a = r->x + first * r->features, .a_row = r->features, .a_column = 1, .b = at->to_input, .offsets = at->packed,
        .panel_step = r->features * PANEL_ROW, .c = r->gates + first * columns, .c_row = columns,
    };
    multiply(&product, NULL);
}

/* A step of one sequence. */
static void step_of_row(const Recurrence *r, int64_t step, int64_t b, const float *products) {
    const int64_t hidden = r->hidden, row = b * hidden, all = step * r->batch * hidden + row;
    const int has_cell = r->kind == RECUR_LSTM;
    const float *before = before_step(r, r->states, step) + row;
    const float *cell_before = has_cell ? before_step(r, r->cells, step) + row : NULL;
    float *after = after_step(r, r->states, step) + row, *cell = has_cell ? after_step(r, r->cells, step) + row : NULL;
    float *gates = r->gates + all * r->gates_count;
    if (has_ended(r, step, b)) {
        memset(gates, 0, (size_t)(r->gates_count * hidden) * sizeof *gates);
        memcpy(after, before, (size_t)hidden * sizeof *after);
        if (has_cell) memcpy(cell, cell_before, (size_t)hidden * sizeof *cell);
        return;
    }
    switch (r->kind) {
    case RECUR_LSTM: lstm(hidden, gates, r->input_bias, products, cell_before, cell, r->curves + all, after); break;
    case RECUR_GRU:
        gru(hidden, gates, r->input_bias, products, r->state_bias, before, r->curves + all, after);
        break;
    case RECUR_TANH:
    case RECUR_RELU:
        add_to(hidden, r->input_bias, gates);
        add_to(hidden, products, gates);
        if (r->kind == RECUR_TANH) ls_tanh(hidden, gates, after);
        else rectify(hidden, gates, after);
        break;
    }
}

void recur(const Recurrence *r) {
    const int64_t hidden = r->hidden, columns = r->gates_count * hidden;
    const Pieces at = pieces_of(r, 0);
    space(hidden > r->features ? hidden : r->features, PANEL_ROW, at.packed);
    pack_right(r->features, columns, r->to_input, 1, r->features, at.to_input);
    pack_right(hidden, columns, r->to_state, 1, hidden, at.to_state);
    Recurrence biased = *r;
    biased.input_bias = bias_of(r->input_bias, columns, at.lanes);
    biased.state_bias = bias_of(r->state_bias, columns, at.lanes);
    const int64_t at_once = r->batch < INPUTS_AT_ONCE ? INPUTS_AT_ONCE / (r->batch ? r->batch : 1) : 1;
    for (int64_t place = 0; place < r->steps; place++) {
        const int64_t step = step_at(r, place), left = r->steps - place;
        if (place % at_once == 0) multiply_inputs(r, place, left < at_once ? left : at_once, &at);
        const Product product = {
            .count = 1, .rows = r->batch, .columns = columns, .terms = hidden, .a = before_step(r, r->states, step),
            .a_row = hidden, .a_column = 1, .b = at.to_state, .offsets = at.packed, .panel_step = hidden * PANEL_ROW,
            .c = at.rows, .c_row = columns,
        };
        multiply(&product, NULL);
        for (int64_t b = 0; b < r->batch; b++) step_of_row(&biased, step, b, at.rows + b * columns);
    }
}

/* The gradients of a step of one sequence. */
static void back_through_row(const Recurrence *r, int64_t step, int64_t b, float *direct, float *of_products) {
    const int64_t hidden = r->hidden, row = b * hidden, all = step * r->batch * hidden + row;
    const int64_t of_all = all * r->gates_count;
    const float *gates = r->gates + of_all, *of_result = r->of_result + all;
    float *of_gates = r->of_gates + of_all, *of_state = r->of_state + row;
    switch (r->kind) {
    case RECUR_LSTM:
        lstm_gradient(hidden, gates, r->curves + all, before_step(r, r->cells, step) + row, of_state, of_result,
                      r->of_cell + row, of_gates);
        break;
    case RECUR_GRU:
        gru_gradient(hidden, gates, r->curves + all, before_step(r, r->states, step) + row, of_state, of_result,
                     direct + row, of_gates, of_products + row * r->gates_count);
        break;
    case RECUR_TANH:
    case RECUR_RELU:
        add_to(hidden, of_result, of_state);
        (r->kind == RECUR_TANH ? tanh_gradient : rectify_gradient)(
            hidden, of_state, after_step(r, r->states, step) + row, of_gates);
        break;
    }
}

/* The gradients of all steps. */
static void back_through_steps(const Recurrence *r, const Pieces *at) {
    const int64_t hidden = r->hidden, columns = r->gates_count * hidden, size = r->batch * hidden;
    float *direct = at->rows, *kept = direct + size, *of_products = kept + size;
    const size_t row_bytes = (size_t)hidden * sizeof *kept;
    memset(direct, 0, (size_t)size * sizeof *direct);
    pack_right(columns, hidden, r->to_state, hidden, 1, at->to_state);
    for (int64_t place = r->steps - 1; place >= 0; place--) {
        const int64_t step = step_at(r, place), first = step * size * r->gates_count;
        for (int64_t b = 0; b < r->batch; b++) {
            if (!has_ended(r, step, b)) {
                back_through_row(r, step, b, direct, of_products);
                continue;
            }
            const int64_t row = b * hidden;
            add_to(hidden, direct + row, r->of_state + row);
            memset(direct + row, 0, row_bytes);
            memcpy(kept + row, r->of_state + row, row_bytes);
            memset(r->of_gates + first + b * columns, 0, row_bytes * (size_t)r->gates_count);
            memset(of_products + b * columns, 0, row_bytes * (size_t)r->gates_count);
        }
        const Product product = {
            .count = 1, .rows = r->batch, .columns = hidden, .terms = columns,
            .a = r->kind == RECUR_GRU ? of_products : r->of_gates + first, .a_row = columns, .a_column = 1,
            .b = at->to_state, .offsets = at->packed,
            .panel_step = columns * PANEL_ROW, .c = r->of_state, .c_row = hidden,
        };
        multiply(&product, NULL);
        for (int64_t b = 0; b < r->batch; b++) {
            if (has_ended(r, step, b)) memcpy(r->of_state + b * hidden, kept + b * hidden, row_bytes);
        }
    }
    if (r->kind == RECUR_GRU) add_to(size, direct, r->of_state);
}

/* Rows of all steps that are added up together, a chain of them. */
typedef struct {
    int64_t first, count;
    const Pieces *at;
} Rows;

/* Continue the product of gradients, which lie `step` apart, with what was multiplied with `rows` of the weights. */
static void continue_weights(const Rows *part, int64_t rows, const float *gradients, int64_t step, int64_t columns,
                             const float *right, const int64_t *offsets, float *to) {
    const Product product = {
        .count = 1, .rows = rows, .columns = columns, .terms = part->count, .a = gradients, .a_row = 1,
        .a_column = step, .b = right, .offsets = offsets, .c = to, .c_row = columns, .continues = part->first > 0,
    };
    multiply(&product, part->at->panel);
}

static void add_rows_to_lanes(int64_t rows, int64_t columns, const float *from, float *lanes) {
    for (int64_t i = 0; i < rows; i++) add_to(columns, from + i * columns, lanes + i % LANES * columns);
}

/* Where a row lies that is in the order in which the steps are made. */
INLINE int64_t row_at(const Recurrence *r, int64_t i) { return step_at(r, i / r->batch) * r->batch + i % r->batch; }

/* Copy rows of all steps in the order in which these are made. */
static const float *turned(const Recurrence *r, const Rows *part, int64_t columns, const float *from, float *to) {
    if (!r->is_reversed) return from + part->first * columns;
    for (int64_t i = 0; i < part->count; i++) {
        memcpy(to + i * columns, from + row_at(r, part->first + i) * columns, (size_t)columns * sizeof *to);
    }
    return to;
}

/* The gradients of the products of the state with a GRU's candidate. */
static const float *candidates(const Recurrence *r, const Rows *part, float *to) {
    const int64_t hidden = r->hidden;
    for (int64_t i = 0; i < part->count; i++) {
        const int64_t row = row_at(r, part->first + i) * 3 * hidden;
        memcpy(to + i * hidden, r->of_gates + row + 2 * hidden, (size_t)hidden * sizeof *to);
        times(hidden, r->gates + row, to + i * hidden);
    }
    return to;
}

/* Sums over all steps and sequences, and the gradient of the input, by as many rows as a chain has terms: these are read
   once from memory. */
static void add_up(const Recurrence *r, const Pieces *at) {
    const int64_t hidden = r->hidden, columns = r->gates_count * hidden, all = r->steps * r->batch;
    const int64_t same = r->kind == RECUR_GRU ? 2 * hidden : columns;
    float *lanes = at->lanes, *turned_lanes = lanes + LANES * columns, *own_lanes = turned_lanes + LANES * columns;
    memset(lanes, 0, (size_t)(3 * LANES * columns) * sizeof *lanes);
    for (int64_t first = 0; first < all; first += CHAIN) {
        const int64_t count = all - first < CHAIN ? all - first : CHAIN;
        const Rows part = {first, count, at};
        const float *gates = r->of_gates + first * columns;
        if (r->of_x) {
            const Product product = {
                .count = 1, .rows = count, .columns = r->features, .terms = columns, .a = gates, .a_row = columns,
                .a_column = 1, .b = at->to_input, .offsets = at->packed, .panel_step = columns * PANEL_ROW,
                .c = r->of_x + first * r->features, .c_row = r->features,
            };
            multiply(&product, NULL);
        }
        continue_weights(&part, columns, gates, columns, r->features, r->x + first * r->features, at->features,
                         r->of_to_input);
        add_rows_to_lanes(count, columns, gates, lanes);
        const float *products = turned(r, &part, columns, r->of_gates, at->turned);
        const float *states = turned(r, &part, hidden, before_step(r, r->states, 0), at->turned + count * columns);
        continue_weights(&part, same, products, columns, hidden, states, at->hidden, r->of_to_state);
        if (r->is_reversed) add_rows_to_lanes(count, columns, products, turned_lanes);
        if (same < columns) {
            const float *own = candidates(r, &part, at->turned + count * (columns + hidden));
            continue_weights(&part, hidden, own, hidden, hidden, states, at->hidden, r->of_to_state + same * hidden);
            add_rows_to_lanes(count, hidden, own, own_lanes);
        }
    }
    halve(columns, lanes, r->of_input_bias);
    halve(columns, r->is_reversed ? turned_lanes : lanes, r->of_state_bias);
    if (same < columns) halve(hidden, own_lanes, r->of_state_bias + same);
}

void recur_back(const Recurrence *r) {
    const int64_t columns = r->gates_count * r->hidden;
    const Pieces at = pieces_of(r, 1);
    space(columns, PANEL_ROW, at.packed);
    space(CHAIN, r->features, at.features);
    space(CHAIN, r->hidden, at.hidden);
    back_through_steps(r, &at);
    if (r->of_x) pack_right(columns, r->features, r->to_input, r->features, 1, at.to_input);
    add_up(r, &at);
}
