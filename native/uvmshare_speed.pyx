# cython: language_level=3, boundscheck=True, wraparound=False, initializedcheck=True
# cython: cdivision=False, nonecheck=True, binding=False, embedsignature=True
"""The hot path of a mount process, compiled: the requests that a guest sends most, where nothing about them is special.

What lives here: parsing those requests, the system calls they take, packing their replies, and receiving and sending
while all goes so; and the encoder of directory entries. What must not: a rule. What a share allows is asked of the
Python side (`uvmshare.fileserver.mount.plain`), or was marked by it; whatever is not just as expected here, an error
above all, is left untouched: then its Python handler serves the request from the beginning, and answers.

So a handler here either does all of a request and returns 1, or has changed nothing and returns 0. What it opens is
owned by Python objects (`Node`, `OpenFile`), whose slots are read in place, after a look at their exact type.

Every byte of the guest's is read through a typed view with its bounds checked.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from cpython.exc cimport PyErr_CheckSignals
from cpython.ref cimport PyObject
from libc.errno cimport EAGAIN, ENODATA, ENOSYS, EOPNOTSUPP, EPERM, errno
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.string cimport memchr, memcmp, memcpy, memmove
from posix.fcntl cimport openat
from posix.stat cimport fstat, struct_stat
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec
from posix.uio cimport RWF_NOWAIT, iovec, preadv2
from posix.unistd cimport close, pwrite

import os
from types import MemberDescriptorType

from uvmshare.errors import RemoteProtocolError

CONTRACT = 5
"""What the Python side must be of. Another number, and the module is not used."""

cdef extern from *:
    """
    #include <structmember.h>
    #include <sys/socket.h>
    #include <sys/xattr.h>
    """
    int T_OBJECT_EX, MSG_NOSIGNAL
    ctypedef struct PyMemberDef:
        int type
        Py_ssize_t offset
    ctypedef struct PyMemberDescrObject:
        PyMemberDef *d_member
    long syscall(long number, ...) nogil
    ssize_t readlinkat(int fd, const char *path, char *buf, size_t size) nogil
    ssize_t recv(int fd, void *buf, size_t count, int flags) nogil
    ssize_t send(int fd, const void *buf, size_t count, int flags) nogil
    ssize_t lgetxattr(const char *path, const char *name, void *value, size_t size) nogil
    size_t strnlen(const char *text, size_t most) nogil

cdef enum:
    T_LOPEN = 12, T_GETATTR = 24, T_WALK = 110, T_READ = 116, T_WRITE = 118, T_CLUNK = 120
    HEADER = 7, READ_HEADER = 11, WRITE_FIELDS = 23, QID = 13, ATTRIBUTES = 153, MAX_NAMES = 16
    PAGE = 4096, FULL = 65536, SMALL = 16384, LARGE = 262144
    FORMAT = 0o170000, REGULAR = 0o100000, SET_ID = 0o6000
    DIRENT = 19, ENTRY = 24, LONGEST = 255, OPENAT2 = 437, RESOLVE_NO_XDEV = 1, GETXATTRAT = 464, NOFOLLOW = 0x100

cdef uint32_t NOFID = 0xFFFFFFFF
cdef int64_t NS = 1000000000, MOST_SECONDS = 9000000000
cdef bint has_getxattrat = True  # from Linux 6.13 on


cdef Py_ssize_t slot(type cls, str name) except -1:
    """Return where the instances of a class have a slot. Raises TypeError for what is no slot of an object."""
    descriptor = getattr(cls, name)
    if type(descriptor) is not MemberDescriptorType: raise TypeError(f"{cls.__name__}.{name} is no slot")
    cdef PyMemberDef *member = (<PyMemberDescrObject *><void *>descriptor).d_member
    if member.type != T_OBJECT_EX: raise TypeError(f"{cls.__name__}.{name} holds no object")
    return member.offset


cdef list slots(type cls, str names): return [slot(cls, name) for name in names.split()]


cdef inline object held(object holder, Py_ssize_t at):
    """Return what a slot holds, None where it is not set; the caller knows the exact type of the holder."""
    cdef PyObject *value = (<PyObject **>((<char *><void *>holder) + at))[0]
    return None if value is NULL else <object>value


cdef inline int number_of(object descriptor) except -2:
    """Return the number of a descriptor; -1 where it was let go."""
    return -1 if type(descriptor) is not int else <int>descriptor


cdef inline int64_t nanoseconds(timespec *time) noexcept:
    """Return a time in nanoseconds; -1, which no file is known to have, where they do not fit."""
    if time.tv_sec > MOST_SECONDS or time.tv_sec < -MOST_SECONDS: return -1
    return time.tv_sec * NS + time.tv_nsec


cdef class Loop:
    """The loop of one session, as far as its requests are plain. `plain` is the contract: see `mount.plain`."""

    cdef object tree, boundary, root, opened_files, lock, outbox
    cdef object known_of, before, before_write, drop_fid, opened, took
    cdef dict fids, known_files
    cdef bytes inside
    cdef type fid_class, node_class, file_class, created_class, known_class
    cdef Py_ssize_t fid_node, fid_uid, fid_file, fid_xattr, node_fd, node_parent
    cdef Py_ssize_t file_fd, file_listing, file_nowait, file_splices, file_sync, file_writable
    cdef Py_ssize_t known_stat, known_ctime, known_mtime, known_made, known_qid, known_attributes
    cdef uint8_t[::1] buffer, out, large
    cdef uint64_t[::1] slots
    cdef uint64_t turn
    cdef int connection, proc, path_flags, reopen_flags, most_descriptors, sampled
    cdef uint32_t odd_flags
    cdef Py_ssize_t room, slack, in_most, splice_min, most_fids, most_open, received_at, sent_at, served_at, length, msize
    cdef bint walks, writes, looks_further, has_landlock, is_sending, is_direct

    def __init__(self, plain):
        """Take the contract. Raises TypeError or AttributeError where it is not the one that was compiled."""
        self.tree, self.boundary, self.root = plain.tree, plain.boundary, plain.root
        self.opened_files, self.lock, self.outbox = plain.opened_files, plain.lock, plain.outbox
        self.known_of, self.before, self.before_write = plain.known, plain.before, plain.before_write
        self.drop_fid, self.opened, self.took = plain.drop_fid, plain.opened, plain.took
        self.fids, self.known_files, self.created_class = plain.fids, plain.known_files, plain.created_class
        self.fid_class, self.node_class, self.known_class = plain.fid_class, plain.node_class, plain.known_class
        self.connection, self.proc, self.file_class = plain.connection, plain.proc, plain.file_class
        self.fid_node, self.fid_uid, self.fid_file, self.fid_xattr = slots(self.fid_class, "node uid file xattr")
        self.node_fd, self.node_parent = slots(self.node_class, "fd parent")
        self.file_fd, self.file_listing, self.file_nowait = slots(self.file_class, "fd listing nowait")
        self.file_splices, self.file_sync, self.file_writable = slots(self.file_class, "splices sync writable")
        self.known_stat, self.known_ctime, self.known_mtime = slots(self.known_class, "stat ctime mtime")
        self.known_made, self.known_qid, self.known_attributes = slots(self.known_class, "made qid attributes")
        self.buffer, self.out, self.large, self.slots = plain.buffer, plain.out, plain.large, plain.slots
        self.path_flags, self.reopen_flags, self.odd_flags = plain.path_flags, plain.reopen_flags, plain.odd_flags
        self.room, self.slack, self.in_most = plain.room, plain.slack, plain.in_most
        self.splice_min, self.most_fids, self.most_open = plain.splice_min, plain.most_fids, plain.most_open
        self.received_at, self.sent_at, self.served_at = plain.received_at, plain.sent_at, plain.served_at
        self.inside, self.sampled = plain.inside, plain.sampled
        self.walks, self.writes, self.looks_further = plain.walks, plain.writes, plain.looks_further
        self.has_landlock, self.most_descriptors = plain.has_landlock, plain.most_descriptors
        if self.room > self.buffer.shape[0] or self.out.shape[0] < FULL + SMALL + PAGE:
            raise TypeError("the buffers are too small")

    def serve(self, Py_ssize_t start, Py_ssize_t end, Py_ssize_t msize, bint measured):
        """Serve what is plain from `start` on, into the outbox; return where what is not plain, or not whole, stands."""
        self.is_direct, self.msize = False, msize
        start = self._serve(start, end, measured)
        self._hand_over()
        return start

    def run(self, Py_ssize_t start, Py_ssize_t end, Py_ssize_t msize):
        """Serve, send and receive for as long as what comes is plain; return where what is received stands then.

        And whether nothing came for as long as receiving waits. Nothing may wait in the outbox, or be under way in a
        thread. Raises what sending raises; what receiving does, the caller meets when it receives.
        """
        cdef Py_ssize_t most, received
        cdef int error
        self.is_direct, self.msize = True, msize
        while True:
            self.turn += 1
            start = self._serve(start, end, self.turn % self.sampled == 0)
            if not self._is_incomplete(start, end):
                self._hand_over()
                return start, end, False
            self._flush()
            most = self.in_most
            if end - start >= WRITE_FIELDS:
                if most and self.buffer[start + 4] == T_WRITE:
                    if <Py_ssize_t>self._number(start, 4) - (end - start) >= self.splice_min: break
                most = 0
            if start == end:
                start = end = 0
            elif self.room - end < self.slack:
                memmove(&self.buffer[0], &self.buffer[start], end - start)
                start, end = 0, end - start
            most = min(most, self.room - end) if most else self.room - end
            if most <= 0: break
            PyErr_CheckSignals()
            with nogil:
                received = recv(self.connection, &self.buffer[end], most, 0)
                error = errno
            if received <= 0: return start, end, received < 0 and error == EAGAIN
            self.slots[self.received_at] += <uint64_t>received
            end += received
        return start, end, False

    # Reading requests

    cdef inline uint64_t _number(self, Py_ssize_t at, int size) except? 0xFFFFFFFF:
        """Return the number of so many bytes, little endian as this machine is, that stands in the buffer."""
        cdef uint64_t value = self.buffer[at + size - 1]  # the last one, for its bounds
        value = 0
        memcpy(&value, &self.buffer[at], size)
        return value

    cdef bint _is_incomplete(self, Py_ssize_t start, Py_ssize_t end) except -1:
        """Say whether what stands at `start` is no whole request yet, of a size that may be."""
        if end - start < HEADER: return True
        cdef uint32_t size = self._number(start, 4)
        return HEADER <= size <= self.msize and size > end - start

    cdef Py_ssize_t _serve(self, Py_ssize_t start, Py_ssize_t end, bint measured) except -1:
        cdef Py_ssize_t at, stop
        cdef uint32_t size, tag, number
        cdef int kind, done = 0
        cdef timespec begun, ended
        if end > self.room or start < 0: raise IndexError("outside the buffer")
        try:
            while end - start >= HEADER:
                size = self._number(start, 4)
                if size < HEADER + 4 or size > self.msize or size > end - start: break
                kind, tag = self.buffer[start + 4], self._number(start + 5, 2)
                at, stop, number = start + HEADER, start + size, self._number(start + HEADER, 4)
                if self.out.shape[0] - self.length < PAGE:
                    if not self.is_direct: break
                    self._flush()
                if measured: clock_gettime(CLOCK_MONOTONIC, &begun)
                if kind == T_GETATTR: done = self._getattr(tag, number, at, stop)
                elif kind == T_READ: done = self._read(tag, number, at, stop)
                elif kind == T_WALK: done = self._walk(tag, number, at, stop)
                elif kind == T_CLUNK: done = self._clunk(tag, number, at, stop)
                elif kind == T_LOPEN: done = self._lopen(tag, number, at, stop)
                elif kind == T_WRITE: done = self._write(tag, number, at, stop)
                else: break
                if not done: break
                start = stop
                self.slots[kind] += 1
                self.slots[self.served_at] += 1
                if measured:
                    clock_gettime(CLOCK_MONOTONIC, &ended)
                    self.took(kind, (ended.tv_sec - begun.tv_sec) * NS + ended.tv_nsec - begun.tv_nsec)
        except Exception as error:
            if self.is_sending or isinstance(error, RemoteProtocolError): raise
            # Nothing was changed: its Python handler meets the same, and answers.
        return start

    cdef inline object _fid(self, uint32_t number):  # None for one of another class
        found = self.fids.get(number)
        return found if type(found) is self.fid_class else None

    cdef inline int _descriptor(self, object node) except -2:
        """Return the descriptor of a node of the loop's own; -1 where it was let go, or is another kind of node."""
        if type(node) is not self.node_class and node is not self.root: return -1
        return number_of(held(node, self.node_fd))

    cdef object _known(self, struct_stat *found):
        """Return what Python knows of a file that is as it was (`Ownership.known`); None where it has to look."""
        cdef object known = self.known_files.get(found.st_ino)
        if type(known) is not self.known_class: return None
        cdef int64_t ctime = nanoseconds(&found.st_ctim), mtime = nanoseconds(&found.st_mtim)
        if ctime == -1 or <int64_t>held(known, self.known_ctime) != ctime: return None
        if mtime == -1 or <int64_t>held(known, self.known_mtime) != mtime: return None
        cdef tuple told = held(known, self.known_stat)
        if <uint32_t>told[0] != found.st_mode or <uint64_t>told[1] != found.st_ino: return None
        if <uint64_t>told[2] != found.st_dev or <uint64_t>told[3] != found.st_nlink: return None
        if <uint32_t>told[4] != found.st_uid or <uint32_t>told[5] != found.st_gid: return None
        return known if <int64_t>told[6] == found.st_size else None

    cdef object _known_anyhow(self, object node, int descriptor):
        """Return what is known of a node, by Python's look at it where it has to look. Raises OSError."""
        cdef struct_stat found
        known = self._known(&found) if fstat(descriptor, &found) == 0 else None
        return self.known_of(node, os.fstat(descriptor)) if known is None else known

    # Writing replies: `_serve` has seen that a page is free

    cdef inline int _put(self, Py_ssize_t at, uint64_t value, int size) except -1:
        self.out[at + size - 1] = 0  # the last one, for its bounds
        memcpy(&self.out[at], &value, size)
        return 0

    cdef inline int _put_qid(self, Py_ssize_t at, object known) except -1:
        cdef tuple qid = held(known, self.known_qid)
        self._put(at, <uint8_t>qid[0], 1)
        self._put(at + 1, <uint32_t>qid[1], 4)
        return self._put(at + 5, <uint64_t>qid[2], 8)

    cdef inline int _end(self, uint8_t request, uint32_t tag, Py_ssize_t body) except -1:
        """Put the header before a body that stands behind it, as the reply to a request of that type; return 1."""
        self._put(self.length, HEADER + body, 4)
        self._put(self.length + 4, request + 1, 1)
        self._put(self.length + 5, tag, 2)
        self.length += HEADER + body
        return 1

    # Requests

    cdef int _getattr(self, uint32_t tag, uint32_t number, Py_ssize_t at, Py_ssize_t stop) except -1:
        cdef struct_stat found
        if stop - at != 12: return 0
        fid = self._fid(number)
        if fid is None: return 0
        cdef int descriptor = self._descriptor(held(fid, self.fid_node))
        if descriptor < 0 or fstat(descriptor, &found) != 0: return 0
        known = self._known(&found)
        if known is None: return 0
        cdef tuple made = held(known, self.known_made)
        cdef object body = made[2]
        if type(body) is not bytes or PyBytes_GET_SIZE(body) != ATTRIBUTES: return 0
        if <int64_t>made[0] != nanoseconds(&found.st_atim) or <int64_t>made[1] != found.st_blocks: return 0
        memcpy(&self.out[self.length + HEADER], PyBytes_AS_STRING(body), ATTRIBUTES)
        return self._end(T_GETATTR, tag, ATTRIBUTES)

    cdef int _walk(self, uint32_t tag, uint32_t number, Py_ssize_t at, Py_ssize_t stop) except -1:
        cdef uint32_t newfid, count, size, index
        cdef Py_ssize_t reply
        cdef int descriptor, directory = -1
        cdef list names = [], nodes
        if stop - at < 10: return 0
        newfid, count = self._number(at + 4, 4), self._number(at + 8, 2)
        fid = self._fid(number)
        if fid is None or count > MAX_NAMES or newfid == NOFID: return 0
        if held(fid, self.fid_file) is not None or held(fid, self.fid_xattr) is not None: return 0
        if newfid != number and (newfid in self.fids or len(self.fids) >= self.most_fids): return 0
        node = held(fid, self.fid_node)
        directory = self._descriptor(node)
        if directory < 0: return 0
        at += 10
        for index in range(count):
            if stop - at < 2: return 0
            size = self._number(at, 2)
            at += 2
            if size > stop - at or size == 0: return 0
            # No name, or one of the two that mean something else.
            if self.buffer[at] == c'.' and (size == 1 or size == 2 and self.buffer[at + 1] == c'.'): return 0
            if memchr(&self.buffer[at], c'/', size) is not NULL or memchr(&self.buffer[at], 0, size) is not NULL:
                return 0
            names.append(PyBytes_FromStringAndSize(<char *>&self.buffer[at], size))
            at += size
        if at != stop: return 0
        nodes = self._open_each(node, directory, names) if count else []
        if nodes is None: return 0
        reply = self.length + HEADER + 2
        for node in nodes:
            descriptor = self._descriptor(node)
            if descriptor < 0 or descriptor > self.most_descriptors: return 0
            self._put_qid(reply, self._known_anyhow(node, descriptor))
            reply += QID
        self._put(self.length + HEADER, count, 2)
        self.fids[newfid] = self.fid_class(node, held(fid, self.fid_uid))
        return self._end(T_WALK, tag, 2 + count * QID)

    cdef list _open_each(self, object start, int directory, list names):
        """Open one name in the other; None where that is not plain, or a name is not there."""
        cdef list nodes = []
        cdef bytes path = b"", name
        cdef const char *text
        cdef int opened
        cdef bint has_mounts = self.tree.has_mounts
        cdef uint64_t how[3]  # of openat2(2), as `syscalls.open_entry` has it
        how[0], how[1], how[2] = self.path_flags, 0, RESOLVE_NO_XDEV
        if not self.walks or not self.boundary.is_alone: return None
        if start is not self.root or len(names) > 1:
            path = self.boundary.before(start)
            if not path: return None
        node = start
        for name in names:
            text = name
            with nogil:
                opened = syscall(OPENAT2, directory, text, how, <size_t>24) if has_mounts else openat(directory, text, how[0])
            if opened < 0: return None
            try:
                node = self.node_class(opened, node, name)
            except BaseException:
                close(opened)
                raise
            nodes.append(node)
            directory = opened
        if start is not self.root or len(names) > 1:
            path = b"/".join([path] + names[: len(names) - 1])
            if not self.boundary.after(held(node, self.node_parent), path, nodes): return None
        return nodes

    cdef int _lopen(self, uint32_t tag, uint32_t number, Py_ssize_t at, Py_ssize_t stop) except -1:
        cdef int descriptor, opened, host
        cdef struct_stat found
        cdef char name[16], path[PAGE]
        cdef const char *inside = self.inside
        cdef ssize_t size
        if stop - at != 8: return 0
        cdef uint32_t flags = self._number(at + 4, 4), access = flags & 3
        if flags & self.odd_flags or access and not self.writes: return 0
        fid = self._fid(number)
        if fid is None or held(fid, self.fid_file) is not None or held(fid, self.fid_xattr) is not None: return 0
        if len(self.opened_files) >= self.most_open: return 0
        node = held(fid, self.fid_node)
        descriptor = self._descriptor(node)
        if descriptor < 0: return 0
        snprintf(name, sizeof(name), "%d", descriptor)
        if not self.has_landlock:
            size = readlinkat(self.proc, name, path, sizeof(path))
            # By the path that all of the share begins with, or by Python's look at it.
            if not len(self.inside) < size < <ssize_t>sizeof(path) or memcmp(path, inside, len(self.inside)) != 0:
                self.boundary.require_inside(node)
        if fstat(descriptor, &found) != 0 or found.st_mode & FORMAT != REGULAR: return 0
        known = self._known(&found)
        if known is None or <uint32_t>held(known, self.known_attributes)[0] & FORMAT != REGULAR: return 0
        host = (2 if access == 3 else <int>access) | self.reopen_flags
        with nogil: opened = openat(self.proc, name, host)
        if opened < 0: return 0
        key = found.st_dev, found.st_ino
        try:
            file = self.file_class(opened, key, writable=access != 0, sync=False, splices=access != 0)
        except BaseException:
            close(opened)
            raise
        self._put_qid(self.length + HEADER, known)
        self._put(self.length + HEADER + QID, 0, 4)
        self.opened(fid, file)
        return self._end(T_LOPEN, tag, QID + 4)

    cdef object _file(self, object fid):
        """Return what a fid has open, where that is an ordinary file; None otherwise."""
        if fid is None: return None
        file = held(fid, self.fid_file)
        if type(file) is not self.file_class and type(file) is not self.created_class: return None
        return file if held(file, self.file_listing) is None else None

    cdef int _read(self, uint32_t tag, uint32_t number, Py_ssize_t at, Py_ssize_t stop) except -1:
        cdef Py_ssize_t count, begin, got
        cdef iovec piece
        cdef uint8_t *into
        cdef int descriptor
        cdef struct_stat found
        if stop - at != 16: return 0
        cdef uint64_t offset = self._number(at + 4, 8)
        count = min(<Py_ssize_t>self._number(at + 12, 4), self.msize - READ_HEADER)
        file = self._file(self._fid(number))
        if file is None or count >= LARGE or offset >> 62 or not self.is_direct and count > SMALL: return 0
        descriptor = number_of(held(file, self.file_fd))
        if descriptor < 0: return 0
        if count <= SMALL:
            if self.out.shape[0] - self.length < count + PAGE:
                if not self.is_direct: return 0
                self._flush()
            begin = self.length + READ_HEADER
            into = &self.out[begin]
            if begin + count > self.out.shape[0]: return 0
        else:
            # The data at the beginning of a page: some CPUs copy to and from any other place slowly.
            begin = PAGE
            into = &self.large[begin]
            if begin + count > self.large.shape[0]: return 0
        cdef bint is_now = held(file, self.file_nowait) is True
        piece.iov_base, piece.iov_len = into, count
        with nogil: got = preadv2(descriptor, &piece, 1, offset, RWF_NOWAIT if is_now else 0)
        if got < 0: return 0
        if is_now and got < count:
            if fstat(descriptor, &found) != 0 or <int64_t>offset + got < found.st_size: return 0
        if count <= SMALL:
            self._put(self.length + HEADER, got, 4)
            self._end(T_READ, tag, 4 + got)
            if self.length >= FULL and self.is_direct: self._flush()
            return 1
        self._flush()
        self._put(HEADER, got, 4)
        self._end(T_READ, tag, 4 + got)
        self.length = 0
        memcpy(&self.large[PAGE - READ_HEADER], &self.out[0], READ_HEADER)
        self._transmit(self.large, PAGE - READ_HEADER, READ_HEADER + got)
        return 1

    cdef int _write(self, uint32_t tag, uint32_t number, Py_ssize_t at, Py_ssize_t stop) except -1:
        cdef Py_ssize_t start = at + 16, count, written
        cdef uint64_t offset
        cdef int descriptor
        cdef struct_stat found
        cdef const uint8_t *data
        if start >= stop: return 0
        offset, count = self._number(at + 4, 8), self._number(at + 12, 4)
        if stop - start != count or offset >> 62 or not self.writes: return 0
        fid = self._fid(number)
        file = self._file(fid)
        # What does not splice may append, where a write that is tried again is another one.
        if file is None or held(file, self.file_splices) is not True: return 0
        if held(file, self.file_writable) is not True or held(file, self.file_sync) is not False: return 0
        descriptor = number_of(held(file, self.file_fd))
        if descriptor < 0: return 0
        if fstat(descriptor, &found) != 0 or found.st_mode & SET_ID: return 0
        if self.looks_further and held(fid, self.fid_uid) != 0:
            self.before_write(held(fid, self.fid_node), descriptor, held(fid, self.fid_uid))
        data = &self.buffer[start]
        if start + count > self.buffer.shape[0]: return 0
        with nogil: written = pwrite(descriptor, data, count, offset)
        if written != count: return 0
        self._put(self.length + HEADER, count, 4)
        return self._end(T_WRITE, tag, 4)

    cdef int _clunk(self, uint32_t tag, uint32_t number, Py_ssize_t at, Py_ssize_t stop) except -1:
        if stop - at != 4: return 0
        fid = self._fid(number)
        if fid is None or held(fid, self.fid_xattr) is not None: return 0
        self.drop_fid(number)
        return self._end(T_CLUNK, tag, 0)

    # Sending

    cdef int _hand_over(self) except -1:
        """Leave to the outbox what has not been sent."""
        if self.length:
            replies = PyBytes_FromStringAndSize(<char *>&self.out[0], self.length)
            self.length = 0
            self.outbox.reply(replies)
        return 0

    cdef int _flush(self) except -1:
        cdef Py_ssize_t length = self.length
        self.length = 0
        return self._transmit(self.out, 0, length) if length else 0

    cdef int _transmit(self, uint8_t[::1] data, Py_ssize_t begin, Py_ssize_t length) except -1:
        """Send whole replies, as `Outbox.flush` does; the rest, where sending ends before all is sent, is its own."""
        cdef ssize_t sent = 0
        if begin < 0 or length <= 0 or begin + length > data.shape[0]: raise IndexError("outside the buffer")
        self.is_sending = True
        self.before()
        self.lock.acquire()
        try:
            if not self.outbox.is_stuck:
                with nogil: sent = max(0, send(self.connection, &data[begin], length, MSG_NOSIGNAL))
            if sent < length:
                self.outbox.transmit(memoryview(data)[begin + sent : begin + length])
        finally:
            self.lock.release()
        self.outbox.sent += length
        self.slots[self.sent_at] += <uint64_t>length
        self.outbox.end_if_asked()
        self.is_sending = False
        return 0


