/* The load: a 9P2000.L client that keeps a number of operations under way and measures them.
 *
 *     load ADDRESS ANAME WORKLOAD DEPTH CONNECTIONS WARM_MS RUN_MS UID
 *
 * ADDRESS is unix:PATH or tcp:PORT (on loopback). Each connection is a thread with DEPTH slots; a slot
 * does one operation after the other, each a few messages long, and its messages wait for each other's
 * replies, as those of one guest process do. Everything that slots have to say after a receive leaves
 * with one send. Any reply that is not the right one ends the program with a message and status 1:
 * errors are never counted as work.
 *
 * When every connection is set up it prints an empty line and waits for one. At the end it prints a line
 * of JSON: operations and bytes in the measured time, percentiles of the latency of an operation, from its
 * first message to its last reply; and, since the empty line, how many messages were sent and how much
 * CPU time that took here. Then it waits, connected, for the end of its input. So the server's processes
 * can be looked at before and after.
 *
 * The tree it expects is that of benchmarks/trees.py; the sizes below are the same there.
 */
#define _GNU_SOURCE
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

enum {
    MSIZE = 1 << 20, /* the most that Linux's client offers over sockets */
    IN_SIZE = 4 << 20,
    OUT_SIZE = 256 << 10,
    DEPTH_MAX = 64,
    SMALL_FILES = 64,
    SMALL_SIZE = 4096,
    BULK_SIZE = 64 << 20,
    LISTED = 10000,
    LISTING_COUNT = (128 << 10) - IO_HEADER_SIZE, /* what a guest with the default msize asks for */
    STATUS_DIRECTORIES = 20,
    STATUS_FILES = 50,
    STATUS_READ = 2,  /* files of a directory whose content is looked at */
    COLD_SIZE = 4096,
};
#define COLD_FILE_SIZE (256ull << 20)
#define NEVER 0xFFu

struct connection;
struct slot;

/* Puts a slot's next message into the buffer, or says false: the operation is done. `reply` is the body of
 * the reply to the message before, NULL at an operation's beginning. */
typedef bool next_fn(struct connection *, struct slot *, const uint8_t *reply);

struct slot {
    uint16_t tag;
    next_fn *next;
    bool measured; /* whether its operations count */
    int step;
    uint8_t expected; /* type of the reply that is due; NEVER when nothing is under way */
    uint32_t expected_error; /* the errno that is due instead, 0 for none; or_error is right too */
    uint32_t or_error;
    uint32_t asked;          /* bytes that the reply must carry or confirm */
    uint32_t fid, root, other;
    uint64_t offset, random, count, listed;
    uint64_t started;
    char name[32];
    uint8_t *frame; /* of a large write, which is sent from here */
};

struct connection {
    int number, socket;
    uint32_t msize;
    uint8_t *in, *out, *out_end;
    struct slot slots[DEPTH_MAX];
    uint64_t position; /* of sequential reads and writes */
    uint64_t operations, messages;
    uint64_t *latencies;
    size_t latency_room;
    bool no_unlinkat; /* the server answers Tunlinkat with EOPNOTSUPP */
};

static const char *address, *aname, *workload_name;
static int depth, connections;
static uint64_t warm_ns, run_ns;
static uint32_t user;
static pthread_barrier_t ready, go;

static void fail(const char *format, ...) __attribute__((noreturn, format(printf, 1, 2)));
static void fail(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fprintf(stderr, "load: %s on %s: ", workload_name, address);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    exit(1);
}

static uint64_t now(void) {
    struct timespec at;
    clock_gettime(CLOCK_MONOTONIC, &at);
    return (uint64_t)at.tv_sec * 1000000000u + (uint64_t)at.tv_nsec;
}

static double cpu_us(void) {
    struct timespec at;
    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &at);
    return (double)at.tv_sec * 1e6 + (double)at.tv_nsec / 1e3;
}

static uint64_t next_random(uint64_t *state) { /* xorshift64, never 0 */
    *state ^= *state << 13;
    *state ^= *state >> 7;
    return *state ^= *state << 17;
}

/* Sending */

static void send_all(const struct connection *c, const uint8_t *at, size_t size) {
    while (size) {
        ssize_t sent = send(c->socket, at, size, MSG_NOSIGNAL);
        if (sent < 0)
            fail("cannot send: %s", strerror(errno));
        at += sent;
        size -= (size_t)sent;
    }
}

