/* Walks the records of one record batch, version 2: everything in order, or not; and gathers them as columns.
 *
 * The optional native twin of scan() in record_walk.py, which is the reference: it alone says what is wrong with a
 * batch. Here the answer is only (lowest timestamp delta, highest timestamp delta, whether any key is null), or
 * None if anything is out of order. They agree on every input; tests/unit/wire/test_record_walk.py holds them to it.
 *
 * The bytes come from strangers. So: a byte is read only after its place was compared with the end of its record,
 * and a record ends within the buffer; a length is compared with the bytes that are left, never added to a pointer
 * first; numbers are unsigned while they are put together, so nothing overflows; nothing is allocated but the answer.
 *
 * Raise INTERFACE, here and in native_code.py, with every change of what a caller can see; a function that is new is
 * none, since who wants it looks whether it is there.
 *
 * measure() and gather() are the twins of those in record_columns.py, under the same rules. gather() compares each
 * place in a column with that column's end before it writes there, whatever was measured.
 */

#define Py_LIMITED_API 0x030B0000 /* one file for CPython 3.11 and all that come after it */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>
#ifndef _WIN32
#include <sched.h>
#endif

#define INTERFACE 2

/* From this size on the interpreter is let go of: walking a mebibyte takes 50 to 150 us, and getting the interpreter
 * back from a busy event loop takes about as long (penstock/checksum.py has the same limit). */
#define HOLD_BYTES_MAX (1 << 20)
/* Small records take as long each as large ones: so many take 250 us. */
#define HOLD_RECORDS_MAX (1 << 14)

static int takes_long(Py_ssize_t bytes, int64_t records)
{
    return bytes > HOLD_BYTES_MAX || records > HOLD_RECORDS_MAX;
}

/* So many records take 50 us: a power of two. */
#define PIECE_RECORDS (1 << 13)

/* Let others have the processor after each piece of a long walk: on a machine with few of them the event loop, or whom
 * it has just answered, may wait for this one. Where nobody does, this takes 0.3 us. */
static inline void give_way(int64_t index, int is_long)
{
#ifndef _WIN32
    if (is_long && (index & (PIECE_RECORDS - 1)) == PIECE_RECORDS - 1)
        sched_yield();
#else
    (void)index, (void)is_long;
#endif
}

typedef struct {
    int64_t low;  /* the lowest timestamp delta */
    int64_t high; /* and the highest */
    int null_key; /* whether any key is null */
} facts;

/* The unsigned varint at *at, of at most 32 bits in at most five bytes; 0 if there is none before `end`. */
static int long_varint32(const uint8_t **at, const uint8_t *end, uint32_t *value)
{
    const uint8_t *p = *at;
    uint32_t found = 0;
    for (int shift = 0; shift <= 28; shift += 7) {
        if (p == end)
            return 0;
        uint32_t byte = *p++;
        if (shift == 28 && byte > 0x0F)
            return 0; /* more than 32 bits, or a sixth byte */
        found |= (byte & 0x7F) << shift;
        if (byte < 0x80) {
            *at = p;
            *value = found;
            return 1;
        }
    }
    return 0;
}

/* The same of at most 64 bits in at most ten bytes. */
static int long_varint64(const uint8_t **at, const uint8_t *end, uint64_t *value)
{
    const uint8_t *p = *at;
    uint64_t found = 0;
    for (int shift = 0; shift <= 63; shift += 7) {
        if (p == end)
            return 0;
        uint64_t byte = *p++;
        if (shift == 63 && byte > 0x01)
            return 0;
        found |= (byte & 0x7F) << shift;
        if (byte < 0x80) {
            *at = p;
            *value = found;
            return 1;
        }
    }
    return 0;
}

/* Nearly all varints have one or two bytes. */
static inline int varint32(const uint8_t **at, const uint8_t *end, uint32_t *value)
{
    const uint8_t *p = *at;
    if (end - p < 2)
        return long_varint32(at, end, value);
    uint32_t first = p[0];
    if (first < 0x80) {
        *at = p + 1;
        *value = first;
        return 1;
    }
    uint32_t second = p[1];
    if (second < 0x80) {
        *at = p + 2;
        *value = (first & 0x7F) | second << 7;
        return 1;
    }
    return long_varint32(at, end, value);
}

