/* The limit: a 9P2000.L server with the system calls that serving takes, and nothing else.
 *
 * It checks nothing, keeps no owners apart, confines nothing, and believes whatever the client says:
 * it is a yardstick, and unfit for any other use. One process a connection, a blocking loop, replies
 * of one receive sent with one call, as the real file server does it. Reads are copied, not sent
 * with sendfile: that is the plain way to serve one.
 *
 *     minimal unix:PATH | tcp:PORT
 *
 * The aname of an attach is the directory. It serves what benchmarks/load.c sends.
 */
#define _GNU_SOURCE
#include "wire.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/xattr.h>
#include <unistd.h>

enum {
    MSIZE = 1 << 20,
    FIDS = 65536,
    IN_SIZE = MSIZE + (64 << 10),
    FULL = 64 << 10, /* replies are sent when they pass this */
    OUT_SIZE = FULL + MSIZE + IO_HEADER_SIZE,
    LISTING_SIZE = 64 << 10,
};

struct fid {
    int path; /* O_PATH */
    int file; /* open for I/O, -1 when it is not */
    uint8_t *listing; /* entries from getdents64 that have not been taken */
    size_t listing_start, listing_end;
};

static struct fid fids[FIDS];
static uint32_t uid; /* of the attach: who new files belong to */
static int connection;
static uint8_t in[IN_SIZE], out[OUT_SIZE];
static uint8_t *out_end = out;

static void flush_out(void) {
    for (uint8_t *at = out; at < out_end;) {
        ssize_t sent = send(connection, at, (size_t)(out_end - at), MSG_NOSIGNAL);
        if (sent < 0)
            _exit(0);
        at += sent;
    }
    out_end = out;
}

static uint8_t *put_qid(uint8_t *at, const struct stat *found) {
    at = put8(at, S_ISDIR(found->st_mode) ? 0x80 : S_ISLNK(found->st_mode) ? 0x02 : 0);
    at = put32(at, (uint32_t)found->st_mtim.tv_nsec ^ (uint32_t)found->st_size << 8);
    return put64(at, found->st_ino);
}

static int reopen(int path, int flags) {
    char name[40];
    snprintf(name, sizeof name, "/proc/self/fd/%d", path);
    return open(name, flags | O_CLOEXEC);
}

/* A string of a message as a C string: the bytes behind it are moved aside for the NUL. */
static const char *take_string(const uint8_t *at, char *into) {
    uint16_t length = get16(at);
    memcpy(into, at + 2, length);
    into[length] = 0;
    return into;
}

static uint8_t *attach(const uint8_t *body, uint8_t *at) {
    char aname[65536];
    const uint8_t *name = body + 8 + 2 + get16(body + 8);
    uid = get32(name + 2 + get16(name));
    struct fid *fid = &fids[get32(body)];
    fid->path = open(take_string(name, aname), O_PATH | O_DIRECTORY | O_CLOEXEC);
    fid->file = -1;
    struct stat found;
    if (fid->path < 0 || fstat(fid->path, &found))
        return NULL;
    return put_qid(at, &found);
}

static uint8_t *walk(const uint8_t *body, uint8_t *at) {
    struct fid *fid = &fids[get32(body)], *newfid = &fids[get32(body + 4)];
    uint16_t names = get16(body + 8);
    const uint8_t *name = body + 10;
    uint8_t *count = at;
    at += 2;
    int path = names ? fid->path : dup(fid->path);
    for (uint16_t i = 0; i < names; i++, name += 2 + get16(name)) {
        char text[65536];
        int next = openat(path, take_string(name, text), O_PATH | O_NOFOLLOW | O_CLOEXEC);
        if (path != fid->path)
            close(path);
        path = next;
        struct stat found;
        if (path < 0 || fstat(path, &found))
            return NULL;
        at = put_qid(at, &found);
    }
    newfid->path = path;
    newfid->file = -1;
    put16(count, names);
    return at;
}

