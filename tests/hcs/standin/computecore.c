/* A stand-in for computecore.dll, for tests: the functions that the binding uses, over compute systems that
 * exist only here.
 *
 * It knows no more of the Host Compute Service than the public reference says, and so proves nothing about
 * the real one. What it does prove is that the caller keeps to the reference: it is strict about documents,
 * handles and the order of calls; it completes on threads of its own; it reads the caller's buffers when
 * the operation ends, not when it is handed over, and overwrites them then; it overwrites its own
 * strings when they are freed; it counts what is open. What a test wants to go wrong, it asks for with
 * the standin_ functions at the end.
 *
 * Builds with cc for Linux (a shared object) and with mingw-w64 for Windows (a DLL). */

#include <stdio.h>

#include "json.h"

#ifdef _WIN32
#include <windows.h>
#define EXPORT __declspec(dllexport)
#define CALL WINAPI
typedef CRITICAL_SECTION mutex_t;
typedef CONDITION_VARIABLE cond_t;
typedef HANDLE thread_t;
static mutex_t lock;
static cond_t changed = CONDITION_VARIABLE_INIT;
#define acquire() EnterCriticalSection(&lock)
#define release() LeaveCriticalSection(&lock)
#define wait_change() SleepConditionVariableCS(&changed, &lock, INFINITE)
#define tell_change() WakeAllConditionVariable(&changed)
#else
#include <pthread.h>
#define EXPORT __attribute__((visibility("default")))
#define CALL
typedef pthread_t thread_t;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t changed = PTHREAD_COND_INITIALIZER;
#define acquire() pthread_mutex_lock(&lock)
#define release() pthread_mutex_unlock(&lock)
#define wait_change() pthread_cond_wait(&changed, &lock)
#define tell_change() pthread_cond_broadcast(&changed)
#endif

#define S_OK_ 0u
#define E_NOTIMPL_ 0x80004001u
#define E_ABORT_ 0x80004004u
#define E_HANDLE_ 0x80070006u
#define E_INVALID_DATA_ 0x8007000Du
#define E_NOT_SUPPORTED_ 0x80070032u
#define E_INVALIDARG_ 0x80070057u
#define E_NOT_FOUND_ 0x80070490u
#define E_DUPLICATE_ 0x800707DEu
#define HCS_INVALID_JSON 0xC037010Du
#define HCS_SYSTEM_NOT_FOUND 0xC037010Eu
#define HCS_ALREADY_STOPPED 0xC0370110u
#define HCS_UNEXPECTED_EXIT 0xC0370106u
#define HCS_NOT_STARTED 0x80370115u
#define HCS_ALREADY_STARTED 0x80370116u
#define HCS_PENDING 0x80370117u
#define HCS_CALLBACK_SET 0x80370119u
#define HCS_SERVICE_DISCONNECT 0x8037011Eu

#define EVENT_SYSTEM_EXITED 1u
#define EVENT_SERVICE_DISCONNECT 0x02000000u

#define PLAN9_SHARES "VirtualMachine/Devices/Plan9/Shares"
#define FLAG_RESTRICT 0x80
#define ALL_FLAGS 0x1FD
#define WORKERS 3

typedef void(CALL *completion_t)(void *operation, void *context);
struct event {
    uint32_t type;
    uint16_t *data;
    void *operation;
};
typedef void(CALL *event_callback_t)(struct event *event, void *context);

struct share {
    char *name, *access_name, *path, *allowed; /* allowed: the JSON array */
    int64_t port, flags;
    struct share *next;
};

struct system {
    char *id;
    int plan9, running;
    struct share *shares;
    struct system *next;
};

struct handle { /* an HCS_SYSTEM */
    uintptr_t number;
    struct system *system;
    event_callback_t callback;
    void *context;
    int in_callback;
    struct handle *next;
};

enum state { NEW, REFUSED, HELD, READY, RUNNING, ENDED };
enum kind { MODIFY, PROPERTIES, ENUMERATE };

struct operation {
    uintptr_t number;
    enum state state;
    enum kind kind;
    completion_t callback;
    void *context;
    uintptr_t handle;         /* the system handle it was started on */
    struct system *system;
    const uint16_t *text;     /* the caller's */
    size_t length;
    uint32_t checksum;
    uint32_t answer;          /* instead of doing it, if not S_OK */
    int do_it_all_the_same;
    char *answer_message;
    uint32_t hresult;
    char *document;           /* UTF-8 */
    struct operation *next;   /* all that are open, oldest first */
};

struct pending_event {
    uintptr_t handle;
    uint32_t type;
    char *data;
    struct pending_event *next;
};

/* How an injected answer comes. */
enum when { AT_ONCE, AT_THE_END, AFTER_DOING_IT, ALTHOUGH_STARTED, HOLD_IT };

struct injection {
    char *function;
    uint32_t hresult;
    int when;
    char *message;
    struct injection *next;
};

struct string {
    struct string *next;
    size_t units;
    uint16_t text[];
};

/* Everything below is guarded by the lock. */
static struct system *systems;
static struct handle *handles;
static struct operation *operations;
static struct pending_event *events;
static struct injection *injections;
#ifndef STANDIN_USES_LOCAL_MEMORY
static struct string *strings;
#endif
static uintptr_t next_number = 1;
static int holding, cancel_works, stopping, callbacks_running, service_gone;
static int count_strings, count_threads, count_misuse, count_modify, count_cancel, count_blocked;
static char *blocked_function;
static char misuse_text[512];
static char *last_document;
static thread_t threads[WORKERS];
static int threads_started;

