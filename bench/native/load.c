/* A client as cheap as can be, on keep-alive connections to 127.0.0.1. LOAD_HEADERS in the environment adds header
 * lines, each ended by \r\n. Bodies take turns in SHAPES lengths, as no two prompts are equally long: spaces at the end.
 * Streams must be those of backend.c: every event's number is checked, its delay taken. */
#define _GNU_SOURCE
#include "driver.h"
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { IN = 65536, CARRY = 64, BUCKETS = 2000000, SHAPES = 64 };

typedef struct {
  watched watched;
  int used, left, expect, done, chunked;
  long long sent_at;
  char in[];
} conn;

static int running, port, streams, connections, opened;
static long long began, until, ramp_us, requests, errors, events, reads, slowest;
static char request[SHAPES][40960], first_error[256];
static int request_len[SHAPES], shape;
static unsigned counts[BUCKETS];
static unsigned long long measured;
static conn **all;

static void measure(long long us) {
  if (us < 0) us = 0;
  if (us > slowest) slowest = us;
  counts[us < BUCKETS ? us : BUCKETS - 1]++;
  measured++;
}

static long long quantile(double q) {
  unsigned long long seen = 0, want = (unsigned long long)(measured * q);
  for (int us = 0; us < BUCKETS; us++)
    if ((seen += counts[us]) > want) return us;
  return 0;
}

static void ask(conn *c) {
  c->used = c->expect = c->done = 0;
  c->left = c->chunked = -1;
  c->sent_at = now_us();
  shape = (shape + 1) % SHAPES;
  if (send(c->watched.fd, request[shape], request_len[shape], MSG_NOSIGNAL) != request_len[shape] && !first_error[0])
    snprintf(first_error, sizeof first_error, "send: %s", strerror(errno));
}