static void flush_out(struct connection *c) {
    send_all(c, c->out, (size_t)(c->out_end - c->out));
    c->out_end = c->out;
}

static uint8_t *begin(struct connection *c, struct slot *s, uint8_t type) {
    if (c->out_end - c->out > OUT_SIZE - 4096)
        flush_out(c);
    s->expected = type + 1;
    s->expected_error = s->or_error = 0;
    return begin_message(c->out_end, type, s->tag);
}

static bool finish(struct connection *c, uint8_t *end) {
    c->out_end = end_message(c->out_end, end);
    c->messages++;
    return true;
}

/* Messages */

static bool put_walk(struct connection *c, struct slot *s, uint32_t fid, uint32_t newfid, int names,
                     const char *const *name) {
    uint8_t *at = put16(put32(put32(begin(c, s, TWALK), fid), newfid), (uint16_t)names);
    for (int i = 0; i < names; i++)
        at = put_string(at, name[i]);
    s->asked = (uint32_t)names;
    return finish(c, at);
}

static bool put_clone(struct connection *c, struct slot *s, uint32_t fid, uint32_t newfid) {
    return put_walk(c, s, fid, newfid, 0, NULL);
}

static bool put_getattr(struct connection *c, struct slot *s, uint32_t fid) {
    return finish(c, put64(put32(begin(c, s, TGETATTR), fid), GETATTR_BASIC));
}

static bool put_clunk(struct connection *c, struct slot *s, uint32_t fid) {
    return finish(c, put32(begin(c, s, TCLUNK), fid));
}

static bool put_lopen(struct connection *c, struct slot *s, uint32_t fid, uint32_t flags) {
    return finish(c, put32(put32(begin(c, s, TLOPEN), fid), flags));
}

static bool put_read(struct connection *c, struct slot *s, uint8_t type, uint32_t fid, uint64_t offset,
                     uint32_t count) {
    s->asked = count;
    return finish(c, put32(put64(put32(begin(c, s, type), fid), offset), count));
}

static bool put_lcreate(struct connection *c, struct slot *s, uint32_t fid, const char *name) {
    uint8_t *at = put_string(put32(begin(c, s, TLCREATE), fid), name);
    return finish(c, put32(put32(put32(at, 2), 0644), user)); /* O_RDWR */
}

static bool put_write(struct connection *c, struct slot *s, uint32_t fid, uint64_t offset, uint32_t count) {
    uint8_t *at = begin(c, s, TWRITE);
    s->asked = count;
    if (count <= SMALL_SIZE) {
        if (c->out_end - c->out > OUT_SIZE - 4096 - SMALL_SIZE) {
            flush_out(c);
            at = begin(c, s, TWRITE);
        }
        at = put32(put64(put32(at, fid), offset), count);
        memset(at, 'w', count);
        return finish(c, at + count);
    }
    flush_out(c);
    at = put32(put64(put32(begin_message(s->frame, TWRITE, s->tag), fid), offset), count);
    uint8_t *end = end_message(s->frame, at + count);
    send_all(c, s->frame, (size_t)(end - s->frame));
    c->messages++;
    return true;
}

static bool put_unlink(struct connection *c, struct slot *s, uint32_t fid, const char *name) {
    return finish(c, put32(put_string(put32(begin(c, s, TUNLINKAT), fid), name), 0));
}

static bool put_remove(struct connection *c, struct slot *s, uint32_t fid) {
    return finish(c, put32(begin(c, s, TREMOVE), fid));
}

/* Receiving: what every reply is held to */

static void check_reply(struct slot *s, uint8_t type, const uint8_t *body, uint32_t size) {
    if (s->expected == NEVER)
        fail("a reply of type %u to tag %u, which asked nothing", type, s->tag);
    if (type == RLERROR) {
        uint32_t error = size >= 4 ? get32(body) : 0;
        if (!error || (error != s->expected_error && error != s->or_error))
            fail("error reply: %s (in answer to message type %u)", strerror((int)error), s->expected - 1);
    } else if (type != s->expected) {
        fail("a reply of type %u where %u was due", type, s->expected);
    } else if (s->expected_error) {
        fail("success where %s was due", strerror((int)s->expected_error));
    }
    if (type == TWALK + 1 && get16(body) != s->asked)
        fail("walked %u names of %u", get16(body), s->asked);
    if ((type == TREAD + 1 || type == TWRITE + 1) && get32(body) != s->asked)
        fail("%u bytes came where %u were due", get32(body), s->asked);
    if (type == TREAD + 1 && size != 4 + s->asked)
        fail("an Rread whose count is not its data's");
    if (type == TGETATTR + 1 && size != GETATTR_SIZE)
        fail("an Rgetattr of %u bytes", size);
}