static void systems_of_environment(void);

#ifdef _WIN32
BOOL WINAPI DllMain(HINSTANCE instance, DWORD reason, LPVOID reserved)
{
    (void)instance, (void)reserved;
    if (reason == DLL_PROCESS_ATTACH) {
        InitializeCriticalSection(&lock);
        systems_of_environment();
    }
    return TRUE;
}
#else
__attribute__((constructor)) static void on_load(void)
{
    systems_of_environment();
}
#endif

static char *copy(const char *text)
{
    size_t size = strlen(text) + 1;
    return memcpy(malloc(size), text, size);
}

static void misuse(const char *text)
{
    count_misuse++;
    snprintf(misuse_text, sizeof misuse_text, "%s", text);
}

/* ---------------------------------------------------------------- text */

static size_t units_of(const uint16_t *text)
{
    size_t length = 0;
    while (text[length])
        length++;
    return length;
}

static uint32_t checksum_of(const uint16_t *text, size_t length)
{
    uint32_t sum = 2166136261u;
    for (size_t i = 0; i <= length; i++) /* the zero belongs to it */
        sum = (sum ^ text[i]) * 16777619u;
    return sum;
}

static char *utf8_of(const uint16_t *text)
{
    size_t length = units_of(text);
    char *result = malloc(length * 3 + 1), *out = result;
    for (size_t i = 0; i < length; i++) {
        uint32_t c = text[i];
        if (c >= 0xD800 && c < 0xDC00 && i + 1 < length)
            c = 0x10000 + ((c - 0xD800) << 10) + (text[++i] - 0xDC00u);
        out = json_utf8(out, c);
    }
    *out = 0;
    return result;
}

static void utf16_into(uint16_t *out, const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    while (*at) {
        uint32_t c = *at++;
        int more = c < 0x80 ? 0 : c < 0xE0 ? 1 : c < 0xF0 ? 2 : 3;
        c &= more == 0 ? 0x7F : more == 1 ? 0x1F : more == 2 ? 0x0F : 0x07;
        while (more-- && *at)
            c = c << 6 | (*at++ & 0x3F);
        if (c >= 0x10000) {
            *out++ = (uint16_t)(0xD800 + ((c - 0x10000) >> 10));
            c = 0xDC00 + ((c - 0x10000) & 0x3FF);
        }
        *out++ = (uint16_t)c;
    }
    *out = 0;
}

/* A string for the caller, which frees it with LocalFree. */
static uint16_t *string_for_caller(const char *text)
{
    size_t units = strlen(text) + 1;
#ifdef STANDIN_USES_LOCAL_MEMORY
    uint16_t *result = LocalAlloc(LMEM_FIXED, units * 2);
    utf16_into(result, text);
    return result;
#else
    struct string *string = malloc(sizeof *string + units * 2);
    utf16_into(string->text, text);
    string->units = units;
    string->next = strings;
    strings = string;
    count_strings++;
    return string->text;
#endif
}

#ifndef STANDIN_USES_LOCAL_MEMORY
#ifndef _WIN32
#define standin_local_free LocalFree
EXPORT void *LocalFree(void *memory);
#endif
/* Exported as LocalFree: the strings are overwritten, so that a caller that reads on reads rubbish. */
void *CALL standin_local_free(void *memory)
{
    acquire();
    struct string **at = &strings;
    while (*at && (void *)(*at)->text != memory)
        at = &(*at)->next;
    struct string *found = *at;
    if (found) {
        *at = found->next;
        memset(found->text, 0xDD, found->units * 2);
        free(found);
        count_strings--;
    } else {
        misuse("LocalFree of what is no string of HCS, or was freed before");
    }
    release();
    return NULL;
}
#endif

/* JSON text that grows. */
struct writer {
    char *text;
    size_t length;
};

static void put(struct writer *writer, const char *text)
{
    size_t more = strlen(text);
    writer->text = realloc(writer->text, writer->length + more + 1);
    memcpy(writer->text + writer->length, text, more + 1);
    writer->length += more;
}

static void put_string(struct writer *writer, const char *text)
{
    char piece[8];
    put(writer, "\"");
    for (; *text; text++) {
        if (*text == '"' || *text == '\\')
            snprintf(piece, sizeof piece, "\\%c", *text);
        else if ((unsigned char)*text < 0x20)
            snprintf(piece, sizeof piece, "\\u%04x", *text);
        else
            snprintf(piece, sizeof piece, "%c", *text);
        put(writer, piece);
    }
    put(writer, "\"");
}

static void put_number(struct writer *writer, int64_t number)
{
    char piece[32];
    snprintf(piece, sizeof piece, "%lld", (long long)number);
    put(writer, piece);
}

static char *error_document(uint32_t hresult, const char *message)
{
    struct writer writer = {0};
    put(&writer, "{\"Error\":");
    put_number(&writer, (int32_t)hresult);
    put(&writer, ",\"ErrorMessage\":\"The request failed.\",\"ErrorEvents\":[{\"Message\":");
    put_string(&writer, message);
    put(&writer, ",\"Provider\":\"80ce50de-d264-4581-950d-abadeee0d340\",\"EventId\":4096}]}");
    return writer.text;
}

