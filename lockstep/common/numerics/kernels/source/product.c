/* Products of matrices, by tiles whose elements stay in registers.

   Each element of a result is the sum of chains of 256 fused multiply-adds, added in order (K1 of the contract). The
   elements do not depend on one another, so tiles, panels and the width of vectors are free. Rows of the right operand
   may lie anywhere: a convolution needs no copy of its windows. The products of several micro-batches are added over
   their tree while a tile is in the first cache, so that the sum is written once. */
#include "product.h"

#include "kernels.h"

/* Halves of a tree over up to 2^LEVELS products. */
enum { LEVELS = 20 };

/* A tile of ROWS rows, and where one of its vectors lies. */
enum { TILE_ROW = PANEL_ROW, TILE = ROWS * TILE_ROW };

/* A part of a matrix that is added to the sums of a tile before they are written. */
typedef struct {
    const float *from;
    int64_t row;
} Addend;

/* What a chain of products of a tile reads and writes. */
typedef struct {
    const float *a; /* an element lies at row * a_row + term * a_column */
    int64_t a_row, a_column;
    const float *b; /* a row begins at offsets[term] */
    const int64_t *offsets;
    int64_t length, last; /* terms, and columns of the last vector */
    float *to;
    int64_t to_row;
    const Addend *addends; /* in their order, each to the left of the sum so far */
    int addends_count;
    int64_t repeats, a_next, b_next, to_next; /* for how many tiles, and how far the next one lies */
} Chain;

/* One chain, from 0, of each element of a tile, or of several. */
INLINE void chain(const int rows, const int vectors, const int tail, const int across, const Chain *c) {
    const int64_t a_row = c->a_row, a_column = c->a_column, last = c->last;
    const float *a = c->a, *b = c->b;
    float *to = c->to;
    for (int64_t repeat = 0; repeat < c->repeats; repeat++, a += c->a_next, b += c->b_next, to += c->to_next) {
        V sums[ROWS][VECTORS];
        UNROLL for (int i = 0; i < rows; i++) {
            UNROLL for (int v = 0; v < vectors; v++) sums[i][v] = all(0.0f);
        }
        for (int64_t k = 0; k < c->length; k++) {
            const float *row = b + c->offsets[k];
            V right[VECTORS];
            UNROLL for (int v = 0; v < vectors; v++) {
                right[v] = tail && v == vectors - 1 ? load_first(row + v * WIDTH, last) : load(row + v * WIDTH);
            }
            UNROLL for (int i = 0; i < rows; i++) {
                V left = all(across ? a[k * a_column + i] : a[i * a_row + k]);
                UNROLL for (int v = 0; v < vectors; v++) sums[i][v] = fma_(left, right[v], sums[i][v]);
            }
        }
        for (int addend = 0; addend < c->addends_count; addend++) {
            const float *from = c->addends[addend].from + (to - c->to);
            const int64_t row = c->addends[addend].row;
            UNROLL for (int i = 0; i < rows; i++) {
                UNROLL for (int v = 0; v < vectors; v++) {
                    const float *place = from + i * row + v * WIDTH;
                    sums[i][v] = add(tail && v == vectors - 1 ? load_first(place, last) : load(place), sums[i][v]);
                }
            }
        }
        UNROLL for (int i = 0; i < rows; i++) {
            UNROLL for (int v = 0; v < vectors; v++) {
                float *place = to + i * c->to_row + v * WIDTH;
                if (tail && v == vectors - 1) store_first(place, sums[i][v], last);
                else store(place, sums[i][v]);
            }
        }
    }
}

/* A function for each size of a tile, for whether its last vector is a part of one, and for the order of `a`. */
typedef void ChainFunction(const Chain *c);
#define TILE_OF(rows, vectors, tail, across) \
    static __attribute__((noinline)) void chain_##rows##_##vectors##_##tail##_##across(const Chain *c) { \
        chain(rows, vectors, tail, across, c); \
    }
#define TILES_OF(rows, vectors) \
    TILE_OF(rows, vectors, 0, 0) TILE_OF(rows, vectors, 0, 1) TILE_OF(rows, vectors, 1, 0) TILE_OF(rows, vectors, 1, 1)
