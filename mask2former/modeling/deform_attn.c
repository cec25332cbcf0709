/* The sampling of deformable attention on CPUs, and its gradients, for `deform_attn_compiled.py`.

   Arrays are as `deform_attn.py` says, but for the values, which lie head by head: (B, M, S, D). All are
   float32, but for sums that are rounded to bfloat16 if that is wanted.
   Threads take tasks from one counter. What a task writes no other task writes or reads, and tasks are the same for any
   number of threads, so that results are, too. Nothing outside of the given arrays is read or written, wherever points
   are. */

#include <pthread.h>
#include <stdint.h>
#include <string.h>

#if defined(MAY_CLONE) && defined(__x86_64__)
#define FOR_EVERY_CPU __attribute__((target_clones("default", "arch=haswell", "avx512f")))
#else
#define FOR_EVERY_CPU
#endif
#define INLINE static inline __attribute__((always_inline))

enum { LANES = 16, USUAL_DIM = 32, BLOCK = 64, BORDER = 2, MAX_POINTS = 64, MAX_THREADS = 256 };

typedef float Lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t Words __attribute__((vector_size(4 * LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * LANES)));

typedef struct {
    const int64_t *sizes; /* H_1, W_1, H_2, ... */
    int64_t images, heads, cells, dim, levels, points_per_level, queries;
    int64_t num_points; /* of a query and head */
    const float *value, *points, *weights, *grad;
    void *out;
    int is_bfloat16; /* out, which otherwise is float32 */
    float *grad_value, *grad_points, *grad_weights;
    const float *projected, *bias, *starts, *reach; /* instead of points, see sum_projected */
    int64_t projected_rows, start_images;
} Call;

/* One of the points of each query of a block. */
typedef struct {
    int64_t below;         /* numbers from a cell to the one below */
    int32_t cell[BLOCK];   /* the one left above */
    int32_t inside[BLOCK]; /* a bit for each of the four: left above, right above, left below, right below */
    float share[4][BLOCK]; /* what they count */
    float x_part[BLOCK], y_part[BLOCK];
} Place;

INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

INLINE Lanes load(const float *from, int64_t count) {
    Lanes lanes = {0};
    memcpy(&lanes, from, count * sizeof *from);
    return lanes;
}

/* Cell before a point, and how far the point is beyond it; cells far outside stand for all beyond. The part is taken of a
   positive number, as in `sample_by_bags`, and rounded as there. */
INLINE int32_t cell_before(float point, float size, float *part) {
    float counted = point + BORDER, near = counted > 0 ? counted : 0; /* also where the point is not a number */
    near = near < size + BORDER ? near : size + BORDER;
    int32_t cell = (int32_t)near;
    *part = near - cell + (point - point); /* not a number remains one */
    return cell - BORDER;
}

/* Where the points of `count` queries of a head are; `skip` is from one point to the next in x and y. */
INLINE void locate(const Call *call, const float *x, const float *y, int64_t skip, const float *weight, int64_t count,
                   Place *places) {
    int32_t start = 0;
    for (int64_t level = 0; level < call->levels; level++) {
        int32_t height = call->sizes[2 * level], width = call->sizes[2 * level + 1];
        for (int64_t point = 0; point < call->points_per_level; point++, places++) {
            places->below = width * call->dim;
            for (int64_t q = 0; q < count; q++) {
                float x_part, y_part;
                int32_t column = cell_before(x[q], width, &x_part), line = cell_before(y[q], height, &y_part);
                uint32_t left = (uint32_t)column < (uint32_t)width, right = (uint32_t)column + 1 < (uint32_t)width;
                uint32_t above = (uint32_t)line < (uint32_t)height, below = (uint32_t)line + 1 < (uint32_t)height;
                places->cell[q] = start + line * width + column;
                places->inside[q] = (left | right << 1) * above | (left | right << 1) * below << 2;
                places->x_part[q] = x_part;
                places->y_part[q] = y_part;
                float on_right = weight[q] * x_part, on_left = weight[q] - on_right;
                float right_below = on_right * y_part, left_below = on_left * y_part;
                places->share[0][q] = on_left - left_below;
                places->share[1][q] = on_right - right_below;
                places->share[2][q] = left_below;
                places->share[3][q] = right_below;
            }
            x += skip, y += skip, weight += call->queries;
        }
        start += height * width;
    }
}

