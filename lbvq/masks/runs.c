/* The inner loops of runs.py, of evaluation/overlap.py and of files/mask_file.py, see compiled.py.

   They do what the numpy code there does, with the same results; that code says what the arrays are. Nothing outside of
   the given arrays is read or written, whatever a mask holds. */

#include <stdint.h>
#include <string.h>

enum { MAX_DIGITS = 6, MAX_DECIMALS = 9 }; /* of one number; more is unusual, and left to the slow reader */

typedef struct {
    const uint8_t *at, *stop;
    const uint8_t *readable; /* bytes up to here may be looked at, but belong to other masks */
    int is_canonical;        /* so far no number has a digit too many */
} Text;

/* The next number of counts in base 32, least digit first: 1, or 0 at the closing quotation mark, or -1. */
static int read_digits(Text *text, int32_t *value) {
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
            int32_t last_sign = shift ? *value >> (shift - 1) : 1; /* 0 or -1: the last digit says nothing new */
            text->is_canonical &= last_sign != 0 && last_sign != -1;
            return 1;
        }
    }
    return -1;
}

#if defined(__x86_64__) && defined(__GNUC__) && !defined(NO_VECTORS)
#include <immintrin.h>
#define LANES 8

static uint8_t to_front[256][16]; /* how to shuffle the 16-bit lanes that are set in a mask to the front */
static int has_vectors;

__attribute__((constructor)) static void prepare(void) {
    for (int set = 0; set < 256; set++)
        for (int lane = 0, place = 0; lane < LANES; lane++)
            if (set >> lane & 1) {
                to_front[set][2 * place] = (uint8_t)(2 * lane);
                to_front[set][2 * place++ + 1] = (uint8_t)(2 * lane + 1);
            }
    __builtin_cpu_init();
    has_vectors = __builtin_cpu_supports("sse4.1") && __builtin_cpu_supports("popcnt");
}

/* As many numbers of one or two digits as follow each other, several at once: how many. The digit before `at` must end
   a number. Up to `LANES` values more are written. */
__attribute__((target("sse4.1,popcnt"))) static int64_t read_short(Text *text, int32_t *values) {
    const __m128i zero = _mm_setzero_si128(), low = _mm_set1_epi8(31), sign = _mm_set1_epi8(16);
    const __m128i more = _mm_set1_epi8(32), one = _mm_set1_epi8(1), most = _mm_set1_epi8(63);
    const __m128i backslash = _mm_set1_epi8('\\' - '0');
    int32_t *next = values;
    const uint8_t *at = text->at;
    unsigned goes_on = 0, is_long = 0; /* goes_on: the digit before `at` is the first of two */
    while (text->readable - at >= LANES) {
        __m128i digits = _mm_sub_epi8(_mm_loadl_epi64((const __m128i *)at), _mm_set1_epi8('0'));
        __m128i before = _mm_sub_epi8(_mm_loadl_epi64((const __m128i *)(at - 1)), _mm_set1_epi8('0'));
        __m128i is_second = _mm_cmpeq_epi8(_mm_and_si128(before, more), more);
        __m128i is_usual = _mm_andnot_si128(_mm_cmpeq_epi8(digits, backslash),
                                            _mm_cmpeq_epi8(_mm_min_epu8(digits, most), digits));
        unsigned first = _mm_movemask_epi8(_mm_slli_epi16(digits, 2)) & 255, second = _mm_movemask_epi8(is_second);
        unsigned unusual = (~_mm_movemask_epi8(is_usual) | (first & second)) & 255;
        unsigned usual = unusual ? (unusual & -unusual) - 1 : 255; /* lanes before the first that is not */
        unsigned last = ~first & usual;
        __m128i value = _mm_sub_epi8(_mm_xor_si128(_mm_and_si128(digits, low), sign), sign);
        __m128i is_repeated = _mm_cmpeq_epi8(value, _mm_cmpeq_epi8(_mm_and_si128(before, sign), sign));
        is_long |= _mm_movemask_epi8(_mm_and_si128(is_repeated, is_second)) & last;
        __m128i factor = _mm_cvtepu8_epi16(_mm_max_epu8(_mm_and_si128(before, more), one)); /* 32 or 1 */
        __m128i rest = _mm_cvtepu8_epi16(_mm_and_si128(_mm_and_si128(before, low), is_second));
        __m128i joined = _mm_add_epi16(_mm_mullo_epi16(_mm_cvtepi8_epi16(value), factor), rest);
        joined = _mm_shuffle_epi8(joined, _mm_loadu_si128((const __m128i *)to_front[last]));
        _mm_storeu_si128((__m128i *)next, _mm_cvtepi16_epi32(joined));
        _mm_storeu_si128((__m128i *)(next + 4), _mm_cvtepi16_epi32(_mm_unpackhi_epi64(joined, zero)));
        next += _mm_popcnt_u32(last);
        if (unusual) {
            if (last) at += 32 - __builtin_clz(last), goes_on = 0; /* behind the last whole number */
            break;
        }
        at += LANES;
        goes_on = first >> 7;
    }
    text->at = at - goes_on;
    text->is_canonical &= !is_long;
    return next - values;
}
#else
enum { LANES = 0, has_vectors = 0 };
static int64_t read_short(Text *text, int32_t *values) { return 0; }
#endif

