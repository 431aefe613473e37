# The standard library, declared as not throwing: the process has no plan for running out of memory inside a frame handler, and
# Cython's own declarations would take the GIL to report it.
from libc.stdint cimport uint64_t

cdef extern from "<string>" namespace "std" nogil:
    cdef cppclass string:
        string()
        string(const char*)
        string(const char*, size_t)
        char* data()
        const char* c_str()
        size_t size()
        bint empty()
        void clear()
        void append(const char*, size_t)
        void append(const string&)
        void push_back(char)
        void reserve(size_t)
        void resize(size_t)
        void swap(string&)
        void erase(size_t, size_t)
        char& operator[](size_t)
        bint operator==(const string&)
        string operator+(const string&)

cdef extern from "<memory>" namespace "std" nogil:
    cdef cppclass shared_ptr[T]:
        shared_ptr()
        shared_ptr(T*)
        T* get()
        T& operator*()
        void reset()
        void swap(shared_ptr[T]&)
        long use_count()
        bint operator==(const shared_ptr[T]&)
    cdef cppclass unique_ptr[T]:
        unique_ptr()
        T* get()
        void reset()
        void reset(T*)
    shared_ptr[T] make_shared[T](...)

cdef extern from "<vector>" namespace "std" nogil:
    cdef cppclass vector[T]:
        vector()
        size_t size()
        bint empty()
        void clear()
        void push_back(const T&)
        void pop_back()
        void resize(size_t)
        void reserve(size_t)
        void swap(vector[T]&)
        T& operator[](size_t)
        T& back()
        T* data()

cdef extern from "<deque>" namespace "std" nogil:
    cdef cppclass deque[T]:
        deque()
        size_t size()
        bint empty()
        void clear()
        void push_back(const T&)
        void push_front(const T&)
        void pop_back()
        void pop_front()
        void swap(deque[T]&)
        T& operator[](size_t)
        T& front()
        T& back()

cdef extern from "<utility>" namespace "std" nogil:
    cdef cppclass pair[T, U]:
        T first
        U second

cdef extern from "<unordered_map>" namespace "std" nogil:
    cdef cppclass unordered_map[K, V, H]:
        cppclass iterator:
            pair[K, V]& operator*()
            iterator operator++()
            bint operator==(iterator)
            bint operator!=(iterator)
        unordered_map()
        size_t size()
        bint empty()
        void clear()
        V& operator[](const K&)
        iterator begin()
        iterator end()
        iterator find(const K&)
        size_t erase(const K&)
        iterator erase(iterator)
        size_t count(const K&)

cdef extern from "<map>" namespace "std" nogil:
    cdef cppclass ordered_map "std::map"[K, V]:
        cppclass iterator:
            pair[K, V]& operator*()
            iterator operator++()
            bint operator==(iterator)
            bint operator!=(iterator)
        ordered_map()
        size_t size()
        bint empty()
        V& operator[](const K&)
        iterator begin()
        iterator end()
        iterator find(const K&)
        size_t erase(const K&)

cdef extern from "<unordered_set>" namespace "std" nogil:
    cdef cppclass unordered_set[K]:
        cppclass iterator:
            K& operator*()
            iterator operator++()
            bint operator!=(iterator)
        unordered_set()
        size_t size()
        bint empty()
        void clear()
        void insert(const K&)
        iterator begin()
        iterator end()
        size_t erase(const K&)
        size_t count(const K&)

cdef extern from * nogil:
    """
    #include <functional>
    #include <string>
    using StringHash = std::hash<std::string>;
    using NumberHash = std::hash<uint64_t>;
    """
    cdef cppclass StringHash:
        pass
    cdef cppclass NumberHash:
        pass
