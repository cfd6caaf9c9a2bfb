/* The bytes of 9P2000.L, for the load generator and the minimal server alike.
 *
 * What lives here: message numbers, little-endian numbers, the frame of a message. What must not:
 * sockets and files. Layouts are those of diod's protocol.md and intro(5).
 */
#ifndef WIRE_H
#define WIRE_H

#include <stdint.h>
#include <string.h>

enum {
    RLERROR = 7,
    TLOPEN = 12,
    TLCREATE = 14,
    TGETATTR = 24,
    TSETATTR = 26,
    TREADDIR = 40,
    TUNLINKAT = 76,
    TVERSION = 100,
    TATTACH = 104,
    TWALK = 110,
    TREAD = 116,
    TWRITE = 118,
    TCLUNK = 120,
    TREMOVE = 122,
};

enum {
    HEADER_SIZE = 7,       /* size[4] type[1] tag[2] */
    IO_HEADER_SIZE = 24,   /* P9_IOHDRSZ: what msize leaves for data is less by this */
    READ_HEADER_SIZE = 11, /* header and count[4] */
    QID_SIZE = 13,
    GETATTR_SIZE = 153, /* an Rgetattr without its header */
    NOTAG = 0xFFFF,
};

#define NOFID 0xFFFFFFFFu
#define GETATTR_BASIC 0x7FFu

/* Numbers are copied as they stand: the machines that this runs on are little-endian. */
_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "9P is little-endian, and so must be this machine");

static inline uint16_t get16(const uint8_t *at) {
    uint16_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint32_t get32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t get64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint8_t *put8(uint8_t *at, uint8_t value) {
    *at = value;
    return at + 1;
}

static inline uint8_t *put16(uint8_t *at, uint16_t value) {
    memcpy(at, &value, sizeof value);
    return at + sizeof value;
}

static inline uint8_t *put32(uint8_t *at, uint32_t value) {
    memcpy(at, &value, sizeof value);
    return at + sizeof value;
}

static inline uint8_t *put64(uint8_t *at, uint64_t value) {
    memcpy(at, &value, sizeof value);
    return at + sizeof value;
}

static inline uint8_t *put_string(uint8_t *at, const char *text) {
    size_t length = strlen(text);
    at = put16(at, (uint16_t)length);
    memcpy(at, text, length);
    return at + length;
}

/* Begin a message; the size is put in when it ends. */
static inline uint8_t *begin_message(uint8_t *start, uint8_t type, uint16_t tag) {
    return put16(put8(start + 4, type), tag);
}

static inline uint8_t *end_message(uint8_t *start, uint8_t *end) {
    put32(start, (uint32_t)(end - start));
    return end;
}

#endif
