/* A backend as cheap as can be, so that a proxy before it is what a bench measures: no allocation per request.
 *
 * POST: a chat completion of about `answer_bytes`, or, where the body holds `"stream":true`, as many events as its
 * `"max_tokens":` says, each with its number and the time at which it was sent. GET: what health checks and model lists
 * of the gateways under test want to see.
 */
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

enum { IN = 16384 };

typedef struct conn {
  watched watched;
  int used, tokens, sent;
  long long due;
  struct conn *next; /* in the queue of streams: all have the same interval, so the first is always due first */
  char in[IN];
} conn;

static char whole[65536], listing[512], health[512], other[128];
static size_t whole_len;
static conn *first, *last, *dead;
static long long interval_us = 20000;
static watched listener = {LISTENER, -1};

void backend_interval(long long us) { interval_us = us; }

static int answer(char *to, size_t room, const char *body) {
  return snprintf(to, room, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n%s",
                  strlen(body), body);
}

static void put(conn *c) {
  c->next = NULL;
  if (last) last->next = c; else first = c;
  last = c;
}

static void drop(conn *c) {
  conn *before = NULL;
  for (conn *one = first; c->tokens && one; before = one, one = one->next)
    if (one == c) {
      if (before) before->next = c->next; else first = c->next;
      if (last == c) last = before;
      break;
    }
  close(c->watched.fd);
  c->watched.fd = -1;
  c->next = dead; /* the present batch of epoll may still name it */
  dead = c;
}

static int send_all(conn *c, const char *data, size_t count) {
  return send(c->watched.fd, data, count, MSG_NOSIGNAL) == (ssize_t)count;
}

static int begin_stream(conn *c, const char *body) {
  static const char head[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ncache-control: no-cache\r\n"
                             "transfer-encoding: chunked\r\n\r\n";
  const char *asked = strstr(body, "\"max_tokens\":");
  c->tokens = asked ? atoi(asked + 13) : 16;
  c->sent = 0;
  c->due = now_us() + interval_us;
  put(c);
  return send_all(c, head, sizeof head - 1);
}

/* One event of the stream that is due; 0 when its client has gone. */
static int event(conn *c) {
  char body[512], frame[640];
  int count = snprintf(body, sizeof body,
      "data: {\"id\":\"chatcmpl-7f3a9b2c4d5e6f70\",\"object\":\"chat.completion.chunk\",\"created\":1790000000,"
      "\"model\":\"bench\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\" %06d %016lld\"},\"logprobs\":null,"
      "\"finish_reason\":null}]}\n\n", c->sent, now_us());
  int total = snprintf(frame, sizeof frame, "%x\r\n%s\r\n", count, body);
  c->sent++;
  if (c->sent >= c->tokens) total += snprintf(frame + total, sizeof frame - total, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
  return send_all(c, frame, total);
}

long long backend_run_due(void) {
  while (dead) {
    conn *c = dead;
    dead = c->next;
    free(c);
  }
  long long now = now_us();
  while (first && first->due <= now) {
    conn *c = first;
    first = c->next;
    if (!first) last = NULL;
    int alive = event(c);
    c->due += interval_us;
    if (c->sent < c->tokens) put(c); else c->tokens = 0;
    if (!alive) shutdown(c->watched.fd, SHUT_RDWR);
  }
  return first ? first->due - now : 1000000;
}

/* Answer the whole requests that have come; 0 when the connection must end. */
static int serve(conn *c) {
  for (;;) {
    c->in[c->used] = 0;
    char *end = memmem(c->in, c->used, "\r\n\r\n", 4);
    if (!end) return c->used < IN - 1;
    char *named = strcasestr(c->in, "\r\ncontent-length:");
    size_t length = named && named < end ? strtoul(named + 17, NULL, 10) : 0;
    char *body = end + 4;
    size_t total = (body - c->in) + length;
    if (total >= IN) return 0;
    if ((size_t)c->used < total) return 1;
    char kept = c->in[total];
    c->in[total] = 0;
    int ok;
    if (c->in[0] == 'P')
      ok = strstr(body, "\"stream\":true") || strstr(body, "\"stream\": true") ? begin_stream(c, body)
                                                                             : send_all(c, whole, whole_len);
    else if (!strncmp(c->in, "GET /v1/models", 14)) ok = send_all(c, listing, strlen(listing));
    else if (!strncmp(c->in, "GET /health", 11)) ok = send_all(c, health, strlen(health));
    else ok = send_all(c, other, strlen(other));
    if (!ok) return 0;
    c->in[total] = kept;
    c->used -= total;
    if (!c->used) return 1;
    memmove(c->in, c->in + total, c->used);
  }
}

void backend_ready(watched *one) {
  conn *c = (conn *)one;
  ssize_t got = recv(one->fd, c->in + c->used, IN - 1 - c->used, MSG_DONTWAIT);
  if (got > 0) c->used += got;
  if ((got < 0 && errno != EAGAIN) || got == 0 || (got > 0 && !serve(c))) drop(c);
}

void backend_accept(void) {
  int fd, on = 1;
  while ((fd = accept4(listener.fd, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    conn *c = calloc(1, sizeof *c);
    c->watched = (watched){BACKEND, fd};
    watch(&c->watched);
  }
}

void backend_listen(int port, unsigned long size) {
  static const char frame[] =
      "{\"id\":\"chatcmpl-7f3a9b2c4d5e6f70\",\"object\":\"chat.completion\",\"created\":1790000000,\"model\":\"bench\","
      "\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"%s\"},\"finish_reason\":\"stop\"}],"
      "\"usage\":{\"prompt_tokens\":24,\"completion_tokens\":32,\"total_tokens\":56}}";
  static char text[32768], body[49152];
  size_t fill = size > sizeof frame ? size - sizeof frame : 16;
  if (fill > sizeof text - 1) fill = sizeof text - 1;
  for (size_t at = 0; at < fill; at++) text[at] = at % 7 ? 'a' + at % 23 : ' ';
  snprintf(body, sizeof body, frame, text);
  whole_len = answer(whole, sizeof whole, body);
  answer(listing, sizeof listing, "{\"object\":\"list\",\"data\":[{\"id\":\"bench\",\"object\":\"model\"}]}");
  answer(health, sizeof health, "{\"status\":\"healthy\",\"service\":\"bench\",\"kind\":\"llm\",\"model\":\"bench\"}");
  answer(other, sizeof other, "{}");
  int on = 1;
  struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
  listener.fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
  setsockopt(listener.fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (bind(listener.fd, (struct sockaddr *)&at, sizeof at) || listen(listener.fd, 4096)) { perror("listen"); exit(1); }
  watch(&listener);
}
