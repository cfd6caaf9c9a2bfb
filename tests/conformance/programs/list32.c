/* Lists the current directory as 32-bit programs do: getdents(2) by the i386 numbers, and its entries on standard output.
 *
 * What lives here: the calls, without a C library, since a 64-bit system has none for it. The status is an errno. */

static char buffer[4096];

static long call(long number, long a, long b, long c)
{
    long result;

    __asm__ volatile("int $0x80" : "=a"(result) : "0"(number), "b"(a), "c"(b), "d"(c) : "memory");
    return result;
}

enum { EXIT = 1, WRITE = 4, OPEN = 5, GETDENTS = 141, DIRECTORY = 0x10000 };

void _start(void)
{
    long directory = call(OPEN, (long)".", DIRECTORY, 0);
    long size = directory;

    if (directory >= 0)
        while ((size = call(GETDENTS, directory, (long)buffer, sizeof buffer)) > 0)
            call(WRITE, 1, (long)buffer, size);
    call(EXIT, -size, 0, 0);
}
