# The encoder of directory entries: a part of uvmshare_speed.pyx, which includes it.


def encode(
    const uint8_t[::1] raw, uint64_t qid_base, uint64_t most_inode, object root_inode,
    const uint8_t[::1] qid_types, uint64_t offset, bytes here, object type_of,
):
    """Encode what getdents64(2) gave: return the entries, where each ends (32 bits), and the host's offset behind each.

    None where an entry is not plain: its inode is too large, or its name is too long (one of FAT's has 255 characters,
    of up to three bytes). `type_of` is asked, by a path below `here`, for the type of each regular file that has any
    attribute; None where nobody has to look. `offset` is that of the last entry before these.
    """
    cdef Py_ssize_t at = 0, start, length, name_length, written = 0, count = 0
    cdef uint64_t inode, behind
    cdef uint32_t record
    cdef uint8_t kind
    cdef const uint8_t *name
    cdef char path[512]  # what leads here, a name, and its end
    cdef Py_ssize_t prefix = len(here), size = raw.shape[0]
    cdef ssize_t attributes
    cdef uint64_t root = 0
    cdef bint is_root = root_inode is not None
    if is_root:
        root = root_inode
    if prefix > 128 or qid_types.shape[0] != 16: raise IndexError("outside the buffer")
    cdef bytearray entries = bytearray(2 * size), ends = bytearray(size), places = bytearray(size)
    cdef uint8_t[::1] entry = entries, end = ends, place = places
    memcpy(path, PyBytes_AS_STRING(here), prefix)
    while at < size:
        if size - at < DIRENT + 1: raise IndexError("an entry is cut off")
        memcpy(&inode, &raw[at], 8)
        memcpy(&behind, &raw[at + 8], 8)
        record, kind = raw[at + 16] | <uint32_t>raw[at + 17] << 8, raw[at + 18]
        length = record
        if length < DIRENT + 1 or length > size - at: raise IndexError("an entry of no length")
        name = &raw[at + DIRENT]
        name_length = strnlen(<const char *>name, length - DIRENT)
        if name_length == length - DIRENT: raise IndexError("a name without an end")
        if name_length > LONGEST: return None
        at += length
        if is_root and name_length == 2 and name[0] == c'.' and name[1] == c'.':
            inode = root
        if kind >= 16:
            kind = 0
        if kind == 8 and type_of is not None:
            memcpy(path + prefix, name, name_length + 1)
            with nogil:
                attributes = llistxattr(path, NULL, 0)
            if attributes != 0:
                kind = type_of(here + PyBytes_FromStringAndSize(<const char *>name, name_length))
        if inode >= most_inode: return None
        inode |= qid_base
        offset += 1
        start = written
        written += ENTRY + name_length
        if written > entry.shape[0] or 8 * (count + 1) > place.shape[0]: raise IndexError("entries that are too large")
        entry[start] = qid_types[kind]
        memcpy(&entry[start + 5], &inode, 8)
        memcpy(&entry[start + 13], &offset, 8)
        entry[start + 21] = kind
        entry[start + 22] = name_length
        if name_length:
            memcpy(&entry[start + ENTRY], name, name_length)
        memcpy(&end[4 * count], &written, 4)
        memcpy(&place[8 * count], &behind, 8)
        count += 1
    return (
        PyBytes_FromStringAndSize(PyByteArray_AS_STRING(entries), written),
        PyBytes_FromStringAndSize(PyByteArray_AS_STRING(ends), 4 * count),
        PyBytes_FromStringAndSize(PyByteArray_AS_STRING(places), 8 * count),
    )
