/* A small strict JSON reader for the stand-in: UTF-16 in, a tree out. Integers only, no duplicate names,
 * nothing behind the document. What must not live here: what a document means. */

#ifndef STANDIN_JSON_H
#define STANDIN_JSON_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum json_type { JSON_NULL, JSON_BOOL, JSON_NUMBER, JSON_STRING, JSON_ARRAY, JSON_OBJECT };

struct json {
    enum json_type type;
    int64_t number;     /* a bool is 0 or 1 */
    char *string;       /* UTF-8, ends with a zero */
    char *name;         /* of a member */
    struct json *first; /* members or elements */
    struct json *next;
};

static void json_free(struct json *value)
{
    while (value) {
        struct json *next = value->next;
        json_free(value->first);
        free(value->string);
        free(value->name);
        free(value);
        value = next;
    }
}

static struct json *json_parse_value(const uint16_t **at, int depth);

static void json_space(const uint16_t **at)
{
    while (**at == ' ' || **at == '\t' || **at == '\n' || **at == '\r')
        ++*at;
}

static int json_hex4(const uint16_t *at, uint32_t *value)
{
    *value = 0;
    for (int i = 0; i < 4; i++) {
        uint16_t c = at[i];
        int digit = c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10
                    : c >= 'A' && c <= 'F' ? c - 'A' + 10 : -1;
        if (digit < 0)
            return 0;
        *value = *value << 4 | (uint32_t)digit;
    }
    return 1;
}

static char *json_utf8(char *out, uint32_t c)
{
    if (c < 0x80) {
        *out++ = (char)c;
    } else if (c < 0x800) {
        *out++ = (char)(0xC0 | c >> 6);
        *out++ = (char)(0x80 | (c & 0x3F));
    } else if (c < 0x10000) {
        *out++ = (char)(0xE0 | c >> 12);
        *out++ = (char)(0x80 | (c >> 6 & 0x3F));
        *out++ = (char)(0x80 | (c & 0x3F));
    } else {
        *out++ = (char)(0xF0 | c >> 18);
        *out++ = (char)(0x80 | (c >> 12 & 0x3F));
        *out++ = (char)(0x80 | (c >> 6 & 0x3F));
        *out++ = (char)(0x80 | (c & 0x3F));
    }
    return out;
}

/* One UTF-16 unit of a string, escapes resolved; 0 is returned for what cannot be. */
static int json_unit(const uint16_t **at, uint32_t *unit)
{
    static const char from[] = "\"\\/bfnrt", to[] = "\"\\/\b\f\n\r\t";
    uint16_t c = *(*at)++;
    if (c < 0x20)
        return 0;
    *unit = c;
    if (c != '\\')
        return 1;
    c = *(*at)++;
    if (c == 'u') {
        if (!json_hex4(*at, unit))
            return 0;
        *at += 4;
        return 1;
    }
    const char *found = c && c < 0x80 ? strchr(from, c) : NULL;
    if (!found)
        return 0;
    *unit = (unsigned char)to[found - from];
    return 1;
}

static char *json_parse_string(const uint16_t **at)
{
    const uint16_t *end = *at;
    if (*end++ != '"')
        return NULL;
    while (*end && *end != '"')
        end += *end == '\\' && end[1] ? 2 : 1;
    char *string = malloc((size_t)(end - *at) * 3 + 1), *out = string;
    ++*at;
    while (**at != '"') {
        uint32_t c, low;
        if (!json_unit(at, &c) || c == 0 || (c >= 0xDC00 && c < 0xE000))
            goto bad;
        if (c >= 0xD800 && c < 0xDC00) {
            if (!json_unit(at, &low) || low < 0xDC00 || low >= 0xE000)
                goto bad;
            c = 0x10000 + ((c - 0xD800) << 10) + (low - 0xDC00);
        }
        out = json_utf8(out, c);
    }
    ++*at;
    *out = 0;
    return string;
bad:
    free(string);
    return NULL;
}

static int json_word(const uint16_t **at, const char *word)
{
    const uint16_t *here = *at;
    while (*word)
        if (*here++ != (unsigned char)*word++)
            return 0;
    *at = here;
    return 1;
}

/* The members of an object (with names) or the elements of an array, up to the closing character. */
static int json_parse_inside(const uint16_t **at, struct json *into, uint16_t close, int depth)
{
    struct json **last = &into->first;
    json_space(at);
    if (**at == close) {
        ++*at;
        return 1;
    }
    for (;;) {
        char *name = NULL;
        if (close == '}') {
            json_space(at);
            name = json_parse_string(at);
            json_space(at);
            if (!name || **at != ':') {
                free(name);
                return 0;
            }
            ++*at;
            for (struct json *member = into->first; member; member = member->next)
                if (!strcmp(member->name, name)) {
                    free(name);
                    return 0;
                }
        }
        struct json *value = json_parse_value(at, depth + 1);
        if (!value) {
            free(name);
            return 0;
        }
        value->name = name;
        *last = value;
        last = &value->next;
        json_space(at);
        if (**at == close) {
            ++*at;
            return 1;
        }
        if (*(*at)++ != ',')
            return 0;
    }
}

static struct json *json_parse_value(const uint16_t **at, int depth)
{
    struct json *value = calloc(1, sizeof *value);
    json_space(at);
    if (depth > 16)
        goto bad;
    if (**at == '{' || **at == '[') {
        uint16_t open = *(*at)++;
        value->type = open == '{' ? JSON_OBJECT : JSON_ARRAY;
        if (!json_parse_inside(at, value, open == '{' ? '}' : ']', depth))
            goto bad;
    } else if (**at == '"') {
        value->type = JSON_STRING;
        value->string = json_parse_string(at);
        if (!value->string)
            goto bad;
    } else if (json_word(at, "true")) {
        value->type = JSON_BOOL;
        value->number = 1;
    } else if (json_word(at, "false")) {
        value->type = JSON_BOOL;
    } else if (json_word(at, "null")) {
        value->type = JSON_NULL;
    } else {
        value->type = JSON_NUMBER;
        if (**at < '0' || **at > '9' || (**at == '0' && (*at)[1] >= '0' && (*at)[1] <= '9'))
            goto bad;
        while (**at >= '0' && **at <= '9') {
            if (value->number > INT64_MAX / 16)
                goto bad;
            value->number = value->number * 10 + *(*at)++ - '0';
        }
    }
    return value;
bad:
    json_free(value);
    return NULL;
}

/* The whole document, or NULL when it is not one. */
static struct json *json_parse(const uint16_t *text)
{
    struct json *value = json_parse_value(&text, 0);
    json_space(&text);
    if (value && *text) {
        json_free(value);
        value = NULL;
    }
    return value;
}

#endif