/* ---------------------------------------------------------------- documents */

struct problem {
    uint32_t hresult;
    char message[256];
};

static int wrong(struct problem *problem, uint32_t hresult, const char *what, const char *which)
{
    problem->hresult = hresult;
    snprintf(problem->message, sizeof problem->message, "%s '%s'", what, which);
    return 0;
}

struct field {
    const char *name;
    enum json_type type;
};

/* Every member must be one of the fields and have its type; none may be empty, which HCS would not send. */
static int check_object(const struct json *object, const struct field *fields, struct problem *problem)
{
    for (const struct json *member = object->first; member; member = member->next) {
        const struct field *field = fields;
        while (field->name && strcmp(field->name, member->name))
            field++;
        if (!field->name)
            return wrong(problem, HCS_INVALID_JSON, "unknown field", member->name);
        if (field->type != member->type)
            return wrong(problem, HCS_INVALID_JSON, "wrong type of field", member->name);
        if ((member->type == JSON_STRING && !*member->string) || (member->type == JSON_ARRAY && !member->first))
            return wrong(problem, E_INVALID_DATA_, "empty field", member->name);
    }
    return 1;
}

static const struct json *member(const struct json *object, const char *name)
{
    const struct json *found = object ? object->first : NULL;
    while (found && strcmp(found->name, name))
        found = found->next;
    return found;
}

static const char *string_of(const struct json *object, const char *name)
{
    const struct json *found = member(object, name);
    return found ? found->string : "";
}

static int64_t number_of(const struct json *object, const char *name)
{
    const struct json *found = member(object, name);
    return found ? found->number : 0;
}

static int check_strings(const struct json *array, struct problem *problem)
{
    for (const struct json *element = array ? array->first : NULL; element; element = element->next)
        if (element->type != JSON_STRING || !*element->string)
            return wrong(problem, HCS_INVALID_JSON, "wrong type of an element of", array->name);
    return 1;
}

static const struct field request_fields[] = {{"ResourcePath", JSON_STRING},
                                              {"RequestType", JSON_STRING},
                                              {"Settings", JSON_OBJECT},
                                              {"GuestRequest", JSON_OBJECT},
                                              {NULL, JSON_NULL}};
static const struct field share_fields[] = {{"Name", JSON_STRING},   {"AccessName", JSON_STRING},
                                            {"Path", JSON_STRING},   {"Port", JSON_NUMBER},
                                            {"Flags", JSON_NUMBER},  {"AllowedFiles", JSON_ARRAY},
                                            {NULL, JSON_NULL}};
static const struct field removal_fields[] = {
    {"Name", JSON_STRING}, {"AccessName", JSON_STRING}, {"Port", JSON_NUMBER}, {NULL, JSON_NULL}};
static const struct field guest_fields[] = {{"RequestType", JSON_STRING},
                                            {"ResourceType", JSON_STRING},
                                            {"Settings", JSON_OBJECT},
                                            {NULL, JSON_NULL}};
static const struct field mapped_fields[] = {{"MountPath", JSON_STRING},
                                             {"Port", JSON_NUMBER},
                                             {"ShareName", JSON_STRING},
                                             {"ReadOnly", JSON_BOOL},
                                             {NULL, JSON_NULL}};
static const struct field query_fields[] = {{"PropertyTypes", JSON_ARRAY}, {NULL, JSON_NULL}};
static const struct field system_query_fields[] = {
    {"Ids", JSON_ARRAY}, {"Names", JSON_ARRAY}, {"Types", JSON_ARRAY}, {"Owners", JSON_ARRAY}, {NULL, JSON_NULL}};

static char *allowed_of(const struct json *settings)
{
    struct writer writer = {0};
    const struct json *names = member(settings, "AllowedFiles");
    put(&writer, "[");
    for (const struct json *name = names ? names->first : NULL; name; name = name->next) {
        put_string(&writer, name->string);
        put(&writer, name->next ? "," : "");
    }
    put(&writer, "]");
    return writer.text;
}

static void free_share(struct share *share)
{
    free(share->name);
    free(share->access_name);
    free(share->path);
    free(share->allowed);
    free(share);
}

static int add_share(struct system *system, const struct json *settings, struct problem *problem)
{
    const char *needed[] = {"Name", "AccessName", "Path", "Port", NULL};
    int64_t flags = number_of(settings, "Flags"), port = number_of(settings, "Port");
    if (!check_object(settings, share_fields, problem) ||
        !check_strings(member(settings, "AllowedFiles"), problem))
        return 0;
    for (int i = 0; needed[i]; i++)
        if (!member(settings, needed[i]))
            return wrong(problem, E_INVALID_DATA_, "missing field", needed[i]);
    if (port < 1 || port > UINT32_MAX)
        return wrong(problem, E_INVALID_DATA_, "value out of range of field", "Port");
    if (flags & ~(int64_t)ALL_FLAGS)
        return wrong(problem, E_INVALID_DATA_, "unknown bit in field", "Flags");
    if (!member(settings, "AllowedFiles") != !(flags & FLAG_RESTRICT))
        return wrong(problem, E_INVALID_DATA_, "RestrictFileAccess does not go with field", "AllowedFiles");
    for (struct share *share = system->shares; share; share = share->next)
        if (!strcmp(share->name, string_of(settings, "Name")) ||
            (!strcmp(share->access_name, string_of(settings, "AccessName")) && share->port == port))
            return wrong(problem, E_DUPLICATE_, "duplicate share", share->name);
    struct share *share = calloc(1, sizeof *share), **last = &system->shares;
    share->name = copy(string_of(settings, "Name"));
    share->access_name = copy(string_of(settings, "AccessName"));
    share->path = copy(string_of(settings, "Path"));
    share->allowed = allowed_of(settings);
    share->port = port;
    share->flags = flags;
    while (*last)
        last = &(*last)->next;
    *last = share;
    return 1;
}

