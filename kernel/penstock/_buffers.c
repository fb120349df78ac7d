/* Copies buffers behind each other, and combines checksums: the optional native twin of code in Python.
 *
 * copy() is the twin of _copy in direct_io.py, combine() of combine_in_python in checksum.py, which are the references; tests
 * hold them to it. Beside _walk.c, whose bytes come from strangers: here only lengths matter, and they are those that
 * the buffers themselves tell.
 *
 * Raise INTERFACE, here and in native.py, with every change of what a caller can see; a function that is new is none,
 * since who wants it looks whether it is there.
 */

#define Py_LIMITED_API 0x030B0000 /* one file for CPython 3.11 and all that come after it */
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define INTERFACE 1

/* From this size on the interpreter is let go of while bytes are copied: they come from memory, not from a cache, at
 * about 100 us per mebibyte, and getting the interpreter back from a busy event loop takes about as long. */
#define HOLD_BYTES_MAX (1 << 18)

/* CRC-32C: the polynomial, bits reversed, without its highest term. */
#define POLYNOMIAL 0x82F63B78u

/* shifts[d][n] is x^(8 * n * 256^d) modulo the polynomial: multiplying by it appends n * 256^d zero bytes to a message. Of a
 * size few digits aren't 0, so few products are needed. */
#define DIGITS 8
static uint32_t shifts[DIGITS][256];

/* The product of two remainders. All steps are taken, whatever the bits: no branch to be mispredicted. */
static uint32_t multiply(uint32_t a, uint32_t b)
{
    uint32_t product = 0;
    for (int bit = 31; bit >= 0; bit--) {
        product ^= b & (0u - (a >> bit & 1u));
        b = b >> 1 ^ (POLYNOMIAL & (0u - (b & 1u)));
    }
    return product;
}

static void fill_shifts(void)
{
    uint32_t step = 1u << (31 - 8); /* one byte */
    for (int digit = 0; digit < DIGITS; digit++) {
        uint32_t shift = 1u << 31; /* none */
        for (int n = 0; n < 256; n++) {
            shifts[digit][n] = shift;
            shift = multiply(shift, step);
        }
        step = shift;
    }
}

/* A checksum; 0 with an exception set if it is none. */
static int checksum_of(PyObject *number, uint32_t *value)
{
    unsigned long found = PyLong_AsUnsignedLong(number);
    if (found == (unsigned long)-1 && PyErr_Occurred())
        return 0;
    if (found > UINT32_MAX) {
        PyErr_SetString(PyExc_OverflowError, "a CRC-32C has 32 bits");
        return 0;
    }
    *value = (uint32_t)found;
    return 1;
}

static PyObject *combine(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    uint32_t first, second;
    if (nargs != 3) {
        PyErr_SetString(PyExc_TypeError, "combine takes two checksums and a size");
        return NULL;
    }
    if (!checksum_of(args[0], &first) || !checksum_of(args[1], &second))
        return NULL;
    unsigned long long size = PyLong_AsUnsignedLongLong(args[2]);
    if (size == (unsigned long long)-1 && PyErr_Occurred())
        return NULL;
    for (int digit = 0; size > 0; digit++, size >>= 8)
        if (size & 255)
            first = multiply(shifts[digit][size & 255], first);
    return PyLong_FromUnsignedLong(first ^ second);
}

static void copy_all(uint8_t *to, const Py_buffer *buffers, Py_ssize_t count)
{
    for (Py_ssize_t i = 0; i < count; i++) {
        if (buffers[i].len > 0)
            memmove(to, buffers[i].buf, (size_t)buffers[i].len);
        to += buffers[i].len;
    }
}

static PyObject *copy(PyObject *module, PyObject *const *args, Py_ssize_t nargs)
{
    (void)module;
    if (nargs != 3 || !PyList_Check(args[2])) {
        PyErr_SetString(PyExc_TypeError, "copy takes a writable buffer, a position and a list of buffers");
        return NULL;
    }
    Py_ssize_t position = PyLong_AsSsize_t(args[1]);
    if (position == -1 && PyErr_Occurred())
        return NULL;
    PyObject *answer = NULL;
    Py_ssize_t count = PyList_Size(args[2]), taken = 0, size = 0;
    Py_buffer target, *buffers = PyMem_Calloc((size_t)count + 1, sizeof(Py_buffer));
    if (buffers == NULL)
        return PyErr_NoMemory();
    if (PyObject_GetBuffer(args[0], &target, PyBUF_WRITABLE) < 0) {
        PyMem_Free(buffers);
        return NULL;
    }
    Py_ssize_t room = position < 0 || position > target.len ? -1 : target.len - position;
    for (; taken < count; taken++) {
        PyObject *item = PyList_GetItem(args[2], taken); /* an error if the list became shorter */
        if (item == NULL || PyObject_GetBuffer(item, &buffers[taken], PyBUF_SIMPLE) < 0)
            goto release;
        if (room - size < buffers[taken].len) {
            room = -1;
            taken++;
            break;
        }
        size += buffers[taken].len;
    }
    if (room < 0) {
        PyErr_SetString(PyExc_ValueError, "the buffers don't fit behind the position");
        goto release;
    }
    if (size > HOLD_BYTES_MAX) { /* target and buffers stay where they are while they are held */
        Py_BEGIN_ALLOW_THREADS
        copy_all((uint8_t *)target.buf + position, buffers, count);
        Py_END_ALLOW_THREADS
    } else {
        copy_all((uint8_t *)target.buf + position, buffers, count);
    }
    answer = PyLong_FromSsize_t(position + size);
release:
    while (taken > 0)
        PyBuffer_Release(&buffers[--taken]);
    PyBuffer_Release(&target);
    PyMem_Free(buffers);
    return answer;
}

static PyMethodDef methods[] = {
    {"combine", (PyCFunction)(void (*)(void))combine, METH_FASTCALL,
     "combine(first, second, second_bytes) -> the CRC-32C of two runs of bytes, from the CRC-32C of each"},
    {"copy", (PyCFunction)(void (*)(void))copy, METH_FASTCALL,
     "copy(target, position, buffers) -> where the last of them ends\n\n"
     "Copy a list of buffers behind each other, from ``position`` of ``target`` on."},
    {NULL, NULL, 0, NULL},
};

static int begin(PyObject *module)
{
    fill_shifts();
    return PyModule_AddIntConstant(module, "INTERFACE", INTERFACE);
}

static PyModuleDef_Slot slots[] = {
    {Py_mod_exec, (void *)begin},
    {0, NULL},
};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT, "_buffers", "Copies buffers and combines checksums.", 0, methods, slots, NULL, NULL, NULL,
};

PyMODINIT_FUNC PyInit__buffers(void)
{
    return PyModuleDef_Init(&definition);
}
