/* Convolutions of images whose batch is innermost: see convolution.c. */
#ifndef LOCKSTEP_CONVOLUTION_H
#define LOCKSTEP_CONVOLUTION_H

#include "product.h"

/* Sizes of one group: x (channels, height, width, images), padded; kernels (outputs, channels, kernel_height,
   kernel_width); y (outputs, rows, columns, images). */
typedef struct {
    int64_t channels, height, width, images, outputs, kernel_height, kernel_width, stride_y, stride_x, dilation_y,
        dilation_x;
    /* Of the padded height and width, what the gradient to the input leaves out at each side. */
    int64_t padding_y, padding_x;
} Convolution;

INLINE int64_t rows_of(const Convolution *c) {
    return (c->height - c->dilation_y * (c->kernel_height - 1) - 1) / c->stride_y + 1;
}
INLINE int64_t columns_of(const Convolution *c) {
    return (c->width - c->dilation_x * (c->kernel_width - 1) - 1) / c->stride_x + 1;
}

/* Floats of scratch memory that any of the three takes. */
int64_t convolution_scratch(const Convolution *c);

void convolve(const Convolution *c, const float *x, const float *kernels, const float *bias, float *y, float *scratch);
void convolve_to_input(const Convolution *c, const float *gradient, const float *kernels, float *x, float *scratch);
void convolve_to_kernels(const Convolution *c, const float *gradient, const float *x, float *kernels, float *scratch);

#endif