static int remove_share(struct system *system, const struct json *settings, struct problem *problem)
{
    if (!check_object(settings, removal_fields, problem))
        return 0;
    for (struct share **at = &system->shares; *at; at = &(*at)->next)
        if (!strcmp((*at)->access_name, string_of(settings, "AccessName")) &&
            (*at)->port == number_of(settings, "Port")) {
            struct share *found = *at;
            *at = found->next;
            free_share(found);
            return 1;
        }
    return wrong(problem, E_NOT_FOUND_, "no share", string_of(settings, "AccessName"));
}

static int check_request_type(const struct json *request, struct problem *problem)
{
    const char *type = string_of(request, "RequestType");
    if (strcmp(type, "Add") && strcmp(type, "Remove"))
        return wrong(problem, strcmp(type, "Update") ? HCS_INVALID_JSON : E_NOT_SUPPORTED_, "RequestType", type);
    return 1;
}

static int modify(struct system *system, const struct json *request, struct problem *problem)
{
    const struct json *settings = member(request, "Settings"), *guest = member(request, "GuestRequest");
    if (!check_object(request, request_fields, problem))
        return 0;
    if (guest) {
        if (!check_object(guest, guest_fields, problem) || !check_request_type(guest, problem))
            return 0;
        if (strcmp(string_of(guest, "ResourceType"), "MappedDirectory"))
            return wrong(problem, E_NOT_SUPPORTED_, "ResourceType", string_of(guest, "ResourceType"));
        if (!member(guest, "Settings"))
            return wrong(problem, E_INVALID_DATA_, "missing field", "Settings");
        if (!check_object(member(guest, "Settings"), mapped_fields, problem))
            return 0;
        if (!member(request, "ResourcePath"))
            return 1; /* for the guest alone */
    }
    if (strcmp(string_of(request, "ResourcePath"), PLAN9_SHARES))
        return wrong(problem, E_NOT_SUPPORTED_, "ResourcePath", string_of(request, "ResourcePath"));
    if (!check_request_type(request, problem))
        return 0;
    if (!settings)
        return wrong(problem, E_INVALID_DATA_, "missing field", "Settings");
    if (!system->plan9)
        return wrong(problem, E_NOT_FOUND_, "the VM has no device", "Plan9");
    return strcmp(string_of(request, "RequestType"), "Add") ? remove_share(system, settings, problem)
                                                            : add_share(system, settings, problem);
}

static void put_system(struct writer *writer, const struct system *system)
{
    put(writer, "{\"Id\":");
    put_string(writer, system->id);
    put(writer, ",\"SystemType\":\"VirtualMachine\",\"Owner\":\"standin\",\"RuntimeOsType\":\"Linux\",\"State\":\"");
    put(writer, system->running ? "Running\"}" : "Stopped\"}");
}

static int listed(const struct json *query, const char *field, const char *value)
{
    const struct json *names = member(query, field);
    for (const struct json *name = names ? names->first : NULL; name; name = name->next)
        if (!strcmp(name->string, value))
            return 1;
    return !names;
}

static char *enumerate(const struct json *query)
{
    struct writer writer = {0};
    const char *comma = "";
    put(&writer, "[");
    for (struct system *system = systems; system; system = system->next)
        if (listed(query, "Ids", system->id) && listed(query, "Owners", "standin") &&
            listed(query, "Types", "VirtualMachine") && listed(query, "Names", "")) {
            put(&writer, comma);
            put_system(&writer, system);
            comma = ",";
        }
    put(&writer, "]");
    return writer.text;
}

/* ---------------------------------------------------------------- the threads that carry operations out */

static struct operation *find_operation(const void *number)
{
    struct operation *found = operations;
    while (found && found->number != (uintptr_t)number)
        found = found->next;
    return found;
}

static struct handle *find_handle(const void *number)
{
    struct handle *found = handles;
    while (found && found->number != (uintptr_t)number)
        found = found->next;
    return found;
}

