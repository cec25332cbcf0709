/* The inner loops of runs.py and of evaluation/overlap.py, see compiled.py.

   They do what the numpy code there does, with the same results; that code says what the arrays are. Nothing outside of
   the given arrays is read or written, whatever a mask holds. */

#include <stdint.h>

enum { MAX_DIGITS = 6, MAX_DECIMALS = 9 }; /* of one number; more is unusual, and left to the slow reader */

typedef struct {
    const uint8_t *at, *stop;
    int is_string;
} Text;

/* The next number of counts in base 32, least digit first: 1, or 0 at the closing quotation mark, or -1. */
static int read_any_digits(Text *text, int32_t *value) {
    uint32_t sum = 0;
    for (int shift = 0; text->at < text->stop; shift += 5) {
        uint8_t digit = *text->at++;
        if (digit == '"') return shift == 0 && text->at == text->stop ? 0 : -1;
        if (digit == '\\' && (text->at == text->stop || *text->at++ != '\\')) return -1;
        digit -= '0';
        if (digit > 63 || shift == 5 * MAX_DIGITS) return -1;
        sum |= (uint32_t)(digit & 31) << shift;
        if (digit < 32) {
            *value = (int32_t)(digit & 16 ? sum | ~0u << (shift + 5) : sum);
            return 1;
        }
    }
    return -1;
}

static int32_t signed_digit(uint8_t digit) { return (digit ^ 16) - 16; }

/* The same, quickly where there are one or two digits: without a branch, since no processor guesses which. */
static int read_digits(Text *text, int32_t *value) {
    if (text->stop - text->at < 2) return read_any_digits(text, value);
    uint8_t digit = text->at[0] - '0', next = text->at[1] - '0';
    int has_two = digit >= 32;
    if (digit > 63 || digit == '\\' - '0' || (has_two & (next >= 32))) return read_any_digits(text, value);
    *value = has_two ? signed_digit(next) * 32 + (digit & 31) : signed_digit(digit);
    text->at += 1 + has_two;
    return 1;
}

/* The next number of a list, with the comma or bracket behind it: 1, or 0 behind the list, or -1. */
static int read_decimal(Text *text, int32_t *value) {
    if (text->at == text->stop) return text->at[-1] == ']' ? 0 : -1;
    while (text->at < text->stop && *text->at == ' ') text->at++;
    const uint8_t *opening = text->at;
    int32_t sum = 0;
    while (text->at < text->stop && (uint8_t)(*text->at - '0') < 10) {
        if (text->at - opening == MAX_DECIMALS) return -1;
        sum = 10 * sum + (*text->at++ - '0');
    }
    if (text->at == opening || text->at == text->stop) return -1;
    uint8_t closing = *text->at++;
    *value = sum;
    return closing == ',' || (closing == ']' && text->at == text->stop) ? 1 : -1;
}

/* The next run, which must fit into what is left of the frame: 1, or 0 behind the last one, or -1. */
static int read_run(Text *text, int64_t index, int32_t two_before, int64_t left, int32_t *run) {
    int32_t value = 0;
    int found = text->is_string ? read_digits(text, &value) : read_decimal(text, &value);
    if (found != 1) return found;
    int64_t length = (int64_t)value + (text->is_string && index > 2 ? two_before : 0);
    if (length < 0 || length > left) return -1;
    *run = (int32_t)length;
    return 1;
}

/* Masks 0..n-1, mask i behind stop[i - 1] in `text`: number of their runs, or -1 if one is broken or unusual. */
int64_t decode(const uint8_t *text, int64_t n, const int64_t *stop, const int64_t *num_pixels, const int64_t *offset,
               int32_t *start, int32_t *end, int64_t *first, int64_t *areas) {
    int64_t row = 0, begin = 0;
    first[0] = 0;
    for (int64_t mask = 0; mask < n; begin = stop[mask++]) {
        if (stop[mask] - begin < 2) return -1;
        Text rest = {text + begin + 1, text + stop[mask], text[begin] == '"'};
        if (!rest.is_string && text[begin] != '[') return -1;
        int64_t left = num_pixels[mask], place = offset[mask], area = 0, index = 0;
        int32_t background = 0, foreground = 0;
        int found;
        while ((found = read_run(&rest, index, background, left, &background)) == 1) {
            place += background;
            left -= background;
            start[row] = (int32_t)place;
            found = read_run(&rest, index + 1, foreground, left, &foreground);
            if (found == 1) {
                place += foreground;
                left -= foreground;
                area += foreground;
            }
            end[row++] = (int32_t)place;
            index += 1 + (found == 1);
            if (found != 1) break;
        }
        if (found != 0 || left != 0 || index == 0) return -1;
        first[mask + 1] = row;
        areas[mask] = area;
    }
    return row;
}

