/* Convolutions without gathered columns, on images whose batch is innermost.

   What one element of all windows in a row of windows sees are neighbours in memory if the stride along a row is 1: so
   a convolution is a product whose right operand has its rows at the elements of the first window. With another stride
   the columns of the images are sorted by their remainder first, and the same holds. */
#include "convolution.h"
#include "kernels.h"

/* Columns of images that have one remainder by the stride. */
INLINE int64_t sorted_width(const Convolution *c) { return (c->width + c->stride_x - 1) / c->stride_x; }

/* Where a row of an image begins, and an element of a window in it, if the columns are sorted by their remainders. */
INLINE int64_t row_length(const Convolution *c) { return c->stride_x * sorted_width(c) * c->images; }
INLINE int64_t column_offset(const Convolution *c, int64_t q) {
    const int64_t column = q * c->dilation_x;
    return (column % c->stride_x * sorted_width(c) + column / c->stride_x) * c->images;
}

/* Columns of zeros before each row of gradients, and all columns of one, where the gradient to the input reads it. */
INLINE int64_t margin_of(const Convolution *c) {
    return ((c->kernel_width - 1) * c->dilation_x + c->stride_x - 1) / c->stride_x;
}
INLINE int64_t wide_columns_of(const Convolution *c) {
    const int64_t columns = columns_of(c), reached = sorted_width(c);
    return margin_of(c) + (columns > reached ? columns : reached);
}

/* Tiles of the gradient of kernels: outputs, and elements of a window. */
#if defined(TARGET_AVX512)
enum { OUTPUTS = 4, ELEMENTS = 6 };
#elif defined(TARGET_AVX2) || defined(TARGET_NEON)
enum { OUTPUTS = 3, ELEMENTS = 4 };
#else
enum { OUTPUTS = 1, ELEMENTS = 1 };
#endif

/* Floats of gradients that a tile of outputs reads before the next elements of a window: half of a first cache. */
enum { FLOATS_AT_ONCE = 1 << 12 };

INLINE int64_t whole_lines(int64_t floats) { return (floats + LANES - 1) / LANES * LANES; }
INLINE int64_t terms_of(const Convolution *c) { return c->channels * c->kernel_height * c->kernel_width; }

int64_t convolution_scratch(const Convolution *c) {
    const int64_t rows = rows_of(c), terms = terms_of(c), inner_terms = c->outputs * c->kernel_height * c->kernel_width;
    const int64_t sorted = c->stride_x == 1 ? 0 : whole_lines(c->channels * c->height * row_length(c));
    const int64_t forward = sorted + 2 * terms;
    const int64_t to_input = sorted + whole_lines(c->outputs * rows * wide_columns_of(c) * c->images)
        + whole_lines(c->channels * inner_terms) + 2 * inner_terms;
    const int64_t to_kernels = sorted + 2 * terms + OUTPUTS * terms * LANES;
    const int64_t most = forward > to_input ? forward : to_input;
    return PANEL + (most > to_kernels ? most : to_kernels) + LANES;
}

/* Sort the columns of rows of images by their remainders, or put them back. */
static void sort_columns(const Convolution *c, const float *x, float *sorted) {
    const int64_t images = c->images, width = sorted_width(c);
    for (int64_t row = 0; row < c->channels * c->height; row++) {
        for (int64_t column = 0; column < c->width; column++) {
            const int64_t place = column % c->stride_x * width + column / c->stride_x;
            memcpy(sorted + row * row_length(c) + place * images, x + (row * c->width + column) * images,
                   (size_t)images * sizeof *x);
        }
        /* Where the stride does not divide the width, nothing belongs: but it may be read next to what does. */
        for (int64_t column = c->width; column < c->stride_x * width; column++) {
            const int64_t place = column % c->stride_x * width + column / c->stride_x;
            memset(sorted + row * row_length(c) + place * images, 0, (size_t)images * sizeof *x);
        }
    }
}

/* Without the padding. */
static void unsort_columns(const Convolution *c, const float *sorted, float *x) {
    const int64_t images = c->images, width = sorted_width(c);
    for (int64_t channel = 0; channel < c->channels; channel++) {
        for (int64_t row = c->padding_y; row < c->height - c->padding_y; row++) {
            const float *source = sorted + (channel * c->height + row) * row_length(c);
            for (int64_t column = c->padding_x; column < c->width - c->padding_x; column++, x += images) {
                const int64_t place = column % c->stride_x * width + column / c->stride_x;
                memcpy(x, source + place * images, (size_t)images * sizeof *x);
            }
        }
    }
}

