/* Load generator and backend for benches of proxies.
 *
 *   driver BACKEND_PORT ANSWER_BYTES
 *
 * Then on stdin, one line per round, each answered by one line of JSON:
 *
 *   rate    PORT CONNECTIONS SECONDS BODY_FILE                     the next request when the last was answered
 *   streams PORT CONNECTIONS SECONDS BODY_FILE RAMP_S INTERVAL_US  one stream after the other on each connection
 */
#define _GNU_SOURCE
#include "driver.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

static int loop;

long long now_us(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1000000LL + t.tv_nsec / 1000;
}

void watch(watched *one) {
  struct epoll_event event = {.events = EPOLLIN, .data.ptr = one};
  epoll_ctl(loop, EPOLL_CTL_ADD, one->fd, &event);
}

/* Returns 0 at the end of the commands. */
static int command(void) {
  char line[1024], kind[16], file[512];
  int port, connections;
  long long interval = 0;
  double seconds, ramp = 0;
  ssize_t got = read(0, line, sizeof line - 1); /* one line at a time: the next comes when this round was answered */
  if (got <= 0) return 0;
  line[got] = 0;
  int count = sscanf(line, "%15s %d %d %lf %511s %lf %lld", kind, &port, &connections, &seconds, file, &ramp, &interval);
  if (count < 5) { fprintf(stderr, "not understood: %s\n", line); exit(2); }
  if (interval) backend_interval(interval);
  load_begin(!strcmp(kind, "streams"), port, connections, seconds, ramp, file);
  return 1;
}

int main(int argc, char **argv) {
  if (argc != 3) return 2;
  struct rlimit files;
  getrlimit(RLIMIT_NOFILE, &files);
  files.rlim_cur = files.rlim_max;
  setrlimit(RLIMIT_NOFILE, &files);
  loop = epoll_create1(0);
  backend_listen(atoi(argv[1]), strtoul(argv[2], NULL, 10));
  watched commands = {COMMANDS, 0};
  watch(&commands);
  struct epoll_event came[512];
  for (;;) {
    long long wait = (backend_run_due() + 999) / 1000;
    if (load_running() && wait > 1 && !load_go_on()) continue;
    if (load_running() && wait > 10) wait = 10;
    int count = epoll_wait(loop, came, 512, (int)wait);
    for (int index = 0; index < count; index++) {
      watched *one = came[index].data.ptr;
      if (one->fd < 0) continue;
      switch (one->owner) {
        case LISTENER: backend_accept(); break;
        case BACKEND: backend_ready(one); break;
        case LOAD: load_ready(one); break;
        case COMMANDS: if (!command()) return 0;
      }
    }
    if (load_running()) load_go_on();
  }
}