/* Take one message off the socket, for the set-up, when nothing is under way. */
static const uint8_t *receive_one(struct connection *c, struct slot *s) {
    flush_out(c);
    size_t end = 0;
    while (end < 4 || end < get32(c->in)) {
        ssize_t got = recv(c->socket, c->in + end, IN_SIZE - end, 0);
        if (got <= 0)
            fail("the connection ended in the set-up: %s", got ? strerror(errno) : "closed by the server");
        end += (size_t)got;
    }
    check_reply(s, c->in[4], c->in + HEADER_SIZE, get32(c->in) - HEADER_SIZE);
    s->expected = NEVER;
    return c->in + HEADER_SIZE;
}

#define ASK(put) ((void)(put), receive_one(c, s))

static void open_path(struct connection *c, struct slot *s, uint32_t fid, const char *name, uint32_t flags) {
    ASK(put_walk(c, s, s->root, fid, 1, &name));
    ASK(put_lopen(c, s, fid, flags));
}

/* Workloads */

static bool next_getattr(struct connection *c, struct slot *s, const uint8_t *reply) {
    return reply ? false : put_getattr(c, s, s->fid);
}

static void set_up_getattr(struct connection *c, struct slot *s) {
    const char *name = "file";
    ASK(put_walk(c, s, s->root, s->fid, 1, &name));
}

static bool next_walk(struct connection *c, struct slot *s, const uint8_t *reply) {
    (void)reply;
    static const char *const path[] = {"one", "two", "three"};
    switch (s->step) {
    case 0:
        return put_walk(c, s, s->root, s->fid, 3, path);
    case 1:
        return put_getattr(c, s, s->fid);
    case 2:
        return put_clunk(c, s, s->fid);
    default:
        return false;
    }
}

static bool next_open_read(struct connection *c, struct slot *s, const uint8_t *reply) {
    (void)reply;
    switch (s->step) {
    case 0: {
        snprintf(s->name, sizeof s->name, "small%02u", (unsigned)(s->count++ % SMALL_FILES));
        const char *name = s->name;
        return put_walk(c, s, s->root, s->fid, 1, &name);
    }
    case 1:
        return put_lopen(c, s, s->fid, 0);
    case 2:
        return put_read(c, s, TREAD, s->fid, 0, SMALL_SIZE);
    case 3:
        return put_clunk(c, s, s->fid);
    default:
        return false;
    }
}

static bool next_create(struct connection *c, struct slot *s, const uint8_t *reply) {
    (void)reply;
    switch (s->step) {
    case 0:
        snprintf(s->name, sizeof s->name, "new-%d-%u-%u", c->number, s->tag, (unsigned)s->count++);
        return put_clone(c, s, s->other, s->fid);
    case 1:
        return put_lcreate(c, s, s->fid, s->name);
    case 2:
        return put_write(c, s, s->fid, 0, SMALL_SIZE);
    case 3:
        return put_clunk(c, s, s->fid);
    case 4: {
        if (!c->no_unlinkat)
            return put_unlink(c, s, s->other, s->name);
        const char *name = s->name;
        return put_walk(c, s, s->other, s->fid, 1, &name);
    }
    case 5:
        return c->no_unlinkat && put_remove(c, s, s->fid);
    default:
        return false;
    }
}

/* A server without Tunlinkat gets a walk and a Tremove instead, as Linux's client does it. */
static void set_up_create(struct connection *c, struct slot *s) {
    const char *name = "scratch";
    ASK(put_walk(c, s, s->root, s->other, 1, &name));
    put_unlink(c, s, s->other, "nothing");
    s->expected_error = ENOENT;
    s->or_error = EOPNOTSUPP;
    c->no_unlinkat = get32(receive_one(c, s)) == EOPNOTSUPP;
}