INLINE void locate_given(const Call *call, int64_t image, int64_t head, int64_t query, int64_t count, Place *places) {
    int64_t rows = call->heads * call->num_points, row = head * call->num_points;
    const float *x = call->points + (image * 2 * rows + row) * call->queries + query;
    const float *weight = call->weights + (image * rows + row) * call->queries + query;
    locate(call, x, x + rows * call->queries, call->queries, weight, count, places);
}

/* The same from what a linear map says of the queries, see sum_projected. */
INLINE void locate_projected(const Call *call, int64_t image, int64_t head, int64_t query, int64_t count,
                             Place *places) {
    float points[2][MAX_POINTS][BLOCK];
    int64_t rows = call->heads * call->num_points, first_row = head * call->num_points;
    for (int axis = 0; axis < 2; axis++) {
        for (int64_t k = 0; k < call->num_points; k++) {
            int64_t row = axis * rows + first_row + k, level = k / call->points_per_level;
            const float *projected = call->projected + (image * call->projected_rows + row) * call->queries + query;
            int64_t start_row = ((call->start_images == 1 ? 0 : image) * 2 + axis) * call->levels + level;
            const float *start = call->starts + start_row * call->queries + query;
            float *point = points[axis][k], bias = call->bias[row];
            for (int64_t q = 0; q < count; q++) point[q] = projected[q] + bias;
            if (call->reach) {
                const float *reach = call->reach + start_row * call->queries + query;
                for (int64_t q = 0; q < count; q++) point[q] *= reach[q];
            }
            for (int64_t q = 0; q < count; q++) point[q] += start[q];
        }
    }
    const float *weight = call->weights + (image * rows + first_row) * call->queries + query;
    locate(call, points[0][0], points[1][0], BLOCK, weight, count, places);
}

INLINE void store(void *into, int64_t place, Lanes lanes, int64_t count, int is_bfloat16) {
    if (!is_bfloat16) {
        memcpy((float *)into + place, &lanes, 4 * count);
        return;
    }
    Words bits = (Words)lanes;
    Halves halves = __builtin_convertvector((bits + 0x7FFF + (bits >> 16 & 1)) >> 16, Halves); /* to the nearest */
    Halves broken = __builtin_convertvector((Words)(lanes != lanes), Halves);                /* all ones, or none */
    halves = (halves & ~broken) | (broken & 0x7FC0);
    memcpy((uint16_t *)into + place, &halves, 2 * count);
}

/* Sum `n` (1 or 2) times `count` (up to 16) channels of query q of a block: left above of all points, then right above,
   and so on, as `sample_by_bags` does. */
INLINE void sum_lanes(const Call *call, const Place *places, int64_t q, int64_t start, int64_t out, int n,
                      int64_t count, int is_bfloat16) {
    static const float outside[2 * LANES]; /* zeros, times which a share that is not a number remains one */
    Lanes sum[2] = {{0}, {0}};
    for (int corner = 0; corner < 4; corner++) {
        for (const Place *place = places; place < places + call->num_points; place++) {
            int64_t step = (corner & 1 ? call->dim : 0) + (corner & 2 ? place->below : 0);
            const float *cell = call->value + (start + place->cell[q] * call->dim + step);
            const float *from = place->inside[q] >> corner & 1 ? cell : outside;
            for (int i = 0; i < n; i++) sum[i] += place->share[corner][q] * load(from + i * LANES, count);
        }
    }
    for (int i = 0; i < n; i++) store(call->out, out + i * LANES, sum[i], count, is_bfloat16);
}