static inline int varint64(const uint8_t **at, const uint8_t *end, uint64_t *value)
{
    const uint8_t *p = *at;
    if (p != end && *p < 0x80) {
        *at = p + 1;
        *value = *p;
        return 1;
    }
    return long_varint64(at, end, value);
}

/* Skip a field whose (zigzag) length comes first. `is_null` says whether it is -1; other negative lengths are none. */
static inline int skip_field(const uint8_t **at, const uint8_t *end, int *is_null)
{
    uint32_t length;
    if (!varint32(at, end, &length))
        return 0;
    *is_null = length == 1;
    if (length & 1)
        return length == 1;
    if ((size_t)(length >> 1) > (size_t)(end - *at))
        return 0;
    *at += length >> 1;
    return 1;
}

static int skip_headers(const uint8_t **at, const uint8_t *end)
{
    uint32_t count;
    int is_null;
    if (!varint32(at, end, &count) || count & 1)
        return 0;
    for (count >>= 1; count > 0; count--) { /* each takes two bytes at least, so this ends where the record does */
        if (!skip_field(at, end, &is_null) || is_null)
            return 0;
        if (!skip_field(at, end, &is_null))
            return 0;
    }
    return 1;
}

static int walk_records(const uint8_t *p, const uint8_t *end, uint32_t count, int is_long, facts *found)
{
    int64_t low = INT64_MAX, high = INT64_MIN;
    int null_keys = 0;
    for (uint32_t index = 0; index < count; index++) {
        give_way(index, is_long);
        uint32_t length, offset;
        uint64_t time;
        int null_key, null_value;
        if (!varint32(&p, end, &length) || length & 1 || (size_t)(length >> 1) > (size_t)(end - p))
            return 0;
        const uint8_t *next = p + (length >> 1);
        if (p == next || *p >= 0x80)
            return 0;
        p++; /* attributes: none are in use, but some clients read them as a number, which goes on after such a byte */
        if (!varint64(&p, next, &time))
            return 0;
        int64_t delta = (int64_t)((time >> 1) ^ (0 - (time & 1)));
        low = delta < low ? delta : low;
        high = delta > high ? delta : high;
        if (!varint32(&p, next, &offset) || offset != index << 1)
            return 0;
        if (!skip_field(&p, next, &null_key) || !skip_field(&p, next, &null_value))
            return 0;
        null_keys |= null_key;
        if (next - p != 1 || *p != 0) { /* anything but "no headers", and then the end */
            if (!skip_headers(&p, next) || p != next)
                return 0;
        }
        p = next;
    }
    found->low = low;
    found->high = high;
    found->null_key = null_keys;
    return p == end;
}

static PyObject *answer(const facts *found)
{
    PyObject *tuple = PyTuple_New(3);
    if (tuple == NULL)
        return NULL;
    PyObject *low = PyLong_FromLongLong(found->low);
    PyObject *high = PyLong_FromLongLong(found->high);
    PyObject *null_key = PyBool_FromLong(found->null_key);
    if (low == NULL || high == NULL || null_key == NULL) {
        Py_XDECREF(low);
        Py_XDECREF(high);
        Py_XDECREF(null_key);
        Py_DECREF(tuple);
        return NULL;
    }
    PyTuple_SetItem(tuple, 0, low); /* takes the reference */
    PyTuple_SetItem(tuple, 1, high);
    PyTuple_SetItem(tuple, 2, null_key);
    return tuple;
}