static uint32_t bulk_count; /* bytes an operation moves, cut to what a message holds */

static uint32_t bulk_of(const struct connection *c) {
    return bulk_count < c->msize - IO_HEADER_SIZE ? bulk_count : c->msize - IO_HEADER_SIZE;
}

static uint64_t take_position(struct connection *c) {
    uint32_t count = bulk_of(c);
    if (c->position + count > BULK_SIZE)
        c->position = 0;
    uint64_t at = c->position;
    c->position += count;
    return at;
}

static bool next_seq_read(struct connection *c, struct slot *s, const uint8_t *reply) {
    if (reply)
        return false;
    return put_read(c, s, TREAD, s->fid, take_position(c), bulk_of(c));
}

static bool next_random_read(struct connection *c, struct slot *s, const uint8_t *reply) {
    if (reply)
        return false;
    uint64_t offset = next_random(&s->random) % (BULK_SIZE / SMALL_SIZE) * SMALL_SIZE;
    return put_read(c, s, TREAD, s->fid, offset, bulk_of(c));
}

static bool next_seq_write(struct connection *c, struct slot *s, const uint8_t *reply) {
    if (reply)
        return false;
    return put_write(c, s, s->fid, take_position(c), bulk_of(c));
}

static void set_up_bulk(struct connection *c, struct slot *s) { open_path(c, s, s->fid, "bulk", 0); }

static void set_up_bulk_write(struct connection *c, struct slot *s) {
    snprintf(s->name, sizeof s->name, "bulk-write%d", c->number);
    open_path(c, s, s->fid, s->name, 1);
    s->frame = calloc(1, MSIZE);
}

/* Count the entries of a reply, add those that are not "." and ".." to the slot's count, and remember where
 * the next reply goes on. */
static uint32_t take_entries(struct slot *s, const uint8_t *body) {
    const uint8_t *at = body + 4, *end = at + get32(body);
    uint32_t entries = 0;
    while (at < end) {
        s->offset = get64(at + QID_SIZE);
        uint16_t length = get16(at + QID_SIZE + 9);
        const uint8_t *name = at + QID_SIZE + 9 + 2;
        s->listed += !(length <= 2 && !memcmp(name, "..", length));
        at = name + length;
        entries++;
    }
    if (at != end)
        fail("an Rreaddir that ends inside an entry");
    return entries;
}

static uint32_t listing_count(const struct connection *c) {
    return LISTING_COUNT < c->msize - IO_HEADER_SIZE ? LISTING_COUNT : c->msize - IO_HEADER_SIZE;
}

/* A change of its time before each listing, so that no server has anything of it. */
static bool put_touch(struct connection *c, struct slot *s, uint32_t fid) {
    uint8_t *at = put32(put32(begin(c, s, TSETATTR), fid), 0x20); /* mtime, now */
    memset(at, 0, 12 + 5 * 8);
    return finish(c, at + 12 + 5 * 8);
}

static bool next_readdir(struct connection *c, struct slot *s, const uint8_t *reply) {
    switch (s->step) {
    case 0:
        s->offset = s->listed = 0;
        return put_clone(c, s, s->other, s->fid);
    case 1:
        return put_lopen(c, s, s->fid, 0200000); /* O_DIRECTORY */
    case 2:
        return put_read(c, s, TREADDIR, s->fid, 0, listing_count(c));
    case 3: {
        uint32_t entries = take_entries(s, reply);
        if (entries) {
            s->step = 2;
            return put_read(c, s, TREADDIR, s->fid, s->offset, listing_count(c));
        }
        if (s->listed != LISTED)
            fail("%u entries where %u were due", (unsigned)s->listed, LISTED);
        return put_clunk(c, s, s->fid);
    }
    default:
        return false;
    }
}

static bool next_readdir_changed(struct connection *c, struct slot *s, const uint8_t *reply) {
    if (s->step == 0)
        return put_touch(c, s, s->other);
    s->step--;
    bool more = next_readdir(c, s, reply);
    s->step++;
    return more;
}

static void set_up_readdir(struct connection *c, struct slot *s) {
    const char *name = "listed";
    ASK(put_walk(c, s, s->root, s->other, 1, &name));
}

/* What a Linux guest sends for `git status` in one directory: a look for .gitignore, the listing, a stat
 * of each file (one walk, two getattrs, a clunk) and the content of the few whose time has changed. */