INLINE void sum_query(const Call *call, const Place *places, int64_t q, int64_t start, int64_t out, int is_bfloat16) {
    if (call->dim == USUAL_DIM) {
        sum_lanes(call, places, q, start, out, USUAL_DIM / LANES, LANES, is_bfloat16);
        return;
    }
    if (call->dim == LANES) { /* of small networks */
        sum_lanes(call, places, q, start, out, 1, LANES, is_bfloat16);
        return;
    }
    for (int64_t channel = 0; channel < call->dim; channel += LANES) {
        int64_t count = smaller(LANES, call->dim - channel);
        sum_lanes(call, places, q, start + channel, out + channel, 1, count, is_bfloat16);
    }
}

/* A task is a block of queries of a head of an image. */
FOR_EVERY_CPU void sum_block(const Call *call, int64_t task) {
    int64_t blocks = (call->queries + BLOCK - 1) / BLOCK;
    int64_t image = task / blocks / call->heads, head = task / blocks % call->heads, query = task % blocks * BLOCK;
    int64_t count = smaller(BLOCK, call->queries - query);
    Place places[MAX_POINTS];
    if (call->projected) locate_projected(call, image, head, query, count, places);
    else locate_given(call, image, head, query, count, places);
    int64_t start = (image * call->heads + head) * call->cells * call->dim;
    int64_t out = ((image * call->queries + query) * call->heads + head) * call->dim;
    for (int64_t q = 0; q < count; q++, out += call->heads * call->dim) {
        if (call->is_bfloat16) sum_query(call, places, q, start, out, 1);
        else sum_query(call, places, q, start, out, 0);
    }
}

INLINE float total(const Lanes *lanes) {
    float sums[LANES];
    memcpy(sums, lanes, sizeof sums);
    for (int half = LANES / 2; half; half /= 2)
        for (int i = 0; i < half; i++) sums[i] += sums[i + half];
    return sums[0];
}

/* Gradients for query q of a block, `first` its place among the points and weights, `grad` that of its sums. */
INLINE void spread_query(const Call *call, const Place *places, int64_t q, int64_t start, const float *grad,
                         int64_t x_first, int64_t first, int64_t dim) {
    for (int64_t k = 0; k < call->num_points; k++, x_first += call->queries, first += call->queries) {
        const Place *place = &places[k];
        int64_t cell = start + place->cell[q] * dim;
        int64_t corners[4] = {cell, cell + dim, cell + place->below, cell + place->below + dim};
        Lanes dot[4] = {{0}}; /* of the values of each neighbour with the gradient */
        for (int corner = 0; corner < 4; corner++) {
            if (!(place->inside[q] >> corner & 1)) continue;
            for (int64_t channel = 0; channel < dim; channel += LANES) {
                int64_t count = smaller(LANES, dim - channel), at = corners[corner] + channel;
                Lanes slope = load(grad + channel, count);
                dot[corner] += slope * load(call->value + at, count);
                Lanes sum = load(call->grad_value + at, count) + place->share[corner][q] * slope;
                memcpy(call->grad_value + at, &sum, count * sizeof *grad);
            }
        }
        Lanes above = dot[1] - dot[0], below = dot[3] - dot[2], upper = dot[0] + place->x_part[q] * above;
        Lanes by_y = dot[2] + place->x_part[q] * below - upper, by_x = above + place->y_part[q] * (below - above);
        Lanes by_weight = upper + place->y_part[q] * by_y;
        float weight = call->weights[first];
        call->grad_points[x_first] = weight * total(&by_x);
        call->grad_points[x_first + call->heads * call->num_points * call->queries] = weight * total(&by_y);
        call->grad_weights[first] = total(&by_weight);
    }
}