/* The numbers of a string: how many, or -1. */
static int64_t read_string(Text *text, int32_t *values) {
    int32_t *next = values;
    int found;
    while ((found = read_digits(text, next)) == 1) {
        next++;
        if (has_vectors) next += read_short(text, next);
    }
    return found == 0 ? next - values : -1;
}

/* The numbers of a list, without spaces before commas: how many, or -1. */
static int64_t read_list(Text *text, int32_t *values) {
    int32_t *next = values;
    uint8_t closing = ',';
    while (text->at < text->stop && closing == ',') {
        while (text->at < text->stop && *text->at == ' ') text->at++;
        const uint8_t *opening = text->at;
        int32_t sum = 0;
        while (text->at < text->stop && (uint8_t)(*text->at - '0') < 10) {
            if (text->at - opening == MAX_DECIMALS) return -1;
            sum = 10 * sum + (*text->at++ - '0');
        }
        if (text->at == opening || text->at == text->stop) return -1;
        closing = *text->at++;
        *next++ = sum;
    }
    return closing == ']' && text->at == text->stop ? next - values : -1;
}

/* Place n runs, or differences to the run two before, into the `left` pixels before `stop`: number of pairs, or -1. */
static int64_t place(const int32_t *values, int64_t n, int are_differences, int32_t left, int32_t stop, int32_t *start,
                     int32_t *end, int64_t *area, int *is_canonical) {
    int32_t background = 0, foreground = 0, sum = 0;
    int32_t wrong = 0; /* negative as soon as a run is, or is longer than what is left */
    int has_empty = 0;
    for (int64_t i = 0; i < n; i += 2) {
        background = values[i] + (are_differences && i > 2 ? background : 0);
        left -= background;
        wrong |= background | left;
        has_empty |= background == 0 && i > 0;
        start[i / 2] = stop - left;
        if (i + 1 < n) {
            foreground = values[i + 1] + (are_differences && i > 1 ? foreground : 0);
            left -= foreground;
            wrong |= foreground | left;
            has_empty |= foreground == 0;
            sum += foreground;
        }
        end[i / 2] = stop - left;
    }
    *area = sum;
    *is_canonical &= !has_empty;
    return wrong < 0 || left || n == 0 ? -1 : (n + 1) / 2;
}

/* Masks 0..n-1, mask i behind stop[i - 1] in `text`: number of their runs, or -1 if one is broken or unusual.

   The runs of all masks lie behind each other; where `first` is NULL those of each mask overwrite those of the last.
   There is room in `values` for a number per byte of the longest mask and 8 more. */
