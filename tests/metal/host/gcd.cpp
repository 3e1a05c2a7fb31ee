// A small libdispatch over a few threads: serial and global queues, groups, semaphores, data. Objects are counted by
// objc_runtime.cpp, so that ARC can keep them.
#include <Block.h>

#include <condition_variable>
#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <vector>

#include "gcd.h"
#include "objc_runtime.h"

namespace {

using Work = std::function<void()>;
using Block = void (^)(void);

struct Group : objc::Object {
  using Object::Object;
  std::mutex mutex;
  std::condition_variable changed;
  int64_t running = 0;
};
struct Semaphore : objc::Object {
  using Object::Object;
  std::mutex mutex;
  std::condition_variable changed;
  int64_t value = 0;
};
struct Queue : objc::Object {
  using Object::Object;
  bool is_serial = false;
  std::mutex mutex;
  std::deque<Work> waiting;  // of a serial queue
  bool is_running = false;
};

// Threads of all queues. Never destroyed: its threads wait in it while the program ends.
struct Pool {
  std::mutex mutex;
  std::condition_variable changed;
  std::deque<Work> work;

  Pool() {
    for (int i = 0; i < 4; ++i) std::thread([this] { run(); }).detach();
  }
  void add(Work w) {
    const std::lock_guard lock(mutex);
    work.push_back(std::move(w));
    changed.notify_one();
  }
  void run() {
    for (;;) {
      Work next;
      {
        std::unique_lock lock(mutex);
        changed.wait(lock, [&] { return !work.empty(); });
        next = std::move(work.front());
        work.pop_front();
      }
      const objc::AutoreleasePool pool;
      next();
    }
  }
};
Pool& pool() {
  static auto* p = new Pool;
  return *p;
}

void run_serial(Queue* queue) {
  for (;;) {
    Work next;
    {
      const std::lock_guard lock(queue->mutex);
      if (queue->waiting.empty()) {
        queue->is_running = false;
        break;
      }
      next = std::move(queue->waiting.front());
      queue->waiting.pop_front();
    }
    next();
  }
  objc::objc_release(queue);
}

void post(Queue* queue, Work work) {
  if (!queue || !queue->is_serial) {
    pool().add(std::move(work));
    return;
  }
  const std::lock_guard lock(queue->mutex);
  queue->waiting.push_back(std::move(work));
  if (queue->is_running) return;
  queue->is_running = true;
  objc::objc_retain(queue);
  pool().add([queue] { run_serial(queue); });
}

void enter(Group* group) {
  const std::lock_guard lock(group->mutex);
  ++group->running;
}
void leave(Group* group) {
  const std::lock_guard lock(group->mutex);
  if (--group->running == 0) group->changed.notify_all();
}

Work of_block(Block block) {
  auto* copy = static_cast<void*>(_Block_copy(reinterpret_cast<const void*>(block)));
  return [copy] {
    reinterpret_cast<Block>(copy)();
    _Block_release(copy);
  };
}
Work in_group(Group* group, Work work) {
  enter(group);
  return [keep = objc::Ref<Group>(group), work = std::move(work)] {
    work();
    leave(keep.get());
  };
}

}  // namespace

extern "C" {

Queue* dispatch_queue_create(const char*, void*) {
  auto* queue = objc::make<Queue>("OS_dispatch_queue");
  queue->is_serial = true;
  return queue;
}
Queue* dispatch_get_global_queue(intptr_t, uintptr_t) {
  static auto* queue = objc::make<Queue>("OS_dispatch_queue");
  return queue;
}
Group* dispatch_group_create() { return objc::make<Group>("OS_dispatch_group"); }
void dispatch_async_f(Queue* queue, void* context, void (*work)(void*)) {
  post(queue, [=] { work(context); });
}
void dispatch_async(Queue* queue, Block work) { post(queue, of_block(work)); }
void dispatch_group_async_f(Group* group, Queue* queue, void* context, void (*work)(void*)) {
  post(queue, in_group(group, [=] { work(context); }));
}
void dispatch_group_async(Group* group, Queue* queue, Block work) { post(queue, in_group(group, of_block(work))); }

intptr_t dispatch_group_wait(Group* group, uint64_t timeout) {
  if (timeout != ~0ull) objc::fail("dispatch_group_wait: only DISPATCH_TIME_FOREVER is supported");
  std::unique_lock lock(group->mutex);
  group->changed.wait(lock, [&] { return group->running == 0; });
  return 0;
}

void dispatch_apply(size_t count, Queue*, void (^work)(size_t)) {
  std::atomic<size_t> next{0};
  const auto run = [&] {
    for (size_t i; (i = next++) < count;) work(i);
  };
  std::vector<std::thread> threads;
  for (int i = 0; i < 3; ++i) threads.emplace_back(run);
  run();
  for (auto& thread : threads) thread.join();
}

Semaphore* dispatch_semaphore_create(intptr_t value) {
  auto* semaphore = objc::make<Semaphore>("OS_dispatch_semaphore");
  semaphore->value = value;
  return semaphore;
}
intptr_t dispatch_semaphore_wait(Semaphore* semaphore, uint64_t timeout) {
  if (timeout != ~0ull) objc::fail("dispatch_semaphore_wait: only DISPATCH_TIME_FOREVER is supported");
  std::unique_lock lock(semaphore->mutex);
  semaphore->changed.wait(lock, [&] { return semaphore->value > 0; });
  --semaphore->value;
  return 0;
}
intptr_t dispatch_semaphore_signal(Semaphore* semaphore) {
  const std::lock_guard lock(semaphore->mutex);
  ++semaphore->value;
  semaphore->changed.notify_one();
  return 0;
}

DispatchData* dispatch_data_create(const void* bytes, size_t size, Queue*, Block destructor) {
  if (destructor) objc::fail("dispatch_data_create: only the default destructor, which copies, is supported");
  auto* data = objc::make<DispatchData>("OS_dispatch_data");
  data->bytes.assign(static_cast<const char*>(bytes), size);
  return data;
}

void dispatch_release(void* object) { objc::objc_release(object); }
}