static int dial(conn *c) {
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  int on = 1;
  c->watched.fd = socket(AF_INET, SOCK_STREAM, 0);
  if (connect(c->watched.fd, (struct sockaddr *)&at, sizeof at)) return 0;
  setsockopt(c->watched.fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  c->watched.owner = LOAD;
  watch(&c->watched);
  ask(c);
  return 1;
}

static void fail(conn *c, const char *why, const char *what, int count) {
  if (!first_error[0]) snprintf(first_error, sizeof first_error, "%s: %.*s", why, count < 120 ? count : 120, what);
  errors++;
  close(c->watched.fd);
  c->watched.fd = -1;
  if (now_us() < until) dial(c);
}

/* One read of an answer that has a length, or chunks (then it ends with the last one). */
static void take_answer(conn *c, ssize_t got) {
  if (c->left < 0 && c->chunked < 0) {
    c->used += got;
    c->in[c->used] = 0;
    char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
    if (!end) return;
    if (memcmp(c->in, "HTTP/1.1 200", 12)) { fail(c, "answer", c->in, c->used); return; }
    char *named = strcasestr(c->in, "\r\ncontent-length:");
    int have = c->used - (int)(end + 4 - c->in);
    if (named && named < end) c->left = atoi(named + 17) - have;
    else c->chunked = 1;
  } else if (c->chunked < 0) c->left -= got;
  else c->used += got;
  if (c->chunked > 0 && c->used >= 5 && !memcmp(c->in + c->used - 5, "0\r\n\r\n", 5)) c->left = 0;
  if (c->left) return;
  measure(now_us() - c->sent_at);
  requests++;
  ask(c);
}

/* One read of a stream: what a marker that is cut in two begins with is carried to the next. */
static void take_events(conn *c, ssize_t got) {
  c->used += got;
  c->in[c->used] = 0;
  reads++;
  if (c->left < 0) {
    if (c->used < 12) return;
    if (memcmp(c->in, "HTTP/1.1 200", 12)) { fail(c, "answer", c->in, c->used); return; }
    c->left = 1;
  }
  char *at = c->in, *end = c->in + c->used, *mark;
  long long now = now_us();
  while ((mark = memmem(at, end - at, "\"content\":\" ", 12)) && end - mark >= 12 + 6 + 1 + 16) {
    int number = atoi(mark + 12);
    if (number != c->expect) { fail(c, "event out of order", mark, (int)(end - mark)); return; }
    c->expect++;
    events++;
    measure(now - atoll(mark + 19));
    at = mark + 35;
  }
  if (memmem(at, end - at, "[DONE]", 6)) c->done = 1;
  if (memmem(at, end - at, "\"error\"", 7)) { fail(c, "error event", at, (int)(end - at)); return; }
  if (c->done && c->used >= 5 && !memcmp(end - 5, "0\r\n\r\n", 5)) {
    requests++;
    if (now < until) { ask(c); return; }
    close(c->watched.fd);
    c->watched.fd = -1;
    return;
  }
  if (end - at > CARRY) at = end - CARRY;
  if (mark && mark < at) at = mark;
  memmove(c->in, at, end - at);
  c->used = (int)(end - at);
}

int load_running(void) { return running; }

void load_ready(watched *one) {
  conn *c = (conn *)one;
  if (!running) return;
  ssize_t got = recv(one->fd, c->in + c->used, IN - c->used, MSG_DONTWAIT);
  if (got > 0) { if (streams) take_events(c, got); else take_answer(c, got); }
  else if (got == 0 || errno != EAGAIN) fail(c, "connection ended", c->in, c->used);
}

static void finish(void) {
  printf("{\"requests\": %lld, \"errors\": %lld, \"seconds\": %.6f, \"events\": %lld, \"reads\": %lld, \"p50_us\": %lld, "
         "\"p99_us\": %lld, \"max_us\": %lld, \"first_error\": \"", requests, errors, (now_us() - began) / 1e6, events,
         reads, quantile(0.5), quantile(0.99), slowest);
  for (char *at = first_error; *at; at++) if (*at >= ' ' && *at != '"' && *at != '\\') putchar(*at);
  puts("\"}");
  fflush(stdout);
  for (int index = 0; index < opened; index++) {
    if (all[index]->watched.fd >= 0) close(all[index]->watched.fd);
    free(all[index]);
  }
  free(all);
  running = 0;
}

int load_go_on(void) {
  long long now = now_us();
  while (opened < connections && now >= began + ramp_us * opened / connections) {
    conn *c = all[opened] = malloc(sizeof *c + IN + 1);
    if (!dial(c)) { errors++; snprintf(first_error, sizeof first_error, "connect: %s", strerror(errno)); c->watched.fd = -1; }
    opened++;
  }
  if (now < until) return 1;
  /* At the end requests in flight are left; streams are read to their end, for some time. */
  int open = 0;
  for (int index = 0; streams && index < opened; index++) open += all[index]->watched.fd >= 0;
  if (open && now < until + 30000000LL) return 1;
  if (open) { errors += open; snprintf(first_error, sizeof first_error, "%d streams did not end", open); }
  finish();
  return 0;
}

void load_begin(int as_streams, int to, int count, double seconds, double ramp_s, const char *body_file) {
  static char body[32768];
  FILE *file = fopen(body_file, "rb");
  size_t length = file ? fread(body, 1, sizeof body, file) : 0;
  if (!length) { perror(body_file); exit(2); }
  fclose(file);
  const char *more = getenv("LOAD_HEADERS");
  port = to;
  for (int index = 0; index < SHAPES; index++)
    request_len[index] = snprintf(request[index], sizeof request[index],
        "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: application/json\r\n"
        "Content-Type: application/json\r\nUser-Agent: OpenAI/Python 3.54.0\r\nX-Stainless-Lang: python\r\n"
        "X-Stainless-OS: Linux\r\nX-Stainless-Async: false\r\n%sContent-Length: %zu\r\n\r\n%.*s%*s",
        port, more ? more : "", length + index, (int)length, body, index, "");
  streams = as_streams;
  connections = count;
  opened = 0;
  requests = errors = events = reads = slowest = 0;
  measured = 0;
  memset(counts, 0, sizeof counts);
  first_error[0] = 0;
  all = calloc(connections, sizeof *all);
  ramp_us = (long long)(ramp_s * 1e6);
  began = now_us();
  until = began + (long long)(seconds * 1e6);
  running = 1;
}
