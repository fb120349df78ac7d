/* Walks the records of one record batch, version 2: everything in order, or not.
 *
 * The optional native twin of scan() in record_walk.py, which is the reference: it alone says what is wrong with a
 * batch. Here the answer is only (lowest timestamp delta, highest timestamp delta, whether any key is null), or
 * None if anything is out of order. They agree on every input; tests/unit/wire/test_record_walk.py holds them to it.
 *
 * The bytes come from strangers. So: a byte is read only after its place was compared with the end of its record,
 * and a record ends within the buffer; a length is compared with the bytes that are left, never added to a pointer
 * first; numbers are unsigned while they are put together, so nothing overflows; nothing is allocated but the answer.
 *
 * Raise INTERFACE, here and in native_code.py, with every change of what a caller can see.
 */

#define Py_LIMITED_API 0x030B0000 /* one file for CPython 3.11 and all that come after it */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>

#define INTERFACE 2

/* From this size on the interpreter is let go of: walking a mebibyte takes 50 to 150 us, and getting the interpreter
 * back from a busy event loop takes about as long (penstock/checksum.py has the same limit). */
#define HOLD_BYTES_MAX (1 << 20)

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

static int walk_records(const uint8_t *p, const uint8_t *end, uint32_t count, facts *found)
{
    int64_t low = INT64_MAX, high = INT64_MIN;
    int null_keys = 0;
    for (uint32_t index = 0; index < count; index++) {
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
        if (buffer.len - start > HOLD_BYTES_MAX) {
            Py_BEGIN_ALLOW_THREADS
            in_order = walk_records(data + start, end, (uint32_t)count, &found);
            Py_END_ALLOW_THREADS
        } else {
            in_order = walk_records(data + start, end, (uint32_t)count, &found);
        }
    }
    PyBuffer_Release(&buffer);
    if (!in_order)
        Py_RETURN_NONE;
    return answer(&found);
}

static PyMethodDef methods[] = {
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