/* Cut the runs of n tubes where a column ends: number of pieces, of which no more than `room` are written. */
int64_t cut(const int32_t *start, const int32_t *end, int64_t n, const int64_t *first, int32_t height, int64_t room,
            int32_t *cut_start, int32_t *cut_end, int32_t *column, int64_t *cut_first) {
    int64_t row = 0;
    for (int64_t tube = 0; tube < n; tube++) {
        cut_first[tube] = row;
        int32_t x = 0, top = 0; /* of the column of the last run */
        for (int64_t run = first[tube]; run < first[tube + 1]; run++) {
            int32_t from = start[run], to = end[run];
            if (from - top >= height) {
                x = from - top < 2 * (int64_t)height ? x + 1 : from / height;
                top = x * height;
            }
            for (;; x++, top += height) {
                int is_last = to - top <= height;
                if (row < room) {
                    cut_start[row] = from > top ? from : top;
                    cut_end[row] = is_last ? to : top + height;
                    column[row] = x;
                }
                row++;
                if (is_last) break;
            }
        }
    }
    cut_first[n] = row;
    return row;
}

typedef struct {
    const int32_t *start, *end; /* ascending within a tube */
    const int64_t *first;       /* run at which each tube begins */
    const int64_t *areas;       /* of each tube and frame */
    int64_t num_frames;
} Tubes;

static int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

/* Pixels that two tubes share, or 0 as soon as they cannot be as many as needed. */
static int64_t shared(const Tubes *one, int64_t i, const Tubes *other, int64_t j, int64_t num_pixels, int64_t needed) {
    const int64_t num_frames = least(one->num_frames, other->num_frames);
    const int64_t *area = one->areas + i * one->num_frames, *other_area = other->areas + j * other->num_frames;
    const int32_t *start = one->start, *end = one->end, *other_start = other->start, *other_end = other->end;
    int64_t a = one->first[i], stop = one->first[i + 1], b = other->first[j], other_stop = other->first[j + 1];
    int64_t sum = 0, possible = 0;
    for (int64_t frame = 0; frame < num_frames; frame++) possible += least(area[frame], other_area[frame]);
    for (int64_t frame = 0; frame < num_frames; frame++) {
        if (sum + possible < needed) return 0;
        int64_t most = least(area[frame], other_area[frame]), before = frame * num_pixels, behind = before + num_pixels;
        if (most == 0) continue;
        possible -= most;
        while (a < stop && end[a] <= before) a++;
        while (b < other_stop && other_end[b] <= before) b++;
        while (a < stop && b < other_stop && start[a] < behind && other_start[b] < behind) {
            int32_t from = start[a] > other_start[b] ? start[a] : other_start[b], end_a = end[a], end_b = other_end[b];
            int32_t to = end_a < end_b ? end_a : end_b;
            sum += to > from ? to - from : 0;
            a += end_a <= end_b; /* no processor guesses which of them ends first */
            b += end_b <= end_a;
        }
    }
    return sum;
}

/* counts[p]: pixels that tube pairs[2 * p] of the first shares with tube pairs[2 * p + 1] of the others, see shared. */
void count_shared(const int32_t *start, const int32_t *end, const int64_t *first, const int64_t *areas,
                  int64_t num_frames, const int32_t *other_start, const int32_t *other_end, const int64_t *other_first,
                  const int64_t *other_areas, int64_t other_num_frames, int64_t num_pixels, int64_t n,
                  const int64_t *pairs, const int64_t *needed, int64_t *counts) {
    const Tubes one = {start, end, first, areas, num_frames};
    const Tubes other = {other_start, other_end, other_first, other_areas, other_num_frames};
    for (int64_t p = 0; p < n; p++)
        counts[p] = shared(&one, pairs[2 * p], &other, pairs[2 * p + 1], num_pixels, needed[p]);
}
