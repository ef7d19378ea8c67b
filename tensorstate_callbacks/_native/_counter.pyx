# distutils: language = c++
# cython: language_level=3, boundscheck=False, wraparound=False
"""The C++ counter for Python: buffers in, buffers out, without the GIL in between."""

from cpython.buffer cimport PyBUF_STRIDED_RO, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport uint8_t, uint64_t
from libcpp cimport bool as cbool
from libcpp.memory cimport unique_ptr
from libcpp.string cimport string
from libcpp.vector cimport vector

import numpy as np


cdef extern from "counter.hpp" namespace "tensorstate" nogil:
    cdef struct Axis:
        size_t size
        ptrdiff_t stride

    cdef struct Firing:
        uint64_t first
        uint64_t span

    cdef struct Snapshot:
        vector[uint64_t] rows
        vector[uint64_t] counts

    cdef struct Spectrum:
        vector[uint64_t] values
        vector[uint64_t] multiplicities

    cdef cppclass RowCounter:
        void add_activations(const char* data, const vector[Axis]& positions, Axis channels,
                             size_t item_bytes, cbool folded, Firing firing) except +
        void add_packed(const uint8_t* rows, const uint64_t* counts, size_t size) except +
        void reset() except +
        uint64_t states() except +
        size_t nbytes() except +

    cdef cppclass Counter(RowCounter):
        Counter(size_t neurons, string kernel, size_t threads) except +
        void merge(Counter& other) except +
        size_t distinct() except +
        Snapshot snapshot() except +
        Spectrum spectrum() except +
        vector[uint64_t] fired() except +

    cdef cppclass ForkGate:
        void before_fork()
        void after_fork_in_parent()
        void after_fork_in_child()

    ForkGate fork_gate
    vector[string] kernel_names() except +
    void set_failing_allocation "tensorstate::fail_allocation"(uint64_t number)

cdef extern from "groups.hpp" namespace "tensorstate" nogil:
    cdef struct GroupTables:
        vector[uint64_t] counts
        uint64_t states

    cdef cppclass GroupCounter(RowCounter):
        GroupCounter(size_t neurons, size_t group, string kernel, size_t threads) except +
        void merge(GroupCounter& other) except +
        void add_tables(const uint64_t* tables, uint64_t states) except +
        size_t n_counts()
        GroupTables tables() except +


cdef extern from "chosen.hpp" namespace "tensorstate" nogil:
    cdef cppclass Kernel:
        pass

    cdef struct Batch:
        const char* data
        Axis samples
        vector[Axis] grid
        Axis channels
        size_t item_bytes
        cbool folded
        Firing firing
        size_t positions() except +

    const Kernel* find_kernel(string name) except +
    void pack_all(const Kernel& kernel, const Batch& batch, size_t threads,
                  uint8_t* out) except +
    void pack_chosen(const Kernel& kernel, const Batch& batch, const Py_ssize_t* places,
                     size_t count, size_t threads, uint8_t* out) except +


cdef extern from "team.hpp" namespace "tensorstate" nogil:
    ctypedef void (*ParallelRegion)(void (*)(void*), void*, unsigned int, unsigned int)

    cdef cppclass Team:
        void use(ParallelRegion region)
        void after_fork_in_child() except +

    Team team


cdef class _Words:
    """Owns the numbers of a vector and lends them to NumPy, without a copy."""

    cdef vector[uint64_t] words
    cdef Py_ssize_t size

    def __getbuffer__(self, Py_buffer* view, int flags):
        view.buf = self.words.data()
        view.obj = self
        view.len = self.size * sizeof(uint64_t)
        view.readonly = 0
        view.itemsize = sizeof(uint64_t)
        view.format = b"Q"
        view.ndim = 1
        view.shape = &self.size
        view.strides = &view.itemsize
        view.suboffsets = NULL
        view.internal = NULL


cdef _array(vector[uint64_t]& words):
    if words.empty():
        return np.empty(0, np.uint64)
    owner = _Words()
    owner.words.swap(words)
    owner.size = owner.words.size()
    return np.asarray(owner)


