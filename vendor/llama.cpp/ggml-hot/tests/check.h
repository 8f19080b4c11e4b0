// The little that the tests share: a check that cannot be compiled out, and a verdict at the end.
#pragma once

#include <cstdio>

static int failures = 0;

#define CHECK(condition, ...)                                             \
    do {                                                                  \
        if (!(condition)) {                                               \
            failures++;                                                   \
            printf("FAILED %s:%d: %s: ", __FILE__, __LINE__, #condition); \
            printf(__VA_ARGS__);                                          \
            printf("\n");                                                 \
        }                                                                 \
    } while (0)

static inline int verdict(const char * what) {
    printf("%s: %s\n", what, failures ? "FAILED" : "passed");
    return failures ? 1 : 0;
}