/* Where the elements of the first window are: in row-major order of channel, row and column. */
static void window_offsets(const Convolution *c, int64_t *offsets) {
    for (int64_t channel = 0; channel < c->channels; channel++) {
        for (int64_t p = 0; p < c->kernel_height; p++) {
            for (int64_t q = 0; q < c->kernel_width; q++) {
                *offsets++ = (channel * c->height + p * c->dilation_y) * row_length(c) + column_offset(c, q);
            }
        }
    }
}

void convolve(const Convolution *c, const float *x, const float *kernels, const float *bias, float *y, float *scratch) {
    const int64_t rows = rows_of(c), width = columns_of(c) * c->images, terms = terms_of(c);
    int64_t *offsets = (int64_t *)(scratch + PANEL);
    if (c->stride_x != 1) {
        float *sorted = scratch + PANEL + 2 * terms;
        sort_columns(c, x, sorted);
        x = sorted;
    }
    window_offsets(c, offsets);
    Product product = {
        .count = 1, .rows = c->outputs, .columns = width, .terms = terms, .a = kernels, .a_row = terms, .a_column = 1,
        .offsets = offsets, .c_row = rows * width, .bias = bias,
    };
    for (int64_t row = 0; row < rows; row++) {
        show_running();
        product.b = x + row * c->stride_y * row_length(c);
        product.c = y + row * width;
        multiply(&product, scratch);
    }
}

/* Which rows, or columns, of a kernel meet an element whose remainder by the stride is `remainder`. */
INLINE int meets(int64_t position, int64_t dilation, int64_t stride, int64_t remainder) {
    return position * dilation % stride == remainder;
}

void convolve_to_input(const Convolution *c, const float *gradient, const float *kernels, float *x, float *scratch) {
    const int64_t rows = rows_of(c), columns = columns_of(c), images = c->images, margin = margin_of(c);
    const int64_t wide = wide_columns_of(c) * images, terms = terms_of(c), outputs = c->outputs;
    const int64_t most_terms = outputs * c->kernel_height * c->kernel_width;
    float *padded = scratch + PANEL, *turned = padded + whole_lines(outputs * rows * wide);
    int64_t *offsets = (int64_t *)(turned + whole_lines(c->channels * most_terms));
    float *result = c->stride_x == 1 ? x : (float *)(offsets + most_terms);
    for (int64_t row = 0; row < outputs * rows; row++) {
        float *target = padded + row * wide;
        const int64_t before = margin * images, inside = columns * images;
        memset(target, 0, (size_t)before * sizeof *target);
        memcpy(target + before, gradient + row * inside, (size_t)inside * sizeof *target);
        memset(target + before + inside, 0, (size_t)(wide - before - inside) * sizeof *target);
    }
    for (int64_t above = 0; above < c->stride_y; above++) {
        for (int64_t beside = 0; beside < c->stride_x; beside++) {
            /* The kernels' elements that meet such pixels, in the order of the terms: row, output, column; and what they
               see, from the row of windows whose first row of the kernel meets a pixel's. */
            int64_t row_terms = 0, count = 0;
            for (int64_t q = 0; q < c->kernel_width; q++) row_terms += outputs * meets(q, c->dilation_x, c->stride_x, beside);
            for (int64_t p = 0; p < c->kernel_height; p++) {
                if (!meets(p, c->dilation_y, c->stride_y, above)) continue;
                for (int64_t output = 0; output < outputs; output++) {
                    const int64_t row = (output * rows - (p * c->dilation_y - above) / c->stride_y) * wide;
                    for (int64_t q = 0; q < c->kernel_width; q++) {
                        if (!meets(q, c->dilation_x, c->stride_x, beside)) continue;
                        offsets[count] = row + (margin + (beside - q * c->dilation_x) / c->stride_x) * images;
                        for (int64_t channel = 0; channel < c->channels; channel++) {
                            turned[channel * most_terms + count] =
                                kernels[output * terms + (channel * c->kernel_height + p) * c->kernel_width + q];
                        }
                        count++;
                    }
                }
            }
            /* Not all columns have this remainder if the stride does not divide the width: the rest is left zero. */
            const int64_t width = result == x
                ? (c->width - 2 * c->padding_x) * images
                : (c->width - beside + c->stride_x - 1) / c->stride_x * images;
            const int64_t height = result == x ? c->height - 2 * c->padding_y : c->height;
            const int64_t length = result == x ? width : row_length(c);
            Product product = {
                .count = 1, .rows = c->channels, .columns = width, .a_row = most_terms, .a_column = 1, .c_row = height * length,
            };
            for (int64_t y = above; width > 0 && y < c->height; y += c->stride_y) {
                if (y < c->padding_y || y >= c->height - c->padding_y) continue;
                show_running();
                /* Rows of the kernel that see no window below the image, or above it, come first, or last. */
                const int64_t window = (y - above) / c->stride_y;
                int64_t below = 0, seen = 0;
                for (int64_t p = 0; p < c->kernel_height; p++) {
                    if (!meets(p, c->dilation_y, c->stride_y, above)) continue;
                    const int64_t row = window - (p * c->dilation_y - above) / c->stride_y;
                    below += row >= rows;
                    seen += row >= 0 && row < rows;
                }
                product.terms = seen * row_terms;
                product.a = turned + below * row_terms;
                product.offsets = offsets + below * row_terms;
                product.b = padded + window * wide + (result == x ? c->padding_x * images : 0);
                product.c = result == x
                    ? x + (y - c->padding_y) * length
                    : result + y * length + beside * sorted_width(c) * images;
                multiply(&product, scratch);
            }
        }
    }
    if (result != x) unsort_columns(c, result, x);
}