static PyObject *walk(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "walk takes a buffer, a position and a count");
        return NULL;
    }
    Py_ssize_t start = PyLong_AsSsize_t(args[1]);
    if (start == -1 && PyErr_Occurred())
        return NULL;
    Py_ssize_t count = PyLong_AsSsize_t(args[2]);
    if (count == -1 && PyErr_Occurred())
        return NULL;
    Py_buffer buffer;
    if (PyObject_GetBuffer(args[0], &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    facts found = {0, 0, 0};
    int in_order = 0;
    if (start >= 0 && start <= buffer.len && count > 0 && count <= INT32_MAX) {
        const uint8_t *data = buffer.buf, *end = data + buffer.len;
        if (takes_long(buffer.len - start, count)) {
            Py_BEGIN_ALLOW_THREADS
            in_order = walk_records(data + start, end, (uint32_t)count, 1, &found);
            Py_END_ALLOW_THREADS
        } else {
            in_order = walk_records(data + start, end, (uint32_t)count, 0, &found);
        }
    }
    PyBuffer_Release(&buffer);
    if (!in_order)
        Py_RETURN_NONE;
    return answer(&found);
}

/* What records take as columns; see Measured in record_columns.py, whose fields these are, in their order. */
#define RECORD_COST (8 + 8 + 3 * 4)
#define HEADER_COST (2 * 4)

typedef struct {
    int64_t records, position, last_delta, key_bytes, value_bytes, headers, name_bytes, header_value_bytes;
    int64_t null_keys, null_values, null_header_values;
} measured;

/* A field of a record: null, or `length` bytes at `data`, all of them before `end`. */
typedef struct {
    const uint8_t *data;
    uint32_t length;
    int is_null;
} field;

static inline int take_field(const uint8_t **at, const uint8_t *end, field *found)
{
    uint32_t length;
    if (!varint32(at, end, &length))
        return 0;
    found->is_null = length == 1;
    found->data = *at;
    found->length = 0;
    if (length & 1)
        return length == 1;
    if ((size_t)(length >> 1) > (size_t)(end - *at))
        return 0;
    found->length = length >> 1;
    *at += found->length;
    return 1;
}

/* Go to the key of the record at *at, which ends at *next. */
static inline int begin_record(const uint8_t **at, const uint8_t *end, const uint8_t **next, int64_t *time, int64_t *delta)
{
    uint32_t length, offset;
    uint64_t zigzag;
    const uint8_t *p = *at;
    if (!varint32(&p, end, &length) || length & 1 || (size_t)(length >> 1) > (size_t)(end - p))
        return 0;
    *next = p + (length >> 1);
    if (p == *next || *p >= 0x80)
        return 0;
    p++;
    if (!varint64(&p, *next, &zigzag) || !varint32(&p, *next, &offset) || offset & 1)
        return 0;
    *time = (int64_t)((zigzag >> 1) ^ (0 - (zigzag & 1)));
    *delta = offset >> 1;
    *at = p;
    return 1;
}

static inline int begin_headers(const uint8_t **at, const uint8_t *end, uint32_t *count)
{
    if (!varint32(at, end, count) || *count & 1)
        return 0;
    *count >>= 1;
    return (size_t)*count <= (size_t)(end - *at); /* each takes two bytes at least */
}

static int measure_records(const uint8_t *data, const uint8_t *end, int64_t count, int64_t bytes_max, int is_long,
                           measured *sum)
{
    const uint8_t *p = data + sum->position;
    int64_t cost = 0;
    for (int64_t index = 0; index < count; index++) {
        give_way(index, is_long);
        const uint8_t *next;
        int64_t time, delta, names = 0, values = 0, nulls = 0;
        uint32_t headers;
        field key, value;
        if (!begin_record(&p, end, &next, &time, &delta) || delta <= sum->last_delta)
            return 0;
        if (!take_field(&p, next, &key) || !take_field(&p, next, &value) || !begin_headers(&p, next, &headers))
            return 0;
        for (uint32_t left = headers; left > 0; left--) {
            field name, content;
            if (!take_field(&p, next, &name) || name.is_null || !take_field(&p, next, &content))
                return 0;
            names += name.length;
            values += content.length;
            nulls += content.is_null;
        }
        if (p != next)
            return 0;
        cost += RECORD_COST + (int64_t)headers * HEADER_COST + key.length + value.length + names + values;
        if (cost > bytes_max)
            break;
        sum->records++;
        sum->position = next - data;
        sum->last_delta = delta;
        sum->key_bytes += key.length;
        sum->value_bytes += value.length;
        sum->headers += headers;
        sum->name_bytes += names;
        sum->header_value_bytes += values;
        sum->null_keys += key.is_null;
        sum->null_values += value.is_null;
        sum->null_header_values += nulls;
    }
    return 1;
}

static PyObject *numbers(const int64_t *values, Py_ssize_t count)
{
    PyObject *tuple = PyTuple_New(count);
    for (Py_ssize_t i = 0; tuple != NULL && i < count; i++) {
        PyObject *number = PyLong_FromLongLong(values[i]);
        if (number == NULL)
            Py_CLEAR(tuple);
        else
            PyTuple_SetItem(tuple, i, number); /* takes the reference */
    }
    return tuple;
}

/* Read `count` integers; 0 with an exception set if one isn't. */
static int integers(PyObject *const *args, Py_ssize_t count, int64_t *values)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        values[i] = PyLong_AsLongLong(args[i]);
        if (values[i] == -1 && PyErr_Occurred())
            return 0;
    }
    return 1;
}

