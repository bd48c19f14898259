/* The largest element of each window, and the way back. Images have their batch innermost, so vectors run over it. */
#include "kernels.h"

INLINE int64_t at_least(int64_t x, int64_t least) { return x < least ? least : x; }
INLINE int64_t at_most(int64_t x, int64_t most) { return x < most ? x : most; }

/* The part of a window that lies on the image: rows [top, bottom), columns [left, right). */
typedef struct { int64_t top, bottom, left, right; } Part;

INLINE Part part_of(const Pool *p, int64_t row, int64_t column) {
    const int64_t y = row * p->stride_y - p->padding_y, x = column * p->stride_x - p->padding_x;
    return (Part){at_least(y, 0), at_most(y + p->kernel_y, p->height), at_least(x, 0),
                  at_most(x + p->kernel_x, p->width)};
}

/* The first of the largest in row-major order; NaN if there is one. */
void pool_largest(const Pool *p, const float *x, float *y) {
    const int64_t images = p->images, row_length = p->width * images;
    for (int64_t channel = 0; channel < p->channels; channel++, x += p->height * row_length) {
        for (int64_t row = 0; row < p->rows; row++) {
            for (int64_t column = 0; column < p->columns; column++, y += images) {
                const Part part = part_of(p, row, column);
                for (int64_t n = 0; n < images; n += WIDTH) {
                    const int64_t left = images - n;
                    V largest = take(x + part.top * row_length + part.left * images + n, left);
                    for (int64_t i = part.top; i < part.bottom; i++) {
                        for (int64_t j = part.left; j < part.right; j++) {
                            const V value = take(x + i * row_length + j * images + n, left);
                            largest = choose(less(largest, value), value, choose(is_nan(value), value, largest));
                        }
                    }
                    give(y + n, largest, left);
                }
            }
        }
    }
}

/* Each window's gradient goes to the first element that is not smaller than its largest; what an element gets from
   several windows is added in their row-major order, from 0. */
void pool_largest_gradient(const Pool *p, const float *gradient, const float *x, const float *y, float *result) {
    const int64_t images = p->images, row_length = p->width * images;
    /* If each element is in one window, it is written once. */
    const int is_partition = p->kernel_y == p->stride_y && p->kernel_x == p->stride_x && !p->padding_y && !p->padding_x
        && p->rows * p->stride_y == p->height && p->columns * p->stride_x == p->width;
    if (!is_partition) memset(result, 0, (size_t)(p->channels * p->height * row_length) * sizeof *result);
    for (int64_t channel = 0; channel < p->channels; channel++) {
        for (int64_t row = 0; row < p->rows; row++) {
            for (int64_t column = 0; column < p->columns; column++, y += images, gradient += images) {
                const Part part = part_of(p, row, column);
                for (int64_t n = 0; n < images; n += WIDTH) {
                    const int64_t left = images - n;
                    const V largest = take(y + n, left);
                    V rest = take(gradient + n, left);
                    for (int64_t i = part.top; i < part.bottom; i++) {
                        for (int64_t j = part.left; j < part.right; j++) {
                            const int64_t place = i * row_length + j * images + n;
                            const M is_smaller = less(take(x + place, left), largest);
                            const V taken = choose(is_smaller, all(0.0f), rest);
                            give(result + place, is_partition ? add(all(0.0f), taken)
                                                              : add(take(result + place, left), taken), left);
                            rest = choose(is_smaller, rest, all(0.0f));
                        }
                    }
                }
            }
        }
        x += p->height * row_length;
        result += p->height * row_length;
    }
}
