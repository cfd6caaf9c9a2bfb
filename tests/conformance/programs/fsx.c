/* Random operations on one file, each compared with the same on a copy in memory.
 *
 * fsx FILE SEED COUNT [no-map | map-read | map-write] [direct] [no-append]
 *
 * What lives here: reads, writes, truncations, appends, mappings, syncs and reopenings, in an order that the seed alone
 * decides. The first byte that differs ends it with status 1, and the operations that led there are printed.
 * What must not: more than one file or process.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

enum { LARGEST = 400 * 1024, LONGEST = 70 * 1024, REMEMBERED = 40 };

enum operation { READ, WRITE, APPEND, TRUNCATE, MAP_READ, MAP_WRITE, SYNC, REOPEN, STAT, TWICE, OPERATIONS };

static const char *const names[OPERATIONS] = {
    "read", "write", "append", "truncate", "map-read", "map-write", "sync", "reopen", "stat", "twice",
};

static unsigned char model[LARGEST];
static unsigned char buffer[LARGEST];
static size_t size;
static int descriptor;
static const char *path;
static int open_flags = O_RDWR | O_CLOEXEC;
static int appends = 1;
static long counts[OPERATIONS];
static char history[REMEMBERED][80];
static long done;

/* xorshift64*: the same numbers everywhere, which rand(3) does not promise. */
static uint64_t state;

static uint64_t random_number(void)
{
    state ^= state >> 12;
    state ^= state << 25;
    state ^= state >> 27;
    return state * 2685821657736338717ULL;
}

static size_t below(size_t limit)
{
    return limit ? random_number() % limit : 0;
}

static void fail(const char *format, ...)
{
    va_list arguments;
    long from = done >= REMEMBERED ? done - REMEMBERED + 1 : 0;

    printf("fsx: operation %ld: ", done);
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    printf("\n");
    for (long number = from; number <= done; number++)
        printf("%8ld %s\n", number, history[number % REMEMBERED]);
    exit(1);
}

static void remember(enum operation operation, size_t offset, size_t length)
{
    snprintf(history[done % REMEMBERED], sizeof history[0], "%s at %zu, %zu bytes; the size is %zu", names[operation],
             offset, length, size);
    counts[operation]++;
}

static void compare(const unsigned char *found, size_t offset, size_t length, const char *how)
{
    if (!memcmp(found, model + offset, length))
        return;
    for (size_t at = 0; at < length; at++)
        if (found[at] != model[offset + at])
            fail("%s: byte %zu is %02x and should be %02x", how, offset + at, found[at], model[offset + at]);
}

static void open_file(int flags)
{
    descriptor = open(path, open_flags | flags, 0644);
    if (descriptor < 0)
        fail("open: %s", strerror(errno));
}

static void check_size(void)
{
    struct stat found;

    if (fstat(descriptor, &found) < 0)
        fail("fstat: %s", strerror(errno));
    if ((size_t)found.st_size != size)
        fail("the size is %lld and should be %zu", (long long)found.st_size, size);
}

static void read_at(size_t offset, size_t length)
{
    size_t got = 0;

    while (got < length) {
        ssize_t now = pread(descriptor, buffer + got, length - got, offset + got);
        if (now < 0)
            fail("read: %s", strerror(errno));
        if (now == 0)
            fail("read: it ends %zu bytes early", length - got);
        got += now;
    }
    compare(buffer, offset, length, "read");
    if (pread(descriptor, buffer, 1, size) != 0)
        fail("read: there is something behind the end");
}

static void write_at(size_t offset, size_t length)
{
    size_t put = 0;

    for (size_t at = 0; at < length; at++)
        model[offset + at] = (unsigned char)(random_number() >> 32);
    while (put < length) {
        ssize_t now = pwrite(descriptor, model + offset + put, length - put, offset + put);
        if (now <= 0)
            fail("write: %s", now ? strerror(errno) : "nothing was written");
        put += now;
    }
    if (offset + length > size)
        size = offset + length;
}

/* Through a second description with O_APPEND, whose offset must not matter. */
static void append(size_t length)
{
    int other = open(path, O_WRONLY | O_APPEND | O_CLOEXEC);

    if (other < 0)
        fail("open to append: %s", strerror(errno));
    for (size_t at = 0; at < length; at++)
        model[size + at] = (unsigned char)(random_number() >> 32);
    if (write(other, model + size, length) != (ssize_t)length)
        fail("append: %s", strerror(errno));
    size += length;
    close(other);
}