static bool next_status(struct connection *c, struct slot *s, const uint8_t *reply) {
    enum { IGNORE, DIRECTORY, CLONE, OPEN, LIST, LISTING, FILES };
    enum { PER_FILE = 4, PER_READ = 5 };
    const char *name = s->name;
    switch (s->step) {
    case IGNORE: {
        const char *ignore = ".gitignore";
        snprintf(s->name, sizeof s->name, "d%02u", (unsigned)(s->count++ % STATUS_DIRECTORIES));
        put_walk(c, s, s->root, s->fid, 1, &ignore);
        s->expected_error = ENOENT;
        return true;
    }
    case DIRECTORY: {
        const char *path[] = {"status", s->name};
        return put_walk(c, s, s->root, s->other, 2, path);
    }
    case CLONE:
        return put_clone(c, s, s->other, s->fid);
    case OPEN:
        return put_lopen(c, s, s->fid, 0200000);
    case LIST:
        s->listed = 0;
        return put_read(c, s, TREADDIR, s->fid, 0, listing_count(c));
    case LISTING:
        if (take_entries(s, reply)) {
            s->step = LIST;
            return put_read(c, s, TREADDIR, s->fid, s->offset, listing_count(c));
        }
        if (s->listed != STATUS_FILES)
            fail("%u entries where %u were due", (unsigned)s->listed, STATUS_FILES);
        return put_clunk(c, s, s->fid);
    default:
        break;
    }
    int at = s->step - FILES;
    if (at < STATUS_FILES * PER_FILE) {
        snprintf(s->name, sizeof s->name, "f%02d", at / PER_FILE);
        switch (at % PER_FILE) {
        case 0:
            return put_walk(c, s, s->other, s->fid, 1, &name);
        case 1:
        case 2:
            return put_getattr(c, s, s->fid);
        default:
            return put_clunk(c, s, s->fid);
        }
    }
    at -= STATUS_FILES * PER_FILE;
    if (at < STATUS_READ * PER_READ) {
        snprintf(s->name, sizeof s->name, "f%02d", at / PER_READ);
        switch (at % PER_READ) {
        case 0:
            return put_walk(c, s, s->other, s->fid, 1, &name);
        case 1:
            return put_getattr(c, s, s->fid);
        case 2:
            return put_lopen(c, s, s->fid, 0);
        case 3:
            return put_read(c, s, TREAD, s->fid, 0, 1024);
        default:
            return put_clunk(c, s, s->fid);
        }
    }
    return at == STATUS_READ * PER_READ ? put_clunk(c, s, s->other) : false;
}

/* Reads that miss the page cache, of pages that are not read twice; the caller has emptied the cache.
 * Slot 0 gets attributes meanwhile, and only it is measured. */
static bool next_cold_read(struct connection *c, struct slot *s, const uint8_t *reply) {
    if (reply)
        return false;
    /* An odd stride visits every page once before any twice. */
    uint64_t pages = COLD_FILE_SIZE / COLD_SIZE;
    uint64_t page = (s->tag * (pages / DEPTH_MAX) + s->count++ * 7919) % pages;
    return put_read(c, s, TREAD, s->fid, page * COLD_SIZE, COLD_SIZE);
}

static void set_up_cold(struct connection *c, struct slot *s) {
    if (s->tag == 0) {
        set_up_getattr(c, s);
        s->next = next_getattr;
        return;
    }
    open_path(c, s, s->fid, "cold", 0);
    s->measured = false;
}

static const struct workload {
    const char *name;
    next_fn *next;
    void (*set_up)(struct connection *, struct slot *);
    uint32_t bulk;
} workloads[] = {
    {"getattr", next_getattr, set_up_getattr, 0},
    {"walk", next_walk, NULL, 0},
    {"open-read", next_open_read, NULL, 0},
    {"create-unlink", next_create, set_up_create, 0},
    {"read-64k", next_seq_read, set_up_bulk, 64 << 10},
    {"read-128k", next_seq_read, set_up_bulk, LISTING_COUNT},
    {"read-512k", next_seq_read, set_up_bulk, 512 << 10},
    {"read-1m", next_seq_read, set_up_bulk, 1 << 20},
    {"write-64k", next_seq_write, set_up_bulk_write, 64 << 10},
    {"write-128k", next_seq_write, set_up_bulk_write, LISTING_COUNT},
    {"write-512k", next_seq_write, set_up_bulk_write, 512 << 10},
    {"write-1m", next_seq_write, set_up_bulk_write, 1 << 20},
    {"random-read-4k", next_random_read, set_up_bulk, SMALL_SIZE},
    {"readdir", next_readdir, set_up_readdir, 0},
    {"readdir-changed", next_readdir_changed, set_up_readdir, 0},
    {"git-status", next_status, NULL, 0},
    {"cold-reads", next_cold_read, set_up_cold, 0},
};
static const struct workload *workload;

