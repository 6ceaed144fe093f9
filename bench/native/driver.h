/* One process is both ends of what a proxy stands between, with one event loop: two processes on one core would spend
 * a fifth of it on switching between them. */
#ifndef DRIVER_H
#define DRIVER_H

enum owner { LISTENER, BACKEND, LOAD, COMMANDS };

/* What epoll reports; every connection begins with one. */
typedef struct { enum owner owner; int fd; } watched;

long long now_us(void); /* CLOCK_MONOTONIC */
void watch(watched *one);

void backend_listen(int port, unsigned long answer_bytes);
void backend_interval(long long us); /* between two events of a stream */
void backend_accept(void);
void backend_ready(watched *one);
long long backend_run_due(void); /* microseconds until the next event of a stream is due, or a second */

void load_begin(int streams, int port, int connections, double seconds, double ramp_s, const char *body_file);
void load_ready(watched *one);
int load_go_on(void); /* 0 when the round is over; its line is printed then */
int load_running(void);

#endif