/* What a tile of the gradient of kernels reads: rows of gradients and of images, `length` floats each. */
typedef struct {
    int64_t rows, length;
    const float *gradient;
    int64_t gradient_output, gradient_row;
    const float *x;
    const int64_t *offsets;
    int64_t x_row;
    float *lanes; /* sixteen for each element */
    int64_t lanes_output;
} KernelTile;

/* One line of lanes of all rows; the lanes stay in registers for a part of a line at a time. */
INLINE void kernel_tile(const int outputs, const int elements, const KernelTile *t) {
    UNROLL for (int d = 0; d < LANES; d += WIDTH) {
        V sums[OUTPUTS][ELEMENTS];
        UNROLL for (int o = 0; o < outputs; o++) {
            UNROLL for (int e = 0; e < elements; e++) sums[o][e] = load(t->lanes + o * t->lanes_output + e * LANES + d);
        }
        for (int64_t row = 0; row < t->rows; row++) {
            const float *gradient = t->gradient + row * t->gradient_row, *x = t->x + row * t->x_row;
            int64_t j = d;
            for (; j + WIDTH <= t->length; j += LANES) {
                V left[OUTPUTS];
                UNROLL for (int o = 0; o < outputs; o++) left[o] = load(gradient + o * t->gradient_output + j);
                UNROLL for (int e = 0; e < elements; e++) {
                    V right = load(x + t->offsets[e] + j);
                    UNROLL for (int o = 0; o < outputs; o++) sums[o][e] = fma_(left[o], right, sums[o][e]);
                }
            }
            /* Lanes beyond the end keep what they have: a product by zero could change the sign of a zero. */
            if (j < t->length) {
                const int64_t last = t->length - j;
                float kept[WIDTH];
                UNROLL for (int o = 0; o < outputs; o++) {
                    V left = load_first(gradient + o * t->gradient_output + j, last);
                    UNROLL for (int e = 0; e < elements; e++) {
                        V right = load_first(x + t->offsets[e] + j, last);
                        store(kept, sums[o][e]);
                        store_first(kept, fma_(left, right, sums[o][e]), last);
                        sums[o][e] = load(kept);
                    }
                }
            }
        }
        UNROLL for (int o = 0; o < outputs; o++) {
            UNROLL for (int e = 0; e < elements; e++) store(t->lanes + o * t->lanes_output + e * LANES + d, sums[o][e]);
        }
    }
}

#define KERNEL_TILE(outputs, elements) \
    static __attribute__((noinline)) void kernel_tile_##outputs##_##elements(const KernelTile *t) { \
        kernel_tile(outputs, elements, t); \
    }