cdef class _RowsEngine:
    """Takes rows of `n_neurons` bits; the counters' classes check what comes in."""

    cdef unique_ptr[RowCounter] rows
    cdef size_t n_neurons

    @property
    def n_states(self):
        cdef uint64_t states
        with nogil:
            states = self.rows.get().states()
        return states

    @property
    def nbytes(self):
        cdef size_t nbytes
        with nogil:
            nbytes = self.rows.get().nbytes()
        return nbytes

    def add_firing(self, firing):
        bits, folded, first, span = firing
        cdef Firing in_range = Firing(first, span)
        cdef cbool is_folded = folded
        cdef vector[Axis] positions
        cdef Axis channels
        cdef Py_buffer view
        PyObject_GetBuffer(bits, &view, PyBUF_STRIDED_RO)
        try:
            if (
                view.ndim < 1
                or <size_t> view.shape[view.ndim - 1] != self.n_neurons
                or view.itemsize not in (1, 2, 4, 8)
            ):
                raise ValueError("bits must have the neurons on their last axis")
            for axis in range(view.ndim - 1):
                positions.push_back(Axis(view.shape[axis], view.strides[axis]))
            channels = Axis(view.shape[view.ndim - 1], view.strides[view.ndim - 1])
            with nogil:
                self.rows.get().add_activations(
                    <const char*> view.buf, positions, channels, view.itemsize, is_folded, in_range
                )
        finally:
            PyBuffer_Release(&view)

    def add_memory(self, memory, reading):
        address, shape, strides, _ = memory
        cdef vector[Axis] positions
        cdef Axis channels
        cdef size_t place = address, item_bytes = reading.unsigned.itemsize
        cdef cbool is_folded = reading.folded
        cdef Firing in_range = Firing(reading.first, reading.span)
        for axis in reading.order:
            positions.push_back(Axis(shape[axis], strides[axis]))
        channels = positions.back()
        positions.pop_back()
        if channels.size != self.n_neurons or item_bytes not in (1, 2, 4, 8):
            raise ValueError("memory must have the neurons on its channel axis")
        if place == 0 and 0 not in shape:
            raise ValueError("the activations have no memory: it was freed")
        with nogil:
            self.rows.get().add_activations(
                <const char*> place, positions, channels, item_bytes, is_folded, in_range
            )

    def add_rows(self, const uint8_t[:, ::1] rows, counts):
        cdef const uint64_t[::1] numbers
        cdef const uint64_t* first_number = NULL
        cdef size_t size = rows.shape[0]
        if <size_t> rows.shape[1] != (self.n_neurons + 7) // 8:
            raise ValueError("rows have the wrong width")
        if size == 0:
            return
        if counts is not None:
            numbers = counts
            if <size_t> numbers.shape[0] != size:
                raise ValueError("rows and counts differ in length")
            first_number = &numbers[0]
        with nogil:
            self.rows.get().add_packed(&rows[0, 0], first_number, size)

    def reset(self):
        with nogil:
            self.rows.get().reset()


cdef class NativeEngine(_RowsEngine):
    """Counts distinct states."""

    cdef Counter* counter

    def __cinit__(self, size_t n_neurons, str kernel, size_t n_threads=1):
        self.n_neurons = n_neurons
        self.counter = new Counter(n_neurons, kernel.encode(), n_threads)
        self.rows.reset(self.counter)

    @property
    def n_distinct(self):
        cdef size_t distinct
        with nogil:
            distinct = self.counter.distinct()
        return distinct

    def merge(self, NativeEngine other not None):
        if other.n_neurons != self.n_neurons:
            raise ValueError("the engines differ in their number of neurons")
        with nogil:
            self.counter.merge(other.counter[0])

    def snapshot(self):
        cdef Snapshot snapshot
        with nogil:
            snapshot = self.counter.snapshot()
        counts = _array(snapshot.counts)
        width = (self.n_neurons + 7) // 8
        rows = _array(snapshot.rows).view(np.uint8)[: len(counts) * width]
        return rows.reshape(len(counts), width), counts

    def spectrum(self):
        cdef Spectrum spectrum
        with nogil:
            spectrum = self.counter.spectrum()
        return _array(spectrum.values), _array(spectrum.multiplicities)

    def fired(self):
        cdef vector[uint64_t] fired
        with nogil:
            fired = self.counter.fired()
        return _array(fired)


