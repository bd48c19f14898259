/* Products by tiles, for whatever multiplies matrices: see product.c. */
#ifndef LOCKSTEP_PRODUCT_H
#define LOCKSTEP_PRODUCT_H

#include "vector.h"

/* The largest tile: rows, and vectors of columns. Its accumulators leave registers for one row of the right operand. */
#if defined(TARGET_AVX512)
enum { ROWS = 8, VECTORS = 3 };
#elif defined(TARGET_AVX2)
enum { ROWS = 6, VECTORS = 2 };
#elif defined(TARGET_NEON)
enum { ROWS = 6, VECTORS = 4 };
#else
enum { ROWS = 4, VECTORS = 2 };
#endif

/* Terms that a tile adds before another tile begins: the rows of the right operand that it reads stay in a cache. */
enum { TERMS_AT_ONCE = 8 * CHAIN };

/* Floats of memory in which a panel of the right operand is put together. */
enum { PANEL_ROW = VECTORS * WIDTH, PANEL = TERMS_AT_ONCE * PANEL_ROW };

/* The sum of `count` products (rows, terms) by (terms, columns), over the tree of the contract. */
typedef struct {
    int64_t count, rows, columns, terms;
    const float *a; /* an element lies at row * a_row + term * a_column, of which one is 1, + number * a_step */
    int64_t a_row, a_column, a_step;
    const float *b; /* a row begins at offsets[term] + number * b_step, and has a stride of 1 */
    const int64_t *offsets;
    int64_t b_step;
    int64_t panel_step; /* how far the panels of a packed right operand lie apart; 0 if it is not packed */
    float *c;
    int64_t c_row;
    int adds;      /* the whole sum to what is in c */
    int continues; /* the chains that are in c already */
    const float *bias; /* added to each row of a single product, after all else; NULL for none */
} Product;

/* `panel` has room for PANEL floats. */
void multiply(const Product *product, float *panel);

/* The same of a right operand whose elements lie at term * b_row + column * b_column, of which one is 1; `offsets` need
   not be given. */
void multiply_matrices(const Product *given, int64_t b_row, int64_t b_column, float *scratch);

/* Pack a right operand of many products: panels of as many columns as a tile has, with a row of PANEL_ROW floats for each
   term. */
void pack_right(int64_t terms, int64_t columns, const float *b, int64_t b_row, int64_t b_column, float *to);
int64_t packed_size(int64_t terms, int64_t columns);

/* `count` products, each of which has a result of its own, the first one given. */
void multiply_stack(const Product *first, int64_t count, int64_t b_row, int64_t b_column, int64_t c_step, float *scratch);

/* Floats of scratch memory: of a sum of products, or of a stack of them that share a left operand of so many rows. */
int64_t product_scratch(int64_t count, int64_t shared_rows, int64_t columns, int64_t terms, int64_t b_column);

#endif
