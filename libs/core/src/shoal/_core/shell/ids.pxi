# Ids and strings between Python and the protocol's records.

cdef bytes id_bytes(const Id16& id):
    cdef char raw[16]
    store_id(raw, id)
    return PyBytes_FromStringAndSize(raw, 16)


cdef bytes object_id_bytes(const ObjectId& id):
    cdef char raw[20]
    store_object_id(raw, id)
    return PyBytes_FromStringAndSize(raw, 20)


cdef Id16 to_id(bytes raw) except *:
    if PyBytes_GET_SIZE(raw) != 16:
        raise ValueError(f"an id of 16 bytes is needed, got {len(raw)}")
    return load_id(PyBytes_AS_STRING(raw))


cdef bytes to_bytes(const string& s):
    return PyBytes_FromStringAndSize((<string*> &s).data(), (<string*> &s).size())


cdef str to_str(const string& s):
    return to_bytes(s).decode("utf-8", "replace")


cdef string from_bytes(bytes raw):
    return string(PyBytes_AS_STRING(raw), PyBytes_GET_SIZE(raw))


cdef string from_str(str text) except *:
    cdef Py_ssize_t n
    cdef const char* p = PyUnicode_AsUTF8AndSize(text, &n)
    return string(p, n)
