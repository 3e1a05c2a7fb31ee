// The part of Foundation that our host code uses, declared as Apple documents it: for the type check against the Apple
// target (where NSObject comes from the genuine <objc/NSObject.h>) and for runs on Linux over objc_runtime.cpp.
#pragma once
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __APPLE__
#include <objc/NSObject.h>
#include <objc/objc.h>
#else
typedef struct objc_class* Class;
typedef bool BOOL;
#define YES ((BOOL)1)
#define NO ((BOOL)0)
#define nil ((id)0)
typedef long NSInteger;
typedef unsigned long NSUInteger;
#define NSUIntegerMax (~0ul)
#endif
typedef double NSTimeInterval;

#define NS_ENUM(type, name) enum name : type name; enum name : type
#ifdef __cplusplus
#define NS_OPTIONS(type, name) type name; enum : type
#else
#define NS_OPTIONS(type, name) enum name : type name; enum name : type
#endif

typedef struct _NSRange {
  NSUInteger location, length;
} NSRange;

@class NSString, NSError;

#ifndef __APPLE__
@protocol NSObject
- (BOOL)isEqual:(id)object;
- (NSUInteger)hash;
- (BOOL)respondsToSelector:(SEL)selector;
- (NSString*)description;
- (instancetype)self;
@end
__attribute__((objc_root_class)) @interface NSObject <NSObject>
+ (instancetype)alloc;
+ (instancetype)new;
- (instancetype)init;
+ (Class)class;
- (void)dealloc;
@end
#endif

@interface NSString : NSObject
+ (instancetype)stringWithUTF8String:(const char*)text;
- (const char*)UTF8String;
- (NSUInteger)length;
- (BOOL)isEqualToString:(NSString*)other;
@end

@interface NSError : NSObject
- (NSString*)localizedDescription;
- (NSInteger)code;
- (NSString*)domain;
@end

@interface NSArray<__covariant T> : NSObject
- (NSUInteger)count;
- (T)objectAtIndex:(NSUInteger)index;
@end
@interface NSDictionary<K, V> : NSObject
- (NSUInteger)count;
@end
@interface NSSet : NSObject
- (NSUInteger)count;
@end
@interface NSURL : NSObject
@end
@interface NSData : NSObject
@end
@interface NSBundle : NSObject
@end
@interface NSDate : NSObject
@end
@interface NSNumber : NSObject
@end
@interface NSValue : NSObject
@end