#define NAMES_OF(rows, vectors) \
    { {chain_##rows##_##vectors##_0_0, chain_##rows##_##vectors##_0_1}, \
      {chain_##rows##_##vectors##_1_0, chain_##rows##_##vectors##_1_1} }
#if defined(TARGET_NEON)
#define TILES_OF_ROWS(rows) TILES_OF(rows, 1) TILES_OF(rows, 2) TILES_OF(rows, 3) TILES_OF(rows, 4)
#define NAMES_OF_ROWS(rows) {NAMES_OF(rows, 1), NAMES_OF(rows, 2), NAMES_OF(rows, 3), NAMES_OF(rows, 4)}
#elif defined(TARGET_AVX512)
#define TILES_OF_ROWS(rows) TILES_OF(rows, 1) TILES_OF(rows, 2) TILES_OF(rows, 3)
#define NAMES_OF_ROWS(rows) {NAMES_OF(rows, 1), NAMES_OF(rows, 2), NAMES_OF(rows, 3)}
#else
#define TILES_OF_ROWS(rows) TILES_OF(rows, 1) TILES_OF(rows, 2)
#define NAMES_OF_ROWS(rows) {NAMES_OF(rows, 1), NAMES_OF(rows, 2)}
#endif

TILES_OF_ROWS(1) TILES_OF_ROWS(2) TILES_OF_ROWS(3) TILES_OF_ROWS(4)
#if defined(TARGET_AVX512)
TILES_OF_ROWS(5) TILES_OF_ROWS(6) TILES_OF_ROWS(7) TILES_OF_ROWS(8)
#elif defined(TARGET_AVX2) || defined(TARGET_NEON)
TILES_OF_ROWS(5) TILES_OF_ROWS(6)
#endif

static ChainFunction *const CHAINS[ROWS][VECTORS][2][2] = {
    NAMES_OF_ROWS(1), NAMES_OF_ROWS(2), NAMES_OF_ROWS(3), NAMES_OF_ROWS(4),
#if defined(TARGET_AVX512)
    NAMES_OF_ROWS(5), NAMES_OF_ROWS(6), NAMES_OF_ROWS(7), NAMES_OF_ROWS(8),
#elif defined(TARGET_AVX2) || defined(TARGET_NEON)
    NAMES_OF_ROWS(5), NAMES_OF_ROWS(6),
#endif
};

/* The next part of what is left, near equal parts of at most `most`: 32 rows in tiles of 6 are 6, 6, 5, 5, 5, 5. */
INLINE int64_t part(int64_t left, int64_t most) {
    const int64_t parts = (left + most - 1) / most;
    return (left + parts - 1) / parts;
}

static void add_bias(const Product *p, int64_t rows, int64_t columns) {
    for (int64_t i = 0; i < rows; i++) {
        float *row = p->c + i * p->c_row;
        const V bias = all(p->bias[i]);
        int64_t j = 0;
        for (; j + WIDTH <= columns; j += WIDTH) store(row + j, add(load(row + j), bias));
        if (j < columns) store_first(row + j, add(load_first(row + j, columns - j), bias), columns - j);
    }
}

/* One tile of the result: the sum of chains, and of products over their tree. Sums of nodes that are not whole yet stay
   in the first cache; all others are added in registers. */
static void tile(const Product *p, int64_t rows, int64_t vectors, int64_t last) {
    ChainFunction *const add_chain = CHAINS[rows - 1][vectors - 1][last < WIDTH][p->a_column != 1];
    float level[LEVELS + 1][TILE];
    Addend addends[LEVELS + 2];
    Chain c = {.a_row = p->a_row, .a_column = p->a_column, .last = last, .addends = addends, .repeats = 1};
    /* Chains are added to one another first, and then to what is in c. */
    const int is_direct = p->count == 1 && !(p->adds && p->terms > CHAIN);
    int depth = 0;
    for (int64_t number = 0; number < p->count; number++) {
        const int is_last = number == p->count - 1;
        const Addend own = is_direct ? (Addend){p->c, p->c_row} : (Addend){level[depth], TILE_ROW};
        c.b = p->b + number * p->b_step;
        for (int64_t k = 0; k < p->terms || k == 0; k += CHAIN) {
            c.a = p->a + number * p->a_step + k * p->a_column;
            c.offsets = p->offsets + k;
            c.length = p->terms - k < CHAIN ? p->terms - k : CHAIN;
            c.to = (float *)own.from;
            c.to_row = own.row;
            c.addends_count = 0;
            if (k > 0 || (is_direct && (p->adds || p->continues))) addends[c.addends_count++] = own;
            if (!is_direct && k + CHAIN >= p->terms) {
                /* A node is whole after as many products as its number of leaves divides; all are in the end. */
                for (int64_t whole = number + 1; depth > 0 && (is_last || whole % 2 == 0); whole /= 2) {
                    addends[c.addends_count++] = (Addend){level[--depth], TILE_ROW};
                }
                c.to = is_last ? p->c : level[depth];
                c.to_row = is_last ? p->c_row : TILE_ROW;
                if (is_last && p->adds) addends[c.addends_count++] = (Addend){p->c, p->c_row};
            }
            add_chain(&c);
        }
        depth++;
    }
    if (p->bias) add_bias(p, rows, (vectors - 1) * WIDTH + last);
}

/* Tiles that lie side by side, or one above the other, if each of their elements is one chain. */
static void tiles(const Product *p, int64_t rows, int64_t vectors, int64_t last, int64_t count, int is_beside) {
    const int64_t width = vectors * WIDTH, columns = width - WIDTH + last;
    const Addend own = {p->c, p->c_row};
    const Chain c = {
        .a = p->a, .a_row = p->a_row, .a_column = p->a_column, .b = p->b, .offsets = p->offsets, .length = p->terms,
        .last = last, .to = p->c, .to_row = p->c_row, .addends = &own, .addends_count = p->adds || p->continues, .repeats = count,
        .a_next = is_beside ? 0 : rows * p->a_row, .b_next = is_beside ? width : 0,
        .to_next = is_beside ? width : rows * p->c_row,
    };
    CHAINS[rows - 1][vectors - 1][last < WIDTH][p->a_column != 1](&c);
    if (p->bias) add_bias(p, is_beside ? rows : count * rows, is_beside ? count * columns : columns);
}

/* How many tiles of the size of the next one come before there is one of another. */
static int64_t alike(int64_t left, int64_t size, int64_t most) {
    int64_t count = 1;
    for (left -= size; left >= size && part(left, most) == size; left -= size) count++;
    return count;
}

/* Panels of the right operands in a row: their rows may be pages apart, and each tile of rows reads them again. */
static void pack(Product *p, int64_t vectors, int64_t last, float *panel, int64_t *offsets) {
    const int64_t width = vectors * WIDTH, end = width - WIDTH;
    for (int64_t k = 0; k < p->terms; k++) offsets[k] = k * width;
    for (int64_t number = 0; number < p->count; number++) {
        for (int64_t k = 0; k < p->terms; k++) {
            const float *row = p->b + number * p->b_step + p->offsets[k];
            float *target = panel + (number * p->terms + k) * width;
            for (int64_t v = 0; v + 1 < vectors; v++) store(target + v * WIDTH, load(row + v * WIDTH));
            store(target + end, last < WIDTH ? load_first(row + end, last) : load(row + end));
        }
    }
    p->b = panel;
    p->b_step = p->terms * width;
    p->offsets = offsets;
}

/* Terms of a panel's column that take some microseconds, and after which it is worth it to show that we run. */
enum { LONG = 1 << 14 };

/* The result of terms that are added at once. */
static void multiply_terms(const Product *p, float *panel) {
    const int64_t all_vectors = (p->columns + WIDTH - 1) / WIDTH;
    const int is_one_chain = p->count == 1 && p->terms <= CHAIN;
    /* Columns outside, so that a panel is read by all rows; but if all of b is small, rows outside: they are written
       from end to end. */
    const int is_small = !p->panel_step && p->terms * p->columns * p->count <= 1 << 16;
    const float *packed = p->b;
    int64_t offsets[TERMS_AT_ONCE];
    for (int64_t i = 0, height; i < p->rows; i += height) {
        height = is_small ? part(p->rows - i, ROWS) : p->rows;
        for (int64_t v = 0, vectors, beside; v < all_vectors; v += beside * vectors) {
            if (p->rows * p->terms > LONG) show_running();
            vectors = part(all_vectors - v, VECTORS);
            /* Of those side by side, none may be cut off by the end of the columns. */
            beside = is_small && is_one_chain ? alike(p->columns / WIDTH - v, vectors, VECTORS) : 1;
            const int64_t left = p->columns - v * WIDTH;
            const int64_t last = left < vectors * WIDTH ? left - (vectors - 1) * WIDTH : WIDTH;
            Product q = *p;
            q.b = p->b + v * WIDTH;
            if (p->panel_step) {
                q.b = packed;
                packed += p->panel_step;
            } else if (!is_small && p->rows > 3 * ROWS && p->count * p->terms <= TERMS_AT_ONCE) {
                pack(&q, vectors, last, panel, offsets);
            }
            for (int64_t j = i, rows, above; j < i + height; j += above * rows) {
                rows = part(i + height - j, ROWS);
                above = !is_small && is_one_chain ? alike(i + height - j, rows, ROWS) : 1;
                q.a = p->a + j * p->a_row;
                q.c = p->c + j * p->c_row + v * WIDTH;
                q.bias = p->bias ? p->bias + j : NULL;
                if (is_one_chain) tiles(&q, rows, vectors, last, is_small ? beside : above, is_small);
                else tile(&q, rows, vectors, last);
            }
        }
    }
}

void multiply(const Product *product, float *panel) {
    if (product->count > 1 || product->adds || product->terms <= TERMS_AT_ONCE) {
        multiply_terms(product, panel);
        return;
    }
    for (int64_t k = 0; k < product->terms; k += TERMS_AT_ONCE) {
        Product p = *product;
        p.terms = product->terms - k < TERMS_AT_ONCE ? product->terms - k : TERMS_AT_ONCE;
        p.a = product->a + k * product->a_column;
        p.offsets = product->offsets + k;
        p.continues = k > 0;
        p.bias = k + TERMS_AT_ONCE < product->terms ? NULL : product->bias;
        multiply_terms(&p, panel);
    }
}

/* Four by four elements are turned in registers. */
#if defined(__clang__) || __GNUC__ >= 12
#define SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else /* gcc 11, Ubuntu 22.04's, knows its own name for it only */
typedef int32_t FourPlaces __attribute__((vector_size(16)));
#define SHUFFLE(a, b, ...) __builtin_shuffle(a, b, (FourPlaces){__VA_ARGS__})
#endif
INLINE Four four(const float *p) { Four v; memcpy(&v, p, sizeof v); return v; }
INLINE void put_four(float *p, Four v) { memcpy(p, &v, sizeof v); }

/* (rows, columns) with a stride of s_row -> (columns, rows) with a stride of d_row */
static void transpose(int64_t rows, int64_t columns, const float *s, int64_t s_row, float *d, int64_t d_row) {
    const int64_t whole_rows = rows / 4 * 4, whole_columns = columns / 4 * 4;
    for (int64_t j = 0; j < whole_columns; j += 4) {
        for (int64_t i = 0; i < whole_rows; i += 4) {
            const float *p = s + i * s_row + j;
            Four a = four(p), b = four(p + s_row), c = four(p + 2 * s_row), e = four(p + 3 * s_row);
            Four ac = SHUFFLE(a, c, 0, 4, 1, 5), be = SHUFFLE(b, e, 0, 4, 1, 5);
            Four ac2 = SHUFFLE(a, c, 2, 6, 3, 7), be2 = SHUFFLE(b, e, 2, 6, 3, 7);
            float *q = d + j * d_row + i;
            put_four(q, SHUFFLE(ac, be, 0, 4, 1, 5));
            put_four(q + d_row, SHUFFLE(ac, be, 2, 6, 3, 7));
            put_four(q + 2 * d_row, SHUFFLE(ac2, be2, 0, 4, 1, 5));
            put_four(q + 3 * d_row, SHUFFLE(ac2, be2, 2, 6, 3, 7));
        }
    }
    for (int64_t j = 0; j < columns; j++) {
        for (int64_t i = j < whole_columns ? whole_rows : 0; i < rows; i++) d[j * d_row + i] = s[i * s_row + j];
    }
}

/* Whether the products of a stack, which share their left operand, are made as one of all their columns: if those of each
   would fill less than four fifths of its vectors. */
INLINE int are_beside(int64_t count, int64_t columns) {
    return count > 1 && 5 * columns < 4 * ((columns + WIDTH - 1) / WIDTH * WIDTH);
}

int64_t product_scratch(int64_t count, int64_t shared_rows, int64_t columns, int64_t terms, int64_t b_column) {
    if (shared_rows && !are_beside(count, columns)) count = 1;
    const int64_t results = shared_rows && count > 1 ? count * shared_rows * columns : 0;
    return PANEL + 2 * terms + (b_column == 1 && !results ? 0 : count * terms * columns) + results + LANES;
}

void multiply_matrices(const Product *given, int64_t b_row, int64_t b_column, float *scratch) {
    Product product = *given;
    const int64_t terms = product.terms, columns = product.columns;
    int64_t *offsets = (int64_t *)(scratch + PANEL);
    if (b_column != 1) {
        float *turned = scratch + PANEL + 2 * terms;
        const int64_t distinct = product.b_step ? product.count : 1;
        for (int64_t number = 0; number < distinct; number++) {
            transpose(columns, terms, product.b + number * product.b_step, b_column, turned + number * terms * columns,
                      columns);
        }
        product.b = turned;
        product.b_step = product.b_step ? terms * columns : 0;
        b_row = columns;
    }
    for (int64_t k = 0; k < terms; k++) offsets[k] = k * b_row;
    product.offsets = offsets;
    multiply(&product, scratch);
}

/* Copy `columns` of rows of a matrix. */
static void copy_rows(int64_t rows, int64_t columns, const float *from, int64_t from_row, float *to, int64_t to_row) {
    for (int64_t i = 0; i < rows; i++, from += from_row, to += to_row) {
        int64_t j = 0;
        for (; j + WIDTH <= columns; j += WIDTH) store(to + j, load(from + j));
        if (j < columns) store_first(to + j, load_first(from + j, columns - j), columns - j);
    }
}

int64_t packed_size(int64_t terms, int64_t columns) {
    int64_t panels = 0;
    for (int64_t left = (columns + WIDTH - 1) / WIDTH; left > 0; left -= part(left, VECTORS)) panels++;
    return panels * terms * PANEL_ROW;
}

void pack_right(int64_t terms, int64_t columns, const float *b, int64_t b_row, int64_t b_column, float *to) {
    for (int64_t j = 0, width; j < columns; j += width, to += terms * PANEL_ROW) {
        width = part((columns - j + WIDTH - 1) / WIDTH, VECTORS) * WIDTH;
        const int64_t whole = columns - j < width ? columns - j : width;
        if (b_column == 1) copy_rows(terms, whole, b + j, b_row, to, PANEL_ROW);
        else transpose(whole, terms, b + j * b_column, b_column, to, PANEL_ROW);
    }
}

void multiply_stack(const Product *first, int64_t count, int64_t b_row, int64_t b_column, int64_t c_step, float *scratch) {
    Product p = *first;
    if (first->a_step || !are_beside(count, first->columns)) {
        for (int64_t number = 0; number < count; number++) {
            p.a = first->a + number * first->a_step;
            p.b = first->b + number * first->b_step;
            p.c = first->c + number * c_step;
            multiply_matrices(&p, b_row, b_column, scratch);
        }
        return;
    }
    const int64_t columns = first->columns, all = count * columns;
    float *right = scratch + PANEL + 2 * first->terms, *result = right + first->terms * all;
    for (int64_t number = 0; number < count; number++) {
        const float *b = first->b + number * first->b_step;
        if (b_column == 1) copy_rows(first->terms, columns, b, b_row, right + number * columns, all);
        else transpose(columns, first->terms, b, b_column, right + number * columns, all);
    }
    p.columns = p.c_row = all;
    p.b = right;
    p.c = result;
    multiply_matrices(&p, all, 1, scratch);
    for (int64_t number = 0; number < count; number++) {
        copy_rows(first->rows, columns, result + number * columns, all, first->c + number * c_step, first->c_row);
    }
}