typedef void KernelTileFunction(const KernelTile *t);
#if defined(TARGET_AVX512)
#define KERNEL_TILES(outputs) KERNEL_TILE(outputs, 1) KERNEL_TILE(outputs, 2) KERNEL_TILE(outputs, 3) \
    KERNEL_TILE(outputs, 4) KERNEL_TILE(outputs, 5) KERNEL_TILE(outputs, 6)
#define KERNEL_TILE_NAMES(outputs) {kernel_tile_##outputs##_1, kernel_tile_##outputs##_2, kernel_tile_##outputs##_3, \
    kernel_tile_##outputs##_4, kernel_tile_##outputs##_5, kernel_tile_##outputs##_6}
KERNEL_TILES(1) KERNEL_TILES(2) KERNEL_TILES(3) KERNEL_TILES(4)
static KernelTileFunction *const KERNEL_TILES_BY_SIZE[OUTPUTS][ELEMENTS] = {
    KERNEL_TILE_NAMES(1), KERNEL_TILE_NAMES(2), KERNEL_TILE_NAMES(3), KERNEL_TILE_NAMES(4)};
#elif defined(TARGET_AVX2) || defined(TARGET_NEON)
#define KERNEL_TILES(outputs) KERNEL_TILE(outputs, 1) KERNEL_TILE(outputs, 2) KERNEL_TILE(outputs, 3) \
    KERNEL_TILE(outputs, 4)
#define KERNEL_TILE_NAMES(outputs) {kernel_tile_##outputs##_1, kernel_tile_##outputs##_2, kernel_tile_##outputs##_3, \
    kernel_tile_##outputs##_4}
KERNEL_TILES(1) KERNEL_TILES(2) KERNEL_TILES(3)
static KernelTileFunction *const KERNEL_TILES_BY_SIZE[OUTPUTS][ELEMENTS] = {
    KERNEL_TILE_NAMES(1), KERNEL_TILE_NAMES(2), KERNEL_TILE_NAMES(3)};
#else
KERNEL_TILE(1, 1)
static KernelTileFunction *const KERNEL_TILES_BY_SIZE[OUTPUTS][ELEMENTS] = {{kernel_tile_1_1}};
#endif

void convolve_to_kernels(const Convolution *c, const float *gradient, const float *x, float *kernels, float *scratch) {
    const int64_t rows = rows_of(c), length = columns_of(c) * c->images, terms = terms_of(c);
    int64_t *offsets = (int64_t *)scratch;
    float *lanes = scratch + whole_lines(2 * terms);
    if (c->stride_x != 1) {
        float *sorted = lanes + OUTPUTS * terms * LANES;
        sort_columns(c, x, sorted);
        x = sorted;
    }
    window_offsets(c, offsets);
    const int64_t floats = OUTPUTS * length;
    const int64_t rows_at_once = floats >= FLOATS_AT_ONCE ? 1 : FLOATS_AT_ONCE / (floats ? floats : 1);
    for (int64_t output = 0, outputs; output < c->outputs; output += outputs) {
        outputs = c->outputs - output < OUTPUTS ? c->outputs - output : OUTPUTS;
        memset(lanes, 0, (size_t)(outputs * terms * LANES) * sizeof *lanes);
        for (int64_t row = 0; row < rows; row += rows_at_once) {
            show_running();
            for (int64_t term = 0, elements; term < terms; term += elements) {
                elements = terms - term < ELEMENTS ? terms - term : ELEMENTS;
                const KernelTile tile = {
                    .rows = rows - row < rows_at_once ? rows - row : rows_at_once, .length = length,
                    .gradient = gradient + (output * rows + row) * length, .gradient_output = rows * length,
                    .gradient_row = length, .x = x + row * c->stride_y * row_length(c), .offsets = offsets + term,
                    .x_row = c->stride_y * row_length(c), .lanes = lanes + term * LANES, .lanes_output = terms * LANES,
                };
                KERNEL_TILES_BY_SIZE[outputs - 1][elements - 1](&tile);
            }
        }
        for (int64_t o = 0; o < outputs; o++) {
            for (int64_t term = 0; term < terms; term++) {
                kernels[(output + o) * terms + term] = halved(lanes + (o * terms + term) * LANES);
            }
        }
    }
}
