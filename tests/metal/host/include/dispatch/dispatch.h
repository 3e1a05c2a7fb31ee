// The part of libdispatch that our host code uses, for runs on Linux over gcd.cpp. On Apple targets this gives way to the
// genuine header.
#pragma once
#ifdef __APPLE__
#include_next <dispatch/dispatch.h>
#else
#include <stddef.h>
#include <stdint.h>

#define DISPATCH_TIME_NOW 0ull
#define DISPATCH_TIME_FOREVER (~0ull)
#define NSEC_PER_SEC 1000000000ull
#define QOS_CLASS_USER_INITIATED 0x19

#ifdef __OBJC__
#import <Foundation/Foundation.h>
#define FAKE_DISPATCH_TYPE(name)      \
  @protocol OS_##name <NSObject> @end \
  typedef NSObject<OS_##name>* name##_t;
#define FAKE_DISPATCH_RETAINED __attribute__((ns_returns_retained))
#else
#define FAKE_DISPATCH_TYPE(name) typedef struct name##_fake* name##_t;
#define FAKE_DISPATCH_RETAINED
#endif
FAKE_DISPATCH_TYPE(dispatch_queue)
FAKE_DISPATCH_TYPE(dispatch_group)
FAKE_DISPATCH_TYPE(dispatch_semaphore)
FAKE_DISPATCH_TYPE(dispatch_data)

typedef uint64_t dispatch_time_t;
typedef void (*dispatch_function_t)(void*);
typedef struct dispatch_queue_attr_fake* dispatch_queue_attr_t;
#define DISPATCH_QUEUE_SERIAL ((dispatch_queue_attr_t)0)

#ifdef __cplusplus
extern "C" {
#endif
dispatch_queue_t dispatch_queue_create(const char* label, dispatch_queue_attr_t attribute) FAKE_DISPATCH_RETAINED;
dispatch_queue_t dispatch_get_global_queue(intptr_t identifier, uintptr_t flags);
dispatch_group_t dispatch_group_create(void) FAKE_DISPATCH_RETAINED;
void dispatch_async_f(dispatch_queue_t queue, void* context, dispatch_function_t work);
void dispatch_group_async_f(dispatch_group_t group, dispatch_queue_t queue, void* context, dispatch_function_t work);
intptr_t dispatch_group_wait(dispatch_group_t group, dispatch_time_t timeout);
dispatch_semaphore_t dispatch_semaphore_create(intptr_t value) FAKE_DISPATCH_RETAINED;
intptr_t dispatch_semaphore_wait(dispatch_semaphore_t semaphore, dispatch_time_t timeout);
intptr_t dispatch_semaphore_signal(dispatch_semaphore_t semaphore);
#ifdef __BLOCKS__
typedef void (^dispatch_block_t)(void);
#define DISPATCH_DATA_DESTRUCTOR_DEFAULT ((dispatch_block_t)0)
void dispatch_async(dispatch_queue_t queue, dispatch_block_t work);
void dispatch_group_async(dispatch_group_t group, dispatch_queue_t queue, dispatch_block_t work);
void dispatch_apply(size_t count, dispatch_queue_t queue, __attribute__((noescape)) void (^work)(size_t));
dispatch_data_t dispatch_data_create(const void* bytes, size_t size, dispatch_queue_t queue,
                                     dispatch_block_t destructor) FAKE_DISPATCH_RETAINED;
#endif
#ifndef __OBJC__
void dispatch_release(void* object);
#endif
#ifdef __cplusplus
}
#endif
#endif