static PyObject *measure(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    int64_t given[4]; /* position, count, last delta, most bytes */
    Py_buffer buffer;
    if (nargs != 5) {
        PyErr_SetString(PyExc_TypeError, "measure takes a buffer, a position, a count, a delta and a size");
        return NULL;
    }
    if (!integers(args + 1, 4, given) || PyObject_GetBuffer(args[0], &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    measured sum = {0};
    int in_order = 0;
    if (given[0] >= 0 && given[0] <= buffer.len && given[1] >= 0) {
        const uint8_t *data = buffer.buf, *end = data + buffer.len;
        sum.position = given[0];
        sum.last_delta = given[2];
        if (takes_long(buffer.len - given[0], given[1])) {
            Py_BEGIN_ALLOW_THREADS
            in_order = measure_records(data, end, given[1], given[3], 1, &sum);
            Py_END_ALLOW_THREADS
        } else {
            in_order = measure_records(data, end, given[1], given[3], 0, &sum);
        }
    }
    PyBuffer_Release(&buffer);
    if (!in_order)
        Py_RETURN_NONE;
    return numbers((const int64_t *)&sum, sizeof(sum) / sizeof(int64_t));
}

/* Columns in the order of Columns in record_columns.py. */
enum {
    OFFSETS, TIMESTAMPS, KEY_ENDS, KEYS, KEY_VALID, VALUE_ENDS, VALUES, VALUE_VALID, HEADER_ENDS, NAME_ENDS, NAMES,
    HEADER_VALUE_ENDS, HEADER_VALUES, HEADER_VALUE_VALID, COLUMNS
};
enum { ROWS, KEY_BYTES, VALUE_BYTES, HEADERS, NAME_BYTES, HEADER_VALUE_BYTES, FILLED };

/* Whether `size` bytes fit behind the first `at` bytes of a column. */
static inline int fits(const Py_buffer *column, int64_t at, int64_t size)
{
    return at <= column->len && size <= column->len - at;
}

static inline int put64(Py_buffer *column, int64_t row, int64_t value)
{
    if (!fits(column, row * 8, 8))
        return 0;
    memcpy((uint8_t *)column->buf + row * 8, &value, 8);
    return 1;
}

static inline int put_end(Py_buffer *column, int64_t row, int64_t value)
{
    int32_t end = (int32_t)value;
    if (value > INT32_MAX || !fits(column, (row + 1) * 4, 4))
        return 0;
    memcpy((uint8_t *)column->buf + (row + 1) * 4, &end, 4);
    return 1;
}

static inline int put_field(Py_buffer *ends, Py_buffer *bytes, Py_buffer *valid, int64_t row, int64_t *at, const field *found)
{
    if (!fits(bytes, *at, found->length))
        return 0;
    if (found->length > 0)
        memcpy((uint8_t *)bytes->buf + *at, found->data, found->length);
    *at += found->length;
    if (valid != NULL && !found->is_null) {
        if (!fits(valid, row >> 3, 1))
            return 0;
        ((uint8_t *)valid->buf)[row >> 3] |= (uint8_t)(1 << (row & 7));
    }
    return put_end(ends, row, *at);
}

static int gather_records(const uint8_t *p, const uint8_t *end, int64_t count, int64_t base_offset, int64_t base_time,
                          int is_timed, int is_long, Py_buffer *to, int64_t *at)
{
    for (int64_t index = 0; index < count; index++) {
        give_way(index, is_long);
        const uint8_t *next;
        int64_t time, delta, row = at[ROWS];
        uint32_t headers;
        field found;
        if (!begin_record(&p, end, &next, &time, &delta))
            return 0;
        if (!is_timed)
            time = 0;
        if (time > 0 ? base_time > INT64_MAX - time : base_time < INT64_MIN - time)
            return 0;
        if (base_offset > INT64_MAX - delta || !put64(&to[OFFSETS], row, base_offset + delta))
            return 0;
        if (!put64(&to[TIMESTAMPS], row, base_time + time))
            return 0;
        if (!take_field(&p, next, &found) ||
            !put_field(&to[KEY_ENDS], &to[KEYS], &to[KEY_VALID], row, &at[KEY_BYTES], &found))
            return 0;
        if (!take_field(&p, next, &found) ||
            !put_field(&to[VALUE_ENDS], &to[VALUES], &to[VALUE_VALID], row, &at[VALUE_BYTES], &found))
            return 0;
        if (!begin_headers(&p, next, &headers))
            return 0;
        for (; headers > 0; headers--) {
            int64_t header = at[HEADERS];
            if (!take_field(&p, next, &found) || found.is_null ||
                !put_field(&to[NAME_ENDS], &to[NAMES], NULL, header, &at[NAME_BYTES], &found))
                return 0;
            if (!take_field(&p, next, &found) ||
                !put_field(&to[HEADER_VALUE_ENDS], &to[HEADER_VALUES], &to[HEADER_VALUE_VALID], header,
                           &at[HEADER_VALUE_BYTES], &found))
                return 0;
            at[HEADERS] = header + 1;
        }
        if (p != next || !put_end(&to[HEADER_ENDS], row, at[HEADERS]))
            return 0;
        at[ROWS] = row + 1;
    }
    return 1;
}

static PyObject *gather(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    int64_t given[5], at[FILLED]; /* position, count, base offset, base timestamp, whether deltas of time count */
    Py_buffer buffer, to[COLUMNS];
    PyObject *answer = NULL;
    int taken = 0, in_order = 0;
    if (nargs != 8 || !PyTuple_Check(args[6]) || PyTuple_Size(args[6]) != COLUMNS || !PyTuple_Check(args[7]) ||
        PyTuple_Size(args[7]) != FILLED) {
        PyErr_SetString(PyExc_TypeError, "gather takes a buffer, five numbers, the columns and how far they are filled");
        return NULL;
    }
    if (!integers(args + 1, 5, given))
        return NULL;
    for (Py_ssize_t i = 0; i < FILLED; i++) {
        PyObject *number = PyTuple_GetItem(args[7], i);
        if (!integers(&number, 1, &at[i]))
            return NULL;
    }
    if (PyObject_GetBuffer(args[0], &buffer, PyBUF_SIMPLE) < 0)
        return NULL;
    for (; taken < COLUMNS; taken++)
        if (PyObject_GetBuffer(PyTuple_GetItem(args[6], taken), &to[taken], PyBUF_WRITABLE) < 0)
            goto release;
    int is_place = given[0] >= 0 && given[0] <= buffer.len && given[1] >= 0;
    for (int i = 0; i < FILLED; i++)
        is_place = is_place && at[i] >= 0 && at[i] <= INT32_MAX;
    if (is_place) {
        const uint8_t *data = (const uint8_t *)buffer.buf + given[0], *end = (const uint8_t *)buffer.buf + buffer.len;
        if (takes_long(end - data, given[1])) {
            Py_BEGIN_ALLOW_THREADS
            in_order = gather_records(data, end, given[1], given[2], given[3], given[4] != 0, 1, to, at);
            Py_END_ALLOW_THREADS
        } else {
            in_order = gather_records(data, end, given[1], given[2], given[3], given[4] != 0, 0, to, at);
        }
    }
    if (in_order)
        answer = numbers(at, FILLED);
    else
        answer = Py_NewRef(Py_None);
release:
    while (taken > 0)
        PyBuffer_Release(&to[--taken]);
    PyBuffer_Release(&buffer);
    return answer;
}

static PyMethodDef methods[] = {
    {"measure", (PyCFunction)(void (*)(void))measure, METH_FASTCALL,
     "measure(buffer, position, count, last_delta, bytes_max) -> what the records take, or None"},
    {"gather", (PyCFunction)(void (*)(void))gather, METH_FASTCALL,
     "gather(buffer, position, count, base_offset, base_timestamp, is_timed, columns, filled) -> filled, or None"},
    {"walk", (PyCFunction)(void (*)(void))walk, METH_FASTCALL,
     "walk(buffer, start, count) -> (low, high, any_null_key) or None\n\n"
     "Walk ``count`` records that fill ``buffer`` from ``start`` on."},
    {NULL, NULL, 0, NULL},
};

static int add_interface(PyObject *module)
{
    return PyModule_AddIntConstant(module, "INTERFACE", INTERFACE);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)add_interface},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_walk", "Walks the records of a record batch.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__walk(void)
{
    return PyModuleDef_Init(&definition);
}