/* Does what the operation asks, with the caller's text as it is now. */
static void carry_out(struct operation *operation)
{
    struct problem problem = {0};
    struct json *document = NULL;
    const struct field *fields = operation->kind == PROPERTIES ? query_fields : system_query_fields;
    if (operation->text) {
        if (checksum_of(operation->text, operation->length) != operation->checksum)
            misuse("the caller's text was changed or released before the operation ended");
        document = json_parse(operation->text);
        if (operation->kind == MODIFY) {
            free(last_document);
            last_document = utf8_of(operation->text);
        }
    }
    if (operation->answer != S_OK_ && !operation->do_it_all_the_same) {
        problem.hresult = operation->answer;
    } else if (operation->text && (!document || document->type != JSON_OBJECT)) {
        wrong(&problem, HCS_INVALID_JSON, "cannot be read:", "document");
    } else if (operation->system && !operation->system->running && operation->kind == MODIFY) {
        wrong(&problem, HCS_ALREADY_STOPPED, "stopped:", operation->system->id);
    } else if (operation->kind == MODIFY) {
        modify(operation->system, document, &problem);
    } else if (document && !check_object(document, fields, &problem)) {
        /* said in problem */
    } else if (operation->kind == PROPERTIES) {
        struct writer writer = {0};
        put_system(&writer, operation->system);
        operation->document = writer.text;
    } else {
        operation->document = enumerate(document);
    }
    if (operation->answer != S_OK_ && problem.hresult == S_OK_)
        problem.hresult = operation->answer;
    if (problem.hresult != S_OK_) {
        free(operation->document);
        operation->document = NULL;
        if (operation->answer_message || problem.message[0])
            operation->document = error_document(
                problem.hresult, operation->answer_message ? operation->answer_message : problem.message);
    }
    operation->hresult = problem.hresult;
    json_free(document);
    if (operation->text) /* nothing of the caller's is read from here on: make sure of it */
        memset((void *)(uintptr_t)operation->text, 0xDD, operation->length * 2);
    operation->text = NULL;
}

static void run_operation(struct operation *operation)
{
    completion_t callback = operation->callback;
    void *context = operation->context, *number = (void *)operation->number;
    operation->state = RUNNING;
    carry_out(operation);
    operation->state = ENDED;
    if (!callback)
        return;
    callbacks_running++;
    release();
    callback(number, context); /* may close the operation */
    acquire();
    callbacks_running--;
}

static void run_event(struct pending_event *pending)
{
    struct handle *handle = find_handle((void *)pending->handle);
    if (handle && handle->callback) {
        size_t units = strlen(pending->data) + 1;
        struct event *event = calloc(1, sizeof *event);
        event->type = pending->type;
        event->data = *pending->data ? malloc(units * 2) : NULL;
        if (event->data)
            utf16_into(event->data, pending->data);
        handle->in_callback++;
        callbacks_running++;
        release();
        handle->callback(event, handle->context);
        if (event->data)
            memset(event->data, 0xDD, units * 2);
        free(event->data);
        memset(event, 0xDD, sizeof *event);
        free(event);
        acquire();
        callbacks_running--;
        handle->in_callback--;
    }
    free(pending->data);
    free(pending);
}

static int idle(void)
{
    if (events || callbacks_running)
        return 0;
    for (struct operation *operation = operations; operation; operation = operation->next)
        if (operation->state == READY || operation->state == RUNNING)
            return 0;
    return 1;
}

static void work(void)
{
    acquire();
    for (;;) {
        struct operation *operation = operations;
        while (operation && operation->state != READY)
            operation = operation->next;
        if (events) {
            struct pending_event *pending = events;
            events = pending->next;
            run_event(pending);
        } else if (operation) {
            run_operation(operation);
        } else if (stopping) {
            break;
        } else {
            wait_change();
            continue;
        }
        tell_change();
    }
    count_threads--;
    tell_change();
    release();
}

#ifdef _WIN32
static DWORD WINAPI run_thread(LPVOID unused)
{
    (void)unused;
    work();
    return 0;
}
#else
static void *run_thread(void *unused)
{
    (void)unused;
    work();
    return NULL;
}
#endif

static void start_threads(void)
{
    if (threads_started)
        return;
    threads_started = 1;
    for (int i = 0; i < WORKERS; i++) {
        count_threads++;
#ifdef _WIN32
        threads[i] = CreateThread(NULL, 0, run_thread, NULL, 0, NULL);
#else
        pthread_create(&threads[i], NULL, run_thread, NULL);
#endif
    }
}

/* ---------------------------------------------------------------- what computecore.dll exports */

/* The next injected answer for a function, or NULL; it is the caller's to free. Waits while it is blocked. */
static struct injection *enter(const char *function)
{
    while (blocked_function && !strcmp(blocked_function, function)) {
        count_blocked++;
        tell_change();
        wait_change();
        count_blocked--;
    }
    for (struct injection **at = &injections; *at; at = &(*at)->next)
        if (!strcmp((*at)->function, function)) {
            struct injection *found = *at;
            *at = found->next;
            return found;
        }
    return NULL;
}

static void free_injection(struct injection *injection)
{
    if (injection) {
        free(injection->function);
        free(injection->message);
        free(injection);
    }
}

EXPORT void *CALL HcsCreateOperation(const void *context, completion_t callback)
{
    acquire();
    struct injection *injection = enter("HcsCreateOperation");
    void *number = NULL;
    if (!injection) {
        struct operation *operation = calloc(1, sizeof *operation), **last = &operations;
        operation->number = next_number++ * 16 + 1;
        operation->context = (void *)(uintptr_t)context;
        operation->callback = callback;
        while (*last)
            last = &(*last)->next;
        *last = operation;
        number = (void *)operation->number;
    }
    free_injection(injection);
    release();
    return number;
}

EXPORT void CALL HcsCloseOperation(void *number)
{
    acquire();
    struct operation **at = &operations;
    while (*at && (*at)->number != (uintptr_t)number)
        at = &(*at)->next;
    struct operation *operation = *at;
    if (!operation) {
        misuse("HcsCloseOperation of what is no operation, or was closed before");
    } else {
        if (operation->state == HELD || operation->state == READY || operation->state == RUNNING)
            misuse("HcsCloseOperation before the operation ended");
        *at = operation->next;
        free(operation->answer_message);
        free(operation->document);
        free(operation);
    }
    tell_change();
    release();
}

