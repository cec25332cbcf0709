/* The inner loops of boundary.py: boundaries as columns of 64-bit words, bit r of a column being its pixel r.

   Positions of runs are counted from the start of their tube. */

#include <stdint.h>
#include <string.h>

#if defined(MAY_CLONE) && defined(__x86_64__)
#define CLONED __attribute__((target_clones("avx2", "popcnt", "default")))
#else
#define CLONED
#endif

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* First run of each frame of a tube, behind those that end before the frame; one more for the end of the tube. */
static void find_frames(const int32_t *end, int64_t run, int64_t stop, int64_t num_frames, int64_t num_pixels,
                        int64_t *first) {
    for (int64_t frame = 0; frame < num_frames; frame++) {
        while (run < stop && end[run] <= frame * num_pixels) run++;
        first[frame] = run;
    }
    first[num_frames] = stop;
}

/* Leftmost column and number of columns of each frame of the tubes at `index`; frames without the object have none. */
void find_columns(const int32_t *start, const int32_t *end, const int64_t *first, int64_t num_frames, int64_t height,
                  int64_t num_pixels, int64_t n, const int64_t *index, int64_t *first_run, int64_t *left,
                  int64_t *width) {
    for (int64_t i = 0; i < n; i++, first_run += num_frames + 1) {
        find_frames(end, first[index[i]], first[index[i] + 1], num_frames, num_pixels, first_run);
        for (int64_t frame = 0; frame < num_frames; frame++, left++, width++) {
            int64_t lowest = -1, highest = -1;
            for (int64_t run = first_run[frame]; run < first_run[frame + 1]; run++)
                if (end[run] > start[run]) {
                    if (lowest < 0) lowest = start[run];
                    highest = end[run] - 1;
                }
            *left = lowest < 0 ? 0 : (lowest - frame * num_pixels) / height;
            *width = lowest < 0 ? 0 : (highest - frame * num_pixels) / height - *left + 1;
        }
    }
}

static void set_bits(uint64_t *column, int64_t from, int64_t to) {
    if (from >= to) return;
    int64_t word = from >> 6, last = (to - 1) >> 6;
    uint64_t upper = ~0ull << (from & 63), lower = ~0ull >> (63 - ((to - 1) & 63));
    if (word == last) {
        column[word] |= upper & lower;
        return;
    }
    column[word] |= upper;
    while (++word < last) column[word] = ~0ull;
    column[last] |= lower;
}

/* Set the bits of a mask, and in `inner` those that stay when every column is eroded by `radius`. */
static void paint(const int32_t *start, const int32_t *end, int64_t n, int64_t origin, int64_t height,
                  int64_t num_words, int64_t radius, uint64_t *words, uint64_t *inner) {
    for (int64_t run = 0; run < n;) {
        int64_t from = start[run] - origin, to = end[run] - origin;
        while (++run < n && start[run] - origin <= to) to = end[run] - origin; /* a file may cut runs anywhere */
        for (int64_t x = from / height; from < to; x++) {
            int64_t top = x * height, stop = least(to, top + height);
            set_bits(words + x * num_words, from - top, stop - top);
            set_bits(inner + x * num_words, from - top + radius, stop - top - radius);
            from = stop;
        }
    }
}

/* Every word becomes the AND of itself and those of the next `window - 1` columns; n words in all. */
CLONED static void erode_across(uint64_t *words, int64_t n, int64_t num_words, int64_t window) {
    for (int64_t covered = 1; covered < window;) {
        int64_t step = least(covered, window - covered), kept = n - step * num_words;
        for (int64_t i = 0; i < kept; i++) words[i] &= words[i + step * num_words];
        for (int64_t i = kept > 0 ? kept : 0; i < n; i++) words[i] = 0;
        covered += step;
    }
}

CLONED static int64_t remove_and_count(uint64_t *words, const uint64_t *removed, int64_t n) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) sum += __builtin_popcountll(words[i] &= ~removed[i]);
    return sum;
}

CLONED static int64_t count_both(const uint64_t *one, const uint64_t *other, int64_t n) {
    int64_t sum = 0;
    for (int64_t i = 0; i < n; i++) sum += __builtin_popcountll(one[i] & other[i]);
    return sum;
}

/* Paint the boundaries of n tubes into `words`, which are zeros: frame f of tube i from column first[i * num_frames + f]
   on. `first_run`, `left` and `width` come from find_columns; `inner` has room for the columns of any frame. */
void draw_boundaries(const int32_t *start, const int32_t *end, int64_t n, int64_t num_frames, const int64_t *first_run,
                     const int64_t *left, const int64_t *width, const int64_t *first, int64_t height,
                     int64_t num_pixels, int64_t radius, uint64_t *words, uint64_t *inner, int64_t *areas) {
    const int64_t num_words = height / 64 + 1;
    for (int64_t i = 0; i < n * num_frames; i++) {
        int64_t tube = i / num_frames, frame = i % num_frames, run = first_run[i + tube];
        int64_t size = width[i] * num_words, shift = least(radius * num_words, size);
        uint64_t *own = words + first[i] * num_words;
        memset(inner, 0, (size_t)size * sizeof *inner);
        if (size)
            paint(start + run, end + run, first_run[i + tube + 1] - run, frame * num_pixels + left[i] * height, height,
                  num_words, radius, own, inner);
        erode_across(inner, size, num_words, 2 * radius + 1);
        /* A column's word in `inner` says what stays of the column `radius` further right. */
        areas[i] = count_both(own, own, shift) + remove_and_count(own + shift, inner, size - shift);
    }
}

/* Bits that two sets of n blocks of columns share, block i of both with the same number of columns. */
void count_common(const uint64_t *one, const uint64_t *other, int64_t num_words, int64_t n, const int64_t *first,
                  const int64_t *other_first, const int64_t *num_columns, int64_t *counts) {
    for (int64_t i = 0; i < n; i++)
        counts[i] = count_both(one + first[i] * num_words, other + other_first[i] * num_words,
                               num_columns[i] * num_words);
}