int64_t decode(const uint8_t *text, int64_t n, const int64_t *stop, const int64_t *num_pixels, const int64_t *offset,
               int32_t *values, int32_t *start, int32_t *end, int64_t *first, int64_t *areas, uint8_t *is_canonical) {
    int64_t row = 0, begin = 0;
    if (first) first[0] = 0;
    for (int64_t mask = 0; mask < n; begin = stop[mask++]) {
        if (stop[mask] - begin < 2 || (text[begin] != '"' && text[begin] != '[')) return -1;
        int is_string = text[begin] == '"';
        Text rest = {text + begin + 1, text + stop[mask], text + stop[n - 1], is_string};
        int64_t found = is_string ? read_string(&rest, values) : read_list(&rest, values);
        int64_t rows = place(values, found, is_string, (int32_t)num_pixels[mask],
                             (int32_t)(offset[mask] + num_pixels[mask]), start + row, end + row, areas + mask,
                             &rest.is_canonical);
        if (found < 0 || rows < 0) return -1;
        is_canonical[mask] = (uint8_t)rest.is_canonical;
        if (first) first[mask + 1] = row += rows;
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

enum { MAX_SIZE_BYTES = 48 }; /* between the brackets of a size */

typedef struct {
    const uint8_t *at, *stop;
} Place;

/* Whether a word stands at `at`, which is then moved behind it. */
static int skip(const uint8_t **at, const uint8_t *stop, const char *word) {
    int64_t length = (int64_t)strlen(word);
    if (stop - *at < length || memcmp(*at, word, (size_t)length)) return 0;
    *at += length;
    return 1;
}

/* `"key": ` or `"key":`. */
static int skip_key(const uint8_t **at, const uint8_t *stop, const char *quoted) {
    if (!skip(at, stop, quoted)) return 0;
    skip(at, stop, " ");
    return 1;
}

/* A list without lists, objects and strings inside, of at most so many bytes. */
static int skip_list(const uint8_t **at, const uint8_t *stop, int64_t most, Place *found) {
    const uint8_t *opening = *at, *next = *at + 1;
    if (opening == stop || *opening != '[') return 0;
    while (next < stop && *next != ']' && *next != '[' && *next != '{' && *next != '"') next++;
    if (next == stop || *next != ']' || next - opening - 1 > most) return 0;
    *found = (Place){opening, *at = next + 1};
    return 1;
}

static int skip_counts(const uint8_t **at, const uint8_t *stop, Place *found) {
    if (*at == stop || **at != '"') return skip_list(at, stop, INT64_MAX, found);
    const uint8_t *closing = memchr(*at + 1, '"', (size_t)(stop - *at - 1));
    if (!closing) return 0;
    *found = (Place){*at, closing + 1};
    *at = closing + 1;
    return 1;
}

/* Take the masks out of a text as the expressions of mask_file.py do: how many, none of them in `rest`.

   Mask i has its counts from counts[2 * i] to counts[2 * i + 1], and its size in the same way; is_new[i] says whether
   that is another one than the last. `rest` is the text up to the last mask, with `NaN` for each. */
int64_t take_masks(const uint8_t *text, int64_t length, int size_first, int32_t *counts, int32_t *size, uint8_t *is_new,
                   uint8_t *rest, int64_t *rest_length) {
    const uint8_t *stop = text + length, *copied = text, *from = text, *opening;
    const char *keys[] = {size_first ? "{\"size\":" : "{\"counts\":", size_first ? "\"counts\":" : "\"size\":"};
    Place places[2] = {{text, text}, {text, text}}, last = places[0];
    uint8_t *next = rest;
    int64_t n = 0;
    while ((opening = memchr(from, '{', (size_t)(stop - from)))) {
        const uint8_t *at = opening;
        int is_mask = 1;
        for (int key = 0; is_mask && key < 2; key++) {
            int is_size = key == !size_first;
            is_mask = skip_key(&at, stop, keys[key]) &&
                      (is_size ? skip_list(&at, stop, MAX_SIZE_BYTES, places) : skip_counts(&at, stop, places + 1));
            if (is_mask && key == 0) {
                is_mask = skip(&at, stop, ",");
                skip(&at, stop, " ");
            }
        }
        if (!is_mask || !skip(&at, stop, "}")) {
            from = opening + 1;
            continue;
        }
        int64_t size_bytes = places[0].stop - places[0].at;
        is_new[n] = n == 0 || last.stop - last.at != size_bytes || memcmp(last.at, places[0].at, (size_t)size_bytes);
        last = places[0];
        for (int end = 0; end < 2; end++) {
            size[2 * n + end] = (int32_t)((end ? places[0].stop : places[0].at) - text);
            counts[2 * n + end] = (int32_t)((end ? places[1].stop : places[1].at) - text);
        }
        n++;
        memcpy(next, copied, (size_t)(opening - copied));
        next += opening - copied;
        memcpy(next, "NaN", 3);
        next += 3;
        from = copied = at;
    }
    *rest_length = next - rest;
    return n;
}