EXPORT int32_t CALL HcsCancelOperation(void *number)
{
    acquire();
    struct injection *injection = enter("HcsCancelOperation");
    struct operation *operation = find_operation(number);
    uint32_t hresult = E_NOTIMPL_; /* what the reference says it always answers */
    count_cancel++;
    if (!operation) {
        misuse("HcsCancelOperation of what is no operation, or was closed before");
        hresult = E_HANDLE_;
    } else if (operation->state == NEW || operation->state == REFUSED) {
        misuse("HcsCancelOperation before the operation was started");
        hresult = HCS_NOT_STARTED;
    } else if (cancel_works) {
        hresult = S_OK_;
        if (operation->state == HELD) {
            operation->answer = E_ABORT_;
            operation->do_it_all_the_same = 0;
            operation->state = READY;
        }
    }
    free_injection(injection);
    tell_change();
    release();
    return (int32_t)hresult;
}

EXPORT int32_t CALL HcsGetOperationResult(void *number, uint16_t **document)
{
    acquire();
    struct injection *injection = enter("HcsGetOperationResult");
    struct operation *operation = find_operation(number);
    uint32_t hresult;
    *document = NULL;
    if (!operation) {
        misuse("HcsGetOperationResult of what is no operation, or was closed before");
        hresult = E_HANDLE_;
    } else if (injection) {
        hresult = injection->hresult;
    } else if (operation->state == NEW) {
        hresult = HCS_NOT_STARTED;
    } else if (operation->state != ENDED && operation->state != REFUSED) {
        misuse("HcsGetOperationResult before the operation ended");
        hresult = HCS_PENDING;
    } else {
        hresult = operation->hresult;
        if (operation->document)
            *document = string_for_caller(operation->document);
    }
    free_injection(injection);
    release();
    return (int32_t)hresult;
}

/* What the three functions that take an operation have in common. Called with the lock held. */
static uint32_t start(const char *function, enum kind kind, void *system, void *number, const uint16_t *text)
{
    struct injection *injection = enter(function);
    struct operation *operation = find_operation(number);
    struct handle *handle = find_handle(system);
    uint32_t hresult = S_OK_;
    if (!operation || (kind != ENUMERATE && !handle)) {
        misuse(operation ? "a function was called on a closed compute system" : "a function was given no operation");
        hresult = E_HANDLE_;
    } else if (operation->state != NEW) {
        misuse("an operation was used twice");
        hresult = HCS_ALREADY_STARTED;
    } else if (kind == MODIFY && !text) {
        hresult = E_INVALIDARG_;
    } else if (service_gone) {
        hresult = HCS_SERVICE_DISCONNECT;
    } else if (injection && injection->when == AT_ONCE) {
        operation->state = REFUSED;
        operation->hresult = hresult = injection->hresult;
        if (*injection->message)
            operation->document = error_document(injection->hresult, injection->message);
    } else {
        operation->kind = kind;
        operation->handle = (uintptr_t)system;
        operation->system = handle ? handle->system : NULL;
        operation->text = text;
        operation->length = text ? units_of(text) : 0;
        operation->checksum = text ? checksum_of(text, operation->length) : 0;
        operation->state = holding || (injection && injection->when == HOLD_IT) ? HELD : READY;
        if (injection && injection->when == ALTHOUGH_STARTED) {
            hresult = injection->hresult;
        } else if (injection) {
            operation->answer = injection->hresult;
            operation->do_it_all_the_same = injection->when == AFTER_DOING_IT;
            operation->answer_message = *injection->message ? copy(injection->message) : NULL;
        }
        start_threads();
    }
    free_injection(injection);
    tell_change();
    return hresult;
}

EXPORT int32_t CALL HcsModifyComputeSystem(void *system, void *operation, const uint16_t *text, void *identity)
{
    acquire();
    count_modify++;
    uint32_t hresult = start("HcsModifyComputeSystem", MODIFY, system, operation, text);
    if (identity)
        misuse("HcsModifyComputeSystem with an identity");
    release();
    return (int32_t)hresult;
}

EXPORT int32_t CALL HcsGetComputeSystemProperties(void *system, void *operation, const uint16_t *query)
{
    acquire();
    uint32_t hresult = start("HcsGetComputeSystemProperties", PROPERTIES, system, operation, query);
    release();
    return (int32_t)hresult;
}

EXPORT int32_t CALL HcsEnumerateComputeSystems(const uint16_t *query, void *operation)
{
    acquire();
    uint32_t hresult = start("HcsEnumerateComputeSystems", ENUMERATE, NULL, operation, query);
    release();
    return (int32_t)hresult;
}