cdef bint may_have(int directory, const char *name, const char *path, const char *attribute) noexcept nogil:
    """Say whether a file has an attribute, or cannot be asked: by its directory, or by its path where Linux must."""
    global has_getxattrat
    cdef uint64_t[2] nothing = [0, 0]  # struct xattr_args: no room for the value
    cdef long found = -1
    if has_getxattrat:
        found = syscall(GETXATTRAT, directory, name, NOFOLLOW, attribute, nothing, sizeof(nothing))
        has_getxattrat = found >= 0 or errno != ENOSYS and errno != EPERM
    if not has_getxattrat: found = lgetxattr(path, attribute, NULL, 0)
    return found >= 0 or errno != ENODATA and errno != EOPNOTSUPP


def encode(
    const uint8_t[::1] raw, uint64_t qid_base, uint64_t most_inode, uint64_t root_inode, const uint8_t[::1] qid_types,
    uint64_t offset, int directory, bytes attribute, object type_of,
):
    """Encode what getdents64(2) gave: return the entries, where each ends (32 bits), and the host's offset behind each.

    None where an entry is not plain: its inode is too large, or its name is too long (one of FAT's has 255 characters,
    of up to three bytes). `root_inode` is that of ".." in the root, 0 in all other directories. `type_of` is asked, by
    a path below the directory, for the type of each regular file that may have the attribute; None where nobody has
    to look. `offset` is that of the last entry before these.
    """
    cdef Py_ssize_t at = 0, start, length, name_length, written = 0, count = 0
    cdef uint64_t inode, behind
    cdef uint8_t kind
    cdef const uint8_t *name
    cdef char path[512]  # what leads here, a name, and its end
    cdef bytes here = b"/proc/self/fd/%d/" % directory
    cdef Py_ssize_t prefix = len(here), size = raw.shape[0]
    cdef bint is_asked
    if qid_types.shape[0] != 16: raise IndexError("outside the buffer")
    cdef bytearray entries = bytearray(2 * size), ends = bytearray(size), places = bytearray(size)
    cdef uint8_t[::1] entry = entries, end = ends, place = places
    cdef const char *mark = PyBytes_AS_STRING(attribute)
    memcpy(path, PyBytes_AS_STRING(here), prefix)
    while at < size:
        if size - at < DIRENT + 1: raise IndexError("an entry is cut off")
        memcpy(&inode, &raw[at], 8)
        memcpy(&behind, &raw[at + 8], 8)
        length, kind = raw[at + 16] | <uint32_t>raw[at + 17] << 8, raw[at + 18]
        if length < DIRENT + 1 or length > size - at: raise IndexError("an entry of no length")
        name = &raw[at + DIRENT]
        name_length = strnlen(<const char *>name, length - DIRENT)
        if name_length == length - DIRENT: raise IndexError("a name without an end")
        if name_length > LONGEST: return None
        at += length
        if root_inode and name_length == 2 and name[0] == c'.' and name[1] == c'.': inode = root_inode
        if kind >= 16: kind = 0
        if kind == 8 and type_of is not None:
            memcpy(path + prefix, name, name_length + 1)
            with nogil: is_asked = may_have(directory, path + prefix, path, mark)
            if is_asked: kind = type_of(here + PyBytes_FromStringAndSize(<const char *>name, name_length))
        if inode >= most_inode: return None
        inode |= qid_base
        offset += 1
        start = written
        written += ENTRY + name_length
        if written > entry.shape[0] or 8 * (count + 1) > place.shape[0]: raise IndexError("entries that are too large")
        entry[start], entry[start + 21], entry[start + 22] = qid_types[kind], kind, name_length
        memcpy(&entry[start + 5], &inode, 8)
        memcpy(&entry[start + 13], &offset, 8)
        if name_length: memcpy(&entry[start + ENTRY], name, name_length)
        memcpy(&end[4 * count], &written, 4)
        memcpy(&place[8 * count], &behind, 8)
        count += 1
    return bytes(entries[:written]), bytes(ends[: 4 * count]), bytes(places[: 8 * count])