cdef class NativeGroupEngine(_RowsEngine):
    """Counts the states of each unit of `group_size` neurons."""

    cdef GroupCounter* counter
    cdef size_t group_size

    def __cinit__(self, size_t n_neurons, size_t group_size, str kernel, size_t n_threads=1):
        if n_neurons < 1 or not 1 <= group_size <= 22:
            raise ValueError("a unit has 1 to 22 neurons")
        self.n_neurons = n_neurons
        self.group_size = group_size
        self.counter = new GroupCounter(n_neurons, group_size, kernel.encode(), n_threads)
        self.rows.reset(self.counter)

    def merge(self, NativeGroupEngine other not None):
        if other.n_neurons != self.n_neurons or other.group_size != self.group_size:
            raise ValueError("the engines differ in their units")
        with nogil:
            self.counter.merge(other.counter[0])

    def add_tables(self, const uint64_t[::1] tables, uint64_t n_states):
        cdef size_t size = tables.shape[0]
        if size != self.counter.n_counts():
            raise ValueError("the tables have the wrong size")
        with nogil:
            self.counter.add_tables(&tables[0], n_states)

    def snapshot(self):
        cdef GroupTables found
        with nogil:
            found = self.counter.tables()
        return _array(found.counts), found.states


def pack_positions(str kernel, activations, reading, sample_axis, const Py_ssize_t[::1] places,
                   size_t n_threads=1):
    """Packed rows of each sample at places, or at all positions where they are None.

    Activations are a `Memory`, or an array of unsigned integers.
    """
    cdef Py_buffer view
    cdef size_t address
    cdef vector[Axis] axes
    if isinstance(activations, tuple):
        address, shape, strides, _ = activations
        if address == 0 and 0 not in shape:
            raise ValueError("the activations have no memory: it was freed")
        for size, stride in zip(shape, strides):
            axes.push_back(Axis(size, stride))
        return _packed(kernel, <const char*> address, axes, reading, sample_axis, places,
                       n_threads)
    PyObject_GetBuffer(activations, &view, PyBUF_STRIDED_RO)
    try:
        if view.itemsize != reading.unsigned.itemsize:
            raise ValueError("the activations have another number type")
        for axis in range(view.ndim):
            axes.push_back(Axis(view.shape[axis], view.strides[axis]))
        return _packed(kernel, <const char*> view.buf, axes, reading, sample_axis, places,
                       n_threads)
    finally:
        PyBuffer_Release(&view)


cdef _packed(str kernel, const char* data, const vector[Axis]& axes, reading, sample_axis,
             const Py_ssize_t[::1] places, size_t n_threads):
    cdef const Kernel* found = find_kernel(kernel.encode())
    cdef Batch batch
    cdef size_t count
    cdef const Py_ssize_t* first_place = NULL
    cdef uint8_t[:, ::1] rows
    cdef uint8_t* out = NULL
    cdef size_t axis
    order = reading.order
    if <size_t> len(order) != axes.size() or max(order) >= axes.size():
        raise ValueError("the activations have another number of axes")
    batch.data = data
    batch.samples = Axis(1, 0)
    for axis in order:
        if axis == sample_axis:
            batch.samples = axes[axis]
        else:
            batch.grid.push_back(axes[axis])
    batch.channels = batch.grid.back()
    batch.grid.pop_back()
    batch.item_bytes = reading.unsigned.itemsize
    batch.folded = reading.folded
    batch.firing = Firing(reading.first, reading.span)
    if found == NULL or batch.channels.size < 1 or batch.item_bytes not in (1, 2, 4, 8):
        raise ValueError("there is no such kernel, or nothing to pack")
    if places is None:
        count = batch.positions()
    else:
        count = places.shape[0]
        first_place = &places[0] if count else NULL
    packed = np.empty((batch.samples.size * count, (batch.channels.size + 7) // 8), np.uint8)
    if len(packed):
        rows = packed
        out = &rows[0, 0]
    with nogil:
        if first_place != NULL:
            pack_chosen(found[0], batch, first_place, count, n_threads, out)
        elif out != NULL:
            pack_all(found[0], batch, n_threads, out)
    return packed


def kernels():
    """Names of the kernels that this processor runs, fastest first."""
    return tuple(name.decode() for name in kernel_names())


def before_fork():
    """Wait until no thread is inside a counter, and let none in."""
    with nogil:
        fork_gate.before_fork()


def after_fork_in_parent():
    """Let threads in again."""
    fork_gate.after_fork_in_parent()


def after_fork_in_child():
    """Forget the parent's threads."""
    fork_gate.after_fork_in_child()
    team.after_fork_in_child()


def use_openmp(size_t parallel_region):
    """Have the threads of an OpenMP runtime help, given where its GOMP_parallel lies; 0: ours."""
    team.use(<ParallelRegion> parallel_region)


def fail_allocation(uint64_t number):
    """Make the allocation of that number fail, counted from now on in this thread; 0: none."""
    set_failing_allocation(number)