EXPORT int32_t CALL HcsOpenComputeSystem(const uint16_t *id, uint32_t access, void **result)
{
    acquire();
    struct injection *injection = enter("HcsOpenComputeSystem");
    uint32_t hresult = injection ? injection->hresult : S_OK_;
    char *name = utf8_of(id);
    struct system *system = systems;
    while (system && strcmp(system->id, name))
        system = system->next;
    *result = NULL;
    if (access != 0x10000000u)
        misuse("HcsOpenComputeSystem with another access than GENERIC_ALL");
    if (hresult == S_OK_ && service_gone)
        hresult = HCS_SERVICE_DISCONNECT;
    if (hresult == S_OK_ && !system)
        hresult = HCS_SYSTEM_NOT_FOUND;
    if (hresult == S_OK_) {
        struct handle *handle = calloc(1, sizeof *handle);
        handle->number = next_number++ * 16 + 2;
        handle->system = system;
        handle->next = handles;
        handles = handle;
        *result = (void *)handle->number;
    }
    free(name);
    free_injection(injection);
    release();
    return (int32_t)hresult;
}

EXPORT void CALL HcsCloseComputeSystem(void *number)
{
    acquire();
    free_injection(enter("HcsCloseComputeSystem"));
    struct handle **at = &handles, *handle = find_handle(number);
    if (!handle) {
        misuse("HcsCloseComputeSystem of what is no compute system, or was closed before");
    } else {
        for (struct operation *operation = operations; operation; operation = operation->next)
            if (operation->handle == handle->number && operation->state >= HELD && operation->state < ENDED)
                misuse("HcsCloseComputeSystem before its operations ended");
        while (handle->in_callback)
            wait_change();
        while (*at != handle)
            at = &(*at)->next;
        *at = handle->next;
        free(handle);
    }
    tell_change();
    release();
}

EXPORT int32_t CALL HcsSetComputeSystemCallback(void *number, uint32_t options, const void *context,
                                                event_callback_t callback)
{
    acquire();
    struct injection *injection = enter("HcsSetComputeSystemCallback");
    struct handle *handle = find_handle(number);
    uint32_t hresult = injection ? injection->hresult : S_OK_;
    if (!handle) {
        misuse("HcsSetComputeSystemCallback of what is no compute system");
        hresult = E_HANDLE_;
    } else if (options || !callback) {
        hresult = E_INVALIDARG_;
    } else if (handle->callback) {
        hresult = HCS_CALLBACK_SET;
    } else if (hresult == S_OK_) {
        handle->callback = callback;
        handle->context = (void *)(uintptr_t)context;
    }
    free_injection(injection);
    release();
    return (int32_t)hresult;
}

/* ---------------------------------------------------------------- what tests ask for */

EXPORT void standin_add_system(const char *id, int plan9)
{
    acquire();
    struct system *system = calloc(1, sizeof *system), **last = &systems;
    system->id = copy(id);
    system->plan9 = plan9;
    system->running = 1;
    while (*last)
        last = &(*last)->next;
    *last = system;
    release();
}

/* For programs that have no other way to ask: STANDIN_SYSTEMS=vm1,vm2 are there from the start. */
static void systems_of_environment(void)
{
    const char *ids = getenv("STANDIN_SYSTEMS");
    char *list = copy(ids ? ids : "");
    for (char *id = strtok(list, ","); id; id = strtok(NULL, ","))
        standin_add_system(id, 1);
    free(list);
}

/* The next call of the function gets this answer, in the way that `when` says. */
EXPORT void standin_inject(const char *function, uint32_t hresult, int when, const char *message)
{
    acquire();
    struct injection *injection = calloc(1, sizeof *injection), **last = &injections;
    injection->function = copy(function);
    injection->hresult = hresult;
    injection->when = when;
    injection->message = copy(message);
    while (*last)
        last = &(*last)->next;
    *last = injection;
    release();
}

static void drop_injections(void)
{
    while (injections) {
        struct injection *injection = injections;
        injections = injection->next;
        free_injection(injection);
    }
}

/* Nothing goes wrong any more. */
EXPORT void standin_clear_injections(void)
{
    acquire();
    drop_injections();
    release();
}

/* While on, operations that are started do not end. */
EXPORT void standin_hold(int on)
{
    acquire();
    holding = on;
    release();
}

/* Lets the held operation at `index` end, counted from the oldest; -1: all. Returns how many were held. */
EXPORT int standin_release(int index)
{
    int held = 0;
    acquire();
    for (struct operation *operation = operations; operation; operation = operation->next)
        if (operation->state == HELD) {
            if (index < 0 || held == index)
                operation->state = READY;
            held++;
        }
    tell_change();
    release();
    return held;
}

/* While set, calls of the function do not return; an empty name lets them go. */
EXPORT void standin_block(const char *function)
{
    acquire();
    free(blocked_function);
    blocked_function = *function ? copy(function) : NULL;
    tell_change();
    release();
}

EXPORT void standin_cancel_works(int on)
{
    acquire();
    cancel_works = on;
    release();
}

static void post_event(struct handle *handle, uint32_t type, const char *data)
{
    struct pending_event *pending = calloc(1, sizeof *pending), **last = &events;
    pending->handle = handle->number;
    pending->type = type;
    pending->data = copy(data);
    while (*last)
        last = &(*last)->next;
    *last = pending;
    start_threads();
}

EXPORT void standin_event(const char *id, uint32_t type, const char *data)
{
    acquire();
    for (struct handle *handle = handles; handle; handle = handle->next)
        if (!strcmp(handle->system->id, id))
            post_event(handle, type, data);
    tell_change();
    release();
}