/* A task is a head of an image, whose values no other task has. */
FOR_EVERY_CPU void spread_head(const Call *call, int64_t task) {
    int64_t image = task / call->heads, head = task % call->heads;
    int64_t start = task * call->cells * call->dim, row = task * call->num_points * call->queries;
    int64_t x_row = ((2 * image) * call->heads + head) * call->num_points * call->queries;
    Place places[MAX_POINTS];
    for (int64_t query = 0; query < call->queries; query += BLOCK) {
        int64_t count = smaller(BLOCK, call->queries - query);
        locate_given(call, image, head, query, count, places);
        for (int64_t q = 0; q < count; q++) {
            int64_t place = query + q;
            const float *grad = call->grad + ((image * call->queries + place) * call->heads + head) * call->dim;
            if (call->dim == USUAL_DIM)
                spread_query(call, places, q, start, grad, x_row + place, row + place, USUAL_DIM);
            else if (call->dim == LANES)
                spread_query(call, places, q, start, grad, x_row + place, row + place, LANES);
            else spread_query(call, places, q, start, grad, x_row + place, row + place, call->dim);
        }
    }
}

typedef struct {
    const Call *call;
    void (*work)(const Call *, int64_t);
    int64_t tasks, next;
} Queue;

static void *empty(void *argument) {
    Queue *queue = argument;
    int64_t task;
    while ((task = __atomic_fetch_add(&queue->next, 1, __ATOMIC_RELAXED)) < queue->tasks) queue->work(queue->call, task);
    return 0;
}

/* Threads live for one call, so that a forked process misses none. Where none can be had, this one does their work. */
static void run(Queue queue, int64_t threads) {
    pthread_t others[MAX_THREADS];
    int64_t wanted = smaller(MAX_THREADS, smaller(threads, queue.tasks) - 1), started = 0;
    while (started < wanted && pthread_create(&others[started], 0, empty, &queue) == 0) started++;
    empty(&queue);
    while (started > 0) pthread_join(others[--started], 0);
}

static Call describe(const int64_t *shape, const int64_t *sizes, const float *value, const float *points,
                     const float *weights) {
    return (Call){.sizes = sizes, .images = shape[0], .heads = shape[1], .cells = shape[2], .dim = shape[3],
                  .levels = shape[4], .points_per_level = shape[5], .queries = shape[6],
                  .num_points = shape[4] * shape[5], .value = value, .points = points, .weights = weights};
}

/* shape is B, M, S, D, L, P, Q; L * P is at most MAX_POINTS. */
void sum_points(const int64_t *shape, const int64_t *sizes, int64_t threads, int is_bfloat16, const float *value,
                const float *points, const float *weights, void *out) {
    Call call = describe(shape, sizes, value, points, weights);
    call.is_bfloat16 = is_bfloat16;
    call.out = out;
    run((Queue){&call, sum_block, call.images * call.heads * ((call.queries + BLOCK - 1) / BLOCK), 0}, threads);
}

/* The same for points that a linear map makes of the queries: projected is (B, projected_rows, Q), the first 2 * M * L * P
   rows x and y of the points, to which bias (projected_rows) is still to be added. Then they are multiplied by reach,
   unless that is null, and added to starts, both (start_images, 2, L, Q) with start_images 1 or B. */
void sum_projected(const int64_t *shape, const int64_t *sizes, int64_t threads, int is_bfloat16, const float *value,
                   const float *projected, const float *bias, const float *starts, const float *reach,
                   const float *weights, int64_t projected_rows, int64_t start_images, void *out) {
    Call call = describe(shape, sizes, value, 0, weights);
    call.is_bfloat16 = is_bfloat16;
    call.projected = projected, call.bias = bias, call.starts = starts, call.reach = reach;
    call.projected_rows = projected_rows, call.start_images = start_images;
    call.out = out;
    run((Queue){&call, sum_block, call.images * call.heads * ((call.queries + BLOCK - 1) / BLOCK), 0}, threads);
}

/* grad_value holds zeros. */
void spread_gradient(const int64_t *shape, const int64_t *sizes, int64_t threads, const float *value,
                     const float *points, const float *weights, const float *grad, float *grad_value,
                     float *grad_points, float *grad_weights) {
    Call call = describe(shape, sizes, value, points, weights);
    call.grad = grad;
    call.grad_value = grad_value, call.grad_points = grad_points, call.grad_weights = grad_weights;
    run((Queue){&call, spread_head, call.images * call.heads, 0}, threads);
}