/* The session */

static int connect_to(void) {
    int made = -1, status = -1, yes = 1;
    if (!strncmp(address, "unix:", 5)) {
        struct sockaddr_un where = {.sun_family = AF_UNIX};
        snprintf(where.sun_path, sizeof where.sun_path, "%s", address + 5);
        made = socket(AF_UNIX, SOCK_STREAM, 0);
        status = connect(made, (void *)&where, sizeof where);
    } else if (!strncmp(address, "tcp:", 4)) {
        struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        where.sin_port = htons((uint16_t)atoi(address + 4));
        made = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(made, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        status = connect(made, (void *)&where, sizeof where);
    }
    if (status)
        fail("cannot connect: %s", strerror(errno));
    return made;
}

static void set_up(struct connection *c) {
    c->socket = connect_to();
    c->in = malloc(IN_SIZE);
    c->out_end = c->out = malloc(OUT_SIZE);
    c->latency_room = 1 << 16;
    c->latencies = malloc(c->latency_room * sizeof *c->latencies);

    struct slot first = {.tag = NOTAG}, *s = &first;
    const uint8_t *reply = ASK(finish(c, put_string(put32(begin(c, s, TVERSION), MSIZE), "9P2000.L")));
    c->msize = get32(reply);
    if (get16(reply + 4) != 8 || memcmp(reply + 6, "9P2000.L", 8))
        fail("the server does not speak 9P2000.L");
    s->tag = 0;
    uint8_t *at = put_string(put_string(put32(put32(begin(c, s, TATTACH), 0), NOFID), ""), aname);
    ASK(finish(c, put32(at, user)));
    for (int i = 0; i < depth; i++) {
        s = &c->slots[i];
        s->tag = (uint16_t)i;
        s->fid = 1 + (uint32_t)i;
        s->other = 1 + DEPTH_MAX + (uint32_t)i;
        s->expected = NEVER;
        s->measured = true;
        s->next = workload->next;
        s->count = (uint64_t)i * 7;
        s->random = 0x9E3779B97F4A7C15u * (uint64_t)(c->number * DEPTH_MAX + i + 1);
        if (workload->set_up)
            workload->set_up(c, s);
    }
}

static void record(struct connection *c, uint64_t latency) {
    if (c->operations == c->latency_room) {
        c->latency_room *= 2;
        c->latencies = realloc(c->latencies, c->latency_room * sizeof *c->latencies);
    }
    c->latencies[c->operations++] = latency;
}

/* Begin a slot's next operation, if there is time for one; say whether there is. */
static bool start_operation(struct connection *c, struct slot *s, uint64_t at, uint64_t deadline) {
    s->expected = NEVER;
    if (at >= deadline)
        return false;
    s->step = 0;
    s->started = at;
    return s->next(c, s, NULL);
}

static void *run(void *argument) {
    struct connection *c = argument;
    set_up(c);
    c->messages = 0;
    pthread_barrier_wait(&ready);
    pthread_barrier_wait(&go);
    uint64_t at = now(), begins = at + warm_ns, deadline = begins + run_ns;
    bool warm = true;
    int under_way = 0;
    for (int i = 0; i < depth; i++)
        under_way += start_operation(c, &c->slots[i], at, deadline);
    size_t start = 0, end = 0;
    while (under_way) {
        flush_out(c);
        if (IN_SIZE - end < MSIZE) {
            memmove(c->in, c->in + start, end - start);
            end -= start;
            start = 0;
        }
        ssize_t got = recv(c->socket, c->in + end, IN_SIZE - end, 0);
        if (got <= 0)
            fail("the connection ended: %s", got ? strerror(errno) : "closed by the server");
        end += (size_t)got;
        at = now();
        warm = warm && at < begins;
        while (end - start >= HEADER_SIZE && end - start >= get32(c->in + start)) {
            const uint8_t *message = c->in + start, *body = message + HEADER_SIZE;
            uint32_t size = get32(message);
            uint16_t tag = get16(message + 5);
            if (tag >= depth)
                fail("a reply to tag %u, which was never used", tag);
            struct slot *s = &c->slots[tag];
            check_reply(s, message[4], body, size - HEADER_SIZE);
            s->step++;
            if (!s->next(c, s, body)) {
                if (s->measured && !warm && at <= deadline)
                    record(c, at - s->started);
                under_way -= !start_operation(c, s, at, deadline);
            }
            start += size;
        }
        if (start == end)
            start = end = 0;
    }
    return NULL;
}

static int by_size(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return a < b ? -1 : a > b;
}

static double percentile(const uint64_t *sorted, uint64_t count, double share) {
    uint64_t at = (uint64_t)((double)count * share);
    return count ? (double)sorted[at < count ? at : count - 1] / 1000 : -1;
}

int main(int argc, char **argv) {
    if (argc != 9) {
        fprintf(stderr, "usage: load ADDRESS ANAME WORKLOAD DEPTH CONNECTIONS WARM_MS RUN_MS UID\n");
        return 2;
    }
    address = argv[1];
    aname = argv[2];
    workload_name = argv[3];
    depth = atoi(argv[4]);
    connections = atoi(argv[5]);
    warm_ns = strtoull(argv[6], NULL, 10) * 1000000;
    run_ns = strtoull(argv[7], NULL, 10) * 1000000;
    user = (uint32_t)strtoul(argv[8], NULL, 10);
    for (size_t i = 0; i < sizeof workloads / sizeof *workloads; i++)
        if (!strcmp(workloads[i].name, workload_name))
            workload = &workloads[i];
    if (!workload || depth < 1 || depth > DEPTH_MAX || connections < 1 || !run_ns)
        fail("no such workload, a depth not from 1 to %d, no connection, or no time", DEPTH_MAX);
    bulk_count = workload->bulk;

    struct connection *all = calloc((size_t)connections, sizeof *all);
    pthread_t *threads = calloc((size_t)connections, sizeof *threads);
    pthread_barrier_init(&ready, NULL, (unsigned)connections + 1);
    pthread_barrier_init(&go, NULL, (unsigned)connections + 1);
    for (int i = 0; i < connections; i++) {
        all[i].number = i;
        if (pthread_create(&threads[i], NULL, run, &all[i]))
            fail("cannot make a thread");
    }
    pthread_barrier_wait(&ready);
    puts("");
    fflush(stdout);
    (void)getchar();
    double used = cpu_us();
    pthread_barrier_wait(&go);
    uint64_t operations = 0, messages = 0;
    for (int i = 0; i < connections; i++) {
        pthread_join(threads[i], NULL);
        operations += all[i].operations;
        messages += all[i].messages;
    }
    used = cpu_us() - used;
    uint64_t *latencies = malloc((operations + 1) * sizeof *latencies), at = 0;
    for (int i = 0; i < connections; i++) {
        memcpy(latencies + at, all[i].latencies, all[i].operations * sizeof *latencies);
        at += all[i].operations;
    }
    qsort(latencies, operations, sizeof *latencies, by_size);
    double seconds = (double)run_ns / 1e9;
    uint64_t bytes = operations * (bulk_count ? bulk_of(&all[0]) : 0);
    printf("{\"operations\": %llu, \"operations_per_second\": %.1f, \"messages\": %llu, "
           "\"bytes_per_second\": %.0f, \"msize\": %u, \"p50_us\": %.1f, \"p99_us\": %.1f, \"p999_us\": %.1f, \"unlinkat\": %s, \"client_cpu_us\": %.1f}\n",
           (unsigned long long)operations, (double)operations / seconds, (unsigned long long)messages,
           (double)bytes / seconds, all[0].msize, percentile(latencies, operations, 0.5),
           percentile(latencies, operations, 0.99), percentile(latencies, operations, 0.999),
           all[0].no_unlinkat ? "false" : "true", used);
    fflush(stdout);
    while (getchar() != EOF)
        ;
    return 0;
}