/* The VM exits: its shares are gone, everything after fails, and whoever watches is told. */
EXPORT void standin_exit(const char *id, const char *data, int end_operations)
{
    acquire();
    for (struct system *system = systems; system; system = system->next)
        if (!strcmp(system->id, id)) {
            system->running = 0;
            while (system->shares) {
                struct share *share = system->shares;
                system->shares = share->next;
                free_share(share);
            }
        }
    for (struct operation *operation = operations; operation && end_operations; operation = operation->next)
        if (operation->state == HELD && operation->system && !strcmp(operation->system->id, id)) {
            operation->answer = HCS_UNEXPECTED_EXIT;
            operation->state = READY;
        }
    release();
    standin_event(id, EVENT_SYSTEM_EXITED, data);
}

/* The service goes away: held operations fail, new ones are refused, and whoever watches is told. */
EXPORT void standin_disconnect(void)
{
    acquire();
    service_gone = 1;
    for (struct operation *operation = operations; operation; operation = operation->next)
        if (operation->state == HELD) {
            operation->answer = HCS_SERVICE_DISCONNECT;
            operation->state = READY;
        }
    for (struct handle *handle = handles; handle; handle = handle->next)
        post_event(handle, EVENT_SERVICE_DISCONNECT, "");
    tell_change();
    release();
}

/* Waits until nothing is under way but what is held, so that what it led to can be looked at. */
EXPORT void standin_settle(void)
{
    acquire();
    while (!idle())
        wait_change();
    release();
}

static int count(const char *what)
{
    int open = 0, held = 0, systems_open = 0;
    for (struct operation *operation = operations; operation; operation = operation->next) {
        open++;
        held += operation->state == HELD;
    }
    for (struct handle *handle = handles; handle; handle = handle->next)
        systems_open++;
    const struct {
        const char *name;
        int value;
    } counts[] = {{"operations", open},        {"held", held},
                  {"systems", systems_open},   {"strings", count_strings},
                  {"threads", count_threads},  {"misuse", count_misuse},
                  {"modify", count_modify},    {"cancel", count_cancel},
                  {"blocked", count_blocked}};
    for (size_t i = 0; i < sizeof counts / sizeof *counts; i++)
        if (!strcmp(counts[i].name, what))
            return counts[i].value;
    return -1;
}

EXPORT int standin_count(const char *what)
{
    acquire();
    int result = count(what);
    release();
    return result;
}

/* Waits until the count is as wanted, or more. */
EXPORT void standin_wait(const char *what, int wanted)
{
    acquire();
    while (count(what) < wanted)
        wait_change();
    release();
}

/* Both write at most `size` bytes and return how many the whole text has. */
static int give(const char *text, char *out, int size)
{
    snprintf(out, (size_t)size, "%s", text);
    return (int)strlen(text);
}

EXPORT int standin_misuse(char *out, int size)
{
    acquire();
    int length = give(misuse_text, out, size);
    release();
    return length;
}

EXPORT int standin_last_document(char *out, int size)
{
    acquire();
    int length = give(last_document ? last_document : "", out, size);
    release();
    return length;
}

EXPORT int standin_shares(const char *id, char *out, int size)
{
    struct writer writer = {0};
    const char *comma = "";
    acquire();
    put(&writer, "[");
    for (struct system *system = systems; system; system = system->next)
        if (!strcmp(system->id, id))
            for (struct share *share = system->shares; share; share = share->next) {
                put(&writer, comma);
                put(&writer, "{\"Name\":");
                put_string(&writer, share->name);
                put(&writer, ",\"AccessName\":");
                put_string(&writer, share->access_name);
                put(&writer, ",\"Path\":");
                put_string(&writer, share->path);
                put(&writer, ",\"Port\":");
                put_number(&writer, share->port);
                put(&writer, ",\"Flags\":");
                put_number(&writer, share->flags);
                put(&writer, ",\"AllowedFiles\":");
                put(&writer, share->allowed);
                put(&writer, "}");
                comma = ",";
            }
    put(&writer, "]");
    int length = give(writer.text, out, size);
    free(writer.text);
    release();
    return length;
}

/* Ends the threads and forgets everything. Returns how much the caller has left open. */
EXPORT int standin_reset(void)
{
    int left = 0;
    acquire();
    stopping = 1;
    tell_change();
    while (count_threads)
        wait_change();
    release();
    for (int i = 0; i < WORKERS && threads_started; i++) {
#ifdef _WIN32
        WaitForSingleObject(threads[i], INFINITE);
        CloseHandle(threads[i]);
#else
        pthread_join(threads[i], NULL);
#endif
    }
    acquire();
    stopping = threads_started = holding = cancel_works = service_gone = 0;
    for (struct operation *next, *operation = operations; operation; operation = next, left++) {
        next = operation->next;
        free(operation->answer_message);
        free(operation->document);
        free(operation);
    }
    for (struct handle *next, *handle = handles; handle; handle = next, left++) {
        next = handle->next;
        free(handle);
    }
    operations = NULL;
    handles = NULL;
    left += count_strings;
    drop_injections();
    while (systems) {
        struct system *system = systems;
        systems = system->next;
        while (system->shares) {
            struct share *share = system->shares;
            system->shares = share->next;
            free_share(share);
        }
        free(system->id);
        free(system);
    }
    free(last_document);
    last_document = NULL;
    free(blocked_function);
    blocked_function = NULL;
    count_misuse = count_modify = count_cancel = 0;
    misuse_text[0] = 0;
    release();
    return left;
}