static void truncate_to(size_t length)
{
    int failed = random_number() & 1 ? ftruncate(descriptor, length) : truncate(path, length);

    if (failed)
        fail("truncate: %s", strerror(errno));
    if (length < size)
        memset(model + length, 0, size - length);
    size = length;
}

static void map(size_t offset, size_t length, int writing)
{
    size_t page = sysconf(_SC_PAGESIZE);
    size_t start = offset / page * page;
    int reading = open(path, O_RDONLY | O_CLOEXEC);
    unsigned char *mapped;

    if (reading < 0)
        fail("open to map: %s", strerror(errno));
    /* What is only read is mapped from a descriptor that cannot write: from another, Linux's 9P client refuses it. */
    mapped = mmap(NULL, offset - start + length, writing ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED,
                  writing ? descriptor : reading, start);
    if (mapped == MAP_FAILED)
        fail("mmap: %s", strerror(errno));
    close(reading);
    compare(mapped + (offset - start), offset, length, "map");
    if (writing) {
        for (size_t at = 0; at < length; at++)
            model[offset + at] = (unsigned char)(random_number() >> 32);
        memcpy(mapped + (offset - start), model + offset, length);
        if (msync(mapped, offset - start + length, MS_SYNC))
            fail("msync: %s", strerror(errno));
    }
    if (munmap(mapped, offset - start + length))
        fail("munmap: %s", strerror(errno));
}

/* Two writes that meet at an odd boundary. */
static void write_twice(size_t offset, size_t length)
{
    size_t half = length / 3;

    write_at(offset, half);
    write_at(offset + half, length - half);
}

static void step(int mapping)
{
    enum operation operation = random_number() % OPERATIONS;
    size_t offset, length;

    if (operation == MAP_WRITE && mapping < 2)
        operation = WRITE;
    if (operation == MAP_READ && mapping < 1)
        operation = READ;
    if ((operation == READ || operation == MAP_READ || operation == MAP_WRITE) && size == 0)
        operation = WRITE;
    if (operation == READ || operation == MAP_READ || operation == MAP_WRITE) {
        offset = below(size);
        length = 1 + below(size - offset < LONGEST ? size - offset : LONGEST);
        if (length > size - offset)
            length = size - offset;
    } else {
        offset = below(LARGEST - LONGEST);
        length = 1 + below(LONGEST - 1);
    }
    if (operation == APPEND && (!appends || size + length > LARGEST))
        operation = WRITE;
    if (operation == APPEND)
        offset = size;
    if (operation == TRUNCATE)
        length = 0;
    remember(operation, offset, length);
    switch (operation) {
    case READ: read_at(offset, length); break;
    case WRITE: write_at(offset, length); break;
    case APPEND: append(length); break;
    case TRUNCATE: truncate_to(offset); break;
    case MAP_READ: map(offset, length, 0); break;
    case MAP_WRITE: map(offset, length, 1); break;
    case SYNC:
        if (length & 1 ? fsync(descriptor) : fdatasync(descriptor))
            fail("fsync: %s", strerror(errno));
        break;
    case REOPEN:
        if (close(descriptor))
            fail("close: %s", strerror(errno));
        open_file(0);
        break;
    case TWICE: write_twice(offset, length); break;
    case STAT: case OPERATIONS: break;
    }
    check_size();
}

int main(int argc, char **argv)
{
    int mapping = 0;
    long count;

    if (argc < 4) {
        fprintf(stderr, "usage: fsx FILE SEED COUNT [no-map | map-read | map-write] [direct] [no-append]\n");
        return 2;
    }
    path = argv[1];
    state = strtoull(argv[2], NULL, 10) * 2 + 88172645463325253ULL;
    count = strtol(argv[3], NULL, 10);
    for (int number = 4; number < argc; number++) {
        if (!strcmp(argv[number], "map-read"))
            mapping = 1;
        else if (!strcmp(argv[number], "map-write"))
            mapping = 2;
        else if (!strcmp(argv[number], "direct"))
            open_flags |= O_DIRECT;
        else if (!strcmp(argv[number], "no-append"))
            appends = 0;
    }
    open_file(O_CREAT | O_TRUNC);
    for (done = 0; done < count; done++)
        step(mapping);
    if (size)
        read_at(0, size);
    printf("fsx: %ld operations:", count);
    for (int operation = 0; operation < OPERATIONS; operation++)
        printf(" %s %ld", names[operation], counts[operation]);
    printf("\n");
    return 0;
}