static uint8_t *getattr(const uint8_t *body, uint8_t *at) {
    struct stat found;
    if (fstat(fids[get32(body)].path, &found))
        return NULL;
    uint8_t *end = at + GETATTR_SIZE;
    at = put_qid(put64(at, GETATTR_BASIC), &found);
    at = put32(put32(put32(at, found.st_mode), found.st_uid), found.st_gid);
    at = put64(put64(at, found.st_nlink), found.st_rdev);
    at = put64(at, (uint64_t)found.st_size);
    at = put64(put64(at, (uint64_t)found.st_blksize), (uint64_t)found.st_blocks);
    at = put64(put64(at, (uint64_t)found.st_atim.tv_sec), (uint64_t)found.st_atim.tv_nsec);
    at = put64(put64(at, (uint64_t)found.st_mtim.tv_sec), (uint64_t)found.st_mtim.tv_nsec);
    at = put64(put64(at, (uint64_t)found.st_ctim.tv_sec), (uint64_t)found.st_ctim.tv_nsec);
    memset(at, 0, (size_t)(end - at));
    return end;
}

static uint8_t *lopen(const uint8_t *body, uint8_t *at) {
    struct fid *fid = &fids[get32(body)];
    struct stat found;
    if (fstat(fid->path, &found))
        return NULL;
    fid->file = reopen(fid->path, (int)get32(body + 4));
    fid->listing_start = fid->listing_end = 0;
    return fid->file < 0 ? NULL : put32(put_qid(at, &found), 0);
}

static uint8_t *lcreate(const uint8_t *body, uint8_t *at) {
    struct fid *fid = &fids[get32(body)];
    char name[65536];
    const uint8_t *rest = body + 6 + get16(body + 4);
    int flags = (int)get32(rest) | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC;
    int file = openat(fid->path, take_string(body + 4, name), flags, get32(rest + 4));
    struct stat found;
    if (file < 0 || fstat(file, &found))
        return NULL;
    uint32_t owners[] = {uid, get32(rest + 8)};
    if (owners[0] != found.st_uid)
        fsetxattr(file, "user.virtfs.uid", &owners[0], 4, 0);
    if (owners[1] != found.st_gid)
        fsetxattr(file, "user.virtfs.gid", &owners[1], 4, 0);
    close(fid->path);
    fid->path = reopen(file, O_PATH);
    fid->file = file;
    return put32(put_qid(at, &found), 0);
}

static uint8_t *read_file(const uint8_t *body, uint8_t *at) {
    ssize_t got = pread(fids[get32(body)].file, at + 4, get32(body + 12), (off_t)get64(body + 4));
    if (got < 0)
        return NULL;
    put32(at, (uint32_t)got);
    return at + 4 + got;
}

static uint8_t *write_file(const uint8_t *body, uint8_t *at) {
    ssize_t put = pwrite(fids[get32(body)].file, body + 16, get32(body + 12), (off_t)get64(body + 4));
    return put < 0 ? NULL : put32(at, (uint32_t)put);
}

struct dirent64 {
    uint64_t inode, offset;
    uint16_t length;
    uint8_t type;
    char name[];
};

static uint8_t *readdir_from(const uint8_t *body, uint8_t *at) {
    struct fid *fid = &fids[get32(body)];
    uint64_t offset = get64(body + 4);
    uint8_t *count = at, *room = at + 4 + get32(body + 12);
    at += 4;
    if (offset == 0) {
        lseek(fid->file, 0, SEEK_SET);
        fid->listing_start = fid->listing_end = 0;
        if (!fid->listing)
            fid->listing = malloc(LISTING_SIZE);
    }
    for (;;) {
        if (fid->listing_start == fid->listing_end) {
            long got = syscall(SYS_getdents64, fid->file, fid->listing, LISTING_SIZE);
            if (got < 0)
                return NULL;
            if (got == 0)
                break;
            fid->listing_start = 0;
            fid->listing_end = (size_t)got;
        }
        const struct dirent64 *entry = (const void *)(fid->listing + fid->listing_start);
        size_t length = strlen(entry->name);
        if (at + QID_SIZE + 11 + length > room)
            break;
        at = put8(at, entry->type == 4 ? 0x80 : entry->type == 10 ? 0x02 : 0);
        at = put64(put64(put32(at, 0), entry->inode), entry->offset);
        at = put16(put8(at, entry->type), (uint16_t)length);
        memcpy(at, entry->name, length);
        at += length;
        fid->listing_start += entry->length;
    }
    put32(count, (uint32_t)(at - count - 4));
    return at;
}

static uint8_t *touch(const uint8_t *body, uint8_t *at) {
    char name[40];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fids[get32(body)].path);
    struct timespec now[] = {{.tv_nsec = UTIME_OMIT}, {.tv_nsec = UTIME_NOW}};
    return utimensat(AT_FDCWD, name, now, 0) ? NULL : at;
}

static uint8_t *unlink_name(const uint8_t *body, uint8_t *at) {
    char name[65536];
    return unlinkat(fids[get32(body)].path, take_string(body + 4, name), 0) ? NULL : at;
}

static uint8_t *clunk(const uint8_t *body, uint8_t *at) {
    struct fid *fid = &fids[get32(body)];
    if (fid->file >= 0)
        close(fid->file);
    close(fid->path);
    return at;
}

/* Serve one message; its reply goes to `at`. NULL is an error, of which errno says more. */
static uint8_t *serve(uint8_t type, const uint8_t *body, uint8_t *at) {
    switch (type) {
    case TVERSION: {
        uint32_t asked = get32(body);
        return put_string(put32(at, asked < MSIZE ? asked : MSIZE), "9P2000.L");
    }
    case TATTACH:
        return attach(body, at);
    case TWALK:
        return walk(body, at);
    case TGETATTR:
        return getattr(body, at);
    case TLOPEN:
        return lopen(body, at);
    case TLCREATE:
        return lcreate(body, at);
    case TREAD:
        return read_file(body, at);
    case TWRITE:
        return write_file(body, at);
    case TSETATTR:
        return touch(body, at);
    case TREADDIR:
        return readdir_from(body, at);
    case TUNLINKAT:
        return unlink_name(body, at);
    case TCLUNK:
        return clunk(body, at);
    default:
        errno = EOPNOTSUPP;
        return NULL;
    }
}

static void serve_connection(void) {
    size_t start = 0, end = 0;
    for (;;) {
        while (end - start >= HEADER_SIZE && end - start >= get32(in + start)) {
            const uint8_t *message = in + start;
            start += get32(message);
            uint8_t *reply = out_end, *body = begin_message(reply, message[4] + 1, get16(message + 5));
            uint8_t *reply_end = serve(message[4], message + HEADER_SIZE, body);
            if (!reply_end) {
                reply[4] = RLERROR;
                reply_end = put32(body, (uint32_t)errno);
            }
            out_end = end_message(reply, reply_end);
            if (out_end - out >= FULL)
                flush_out();
        }
        flush_out();
        if (start == end) {
            start = end = 0;
        } else if (IN_SIZE - end < (64 << 10)) {
            memmove(in, in + start, end - start);
            end -= start;
            start = 0;
        }
        ssize_t got = recv(connection, in + end, IN_SIZE - end, 0);
        if (got <= 0)
            _exit(0);
        end += (size_t)got;
    }
}

static int listen_on(const char *address) {
    int listening = -1, yes = 1;
    if (!strncmp(address, "unix:", 5)) {
        struct sockaddr_un where = {.sun_family = AF_UNIX};
        snprintf(where.sun_path, sizeof where.sun_path, "%s", address + 5);
        listening = socket(AF_UNIX, SOCK_STREAM, 0);
        if (bind(listening, (void *)&where, sizeof where))
            return -1;
    } else if (!strncmp(address, "tcp:", 4)) {
        struct sockaddr_in where = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
        where.sin_port = htons((uint16_t)atoi(address + 4));
        listening = socket(AF_INET, SOCK_STREAM, 0);
        setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
        if (bind(listening, (void *)&where, sizeof where))
            return -1;
    }
    return listen(listening, 128) ? -1 : listening;
}

int main(int argc, char **argv) {
    int listening = argc == 2 ? listen_on(argv[1]) : -1;
    if (listening < 0) {
        fprintf(stderr, "minimal: cannot listen%s%s; usage: minimal unix:PATH|tcp:PORT\n", errno ? ": " : "",
                errno ? strerror(errno) : "");
        return 2;
    }
    signal(SIGCHLD, SIG_IGN);
    while ((connection = accept(listening, NULL, NULL)) >= 0) {
        int yes = 1, buffer = 4 << 20;
        setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
        setsockopt(connection, SOL_SOCKET, SO_SNDBUF, &buffer, sizeof buffer);
        if (!fork()) {
            close(listening);
            serve_connection();
        }
        close(connection);
    }
    return 1;
}
